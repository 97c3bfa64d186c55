//! The cluster through the real binary: joining, replication, loss of nodes, of power and of peers.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lab::address::{self, FAMILIES, Family};
use lab::client::Outcome;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::{Management, unverified_status};
use lab::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const ACCOUNTS: &str = "/api/v1/service-accounts";
const POLICY: &str = "/api/v1/policy";

#[test]
#[ignore = "needs root; make test runs it"]
fn a_policy_put_on_node_2_is_enforced_on_a_packet_through_node_3() {
    let mut cluster = Cluster::start(3).unwrap();
    for family in FAMILIES {
        assert_eq!(
            cluster.probe(3, address::allowed_server(family)),
            Outcome::Silent,
            "no policy yet: deny"
        );
    }
    let put = cluster
        .api(2)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    assert!(put.header("etag").is_some() && put.header("neuwerk-revision").is_some());
    for family in FAMILIES {
        cluster
            .fetch(3, address::allowed_server(family), 100_000)
            .unwrap();
        assert_eq!(
            cluster.probe(3, address::denied_server(family)),
            Outcome::Silent
        );
    }
    for node in 1..=3 {
        let got = cluster.api(node).unwrap().get(POLICY).unwrap();
        assert_eq!(
            (got.status, got.header("etag")),
            (200, put.header("etag")),
            "node {node}"
        );
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn joiners_may_start_first_and_any_member_restarts_while_another_is_down() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    cluster.node(2).start().unwrap();
    cluster.node(3).start().unwrap();
    for node in [2, 3] {
        let status =
            |path| unverified_status(&cluster.topology.operator, address::https(node), path);
        wait::until_true("a joiner that waits", SOON, || {
            Ok(status("/health")? == 200 && status("/ready")? == 503)
        })
        .unwrap();
    }
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    cluster
        .api(3)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();

    cluster.node(1).terminate().unwrap();
    cluster.node(2).kill().unwrap();
    cluster.node(2).start().unwrap();
    cluster.wait_node_ready(2).unwrap();
    wait::until_true("a write without the seed", SOON, || {
        cluster
            .api(2)?
            .create_account("without-the-seed")
            .map(|()| true)
    })
    .unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    for node in 1..=3 {
        cluster
            .fetch(node, address::allowed_server(Family::V4), 10_000)
            .unwrap();
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn acknowledged_writes_survive_the_kill_of_every_node() {
    check_writes_survive(false);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn acknowledged_writes_survive_the_loss_of_power_on_every_node() {
    check_writes_survive(true);
}

/// Four clients write without pause; after 200 acknowledged writes every node is killed in their midst.
fn check_writes_survive(power: bool) {
    let mut cluster = Cluster::lay_out(3).unwrap();
    for node in &mut cluster.nodes {
        if power {
            node.lose_unsynced_writes().unwrap();
        }
        node.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    let apis: Vec<Management> = [1, 2, 3, 1].map(|node| cluster.api(node).unwrap()).into();
    let stop = AtomicBool::new(false);
    let acknowledged = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (client, api) in apis.iter().enumerate() {
            let (stop, acknowledged) = (&stop, &acknowledged);
            scope.spawn(move || {
                for number in 0.. {
                    let name = format!("client{client}-{number}");
                    if stop.load(Ordering::Relaxed) || api.create_account(&name).is_err() {
                        break;
                    }
                    acknowledged.lock().unwrap().push(name);
                }
            });
        }
        let enough = || Ok(acknowledged.lock().unwrap().len() >= 200);
        let waited = wait::until_true("200 acknowledged writes", Duration::from_secs(120), enough);
        for node in &mut cluster.nodes {
            node.signal(Signal::SIGKILL).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        waited.unwrap();
    });
    for node in &mut cluster.nodes {
        node.reap().unwrap();
    }
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    let acknowledged = acknowledged.into_inner().unwrap();
    let kept = accounts(&cluster.api(2).unwrap()).unwrap();
    let missing: Vec<_> = acknowledged
        .iter()
        .filter(|name| kept.get(*name).map(Vec::len) != Some(1))
        .collect();
    assert!(
        missing.is_empty(),
        "of {} acknowledged, not there once: {missing:?}",
        acknowledged.len()
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn with_two_of_three_down_writes_are_refused_and_reads_and_traffic_go_on() {
    let mut cluster = Cluster::start(3).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    let api = cluster.api(3).unwrap();
    let live = cluster
        .live(3, address::allowed_server(Family::V4))
        .unwrap();
    cluster.node(1).kill().unwrap();
    cluster.node(2).kill().unwrap();

    wait::until_true("/ready 503", SOON, || Ok(api.status_of("/ready")? == 503)).unwrap();
    assert_eq!(api.status_of("/ready/traffic").unwrap(), 200);
    assert_eq!(api.status_of("/health").unwrap(), 200);
    let refused = api.send_json("PUT", POLICY, &policy_allowing(&[])).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    let read = api.get("/api/v1/policy?consistency=local").unwrap();
    assert_eq!(read.status, 200, "{}", read.text());
    for family in FAMILIES {
        cluster
            .fetch(3, address::allowed_server(family), 100_000)
            .unwrap();
        assert_eq!(
            cluster.probe(3, address::denied_server(family)),
            Outcome::Silent
        );
    }
    let before = live.account();
    assert_eq!(before.ended, None);
    wait::until_true("more lines", SOON, || {
        Ok(live.account().lines > before.lines + 50)
    })
    .unwrap();

    cluster.node(1).start().unwrap();
    wait::until_true("writes again", SOON, || {
        api.create_account("after").map(|()| true)
    })
    .unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_that_reaches_no_peer_enforces_what_it_enforced_before() {
    let mut cluster = Cluster::start(3).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    cluster.node(3).terminate().unwrap();
    cluster.topology.isolate(3).unwrap();
    cluster.node(3).start().unwrap();
    let api = cluster.node(3).management().unwrap();
    wait::until_true("traffic", SOON, || {
        Ok(api.status_of("/ready/traffic")? == 200)
    })
    .unwrap();
    assert_eq!(api.status_of("/ready").unwrap(), 503);
    for family in FAMILIES {
        cluster
            .fetch(3, address::allowed_server(family), 100_000)
            .unwrap();
        assert_eq!(
            cluster.probe(3, address::denied_server(family)),
            Outcome::Silent
        );
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_that_is_cut_off_is_named_and_catches_up_when_it_is_back() {
    let mut cluster = Cluster::start(3).unwrap();
    let cut_off = cluster.node_id(1, 3).unwrap();
    cluster.topology.isolate(3).unwrap();
    let api = cluster.api(1).unwrap();
    let policy = policy_allowing(&allowed_servers());
    let put = || {
        let response = api.send_json("PUT", &format!("{POLICY}?timeout=5s"), &policy)?;
        // A new leader may have to be found first.
        ensure!(response.status != 503, "{}", response.text());
        Ok(Some(response))
    };
    let (response, _) = wait::until("an answer", SOON, put).unwrap();
    assert_eq!(response.status, 202, "{}", response.text());
    let pending = response.json().unwrap()["pending"].clone();
    let named: Vec<_> = pending
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["node_id"].clone())
        .collect();
    assert_eq!(named, [json!(cut_off)], "{pending}");
    let server = address::allowed_server(Family::V4);
    cluster.fetch(1, server, 1000).unwrap();
    assert_eq!(
        cluster.probe(3, server),
        Outcome::Silent,
        "what node 3 never heard of, it does not enforce"
    );

    cluster.topology.heal(3).unwrap();
    wait::until_true("node 3 to catch up", SOON, || {
        Ok(cluster.probe(3, server) == Outcome::Connected)
    })
    .unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_that_is_told_to_denies_everything_after_a_long_isolation() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    cluster.nodes[2]
        .configure("policy", "max_staleness: 3s")
        .unwrap();
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    cluster.wait_ready().unwrap();
    let server = address::allowed_server(Family::V4);
    let live = cluster.live(3, server).unwrap();
    let third = cluster.node(3).management().unwrap();

    cluster.topology.isolate(3).unwrap();
    wait::until_true("denial", SOON, || {
        Ok(cluster.probe(3, server) == Outcome::Silent)
    })
    .unwrap();
    wait::until_true("the open connection's end", SOON, || {
        Ok(live.account().ended.is_some())
    })
    .unwrap();
    assert_eq!(third.status_of("/ready/traffic").unwrap(), 503);
    cluster.fetch(1, server, 1000).unwrap();
    // It stays so over a restart, which knows of no leader either.
    cluster.node(3).kill().unwrap();
    cluster.node(3).start().unwrap();
    wait::until_true("denial again", SOON, || {
        let ready = third.get("/ready/traffic")?;
        Ok(ready.text().contains("policy.max_staleness"))
    })
    .unwrap();
    assert_eq!(cluster.probe(3, server), Outcome::Silent);

    cluster.topology.heal(3).unwrap();
    wait::until_true("the policy again", SOON, || {
        Ok(cluster.probe(3, server) == Outcome::Connected)
    })
    .unwrap();
    cluster.wait_ready().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn after_the_leader_is_killed_writes_go_on_and_survivors_forward_undisturbed() {
    let mut cluster = Cluster::start(3).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    let leader = cluster.leader(1).unwrap();
    let survivors: Vec<u8> = (1..=3).filter(|&node| node != leader).collect();
    let server = address::allowed_server(Family::V4);
    let lives: Vec<_> = survivors
        .iter()
        .map(|&node| cluster.live(node, server).unwrap())
        .collect();
    let api = cluster.api(survivors[0]).unwrap();
    for live in &lives {
        live.begin_gap();
    }
    let killed = Instant::now();
    cluster.node(leader).kill().unwrap();
    wait::until_true("the next write", SOON, || {
        api.create_account("after-failover").map(|()| true)
    })
    .unwrap();
    let without_leader = killed.elapsed();
    for live in &lives {
        // What waited for a leader would have waited as long as the write.
        let gap = live.account().longest_gap;
        assert!(gap < without_leader, "{gap:?} of {without_leader:?}");
        let before = live.account();
        wait::until_true("more lines", SOON, || {
            Ok(live.account().lines > before.lines + 50)
        })
        .unwrap();
        assert_eq!(live.account().ended, None);
    }
    cluster.node(leader).start().unwrap();
    cluster.wait_ready().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn sixteen_clients_through_all_nodes_lose_nothing_and_repeat_nothing() {
    const CLIENTS: usize = 16;
    const ROUNDS: usize = 4;
    let mut cluster = Cluster::start(3).unwrap();
    let apis: Vec<Management> = (0..CLIENTS)
        .map(|client| cluster.api(1 + (client % 3) as u8).unwrap())
        .collect();
    apis[0]
        .put_policy(&json!({"default_policy": "deny", "source_groups": []}))
        .unwrap();
    thread::scope(|scope| {
        for (client, api) in apis.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = format!("client{client}-{round}");
                    wait::until_true("a new account", SOON, || {
                        api.create_account(&name).map(|()| true)
                    })
                    .unwrap();
                    wait::until_true("a changed account", SOON, || change_account(api, &name))
                        .unwrap();
                    wait::until_true("a new group", Duration::from_secs(120), || {
                        add_group(api, &name)
                    })
                    .unwrap();
                }
            });
        }
    });
    let names: Vec<String> = (0..CLIENTS)
        .flat_map(|client| (0..ROUNDS).map(move |round| format!("client{client}-{round}")))
        .collect();
    for node in 1..=3 {
        let api = cluster.api(node).unwrap();
        let accounts = accounts(&api).unwrap();
        assert_eq!(accounts.len(), names.len(), "node {node}");
        for name in &names {
            let descriptions: Vec<_> = accounts[name]
                .iter()
                .map(|account| &account["description"])
                .collect();
            assert_eq!(
                descriptions,
                [&json!(format!("changed {name}"))],
                "node {node}"
            );
        }
        let policy = api
            .get_json("/api/v1/policy?consistency=linearizable")
            .unwrap();
        let mut groups: Vec<_> = policy["source_groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["id"].as_str().unwrap())
            .collect();
        groups.sort_unstable();
        let mut expected: Vec<_> = names.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(groups, expected, "node {node}");
    }
}

/// Describes the account called `name`; whether it was acknowledged.
fn change_account(api: &Management, name: &str) -> Result<bool> {
    let accounts = accounts(api)?;
    let id = accounts[name][0]["id"].as_str().unwrap();
    let body = json!({"name": name, "role": "readonly", "description": format!("changed {name}")});
    let response = api.send_json("PUT", &format!("{ACCOUNTS}/{id}"), &body)?;
    ensure!(
        response.status == 200,
        "{name}: {} {}",
        response.status,
        response.text()
    );
    Ok(true)
}

/// Adds a source group called `name` to whatever the policy is; false when another client was faster.
fn add_group(api: &Management, name: &str) -> Result<bool> {
    let current = api.get("/api/v1/policy?consistency=linearizable")?;
    ensure!(
        current.status == 200,
        "{} {}",
        current.status,
        current.text()
    );
    let tag = current.header("etag").unwrap().to_owned();
    let mut policy = current.json()?;
    let groups = policy["source_groups"].as_array_mut().unwrap();
    // An attempt whose answer was lost may have succeeded.
    if groups.iter().any(|group| group["id"] == name) {
        return Ok(true);
    }
    groups.push(
        json!({"id": name, "mode": "enforce", "sources": {"ips": ["10.1.0.100"]}, "rules": []}),
    );
    let headers = [
        ("Content-Type", "application/json"),
        ("If-Match", tag.as_str()),
    ];
    let path = "/api/v1/policy?wait=committed";
    let response = api.request("PUT", path, &headers, policy.to_string().as_bytes())?;
    match response.status {
        200 | 202 => Ok(true),
        412 => Ok(false),
        status => bail!("{name}: {status} {}", response.text()),
    }
}

/// All accounts by name.
fn accounts(api: &Management) -> Result<BTreeMap<String, Vec<Value>>> {
    let list = api.get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
    let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for account in list.as_array().unwrap() {
        by_name
            .entry(account["name"].as_str().unwrap().to_owned())
            .or_default()
            .push(account.clone());
    }
    Ok(by_name)
}
