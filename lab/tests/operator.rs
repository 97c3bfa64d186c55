//! What root does on a node's command line, through the real binary: keys, the change log, support archives.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use lab::address;
use lab::cluster::Cluster;
use lab::{tool, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// Runs a verb on node `on`, over its control socket.
fn at_home(cluster: &mut Cluster, on: u8, verb: &[&str]) -> Result<String> {
    let socket = cluster.node(on).dir().join("run/admin.sock");
    let socket = socket.to_str().unwrap().to_owned();
    cluster
        .node(on)
        .cli(&[verb, &["--control-socket", socket.as_str()]].concat())
}

/// Runs a verb on node `on`, which asks node `asked` with its own identity.
fn through(cluster: &mut Cluster, on: u8, asked: u8, verb: &[&str]) -> Result<String> {
    let tls_dir = cluster.node(on).dir().join("cluster/tls");
    let tls_dir = tls_dir.to_str().unwrap().to_owned();
    let address = address::cluster(asked).to_string();
    let by = [
        "--cluster-addr",
        address.as_str(),
        "--cluster-tls-dir",
        tls_dir.as_str(),
    ];
    cluster.node(on).cli(&[verb, &by].concat())
}

/// The names of an archive's files.
fn listed(archive: &Path) -> Vec<String> {
    let listing = tool::run(Command::new("tar").arg("-tzf").arg(archive)).unwrap();
    listing.lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root; make test runs it"]
fn keys_are_managed_through_any_member_and_every_mint_is_logged() {
    let mut cluster = Cluster::start(3).unwrap();
    let old = cluster.node(3).mint_token("before", "admin").unwrap();
    let by_member = cluster
        .node(2)
        .mint_token_through(3, "through", "admin")
        .unwrap();

    let rotated = through(&mut cluster, 2, 3, &["auth", "key", "rotate", "--json"]).unwrap();
    let rotated: Value = serde_json::from_str(&rotated).unwrap();
    let keys = through(&mut cluster, 3, 1, &["auth", "key", "list", "--json"]).unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let keys = keys.as_array().unwrap();
    assert_eq!(keys.len(), 2);
    let first = keys.iter().find(|key| key["signs"] == false).unwrap();
    let signs = keys.iter().find(|key| key["signs"] == true).unwrap();
    assert_eq!(signs["kid"], rotated["kid"]);

    let status_of = |cluster: &mut Cluster, token: &str| {
        let api = cluster.node(1).management().unwrap().with_token(token);
        api.get("/api/v1/auth/whoami").unwrap().status
    };
    assert_eq!(status_of(&mut cluster, &old), 200);
    assert_eq!(status_of(&mut cluster, &by_member), 200);
    let kid = first["kid"].as_str().unwrap();
    at_home(&mut cluster, 2, &["auth", "key", "retire", kid]).unwrap();
    // Every node must have applied it.
    wait::until_true("the end of the old key's tokens", SOON, || {
        Ok(status_of(&mut cluster, &old) == 401)
    })
    .unwrap();
    let fresh = cluster.node(3).mint_token("after", "admin").unwrap();
    assert_eq!(status_of(&mut cluster, &fresh), 200);

    // Minted on a follower, through a member, and with no leader at all: all three are in the change log of each node.
    for node in [1, 2] {
        cluster.node(node).kill().unwrap();
    }
    cluster.node(3).mint_token("alone", "admin").unwrap();
    for node in [1, 2] {
        cluster.node(node).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    for node in 1..=3 {
        wait::until_true("every mint in the change log", SOON, || {
            let log = at_home(&mut cluster, node, &["cluster", "changes"])?;
            let has = |subject: &str| {
                log.lines()
                    .any(|line| line.contains("break_glass") && line.contains(subject))
            };
            Ok(["before", "through", "after", "alone"].into_iter().all(has))
        })
        .unwrap();
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn the_service_manager_is_told_that_the_node_runs_and_that_it_stops() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let manager = cluster.node(1).notify().unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let told = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    cluster.node(1).start().unwrap();
    assert_eq!(told(), "READY=1");
    cluster.wait_ready().unwrap();
    cluster.node(1).terminate().unwrap();
    assert_eq!(told(), "STOPPING=1");
}

/// A configuration of published releases with every key that they know, on a node of today: only names of interfaces,
/// addresses and directories are this lab's.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_published_configuration_starts_a_node_that_joins() {
    let published = include_str!("../../crates/neuwerkd/src/config/tests/published.yaml");
    let mut cluster = Cluster::lay_out(2).unwrap();
    let dir = cluster.node(2).dir().to_str().unwrap().to_owned();
    let run_dir = format!("--runtime-run-dir={dir}/run");
    let here = address::management(2).to_string();
    let mut text = published.to_owned();
    for (theirs, ours) in [
        ("eth0", "mgmt0"),
        ("eth1", "in0"),
        // Which only a build with that feature has.
        ("data_plane_mode: dpdk", "data_plane_mode: packet"),
        ("10.0.0.10", here.as_str()),
        ("203.0.113.10", here.as_str()),
        ("10.0.0.11:9601", &address::join(1).to_string()),
        ("/var/lib/neuwerk", &dir),
        // Whose files would have to be there; that a node serves them is another test.
        ("  cert_path: /etc/neuwerk/tls.crt\n", ""),
        ("  key_path: /etc/neuwerk/tls.key\n", ""),
        ("  ca_path: /etc/neuwerk/ca.crt\n", ""),
    ] {
        assert!(text.contains(theirs), "{theirs}");
        text = text.replace(theirs, ours);
    }
    cluster.node(2).set_config(&text).unwrap();
    let program = lab::node::binary().unwrap();
    cluster.node(2).set_program(&program, &[&run_dir]);
    for number in [1, 2] {
        cluster.node(number).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();

    let log = std::fs::read_to_string(cluster.node(2).log_path()).unwrap();
    let named: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("dpdk.mbuf_pool_size"))
        .collect();
    assert_eq!(named.len(), 1, "one warning for all keys without effect");
    assert!(named[0].contains("WARN"), "{}", named[0]);
    for key in ["dpdk.force_netvsc", "integration.mode", "tls_intercept"] {
        assert!(named[0].contains(key), "{key} in {}", named[0]);
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_archive_has_every_member_that_can_be_reached() {
    let mut cluster = Cluster::start(3).unwrap();
    let ids: Vec<String> = (1..=3).map(|n| cluster.node_id(1, n).unwrap()).collect();
    let archive = cluster.node(1).dir().join("all.tar.gz");
    let output = archive.to_str().unwrap().to_owned();
    at_home(
        &mut cluster,
        1,
        &["sysdump", "--cluster", "--output", &output],
    )
    .unwrap();
    let files = listed(&archive);
    for id in &ids {
        for file in [
            "summary/state.json",
            "log/recent.txt",
            "http/metrics.txt",
            "files/cluster/tls/node.crt",
        ] {
            assert!(
                files.contains(&format!("nodes/{id}/{file}")),
                "{id} {file} in {files:?}"
            );
        }
    }

    // Two of three are gone: no leader, and the rest is there.
    cluster.node(2).kill().unwrap();
    cluster.node(3).kill().unwrap();
    let archive = cluster.node(1).dir().join("rest.tar.gz");
    let output = archive.to_str().unwrap().to_owned();
    at_home(
        &mut cluster,
        1,
        &["sysdump", "--cluster", "--output", &output],
    )
    .unwrap();
    let files = listed(&archive);
    let has = |id: &str| {
        files
            .iter()
            .any(|file| file.starts_with(&format!("nodes/{id}/")))
    };
    assert_eq!(
        ids.iter().map(|id| has(id)).collect::<Vec<_>>(),
        [true, false, false]
    );

    // A node that does not run at all, from its files.
    let archive = cluster.node(2).dir().join("stopped.tar.gz");
    let output = archive.to_str().unwrap().to_owned();
    let config = cluster.node(2).dir().join("config.yaml");
    let config = config.to_str().unwrap().to_owned();
    at_home(
        &mut cluster,
        2,
        &["sysdump", "--config", &config, "--output", &output],
    )
    .unwrap();
    let files = listed(&archive);
    assert!(
        files.contains(&"files/listing.json".to_owned()),
        "{files:?}"
    );
    assert!(
        files.contains(&"files/cluster/tls/node.crt".to_owned()),
        "{files:?}"
    );
}
