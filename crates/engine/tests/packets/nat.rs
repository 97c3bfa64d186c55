//! Source NAT: the way out and the way back.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::bench::*;
use engine::DropReason;
use engine::port::memory::MemoryPacket;
use engine::port::{Checksum, Gso, GsoKind, Meta, Packet};
use engine::snapshot::{NatMapping, Nptv6, Settings, Snat};
use proptest::prelude::*;
use sim::frame::{ACK, Body, FIN, Frame, RST, SYN};

fn source(frame: &Frame) -> SocketAddr {
    match frame.body {
        Body::Tcp { src_port, .. } | Body::Udp { src_port, .. } => (frame.src, src_port).into(),
        Body::Icmp { rest, .. } => (frame.src, (rest >> 16) as u16).into(),
        Body::Other { .. } => (frame.src, 0).into(),
    }
}

#[test]
fn ports_are_shared_between_destinations_but_not_on_one() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let mut shown = |client: &str, server: &str| {
        source(&bench.one(INSIDE, Frame::udp(at(client), at(server), b"")).1).port()
    };
    assert_eq!(shown("10.0.0.2:5000", "198.51.100.1:53"), 5000);
    assert_eq!(shown("10.0.0.3:5000", "198.51.100.2:53"), 5000);
    assert_eq!(shown("10.0.0.3:5000", "198.51.100.1:54"), 5000);
    let other = shown("10.0.0.3:5000", "198.51.100.1:53");
    assert!(other != 5000 && other >= 1024, "{other}");
}

#[test]
fn modes() {
    fn check(snat: Snat, client: &str, expected: &[&str]) {
        let mut settings = two_arms();
        settings.snat = snat;
        let mut bench = Bench::new(&allow_all(), settings);
        let (_, out) = bench.one(INSIDE, Frame::udp(at(client), at("198.51.100.1:53"), b""));
        assert!(
            expected.contains(&out.src.to_string().as_str()),
            "{}",
            out.src
        );
        let answer = Frame::udp(at("198.51.100.1:53"), source(&out), b"");
        assert_eq!(bench.one(OUTSIDE, answer).1.dst, at(client).ip());
    }
    check(Snat::None, "10.0.0.2:5000", &["10.0.0.2"]);
    check(Snat::Auto, "10.0.0.2:5000", &["192.0.2.1"]);
    check(
        Snat::Static(ip("192.0.2.77")),
        "10.0.0.2:5000",
        &["192.0.2.77"],
    );
    let pool = Snat::Pool(vec![ip("192.0.2.77"), ip("192.0.2.78")]);
    check(pool, "10.0.0.2:5000", &["192.0.2.77", "192.0.2.78"]);
}

#[test]
fn nat66_by_key() {
    let (client, server) = (at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"));
    for (mode, shown) in [
        (None, "[fd00::2]:5000"),
        (Some(Snat::Auto), "[2001:db8::1]:5000"),
        (
            Some(Snat::Static(ip("2001:db8::77"))),
            "[2001:db8::77]:5000",
        ),
    ] {
        let mut settings = two_arms();
        settings.nat66 = mode;
        let mut bench = Bench::new(&allow_all(), settings);
        let (_, out) = bench.one(INSIDE, Frame::udp(client, server, b""));
        assert_eq!(source(&out), at(shown));
        let answer = Frame::udp(server, source(&out), b"");
        assert_eq!(bench.one(OUTSIDE, answer).1.dst, client.ip());
    }
}

fn prefixes(mut settings: Settings) -> Settings {
    settings.nptv6 = Some(Nptv6 {
        inside: "fd00::/48".parse().expect("a constant"),
        outside: "2001:db8:9::/48".parse().expect("a constant"),
    });
    settings
}

#[test]
fn nptv6_keeps_ports_and_checksums() {
    let mut bench = Bench::new(&allow_all(), prefixes(two_arms()));
    let (client, server) = (at("[fd00::2]:5000"), at("[2001:db8:1::1]:53"));
    let question = Frame::udp(client, server, b"x").between(PEER, MACS[INSIDE]);
    let (sum, sent) = (
        question.emit()[60..62].to_vec(),
        bench.send_packet(
            INSIDE,
            engine::port::memory::MemoryPacket::new(question.emit()),
        ),
    );
    assert_eq!(sent[0].1.bytes()[60..62], sum, "checksum-neutral");
    let out = Frame::parse(sent[0].1.bytes()).expect("right in every checksum");
    let shown = source(&out);
    assert_eq!(shown.port(), 5000);
    assert!(shown.to_string().starts_with("[2001:db8:9:"), "{shown}");
    assert_eq!(
        bench.moved(),
        ["active +1", "allow out udp +1", "nat +1", "opened +1"]
    );
    let (port, back) = bench.one(OUTSIDE, Frame::udp(server, shown, b"y"));
    assert_eq!((port, back.dst), (INSIDE, client.ip()));
    // Mapped without state, but not open: what begins outside stays outside.
    let other = SocketAddr::new(shown.ip(), 5001);
    bench.dropped(
        OUTSIDE,
        Frame::udp(server, other, b""),
        DropReason::FromOutside,
    );

    // An error from a router outside comes back with both addresses translated.
    let error = Frame::icmp(ip("2001:db8::fe"), shown.ip(), 1, 3, 0, &out.emit()[14..]);
    let (port, error) = bench.one(OUTSIDE, error);
    assert_eq!((port, error.dst), (INSIDE, client.ip()));
    let Body::Icmp { payload, .. } = error.body else {
        panic!("{error:?}")
    };
    let quoted: [u8; 16] = payload[8..24].try_into().expect("as long as the array");
    assert_eq!(IpAddr::from(quoted), client.ip());
}

#[test]
fn what_nptv6_leaves_out_is_refused_with_an_error() {
    let mut bench = Bench::new(
        &allow_all(),
        prefixes(two_arms_with(&["fd00:0:0:ffff::/64"])),
    );
    let client = at("[fd00:0:0:ffff::2]:5000");
    let sent = bench.send(INSIDE, Frame::udp(client, at("[2001:db8:1::1]:53"), b""));
    assert!(
        matches!(
            sent[0].1.body,
            Body::Icmp {
                icmp_type: 1,
                code: 0,
                ..
            }
        ),
        "{sent:?}"
    );
    assert_eq!(
        bench.moved(),
        ["drop prefix_translation +1", "icmp_sent +1"]
    );
    // Between two insides nothing is translated.
    let (_, out) = bench.one(
        INSIDE,
        Frame::udp(at("[fd00::2]:5"), at("[fd00::3]:6"), b""),
    );
    assert_eq!(out.src, ip("fd00::2"));
}

#[test]
fn a_prefix_goes_before_one_address_for_many() {
    let mut settings = prefixes(two_arms_with(&["fd00:1::/64"]));
    settings.nat66 = Some(Snat::Auto);
    let mut bench = Bench::new(&allow_all(), settings);
    let mut shown = |client: &str| {
        let (_, out) = bench.one(
            INSIDE,
            Frame::udp(at(client), at("[2001:db8:1::1]:53"), b""),
        );
        out.src.to_string()
    };
    assert!(shown("[fd00::2]:1").starts_with("2001:db8:9:"));
    assert_eq!(shown("[fd00:1::2]:1"), "2001:db8::1");
}

#[test]
fn a_mapping_that_is_endpoint_independent_lasts_as_long_as_its_flows() {
    let mut settings = two_arms();
    settings.nat_mapping = NatMapping::EndpointIndependent;
    let mut bench = Bench::new(&allow_all(), settings);
    let shown = |bench: &mut Bench, client: &str, server: &str| {
        let (_, out) = bench.one(INSIDE, Frame::udp(at(client), at(server), b""));
        source(&out)
    };
    let first = shown(&mut bench, "10.0.0.2:5000", "198.51.100.1:53");
    assert_eq!(first, at("192.0.2.1:5000"));
    assert_eq!(shown(&mut bench, "10.0.0.2:5000", "198.51.100.2:99"), first);
    // Nobody else gets the port, wherever to.
    let other = shown(&mut bench, "10.0.0.3:5000", "198.51.100.3:7");
    assert_ne!(other, first);
    assert_eq!(shown(&mut bench, "10.0.0.3:5000", "198.51.100.1:53"), other);
    let uses: Vec<_> = bench.counters.nat_use.addresses().collect();
    assert_eq!(uses, [(ip("192.0.2.1"), 4)]);
    // Filtering is by address and port.
    let stranger = Frame::udp(at("198.51.100.9:53"), first, b"");
    bench.dropped(OUTSIDE, stranger, DropReason::FromOutside);

    bench.pass(std::time::Duration::from_secs(301));
    let uses: Vec<_> = bench.counters.nat_use.addresses().collect();
    assert_eq!(uses, [(ip("192.0.2.1"), 0)]);
    assert_eq!(shown(&mut bench, "10.0.0.3:5000", "198.51.100.3:7"), first);
}

#[test]
fn echo_is_told_apart_by_its_identifier() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let server = ip("198.51.100.1");
    let ids: Vec<u16> = ["10.0.0.2", "10.0.0.3"]
        .map(|c| {
            source(
                &bench
                    .one(INSIDE, Frame::echo(ip(c), server, false, 77, 1))
                    .1,
            )
            .port()
        })
        .to_vec();
    assert!(ids[0] == 77 && ids[1] != 77);
    for (client, id) in ["10.0.0.2", "10.0.0.3"].iter().zip(ids) {
        let (_, back) = bench.one(OUTSIDE, Frame::echo(server, ip("192.0.2.1"), true, id, 1));
        assert_eq!((back.dst, source(&back).port()), (ip(client), 77));
    }
}

#[test]
fn a_udp_checksum_that_was_never_computed_stays_so() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let frame =
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"x").between(PEER, MACS[INSIDE]);
    let mut bytes = frame.emit();
    bytes[40..42].fill(0);
    let sent = bench.send_packet(INSIDE, engine::port::memory::MemoryPacket::new(bytes));
    assert_eq!(sent[0].1.bytes()[40..42], [0, 0]);
}

/// Ones' complement sum of words, folded.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A super-packet with a partial checksum, as the kernel hands it over.
fn super_packet(len: usize) -> MemoryPacket {
    let segment = Frame::tcp(
        at("10.0.0.2:5000"),
        at("198.51.100.1:80"),
        ACK,
        101,
        501,
        &vec![7; len],
    );
    super_packet_of(segment)
}

/// The same of a TCP segment over IPv4.
fn super_packet_of(segment: Frame) -> MemoryPacket {
    let meta = Meta {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        gso: Some(Gso {
            kind: GsoKind::Tcp4,
            size: 1448,
            header_len: 54,
            ecn: false,
        }),
        ..Meta::default()
    };
    let mut packet = with_meta(INSIDE, segment, meta);
    let bytes = packet.bytes_mut();
    let mut pseudo = bytes[26..34].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((bytes.len() - 34) as u16).to_be_bytes());
    let partial = sum(&pseudo).to_be_bytes();
    bytes[50..52].copy_from_slice(&partial);
    packet
}

#[test]
fn a_super_packet_with_a_partial_checksum_is_rewritten_whole() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    // One in the way of the port, so that the port is rewritten as well.
    for len in [20_000, 60_001] {
        let packet = super_packet(len);
        let meta = *packet.meta();
        let mut sent = bench.send_packet(INSIDE, packet);
        let (port, mut out) = sent.pop().unwrap();
        assert_eq!((port, out.meta(), sent.len()), (OUTSIDE, &meta, 0));
        // What the network card would do: sum from `start` on, the field included.
        let whole = !sum(&out.bytes()[34..]);
        out.bytes_mut()[50..52].copy_from_slice(&whole.to_be_bytes());
        let frame = Frame::parse(out.bytes()).unwrap();
        assert_eq!(source(&frame), at("192.0.2.1:5000"));
    }
}

#[test]
fn a_port_that_cannot_segment_gets_no_super_packets() {
    let mut bench = Bench::without_segmentation(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    let packet = super_packet(20_000);
    assert!(bench.send_packet(INSIDE, packet).is_empty());
    let dropped = |bench: &Bench, reason| bench.counters.dropped(reason).packets.get();
    assert_eq!(dropped(&bench, DropReason::GsoUnsupported), 1);
    // Nor does the host.
    let datagrams = Frame::udp(at("10.0.0.2:5000"), at("10.0.0.53:53"), &[7; 2000]);
    let gso = Some(Gso {
        kind: GsoKind::Udp,
        size: 1000,
        header_len: 42,
        ecn: false,
    });
    let meta = Meta {
        checksum: Checksum::Partial {
            start: 34,
            offset: 6,
        },
        gso,
        ..Meta::default()
    };
    let packet = with_meta(INSIDE, datagrams, meta);
    assert!(bench.send_packet(INSIDE, packet).is_empty());
    assert_eq!(dropped(&bench, DropReason::LaneUnavailable), 1);
    assert_eq!(bench.counters.local.packets.get(), 0, "counted once");
}

/// A super-packet with segments that no link of the bench carries, from a client with an open connection.
fn large_segments(df: bool) -> (Bench, MemoryPacket) {
    let mut bench = Bench::new(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.moved();
    let (client, server) = (at("10.0.0.2:5000"), at("198.51.100.1:80"));
    let segment = Frame::tcp(client, server, ACK, 101, 501, &vec![7; 20_000]);
    let mut packet = super_packet_of(if df { segment.with_df() } else { segment });
    packet.meta_mut().gso = Some(Gso {
        kind: GsoKind::Tcp4,
        size: 8000,
        header_len: 54,
        ecn: false,
    });
    (bench, packet)
}

#[test]
fn segments_larger_than_the_link_are_too_big_for_a_super_packet_too() {
    let (mut bench, packet) = large_segments(true);
    let mut sent = bench.send_packet(INSIDE, packet);
    let (port, error) = sent.pop().unwrap();
    assert_eq!((port, sent.len()), (INSIDE, 0));
    // Fragmentation needed, and how much fits.
    assert_eq!(error.bytes()[34..36], [3, 4]);
    assert_eq!(error.bytes()[38..42], 1500u32.to_be_bytes());
    assert_eq!(bench.counters.dropped(DropReason::TooBig).packets.get(), 1);
    assert_eq!(bench.moved(), ["drop too_big +1", "icmp_sent +1"]);
}

#[test]
fn a_stream_that_may_be_fragmented_is_cut_into_segments_that_the_link_carries() {
    let (mut bench, packet) = large_segments(false);
    let len = packet.bytes().len();
    let mut sent = bench.send_packet(INSIDE, packet);
    let (port, out) = sent.pop().unwrap();
    assert_eq!((port, sent.len()), (OUTSIDE, 0));
    assert_eq!(out.bytes().len(), len);
    let gso = out.meta().gso.expect("a super-packet still");
    assert_eq!((gso.size, gso.header_len), (1460, 54));
    assert_eq!(bench.moved(), ["allow out tcp +1"]);
}

#[test]
fn the_limit_on_bindings_holds_and_flows_that_were_never_answered_make_room() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.limits.max_nat_bindings = 2);
    // One that has no binding makes no room.
    let inside = Frame::udp(at("10.0.0.2:5000"), at("10.0.0.9:53"), b"");
    bench.one(INSIDE, inside.clone());
    for port in [5000, 5001] {
        super::tcp::establish(&mut bench, port);
    }
    let third = Frame::udp(at("10.0.0.2:5002"), at("198.51.100.1:53"), b"");
    bench.dropped(INSIDE, third.clone(), DropReason::NatTableFull);
    bench.one(INSIDE, inside);
    bench.reconfigure(|s| s.limits.max_nat_bindings = 3);
    bench.one(INSIDE, third);
    bench.moved();
    let fourth = Frame::udp(at("10.0.0.2:5003"), at("198.51.100.1:53"), b"");
    bench.one(INSIDE, fourth);
    let moved = ["allow out udp +1", "closed evicted +1", "opened +1"];
    assert_eq!(bench.moved(), moved);
}

#[test]
fn outside_addresses_on_the_inside_are_not_believed() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (_, out) = bench.one(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b""),
    );
    bench.dropped(
        INSIDE,
        Frame::udp(at("198.51.100.1:53"), source(&out), b""),
        DropReason::Martian,
    );
}

/// Clients use ports in a row and keep them: among these the free ones are not found from one port to the next.
#[test]
fn nobody_gives_way_while_ports_are_free() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 8192);
    let server = at("198.51.100.1:53");
    let mut ask = |client: &str, port| {
        let client = (ip(client), port).into();
        bench.send(INSIDE, Frame::udp(client, server, b"")).len()
    };
    let mut sent: usize = (2000..2300).map(|port| ask("10.0.0.250", port)).sum();
    for n in 60..250 {
        let client = format!("10.0.0.{n}");
        sent += (2000..2032).map(|port| ask(&client, port)).sum::<usize>();
    }
    assert_eq!(sent, 300 + 190 * 32);
    assert_eq!(bench.counters.flows_active.get(), sent as u64);
}

/// Ports that each of 1024 workers has.
const SHARE: u16 = 63;

/// A worker with a few ports, to which all that a client opens is for one server.
fn few_ports() -> Bench {
    Bench::one_of(&allow_all(), two_arms(), 1024)
}

fn client(n: u16) -> SocketAddr {
    (ip(&format!("10.0.0.{}", 60 + n)), 5001).into()
}

/// Opens a connection of this client, if a port is left, and returns what it shows.
fn connect(bench: &mut Bench, n: u16, seq: u32) -> Option<SocketAddr> {
    let (server, client) = (at("198.51.100.1:80"), client(n));
    let syn = Frame::tcp(client, server, SYN, seq, 0, b"");
    let shown = source(&bench.send(INSIDE, syn).first()?.1);
    bench.one(
        OUTSIDE,
        Frame::tcp(server, shown, SYN | ACK, 500, seq + 1, b""),
    );
    bench.one(INSIDE, Frame::tcp(client, server, ACK, seq + 1, 501, b""));
    Some(shown)
}

/// Closes it from both ends.
fn disconnect(bench: &mut Bench, n: u16, seq: u32, shown: SocketAddr) {
    let (server, client) = (at("198.51.100.1:80"), client(n));
    bench.one(
        INSIDE,
        Frame::tcp(client, server, FIN | ACK, seq + 1, 501, b""),
    );
    bench.one(
        OUTSIDE,
        Frame::tcp(server, shown, FIN | ACK, 501, seq + 2, b""),
    );
    bench.one(INSIDE, Frame::tcp(client, server, ACK, seq + 2, 502, b""));
}

#[test]
fn connections_that_are_over_give_their_ports_to_new_ones() {
    let mut bench = few_ports();
    bench.reconfigure(|s| s.tcp_window_check = true);
    // All have sent more than a connection that begins with 1000, except for one.
    let first = |n| if n == 7 { 100 } else { 2000 };
    let shown: Vec<_> = (0..SHARE)
        .map(|n| connect(&mut bench, n, first(n)).expect("there are ports"))
        .collect();
    assert_eq!(shown.iter().collect::<HashSet<_>>().len(), shown.len());
    for n in (1..SHARE).step_by(2) {
        disconnect(&mut bench, n, first(n), shown[usize::from(n)]);
    }
    bench.moved();
    // The one that the server can tell from the new one goes first.
    let old = Frame::tcp(client(7), at("198.51.100.1:80"), ACK, 102, 502, b"");
    let (_, again) = bench.one(INSIDE, old);
    let shown = connect(&mut bench, 100, 1000).expect("a port is given up");
    assert_eq!(shown, source(&again));
    let moved = bench.moved();
    assert!(moved.contains(&"closed reused +1".to_string()), "{moved:?}");
    // What the server still sends of the old one does no harm to the new one.
    disconnect(&mut bench, 100, 1000, shown);
    let (server, next) = (at("198.51.100.1:80"), client(101));
    let (_, syn) = bench.one(INSIDE, Frame::tcp(next, server, SYN, 9000, 0, b""));
    let shown = source(&syn);
    bench.one(
        OUTSIDE,
        Frame::tcp(server, shown, FIN | ACK, 501, 1002, b""),
    );
    bench.one(
        OUTSIDE,
        Frame::tcp(server, shown, SYN | ACK, 70_000_000, 9001, b""),
    );
    bench.one(INSIDE, Frame::tcp(next, server, ACK, 9001, 70_000_001, b""));
    // Then the others; those that live never.
    let next = |bench: &mut Bench, n| {
        bench.pass(std::time::Duration::from_secs(1));
        connect(bench, n, 1000)
    };
    let given = (102..190).map_while(|n| next(&mut bench, n)).count();
    assert_eq!(given, usize::from(SHARE / 2) - 1);
    let refused = bench.counters.dropped(DropReason::NatPortsExhausted);
    assert_eq!(refused.packets.get(), 1);
    bench.one(INSIDE, Frame::tcp(client(0), server, ACK, 2001, 501, b"x"));
}

#[test]
fn a_reset_gives_its_port_up_only_when_nobody_disputes_it() {
    let mut bench = few_ports();
    let server = at("198.51.100.1:80");
    let mut first = None;
    for n in 0..SHARE {
        let shown = connect(&mut bench, n, 100).expect("there are ports");
        if n < 2 {
            bench.one(OUTSIDE, Frame::tcp(server, shown, RST, 501, 0, b""));
        }
        first.get_or_insert(shown);
    }
    let first = first.expect("there is one");
    assert_eq!(connect(&mut bench, 100, 1000), None);
    // One of the two was forged: the server goes on.
    bench.one(INSIDE, Frame::tcp(client(0), server, ACK, 101, 501, b"x"));
    bench.one(OUTSIDE, Frame::tcp(server, first, ACK, 501, 102, b""));
    bench.pass(std::time::Duration::from_secs(2));
    assert!(connect(&mut bench, 100, 1000).is_some());
    assert_eq!(connect(&mut bench, 101, 1000), None);
    bench.one(INSIDE, Frame::tcp(client(0), server, ACK, 102, 501, b"x"));
}

#[test]
fn with_no_port_left_a_flow_costs_few_looks() {
    let mut bench = few_ports();
    for n in 0..SHARE {
        connect(&mut bench, n, 100).expect("there are ports");
    }
    let looks = |bench: &mut Bench, n| {
        let before = bench.counters.nat_port_probes.get();
        assert_eq!(connect(bench, n, 1000), None);
        bench.counters.nat_port_probes.get() - before
    };
    assert!(looks(&mut bench, 100) > 500, "a thorough search");
    for n in 101..140 {
        assert!(looks(&mut bench, n) <= 33);
    }
    bench.pass(std::time::Duration::from_secs(1));
    assert!(looks(&mut bench, 140) > 500);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any set of flows: what comes back to each binding reaches its client unchanged (identity),
    /// and no two flows to one server share a binding (bijection).
    #[test]
    fn out_and_back_is_the_identity(
        flows in proptest::collection::vec((2u8..6, 1u16..2000, 1u8..4, 53u16..55, 0u8..3), 1..60),
        v6: bool,
        by_prefix: bool,
        independent: bool,
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut settings = two_arms();
        settings.nat66 = Some(Snat::Auto);
        if by_prefix {
            settings = prefixes(settings);
        }
        if independent {
            settings.nat_mapping = NatMapping::EndpointIndependent;
        }
        let mut shown_by = std::collections::HashMap::new();
        let mut shows = std::collections::HashMap::new();
        let mut bench = Bench::new(&allow_all(), settings);
        let mut bindings = HashSet::new();
        let mut seen = HashSet::new();
        for (client, client_port, server, server_port, kind) in flows {
            let (client, server) = match v6 {
                false => (ip(&format!("10.0.0.{client}")), ip(&format!("198.51.100.{server}"))),
                true => (ip(&format!("fd00::{client}")), ip(&format!("2001:db8:1::{server}"))),
            };
            let (c, s): (SocketAddr, SocketAddr) = ((client, client_port).into(), (server, server_port).into());
            if !seen.insert((kind, c, if kind == 2 { (server, 0).into() } else { s })) {
                continue;
            }
            let packet = match kind {
                0 => Frame::udp(c, s, &payload),
                1 => Frame::tcp(c, s, SYN, 9, 0, b""),
                _ => Frame::echo(client, server, false, client_port, 3),
            };
            let (port, out) = bench.one(INSIDE, packet.clone());
            prop_assert_eq!(port, OUTSIDE);
            let shown = source(&out);
            let remote: SocketAddr = if kind == 2 { (server, 0).into() } else { s };
            prop_assert!(bindings.insert((kind, remote, shown)), "{:?} twice", shown);
            prop_assert_ne!(shown.ip(), c.ip(), "nothing leaves as it came");
            if independent {
                prop_assert_eq!(*shows.entry((kind, c)).or_insert(shown), shown);
                prop_assert_eq!(*shown_by.entry((kind, shown)).or_insert(c), c);
            }

            let reply = match kind {
                0 => Frame::udp(s, shown, &payload),
                1 => Frame::tcp(s, shown, SYN | ACK, 1, 10, b""),
                _ => Frame::echo(server, shown.ip(), true, shown.port(), 3),
            };
            let expected = match kind {
                0 => Frame::udp(s, c, &payload),
                1 => Frame::tcp(s, c, SYN | ACK, 1, 10, b""),
                _ => Frame::echo(server, client, true, client_port, 3),
            };
            let (port, back) = bench.one(OUTSIDE, reply);
            prop_assert_eq!((port, back), (INSIDE, expected.with_ttl(63).between(MACS[INSIDE], PEER)));
        }
    }
}
