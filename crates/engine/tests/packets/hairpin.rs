//! Clients that reach each other by what they look like outside.

use std::net::SocketAddr;
use std::time::Duration;

use super::bench::*;
use super::fragments::split;
use super::workers::Team;
use engine::DropReason;
use engine::port::Packet;
use engine::port::memory::MemoryPacket;
use engine::snapshot::{NatMapping, Nptv6, Settings, Snat};
use sim::frame::{ACK, Body, Frame, SYN};

/// Settings, two clients, and what they look like outside when they keep their ports.
struct Case {
    settings: Settings,
    clients: [SocketAddr; 2],
    shown: [SocketAddr; 2],
}

fn case(settings: Settings, clients: [&str; 2], shown: [&str; 2]) -> Case {
    Case {
        settings,
        clients: clients.map(at),
        shown: shown.map(at),
    }
}

fn independent(settings: Settings) -> Settings {
    Settings {
        nat_mapping: NatMapping::EndpointIndependent,
        ..settings
    }
}

fn cases() -> Vec<Case> {
    let v4 = ["10.0.0.2:5000", "10.0.0.3:6000"];
    let v6 = ["[fd00::2]:5000", "[fd00::3]:6000"];
    let nat66 = Settings {
        nat66: Some(Snat::Auto),
        ..two_arms()
    };
    let pool = Settings {
        snat: Snat::Pool(vec![ip("192.0.2.7")]),
        ..two_arms()
    };
    let nptv6 = Settings {
        nptv6: Some(Nptv6 {
            inside: "fd00::/64".parse().expect("valid by construction"),
            outside: "2001:db8:77::/64".parse().expect("valid by construction"),
        }),
        ..two_arms()
    };
    // What RFC 6296 makes of the clients' addresses.
    let mut bench = Bench::new(&allow_all(), nptv6.clone());
    let translated = v6.map(|client| {
        let question = Frame::udp(at(client), at("[2001:db8:1::1]:53"), b"q");
        let (_, out) = bench.one(INSIDE, question);
        SocketAddr::new(out.src, at(client).port()).to_string()
    });
    let outside = ["192.0.2.1:5000", "192.0.2.1:6000"];
    vec![
        case(two_arms(), v4, outside),
        case(independent(two_arms()), v4, outside),
        case(one_arm(), v4, ["10.0.0.1:5000", "10.0.0.1:6000"]),
        case(
            independent(one_arm()),
            v4,
            ["10.0.0.1:5000", "10.0.0.1:6000"],
        ),
        case(pool, v4, ["192.0.2.7:5000", "192.0.2.7:6000"]),
        case(nat66, v6, ["[2001:db8::1]:5000", "[2001:db8::1]:6000"]),
        case(nptv6, v6, [&translated[0], &translated[1]]),
    ]
}

#[test]
fn two_clients_that_ask_for_each_other_meet() {
    for c in cases() {
        let [one, other] = c.clients;
        let [seen_one, seen_other] = c.shown;
        let mut bench = Bench::new(&allow_all(), c.settings);
        let first = Frame::udp(other, seen_one, b"hello");
        bench.dropped(INSIDE, first.clone(), DropReason::HairpinNoFlow);
        let (by, out) = bench.one(INSIDE, Frame::udp(one, seen_other, b"hello"));
        let expected = Frame::udp(seen_one, other, b"hello").with_ttl(63);
        assert_eq!((by, out), (INSIDE, expected.between(MACS[INSIDE], PEER)));
        let (by, out) = bench.one(INSIDE, first);
        let expected = Frame::udp(seen_other, one, b"hello").with_ttl(63);
        assert_eq!((by, out), (INSIDE, expected.between(MACS[INSIDE], PEER)));
        assert_eq!(bench.counters.flows_active.get(), 2);
    }
}

#[test]
fn a_connection_is_opened_from_both_ends() {
    for mut c in cases() {
        c.settings.tcp_window_check = true;
        let [one, other] = c.clients;
        let [seen_one, seen_other] = c.shown;
        let mut bench = Bench::new(&allow_all(), c.settings);
        let syn = Frame::tcp(other, seen_one, SYN, 100, 0, b"");
        bench.dropped(INSIDE, syn, DropReason::HairpinNoFlow);
        let mut pass = |from: SocketAddr, to, flags, seq, ack, data: &[u8]| {
            let (by, out) = bench.one(INSIDE, Frame::tcp(from, to, flags, seq, ack, data));
            let receiver = if from == one { other } else { one };
            assert_eq!((by, out.dst), (INSIDE, receiver.ip()));
        };
        pass(one, seen_other, SYN, 500, 0, b"");
        pass(other, seen_one, SYN | ACK, 100, 501, b"");
        pass(one, seen_other, ACK, 501, 101, b"");
        pass(other, seen_one, ACK, 101, 501, b"data");
        pass(one, seen_other, ACK, 501, 105, b"more");
        // Nobody else's.
        let stray = Frame::tcp(other, seen_one, ACK, 9_000_101, 501, b"data");
        bench.dropped(INSIDE, stray, DropReason::TcpWindow);
    }
}

/// The error of a client about what reached it goes to the other, in that one's words.
#[test]
fn errors_turn_back_as_well() {
    for c in cases() {
        let [one, other] = c.clients;
        let [seen_one, seen_other] = c.shown;
        let mut bench = Bench::new(&allow_all(), c.settings);
        bench.send(INSIDE, Frame::udp(other, seen_one, b"hello"));
        let (_, reached) = bench.one(INSIDE, Frame::udp(one, seen_other, b"hello"));
        let (kind, code) = if one.is_ipv4() { (3, 3) } else { (1, 4) };
        let error = Frame::icmp(
            other.ip(),
            seen_one.ip(),
            kind,
            code,
            0,
            &reached.emit()[14..],
        );
        let (by, back) = bench.one(INSIDE, error);
        assert_eq!(
            (by, back.src, back.dst),
            (INSIDE, seen_other.ip(), one.ip())
        );
        let Body::Icmp { payload, .. } = back.body else {
            panic!("{back:?}")
        };
        let asked = Frame::udp(one, seen_other, b"hello").emit();
        let ends = if one.is_ipv4() { 12..24 } else { 8..44 };
        assert_eq!(payload[ends.clone()], asked[14..][ends]);
    }
}

/// One arm, and a client inside that has an address of the prefix outside: nothing of it is translated, so that what turns
/// back is what it was before.
#[test]
fn an_error_that_turning_back_does_not_change_ends_there() {
    let mut settings = Settings {
        nptv6: Some(Nptv6 {
            inside: "fd00::/64".parse().expect("valid by construction"),
            outside: "2001:db8:f::/64".parse().expect("valid by construction"),
        }),
        nat66: None,
        ..one_arm()
    };
    let (client, other) = (at("[2001:db8:f::5]:5000"), at("[2001:db8:f::6]:6000"));
    settings
        .internal
        .push("2001:db8:f::5/128".parse().expect("valid by construction"));
    let everyone = allow_all().replace("fd00::/16", "2001:db8:f::5/128");
    let mut bench = Bench::new(&everyone, settings);
    bench.dropped(
        INSIDE,
        Frame::udp(client, other, b"hello"),
        DropReason::HairpinNoFlow,
    );
    let quoted = Frame::udp(other, client, b"hello").emit();
    let error = Frame::icmp(client.ip(), other.ip(), 1, 4, 0, &quoted[14..]);
    bench.dropped(INSIDE, error, DropReason::HairpinNoFlow);
}

#[test]
fn nobody_is_reached_who_did_not_ask_or_may_not() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (one, other) = (at("10.0.0.2:5000"), at("10.0.0.3:6000"));
    let (seen_one, seen_other) = (at("192.0.2.1:5000"), at("192.0.2.1:6000"));
    // It has asked somebody else.
    bench.one(INSIDE, Frame::udp(one, at("198.51.100.1:53"), b"q"));
    bench.dropped(
        INSIDE,
        Frame::udp(other, seen_one, b"hello"),
        DropReason::HairpinNoFlow,
    );
    // A third one looks like another.
    bench.one(INSIDE, Frame::udp(one, seen_other, b"hello"));
    bench.dropped(
        INSIDE,
        Frame::udp(at("10.0.0.4:7000"), seen_one, b"hello"),
        DropReason::HairpinNoFlow,
    );
    // The policy judges either by the address that it sends to, also when it changes.
    bench.publish(&policy("deny", "drop", ""));
    bench.dropped(
        INSIDE,
        Frame::udp(other, seen_one, b"hello"),
        DropReason::PolicyChanged,
    );
    bench.dropped(
        INSIDE,
        Frame::udp(at("10.0.0.5:7000"), seen_one, b"hello"),
        DropReason::PolicyDenied,
    );
    // The node is still the node: from outside, by echo, by other protocols, and by its own address inside.
    bench.dropped(
        OUTSIDE,
        Frame::udp(at("198.51.100.9:53"), at("192.0.2.1:7777"), b""),
        DropReason::FromOutside,
    );
    let (_, echo) = bench.one(
        INSIDE,
        Frame::echo(ip("10.0.0.2"), ip("192.0.2.1"), false, 1, 1),
    );
    assert_eq!(echo.src, ip("192.0.2.1"));
    bench.dropped(
        INSIDE,
        Frame::udp(one, at("10.0.0.1:7777"), b""),
        DropReason::LocalUnserved,
    );
}

#[test]
fn pieces_turn_back_in_pieces() {
    for c in cases() {
        let [one, other] = c.clients;
        let [seen_one, seen_other] = c.shown;
        let mut bench = Bench::new(&allow_all(), c.settings);
        bench.send(INSIDE, Frame::udp(other, seen_one, b"hello"));
        let large = Frame::udp(one, seen_other, &[7; 2500]);
        let sent: Vec<_> = split(INSIDE, &large, 9, &[1000, 2000])
            .into_iter()
            .flat_map(|piece| bench.send_packet(INSIDE, MemoryPacket::new(piece)))
            .collect();
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|(port, _)| *port == INSIDE));
        let to = if one.is_ipv4() { 30..34 } else { 38..54 };
        let expected = Frame::udp(seen_one, other, b"").emit();
        assert_eq!(sent[0].1.bytes()[to.clone()], expected[to]);
    }
}

#[test]
fn a_process_that_takes_over_turns_them_back() {
    for c in cases() {
        let [one, other] = c.clients;
        let [seen_one, seen_other] = c.shown;
        let mut old = Bench::new(&allow_all(), c.settings.clone());
        old.send(INSIDE, Frame::udp(other, seen_one, b"hello"));
        old.one(INSIDE, Frame::udp(one, seen_other, b"hello"));
        let (mut new, imported) = old.succeed(&allow_all(), c.settings, Duration::ZERO);
        assert_eq!((imported.taken, imported.refused), (2, 0));
        let (_, out) = new.one(INSIDE, Frame::udp(other, seen_one, b"hello"));
        assert_eq!(out.dst, one.ip());
    }
}

#[test]
fn clients_meet_whoever_receives_their_packets() {
    for c in cases() {
        let mut team = Team::new(4, c.settings);
        let mut met = 0;
        for n in 0..60u16 {
            let [one, other] = [(c.clients[0], n), (c.clients[1], n)]
                .map(|(client, n)| SocketAddr::new(client.ip(), client.port() + n * 7));
            let server = match one.is_ipv4() {
                true => at("198.51.100.1:3478"),
                false => at("[2001:db8:1::1]:3478"),
            };
            // A server tells each what it looks like.
            let [seen_one, seen_other] = [one, other].map(|client| {
                let (_, out) = team.one(INSIDE, Frame::udp(client, server, b"who am I"));
                let Body::Udp { src_port, .. } = out.body else {
                    panic!("{out:?}")
                };
                SocketAddr::new(out.src, src_port)
            });
            assert_eq!(team.send(INSIDE, Frame::udp(other, seen_one, b"hello")), []);
            let reached = team.send(INSIDE, Frame::udp(one, seen_other, b"hello"));
            let [(INSIDE, out)] = &reached[..] else {
                // Only where a port towards one says nothing about that towards another.
                assert_eq!(reached, []);
                continue;
            };
            assert_eq!((out.src, out.dst), (seen_one.ip(), other.ip()));
            let (_, out) = team.one(INSIDE, Frame::udp(other, seen_one, b"hello"));
            assert_eq!((out.src, out.dst), (seen_other.ip(), one.ip()));
            let large = Frame::udp(other, seen_one, &[7; 2500]);
            for piece in split(INSIDE, &large, n.into(), &[1000, 2000]) {
                let worker = team.any();
                team.workers[worker].ports_mut()[INSIDE]
                    .rx
                    .push_back(MemoryPacket::new(piece));
            }
            assert_eq!(team.exchange_bytes().len(), 3);
            met += 1;
        }
        let settings = &team.settings;
        if settings.nat_mapping == NatMapping::EndpointIndependent || settings.nptv6.is_some() {
            assert_eq!(met, 60);
        }
    }
}
