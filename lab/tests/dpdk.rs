//! A node on DPDK, over packet sockets. `NEUWERK_DPDK_BIN` names a binary with the feature `dpdk`, which `cargo xtask test`
//! builds.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::client::{self, Outcome};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::netns::Netns;
use lab::node::Node;
use lab::server::PORT;
use lab::{http, management, tool, wait};

const SOON: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_on_dpdk_carries_traffic_denies_it_and_restarts() {
    let Some(mut cluster) = on_dpdk(&[], |node| node.set_mode("dpdk").unwrap()) else {
        return;
    };
    for family in FAMILIES {
        let allowed = address::allowed_server(family);
        cluster.fetch(1, allowed, 5_000_000).unwrap();
        let denied = address::denied_server(family);
        assert_eq!(cluster.probe(1, denied), Outcome::Silent);
    }
    // DPDK ends with the program that is replaced, and starts anew in the next.
    let live = cluster
        .live(1, address::allowed_server(Family::V4))
        .unwrap();
    let said = cluster.node(1).control(&["restart"]).unwrap();
    assert!(said.contains("runs again"), "{said}");
    for family in FAMILIES {
        let allowed = address::allowed_server(family);
        cluster.fetch(1, allowed, 5_000_000).unwrap();
    }
    assert_eq!(live.account().ended, None);
    assert_eq!(
        memory_files(cluster.node(1).process_id().unwrap()),
        1,
        "of DPDK"
    );
    cluster.node(1).terminate().unwrap();
}

/// Two workers, over whose queues the kernel spreads frames by a hash that knows nothing of translation: what a worker
/// receives of another one's connections it hands over.
#[test]
#[ignore = "needs root; make test runs it"]
fn workers_on_dpdk_hand_over_what_came_to_the_wrong_queue() {
    const CONNECTIONS: u8 = 32;
    let two = ["--dataplane-workers=2"];
    let Some(cluster) = on_dpdk(&two, |node| node.take_dpdk_queues(2).unwrap()) else {
        return;
    };
    // One after the other, so that what the queues have counted tells which one each came to.
    let begin = Seen::of(&cluster);
    let (mut owned, mut apart, mut astray) = ([0; 2], 0, 0);
    for n in 0..CONNECTIONS {
        let before = Seen::of(&cluster);
        let server = address::allowed_server(FAMILIES[usize::from(n % 2)]);
        cluster.fetch(1, server, 200_000).unwrap();
        let opened = || {
            let seen = Seen::of(&cluster);
            let owner = (0..2).find(|worker| seen.opened[*worker] > before.opened[*worker]);
            Ok(owner.map(|owner| (owner, seen)))
        };
        let ((owner, after), _) = wait::until("a worker's connection", SOON, opened).unwrap();
        owned[owner] += 1;
        let queues = [0, 1].map(|port| {
            let came = [0, 1].map(|q| after.received[port][q] - before.received[port][q]);
            astray += came[1 - owner];
            came[1] > came[0]
        });
        apart += usize::from(queues[0] != queues[1]);
    }
    assert!(owned.iter().all(|n| *n > 0), "{owned:?} by worker");
    assert!(apart > 0, "no connection had its directions on two queues");
    // What neighbours say is for both workers, and only counted with the rest by the queues.
    let handed = || Ok(10 * (Seen::of(&cluster).handed - begin.handed) >= 9 * astray);
    wait::until_true("all that went astray handed over", SOON, handed).unwrap();
    assert_eq!(Seen::of(&cluster).no_room, 0);

    // And many at a time.
    thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            let cluster = &cluster;
            let server = address::allowed_server(FAMILIES[usize::from(n % 2)]);
            scope.spawn(move || cluster.fetch(1, server, 1_000_000).unwrap());
        }
    });
    for family in FAMILIES {
        for n in 0..CONNECTIONS {
            ask_who(&cluster, family);
            exchange_datagrams(&cluster, family, n);
        }
        assert_eq!(
            cluster.probe(1, address::denied_server(family)),
            Outcome::Silent
        );
    }
}

/// A connection, which the server sees to come from the node.
fn ask_who(cluster: &Cluster, family: Family) {
    let server = SocketAddr::new(address::allowed_server(family), PORT);
    let connect = || client::connect_from(Some(address::client(1, family)), server, SOON);
    let mut stream = cluster.topology.client.enter(connect).unwrap();
    let answer = http::exchange(&mut stream, "GET", "server", "/who", &[], b"").unwrap();
    let seen = address::outside(1, family).to_string();
    assert_eq!((answer.status, answer.text()), (200, seen));
}

/// A question by UDP, which the server sees to come from the node, and its answer.
fn exchange_datagrams(cluster: &Cluster, family: Family, number: u8) {
    let server = SocketAddr::new(address::allowed_server(family), 5201);
    let client = SocketAddr::new(address::client(1, family), 0);
    let bind = |netns: &Netns, at: SocketAddr| {
        let socket = netns.enter(|| UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    };
    let there = bind(&cluster.topology.internet, server);
    let here = bind(&cluster.topology.client, client);
    let (question, answer) = ([number; 100], [!number; 1_000]);
    let mut buffer = [0; 2_000];
    here.send_to(&question, server).unwrap();
    let (len, from) = there.recv_from(&mut buffer).unwrap();
    let seen = address::outside(1, family);
    assert_eq!((&buffer[..len], from.ip()), (&question[..], seen));
    there.send_to(&answer, from).unwrap();
    let (len, from) = here.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&answer[..], server));
}

/// What a node with two queues at each port has counted.
#[derive(Debug)]
struct Seen {
    /// By port and queue, frames received.
    received: [[u64; 2]; 2],
    /// By worker, TCP connections opened.
    opened: [u64; 2],
    /// Frames handed over from one worker to the other.
    handed: u64,
    /// Frames that there was no room for on that way.
    no_room: u64,
}

impl Seen {
    fn of(cluster: &Cluster) -> Seen {
        let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
        let sum = |beginning: String| management::sum(&page, &beginning);
        Seen {
            received: ["inside", "outside"].map(|port| {
                [0, 1].map(|queue| {
                    sum(format!(
                        r#"dpdk_xstat{{port="{port}",name="rx_q{queue}_packets"}}"#
                    ))
                })
            }),
            opened: [0, 1].map(|worker| {
                sum(format!(
                    r#"dp_tcp_handshake_events_total{{worker="{worker}",event="syn"}}"#
                ))
            }),
            handed: sum("neuwerk_dp_handed_over_total ".to_owned()),
            no_room: sum(r#"neuwerk_dp_drops_total{reason="worker_queue_full"}"#.to_owned()),
        }
    }
}

/// A node with the usual policy, of the binary with DPDK, where there is one.
fn on_dpdk(flags: &[&str], prepare: impl FnOnce(&Node)) -> Option<Cluster> {
    let Some(program) = std::env::var_os("NEUWERK_DPDK_BIN").map(PathBuf::from) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "NEUWERK_DPDK_BIN is not set, and in CI this must run"
        );
        // Not captured, as that of a passing test would be.
        let _ = writeln!(std::io::stderr(), "left out: NEUWERK_DPDK_BIN is not set");
        return None;
    };
    let mut cluster = Cluster::lay_out(1).unwrap();
    // The driver is not told of partial checksums and segments: who sends completes them.
    for (netns, interface) in [
        (&cluster.topology.client, "in0"),
        (&cluster.topology.internet, "out0"),
    ] {
        let offloads = ["-K", interface, "tx", "off", "tso", "off", "gso", "off"];
        tool::run(netns.command("ethtool").args(offloads)).unwrap();
    }
    prepare(cluster.node(1));
    cluster.node(1).set_program(&program, flags);
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    Some(cluster)
}

/// How many of a process's descriptors are memory files of DPDK, which a program that was replaced would leave behind.
fn memory_files(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().contains("nohuge"))
        .count()
}
