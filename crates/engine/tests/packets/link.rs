//! ARP, neighbour discovery, and malformed frames of every protocol.

use std::time::Duration;

use super::bench::*;
use engine::DropReason;
use engine::port::Packet;
use engine::port::memory::MemoryPacket;
use proptest::prelude::*;
use sim::frame::{ACK, Body, Frame, SYN};

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut b = vec![0xff; 6];
    b.extend(PEER);
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    b.extend(PEER);
    b.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    b.extend(target);
    b
}

/// Everything the worker sends in one turn after this frame.
fn raw(bench: &mut Bench, port: usize, bytes: Vec<u8>) -> Vec<Vec<u8>> {
    bench.worker.ports_mut()[port]
        .rx
        .push_back(MemoryPacket::new(bytes));
    bench.worker.poll(bench.now);
    bench.worker.ports_mut()[port]
        .tx
        .drain(..)
        .map(|p| p.bytes().to_vec())
        .collect()
}

#[test]
fn arp_is_answered_for_our_addresses_only() {
    fn check(target: [u8; 4], answered: bool) {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let sent = raw(&mut bench, INSIDE, arp_request(target));
        assert_eq!(sent.len(), usize::from(answered), "{target:?}");
        if let Some(answer) = sent.first() {
            assert_eq!(answer[..14], [&PEER[..], &MACS[INSIDE], &[8, 6]].concat());
            assert_eq!(
                answer[20..42],
                [&[0, 2][..], &MACS[INSIDE], &target, &PEER, &[10, 0, 0, 2]].concat()
            );
        }
    }
    check([10, 0, 0, 1], true);
    check([10, 0, 0, 53], true);
    check([192, 0, 2, 1], true);
    check([10, 0, 0, 9], false);
}

#[test]
fn a_frame_is_counted_once_whatever_becomes_of_it() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let poll = |bench: &mut Bench, ms: u64| {
        bench.now = bench.now + Duration::from_millis(ms);
        bench.worker.poll(bench.now);
        bench.worker.ports_mut()[OUTSIDE].tx.clear();
        bench.moved()
    };
    let out = |n: u8| {
        let frame = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), &[n]);
        MemoryPacket::new(frame.between(PEER, MACS[INSIDE]).emit())
    };
    // Nobody answers for the next hop: 64 wait for it, and are dropped with it.
    bench.worker.ports_mut()[INSIDE].rx.extend((0..64).map(out));
    let opened = ["active +1", "nat +1", "opened +1"];
    assert_eq!(poll(&mut bench, 0), opened, "nothing is decided");
    bench.worker.ports_mut()[INSIDE].rx.push_back(out(64));
    assert_eq!(poll(&mut bench, 0), ["drop neighbor_queue_full +1"]);
    let moved: Vec<String> = (0..5).flat_map(|_| poll(&mut bench, 1000)).collect();
    assert!(
        moved.contains(&"drop neighbor_unreachable +64".to_string()),
        "{moved:?}"
    );
    assert!(!moved.iter().any(|m| m.starts_with("allow")), "{moved:?}");
    // Somebody does.
    bench.exchange_frames();
    bench.moved();
    bench.one(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b""),
    );
    assert_eq!(bench.moved(), ["allow out udp +1"]);
}

/// The addresses that are announced on the outside while time passes, at which times.
fn announced(bench: &mut Bench, seconds: u64) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for ms in (0..seconds * 1000).step_by(250) {
        bench.worker.poll(bench.now);
        bench.worker.ports_mut()[INSIDE].tx.clear();
        for packet in bench.worker.ports_mut()[OUTSIDE].tx.drain(..) {
            let frame = packet.bytes();
            let address = match frame[12..14] {
                [8, 6] if frame[28..32] == frame[38..42] => {
                    let raw: [u8; 4] = frame[28..32].try_into().expect("as long");
                    std::net::IpAddr::from(raw).to_string()
                }
                [0x86, 0xdd] if frame[54] == 136 => {
                    let raw: [u8; 16] = frame[62..78].try_into().expect("as long");
                    std::net::IpAddr::from(raw).to_string()
                }
                _ => continue,
            };
            all.push((ms / 1000, address));
        }
        bench.now = bench.now + Duration::from_millis(250);
    }
    all
}

#[test]
fn addresses_are_announced_when_they_are_new_and_when_the_link_comes_up() {
    let at = |all: &[(u64, &str)]| -> Vec<(u64, String)> {
        all.iter().map(|(s, a)| (*s, (*a).to_string())).collect()
    };
    let mut bench = Bench::new(&allow_all(), two_arms());
    announced(&mut bench, 5);
    // What sources are translated to counts, if it is on the link; once more a little later.
    bench.reconfigure(|s| {
        s.snat = engine::snapshot::Snat::Pool(vec![ip("192.0.2.77"), ip("203.0.113.7")]);
    });
    let own = ["192.0.2.1", "2001:db8::1", "192.0.2.77"];
    let again = own.map(|a| (2, a));
    let all = announced(&mut bench, 10);
    assert_eq!(all, at(&[&[(0, "192.0.2.77")], &again[..]].concat()));

    let link = |bench: &mut Bench, up| {
        use engine::port::Link;
        bench.worker.ports_mut()[OUTSIDE].link = if up { Link::Up } else { Link::Down };
        announced(bench, 1)
    };
    assert_eq!(link(&mut bench, false), []);
    let mut all = link(&mut bench, true);
    all.extend(announced(&mut bench, 10));
    let twice = [own.map(|a| (0, a)), own.map(|a| (1, a))].concat();
    assert_eq!(all, at(&twice));
    // A link that flaps is told no more often.
    let flaps = (0..10).flat_map(|_| [link(&mut bench, false), link(&mut bench, true)]);
    let told = flaps.flatten().count();
    assert!((1..=10 * own.len()).contains(&told), "{told}");
}

#[test]
fn a_port_that_gets_another_address_uses_and_announces_it() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let question = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"q");
    bench.one(INSIDE, question.clone());
    announced(&mut bench, 5);
    let (old, new) = (MACS[OUTSIDE], [2, 0, 0, 0, 0, 0x42]);
    bench.worker.ports_mut()[OUTSIDE].reset(new, 1500);
    let own = ["192.0.2.1", "2001:db8::1"];
    let told = announced(&mut bench, 5);
    let twice = [
        own.map(|a| (0, a.to_string())),
        own.map(|a| (2, a.to_string())),
    ];
    assert_eq!(told, twice.concat());
    let (_, out) = bench.one(INSIDE, question);
    assert_eq!(out.src_mac, new);
    let answer = Frame::udp(at("198.51.100.1:53"), at("192.0.2.1:5000"), b"a");
    let mut to = |mac| {
        bench
            .send_bytes(OUTSIDE, answer.clone().between(PEER, mac).emit())
            .len()
    };
    assert_eq!((to(old), to(new)), (0, 1));
    assert_eq!(
        bench.counters.dropped(DropReason::NotForUs).packets.get(),
        1
    );
    // The other port is as it was.
    let echo = Frame::echo(ip("10.0.0.2"), ip("10.0.0.1"), false, 1, 1);
    assert_eq!(bench.one(INSIDE, echo).1.src_mac, MACS[INSIDE]);
}

#[test]
fn a_link_that_carries_more_or_less_than_before_is_followed() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let fits = |bench: &mut Bench, mtu: u16, len: usize| {
        bench.worker.ports_mut()[OUTSIDE].reset(MACS[OUTSIDE], mtu);
        bench.pass(Duration::from_millis(250));
        // Headers take 28 bytes.
        let frame = Frame::udp(
            at("10.0.0.2:5000"),
            at("198.51.100.1:53"),
            &vec![0; len - 28],
        );
        let (port, _) = bench.one(INSIDE, frame.with_df());
        port == OUTSIDE
    };
    assert!(fits(&mut bench, 1500, 1500));
    assert!(!fits(&mut bench, 1000, 1001), "the sender is told");
    assert!(fits(&mut bench, 1000, 1000));
    assert!(fits(&mut bench, 9000, 9000));
    // What the link is told to carry holds still.
    bench.reconfigure(|s| s.ports[OUTSIDE].mtu = Some(1400));
    assert!(!fits(&mut bench, 9000, 1401));
    assert!(!fits(&mut bench, 8000, 1401));
    assert!(fits(&mut bench, 8000, 1400));
    assert!(!fits(&mut bench, 1300, 1400));
}

/// When, in tenths of a second, to whom, the type, and the groups, each with the kind of its record.
type Told = (u64, String, u8, Vec<(u8, String)>);

/// What is said on the outside while time passes of where the node listens.
fn listened(bench: &mut Bench, tenths: u64) -> Vec<Told> {
    let group = |raw: &[u8]| {
        let raw: [u8; 16] = raw.try_into().expect("as long");
        std::net::Ipv6Addr::from(raw).to_string()
    };
    let mut all = Vec::new();
    for tenth in 0..tenths {
        bench.worker.poll(bench.now);
        bench.worker.ports_mut()[INSIDE].tx.clear();
        for packet in bench.worker.ports_mut()[OUTSIDE].tx.drain(..) {
            let mut b = packet.bytes().to_vec();
            if b[12..14] != [0x86, 0xdd] || b[20] != 0 {
                continue;
            }
            // A router alert, which the test's parser does not know.
            let alert: Vec<u8> = b.drain(54..62).collect();
            assert_eq!(alert, [58, 0, 5, 2, 0, 0, 1, 0]);
            b[20] = 58;
            let len = u16::from_be_bytes([b[18], b[19]]) - 8;
            b[18..20].copy_from_slice(&len.to_be_bytes());
            let frame = Frame::parse(&b).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((frame.ttl, frame.src_mac), (1, MACS[OUTSIDE]));
            assert_eq!(frame.src, ip("fe80::ff:fe00:2"));
            assert_eq!(frame.dst_mac, [&[0x33, 0x33][..], &b[50..54]].concat()[..]);
            let Body::Icmp {
                icmp_type,
                rest,
                payload,
                ..
            } = frame.body
            else {
                panic!("{frame:?}")
            };
            let groups: Vec<_> = match icmp_type {
                143 => payload.chunks(20).map(|r| (r[0], group(&r[4..]))).collect(),
                _ => vec![(0, group(&payload))],
            };
            assert!(icmp_type == 131 || rest as usize == groups.len());
            all.push((tenth, frame.dst.to_string(), icmp_type, groups));
        }
        bench.now = bench.now + Duration::from_millis(100);
    }
    all
}

/// A query of version 2, or 1, for all groups or one.
fn query(version: u8, within_ms: u16, group: &str) -> Vec<u8> {
    let group: std::net::Ipv6Addr = group.parse().expect("a constant");
    let mut payload = group.octets().to_vec();
    if version == 2 {
        payload.extend([2, 125, 0, 0]);
    }
    let rest = u32::from(within_ms) << 16;
    let query = Frame::icmp(ip("fe80::9"), ip("ff02::1"), 130, 0, rest, &payload);
    let query = query.with_ttl(1).between(PEER, [0x33, 0x33, 0, 0, 0, 1]);
    let mut b = query.emit();
    b[20] = 0;
    let len = u16::from_be_bytes([b[18], b[19]]) + 8;
    b[18..20].copy_from_slice(&len.to_be_bytes());
    b.splice(54..54, [58, 0, 5, 2, 0, 0, 1, 0]);
    b
}

/// The groups in which the outside asks for us: of the port's own address, and of 2001:db8::1.
const GROUPS: [&str; 2] = ["ff02::1:ff00:2", "ff02::1:ff00:1"];

fn records(kind: u8, groups: &[&str]) -> Vec<(u8, String)> {
    groups.iter().map(|g| (kind, (*g).to_string())).collect()
}

#[test]
fn switches_are_told_where_others_ask_for_our_addresses() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    listened(&mut bench, 50);
    let begun = |at, groups: &[&str]| (at, "ff02::16".to_string(), 143, records(4, groups));
    // A link that comes up.
    for link in [engine::port::Link::Down, engine::port::Link::Up] {
        bench.worker.ports_mut()[OUTSIDE].link = link;
        bench.now = bench.now + Duration::from_millis(250);
        bench.worker.poll(bench.now);
    }
    let told = listened(&mut bench, 50);
    assert_eq!(told, [begun(0, &GROUPS), begun(20, &GROUPS)]);
    // Another address; and one in a group that is known, which is heard of by its announcement alone.
    bench.reconfigure(|s| {
        let more = ["2001:db8::aa:1/64", "2001:db8::bb:0:1/64"];
        let more: [ipnet::IpNet; 2] = more.map(|net| net.parse().expect("a constant"));
        s.ports[OUTSIDE].addresses.extend(more);
    });
    let three = ["ff02::1:ff00:2", "ff02::1:ff00:1", "ff02::1:ffaa:1"];
    let told = listened(&mut bench, 50);
    assert_eq!(told, [begun(0, &three), begun(20, &three)]);
    // What the host serves is asked for as well.
    bench.reconfigure(|s| {
        s.ports[OUTSIDE].addresses.truncate(2);
        s.services.push(engine::snapshot::LocalService {
            address: ip("2001:db8::cc:53"),
            ports: vec![53],
        });
    });
    let served = ["ff02::1:ff00:2", "ff02::1:ff00:1", "ff02::1:ffcc:53"];
    let told = listened(&mut bench, 50);
    assert_eq!(told, [begun(0, &served), begun(20, &served)]);
}

#[test]
fn who_asks_where_we_listen_is_answered_once_in_time_and_in_their_version() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    listened(&mut bench, 50);
    let mut ask = |queries: &[Vec<u8>]| {
        for query in queries {
            raw(&mut bench, OUTSIDE, query.clone());
        }
        let told = listened(&mut bench, 20);
        assert!(told.iter().all(|(tenth, ..)| *tenth <= 10), "{told:?}");
        told.into_iter()
            .map(|(_, to, kind, groups)| (to, kind, groups))
            .collect::<Vec<_>>()
    };
    let all = vec![("ff02::16".to_string(), 143, records(2, &GROUPS))];
    assert_eq!(ask(&[query(2, 1000, "::")]), all);
    assert_eq!(ask(&[query(2, 1000, "::"), query(2, 1000, "::")]), all);
    assert_eq!(ask(&[query(2, 1, GROUPS[1])]), all);
    assert_eq!(ask(&[query(2, 1000, GROUPS[0])]), all);
    assert_eq!(ask(&[query(2, 1000, "ff02::1:ff00:3")]), []);
    let each = GROUPS.map(|g| (g.to_string(), 131, records(0, &[g])));
    assert_eq!(ask(&[query(1, 1000, "::")]), each);
}

#[test]
fn a_query_that_is_none_is_dropped() {
    let check = |reason: DropReason, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bench = Bench::new(&allow_all(), two_arms());
        listened(&mut bench, 50);
        let mut b = query(2, 1000, "::");
        change(&mut b);
        raw(&mut bench, OUTSIDE, b);
        assert_eq!(
            bench.counters.dropped(reason).packets.get(),
            1,
            "{reason:?}"
        );
        assert_eq!(listened(&mut bench, 20), []);
    };
    check(DropReason::Multicast, &|b| b[21] = 255); // from afar
    check(DropReason::Multicast, &|b| b[22] = 0x20); // of no link
    check(DropReason::Multicast, &|b| b[56] = 1); // no router alert
    check(DropReason::BadChecksum, &|b| b[66] ^= 1);
}

#[test]
fn only_what_is_answered_counts_as_a_reply() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let counted = |bench: &Bench| (bench.counters.replied.get(), bench.counters.consumed.get());
    let before = counted(&bench);
    raw(&mut bench, INSIDE, arp_request([10, 0, 0, 1]));
    assert_eq!(counted(&bench), (before.0 + 1, before.1));
    // An answer, which nobody answers.
    let mut answer = arp_request([10, 0, 0, 1]);
    answer[21] = 2;
    raw(&mut bench, INSIDE, answer);
    assert_eq!(counted(&bench), (before.0 + 1, before.1 + 1));
    let echo = Frame::echo(ip("10.0.0.2"), ip("10.0.0.1"), false, 1, 1);
    bench.one(INSIDE, echo);
    assert_eq!(counted(&bench), (before.0 + 2, before.1 + 1));
}

#[test]
fn a_solicitation_is_answered() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let ours: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
    let solicit = |ttl: u8| {
        let mut payload = ours.octets().to_vec();
        payload.extend([1, 1]);
        payload.extend(PEER);
        let group = ip("ff02::1:ff00:1");
        Frame::icmp(ip("fd00::2"), group, 135, 0, 0, &payload)
            .with_ttl(ttl)
            .between(PEER, [0x33, 0x33, 0xff, 0, 0, 1])
            .emit()
    };
    let sent = raw(&mut bench, INSIDE, solicit(255));
    let answer = Frame::parse(&sent[0]).unwrap();
    assert_eq!(
        (answer.src, answer.dst, answer.ttl),
        (ip("fd00::1"), ip("fd00::2"), 255)
    );
    let Body::Icmp {
        icmp_type: 136,
        rest,
        ..
    } = answer.body
    else {
        panic!("{answer:?}")
    };
    assert_eq!(rest, 0xe000_0000, "router, solicited, override");

    assert!(
        raw(&mut bench, INSIDE, solicit(254)).is_empty(),
        "a message from afar"
    );
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::NeighborDiscovery)
            .packets
            .get(),
        1
    );
}

/// Flags of an advertisement.
const SOLICITED: u32 = 0x4000_0000;
const OVERRIDE: u32 = 0x2000_0000;

/// An advertisement that the first address is at this station.
fn advertisement(target: &str, to: &str, flags: u32, mac: Option<[u8; 6]>) -> Frame {
    let address: std::net::Ipv6Addr = target.parse().expect("a constant");
    let mut payload = address.octets().to_vec();
    if let Some(mac) = mac {
        payload.extend([2, 1]);
        payload.extend(mac);
    }
    Frame::icmp(address.into(), ip(to), 136, 0, flags, &payload).with_ttl(255)
}

#[test]
fn a_neighbor_that_answers_without_its_address_is_kept() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let packet = Frame::udp(at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"), b"q");
    bench.one(INSIDE, packet.clone());
    let bytes = packet.between(PEER, MACS[INSIDE]).emit();
    let answer = advertisement("2001:db8::fe", "2001:db8::1", SOLICITED, None);
    let answer = answer.between(PEER, MACS[OUTSIDE]).emit();
    let mut questions = 0;
    for _ in 0..100 {
        bench.now = bench.now + Duration::from_secs(1);
        raw(&mut bench, INSIDE, bytes.clone());
        let [_, outside] = bench.worker.ports_mut() else {
            panic!("two arms")
        };
        let sent: Vec<_> = outside.tx.drain(..).collect();
        for question in sent.iter().filter(|p| p.bytes().get(54) == Some(&135)) {
            assert_eq!(question.bytes()[..6], PEER, "itself, not all");
            questions += 1;
            outside.rx.push_back(MemoryPacket::new(answer.clone()));
        }
    }
    assert!((2..=4).contains(&questions), "{questions}");
}

#[test]
fn neighbor_discovery_that_rfcs_forbid_is_dropped_and_teaches_nothing() {
    let check = |dst_mac: [u8; 6], frame: Frame, change: &dyn Fn(&mut Vec<u8>), allowed: bool| {
        let mut bench = Bench::new(&allow_all(), two_arms());
        bench.pass(Duration::from_secs(5));
        let mut bytes = frame.between(PEER, dst_mac).emit();
        change(&mut bytes);
        let answers = raw(&mut bench, INSIDE, bytes).len();
        let dropped = bench.counters.dropped(DropReason::NeighborDiscovery);
        let counted = (answers, dropped.packets.get());
        assert_eq!(counted, if allowed { (1, 0) } else { (0, 1) });
    };
    let (us, group, group_mac) = ("fd00::1", "ff02::1:ff00:1", [0x33, 0x33, 0xff, 0, 0, 1]);
    let ask = |src: &str, dst: &str, mac: Option<[u8; 6]>| {
        let ours: std::net::Ipv6Addr = us.parse().expect("a constant");
        let mut payload = ours.octets().to_vec();
        if let Some(mac) = mac {
            payload.extend([1, 1]);
            payload.extend(mac);
        }
        Frame::icmp(ip(src), ip(dst), 135, 0, 0, &payload).with_ttl(255)
    };
    let as_is = |_: &mut Vec<u8>| {};
    let atomic = |b: &mut Vec<u8>| {
        b.splice(54..54, [58, 0, 0, 0, 0, 0, 0, 7]);
        b[20] = 44;
        b[19] += 8;
    };
    check(group_mac, ask("fd00::2", group, Some(PEER)), &as_is, true);
    check(group_mac, ask("fd00::2", group, Some(PEER)), &atomic, false);
    check(group_mac, ask("::", group, None), &as_is, true);
    check(group_mac, ask("::", group, Some(PEER)), &as_is, false);
    check(MACS[INSIDE], ask("::", us, None), &as_is, false);
    let all = advertisement("fd00::2", "ff02::1", SOLICITED | OVERRIDE, Some(PEER));
    check([0x33, 0x33, 0, 0, 0, 1], all, &as_is, false);
}

#[test]
fn a_claim_to_any_announced_address_is_counted_and_answered_now_and_then() {
    let mut settings = two_arms();
    settings.snat = engine::snapshot::Snat::Pool(vec![ip("192.0.2.77")]);
    let mut bench = Bench::new(&allow_all(), settings);
    bench.pass(Duration::from_secs(60));
    let claim4 = |address: [u8; 4]| {
        let mut b = arp_request(address);
        b[28..32].copy_from_slice(&address);
        b
    };
    let claim6 = |from| {
        let claim = advertisement("2001:db8::1", "ff02::1", OVERRIDE, Some(PEER));
        claim.between(from, [0x33, 0x33, 0, 0, 0, 1]).emit()
    };
    let claims = [
        claim4([192, 0, 2, 1]),
        claim4([192, 0, 2, 77]),
        claim6(PEER),
    ];
    let mut answers = |seconds| {
        bench.now = bench.now + Duration::from_secs(seconds);
        claims
            .clone()
            .map(|claim| raw(&mut bench, OUTSIDE, claim).len())
    };
    let all = [answers(0), answers(1), answers(10)];
    assert_eq!(all, [[1; 3], [0; 3], [1; 3]]);
    assert_eq!(bench.counters.address_conflicts.get(), 9);
    // A switch gives back what we have said ourselves.
    bench.now = bench.now + Duration::from_secs(60);
    assert!(raw(&mut bench, OUTSIDE, claim6(MACS[OUTSIDE])).is_empty());
    assert_eq!(bench.counters.address_conflicts.get(), 9);
}

#[test]
fn what_is_to_a_group_goes_nowhere_whatever_its_ports_are() {
    for ports in [(5000, 53), (67, 68)] {
        for (dst, mac) in [
            ("224.0.0.1", [1, 0, 0x5e, 0, 0, 1]),
            ("239.1.1.1", MACS[INSIDE]),
            ("255.255.255.255", [0xff; 6]),
            ("198.51.100.1", [0xff; 6]),
        ] {
            let mut bench = Bench::new(&allow_all(), two_arms());
            let frame = Frame::udp(
                (ip("10.0.0.2"), ports.0).into(),
                (ip(dst), ports.1).into(),
                b"x",
            );
            let sent = bench.send_bytes(INSIDE, frame.between(PEER, mac).emit());
            assert_eq!(sent, [], "{dst} {ports:?}");
            assert_eq!(bench.moved(), ["drop multicast +1"], "{dst} {ports:?}");
        }
    }
}

#[test]
fn packets_wait_for_their_next_hop_in_order() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    for i in 0..3u8 {
        let frame = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), &[i])
            .between(PEER, MACS[INSIDE]);
        bench.worker.ports_mut()[INSIDE]
            .rx
            .push_back(MemoryPacket::new(frame.emit()));
    }
    bench.worker.poll(bench.now);
    let asked = bench.worker.ports_mut()[OUTSIDE].tx.drain(..).count();
    assert_eq!(asked, 1, "one question, and nothing else");
    let mut answer = arp_request([192, 0, 2, 1]);
    answer[21] = 2;
    answer[28..32].copy_from_slice(&[192, 0, 2, 254]);
    answer[32..38].copy_from_slice(&MACS[OUTSIDE]);
    let payloads: Vec<u8> = raw(&mut bench, OUTSIDE, answer)
        .iter()
        .map(|b| *b.last().unwrap())
        .collect();
    assert_eq!(payloads, [0, 1, 2]);
}

#[test]
fn a_router_outside_the_prefix_is_resolved_where_it_is_said_to_be_on_the_link() {
    let mut settings = two_arms();
    let net = |s: &str| s.parse::<ipnet::IpNet>().expect("a constant");
    settings.ports[OUTSIDE].addresses[0] = net("192.0.2.1/32");
    settings.ports[OUTSIDE].on_link = vec![net("192.0.2.254/32")];
    let mut bench = Bench::new(&allow_all(), settings);
    let question = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"q");
    let (port, out) = bench.one(INSIDE, question);
    assert_eq!((port, out.dst_mac), (OUTSIDE, PEER));
}

#[test]
fn what_waits_in_vain_is_dropped_and_counted() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    // What is announced at the start has been.
    bench.pass(Duration::from_secs(60));
    for i in 0..100 {
        let frame = Frame::udp(
            (ip("10.0.0.2"), 5000 + i).into(),
            at("198.51.100.1:53"),
            b"",
        );
        let bytes = frame.between(PEER, MACS[INSIDE]).emit();
        bench.worker.ports_mut()[INSIDE]
            .rx
            .push_back(MemoryPacket::new(bytes));
    }
    let mut questions = 0;
    for _ in 0..20 {
        bench.worker.poll(bench.now);
        bench.now = bench.now + Duration::from_millis(500);
        questions += bench.worker.ports_mut()[OUTSIDE].tx.drain(..).count();
    }
    assert_eq!(questions, 3);
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::NeighborQueueFull)
            .packets
            .get(),
        36
    );
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::NeighborUnreachable)
            .packets
            .get(),
        64
    );
}

#[test]
fn frames_that_are_not_ours_to_handle() {
    fn check(change: impl Fn(&mut Vec<u8>), expected: DropReason) {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let frame = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"x");
        let mut bytes = frame.between(PEER, MACS[INSIDE]).emit();
        change(&mut bytes);
        assert_eq!(bench.send_bytes(INSIDE, bytes), []);
        assert_eq!(
            bench.counters.dropped(expected).packets.get(),
            1,
            "{expected:?} {:?}",
            bench.moved()
        );
    }
    check(|b| b[5] = 9, DropReason::NotForUs);
    check(|b| b[..6].fill(0xff), DropReason::Multicast);
    check(|b| b[12] = 0x99, DropReason::UnknownEthertype);
    check(
        |b| b[12..14].copy_from_slice(&[0x81, 0]),
        DropReason::VlanTagged,
    );
    check(|b| b.truncate(13), DropReason::Truncated);
    check(|b| b.truncate(30), DropReason::Truncated);
    check(|b| b[22] = 0, DropReason::BadChecksum);
}

#[test]
fn what_a_port_loses_and_whether_it_is_up_is_counted() {
    use engine::port::{Link, Port};
    let mut bench = Bench::new(&allow_all(), two_arms());
    let look = |bench: &mut Bench| {
        bench.now = bench.now + Duration::from_millis(300);
        bench.worker.poll(bench.now);
    };
    bench.send(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"x"),
    );
    bench.worker.ports_mut()[OUTSIDE].link = Link::Down;
    bench.send(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"x"),
    );
    look(&mut bench);
    let ports = bench.counters.ports();
    assert_eq!(ports.len(), 2);
    assert_eq!(
        (ports[INSIDE].link(), ports[OUTSIDE].link()),
        (Link::Up, Link::Down)
    );
    assert_eq!(
        ports[OUTSIDE].tx_dropped.get(),
        bench.worker.ports()[OUTSIDE].stats().tx_dropped
    );
    assert!(ports[OUTSIDE].tx_dropped.get() > 0);
    bench.worker.ports_mut()[OUTSIDE].link = Link::Up;
    look(&mut bench);
    assert_eq!(bench.counters.ports()[OUTSIDE].link(), Link::Up);
}

fn valid_frame() -> impl Strategy<Value = Vec<u8>> {
    let v4 = (at("10.0.0.2:5000"), at("198.51.100.1:53"));
    let v6 = (at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"));
    let both = [v4, v6].into_iter().flat_map(|(c, s)| {
        let error = if c.is_ipv4() { (3, 1) } else { (1, 4) };
        let quoted = Frame::udp(s, c, b"12345678").emit()[14..].to_vec();
        let mut solicit = "fd00::1"
            .parse::<std::net::Ipv6Addr>()
            .expect("a constant")
            .octets()
            .to_vec();
        solicit.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        [
            Frame::udp(c, s, b"some payload"),
            Frame::tcp(c, s, SYN, 1, 0, b""),
            Frame::tcp(c, s, ACK, 2, 1, b"data"),
            Frame::echo(c.ip(), s.ip(), false, 7, 1),
            Frame::icmp(c.ip(), s.ip(), error.0, error.1, 0, &quoted),
            Frame::icmp(ip("fd00::2"), ip("fd00::1"), 135, 0, 0, &solicit).with_ttl(255),
            Frame::other(c.ip(), s.ip(), 47, b"gre"),
        ]
    });
    let mut frames: Vec<Vec<u8>> = both.map(|f| f.between(PEER, MACS[INSIDE]).emit()).collect();
    frames.push(arp_request([10, 0, 0, 1]));
    proptest::sample::select(frames)
}

/// A valid frame, the places and values of bytes that are changed in it, a length to cut it to if it is below 100, and the
/// port that it comes from.
type Mutated = (Vec<u8>, Vec<(usize, u8)>, usize, usize);

/// Has a worker take these frames, and checks that each has one verdict.
fn check_verdicts(frames: Vec<Mutated>) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let sent = frames.len() as u64;
    for (mut bytes, changes, len, port) in frames {
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if len < 100 {
            bytes.truncate(len);
        }
        let frame = MemoryPacket::new(bytes);
        bench.worker.ports_mut()[port].rx.push_back(frame);
    }
    bench.worker.poll(bench.now);
    let c = std::sync::Arc::clone(&bench.counters);
    let mut verdicts = c.replied.get();
    for reason in DropReason::ALL {
        verdicts += c.dropped(*reason).packets.get();
    }
    // Frames wait for their next hops, which answer or not, and a piece of a datagram for the rest, which never comes.
    let late = || {
        use engine::counters::{Direction, Protocol::*};
        let mut late = c.fragments.get();
        late += c.dropped(DropReason::NeighborUnreachable).packets.get();
        for d in [Direction::Outbound, Direction::Inbound] {
            let allowed = [Tcp, Udp, Icmp, Other].map(|p| c.allowed(d, p).packets);
            late += allowed.iter().sum::<u64>();
        }
        late
    };
    let already = c.fragments.get() + c.dropped(DropReason::NeighborUnreachable).packets.get();
    bench.pass(Duration::from_secs(60));
    verdicts += late() - already;
    prop_assert_eq!(verdicts, sent);
    Ok(())
}

/// Two changed bytes made a fragment of a segment, with the right checksum.
#[test]
fn a_mutated_frame_that_waits_for_the_rest_of_its_datagram_is_counted_too() {
    let segment = Frame::tcp(
        at("10.0.0.2:5000"),
        at("198.51.100.1:53"),
        ACK,
        2,
        1,
        b"data",
    );
    let bytes = segment.between(PEER, MACS[INSIDE]).emit();
    check_verdicts(vec![(bytes, vec![(20, 43), (24, 27)], 58, 0)]).unwrap();
}

proptest! {
    /// Whatever bytes come, each frame gets one verdict and the worker lives.
    #[test]
    fn mutated_frames_are_counted_and_do_no_harm(
        frames in proptest::collection::vec(
            (valid_frame(), proptest::collection::vec((0usize..90, any::<u8>()), 0..4), 0usize..120, 0usize..2),
            1..20,
        ),
    ) {
        check_verdicts(frames)?;
    }
}
