//! Looking at a node's dataplane on its command line, through the real binary.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// What a verb prints on node 1, over its control socket.
fn at_home(cluster: &mut Cluster, verb: &str) -> String {
    let words: Vec<_> = verb.split_whitespace().collect();
    cluster.node(1).control(&words).unwrap()
}

fn json(cluster: &mut Cluster, verb: &str) -> Value {
    serde_json::from_str(&at_home(cluster, &format!("{verb} --json"))).unwrap()
}

#[test]
#[ignore = "needs root; make test runs it"]
fn flows_are_seen_and_ended() {
    let mut cluster = Cluster::start(1).unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    let live = FAMILIES.map(|family| cluster.live(1, address::allowed_server(family)).unwrap());
    let lines = live.each_ref().map(|live| live.account().lines);
    wait::until_true("lines on both connections", SOON, || {
        let now = live.each_ref().map(|live| live.account().lines);
        Ok(now.iter().zip(&lines).all(|(now, before)| now > before))
    })
    .unwrap();
    for verb in ["flows list", "flows top", "nat"] {
        println!("{}", at_home(&mut cluster, verb));
    }

    let server = address::allowed_server(Family::V4);
    let list = json(
        &mut cluster,
        &format!("flows list --state established --to {server}"),
    );
    let flows = list["flows"].as_array().unwrap();
    assert_eq!(flows.len(), 1, "{list}");
    assert_eq!(
        flows[0]["nat_ip"],
        address::outside(1, Family::V4).to_string()
    );
    let top = json(&mut cluster, "flows top --by rate --count 2");
    assert!(
        top["flows"][1]["bytes_per_s"].as_u64().unwrap() > 0,
        "{top}"
    );
    let nat = json(&mut cluster, "nat");
    assert_eq!(nat["addresses"][0]["tcp_ports"], 1, "{nat}");

    let killed = json(&mut cluster, &format!("flows kill --to {server} --reset"));
    assert_eq!(killed["killed"], 1);
    wait::until_true("the end of the killed connection", SOON, || {
        Ok(live[0].account().ended.is_some())
    })
    .unwrap();
    assert_eq!(live[1].account().ended, None, "the other one goes on");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_drop_is_explained_before_and_captured_when_it_happens() {
    let mut cluster = Cluster::start(1).unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    let client = address::client(1, Family::V4);
    let servers = [
        address::allowed_server(Family::V4),
        address::denied_server(Family::V4),
    ];
    for (server, verdict) in servers.into_iter().zip(["forward", "drop"]) {
        let asked = format!("explain packet --from {client} --to {server} --dport 80");
        println!("# {asked}\n{}", at_home(&mut cluster, &asked));
        assert_eq!(json(&mut cluster, &asked)["verdict"], verdict, "{server}");
    }
    let capture = cluster.node(1).dir().join("drops.pcapng");
    let verbs = [
        format!(
            "drops --to {} --count 1 --pcap {}",
            servers[1],
            capture.display()
        ),
        format!("drops --to {} --count 1", servers[1]),
        format!("trace --address {} --count 3", servers[0]),
    ];
    let seen: Vec<String> = std::thread::scope(|scope| {
        let (node, topology) = (&cluster.nodes[0], &cluster.topology);
        let watching: Vec<_> = verbs
            .iter()
            .map(|verb| {
                let words: Vec<_> = verb.split_whitespace().collect();
                scope.spawn(move || node.control(&words).unwrap())
            })
            .collect();
        // Until all three have begun and seen enough.
        let packets = || {
            watching
                .iter()
                .all(std::thread::ScopedJoinHandle::is_finished)
        };
        wait::until_true("the end of what was asked for", SOON, || {
            for server in servers {
                let to = std::net::SocketAddr::new(server, lab::server::PORT);
                let _ =
                    lab::client::probe(&topology.client, client, to, Duration::from_millis(300));
            }
            Ok(packets())
        })
        .unwrap();
        watching
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    println!("# {}\n{}\n# {}\n{}", verbs[1], seen[1], verbs[2], seen[2]);
    assert!(seen[1].contains("policy_denied"), "{}", seen[1]);
    assert!(seen[2].contains("group clients, rule web"), "{}", seen[2]);
    let bytes = std::fs::read(capture).unwrap();
    assert!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    let comment = b"drop: policy_denied";
    assert!(bytes.windows(comment.len()).any(|window| window == comment));
    println!(
        "# drops --counters\n{}",
        at_home(&mut cluster, "drops --counters")
    );
    let denied = servers[1].to_string();
    wait::until_true("the finding", SOON, || {
        let found = json(&mut cluster, "findings --type l4_deny");
        let items = found["items"].as_array().unwrap();
        let is_it = |item: &&Value| item["dst_ip"] == denied.as_str();
        Ok(items.iter().find(is_it).is_some_and(|item| {
            let facts = (&item["src_ip"], &item["dst_port"], &item["would_deny"]);
            let (client, port) = (client.to_string().into(), lab::server::PORT.into());
            facts == (&client, &port, &false.into())
        }))
    })
    .unwrap();
    println!("# findings\n{}", at_home(&mut cluster, "findings"));
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_client_looks_like_an_address_of_the_pool() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let config = cluster.node(1).dir().join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("  snat: auto\n", "  snat: [192.0.2.200/30, 192.0.2.210]\n");
    cluster.node(1).set_config(&text).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    let server = address::allowed_server(Family::V4);
    let live = cluster.live(1, server).unwrap();
    wait::until_true("lines on the connection", SOON, || {
        Ok(live.account().lines > 0)
    })
    .unwrap();
    let list = json(&mut cluster, &format!("flows list --to {server}"));
    let shown = list["flows"][0]["nat_ip"].as_str().unwrap().to_owned();
    let pool = ["192.0.2.201", "192.0.2.202", "192.0.2.210"];
    assert!(pool.contains(&shown.as_str()), "{list}");
    let nat = json(&mut cluster, "nat");
    let addresses = nat["addresses"].as_array().unwrap().iter();
    let of_pool = addresses.filter(|a| pool.contains(&a["address"].as_str().unwrap()));
    let in_use = of_pool.map(|a| (a["address"] == shown.as_str(), &a["tcp_ports"]));
    let in_use: Vec<_> = in_use.collect();
    assert_eq!(in_use.len(), pool.len(), "{nat}");
    assert!(
        in_use
            .iter()
            .all(|(mine, ports)| **ports == u64::from(*mine)),
        "{nat}"
    );
}
