//! ICMP errors: passed on, and originated.

use super::bench::*;
use engine::DropReason;
use engine::Event;
use engine::port::memory::MemoryPacket;
use sim::frame::{Body, Frame};

/// A packet from its IP header on.
fn quoted(frame: &Frame) -> Vec<u8> {
    frame.emit()[14..].to_vec()
}

/// Reads a quoted packet, checksums and all.
fn read_quoted(payload: &[u8], v6: bool) -> Frame {
    let mut bytes = vec![0; 12];
    bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    bytes.extend(payload);
    Frame::parse(&bytes).expect("right in every checksum")
}

#[test]
fn errors_about_a_flow_are_translated_both_ways() {
    for (client, server, router, v6) in [
        ("10.0.0.2:5000", "198.51.100.1:53", "203.0.113.9", false),
        (
            "[fd00::2]:5000",
            "[2001:db8:1::1]:53",
            "2001:db8:9::9",
            true,
        ),
    ] {
        let mut settings = two_arms();
        settings.nat66 = Some(engine::snapshot::Snat::Auto);
        let mut bench = Bench::new(&allow_all(), settings);
        let (c, s) = (at(client), at(server));
        let sent = Frame::udp(c, s, b"question");
        let (_, out) = bench.one(INSIDE, sent.clone());
        let (time_exceeded, unreachable) = if v6 {
            ((3, 0), (1, 4))
        } else {
            ((11, 0), (3, 3))
        };

        // A router on the way, to the client.
        let (t, code) = time_exceeded;
        let error = Frame::icmp(ip(router), out.src, t, code, 0, &quoted(&out));
        let (port, passed) = bench.one(OUTSIDE, error);
        assert_eq!((port, passed.src, passed.dst), (INSIDE, ip(router), c.ip()));
        let Body::Icmp {
            icmp_type, payload, ..
        } = passed.body
        else {
            panic!("no ICMP")
        };
        assert_eq!(icmp_type, t);
        let inner = read_quoted(&payload, v6);
        assert_eq!((inner.src, &inner.body), (c.ip(), &sent.body));

        // The client, to the server.
        let (_, back) = bench.one(OUTSIDE, Frame::udp(s, (out.src, 5000).into(), b"answer"));
        let (t, code) = unreachable;
        let error = Frame::icmp(c.ip(), s.ip(), t, code, 0, &quoted(&back));
        let (port, passed) = bench.one(INSIDE, error);
        assert_eq!((port, passed.src, passed.dst), (OUTSIDE, out.src, s.ip()));
        let Body::Icmp { payload, .. } = passed.body else {
            panic!("no ICMP")
        };
        let inner = read_quoted(&payload, v6);
        assert_eq!((inner.src, inner.dst), (s.ip(), out.src));
        assert_eq!(bench.counters.icmp_errors_translated.get(), 2);
    }
}

/// The frames that come out until a neighbour that nobody answers for has been given up.
fn wait_in_vain(bench: &mut Bench, from: usize, frame: &Frame) -> Vec<(usize, Frame)> {
    use engine::port::Packet;
    let packet = MemoryPacket::new(frame.clone().between(PEER, MACS[from]).emit());
    bench.worker.ports_mut()[from].rx.push_back(packet);
    let mut sent = Vec::new();
    for _ in 0..6 {
        bench.worker.poll(bench.now);
        for port in [INSIDE, OUTSIDE] {
            let frames: Vec<_> = bench.worker.ports_mut()[port].tx.drain(..).collect();
            for packet in frames {
                match neighbor_answer(packet.bytes()) {
                    // The sender's own link is there.
                    Some(Some(answer)) if port == from => {
                        let answer = MemoryPacket::new(answer);
                        bench.worker.ports_mut()[port].rx.push_back(answer);
                    }
                    Some(_) => {}
                    None => sent.push((port, Frame::parse(packet.bytes()).expect("sound"))),
                }
            }
        }
        bench.now = bench.now + std::time::Duration::from_secs(1);
    }
    for _ in 0..3 {
        sent.extend(bench.exchange_frames());
    }
    sent
}

#[test]
fn a_next_hop_that_does_not_answer_makes_the_sender_hear_of_it() {
    for (client, server, error) in [
        ("10.0.0.2:5000", "192.0.2.9:53", (3, 1)),
        ("[fd00::2]:5000", "[2001:db8::9]:53", (1, 3)),
    ] {
        let mut settings = two_arms();
        settings.nat66 = Some(engine::snapshot::Snat::Auto);
        let mut bench = Bench::new(&allow_all(), settings);
        let (c, s) = (at(client), at(server));
        let question = Frame::udp(c, s, b"question");
        let sent = wait_in_vain(&mut bench, INSIDE, &question);
        let [(port, told)] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!((*port, told.dst, told.dst_mac), (INSIDE, c.ip(), PEER));
        let Body::Icmp {
            icmp_type,
            code,
            payload,
            ..
        } = &told.body
        else {
            panic!("{told:?}")
        };
        assert_eq!((*icmp_type, *code), error);
        // As it was before it was translated.
        let inner = read_quoted(payload, c.is_ipv6());
        assert_eq!((inner.src, inner.dst), (c.ip(), s.ip()));
        assert_eq!(inner.body, question.body);
        let moved = bench.moved();
        assert!(moved.contains(&"icmp_sent +1".to_string()), "{moved:?}");
        assert!(moved.contains(&"drop neighbor_unreachable +1".to_string()));
    }
}

#[test]
fn errors_of_one_link_are_not_passed_on() {
    for (client, server, router) in [
        ("10.0.0.2:5000", "198.51.100.1:53", "169.254.1.9"),
        ("[fd00::2]:5000", "[2001:db8:1::1]:53", "fe80::9"),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let (_, out) = bench.one(INSIDE, Frame::udp(at(client), at(server), b"question"));
        let t = if out.src.is_ipv6() { 3 } else { 11 };
        let error = Frame::icmp(ip(router), out.src, t, 0, 0, &quoted(&out));
        bench.dropped(OUTSIDE, error, DropReason::Martian);
    }
}

#[test]
fn errors_about_an_echo_are_translated() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let echo = Frame::echo(ip("10.0.0.2"), ip("198.51.100.1"), false, 7, 1);
    let (_, out) = bench.one(INSIDE, echo.clone());
    let error = Frame::icmp(ip("203.0.113.9"), out.src, 11, 0, 0, &quoted(&out));
    let (_, passed) = bench.one(OUTSIDE, error);
    let Body::Icmp { payload, .. } = passed.body else {
        panic!("no ICMP")
    };
    assert_eq!(read_quoted(&payload, false).body, echo.body);
}

#[test]
fn a_quotation_of_eight_bytes_is_enough() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    let out = Frame::tcp(
        at("192.0.2.1:5000"),
        at("198.51.100.1:80"),
        16,
        101,
        501,
        b"x",
    );
    let error = Frame::icmp(ip("203.0.113.9"), out.src, 3, 1, 0, &quoted(&out)[..28]);
    let (_, passed) = bench.one(OUTSIDE, error);
    assert_eq!(passed.dst, ip("10.0.0.2"));
}

#[test]
fn a_quoted_checksum_that_comes_to_zero_is_sent_as_all_ones() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (c, s) = (at("10.0.0.2:5000"), at("198.51.100.1:53"));
    // A payload that is the checksum of the rest.
    let rest = quoted(&Frame::udp(c, s, &[0, 0]));
    let sent = Frame::udp(c, s, &rest[26..28]);
    let (_, out) = bench.one(INSIDE, sent.clone());
    let error = Frame::icmp(ip("203.0.113.9"), out.src, 11, 0, 0, &quoted(&out));
    let (_, passed) = bench.one(OUTSIDE, error);
    let Body::Icmp { payload, .. } = passed.body else {
        panic!("no ICMP")
    };
    assert_eq!(payload, quoted(&sent.with_ttl(63)));
}

#[test]
fn errors_about_nothing_are_dropped() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let never = Frame::udp(at("192.0.2.1:1"), at("198.51.100.1:2"), b"");
    for frame in [
        Frame::icmp(ip("203.0.113.9"), ip("192.0.2.1"), 3, 1, 0, &quoted(&never)),
        Frame::icmp(ip("203.0.113.9"), ip("10.0.0.2"), 3, 1, 0, &quoted(&never)),
    ] {
        bench.dropped(OUTSIDE, frame, DropReason::IcmpNoFlow);
    }
    let cut = Frame::icmp(
        ip("203.0.113.9"),
        ip("192.0.2.1"),
        3,
        1,
        0,
        &quoted(&never)[..24],
    );
    bench.dropped(OUTSIDE, cut, DropReason::Truncated);
    let redirect = Frame::icmp(ip("203.0.113.9"), ip("192.0.2.1"), 5, 1, 0, &quoted(&never));
    bench.dropped(OUTSIDE, redirect, DropReason::IcmpType);
    let reply = Frame::echo(ip("10.0.0.2"), ip("198.51.100.1"), true, 1, 1);
    bench.dropped(INSIDE, reply, DropReason::NoFlow);
}

#[test]
fn a_hop_limit_that_runs_out_is_reported() {
    for (client, server, ours, expected) in [
        ("10.0.0.2:5000", "198.51.100.1:33434", "10.0.0.1", (11, 0)),
        ("[fd00::2]:5000", "[2001:db8:1::1]:33434", "fd00::1", (3, 0)),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let probe = Frame::udp(at(client), at(server), b"probe").with_ttl(1);
        let (port, error) = bench.one(INSIDE, probe.clone());
        assert_eq!(
            (port, error.src, error.dst),
            (INSIDE, ip(ours), at(client).ip())
        );
        let Body::Icmp {
            icmp_type,
            code,
            payload,
            ..
        } = error.body
        else {
            panic!("no ICMP")
        };
        assert_eq!((icmp_type, code), expected);
        assert_eq!(read_quoted(&payload, probe.src.is_ipv6()).body, probe.body);
        assert_eq!(bench.moved(), ["drop ttl_exceeded +1", "icmp_sent +1"]);
    }
}

#[test]
fn what_is_too_big_is_reported_unless_it_may_be_cut() {
    for (client, server, df, expected) in [
        ("10.0.0.2:5000", "198.51.100.1:53", true, (3, 4)),
        ("[fd00::2]:5000", "[2001:db8:1::1]:53", true, (2, 0)),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let mut big = Frame::udp(at(client), at(server), &[0; 1600]);
        big.df = df;
        let sent = bench.send(INSIDE, big);
        let error = sent.first().map(|(_, f)| match f.body {
            Body::Icmp {
                icmp_type,
                code,
                rest,
                ..
            } => {
                assert_eq!(rest, 1500);
                (icmp_type, code)
            }
            _ => panic!("{f:?}"),
        });
        assert_eq!(error, Some(expected));
        assert_eq!(bench.counters.dropped(DropReason::TooBig).packets.get(), 1);
    }
    let mut bench = Bench::new(&allow_all(), two_arms());
    let big = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), &[0; 1600]);
    let bytes = big.between(PEER, MACS[INSIDE]).emit();
    let sent = bench.send_packet(INSIDE, MemoryPacket::new(bytes));
    assert_eq!(sent.len(), 2, "cut in two");
    assert_eq!(bench.counters.dropped(DropReason::TooBig).packets.get(), 0);
}

#[test]
fn no_route_is_reported() {
    let mut settings = two_arms();
    settings.ports[OUTSIDE].gateways.clear();
    let mut bench = Bench::new(&allow_all(), settings);
    for (src, dst) in [
        ("10.0.0.2:1", "198.51.100.1:2"),
        ("[fd00::2]:1", "[2001:db8:1::1]:2"),
    ] {
        let (port, error) = bench.one(INSIDE, Frame::udp(at(src), at(dst), b""));
        assert_eq!((port, error.dst), (INSIDE, at(src).ip()));
    }
    assert_eq!(bench.counters.dropped(DropReason::NoRoute).packets.get(), 2);
}

#[test]
fn our_addresses_answer_echo() {
    for (client, ours, port) in [
        ("10.0.0.2", "10.0.0.1", INSIDE),
        ("10.0.0.2", "192.0.2.1", INSIDE),
        ("10.0.0.2", "10.0.0.53", INSIDE),
        ("198.51.100.1", "192.0.2.1", OUTSIDE),
        ("fd00::2", "fd00::1", INSIDE),
    ] {
        let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
        let request = Frame::echo(ip(client), ip(ours), false, 7, 9);
        let (to, reply) = bench.one(port, request);
        let expected = Frame::echo(ip(ours), ip(client), true, 7, 9).between(MACS[port], PEER);
        assert_eq!((to, reply), (port, expected));
    }
}

#[test]
fn the_address_that_only_its_link_has_a_port_by_answers_echo() {
    for port in [INSIDE, OUTSIDE] {
        let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
        let ours = link_local(port);
        let request = Frame::echo(ip("fe80::7"), ours.into(), false, 7, 9);
        let (to, reply) = bench.one(port, request);
        let expected = Frame::echo(ours.into(), ip("fe80::7"), true, 7, 9);
        assert_eq!((to, reply), (port, expected.between(MACS[port], PEER)));
        // Nothing else has it.
        let other = Frame::echo(ip("fe80::7"), ip("fe80::8"), false, 7, 9);
        bench.dropped(
            port,
            other,
            if port == INSIDE {
                DropReason::Martian
            } else {
                DropReason::FromOutside
            },
        );
    }
}

/// A flow of echo has an identifier, and other messages have the same.
#[test]
fn a_query_of_another_type_is_judged_although_a_flow_has_its_identifier() {
    let echo = r#"{"id":"ping","action":"allow","match":{"proto":"icmp","icmp_types":[8],"icmp_codes":[0]}}"#;
    let mut bench = Bench::new(&policy("deny", "drop", echo), two_arms());
    let (client, server) = (ip("10.0.0.2"), ip("198.51.100.1"));
    let query =
        |icmp_type, code, id: u32| Frame::icmp(client, server, icmp_type, code, id << 16 | 1, b"x");
    for id in [0, 7] {
        bench.one(INSIDE, query(8, 0, id));
        bench.dropped(INSIDE, query(13, 0, id), DropReason::PolicyDenied);
        let denied = |event: &Event| {
            matches!(
                event,
                Event::Denied {
                    icmp: Some((13, 0)),
                    ..
                }
            )
        };
        assert_eq!(bench.events.try_iter().filter(denied).count(), 1);
        bench.dropped(INSIDE, query(8, 5, id), DropReason::PolicyDenied);
        bench.dropped(INSIDE, query(0, 0, id), DropReason::NoFlow);
        bench.one(INSIDE, query(8, 0, id));
    }
    // What the policy allows goes on, and what it would deny is counted.
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.one(INSIDE, query(8, 0, 7));
    bench.one(INSIDE, query(13, 0, 7));
    let audited = policy("deny", "drop", echo).replace("enforce", "audit");
    let mut bench = Bench::new(&audited, two_arms());
    bench.one(INSIDE, query(8, 0, 7));
    bench.one(INSIDE, query(13, 0, 7));
    assert_eq!(bench.counters.would_deny.get(), 1);
    assert_eq!(bench.counters.flows_active.get(), 1);
}

#[test]
fn a_question_from_outside_is_no_answer_although_its_identifier_is_zero() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (client, server) = (ip("fd00::2"), ip("2001:db8:1::1"));
    bench.one(INSIDE, Frame::echo(client, server, false, 0, 1));
    bench.one(OUTSIDE, Frame::echo(server, client, true, 0, 1));
    bench.dropped(
        OUTSIDE,
        Frame::echo(server, client, false, 0, 1),
        DropReason::FromOutside,
    );
}
