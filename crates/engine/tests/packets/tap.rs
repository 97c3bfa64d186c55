//! Watching packets: what is told of them, and that watching changes nothing.

use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use engine::foresee::{Fate, Probe, Translation, foresee};
use engine::look::{Asker, Filter, FlowState, Question, Task};
use engine::overlay::{Encapsulation, VxlanTunnel};
use engine::port::PortId;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::snapshot::{NatMapping, Nptv6, Probes, Settings, Snat};
use engine::tap::{MAX_TAPS, Reader, Record, Ruling, Wish, tap};
use engine::{DropReason, Now, Verdict, Worker};
use policy::Facts;
use proptest::prelude::*;
use sim::frame::{ACK, Frame, SYN};

use super::bench::*;
use super::fragments::split;
use super::workers::Team;

/// Has the worker watch packets; none if it watches enough already.
fn watch(bench: &mut Bench, records: usize, change: impl FnOnce(&mut Wish)) -> Option<Reader> {
    let worker = (&mut bench.worker, &bench.asker);
    watch_at(worker, bench.now, records, change)
}

fn watch_at(
    (worker, asker): (&mut Worker<MemoryPort, MemoryPort>, &Asker),
    now: Now,
    records: usize,
    change: impl FnOnce(&mut Wish),
) -> Option<Reader> {
    let mut wish = Wish {
        filter: Filter::default(),
        drops_only: false,
        reason: None,
        snap: 64,
        until: now + Duration::from_secs(60),
    };
    change(&mut wish);
    let (tap, reader) = tap(wish, records);
    let (sender, answers) = sync_channel(1);
    let question = Question {
        filter: Filter::default(),
        policy: compile(&allow_all(), 1),
        task: Task::Watch(Some(tap)),
    };
    let reply = move |question| drop(sender.send(question));
    asker.ask(question, Box::new(reply)).expect("room");
    worker.poll(now);
    match answers.try_recv().expect("answered").task {
        Task::Watch(refused) => refused.is_none().then_some(reader),
        other => panic!("{other:?}"),
    }
}

fn records(reader: &Reader) -> Vec<Record> {
    std::iter::from_fn(|| reader.read(Record::clone)).collect()
}

fn web() -> String {
    let rule = r#"{"id":"web","action":"allow","match":{"proto":"tcp","dst_ports":[80]}}"#;
    policy("deny", "reset", rule)
}

#[test]
fn a_connection_is_followed_both_ways_through_translation() {
    let mut bench = Bench::new(&web(), two_arms());
    let reader = watch(&mut bench, 16, |wish| {
        wish.filter.from = Some("10.0.0.2/32".parse().expect("a constant"));
    })
    .expect("watched");
    super::tcp::establish(&mut bench, 5000);
    let seen = records(&reader);
    assert_eq!(seen.len(), 3, "{seen:?}");
    let [syn, answer, ack] = &seen[..] else {
        panic!("three packets")
    };
    let ruling = Some(Ruling {
        group: Some(0),
        rule: Some(0),
        revision: 1,
        allowed: true,
    });
    assert_eq!(
        (syn.hit, syn.ruling, syn.port),
        (None, ruling, Some(PortId(0)))
    );
    assert_eq!(syn.headers.expect("headers").tcp_flags, Some(SYN));
    assert_eq!(
        syn.headers.expect("headers").ends.src,
        (ip("10.0.0.2"), 5000)
    );
    assert_eq!(syn.sent.expect("sent").src, (ip("192.0.2.1"), 5000));
    assert_eq!(syn.verdict, Verdict::Forward(PortId(1)));
    assert!(syn.next_hop.is_some() || syn.waits);

    let hit = answer.hit.expect("a hit");
    assert_eq!(
        (hit.from_client, hit.state, hit.stale),
        (false, FlowState::SynSent, false)
    );
    assert_eq!(
        answer.headers.expect("headers").ends.dst,
        (ip("192.0.2.1"), 5000)
    );
    assert_eq!(answer.sent.expect("sent").dst, (ip("10.0.0.2"), 5000));
    assert_eq!(ack.hit.expect("a hit").state, FlowState::SynReceived);
    assert_eq!(ack.next_hop, Some(PEER));
    assert_eq!((ack.len as usize, reader.lost()), (ack.frame.len(), 0));
}

#[test]
fn drops_come_with_their_reason_and_what_decided() {
    let mut bench = Bench::new(&web(), two_arms());
    let reader = watch(&mut bench, 16, |wish| wish.drops_only = true).expect("watched");
    let only = watch(&mut bench, 16, |wish| {
        wish.reason = Some(DropReason::Truncated)
    });
    let only = only.expect("watched");
    super::tcp::establish(&mut bench, 5000);
    let denied = Frame::tcp(at("10.0.0.2:5001"), at("198.51.100.1:81"), SYN, 1, 0, b"");
    bench.send(INSIDE, denied);
    let stray = Frame::udp(at("198.51.100.1:53"), at("192.0.2.1:9"), b"");
    bench.send(OUTSIDE, stray);
    bench.send_bytes(INSIDE, vec![0; 10]);
    let seen = records(&reader);
    let reasons: Vec<_> = seen.iter().map(|record| record.verdict).collect();
    let expected = [
        DropReason::PolicyDenied,
        DropReason::FromOutside,
        DropReason::Truncated,
    ];
    assert_eq!(reasons, expected.map(Verdict::Drop));
    let ruling = seen[0].ruling.expect("the policy was asked");
    assert_eq!(
        (ruling.group, ruling.rule, ruling.allowed),
        (Some(0), None, false)
    );
    assert_eq!((seen[0].answers, seen[1].answers), (1, 0), "a reset");
    assert_eq!((seen[2].headers, &seen[2].frame[..]), (None, &[0; 10][..]));
    assert_eq!(seen[2].port, Some(PortId(0)));
    assert_eq!(records(&only).len(), 1);
}

#[test]
fn a_slow_reader_costs_records_and_no_packets() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let reader = watch(&mut bench, 4, |wish| wish.snap = 20).expect("watched");
    for port in 1..=10 {
        let frame = Frame::udp(
            (ip("10.0.0.2"), port).into(),
            at("198.51.100.1:53"),
            b"hello",
        );
        bench.one(INSIDE, frame);
    }
    let seen = records(&reader);
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|record| record.frame.len() == 20));
    let frame = Frame::udp(at("10.0.0.2:11"), at("198.51.100.1:53"), b"hello");
    bench.one(INSIDE, frame);
    assert_eq!(records(&reader).len(), 1, "records go round");
    assert!(reader.lost() >= 6, "{}", reader.lost());
}

#[test]
fn a_watch_ends_with_its_reader_or_its_time() {
    let udp = |wish: &mut Wish| wish.filter.proto = Some(17);
    let mut bench = Bench::new(&allow_all(), two_arms());
    let mut readers: Vec<_> = (0..MAX_TAPS)
        .map(|_| watch(&mut bench, 4, udp).expect("watched"))
        .collect();
    assert!(watch(&mut bench, 4, udp).is_none(), "too many");
    readers.pop();
    let soon = bench.now + Duration::from_secs(1);
    let timed = watch(&mut bench, 4, |wish| wish.until = soon);
    let mut timed = timed.expect("there is a place again");
    assert!(!timed.is_over());
    bench.now = soon;
    bench.worker.poll(soon);
    assert!(timed.is_over(), "the tap has come back");
    let frame = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"");
    bench.one(INSIDE, frame);
    assert_eq!(records(&timed).len(), 0);
    readers[0].close();
    bench.worker.poll(bench.now);
    assert!(readers[0].is_over() && !readers[1].is_over());
    assert_eq!(records(&readers[0]).len(), 1, "what was seen can be read");
    drop(bench);
    assert!(readers[1].is_over(), "there is no worker any more");
}

#[test]
fn a_datagram_in_pieces_is_told_of_once_it_is_whole() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let reader = watch(&mut bench, 16, |wish| {
        wish.filter.to_port = Some(53);
    });
    let reader = reader.expect("watched");
    let drops = watch(&mut bench, 16, |wish| wish.drops_only = true).expect("watched");
    let (client, server) = (at("10.0.0.2:5000"), at("198.51.100.1:53"));
    let datagram = Frame::udp(client, server, &[7; 100]);
    let pieces = split(INSIDE, &datagram, 1, &[40, 80]);
    for piece in &pieces {
        bench.send_packet(INSIDE, MemoryPacket::new(piece.clone()));
    }
    let seen = records(&reader);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (seen[0].pieces, seen[0].verdict, seen[0].hit),
        (3, Verdict::Forward(PortId(1)), None)
    );
    assert_eq!(seen[0].sent.expect("sent").src, (ip("192.0.2.1"), 5000));
    assert_eq!(records(&drops).len(), 0);
    // A piece that has come already.
    for _ in 0..2 {
        bench.send_packet(INSIDE, MemoryPacket::new(pieces[0].clone()));
    }
    let dropped = records(&drops);
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    let ends = dropped[0].headers.expect("of an IP packet").ends;
    assert_eq!(
        (dropped[0].verdict, ends.src),
        (Verdict::Drop(DropReason::Fragment), (client.ip(), 0))
    );
}

#[test]
fn what_is_in_a_tunnel_is_followed() {
    for encapsulation in [super::overlay::pair(true), super::overlay::GENEVE] {
        let mut bench = Bench::new(&allow_all(), super::overlay::settings(encapsulation));
        let reader = watch(&mut bench, 16, |wish| {
            wish.filter.from = Some("10.0.7.2/32".parse().expect("a constant"));
        });
        let reader = reader.expect("watched");
        let question = Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), b"q");
        let answer = Frame::udp(at("198.51.100.1:53"), at("10.0.7.2:5000"), b"a");
        for (external, frame) in [(false, question), (true, answer)] {
            let bytes = super::overlay::wrapped(encapsulation, external, &frame);
            let sent = bench.send_packet(INSIDE, MemoryPacket::new(bytes));
            assert_eq!(sent.len(), 1);
        }
        let seen = records(&reader);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.iter().all(|record| record.network.is_some()));
        assert_eq!(
            seen[0].headers.expect("headers").ends.src,
            (ip("10.0.7.2"), 5000)
        );
        assert!(!seen[1].hit.expect("a hit").from_client);
        assert_eq!(seen[1].next_hop, None);
    }
}

#[test]
fn errors_about_packets_of_a_flow_are_followed_with_it() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let reader = watch(&mut bench, 16, |wish| {
        wish.filter.from = Some("10.0.0.2/32".parse().expect("a constant"));
    });
    let reader = reader.expect("watched");
    let frame = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"q");
    let (_, sent) = bench.one(INSIDE, frame);
    let (router, us) = (ip("203.0.113.9"), ip("192.0.2.1"));
    let error = Frame::icmp(router, us, 3, 1, 0, &sent.emit()[14..]);
    bench.one(OUTSIDE, error);
    let seen = records(&reader);
    assert_eq!(seen.len(), 2, "{seen:?}");
    let headers = seen[1].headers.expect("headers");
    assert_eq!((headers.ends.src.0, headers.icmp), (router, Some((3, 1))));
    assert!(!seen[1].hit.expect("about a flow").from_client);
    assert_eq!(seen[1].sent.expect("sent").dst.0, ip("10.0.0.2"));
}

#[test]
fn what_turns_back_is_followed_from_either_end() {
    let (one, other) = (at("10.0.0.2:5000"), at("10.0.0.3:6000"));
    let (seen_one, seen_other) = (at("192.0.2.1:5000"), at("192.0.2.1:6000"));
    let mut bench = Bench::new(&allow_all(), two_arms());
    let of =
        |client: SocketAddr| move |wish: &mut Wish| wish.filter.from = Some(client.ip().into());
    let by_one = watch(&mut bench, 16, of(one)).expect("watched");
    let by_other = watch(&mut bench, 16, of(other)).expect("watched");
    bench.dropped(
        INSIDE,
        Frame::udp(other, seen_one, b"1"),
        DropReason::HairpinNoFlow,
    );
    bench.one(INSIDE, Frame::udp(one, seen_other, b"2"));
    let seen = records(&by_other);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[0].verdict, Verdict::Drop(DropReason::HairpinNoFlow));
    let turned = records(&by_one);
    for record in [&turned[0], &seen[1]] {
        let sent = record.sent.expect("sent");
        assert_eq!((sent.src.1, sent.dst), (5000, (other.ip(), 6000)));
        assert_eq!(record.headers.expect("headers").ends.dst.0, seen_other.ip());
    }

    // With several workers each tells of its part.
    let mut team = Team::new(
        3,
        Settings {
            nat_mapping: NatMapping::EndpointIndependent,
            ..two_arms()
        },
    );
    let mut readers = Vec::new();
    for (worker, asker) in team.workers.iter_mut().zip(&team.askers) {
        let all = watch_at((worker, asker), team.now, 64, |wish| {
            wish.filter.proto = Some(17);
        });
        readers.push(all.expect("watched"));
    }
    let mut handed = 0;
    for port in 5000..5020 {
        let one = SocketAddr::new(one.ip(), port);
        let [seen_one, seen_other] = [one, other].map(|client| {
            let (_, out) = team.one(INSIDE, Frame::udp(client, at("198.51.100.1:53"), b"q"));
            SocketAddr::new(out.src, super::workers::ports(&out).0)
        });
        readers.iter().flat_map(records).for_each(drop);
        team.send(INSIDE, Frame::udp(other, seen_one, b"1"));
        let (_, out) = team.one(INSIDE, Frame::udp(one, seen_other, b"2"));
        assert_eq!(out.dst, other.ip());
        let all: Vec<_> = readers.iter().flat_map(records).collect();
        let sent = |record: &&Record| record.sent.is_some_and(|sent| sent.dst.0 == other.ip());
        assert_eq!(all.iter().filter(sent).count(), 1, "{all:?}");
        let others = all.iter().filter(|record| record.handed_to.is_some());
        handed += others.count();
    }
    assert!(handed > 0, "some had another owner");
}

#[test]
fn a_packet_whose_next_hop_is_silent_is_told_of_with_its_flow() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let drops = watch(&mut bench, 16, |wish| {
        wish.drops_only = true;
        wish.filter.from = Some("10.0.0.2/32".parse().expect("a constant"));
    });
    let drops = drops.expect("watched");
    let frame = Frame::udp(at("10.0.0.2:5000"), at("192.0.2.77:53"), b"q");
    let bytes = frame.between(PEER, MACS[INSIDE]).emit();
    bench.worker.ports_mut()[INSIDE]
        .rx
        .push_back(MemoryPacket::new(bytes));
    for _ in 0..100 {
        // Nobody answers.
        bench.worker.poll(bench.now);
        bench.now = bench.now + Duration::from_millis(100);
    }
    let seen = records(&drops);
    assert_eq!(seen.len(), 1, "{seen:?}");
    let reason = Verdict::Drop(DropReason::NeighborUnreachable);
    let ends = seen[0].headers.expect("headers").ends;
    assert_eq!(
        (seen[0].verdict, ends.src),
        (reason, (ip("192.0.2.1"), 5000))
    );
    assert!(seen[0].ruling.is_some(), "its flow is known");
}

#[test]
fn segments_without_a_flow_are_watched_from_either_end() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let reader = watch(&mut bench, 4, |wish| {
        wish.filter.to = Some("198.51.100.0/24".parse().expect("a constant"));
        wish.filter.to_port = Some(80);
    });
    let reader = reader.expect("watched");
    let lost = Frame::tcp(at("198.51.100.1:80"), at("192.0.2.1:9"), ACK, 1, 1, b"");
    bench.send(OUTSIDE, lost);
    let other = Frame::tcp(at("198.51.100.1:81"), at("192.0.2.1:9"), ACK, 1, 1, b"");
    bench.send(OUTSIDE, other);
    assert_eq!(records(&reader).len(), 1);
}

/// A way in which a node can be set up, and what its packets come in.
fn setup() -> impl Strategy<Value = Settings> {
    let nptv6 = Settings {
        nptv6: Some(Nptv6 {
            inside: "fd00::/64".parse().expect("a constant"),
            outside: "2001:db8:77::/64".parse().expect("a constant"),
        }),
        ..two_arms()
    };
    let vxlan = VxlanTunnel {
        vni: 7,
        udp_port: 4789,
    };
    prop::sample::select(vec![
        two_arms(),
        one_arm(),
        two_arms_with(&["10.0.7.0/24", "fd00:7::/64"]),
        Settings {
            nat66: Some(Snat::Auto),
            nat_mapping: NatMapping::EndpointIndependent,
            ..two_arms()
        },
        Settings {
            nptv6: nptv6.nptv6,
            ..one_arm()
        },
        nptv6,
        Settings {
            snat: Snat::Pool(vec![ip("192.0.2.7"), ip("192.0.2.8")]),
            ..two_arms()
        },
        Settings {
            snat: Snat::None,
            ..two_arms()
        },
        super::overlay::settings(Encapsulation::Vxlan(vxlan)),
        super::overlay::settings(super::overlay::pair(true)),
        super::overlay::settings(super::overlay::pair(false)),
        super::overlay::settings(super::overlay::GENEVE),
    ])
}

/// Two addresses of one family, of the kinds that the engine tells apart.
fn addresses() -> impl Strategy<Value = (&'static str, &'static str)> {
    let v4 = vec![
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.1",
        "10.0.0.53",
        "10.0.7.2",
        "192.0.2.1",
        "192.0.2.7",
        "192.0.2.9",
        "198.51.100.1",
        "127.0.0.1",
        "169.254.0.9",
        "224.0.0.1",
        "240.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "172.16.0.1",
        "35.191.0.9",
    ];
    let v6 = vec![
        "fd00::2",
        "fd00::3",
        "fd00::1",
        "fd00:7::2",
        "fd00:9::2",
        "2001:db8::1",
        "2001:db8::9",
        "2001:db8:1::1",
        "2001:db8:77::1:2",
        "fe80::1",
        "ff02::1",
        "::",
        "::1",
    ];
    let two = |list: Vec<&'static str>| {
        let one = prop::sample::select(list);
        (one.clone(), one)
    };
    prop_oneof![two(v4), two(v6)]
}

/// What a packet says of itself, its addresses aside.
fn kind() -> impl Strategy<Value = (u8, u16, u16, Option<(u8, u8)>)> {
    let ports = prop::sample::select(vec![53u16, 80, 8080]);
    let icmp = prop::sample::select(vec![0u8, 5, 8, 11, 13, 14, 128, 129, 130]);
    prop_oneof![
        ports.clone().prop_map(|port| (6, 4000, port, None)),
        ports.prop_map(|port| (17, 4000, port, None)),
        Just((17, 67, 68, None)),
        icmp.clone().prop_map(|kind| (1, 0, 0, Some((kind, 0)))),
        icmp.prop_map(|kind| (58, 0, 0, Some((kind, 0)))),
        Just((47, 0, 0, None)),
    ]
}

/// The packet, made by other code.
fn frame_of(facts: &Facts) -> Frame {
    let (src, dst) = (facts.src, facts.dst);
    let ends = || ((src, facts.src_port).into(), (dst, facts.dst_port).into());
    match (facts.proto, facts.icmp) {
        (6, _) => Frame::tcp(ends().0, ends().1, SYN, 1, 0, b""),
        (17, _) => Frame::udp(ends().0, ends().1, b""),
        (_, Some((kind, code))) => {
            let quoted = Frame::udp((dst, 1).into(), (src, 2).into(), b"").emit();
            let payload = if kind == 11 { &quoted[14..] } else { b"" };
            Frame::icmp(src, dst, kind, code, 0x10000, payload)
        }
        (proto, None) => Frame::other(src, dst, proto, &[0; 8]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Watching changes nothing, whatever the bytes.
    #[test]
    fn a_watched_engine_does_the_same(
        settings in setup(),
        frames in prop::collection::vec((
            addresses(), kind(), 0usize..2, any::<[u8; 2]>(), prop::option::of((0usize..80, any::<u8>())), 0usize..120,
        ), 1..12),
    ) {
        let mut benches = [(), ()].map(|()| Bench::new(&allow_all(), settings.clone()));
        let watched = &mut benches[1];
        let all = watch(watched, 8, |wish| wish.snap = 2048).expect("watched");
        let drops = watch(watched, 8, |wish| wish.drops_only = true).expect("watched");
        let one = watch(watched, 8, |wish| {
            wish.filter.from = Some("10.0.0.2/32".parse().expect("a constant"));
        });
        let one = one.expect("watched");
        for ((src, dst), (proto, src_port, dst_port, icmp), port, word, flip, cut) in frames {
            let facts = Facts { src: ip(src), dst: ip(dst), proto, src_port, dst_port, icmp };
            let port = port.min(settings.ports.len() - 1);
            let frame = frame_of(&facts);
            let mut bytes = match settings.overlay {
                Some(overlay) if word[0] < 200 => {
                    super::overlay::wrapped(overlay.encapsulation, word[1] > 127, &frame)
                }
                _ => frame.between(PEER, MACS[port]).emit(),
            };
            if let Some((at, value)) = flip {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().max(cut) - cut.min(bytes.len() / 4));
            let sent = benches.each_mut().map(|bench| {
                bench.send_packet(port, MemoryPacket::new(bytes.clone()))
            });
            prop_assert_eq!(&sent[0], &sent[1]);
        }
        let moved = benches.each_mut().map(Bench::moved);
        prop_assert_eq!(&moved[0], &moved[1]);
        let dropped = moved[0].iter().any(|line| line.starts_with("drop "));
        prop_assert_eq!(!records(&drops).is_empty(), dropped, "{:?}", moved);
        prop_assert!(!records(&all).is_empty());
        records(&one);
    }

    /// What is foreseen happens.
    #[test]
    fn foresight_and_engine_agree(
        mut settings in setup(), (src, dst) in addresses(), (proto, src_port, dst_port, icmp) in kind(),
        port in 0usize..2, draining: bool, routeless: bool, ready: bool, reset: bool, allow: bool,
    ) {
        prop_assume!((proto != 1 || ip(src).is_ipv4()) && (proto != 58 || ip(src).is_ipv6()));
        settings.draining = draining;
        settings.probes = if ready { Probes::Ready } else { Probes::NotReady };
        if routeless {
            settings.ports.iter_mut().for_each(|port| port.gateways.clear());
        }
        let overlay = settings.overlay.map(|overlay| overlay.encapsulation);
        let rule = r#"{"id":"dns","action":"allow","match":{"proto":"udp","dst_ports":[53]}}"#;
        let (default, on_deny) = (["deny", "allow"][usize::from(allow)], ["drop", "reset"][usize::from(reset)]);
        let mut bench = Bench::new(&policy(default, on_deny, rule), settings);
        let snapshot = bench.published.load_full();
        let port = port.min(snapshot.arms() - 1);
        let facts = Facts { src: ip(src), dst: ip(dst), proto, src_port, dst_port, icmp };
        let probe = Probe { port: PortId(port as u8), facts };
        let foreseen = foresee(&snapshot, bench.now, &probe).expect("memory");

        let counts = |bench: &Bench| -> Vec<u64> {
            let count = |reason: &DropReason| bench.counters.dropped(*reason).packets.get();
            DropReason::ALL.iter().map(count).collect()
        };
        let before = counts(&bench);
        let frame = frame_of(&facts);
        let sent: Vec<(usize, Option<Frame>)> = match overlay {
            None => bench.send(port, frame).into_iter().map(|(port, f)| (port, Some(f))).collect(),
            Some(encapsulation) => {
                let bytes = super::overlay::wrapped(encapsulation, port == 1, &frame);
                let sent = bench.send_packet(INSIDE, MemoryPacket::new(bytes));
                sent.into_iter().map(|(port, _)| (port, None)).collect()
            }
        };
        let moved = before.iter().zip(counts(&bench)).map(|(before, after)| after > *before);
        let reasons: Vec<_> = DropReason::ALL.iter().zip(moved).filter(|(_, moved)| *moved).map(|(r, _)| *r).collect();
        let expected = match foreseen.fate {
            Fate::Drop(reason) => vec![reason],
            _ => vec![],
        };
        prop_assert_eq!(&reasons, &expected, "{:?} {:?}", &foreseen, &sent);
        let counters = &bench.counters;
        prop_assert_eq!(foreseen.resets, counters.resets_sent.get() > 0);
        prop_assert_eq!(foreseen.icmp_error, counters.icmp_errors_sent.get() > 0);
        let allowed = foreseen.decision.map(|decision| decision.allow);
        prop_assert_eq!(allowed == Some(false), reasons == [DropReason::PolicyDenied]);
        match foreseen.fate {
            Fate::Forward { port: out, translation } => {
                prop_assert_eq!(allowed, Some(true));
                prop_assert_eq!(counters.flows_opened.get(), 1);
                prop_assert_eq!(sent.len(), 1);
                if let (by, Some(frame)) = &sent[0] {
                    prop_assert_eq!(*by, usize::from(out.0));
                    prop_assert_eq!(foreseen.route.map(|(port, _)| port), Some(out));
                    match translation {
                        Translation::None => prop_assert_eq!(frame.src, ip(src)),
                        Translation::Prefix(address) => prop_assert_eq!(frame.src, address),
                        Translation::Port => {
                            prop_assert!(snapshot.translations_of(ip(src)).any(|a| a == frame.src));
                        }
                    }
                }
            }
            Fate::Local => prop_assert_eq!(sent.first().map(|(port, _)| *port), Some(LANE)),
            Fate::Reply => prop_assert!(sent.len() <= 1),
            Fate::Drop(_) => prop_assert_eq!(sent.len(), usize::from(foreseen.resets || foreseen.icmp_error)),
        }
    }
}
