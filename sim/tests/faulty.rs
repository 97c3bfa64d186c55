//! The real worker over ports that lose, double, damage, delay and refuse frames, run out of
//! buffers, lose their link or go away. Whatever they do: it does not panic, nothing leaves that
//! the policy does not allow or that is not translated, every buffer comes back, and once the
//! faults end traffic passes again.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::port::faulty::{Faults, Faulty};
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::port::{Capabilities, Link, Meta, Packet, Port, PortStats};
use engine::snapshot::{PortSettings, Settings, Snat};
use engine::{Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::{Compiled, Document, Facts};
use proptest::prelude::*;
use sim::engine::{MACS, PEER};
use sim::frame::{ACK, Frame, SYN};
use sim::neighbor;

/// Buffers of a port: fewer than frames may wait for a neighbour, so that these can hold them all.
const BUFFERS: usize = 100;
const INSIDE: [&str; 2] = ["10.0.0.1", "fd00::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const SERVERS: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

fn ip(s: &str) -> IpAddr {
    s.parse().expect("a constant")
}

/// A frame in one of a limited number of buffers.
struct Counted {
    frame: MemoryPacket,
    free: Rc<Cell<usize>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.free.set(self.free.get() + 1);
    }
}

impl Packet for Counted {
    fn bytes(&self) -> &[u8] {
        self.frame.bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.frame.bytes_mut()
    }
    fn set_len(&mut self, len: usize) -> bool {
        self.frame.set_len(len)
    }
    fn meta(&self) -> &Meta {
        self.frame.meta()
    }
    fn meta_mut(&mut self) -> &mut Meta {
        self.frame.meta_mut()
    }
}

/// A memory port with so many buffers.
struct Pooled {
    inner: MemoryPort,
    free: Rc<Cell<usize>>,
}

impl Pooled {
    fn hold(&self, frame: MemoryPacket) -> Counted {
        self.free.set(self.free.get() - 1);
        let free = Rc::clone(&self.free);
        Counted { frame, free }
    }
}

impl Port for Pooled {
    type Packet = Counted;

    fn rx_burst(&mut self, burst: &mut Vec<Counted>, max: usize) -> usize {
        let mut frames = Vec::new();
        let count = self.inner.rx_burst(&mut frames, max.min(self.free.get()));
        burst.extend(frames.into_iter().map(|frame| self.hold(frame)));
        count
    }
    fn tx_burst(&mut self, burst: &mut Vec<Counted>) -> usize {
        let taken = burst.drain(..).map(|mut c| std::mem::take(&mut c.frame));
        self.inner.tx_burst(&mut taken.collect())
    }
    fn alloc(&mut self, len: usize) -> Option<Counted> {
        if self.free.get() == 0 {
            return None;
        }
        self.inner.alloc(len).map(|frame| self.hold(frame))
    }
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
    fn link(&self) -> Link {
        self.inner.link()
    }
    fn stats(&self) -> PortStats {
        self.inner.stats()
    }
    fn wait_fd(&self) -> Option<i32> {
        None
    }
}

/// Keeps what the worker was given, after all faults.
struct Watched {
    inner: Faulty<Pooled>,
    given: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Port for Watched {
    type Packet = Counted;

    fn rx_burst(&mut self, burst: &mut Vec<Counted>, max: usize) -> usize {
        let had = burst.len();
        let count = self.inner.rx_burst(burst, max);
        let mut given = self.given.borrow_mut();
        given.extend(burst[had..].iter().map(|frame| frame.bytes().to_vec()));
        count
    }
    fn tx_burst(&mut self, burst: &mut Vec<Counted>) -> usize {
        self.inner.tx_burst(burst)
    }
    fn alloc(&mut self, len: usize) -> Option<Counted> {
        self.inner.alloc(len)
    }
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
    fn link(&self) -> Link {
        self.inner.link()
    }
    fn stats(&self) -> PortStats {
        self.inner.stats()
    }
    fn wait_fd(&self) -> Option<i32> {
        self.inner.wait_fd()
    }
}

/// What the policy judges by, as far as a frame that may be damaged tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuple {
    proto: u8,
    src: SocketAddr,
    dst: SocketAddr,
    /// TCP flags; ICMP type.
    kind: u8,
}

fn tuple(b: &[u8]) -> Option<Tuple> {
    let word = |at: usize| Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]));
    let v4 = |at: usize| Some(IpAddr::from(*b.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*b.get(at..)?.first_chunk::<16>()?));
    let (proto, src, dst, l4) = match word(12)? {
        0x0800 => {
            let l4 = 14 + usize::from(b.get(14)? & 15) * 4;
            (*b.get(23)?, v4(26)?, v4(30)?, l4)
        }
        0x86dd => {
            let (mut proto, mut l4) = (*b.get(20)?, 54);
            // Hop-by-hop and destination options, routing.
            while matches!(proto, 0 | 43 | 60) {
                proto = *b.get(l4)?;
                l4 += 8 + usize::from(*b.get(l4 + 1)?) * 8;
            }
            (proto, v6(22)?, v6(38)?, l4)
        }
        _ => return None,
    };
    let (src_port, dst_port, kind) = match proto {
        6 => (word(l4)?, word(l4 + 2)?, *b.get(l4 + 13)?),
        17 => (word(l4)?, word(l4 + 2)?, 0),
        1 | 58 => (0, 0, *b.get(l4)?),
        _ => (0, 0, 0),
    };
    Some(Tuple {
        proto,
        src: (src, src_port).into(),
        dst: (dst, dst_port).into(),
        kind,
    })
}

/// TCP to port 80 and UDP to port 53 may pass.
fn policy() -> Arc<Compiled> {
    let text = r#"{"default_policy":"deny","source_groups":[{"id":"g","mode":"enforce","on_deny":"drop",
        "default_action":"deny","sources":{"cidrs":["10.0.0.0/8","fd00::/16"]},"rules":[
        {"id":"t","action":"allow","match":{"proto":"tcp","dst_ports":[80]}},
        {"id":"u","action":"allow","match":{"proto":"udp","dst_ports":[53]}}]}]}"#;
    let document = Document::parse_json(text.as_bytes()).expect("a valid policy");
    Arc::new(Compiled::compile(&document, 1).expect("a policy that compiles"))
}

struct Node {
    worker: Worker<Watched, Watched>,
    policy: Arc<Compiled>,
    free: [Rc<Cell<usize>>; 2],
    given: [Rc<RefCell<Vec<Vec<u8>>>>; 2],
    /// Tuples that the worker was given on the inside port.
    asked: Vec<Tuple>,
    now: Now,
}

impl Node {
    fn new(seed: u64, faults: [Faults; 2]) -> Node {
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
            ..Settings::default()
        };
        let policy = policy();
        let snapshot = Snapshot::new(1, Arc::clone(&policy), settings).expect("settings that work");
        let free = [(); 2].map(|()| Rc::new(Cell::new(BUFFERS)));
        let given = [(); 2].map(|()| Rc::default());
        let port = |i: usize| {
            let pooled = Pooled {
                inner: MemoryPort::new(MACS[i], 1500),
                free: Rc::clone(&free[i]),
            };
            Watched {
                inner: Faulty::new(pooled, seed + i as u64, faults[i]),
                given: Rc::clone(&given[i]),
            }
        };
        let config = WorkerConfig {
            index: 0,
            count: 1,
            peers: None,
            seed,
            flow_capacity: 1024,
            events: None,
        };
        let worker = Worker::new(
            vec![port(0), port(1)],
            None,
            Arc::new(ArcSwap::from_pointee(snapshot)),
            config,
            Arc::new(WorkerCounters::default()),
        )
        .expect("memory for the table");
        Node {
            worker,
            policy,
            free,
            given,
            asked: Vec::new(),
            now: Now(1_000_000_000),
        }
    }

    fn faulty(&mut self, port: usize) -> &mut Faulty<Pooled> {
        &mut self.worker.ports_mut()[port].inner
    }

    fn put(&mut self, port: usize, frame: Frame) {
        let bytes = frame.between(PEER, MACS[port]).emit();
        let rx = &mut self.faulty(port).inner_mut().inner.rx;
        rx.push_back(MemoryPacket::new(bytes));
    }

    /// One turn, after so much time: neighbours answer, and what else leaves is checked.
    fn turn(&mut self, pass: Duration) -> Result<Vec<(usize, Tuple)>, TestCaseError> {
        self.now = self.now + pass;
        self.worker.poll(self.now);
        let mut given = self.given[0].borrow_mut();
        self.asked.extend(given.drain(..).filter_map(|b| tuple(&b)));
        drop(given);
        self.given[1].borrow_mut().clear();
        let mut left = Vec::new();
        for port in 0..2 {
            let sent = std::mem::take(&mut self.faulty(port).inner_mut().inner.tx);
            for frame in sent {
                let bytes = frame.bytes();
                match neighbor::answer(bytes) {
                    Some(answer) => {
                        let rx = &mut self.faulty(port).inner_mut().inner.rx;
                        rx.extend(answer.map(MemoryPacket::new));
                    }
                    None => {
                        let tuple = tuple(bytes);
                        prop_assert!(tuple.is_some(), "it left without being judged: {bytes:x?}");
                        let tuple = tuple.expect("it is some");
                        self.check(port, &tuple)?;
                        left.push((port, tuple));
                    }
                }
            }
        }
        Ok(left)
    }

    fn allows(&self, t: &Tuple) -> bool {
        let is_icmp = matches!(t.proto, 1 | 58);
        let facts = Facts {
            src: t.src.ip(),
            dst: t.dst.ip(),
            proto: t.proto,
            src_port: if is_icmp { 0 } else { t.src.port() },
            dst_port: if is_icmp { 0 } else { t.dst.port() },
            icmp: is_icmp.then_some((t.kind, 0)),
        };
        self.policy.evaluate(&facts).allow
    }

    /// No frame leaves unjudged or untranslated.
    fn check(&self, port: usize, t: &Tuple) -> Result<(), TestCaseError> {
        let asked = |matches: &dyn Fn(&Tuple) -> bool, must_be_allowed: bool| {
            let mut all = self.asked.iter().filter(|a| a.proto == t.proto);
            all.any(|a| matches(a) && (!must_be_allowed || self.allows(a)))
        };
        let is_error = matches!((t.proto, t.kind), (1, 3 | 11 | 12) | (58, 1..=4));
        let ours = if port == 0 { INSIDE } else { OUTSIDE }.map(ip);
        if port == 1 {
            prop_assert!(ours.contains(&t.src.ip()), "not translated: {t:?}");
            let is_pong = matches!((t.proto, t.kind), (1, 0) | (58, 129));
            let judged = asked(&|a| a.dst == t.dst, true);
            prop_assert!(is_error || is_pong || judged, "not judged: {t:?}");
        } else if !is_error && !ours.contains(&t.src.ip()) {
            let is_reset = t.proto == 6 && t.kind & 4 != 0;
            let answers = asked(&|a| (a.src, a.dst) == (t.dst, t.src), !is_reset);
            let hairpin = asked(&|a| (a.src, a.dst) == (t.src, t.dst), true);
            prop_assert!(answers || hairpin, "nobody asked for it: {t:?}");
        }
        Ok(())
    }

    /// Turns until what is under way has settled, or given up.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            self.turn(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// A datagram to a server and its answer pass.
    fn exchange(&mut self, v6: usize, port: u16) -> Result<(), TestCaseError> {
        let client: SocketAddr = (ip(["10.0.0.9", "fd00::9"][v6]), port).into();
        let server: SocketAddr = (ip(SERVERS[v6]), 53).into();
        self.put(0, Frame::udp(client, server, b"live?"));
        let shown = self.await_one(1, |t| t.dst == server)?.src;
        self.put(1, Frame::udp(server, shown, b"live!"));
        self.await_one(0, |t| (t.src, t.dst) == (server, client))?;
        Ok(())
    }

    fn await_one(
        &mut self,
        port: usize,
        matches: impl Fn(&Tuple) -> bool,
    ) -> Result<Tuple, TestCaseError> {
        for _ in 0..50 {
            for (at, tuple) in self.turn(Duration::from_millis(100))? {
                if at == port && matches(&tuple) {
                    return Ok(tuple);
                }
            }
        }
        Err(TestCaseError::fail(format!(
            "nothing came out of port {port} after the faults"
        )))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A client speaks: to an allowed port or not.
    Client {
        v6: bool,
        tcp: bool,
        client: u8,
        server: u8,
        port: u16,
        fine: bool,
    },
    /// The server of the last frame that left answers, or a stranger does.
    Answer { stranger: bool },
    /// Several turns, each after so many milliseconds.
    Pass { turns: u8, ms: u32 },
    /// A port's device is removed.
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = (
        any::<bool>(),
        any::<bool>(),
        2u8..6,
        1u8..4,
        0u16..6,
        prop::bool::weighted(0.8),
    );
    prop_oneof![
        8 => client.prop_map(|(v6, tcp, client, server, port, fine)| {
            Step::Client { v6, tcp, client, server, port, fine }
        }),
        4 => prop::bool::weighted(0.2).prop_map(|stranger| Step::Answer { stranger }),
        2 => (1u8..20, prop::sample::select(vec![1u32, 50, 1000, 70_000]))
            .prop_map(|(turns, ms)| Step::Pass { turns, ms }),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let rate = || prop_oneof![2 => Just(0u16), 2 => 1u16..100, 1 => 100u16..600];
    (
        (rate(), rate(), rate(), rate(), rate()),
        (rate(), rate(), rate(), 0u16..50),
    )
        .prop_map(
            |((lose, duplicate, reorder, truncate, corrupt), (delay, refuse, starve, flap))| {
                Faults {
                    lose,
                    duplicate,
                    reorder,
                    truncate,
                    corrupt,
                    delay,
                    refuse,
                    starve,
                    flap,
                }
            },
        )
}

fn run(seed: u64, faults: [Faults; 2], steps: &[Step]) -> Result<(), TestCaseError> {
    let mut node = Node::new(seed, faults);
    let mut last: Option<Tuple> = None;
    let mut removed = [false; 2];
    for step in steps {
        let turns = match *step {
            Step::Client {
                v6,
                tcp,
                client,
                server,
                port,
                fine,
            } => {
                let (c, s) = match v6 {
                    true => (format!("fd00::{client}"), format!("2001:db8:1::{server}")),
                    false => (format!("10.0.0.{client}"), format!("198.51.100.{server}")),
                };
                let to = match (fine, tcp) {
                    (false, _) => 25,
                    (true, true) => 80,
                    (true, false) => 53,
                };
                let (c, s) = ((ip(&c), 4000 + port).into(), (ip(&s), to).into());
                node.put(
                    0,
                    match tcp {
                        true => Frame::tcp(c, s, if port < 3 { SYN } else { ACK }, 100, 0, b"data"),
                        false => Frame::udp(c, s, b"some data"),
                    },
                );
                (1, 0)
            }
            Step::Answer { stranger } => {
                if let Some(t) = last {
                    let mut from = t.dst;
                    if stranger {
                        from.set_port(from.port() ^ 1);
                    }
                    node.put(
                        1,
                        match t.proto {
                            6 => Frame::tcp(from, t.src, SYN | ACK, 500, 101, b""),
                            _ => Frame::udp(from, t.src, b"an answer"),
                        },
                    );
                }
                (1, 0)
            }
            Step::Pass { turns, ms } => (turns, ms),
            Step::Remove(port) => {
                node.faulty(port).remove();
                removed[port] = true;
                (1, 0)
            }
        };
        for _ in 0..turns.0 {
            for (port, tuple) in node.turn(Duration::from_millis(u64::from(turns.1)))? {
                if port == 1 && matches!(tuple.proto, 6 | 17) {
                    last = Some(tuple);
                }
            }
        }
    }
    for port in 0..2 {
        node.faulty(port).heal();
    }
    node.settle()?;
    if removed == [false; 2] {
        node.exchange(0, 9000)?;
        node.exchange(1, 9000)?;
    } else if let Some(port) = removed.iter().position(|gone| !gone) {
        let ours = ip([INSIDE, OUTSIDE][port][0]);
        let peer = ip(["10.0.0.9", "192.0.2.9"][port]);
        node.put(port, Frame::echo(peer, ours, false, 7, 1));
        node.await_one(port, |t| (t.src.ip(), t.dst.ip()) == (ours, peer))?;
    }
    node.settle()?;
    for (port, free) in node.free.iter().enumerate() {
        prop_assert_eq!(
            free.get(),
            BUFFERS,
            "buffers of port {} that came back",
            port
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_leaves_unjudged_and_traffic_resumes_whatever_ports_do(
        seed in any::<u32>(),
        inside in faults(),
        outside in faults(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        run(u64::from(seed), [inside, outside], &steps)?;
    }

    #[test]
    fn a_port_that_goes_away_takes_nothing_with_it(
        seed in any::<u32>(),
        faults in faults(),
        steps in prop::collection::vec(step(), 1..60),
        port in 0usize..2,
        more in prop::collection::vec(step(), 1..60),
    ) {
        let steps = [&steps[..], &[Step::Remove(port)], &more].concat();
        run(u64::from(seed), [faults, faults], &steps)?;
    }
}
