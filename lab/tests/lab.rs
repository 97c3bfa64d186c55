//! The lab itself, with the kernel forwarding in the nodes' place: what the other scenarios stand on must be able to
//! see a packet arrive, and to see that it does not.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::SocketAddr;
use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::client::{self, Outcome};
use lab::live::Live;
use lab::relay::{Impairment, Relay};
use lab::server::{PORT, Server};
use lab::topology::Segment;
use lab::{Run, Topology, wait};

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root; make test runs it"]
fn a_client_reaches_a_server_through_the_node_that_its_address_names() {
    let lab = Kernel::forwarding(2);
    for (node, family) in [
        (1, Family::V4),
        (2, Family::V4),
        (1, Family::V6),
        (2, Family::V6),
    ] {
        let (source, server) = (address::client(node, family), lab.server(family));
        client::fetch(&lab.topology.client, source, server, 300_000).unwrap();
        assert!(client::udp_echo(&lab.topology.client, source, server, b"datagram", SOON).unwrap());
        assert_eq!(lab.probe(node, family), Outcome::Connected);
        lab.set_forwarding(node, false);
        assert_eq!(
            lab.probe(node, family),
            Outcome::Silent,
            "node {node} was switched off"
        );
        lab.set_forwarding(node, true);
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn spread_connections_use_every_node_and_avoid_one_that_is_gone() {
    let lab = Kernel::forwarding(3);
    let reached = || -> usize {
        let probe = |_| {
            client::probe(
                &lab.topology.client,
                address::spread_client(Family::V4),
                lab.server(Family::V4),
                SHORT,
            )
        };
        (0..24)
            .map(probe)
            .filter(|&outcome| outcome == Outcome::Connected)
            .count()
    };
    assert_eq!(reached(), 24);
    for node in 1..=3 {
        lab.set_forwarding(node, false);
        let count = reached();
        assert!(
            count > 0 && count < 24,
            "node {node} carried {} of 24",
            24 - count
        );
        lab.set_forwarding(node, true);
    }
    lab.topology.set_cable(2, Segment::Inside, false).unwrap();
    wait::until_true(
        "connections that avoid node 2",
        Duration::from_secs(20),
        || Ok(reached() == 24),
    )
    .unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_live_connection_is_followed_line_by_line_and_seen_to_end() {
    let lab = Kernel::forwarding(1);
    let live = Live::open(
        &lab.topology.client,
        address::client(1, Family::V4),
        lab.server(Family::V4),
    )
    .unwrap();
    wait::until_true("a hundred lines", SOON, || Ok(live.account().lines >= 100)).unwrap();
    assert_eq!(live.account().ended, None);
    lab.topology.set_cable(1, Segment::Outside, false).unwrap();
    wait::until_true("silence", SOON, || Ok(live.account().ended.is_some())).unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn management_can_be_cut_in_both_directions_or_in_one() {
    let lab = Kernel::forwarding(2);
    let pings = |from: u8, to: u8| {
        let mut ping = lab.topology.node(from).command("ping");
        ping.args(["-c1", "-W1", &address::management(to).to_string()])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(pings(1, 2) && pings(2, 1));
    lab.topology
        .set_cable(2, Segment::Management, false)
        .unwrap();
    assert!(!pings(1, 2) && !pings(2, 1));
    lab.topology
        .set_cable(2, Segment::Management, true)
        .unwrap();
    // The kernels may still be waiting before they ask for each other's address again.
    let both = || Ok(pings(1, 2) && pings(2, 1));
    wait::until_true("answers after the cut", SOON, both).unwrap();
    lab.topology.deafen(2).unwrap();
    let heard = || -> u64 {
        let counter = "/sys/class/net/mgmt0/statistics/rx_packets";
        let mut read = lab.topology.node(1).command("cat");
        let output = read.arg(counter).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let before = heard();
    assert!(!pings(2, 1), "node 2 hears no answer");
    assert!(heard() > before, "node 1 heard nothing of the question");
    lab.topology.heal(2).unwrap();
    wait::until_true("answers after the deafness", SOON, both).unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_relay_delays_and_loses_frames() {
    let lab = Kernel::forwarding(2);
    let impair = |node, delay_ms, loss_percent| {
        let delay = Duration::from_millis(delay_ms);
        let impairment = Impairment {
            delay,
            loss_percent,
            queue_frames: 1024,
        };
        Relay::insert(&lab.topology, node, Segment::Outside, impairment).unwrap()
    };
    let source = address::client(1, Family::V4);
    let round_trip = || {
        client::fetch(
            &lab.topology.client,
            source,
            lab.server(Family::V4),
            1_000_000,
        )
        .unwrap()
    };
    let _slow = impair(1, 40, 0);
    // The handshake and the request each take a round trip at least.
    assert!(round_trip() >= Duration::from_millis(160));
    let _dead = impair(2, 0, 100);
    assert_eq!(lab.probe(2, Family::V4), Outcome::Silent);
    assert_eq!(lab.probe(1, Family::V4), Outcome::Connected);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn two_runs_coexist_and_leave_nothing() {
    let first = Kernel::forwarding(1);
    let second = Kernel::forwarding(1);
    for lab in [&first, &second] {
        assert_eq!(lab.probe(1, Family::V4), Outcome::Connected);
    }
    let own = format!("nwk-{}-", std::process::id());
    let count = || {
        std::fs::read_dir("/run/netns")
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&own))
            .count()
    };
    let dir = first.topology.client.run().dir().to_owned();
    let both = count();
    assert!(both > 0 && both % 2 == 0 && dir.exists(), "{both}");
    drop(first);
    assert_eq!(count(), both / 2);
    assert!(!dir.exists());
    assert_eq!(second.probe(1, Family::V4), Outcome::Connected);
    drop(second);
    assert_eq!(count(), 0);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let gone = {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let name = format!("nwk-{gone}-0-client");
    assert!(
        std::process::Command::new("ip")
            .args(["netns", "add", &name])
            .status()
            .unwrap()
            .success()
    );
    let mut straggler = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "sleep", "600"])
        .spawn()
        .unwrap();
    let inside = || {
        let pids = std::process::Command::new("ip")
            .args(["netns", "pids", &name])
            .output()
            .unwrap();
        Ok(!pids.stdout.is_empty())
    };
    wait::until_true("the straggler inside", SOON, inside).unwrap();
    let _run = Run::begin().unwrap();
    assert!(!std::path::Path::new("/run/netns").join(&name).exists());
    assert!(!straggler.wait().unwrap().success(), "it was killed");
}

/// A topology whose nodes are the kernel: forwarding, with IPv4 and IPv6 translated to the outside address.
struct Kernel {
    _servers: Vec<Server>,
    topology: Topology,
}

impl Kernel {
    fn forwarding(nodes: u8) -> Kernel {
        let topology = Topology::build(&Run::begin().unwrap(), nodes).unwrap();
        for number in 1..=nodes {
            let node = topology.node(number);
            for family in FAMILIES {
                let length = |address| address::with_length(address);
                let (inside, outside) = (
                    length(address::inside(number, family)),
                    length(address::outside(number, family)),
                );
                let nodad = if family == Family::V6 { "nodad" } else { "" };
                let router = address::router(family);
                let commands = format!(
                    "addr add {inside} dev in0 {nodad}\n\
                     addr add {outside} dev out0 {nodad}\n\
                     route add default via {router} dev out0"
                );
                node.ip_of(family, &commands).unwrap();
            }
            node.nft(
                "add table inet nat\n\
                 add chain inet nat out { type nat hook postrouting priority 100; }\n\
                 add rule inet nat out oifname out0 masquerade",
            )
            .unwrap();
        }
        let servers = FAMILIES.map(|family| {
            Server::start(&topology.internet, address::allowed_server(family)).unwrap()
        });
        let lab = Kernel {
            _servers: servers.into(),
            topology,
        };
        (1..=nodes).for_each(|number| lab.set_forwarding(number, true));
        lab
    }

    fn set_forwarding(&self, node: u8, on: bool) {
        let value = if on { "1" } else { "0" };
        for key in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            self.topology.node(node).sysctl(key, value).unwrap();
        }
    }

    fn server(&self, family: Family) -> SocketAddr {
        SocketAddr::new(address::allowed_server(family), PORT)
    }

    fn probe(&self, node: u8, family: Family) -> Outcome {
        client::probe(
            &self.topology.client,
            address::client(node, family),
            self.server(family),
            SHORT,
        )
    }
}
