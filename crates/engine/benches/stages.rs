//! What each stage of the engine costs a packet, by Criterion: `cargo bench -p engine --features stages`.
//!
//! A burst of 64 UDP packets with SNAT, in caches that are warm: the cost of the instructions, without that of memory, which
//! `cargo bench -p io --bench engine` shows.
//!
//! - **IPv4, IPv6**: packets of established flows from parsing to rewriting; and flows that begin, with a port of NAT and a next
//!   hop, and that expire in the timing wheel.
//! - **Policy**: judging as if each packet began a flow, by ten thousand rules with an address or a name each.
//! - **VXLAN, GENEVE**: what is around a packet in a tunnel, taken off and put on again.
//! - **TCP**: the state of a connection.
//!
//! `-- --quick` is over sooner and less exact.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the end of the bench"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::Snapshot;
use engine::grant::{Address, Granted, Table, UseId};
use engine::overlay::{Encapsulation, Overlay, VxlanTunnel};
use engine::port::Capabilities;
use engine::snapshot::{PortSettings, Settings};
use engine::stages::{Stages, Tunnel, track};
use policy::{Compiled, Document};
use sim::frame::Frame;

const PACKETS: u16 = 64;
/// Rules of the policies that have many.
const RULES: u32 = 10_000;
/// Destinations of these rules.
const SERVERS: u32 = 0xcb00_0000;
const GATEWAYS: [&str; 2] = ["192.0.2.254", "2001:db8::fe"];

fn settings() -> Settings {
    let port = |addresses: [&str; 2]| PortSettings {
        addresses: addresses.map(|a| a.parse().unwrap()).to_vec(),
        ..PortSettings::default()
    };
    let mut outside = port(["192.0.2.1/24", "2001:db8::1/64"]);
    outside.gateways = GATEWAYS.map(|a| a.parse().unwrap()).to_vec();
    Settings {
        ports: vec![port(["10.0.0.1/8", "fd00::1/16"]), outside],
        ..Settings::default()
    }
}

/// A policy for clients inside, with these rules in JSON.
fn policy(default_action: &str, rules: &str) -> Arc<Compiled> {
    let json = format!(
        r#"{{"source_groups":[{{"id":"clients","mode":"enforce","default_action":"{default_action}",
        "sources":{{"cidrs":["10.0.0.0/8","fd00::/16"]}},"rules":[{rules}]}}]}}"#
    );
    let document = Document::parse_json(json.as_bytes()).unwrap();
    Arc::new(Compiled::compile(&document, 1).unwrap())
}

/// Many rules, each of which allows a server what this says.
fn rules(matching: impl Fn(u32) -> String) -> String {
    let mut rules = String::new();
    for i in 0..RULES {
        let (comma, matching) = (if i == 0 { "" } else { "," }, matching(i));
        write!(
            rules,
            r#"{comma}{{"id":"r{i}","action":"allow","match":{{{matching},"proto":"udp"}}}}"#
        )
        .unwrap();
    }
    rules
}

fn server(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(SERVERS + i)
}

/// The rules of this policy by names, each with the server that its name has led to.
fn grants(policy: &Compiled) -> Table {
    let mut table = Table::new(Arc::default());
    for (rule, i) in policy.name_rules().zip(0..) {
        let granted = Granted {
            rule,
            client: None,
            counted: UseId::at(i),
        };
        table.set(server(i).into(), Address::new([granted]));
    }
    table
}

fn capabilities(n: u8, layer3: bool) -> Capabilities {
    Capabilities {
        mtu: 1500,
        tx_checksum: true,
        tx_gso_tcp: true,
        tx_gso_udp: true,
        mac: [2, 0, 0, 0, 0, n],
        layer3,
    }
}

/// Packets of a client to these servers, on ports of layer 3 or with a gateway on the link.
fn stages(
    policy: Arc<Compiled>,
    layer3: bool,
    client: IpAddr,
    server: impl Fn(u16) -> SocketAddr,
) -> Stages {
    let granted = grants(&policy);
    let snapshot = Snapshot::new(1, Arc::clone(&policy), settings()).unwrap();
    let snapshot = Arc::new(snapshot.with_policy(1, policy, granted));
    let ports = [1, 2].map(|n| capabilities(n, layer3)).to_vec();
    let frames = (0..PACKETS).map(|i| {
        let client = SocketAddr::new(client, 5000 + i);
        Frame::udp(client, server(i), b"eighteen bytes now").emit()
    });
    let gateways = GATEWAYS.map(|a| a.parse().unwrap());
    Stages::new(&snapshot, ports, &gateways, frames.collect()).unwrap()
}

/// Packets that come in a tunnel: behind its header of so many bytes, Ethernet frames.
fn tunnel(encapsulation: Encapsulation, udp_port: u16, header: [u8; 8]) -> Tunnel {
    let mut settings = settings();
    settings.ports.truncate(1);
    settings.overlay = Some(Overlay {
        encapsulation,
        mtu: 1500,
        fixed_source_port: false,
    });
    let snapshot = Arc::new(Snapshot::new(1, policy("allow", ""), settings).unwrap());
    let at = |address: &str| address.parse::<SocketAddr>().unwrap();
    let frames = (0..PACKETS).map(|i| {
        let client = SocketAddr::new([172, 16, 0, 1].into(), 5000 + i);
        let inner = Frame::udp(client, at("198.51.100.1:443"), b"eighteen bytes now").emit();
        let outer = SocketAddr::new([10, 0, 0, 1].into(), udp_port);
        let mut frame = Frame::udp(at("10.0.0.9:50000"), outer, &[&header, &inner[..]].concat())
            .between([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
            .emit();
        // Without a checksum, as tunnels usually are (RFC 7348 §5).
        frame[40..42].fill(0);
        frame
    });
    Tunnel::new(&snapshot, capabilities(1, false), frames.collect()).unwrap()
}

/// How long all flows take to begin and how long to expire, in so many rounds.
fn come_and_go(stages: &mut Stages, rounds: u64) -> [Duration; 2] {
    let mut times = [Duration::ZERO; 2];
    for _ in 0..rounds {
        stages.fall_idle();
        let begin = Instant::now();
        let left = stages.expire();
        times[1] += begin.elapsed();
        assert_eq!(left, 0);
        stages.hash();
        let begin = Instant::now();
        let sent = stages.process();
        times[0] += begin.elapsed();
        assert_eq!(sent, usize::from(PACKETS));
    }
    times
}

fn bench(criterion: &mut Criterion) {
    for (family, client, server) in [
        ("IPv4", "10.1.2.3", "198.51.100.9:443"),
        ("IPv6", "fd00::2:3", "[2001:db8:1::9]:443"),
    ] {
        let mut group = criterion.benchmark_group(family);
        group.throughput(Throughput::Elements(PACKETS.into()));
        let (client, server): (IpAddr, SocketAddr) =
            (client.parse().unwrap(), server.parse().unwrap());
        let mut stages = stages(policy("allow", ""), true, client, |_| server);
        group.bench_function("parse", |b| b.iter(|| black_box(stages.parse())));
        group.bench_function("hash", |b| b.iter(|| stages.hash()));
        group.bench_function("prefetch", |b| b.iter(|| stages.prefetch()));
        group.bench_function("find", |b| b.iter(|| black_box(stages.find())));
        group.bench_function("judge", |b| b.iter(|| black_box(stages.judge())));
        group.bench_function("rewrite", |b| b.iter(|| stages.rewrite()));
        group.bench_function("copy", |b| b.iter(|| stages.copy()));
        group.bench_function("copy and all behind parsing", |b| {
            b.iter(|| black_box(stages.process()));
        });
        let mut flows = self::stages(policy("allow", ""), false, client, |_| server);
        for (i, what) in ["copy and open, with NAT and next hop", "expire"]
            .iter()
            .enumerate()
        {
            group.bench_function(*what, |b| b.iter_custom(|n| come_and_go(&mut flows, n)[i]));
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("Policy");
    group.throughput(Throughput::Elements(PACKETS.into()));
    for (by, rules) in [
        (
            "address",
            rules(|i| format!(r#""dst_cidrs":["{}/32"]"#, server(i))),
        ),
        (
            "name",
            rules(|i| format!(r#""dns_names":["host{i}.example"]"#)),
        ),
    ] {
        // As far apart as they can be.
        let to = |i| {
            SocketAddr::new(
                server(u32::from(i) * RULES / u32::from(PACKETS)).into(),
                443,
            )
        };
        let stages = stages(policy("deny", &rules), true, [10, 1, 2, 3].into(), to);
        assert_eq!(stages.judge(), usize::from(PACKETS));
        group.bench_function(format!("judge, 10,000 rules by {by}"), |b| {
            b.iter(|| black_box(stages.judge()));
        });
    }
    group.finish();
    let vxlan = VxlanTunnel {
        vni: 7,
        udp_port: 4789,
    };
    for (name, encapsulation, udp_port, header) in [
        (
            "VXLAN",
            Encapsulation::Vxlan(vxlan),
            vxlan.udp_port,
            [8, 0, 0, 0, 0, 0, 7, 0],
        ),
        (
            "GENEVE",
            Encapsulation::Geneve { udp_port: 6081 },
            6081,
            [0, 0, 0x65, 0x58, 0, 0, 7, 0],
        ),
    ] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(PACKETS.into()));
        let mut tunnel = tunnel(encapsulation, udp_port, header);
        group.bench_function("copy", |b| b.iter(|| tunnel.copy()));
        group.bench_function("copy and decapsulate", |b| {
            b.iter(|| black_box(tunnel.decapsulate()));
        });
        group.bench_function("encapsulate", |b| b.iter(|| tunnel.encapsulate()));
        group.finish();
    }
    let mut group = criterion.benchmark_group("TCP");
    group.throughput(Throughput::Elements(PACKETS.into()));
    group.bench_function("track", |b| {
        b.iter(|| black_box(track(black_box(PACKETS.into()))));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
