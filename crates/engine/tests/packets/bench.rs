//! A worker between an inside and an outside link, with neighbours that answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::counters::{CloseReason, Direction, Protocol};
use engine::event::Ring;
use engine::grant::Table;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::port::{Capabilities, Meta, Packet};
use engine::snapshot::{LocalService, PortSettings, Route, Settings};
use engine::{DropReason, Event, Imported, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::{Compiled, Document};
use sim::frame::Frame;

/// Our stations.
pub(crate) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Every other station: it answers for all addresses that are not ours.
pub(crate) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

pub(crate) const INSIDE: usize = 0;
pub(crate) const OUTSIDE: usize = 1;

/// What a worker sent: frames by port, and those handed to the host as port 2.
pub(crate) const LANE: usize = 2;

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().expect("a constant")
}

pub(crate) fn at(s: &str) -> SocketAddr {
    s.parse().expect("a constant")
}

/// Policy with this default and one group of all clients with these rules (JSON).
pub(crate) fn policy(default: &str, on_deny: &str, rules: &str) -> String {
    format!(
        r#"{{"default_policy":"{default}","source_groups":[{{"id":"clients","mode":"enforce",
        "default_action":"{default}","on_deny":"{on_deny}","sources":{{"cidrs":["10.0.0.0/8","fd00::/16"]}},"rules":[{rules}]}}]}}"#
    )
}

pub(crate) fn allow_all() -> String {
    policy("allow", "drop", "")
}

/// Two arms, both families, SNAT on the way out.
pub(crate) fn two_arms() -> Settings {
    let nets = |list: &[&str]| {
        list.iter()
            .map(|s| s.parse().expect("a constant"))
            .collect()
    };
    Settings {
        ports: vec![
            PortSettings {
                addresses: nets(&["10.0.0.1/24", "fd00::1/64"]),
                ..PortSettings::default()
            },
            PortSettings {
                addresses: nets(&["192.0.2.1/24", "2001:db8::1/64"]),
                gateways: vec![ip("192.0.2.254"), ip("2001:db8::fe")],
                ..PortSettings::default()
            },
        ],
        services: vec![LocalService {
            address: ip("10.0.0.53"),
            ports: vec![53],
        }],
        ..Settings::default()
    }
}

/// The same with further networks behind a router on the inside.
pub(crate) fn two_arms_with(inside: &[&str]) -> Settings {
    let mut settings = two_arms();
    settings.ports[INSIDE].routes = inside
        .iter()
        .map(|destination| {
            let destination: ipnet::IpNet = destination.parse().expect("valid by construction");
            let via = match destination {
                ipnet::IpNet::V4(_) => ip("10.0.0.254"),
                ipnet::IpNet::V6(_) => ip("fd00::fe"),
            };
            Route { destination, via }
        })
        .collect();
    settings
}

/// The link-local address of a port, by its link-layer address (RFC 4291, appendix A).
pub(crate) fn link_local(port: usize) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = MACS[port];
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

/// One arm on 10.0.0.0/24.
pub(crate) fn one_arm() -> Settings {
    let mut settings = two_arms();
    settings.ports.truncate(1);
    settings.ports[0].gateways = vec![ip("10.0.0.254"), ip("fd00::fe")];
    settings.internal = vec!["10.0.0.0/16".parse().expect("valid by construction")];
    settings
}

pub(crate) struct Bench {
    pub(crate) worker: Worker<MemoryPort, MemoryPort>,
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) events: Receiver<Event>,
    pub(crate) asker: engine::look::Asker,
    pub(crate) now: Now,
    seen: BTreeMap<String, u64>,
}

pub(crate) fn compile(policy: &str, revision: u64) -> Arc<Compiled> {
    let document = Document::parse_json(policy.as_bytes()).expect("valid by construction");
    Arc::new(Compiled::compile(&document, revision).expect("valid by construction"))
}

impl Bench {
    pub(crate) fn new(policy: &str, settings: Settings) -> Bench {
        Bench::with_capacity(policy, settings, 1024)
    }

    pub(crate) fn with_capacity(policy: &str, settings: Settings, flow_capacity: u32) -> Bench {
        let ports = MACS.map(|mac| MemoryPort::new(mac, 1500));
        let lane = MemoryPort::new([0; 6], 65_535);
        Bench::with_ports(policy, settings, flow_capacity, ports, lane)
    }

    /// With ports and a host lane that cannot segment.
    pub(crate) fn without_segmentation(policy: &str, settings: Settings) -> Bench {
        let port = |mac, mtu| {
            MemoryPort::with_capabilities(Capabilities {
                mtu,
                tx_checksum: true,
                tx_gso_tcp: false,
                tx_gso_udp: false,
                mac,
                layer3: false,
            })
        };
        let ports = MACS.map(|mac| port(mac, 1500));
        Bench::with_ports(policy, settings, 1024, ports, port([0; 6], 65_535))
    }

    /// With links that carry packets of these sizes.
    pub(crate) fn with_mtus(policy: &str, settings: Settings, mtus: [u16; 2]) -> Bench {
        let [inside, outside] = MACS;
        let ports = [(inside, mtus[0]), (outside, mtus[1])];
        let ports = ports.map(|(mac, mtu)| MemoryPort::new(mac, mtu));
        let lane = MemoryPort::new([0; 6], 65_535);
        Bench::with_ports(policy, settings, 1024, ports, lane)
    }

    /// The first of `count` workers, alone.
    pub(crate) fn one_of(policy: &str, settings: Settings, count: u16) -> Bench {
        let ports = MACS.map(|mac| MemoryPort::new(mac, 1500));
        let lane = MemoryPort::new([0; 6], 65_535);
        Bench::with_share(policy, settings, (1024, count), ports, lane)
    }

    fn with_ports(
        policy: &str,
        settings: Settings,
        flow_capacity: u32,
        ports: [MemoryPort; 2],
        lane: MemoryPort,
    ) -> Bench {
        Bench::with_share(policy, settings, (flow_capacity, 1), ports, lane)
    }

    /// With as many of `ports` as the settings have.
    fn with_share(
        policy: &str,
        settings: Settings,
        (flow_capacity, count): (u32, u16),
        ports: [MemoryPort; 2],
        lane: MemoryPort,
    ) -> Bench {
        let mut ports = Vec::from(ports);
        ports.truncate(settings.ports.len());
        let snapshot =
            Snapshot::new(1, compile(policy, 1), settings).expect("valid by construction");
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        let counters = Arc::new(WorkerCounters::default());
        let (sender, events) = sync_channel(1024);
        let config = WorkerConfig {
            index: 0,
            count,
            peers: None,
            seed: 7,
            flow_capacity,
            events: Some(Ring::of_all(sender)),
        };
        let worker = Worker::new(
            ports,
            Some(lane),
            Arc::clone(&published),
            config,
            Arc::clone(&counters),
        )
        .expect("valid by construction");
        let (asker, desk) = engine::look::channel();
        let worker = worker.with_desk(desk);
        let now = Now(1_000_000_000);
        let mut bench = Bench {
            worker,
            published,
            counters,
            events,
            asker,
            now,
            seen: BTreeMap::new(),
        };
        bench.exchange();
        bench.moved();
        bench
    }

    /// The worker that takes this one's flows over after `elapsed`, under these settings.
    pub(crate) fn succeed(
        &self,
        policy: &str,
        settings: Settings,
        elapsed: Duration,
    ) -> (Bench, Imported) {
        let mut next = Bench::new(policy, settings);
        let imported = self.hand_over(&mut next, elapsed);
        (next, imported)
    }

    /// Hands this one's flows to another worker, which takes them over after `elapsed`.
    pub(crate) fn hand_over(&self, next: &mut Bench, elapsed: Duration) -> Imported {
        next.pass(Duration::from_nanos(self.now.0 - next.now.0) + elapsed);
        let mut imported = Imported::default();
        self.worker
            .export_flows(self.now, |chunk| {
                let taken = next.worker.import_flows(next.now, elapsed, chunk);
                imported += taken.map_err(std::io::Error::other)?;
                Ok(())
            })
            .expect("valid by construction");
        next.moved();
        imported
    }

    pub(crate) fn publish(&mut self, policy: &str) {
        self.publish_with(policy, |_| Table::default());
    }

    /// The same, with what is granted under it.
    pub(crate) fn publish_with(&mut self, policy: &str, grants: impl FnOnce(&Compiled) -> Table) {
        let next = self.published.load().generation() + 1;
        let policy = compile(policy, next);
        let grants = grants(&policy);
        let snapshot = self.published.load().with_policy(next, policy, grants);
        self.published.store(Arc::new(snapshot));
    }

    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut Settings)) {
        let old = self.published.load_full();
        let mut settings = old.settings().clone();
        change(&mut settings);
        self.published.store(Arc::new(
            old.with_settings(old.generation() + 1, settings)
                .expect("valid by construction"),
        ));
    }

    /// Lets time pass, in steps in which timers come up.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_secs(60)).min(end);
            for _ in 0..100 {
                self.worker.poll(self.now);
            }
            self.exchange();
        }
    }

    /// Sends a frame to the worker and returns what comes out, neighbour resolution aside.
    pub(crate) fn send(&mut self, port: usize, frame: Frame) -> Vec<(usize, Frame)> {
        self.send_bytes(port, frame.between(PEER, MACS[port]).emit())
    }

    pub(crate) fn send_bytes(&mut self, port: usize, bytes: Vec<u8>) -> Vec<(usize, Frame)> {
        let sent = self.send_packet(port, MemoryPacket::new(bytes));
        sent.into_iter()
            .map(|(port, p)| {
                (
                    port,
                    Frame::parse(p.bytes()).unwrap_or_else(|e| panic!("{e}")),
                )
            })
            .collect()
    }

    pub(crate) fn send_packet(
        &mut self,
        port: usize,
        packet: MemoryPacket,
    ) -> Vec<(usize, MemoryPacket)> {
        if port == LANE {
            self.worker
                .lane_mut()
                .expect("made with a lane")
                .rx
                .push_back(packet);
        } else {
            self.worker.ports_mut()[port].rx.push_back(packet);
        }
        self.exchange()
    }

    /// The one frame that comes out, and where.
    pub(crate) fn one(&mut self, port: usize, frame: Frame) -> (usize, Frame) {
        let mut sent = self.send(port, frame);
        assert_eq!(sent.len(), 1, "{sent:?} {:?}", self.moved());
        sent.pop().expect("valid by construction")
    }

    /// Asserts that nothing comes out and that this is why.
    pub(crate) fn dropped(&mut self, port: usize, frame: Frame, reason: DropReason) {
        let before = self.counters.dropped(reason).packets.get();
        let sent = self.send(port, frame);
        assert_eq!(sent, [], "{:?}", self.moved());
        assert_eq!(
            self.counters.dropped(reason).packets.get(),
            before + 1,
            "{:?}",
            self.moved()
        );
    }

    /// What comes out by itself.
    pub(crate) fn exchange_frames(&mut self) -> Vec<(usize, Frame)> {
        let parse = |p: &MemoryPacket| Frame::parse(p.bytes()).unwrap_or_else(|e| panic!("{e}"));
        let sent = self.exchange();
        sent.iter().map(|(port, p)| (*port, parse(p))).collect()
    }

    /// Polls until nothing moves; answers questions for neighbours; collects the rest.
    fn exchange(&mut self) -> Vec<(usize, MemoryPacket)> {
        let mut sent = Vec::new();
        loop {
            let taken = self.worker.poll(self.now);
            let mut idle = taken == 0;
            for i in 0..self.worker.ports().len() {
                let port = &mut self.worker.ports_mut()[i];
                while let Some(packet) = port.tx.pop_front() {
                    idle = false;
                    if let Some(answer) = neighbor_answer(packet.bytes()) {
                        port.rx.extend(answer.map(MemoryPacket::new));
                    } else {
                        sent.push((i, packet));
                    }
                }
            }
            while let Some(packet) = self
                .worker
                .lane_mut()
                .expect("made with a lane")
                .tx
                .pop_front()
            {
                sent.push((LANE, packet));
            }
            if idle {
                return sent;
            }
        }
    }

    /// Every counter that has moved since the last call, neighbour resolution and gauges of
    /// configuration aside.
    pub(crate) fn moved(&mut self) -> Vec<String> {
        let c = &self.counters;
        let mut now = BTreeMap::new();
        for (d, direction) in [(Direction::Outbound, "out"), (Direction::Inbound, "in")] {
            use Protocol::*;
            for (p, proto) in [(Tcp, "tcp"), (Udp, "udp"), (Icmp, "icmp"), (Other, "other")] {
                now.insert(
                    format!("allow {direction} {proto}"),
                    c.allowed(d, p).packets,
                );
                now.insert(format!("deny {direction} {proto}"), c.denied(d, p).packets);
            }
        }
        for reason in DropReason::ALL {
            now.insert(
                format!("drop {}", reason.name()),
                c.dropped(*reason).packets.get(),
            );
        }
        for reason in CloseReason::ALL {
            now.insert(format!("closed {}", reason.name()), c.closed(reason));
        }
        for (name, counter) in [
            ("local", &c.local.packets),
            ("opened", &c.flows_opened),
            ("active", &c.flows_active),
            ("nat", &c.nat_active),
            ("vxlan in", &c.overlay[0].taken_out),
            ("vxlan out", &c.overlay[0].put_in),
            ("geneve in", &c.overlay[1].taken_out),
            ("geneve out", &c.overlay[1].put_in),
            ("rejudged", &c.rejudged),
            ("would_deny", &c.would_deny),
            ("picked_up", &c.picked_up),
            ("fragments", &c.fragments),
            ("reassembled", &c.reassembled),
            ("fragmented", &c.fragmented),
            ("icmp_translated", &c.icmp_errors_translated),
            ("icmp_sent", &c.icmp_errors_sent),
            ("limited", &c.replies_limited),
            ("resets", &c.resets_sent),
            ("events_lost", &c.events_lost),
            ("no_buffer", &c.no_buffer),
        ] {
            now.insert(name.to_string(), counter.get());
        }
        let moved = now
            .iter()
            .filter_map(|(name, value)| {
                let before = self.seen.get(name).copied().unwrap_or(0);
                let by = *value as i64 - before as i64;
                (by != 0).then(|| format!("{name} {by:+}"))
            })
            .collect();
        self.seen = now;
        moved
    }
}

/// The answer of a neighbour if this asks for one; `Some(None)` for what needs no answer.
pub(crate) fn neighbor_answer(frame: &[u8]) -> Option<Option<Vec<u8>>> {
    match (&frame[12..14], frame.get(20)) {
        ([8, 6], _) => {
            if frame[28..32] == frame[38..42] || frame[21] == 2 {
                // An announcement of ours, or our answer.
                return Some(None);
            }
            let mut answer = Vec::new();
            answer.extend(&frame[6..12]);
            answer.extend(PEER);
            answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend(PEER);
            answer.extend(&frame[38..42]);
            answer.extend(&frame[22..32]);
            Some(Some(answer))
        }
        ([0x86, 0xdd], Some(58)) if frame[54] == 135 => {
            let target: [u8; 16] = frame[62..78].try_into().expect("as long as the array");
            let asker: [u8; 16] = frame[22..38].try_into().expect("as long as the array");
            let mut payload = target.to_vec();
            payload.extend([2, 1]);
            payload.extend(PEER);
            let answer = Frame::icmp(target.into(), asker.into(), 136, 0, 0x6000_0000, &payload);
            let mac: [u8; 6] = frame[6..12].try_into().expect("as long as the array");
            Some(Some(answer.with_ttl(255).between(PEER, mac).emit()))
        }
        ([0x86, 0xdd], Some(58)) if frame[54] == 136 => Some(None),
        // What we listen to, behind a router alert.
        ([0x86, 0xdd], Some(0)) if matches!(frame.get(62), Some(131 | 143)) => Some(None),
        _ => None,
    }
}

/// A frame with this metadata.
pub(crate) fn with_meta(port: usize, frame: Frame, meta: Meta) -> MemoryPacket {
    MemoryPacket::new(frame.between(PEER, MACS[port]).emit()).with_meta(meta)
}
