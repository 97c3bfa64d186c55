//! What each stage of the engine costs a packet, by Criterion: `cargo bench -p engine --features stages`.
//!
//! A burst of 64 UDP packets of established flows, with SNAT over IPv4, in caches that are warm: the cost of the instructions, without
//! that of memory, which `cargo bench -p io --bench engine` shows.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the end of the bench"
)]

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::Snapshot;
use engine::port::Capabilities;
use engine::snapshot::{PortSettings, Settings};
use engine::stages::{Stages, track};
use policy::{Compiled, Document};
use sim::frame::Frame;

const PACKETS: u16 = 64;

const POLICY: &str = r#"{"source_groups":[{"id":"clients","mode":"enforce","default_action":"allow",
    "sources":{"cidrs":["10.0.0.0/8","fd00::/16"]},"rules":[]}]}"#;

fn settings() -> Settings {
    let port = |addresses: [&str; 2]| PortSettings {
        addresses: addresses.map(|a| a.parse().unwrap()).to_vec(),
        ..PortSettings::default()
    };
    Settings {
        ports: vec![
            port(["10.0.0.1/8", "fd00::1/16"]),
            port(["192.0.2.1/24", "2001:db8::1/64"]),
        ],
        ..Settings::default()
    }
}

fn stages(client: &str, server: &str) -> Stages {
    let document = Document::parse_json(POLICY.as_bytes()).unwrap();
    let policy = Arc::new(Compiled::compile(&document, 1).unwrap());
    let snapshot = Arc::new(Snapshot::new(1, policy, settings()).unwrap());
    let caps = |n| Capabilities {
        mtu: 1500,
        tx_checksum: true,
        tx_gso_tcp: true,
        tx_gso_udp: true,
        mac: [2, 0, 0, 0, 0, n],
        layer3: true,
    };
    let (client, server): (IpAddr, SocketAddr) = (client.parse().unwrap(), server.parse().unwrap());
    let frames = (0..PACKETS).map(|i| {
        let client = SocketAddr::new(client, 5000 + i);
        Frame::udp(client, server, b"eighteen bytes now").emit()
    });
    Stages::new(&snapshot, vec![caps(1), caps(2)], frames.collect()).unwrap()
}

fn bench(criterion: &mut Criterion) {
    for (family, client, server) in [
        ("IPv4", "10.1.2.3", "192.0.2.9:443"),
        ("IPv6", "fd00::2:3", "[2001:db8::9]:443"),
    ] {
        let mut group = criterion.benchmark_group(family);
        group.throughput(Throughput::Elements(PACKETS.into()));
        let mut stages = stages(client, server);
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
