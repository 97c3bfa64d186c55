//! Names on three nodes: whoever resolves through one connects through another at once, whatever becomes of the nodes.
//!
//! `NAMES_CYCLES` says how many cycles each part of a test runs, `NAMES_CONNECTIONS` how many connections live.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use lab::address::{FAMILIES, Family};
use lab::cluster::Cluster;
use lab::names::{
    self, Ask, Connections, Cycles, Names, connect_through, kind_of, policy, right, service,
};
use lab::netns::Netns;
use lab::relay::{Impairment, Relay};
use lab::server::PORT;
use lab::topology::Segment;
use lab::{management, wait};

const SOON: Duration = Duration::from_secs(30);
const NODES: [u8; 3] = [1, 2, 3];
/// How long a connection is waited for that should not come about: longer than a node holds a first packet back.
const BRIEFLY: Duration = Duration::from_millis(300);
/// Less than the time after which a first packet is sent again.
const FIRST_PACKET: Duration = Duration::from_millis(900);

#[test]
#[ignore = "needs root; make test runs it"]
fn a_first_packet_passes_through_any_node_whichever_has_resolved() {
    let (mut cluster, _names) = three_nodes();
    let client = Arc::clone(&cluster.topology.client);
    let cycles = number("NAMES_CYCLES", 300);
    report(
        "three nodes",
        &mut cluster,
        &Cycles::run(&client, &NODES, cycles),
    );

    // The leader is killed and comes back; nothing is led through it meanwhile.
    let killed = cluster.leader(1).unwrap();
    let survivors = NODES.into_iter().filter(|node| *node != killed);
    let survivors: Vec<u8> = survivors.collect();
    let over = AtomicBool::new(false);
    let (during, rounds) = thread::scope(|scope| {
        let running = scope.spawn(|| Cycles::run_until(&client, &survivors, &over));
        let mut round = || -> Result<()> {
            thread::sleep(Duration::from_secs(1));
            cluster.node(killed).kill()?;
            thread::sleep(Duration::from_secs(3));
            cluster.node(killed).start()?;
            cluster.wait_node_ready(killed)?;
            thread::sleep(Duration::from_secs(1));
            Ok(())
        };
        let rounds: Result<()> = (0..1 + cycles / 8_000).try_for_each(|_| round());
        over.store(true, Ordering::Relaxed);
        (running.join().unwrap(), rounds)
    });
    rounds.unwrap();
    report("a node killed and back", &mut cluster, &during);
    report(
        "all three again",
        &mut cluster,
        &Cycles::run(&client, &NODES, cycles),
    );

    // What is granted while a node is away, it knows as soon as it is ready.
    cluster.node(killed).kill().unwrap();
    let meanwhile = resolve_some(&client, &survivors, 100);
    cluster.node(killed).start().unwrap();
    cluster.wait_node_ready(killed).unwrap();
    expect_reached(&client, killed, &meanwhile);

    // All are killed at once: what was granted a while ago is still granted when they are back.
    let before = resolve_some(&client, &NODES, 200);
    thread::sleep(Duration::from_secs(3));
    for node in NODES {
        cluster.node(node).kill().unwrap();
    }
    for node in NODES {
        cluster.node(node).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    for node in NODES {
        expect_reached(&client, node, &before);
    }
    report(
        "after a restart of all",
        &mut cluster,
        &Cycles::run(&client, &NODES, cycles),
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_first_packet_passes_where_the_nodes_are_far_from_each_other() {
    let (mut cluster, _names) = three_nodes();
    // 40 ms from a node to another and back.
    let impairment = Impairment {
        delay: Duration::from_millis(10),
        loss_percent: 0,
        queue_frames: 4096,
    };
    let _relays = NODES.map(|node| {
        Relay::insert(&cluster.topology, node, Segment::Management, impairment).unwrap()
    });
    // A node starts consensus anew for that, and tells nothing meanwhile.
    cluster.wait_timers(2).unwrap();
    cluster.wait_ready().unwrap();
    let client = Arc::clone(&cluster.topology.client);
    let cycles = Cycles::run(&client, &NODES, number("NAMES_CYCLES", 300));
    report("40 ms between the nodes", &mut cluster, &cycles);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn live_named_connections_outlive_edits_restarts_and_a_leader() {
    let (mut cluster, _names) = three_nodes();
    let client = Arc::clone(&cluster.topology.client);
    let count = number("NAMES_CONNECTIONS", 100);
    let live = Connections::open(&client, &NODES, count).unwrap();
    live.go_on(SOON).unwrap();

    // Another group, another rule before theirs, another revision; then rules in another order.
    let mut edited = policy();
    let rules = edited["source_groups"][0]["rules"].as_array_mut().unwrap();
    let another = serde_json::json!({"id": "another", "action": "allow",
        "match": {"dns_names": ["**.another.test"]}});
    rules.insert(0, another);
    cluster.api(2).unwrap().put_policy(&edited).unwrap();
    println!("a rule more: {:?}", live.go_on(SOON).unwrap());
    edited["source_groups"][0]["rules"]
        .as_array_mut()
        .unwrap()
        .reverse();
    cluster.api(3).unwrap().put_policy(&edited).unwrap();
    println!("rules in another order: {:?}", live.go_on(SOON).unwrap());

    for node in NODES {
        let said = cluster.node(node).control(&["restart"]).unwrap();
        assert!(said.contains("runs again"), "{said}");
        println!("node {node} restarted: {:?}", live.go_on(SOON).unwrap());
    }

    let leader = cluster.leader(1).unwrap();
    cluster.node(leader).kill().unwrap();
    cluster.node(leader).start().unwrap();
    cluster.wait_node_ready(leader).unwrap();
    println!("the leader killed: {:?}", live.go_on(SOON).unwrap());

    // A grant whose rule is gone ends with it, and so do its connections.
    let mut without = policy();
    let rules = without["source_groups"][0]["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["id"] != "fresh");
    cluster.api(1).unwrap().put_policy(&without).unwrap();
    assert!(live.go_on(Duration::from_secs(2)).is_err());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn each_side_of_a_partition_goes_on_with_its_own_grants_and_learns_the_others_after_it() {
    let (mut cluster, _names) = three_nodes();
    let client = Arc::clone(&cluster.topology.client);
    Cycles::run(&client, &NODES, 20).summary().unwrap();
    let before = resolve(&client, 1, 900);
    let reaches = |node: u8, target: SocketAddr, limit| {
        client.enter(|| connect_through(node, target, limit).is_ok())
    };

    cluster.topology.isolate(3).unwrap();
    // By then the nodes know.
    thread::sleep(Duration::from_secs(3));
    let majority = Cycles::run(&client, &[1, 2], 100);
    println!("the majority: {}", majority.summary().unwrap());
    let alone = Cycles::run(&client, &[3], 100);
    println!("node 3 alone: {}", alone.summary().unwrap());
    for node in NODES {
        assert!(
            reaches(node, before, FIRST_PACKET),
            "node {node}: as before"
        );
    }
    let here = resolve(&client, 1, 901);
    let there = resolve(&client, 3, 902);
    assert!(!reaches(3, here, BRIEFLY), "node 3 has not heard of it");
    assert!(!reaches(2, there, BRIEFLY), "node 2 has not heard of it");

    cluster.topology.heal(3).unwrap();
    let both =
        || reaches(3, here, BRIEFLY) && reaches(1, there, BRIEFLY) && reaches(2, there, BRIEFLY);
    let took = wait::until_true("what the other side granted", SOON, || Ok(both())).unwrap();
    println!("converged {took:?} after the partition");
    wait::until_true("the usual", SOON, || {
        Cycles::run(&client, &NODES, 50).summary().map(|_| true)
    })
    .unwrap();
    report("after it", &mut cluster, &Cycles::run(&client, &NODES, 100));
    listings_agree(&mut cluster, &["n901.fresh.test", "n902.fresh.test"]);
}

/// Three nodes whose answers wait for peers as long as a busy machine may hold these up; `NAMES_BOUND_MS` sets another time.
fn three_nodes() -> (Cluster, Names) {
    let bound = number("NAMES_BOUND_MS", 500);
    names::start_with(3, &[&format!("program_timeout_ms: {bound}")]).unwrap()
}

/// Resolves twenty names from this number on, in both families, through each node in turn; returns where they lead.
fn resolve_some(client: &Netns, nodes: &[u8], first: u32) -> Vec<SocketAddr> {
    let node = |n: u32| nodes[n as usize % nodes.len()];
    (0..20)
        .map(|n| resolve(client, node(n / 2), first + n))
        .collect()
}

/// Each of these is granted at a node, as its first packet shows.
fn expect_reached(client: &Netns, node: u8, targets: &[SocketAddr]) {
    let reached = |target: &&SocketAddr| {
        client.enter(|| connect_through(node, **target, FIRST_PACKET).is_ok())
    };
    let missed: Vec<_> = targets.iter().filter(|target| !reached(target)).collect();
    assert!(missed.is_empty(), "through node {node}: {missed:?}");
}

/// Resolves a name of this number through a node and returns where it leads.
fn resolve(client: &Netns, node: u8, number: u32) -> SocketAddr {
    let family = FAMILIES[number as usize % 2];
    let ask = Ask::new(&format!("n{number}.fresh.test"), kind_of(family)).through(node);
    let ask = ask.at(service(Family::V4));
    let reply = client.enter(|| ask.send(SOON)).unwrap();
    assert_eq!(reply.addresses, [right(number, family)]);
    SocketAddr::new(right(number, family), PORT)
}

/// Every node lists these names, for the whole cluster.
fn listings_agree(cluster: &mut Cluster, names: &[&str]) {
    for node in NODES {
        let api = cluster.api(node).unwrap();
        for path in ["/api/v1/dns-cache", "/api/v1/dns/grants"] {
            let text = api.get(path).unwrap().text();
            for name in names {
                assert!(
                    text.contains(name),
                    "{name} at node {node} in {path}: {text}"
                );
            }
        }
    }
}

/// Prints how long the cycles took; with a failure, what the nodes have counted.
#[expect(clippy::print_stdout, reason = "the test's findings")]
fn report(what: &str, cluster: &mut Cluster, cycles: &Cycles) {
    match cycles.summary() {
        Ok(line) => println!("{what}: {line}"),
        Err(error) => {
            for node in NODES {
                let page =
                    management::metrics(&cluster.topology.operator, lab::address::metrics(node));
                let counted = page.unwrap_or_default();
                let counted = counted.lines().filter(|line| {
                    let telling = ["_drops_total{", "dns", "grant", "held"];
                    !line.starts_with('#')
                        && !line.ends_with(" 0")
                        && !line.contains("_bucket")
                        && telling.iter().any(|part| line.contains(part))
                });
                println!("node {node}:");
                counted.for_each(|line| println!("  {line}"));
            }
            panic!("{what}: {error:#}");
        }
    }
}

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
