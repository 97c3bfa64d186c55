//! What a node is sent by mistake or on purpose, on every port that it has: it says so or counts it, and lives.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::address::{self, FAMILIES, Family};
use lab::client;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::netns::Netns;
use lab::server::pattern;
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, SendFlags, SocketFlags, SocketType, bind, ipproto,
    sendto, socket_with,
};

const SHORT: Duration = Duration::from_millis(500);

#[test]
#[ignore = "needs root; make test runs it"]
fn garbage_on_every_port_changes_nothing() {
    let mut cluster = Cluster::start(2).unwrap();
    let api = cluster.api(2).unwrap();
    let before = api
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();

    let targets = [
        address::https(1),
        address::metrics(1),
        address::cluster(1),
        address::join(1),
    ];
    for target in targets {
        for bytes in garbage() {
            client::throw(&cluster.topology.operator, target, &bytes, SHORT);
        }
    }
    for path in [
        "/api/v1/policy",
        "/api/v1/nothing",
        "/../../etc/passwd",
        "/api/v1/policy?wait=never&timeout=x",
    ] {
        let refused = api
            .send_json(
                "PUT",
                path,
                &serde_json::json!({"source_groups": 7, "mode": "x"}),
            )
            .unwrap();
        assert!(
            (400..500).contains(&refused.status),
            "{path}: {}",
            refused.status
        );
    }
    let large = vec![b' '; 3 << 20];
    let refused = api.request(
        "POST",
        "/api/v1/service-accounts",
        &[("Content-Type", "application/json")],
        &large,
    );
    // The connection may end before all of it was taken.
    assert!(refused.is_err() || refused.unwrap().status == 413);
    for family in FAMILIES {
        malformed_packets(
            &cluster.topology.client,
            address::client(1, family),
            address::allowed_server(family),
        );
    }

    for node in 1..=2 {
        cluster.node(node).ensure_running().unwrap();
        cluster.wait_node_ready(node).unwrap();
        cluster
            .fetch(node, address::allowed_server(Family::V4), 100_000)
            .unwrap();
        cluster
            .fetch(node, address::allowed_server(Family::V6), 100_000)
            .unwrap();
    }
    let after = cluster.api(1).unwrap().get("/api/v1/policy").unwrap();
    assert_eq!(after.header("etag"), before.header("etag"));
}

/// Noise, the beginnings of what each listener expects, and too much of it.
fn garbage() -> Vec<Vec<u8>> {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut noisy_hello = hello.to_vec();
    noisy_hello.extend(pattern(3, 4_000));
    vec![
        Vec::new(),
        vec![0; 100_000],
        pattern(1, 100_000),
        hello.to_vec(),
        noisy_hello,
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff".to_vec(),
        [
            b"GET /metrics HTTP/1.1\r\nX: ".to_vec(),
            vec![b'x'; 1 << 20],
        ]
        .concat(),
        b"POST /metrics HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n".to_vec(),
        b"\xff\xff\xff\xffneuwerk-join/1".to_vec(),
    ]
}

/// Packets of many protocols whose headers are cut short or are noise, from `source` to `target`.
fn malformed_packets(netns: &Netns, source: IpAddr, target: IpAddr) {
    let family = if source.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    // Hop-by-hop, ICMP, TCP, UDP, 6in4, routing, fragment, GRE, ESP, AH, ICMPv6, no next header, options, SCTP, 253.
    let protocols = [1, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 253];
    netns.enter(|| {
        for number in protocols {
            let protocol = Protocol::from_raw(RawProtocol::new(number).unwrap());
            let socket = socket_with(
                family,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(protocol),
            )
            .unwrap();
            bind(&socket, &SocketAddr::new(source, 0)).unwrap();
            for (seed, length) in (1..).zip([0, 1, 3, 4, 7, 8, 12, 19, 20, 21, 40, 64, 200, 1400]) {
                // The kernel refuses some of them itself.
                let _ = sendto(
                    &socket,
                    &pattern(seed, length),
                    SendFlags::empty(),
                    &SocketAddr::new(target, 0),
                );
            }
        }
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (source, target) {
            let socket = socket_with(
                family,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(ipproto::RAW),
            )
            .unwrap();
            bind(&socket, &SocketAddr::new(source, 0)).unwrap();
            for (first, flags) in [
                (0x45, 0x2000),
                (0x46, 0),
                (0x4f, 0),
                (0x45, 0x1fff),
                (0x45, 0x3fff),
                (0x45, 0x8000_u16),
            ] {
                let mut packet = vec![0; 60];
                packet[0] = first;
                packet[6..8].copy_from_slice(&flags.to_be_bytes());
                packet[8..10].copy_from_slice(&[64, 6]);
                packet[12..16].copy_from_slice(&from.octets());
                packet[16..20].copy_from_slice(&to.octets());
                packet[20..].copy_from_slice(&pattern(u64::from(flags), 40));
                let _ = sendto(
                    &socket,
                    &packet,
                    SendFlags::empty(),
                    &SocketAddr::new(target, 0),
                );
            }
        }
    });
}
