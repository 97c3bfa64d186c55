//! A node whose outside port gets its addresses by itself, from a real DHCP server and router: dnsmasq.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::server::PORT;
use lab::{management, tool, wait};

const SOON: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_gets_addresses_from_dnsmasq_and_keeps_them_over_restarts() {
    tool::require(&["curl", "dnsmasq"]).unwrap();
    let mut cluster = Cluster::lay_out(1).unwrap();
    let _dnsmasq = Dnsmasq::start(&cluster);
    cluster.node(1).ask_for_outside_addresses().unwrap();
    cluster
        .node(1)
        .configure("dataplane", "workers: 2")
        .unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let policy = policy_allowing(&allowed_servers());
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    let seen = FAMILIES.map(|family| who(&cluster, family));
    let leased = |last| IpAddr::from([192, 0, 2, last]);
    assert!((leased(100)..=leased(109)).contains(&seen[0]), "{seen:?}");
    assert!(seen[1].to_string().starts_with("2001:db8:"), "{seen:?}");

    let status = cluster.node(1).control(&["status"]).unwrap();
    let expected = format!("outside: {}/24, {}/64 via ", seen[0], seen[1]);
    assert!(status.contains(&expected), "{status}");
    assert!(status.contains("leased by 192.0.2.254"), "{status}");

    // The kernel has been told the addresses: answers come to the worker that has their flow.
    let before = value(&cluster, "neuwerk_dp_handed_over_total ");
    for _ in 0..6 {
        assert_eq!(FAMILIES.map(|family| who(&cluster, family)), seen);
    }
    let handed_over = value(&cluster, "neuwerk_dp_handed_over_total ") - before;
    assert!(handed_over < 20, "{handed_over}");

    let live = FAMILIES.map(|family| cluster.live(1, address::allowed_server(family)).unwrap());
    cluster.node(1).control(&["restart"]).unwrap();
    assert_eq!(FAMILIES.map(|family| who(&cluster, family)), seen);
    for live in &live {
        assert_eq!(live.account().ended, None);
    }
    let refused = value(
        &cluster,
        "neuwerk_handover_flows_total{outcome=\"refused\"}",
    );
    assert_eq!(
        (refused, value(&cluster, "neuwerk_dp_flows_picked_up_total")),
        (0, 0)
    );

    cluster.node(1).kill().unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    assert_eq!(FAMILIES.map(|family| who(&cluster, family)), seen);
}

fn value(cluster: &Cluster, name: &str) -> u64 {
    let page = || management::metrics(&cluster.topology.operator, address::metrics(1));
    let page = wait::until("the metrics", SOON, || page().map(Some)).unwrap();
    management::sum(&page.0, name)
}

/// The address that a server sees when a client fetches from it through node 1, and as much of a page as shows that
/// packets of every size pass.
fn who(cluster: &Cluster, family: Family) -> IpAddr {
    let server = SocketAddr::new(address::allowed_server(family), PORT);
    let source = address::client(1, family).to_string();
    let fetch = |path: &str| {
        let url = format!("http://{server}{path}");
        let mut curl = cluster.topology.client.command("curl");
        let retry = ["--retry", "5", "--retry-all-errors", "--retry-delay", "1"];
        curl.args([
            "-sS",
            "--fail",
            "--max-time",
            "20",
            "--interface",
            &source,
            &url,
        ]);
        tool::run(curl.args(retry)).unwrap()
    };
    // The router's advertisement may come some seconds after the lease.
    let seen = fetch("/who");
    cluster.fetch(1, server.ip(), 1_000_000).unwrap();
    seen.parse().unwrap()
}

/// The router's DHCP server and router advertisements, on the outside segment.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(cluster: &Cluster) -> Dnsmasq {
        let internet = &cluster.topology.internet;
        let leases = internet.run().dir().join("dnsmasq.leases");
        let mut command = internet.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--log-facility=/dev/null",
            "--pid-file=",
            "--port=0",
            "--interface=out0",
            "--bind-interfaces",
            "--no-ping",
            "--dhcp-authoritative",
            "--dhcp-range=192.0.2.100,192.0.2.109,255.255.255.0,2m",
            "--dhcp-option=option:router,192.0.2.254",
            "--enable-ra",
            "--dhcp-range=2001:db8::,ra-only,64,10m",
        ]);
        command.arg(format!("--dhcp-leasefile={}", leases.display()));
        Dnsmasq(command.stderr(Stdio::inherit()).spawn().unwrap())
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
