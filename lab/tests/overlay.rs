//! A node behind a load balancer that sends traffic in tunnels: the kernel's own VXLAN, and GENEVE as an AWS Gateway Load
//! Balancer writes it.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::address::{self, Family};
use lab::client::{self, Outcome, PATIENCE};
use lab::cluster::{Cluster, policy_allowing};
use lab::server::{PORT, Server, pattern};

/// Client and servers inside the tunnel.
const CLIENT: [u8; 4] = [10, 50, 0, 2];
const ALLOWED: [u8; 4] = [10, 50, 0, 9];
const DENIED: [u8; 4] = [10, 50, 0, 10];

#[test]
#[ignore = "needs root; make test runs it"]
fn a_pair_of_vxlan_tunnels_carries_ordinary_connections() {
    let cluster = node_with(&[
        "encap_mode: vxlan",
        "encap_vni_internal: 800",
        "encap_vni_external: 801",
    ]);
    // The load balancer has both tunnels; the far end of one is where the servers are.
    let (balancer, internet) = (&cluster.topology.client, &cluster.topology.internet);
    let node = address::inside(1, Family::V4);
    let local = address::client(1, Family::V4);
    for (vni, port) in [(800, 10_800), (801, 10_801)] {
        balancer
            .ip(&format!(
                "link add vx{vni} type vxlan id {vni} local {local} remote {node} dstport {port}"
            ))
            .unwrap();
    }
    balancer
        .ip(&format!("link set vx801 netns {}", internet.name()))
        .unwrap();
    for (netns, device, host, own, far) in [
        (
            balancer,
            "vx800",
            "10.50.0.2",
            "02:00:00:00:50:02",
            "02:00:00:00:50:09",
        ),
        (
            internet,
            "vx801",
            "10.50.0.9",
            "02:00:00:00:50:09",
            "02:00:00:00:50:02",
        ),
    ] {
        // What the kernel would cut by tunnel offload arrives in one piece otherwise.
        netns
            .ip(&format!(
                "link set {device} address {own} mtu 1450 gso_max_segs 1 up\naddr add {host}/24 dev {device}"
            ))
            .unwrap();
        for last in [2, 9, 10] {
            let peer = format!("10.50.0.{last}");
            if peer != host {
                let command = format!("neigh add {peer} lladdr {far} dev {device}");
                netns.ip(&command).unwrap();
            }
        }
    }
    internet.ip("addr add 10.50.0.10/24 dev vx801").unwrap();
    let _servers = [ALLOWED, DENIED].map(|a| Server::start(internet, a.into()).unwrap());

    let source = IpAddr::from(CLIENT);
    let allowed = SocketAddr::new(ALLOWED.into(), PORT);
    for size_bytes in [1, 1_447, 500_000] {
        client::fetch(balancer, source, allowed, size_bytes).unwrap();
    }
    let payload = pattern(1, 1_200);
    assert!(client::udp_echo(balancer, source, allowed, &payload, PATIENCE).unwrap());
    let denied = SocketAddr::new(DENIED.into(), PORT);
    let limit = Duration::from_millis(500);
    assert_eq!(
        client::probe(balancer, source, denied, limit),
        Outcome::Silent
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn geneve_comes_back_with_its_options() {
    let cluster = node_with(&["encap_mode: geneve"]);
    let node = SocketAddr::new(address::inside(1, Family::V4), 6081);
    let local = address::client(1, Family::V4);
    let exchange = |server: [u8; 4]| -> Option<Vec<u8>> {
        let packet = geneve_packet(server);
        cluster.topology.client.enter(|| {
            // The load balancer sends from a port drawn from the flow and listens on its own.
            let listener = UdpSocket::bind((local, 6081)).unwrap();
            listener
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            let sender = UdpSocket::bind((local, 50_001)).unwrap();
            sender.send_to(&packet, node).unwrap();
            let mut buffer = [0; 2000];
            let (len, from) = listener.recv_from(&mut buffer).ok()?;
            assert_eq!(from, SocketAddr::new(node.ip(), 50_001));
            Some(buffer[..len].to_vec())
        })
    };
    let sent = geneve_packet(ALLOWED);
    let back = exchange(ALLOWED).expect("it comes back");
    assert_eq!(back[..40], sent[..40], "header and options");
    assert_eq!(back[48], sent[48] - 1, "one hop");
    assert_eq!((&back[52..], back.len()), (&sent[52..], sent.len()));
    assert_eq!(exchange(DENIED), None);
}

/// A node with one arm and these keys of the dataplane, that lets the client to one of the servers.
fn node_with(keys: &[&str]) -> Cluster {
    let mut cluster = Cluster::lay_out(1).unwrap();
    cluster.topology.join_sides().unwrap();
    cluster.node(1).take_one_arm().unwrap();
    for key in keys {
        cluster.node(1).configure("dataplane", key).unwrap();
    }
    let config = cluster.node(1).dir().join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("  snat: auto\n  nat66: auto\n", "")
        + "dpdk: {overlay: {swap_tunnels: true}}\n";
    cluster.node(1).set_config(&text).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let mut policy = policy_allowing(&[ALLOWED.into()]);
    policy["source_groups"][0]["sources"]["cidrs"] = serde_json::json!(["10.50.0.2/32"]);
    cluster.api(1).unwrap().put_policy(&policy).unwrap();
    cluster
}

/// A UDP packet from the client, with endpoint, attachment and flow cookie.
fn geneve_packet(server: [u8; 4]) -> Vec<u8> {
    let mut b = vec![8, 0, 8, 0, 0, 0, 0, 0];
    b.extend([1, 8, 1, 2, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 1]);
    b.extend([1, 8, 2, 2, 9, 9, 9, 9, 9, 9, 9, 9]);
    b.extend([1, 8, 3, 1, 0xc0, 0xc1, 0xc2, 0xc3]);
    let mut ip = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(CLIENT);
    ip.extend(server);
    let words = ip.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    b.extend(ip);
    b.extend(5000u16.to_be_bytes());
    b.extend(PORT.to_be_bytes());
    b.extend([0, 12, 0, 0]);
    b.extend(*b"data");
    b
}
