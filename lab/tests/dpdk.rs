//! A node on DPDK, over packet sockets. `NEUWERK_DPDK_BIN` names a binary with the feature `dpdk`, which `cargo xtask test`
//! builds.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::io::Write;
use std::path::PathBuf;

use lab::address::{self, FAMILIES, Family};
use lab::client::Outcome;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::tool;

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_on_dpdk_carries_traffic_denies_it_and_restarts() {
    let Some(program) = std::env::var_os("NEUWERK_DPDK_BIN").map(PathBuf::from) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "NEUWERK_DPDK_BIN is not set, and in CI this must run"
        );
        // Not captured, as that of a passing test would be.
        let _ = writeln!(std::io::stderr(), "left out: NEUWERK_DPDK_BIN is not set");
        return;
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
    cluster.node(1).set_mode("dpdk").unwrap();
    cluster.node(1).set_program(&program, &[]);
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
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

/// How many of a process's descriptors are memory files of DPDK, which a program that was replaced would leave behind.
fn memory_files(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().contains("nohuge"))
        .count()
}
