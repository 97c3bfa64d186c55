//! Random packets, policies and jumps of time for the real worker and the reference, which must do the same to every
//! frame. What this is to show is checked by itself as well: that nothing leaves untranslated, that nothing leaves
//! which a naive reading of the policy denies, and that an answer comes to who asked, as it was sent.
//!
//! A story is a list of such actions that follows from a seed, so that millions of packets take the memory of a few
//! thousand, and a failure is told by a number. `cargo xtask packets` tells many.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::{AddAssign, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use engine::{DropReason, Now};
use policy::{Compiled, Document};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use crate::engine::{Expected, FAR, Node, Policy, Reference, Report, facts, tuple};
use crate::frame::{ACK, Body, FIN, Frame, RST, SYN};
use crate::policy::{evaluate, generate};
use real::Real;

mod real;

/// Packets that have left last, which servers may answer.
const RECENT: usize = 4;

/// Protocols without ports.
const GRE: u8 = 47;
const ESP: u8 = 50;

/// Most actions of a story that is told by its seed.
const ACTIONS: usize = 2000;

/// What happens to a node from its start on.
#[derive(Clone, Debug)]
pub struct Story {
    nat: Nat,
    actions: Vec<Action>,
}

/// How clients are translated.
#[derive(Clone, Copy, Debug)]
struct Nat {
    independent: bool,
    by_prefix: bool,
    addresses: Addresses,
    checks_window: bool,
    workers: u16,
}

/// What clients of either family are translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    /// Nothing.
    None,
    /// The node's own address.
    Own,
    /// Another one.
    One,
    /// One of several.
    Pool,
}

/// What became of the packets of stories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Packets that came.
    pub packets: u64,
    /// Those that left to the outside, all of them translated.
    pub left: u64,
    /// Those that came back to who had asked.
    pub returned: u64,
    /// Errors that reached whom they were for, and are not among those.
    pub errors: u64,
    /// Those that were dropped.
    pub dropped: u64,
    /// Policies that took effect.
    pub policies: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, other: Told) {
        self.packets += other.packets;
        self.left += other.left;
        self.returned += other.returned;
        self.errors += other.errors;
        self.dropped += other.dropped;
        self.policies += other.policies;
    }
}

/// Stories of so many actions.
pub fn story(actions: RangeInclusive<usize>) -> impl Strategy<Value = Story> {
    let actions = prop::collection::vec(action(), actions);
    let addresses = vec![
        Addresses::None,
        Addresses::Own,
        Addresses::Own,
        Addresses::One,
        Addresses::Pool,
        Addresses::Pool,
    ];
    let nat = (
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.7),
        prop::sample::select(vec![1u16, 1, 3]),
        prop::sample::select(addresses),
    )
        .prop_map(
            |(independent, by_prefix, checks_window, workers, addresses)| Nat {
                independent,
                by_prefix,
                addresses,
                checks_window,
                workers,
            },
        );
    (actions, nat).prop_map(|(actions, nat)| Story { nat, actions })
}

/// Tells the story of a seed, the same each time.
///
/// # Errors
/// Where the engine did something else than the reference, with the fewest actions that lead there.
pub fn tell_seed(seed: u64) -> Result<Told, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let tree = story(1..=ACTIONS)
        .new_tree(&mut runner)
        .map_err(|reason| reason.to_string())?;
    let told = Cell::new(Told::default());
    let ended = runner.run_one(tree, |story| {
        told.set(tell(&story)?);
        Ok(())
    });
    match ended {
        Ok(_) => Ok(told.get()),
        Err(TestError::Fail(reason, story)) => Err(format!("{reason}\nwhat it takes: {story:#?}")),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("a constant")
}

impl Addresses {
    /// By family.
    fn shown(self) -> [Vec<IpAddr>; 2] {
        let all: [&[&str]; 2] = match self {
            Addresses::None => [&[], &[]],
            Addresses::Own => [&["192.0.2.1"], &["2001:db8::1"]],
            Addresses::One => [&["192.0.2.9"], &["2001:db8::9"]],
            Addresses::Pool => [
                &["192.0.2.16", "192.0.2.17", "192.0.2.18"],
                &["2001:db8::16", "2001:db8::17", "2001:db8::18"],
            ],
        };
        all.map(|family| family.iter().map(|a| ip(a)).collect())
    }
}

fn node(nat: Nat) -> Node {
    let prefix = |s: &str| s.parse().expect("a constant");
    Node {
        inside: [ip("10.0.0.1"), ip("fd00::1")],
        outside: [ip("192.0.2.1"), ip("2001:db8::1")],
        shown: nat.addresses.shown(),
        independent: nat.independent,
        shares: nat.workers > 1,
        checks_window: nat.checks_window,
        prefixes: nat
            .by_prefix
            .then(|| [prefix("fd00::"), prefix("2001:db8:7::")]),
    }
}

/// Both forms of a policy.
fn read(json: &str, revision: u64) -> (Arc<Compiled>, Policy) {
    let document = Document::parse_json(json.as_bytes()).expect("a valid policy");
    let compiled = Compiled::compile(&document, revision).expect("a policy that compiles");
    (Arc::new(compiled), Policy { document, revision })
}

/// Something that happens to a node.
#[derive(Clone, Debug)]
pub enum Action {
    /// A packet of one of a few conversations, from either end.
    Packet {
        /// Of IPv6.
        v6: bool,
        /// UDP, TCP, echo, TCP, GRE, ESP.
        kind: u8,
        /// The client's number.
        client: u8,
        /// The server's number: two far ones, one on the inside link, the node.
        server: u8,
        /// The conversation's number.
        port: u16,
        /// The server sends it.
        from_server: bool,
        /// It comes to the wrong port of the node.
        stray: bool,
        /// TTL or hop limit.
        ttl: u8,
        /// Which flags, sequence number and acknowledgement; of UDP, what the checksum comes to.
        tcp: (u8, u8, u8),
        /// Where the sequence number is beyond every window, unless the segment opens a connection or resets it.
        far: bool,
    },
    /// A server answers one of the packets that have left last, counted from the newest.
    Answer(usize),
    /// An ICMP error about one of the packets that have left last, or come back last.
    Error {
        /// Counted from the newest.
        back: usize,
        /// It is about one that has come back, and so from inside.
        from_inside: bool,
        /// Which type and code.
        kind: u8,
        /// A router sends it, not who the packet was for.
        router: bool,
        /// It quotes no more than it must.
        cut: bool,
        /// What is wrong with it: the port of the node that it comes by, the port that it quotes, its receiver; nothing.
        wrong: u8,
        /// TTL or hop limit.
        ttl: u8,
    },
    /// So many milliseconds pass.
    Pass(u32),
    /// Another policy, as JSON.
    Policy(String),
}

fn action() -> impl Strategy<Value = Action> {
    let packet = (
        (any::<bool>(), 0u8..6, 2u8..4, 0u8..4, 0u16..3),
        (
            any::<bool>(),
            prop::bool::weighted(0.05),
            prop::sample::select(vec![1u8, 2, 64, 64, 64, 64]),
        ),
        (0u8..8, 0u8..2, 0u8..2),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |((v6, kind, client, server, port), (from_server, stray, ttl), tcp, far)| {
                Action::Packet {
                    v6,
                    kind,
                    client,
                    server,
                    port,
                    from_server,
                    stray,
                    ttl,
                    tcp,
                    far,
                }
            },
        );
    let times = vec![
        1u32, 500, 9_000, 11_000, 29_900, 31_000, 61_000, 121_000, 241_000, 301_000, 7_441_000,
    ];
    let error = (
        (
            0..RECENT,
            any::<bool>(),
            0u8..4,
            any::<bool>(),
            any::<bool>(),
        ),
        prop::sample::select(vec![0u8, 1, 2, 3, 3, 3, 3, 3, 3]),
        prop::sample::select(vec![1u8, 2, 64, 64, 64, 64]),
    )
        .prop_map(
            |((back, from_inside, kind, router, cut), wrong, ttl)| Action::Error {
                back,
                from_inside,
                kind,
                router,
                cut,
                wrong,
                ttl,
            },
        );
    prop_oneof![
        12 => packet,
        3 => error,
        6 => (0..RECENT).prop_map(Action::Answer),
        2 => prop::sample::select(times).prop_map(Action::Pass),
        1 => policy().prop_map(Action::Policy),
    ]
}

/// A policy about the conversations, now and then one about anything.
fn policy() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => prop::sample::select(vec![0u8, 0, 0, 1, 1, 1, 2, 3]).prop_map(simple),
        1 => generate::document().prop_map(|document| document.to_string()),
    ]
}

/// The policies that take turns.
fn simple(kind: u8) -> String {
    let rule = r#"{"id":"r","action":"deny","match":{"proto":"tcp","dst_ports":[80]}}"#;
    let group = |default: &str, on_deny: &str, rules: &str| {
        format!(
            r#"{{"default_policy":"deny","source_groups":[{{"id":"g","mode":"enforce","on_deny":"{on_deny}",
            "default_action":"{default}","sources":{{"cidrs":["10.0.0.0/8","fd00::/16"]}},"rules":[{rules}]}}]}}"#
        )
    };
    match kind {
        0 => group("allow", "drop", ""),
        1 => group("allow", "reset", rule),
        2 => group("deny", "reset", ""),
        _ => group("deny", "drop", &rule.replace("deny", "allow")),
    }
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
        far,
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
    let (client_port, server_port) = match *kind {
        0 | 1 | 3 => (
            [4000, 40_001][usize::from(port % 2)],
            if *port == 2 { 80 } else { 443 },
        ),
        2 => ([4000, 40_001][usize::from(port % 2)], 0),
        _ => (0, 0),
    };
    let (client_at, server_at) = ((c, client_port).into(), (s, server_port).into());
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
        0 if tcp.0 == 0 => sum_to_zero(src, dst),
        0 => Frame::udp(src, dst, b"data"),
        1 | 3 => {
            let flags = [SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST, FIN | ACK][tcp.0 as usize];
            let (mine, theirs) = if *from_server { (500, 100) } else { (100, 500) };
            let seq = match flags {
                _ if flags & SYN != 0 => mine,
                _ if flags & RST == 0 && *far => mine + 2 * FAR - 1000,
                _ => mine + 1,
            };
            Frame::tcp(
                src,
                dst,
                flags,
                seq + u32::from(tcp.1),
                theirs + 1 + u32::from(tcp.2),
                b"",
            )
        }
        2 => {
            let id = if *from_server { dst.port() } else { src.port() };
            Frame::echo(src.ip(), dst.ip(), *from_server, id, 1)
        }
        4 => Frame::other(src.ip(), dst.ip(), GRE, b"tunnelled"),
        _ => Frame::other(src.ip(), dst.ip(), ESP, b"encrypted"),
    };
    (ingress, frame.with_ttl(*ttl))
}

/// A datagram whose checksum comes to zero, which is sent as all ones: the other zero says that there is none (RFC 768).
fn sum_to_zero(src: SocketAddr, dst: SocketAddr) -> Frame {
    let other = Frame::udp(src, dst, &[0, 0]).emit();
    let sum = other.len() - 4;
    Frame::udp(src, dst, &other[sum..sum + 2])
}

/// The error of an action about one of these packets, and by which port of the node it comes.
fn report(a: &Action, recent: &[VecDeque<Frame>; 2]) -> Option<(usize, Report)> {
    let Action::Error {
        back,
        from_inside,
        kind,
        router,
        cut,
        wrong,
        ttl,
    } = a
    else {
        return None;
    };
    let about = recent[usize::from(*from_inside)].get(*back)?;
    let v6 = about.src.is_ipv6();
    let routers = [["203.0.113.9", "2001:db8:9::9"], ["10.0.0.9", "fd00::9"]];
    let port = usize::from(*from_inside == (*wrong == 0));
    let mut quoted = about.clone();
    if *wrong == 1 {
        match &mut quoted.body {
            Body::Tcp { src_port, .. } | Body::Udp { src_port, .. } => *src_port ^= 1,
            Body::Icmp { rest, .. } => *rest ^= 1 << 16,
            Body::Other { proto, .. } => *proto = 46,
        }
    }
    let (kind, rest) = match (v6, kind) {
        (false, 0) => ((3, 4), 1400),
        (false, 1) => ((3, 3), 0),
        (false, 2) => ((11, 0), 0),
        (false, _) => ((12, 0), 0),
        (true, 0) => ((2, 0), 1280),
        (true, 1) => ((1, 4), 0),
        (true, 2) => ((3, 0), 0),
        (true, _) => ((4, 0), 0),
    };
    let report = Report {
        src: match router {
            true => ip(routers[usize::from(*from_inside)][usize::from(v6)]),
            false => about.dst,
        },
        dst: match (wrong, v6) {
            (2, false) => ip("192.0.2.1"),
            (2, true) => ip("2001:db8::1"),
            _ => about.src,
        },
        ttl: *ttl,
        kind,
        rest,
        quoted,
        // The header, and eight bytes of what follows.
        len: match (cut, v6) {
            (true, false) => 28,
            (true, true) => 48,
            (false, _) => usize::MAX - 14,
        },
    };
    Some((port, report))
}

fn source_port(f: &Frame) -> u16 {
    match f.body {
        Body::Tcp { src_port, .. } | Body::Udp { src_port, .. } => src_port,
        Body::Icmp { rest, .. } => (rest >> 16) as u16,
        Body::Other { .. } => 0,
    }
}

/// What both do with a story, which must be the same.
///
/// # Errors
/// The first frame with which it was not.
pub fn tell(story: &Story) -> Result<Told, TestCaseError> {
    let mut told = Told::default();
    let node = node(story.nat);
    let (compiled, mut policy) = read(&simple(0), 1);
    let mut real = Real::new(compiled, story.nat);
    let mut reference = Reference::new(node.clone(), policy.clone());
    let mut now = Now(1_000_000_000);
    let mut last_shown = HashMap::new();
    let mut bindings = HashMap::new();
    // What has left last, and what has come back.
    let mut recent: [VecDeque<Frame>; 2] = Default::default();
    for action in &story.actions {
        // By which port a frame comes, and in which conversation, if a client sends it.
        let (port, f, asks) = match action {
            Action::Pass(ms) => {
                now = now + Duration::from_millis(u64::from(*ms));
                real.catch_up(now);
                continue;
            }
            Action::Policy(json) => {
                let (compiled, next) = read(json, policy.revision + 1);
                policy = next;
                real.publish(compiled);
                reference.publish(policy.clone());
                told.policies += 1;
                continue;
            }
            Action::Error { .. } => {
                if let Some((port, error)) = report(action, &recent) {
                    let f = error.frame();
                    let (emitted, dropped) = real.receive(now, port, &f);
                    let expected = reference.receive_error(now.0, port, &error);
                    let expected = as_shared(&node, expected, &dropped);
                    let sent = compare(action, expected, &mut reference, &emitted, &dropped)?;
                    check_hidden(&node, &sent)?;
                    told.packets += 1;
                    told.dropped += dropped.len() as u64;
                    told.errors += sent.len() as u64;
                }
                continue;
            }
            Action::Answer(back) => match recent[0].get(*back) {
                Some(asked) => (1, answer(asked), None),
                None => continue,
            },
            Action::Packet {
                kind, from_server, ..
            } => {
                let conversation = if *kind == 3 { 1 } else { *kind };
                let (port, f) = frame(action, |_, c, s| {
                    let kept = |c: SocketAddr| -> SocketAddr {
                        let is_inside = s.ip() == ip("10.0.0.7") || s.ip() == ip("fd00::7");
                        let shown = match node.shown[usize::from(c.is_ipv6())].first() {
                            Some(shown) if !is_inside => *shown,
                            _ => c.ip(),
                        };
                        (shown, c.port()).into()
                    };
                    *last_shown.get(&(conversation, c, s)).unwrap_or(&kept(c))
                });
                (port, f, (!from_server).then_some(conversation))
            }
        };
        let (emitted, dropped) = real.receive(now, port, &f);
        let expected = as_shared(&node, reference.receive(now.0, port, &f), &dropped);
        let sent = compare(action, expected, &mut reference, &emitted, &dropped)?;
        let dropped = dropped.first().copied();
        prop_assert!(reference.is_bijective(), "{:?}", reference);
        check(&node, &policy, (port, &f), &sent, dropped, &mut bindings)?;

        told.packets += 1;
        told.dropped += u64::from(dropped.is_some());
        if let (None, [(out, as_sent)]) = (dropped, &sent[..]) {
            told.left += u64::from((port, *out) == (0, 1));
            told.returned += u64::from((port, *out) == (1, 0));
            if port != *out {
                recent[port].truncate(RECENT - 1);
                recent[port].push_front(as_sent.clone());
            }
            if let Some(conversation) = asks {
                let (c, s) = ends(&f);
                let shown: SocketAddr = (as_sent.src, source_port(as_sent)).into();
                last_shown.insert((conversation, c, s), shown);
            }
        }
    }
    Ok(told)
}

/// The same as several workers may have it: a packet that comes by the wrong port of the node may be with another of
/// them than its flow is, where it is a stranger's.
fn as_shared(node: &Node, expected: Expected, dropped: &[DropReason]) -> Expected {
    let of_stranger = [
        DropReason::FromOutside,
        DropReason::LocalUnserved,
        DropReason::IcmpNoFlow,
    ];
    match (expected, dropped) {
        (Expected::Dropped(DropReason::Martian, sent), [reason])
            if node.shares && of_stranger.contains(reason) =>
        {
            Expected::Dropped(*reason, sent)
        }
        (expected, _) => expected,
    }
}

/// Whether the worker did what was expected; what it sent.
fn compare(
    action: &Action,
    expected: Expected,
    reference: &mut Reference,
    emitted: &[(usize, Vec<u8>)],
    dropped: &[DropReason],
) -> Result<Vec<(usize, Frame)>, TestCaseError> {
    let sent = parse(emitted)?;
    let (port, frame) = match expected {
        Expected::Sent(port, frame) => (port, frame),
        Expected::SentFromAny(port, frame) => {
            prop_assert_eq!(sent.len(), 1, "{:?} {:?}", action, dropped);
            let (_, chosen) = &sent[0];
            let learned = reference.learn((chosen.src, source_port(chosen)).into(), &frame);
            (port, learned.map_err(TestCaseError::fail)?)
        }
        Expected::Dropped(reason, mut frames) => {
            frames.sort_by_key(|(port, _)| *port);
            prop_assert_eq!(dropped, [reason], "{:?} {:?}", action, sent);
            prop_assert_eq!(&sent, &frames, "{:?}", action);
            return Ok(sent);
        }
    };
    let bytes = frame.emit();
    prop_assert_eq!(&sent, &[(port, frame)], "{:?} {:?}", action, dropped);
    // The fields too that the model has no names for.
    prop_assert_eq!(emitted, [(port, bytes)], "{:?}", action);
    prop_assert_eq!(dropped, [], "{:?}", action);
    Ok(sent)
}

/// What was sent, as frames in the order of their ports.
fn parse(emitted: &[(usize, Vec<u8>)]) -> Result<Vec<(usize, Frame)>, TestCaseError> {
    let frame = |(port, bytes): &(usize, Vec<u8>)| Ok((*port, Frame::parse(bytes)?));
    let sent: Result<Vec<_>, String> = emitted.iter().map(frame).collect();
    let mut sent = sent.map_err(TestCaseError::fail)?;
    sent.sort_by_key(|(port, _)| *port);
    Ok(sent)
}

/// Who showed a source to a server last: by protocol, server and that source.
type Bindings = HashMap<(u8, SocketAddr, SocketAddr), SocketAddr>;

/// No client is seen outside as it is, not in what an error quotes either.
fn check_hidden(node: &Node, sent: &[(usize, Frame)]) -> Result<(), TestCaseError> {
    for (_, frame) in sent.iter().filter(|(out, _)| *out == 1) {
        let quoted = match (&frame.body, frame.src.is_ipv6()) {
            (
                Body::Icmp {
                    icmp_type: 3 | 11 | 12,
                    payload,
                    ..
                },
                false,
            ) => payload.get(16..20),
            (
                Body::Icmp {
                    icmp_type: 1..=4,
                    payload,
                    ..
                },
                true,
            ) => payload.get(24..40),
            _ => None,
        };
        let quoted = quoted.and_then(|bytes| match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        });
        let mut shown = [Some(frame.src), quoted].into_iter().flatten();
        let is_hidden = shown.all(|a| !node.is_inside(a)) || !node.hides(frame.src.is_ipv6());
        prop_assert!(is_hidden, "untranslated: {:?}", frame);
    }
    Ok(())
}

/// What holds of every frame but errors, whatever the reference says.
fn check(
    node: &Node,
    policy: &Policy,
    (port, came): (usize, &Frame),
    sent: &[(usize, Frame)],
    dropped: Option<DropReason>,
    bindings: &mut Bindings,
) -> Result<(), TestCaseError> {
    check_hidden(node, sent)?;
    let (None, [(out, left)]) = (dropped, sent) else {
        return Ok(());
    };
    let (proto, src, dst) = tuple(came);
    match (port, *out) {
        (0, 1) => {
            let judged = evaluate(&policy.document, &facts(proto, src, dst, icmp(came)));
            prop_assert!(judged.allow, "the policy denies {:?}", came);
            let (_, shown, server) = tuple(left);
            prop_assert_eq!(server, dst);
            prop_assert_eq!(src.ip() != shown.ip(), node.hides(src.is_ipv6()));
            bindings.insert((proto, server, shown), src);
        }
        (1, 0) => {
            let asked = bindings.get(&(proto, src, dst));
            let (_, server, client) = tuple(left);
            prop_assert_eq!(asked, Some(&client), "nobody asked for {:?}", came);
            prop_assert_eq!(server, src);
            prop_assert_eq!(payload(left), payload(came));
        }
        _ => {}
    }
    Ok(())
}

fn icmp(f: &Frame) -> Option<(u8, u8)> {
    match f.body {
        Body::Icmp {
            icmp_type, code, ..
        } => Some((icmp_type, code)),
        _ => None,
    }
}

fn payload(f: &Frame) -> &[u8] {
    match &f.body {
        Body::Tcp { payload, .. }
        | Body::Udp { payload, .. }
        | Body::Icmp { payload, .. }
        | Body::Other { payload, .. } => payload,
    }
}

/// What a server says to a packet as it left.
fn answer(asked: &Frame) -> Frame {
    let (src, dst): (SocketAddr, SocketAddr) = match asked.body {
        Body::Tcp {
            src_port, dst_port, ..
        }
        | Body::Udp {
            src_port, dst_port, ..
        } => ((asked.src, src_port).into(), (asked.dst, dst_port).into()),
        _ => ((asked.src, 0).into(), (asked.dst, 0).into()),
    };
    match asked.body {
        Body::Tcp {
            seq, ack, flags, ..
        } if flags & SYN != 0 => Frame::tcp(dst, src, SYN | ACK, 500.max(ack), seq + 1, b""),
        Body::Tcp {
            seq, ack, flags, ..
        } => Frame::tcp(
            dst,
            src,
            ACK | flags & FIN,
            ack,
            seq + u32::from(flags & FIN),
            b"",
        ),
        Body::Icmp { rest, .. } => {
            let (id, seq) = ((rest >> 16) as u16, rest as u16);
            Frame::echo(dst.ip(), src.ip(), true, id, seq)
        }
        Body::Other { proto, .. } => Frame::other(dst.ip(), src.ip(), proto, b"an answer"),
        Body::Udp { .. } => Frame::udp(dst, src, b"an answer"),
    }
}

/// Client and server of a packet from the client.
fn ends(f: &Frame) -> (SocketAddr, SocketAddr) {
    let dst_port = match f.body {
        Body::Tcp { dst_port, .. } | Body::Udp { dst_port, .. } => dst_port,
        _ => 0,
    };
    ((f.src, source_port(f)).into(), (f.dst, dst_port).into())
}
