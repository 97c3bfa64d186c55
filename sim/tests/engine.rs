//! The real worker and the reference take the same packets, policies and jumps of time, and must
//! do the same to every frame.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::port::Packet;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::snapshot::{Limits, NatMapping, Nptv6, PortSettings, Settings, Snat};
use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::{Compiled, Document};
use proptest::prelude::*;
use sim::engine::{Expected, MACS, Node, PEER, Reference};
use sim::frame::{ACK, Body, FIN, Frame, RST, SYN};
use sim::neighbor;

fn ip(s: &str) -> IpAddr {
    s.parse().expect("a constant")
}

fn node(nat: Nat) -> Node {
    let prefix = |s: &str| s.parse().expect("a constant");
    Node {
        inside: [ip("10.0.0.1"), ip("fd00::1")],
        outside: [ip("192.0.2.1"), ip("2001:db8::1")],
        independent: nat.independent,
        prefixes: nat
            .by_prefix
            .then(|| [prefix("fd00::"), prefix("2001:db8:7::")]),
    }
}

/// How clients are translated.
#[derive(Clone, Copy, Debug, Default)]
struct Nat {
    independent: bool,
    by_prefix: bool,
}

/// The policies that take turns.
fn policy(kind: u8, revision: u64) -> Arc<Compiled> {
    let rule = r#"{"id":"r","action":"deny","match":{"proto":"tcp","dst_ports":[80]}}"#;
    let group = |default: &str, on_deny: &str, rules: &str| {
        format!(
            r#"{{"default_policy":"deny","source_groups":[{{"id":"g","mode":"enforce","on_deny":"{on_deny}",
            "default_action":"{default}","sources":{{"cidrs":["10.0.0.0/8","fd00::/16"]}},"rules":[{rules}]}}]}}"#
        )
    };
    let text = match kind {
        0 => group("allow", "drop", ""),
        1 => group("allow", "reset", rule),
        2 => group("deny", "reset", ""),
        _ => group("deny", "drop", &rule.replace("deny", "allow")),
    };
    let document = Document::parse_json(text.as_bytes()).expect("a valid policy");
    Arc::new(Compiled::compile(&document, revision).expect("a policy that compiles"))
}

struct Real {
    worker: Worker<MemoryPort, MemoryPort>,
    published: Arc<ArcSwap<Snapshot>>,
    counters: Arc<WorkerCounters>,
}

impl Real {
    fn new(policy: Arc<Compiled>, nat: Nat) -> Real {
        let net = |s: &str| s.parse().expect("a constant");
        let settings = Settings {
            ports: vec![
                PortSettings {
                    addresses: vec![net("10.0.0.1/8"), net("fd00::1/64")],
                    ..PortSettings::default()
                },
                PortSettings {
                    addresses: vec![net("192.0.2.1/24"), net("2001:db8::1/64")],
                    gateways: vec![ip("192.0.2.254"), ip("2001:db8::fe")],
                    ..PortSettings::default()
                },
            ],
            nat66: Some(Snat::Auto),
            nat_mapping: match nat.independent {
                true => NatMapping::EndpointIndependent,
                false => NatMapping::AddressAndPortDependent,
            },
            nptv6: nat.by_prefix.then(|| Nptv6 {
                inside: "fd00::/48".parse().expect("a constant"),
                outside: "2001:db8:7::/48".parse().expect("a constant"),
            }),
            limits: Limits {
                icmp_errors_per_s: u32::MAX,
                resets_per_s: u32::MAX,
                ..Limits::default()
            },
            ..Settings::default()
        };
        let snapshot = Snapshot::new(1, policy, settings).expect("settings that work");
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        let counters = Arc::new(WorkerCounters::default());
        let ports = MACS.iter().map(|mac| MemoryPort::new(*mac, 1500)).collect();
        let config = WorkerConfig {
            index: 0,
            count: 1,
            peers: None,
            seed: 11,
            flow_capacity: 4096,
            events: None,
        };
        let worker = Worker::new(
            ports,
            None,
            Arc::clone(&published),
            config,
            Arc::clone(&counters),
        )
        .expect("memory for the table");
        Real {
            worker,
            published,
            counters,
        }
    }

    fn publish(&mut self, policy: Arc<Compiled>) {
        let next = self.published.load().generation() + 1;
        self.published
            .store(Arc::new(self.published.load().with_policy(
                next,
                policy,
                engine::grant::Table::default(),
            )));
    }

    fn dropped(&self) -> Vec<u64> {
        DropReason::ALL
            .iter()
            .map(|r| self.counters.dropped(*r).packets.get())
            .collect()
    }

    /// What comes out after this frame, and for which reason it was dropped if it was.
    fn receive(
        &mut self,
        now: Now,
        port: usize,
        f: &Frame,
    ) -> (Vec<(usize, Frame)>, Option<DropReason>) {
        let before = self.dropped();
        let bytes = f.clone().between(PEER, MACS[port]).emit();
        self.worker.ports_mut()[port]
            .rx
            .push_back(MemoryPacket::new(bytes));
        let sent = self.receive_rest(now);
        let after = self.dropped();
        let reason = DropReason::ALL
            .iter()
            .zip(before.iter().zip(after))
            .find(|(_, (b, a))| **b != *a);
        (sent, reason.map(|(r, _)| *r))
    }

    /// Polls until nothing moves; what came out, apart from talk with neighbours.
    fn receive_rest(&mut self, now: Now) -> Vec<(usize, Frame)> {
        let mut sent = Vec::new();
        loop {
            let mut quiet = self.worker.poll(now) == 0;
            for i in 0..2 {
                while let Some(packet) = self.worker.ports_mut()[i].tx.pop_front() {
                    quiet = false;
                    match neighbor::answer(packet.bytes()) {
                        Some(answer) => {
                            self.worker.ports_mut()[i]
                                .rx
                                .extend(answer.map(MemoryPacket::new));
                        }
                        None => sent.push((
                            i,
                            Frame::parse(packet.bytes()).expect("right in every checksum"),
                        )),
                    }
                }
            }
            if quiet {
                return sent;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// A packet of one of a few conversations, from either end.
    Packet {
        v6: bool,
        kind: u8,
        client: u8,
        server: u8,
        port: u16,
        from_server: bool,
        stray: bool,
        ttl: u8,
        tcp: (u8, u8, u8),
    },
    Pass(u32),
    Policy(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let packet = (
        (any::<bool>(), 0u8..4, 2u8..4, 0u8..4, 0u16..3),
        (
            any::<bool>(),
            prop::bool::weighted(0.05),
            prop::sample::select(vec![1u8, 2, 64, 64, 64, 64]),
        ),
        (0u8..8, 0u8..2, 0u8..2),
    )
        .prop_map(
            |((v6, kind, client, server, port), (from_server, stray, ttl), tcp)| Action::Packet {
                v6,
                kind,
                client,
                server,
                port,
                from_server,
                stray,
                ttl,
                tcp,
            },
        );
    let times = vec![
        1u32, 500, 9_000, 11_000, 29_900, 31_000, 61_000, 121_000, 241_000, 301_000, 7_441_000,
    ];
    prop_oneof![
        12 => packet,
        2 => prop::sample::select(times).prop_map(Action::Pass),
        1 => (0u8..4).prop_map(Action::Policy),
    ]
}

/// The frame of an action. A server sends to what the client was shown as last, which is kept by
/// conversation.
fn frame(a: &Action, shown: impl Fn(u8, SocketAddr, SocketAddr) -> SocketAddr) -> (usize, Frame) {
    let Action::Packet {
        v6,
        kind,
        client,
        server,
        port,
        from_server,
        stray,
        ttl,
        tcp,
    } = a
    else {
        unreachable!("only packets have frames")
    };
    let (c, s) = if *v6 {
        (
            ip(&format!("fd00::{client}")),
            ip(["2001:db8:1::1", "2001:db8:1::2", "fd00::7", "2001:db8::1"][*server as usize]),
        )
    } else {
        (
            ip(&format!("10.0.0.{client}")),
            ip(["198.51.100.1", "198.51.100.2", "10.0.0.7", "192.0.2.1"][*server as usize]),
        )
    };
    // To a NAT address only echo goes: where nobody waits, the port that its sender would show stays unknown.
    let s = match (s, *kind) {
        (s, 0 | 1 | 3) if s == ip("192.0.2.1") => ip("10.0.0.1"),
        (s, 0 | 1 | 3) if s == ip("2001:db8::1") => ip("fd00::1"),
        (s, _) => s,
    };
    let server_port = if *port == 2 { 80 } else { 443 };
    let client_at: SocketAddr = (c, 4000 + port % 2).into();
    let server_at: SocketAddr = (s, if *kind == 2 { 0 } else { server_port }).into();
    let inside_server = *server == 2;
    let ingress = if *from_server != *stray {
        usize::from(!inside_server)
    } else {
        0
    };
    let (src, dst) = if *from_server {
        (server_at, shown(*kind, client_at, server_at))
    } else {
        (client_at, server_at)
    };
    let frame = match kind {
        0 => Frame::udp(src, dst, b"data"),
        1 | 3 => {
            let flags = [SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST, FIN | ACK][tcp.0 as usize];
            let (mine, theirs) = if *from_server { (500, 100) } else { (100, 500) };
            let seq = if flags & SYN != 0 { mine } else { mine + 1 };
            Frame::tcp(
                src,
                dst,
                flags,
                seq + u32::from(tcp.1),
                theirs + 1 + u32::from(tcp.2),
                b"",
            )
        }
        _ => {
            let id = if *from_server { dst.port() } else { src.port() };
            Frame::echo(src.ip(), dst.ip(), *from_server, id, 1)
        }
    };
    (ingress, frame.with_ttl(*ttl))
}

fn source_port(f: &Frame) -> u16 {
    match f.body {
        Body::Tcp { src_port, .. } | Body::Udp { src_port, .. } => src_port,
        Body::Icmp { rest, .. } => (rest >> 16) as u16,
        Body::Other { .. } => 0,
    }
}

fn run(actions: &[Action], nat: Nat) -> Result<(), TestCaseError> {
    let mut revision = 1;
    let mut real = Real::new(policy(0, revision), nat);
    let mut reference = Reference::new(node(nat), policy(0, revision));
    let mut now = Now(1_000_000_000);
    let mut last_shown = std::collections::HashMap::new();
    for action in actions {
        match action {
            Action::Pass(ms) => {
                now = now + Duration::from_millis(u64::from(*ms));
                // An expired flow holds its port until a timer takes it; let the timers catch up.
                for _ in 0..100 {
                    real.worker.poll(now);
                }
                real.receive_rest(now);
            }
            Action::Policy(kind) => {
                revision += 1;
                real.publish(policy(*kind, revision));
                reference.publish(policy(*kind, revision));
            }
            Action::Packet {
                kind, from_server, ..
            } => {
                let proto = if *kind == 3 { 1 } else { *kind };
                let (port, f) = frame(action, |_, c, s| {
                    let kept = |c: SocketAddr| -> SocketAddr {
                        let shown = if s.ip() == ip("10.0.0.7") || s.ip() == ip("fd00::7") {
                            c.ip()
                        } else {
                            node(nat).outside[usize::from(c.is_ipv6())]
                        };
                        (shown, c.port()).into()
                    };
                    *last_shown.get(&(proto, c, s)).unwrap_or(&kept(c))
                });
                let (mut sent, dropped) = real.receive(now, port, &f);
                sent.sort_by_key(|(port, _)| *port);
                let expected = reference.receive(now.0, port, &f);
                match expected {
                    Expected::Sent(port, frame) => {
                        prop_assert_eq!(&sent, &[(port, frame)], "{:?} {:?}", action, dropped);
                    }
                    Expected::SentFromAnyPort(frame) => {
                        prop_assert_eq!(sent.len(), 1, "{:?} {:?}", action, dropped);
                        let chosen = source_port(&sent[0].1);
                        prop_assert_eq!(reference.learn_port(chosen), Ok(()));
                        prop_assert_eq!(sent[0].1.src, frame.src);
                    }
                    Expected::Dropped(reason, mut frames) => {
                        frames.sort_by_key(|(port, _)| *port);
                        prop_assert_eq!(dropped, Some(reason), "{:?} {:?}", action, sent);
                        prop_assert_eq!(&sent, &frames, "{:?}", action);
                    }
                }
                if !*from_server
                    && dropped.is_none()
                    && let [(_, out)] = &sent[..]
                {
                    let (c, s) = ends(&f);
                    last_shown.insert((proto, c, s), (out.src, source_port(out)).into());
                }
            }
        }
    }
    Ok(())
}

/// Client and server of a packet from the client.
fn ends(f: &Frame) -> (SocketAddr, SocketAddr) {
    let dst_port = match f.body {
        Body::Tcp { dst_port, .. } | Body::Udp { dst_port, .. } => dst_port,
        _ => 0,
    };
    ((f.src, source_port(f)).into(), (f.dst, dst_port).into())
}

proptest! {
    #[test]
    fn the_worker_agrees_with_the_reference(
        actions in prop::collection::vec(action(), 1..120),
        independent: bool,
        by_prefix: bool,
    ) {
        run(&actions, Nat { independent, by_prefix })?;
    }
}
