//! Packets in tunnels: what comes in VXLAN or GENEVE is judged like any other and goes back the
//! same way.

use std::net::SocketAddr;

use super::acquire;
use super::bench::*;
use super::fragments::split;
use super::handover::{bytes_of, export};
use super::workers::Team;
use engine::DropReason;
use engine::overlay::{Encapsulation, Overlay, VxlanTunnel};
use engine::port::Packet;
use engine::port::memory::MemoryPacket;
use engine::snapshot::{Settings, Snat};
use proptest::prelude::*;
use sim::frame::{Body, Frame, RST, SYN};

const LB: &str = "10.0.0.200:50001";
const STATIONS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
const INTERNAL: VxlanTunnel = VxlanTunnel {
    vni: 800,
    udp_port: 10_800,
};
const EXTERNAL: VxlanTunnel = VxlanTunnel {
    vni: 801,
    udp_port: 10_801,
};
/// Endpoint, attachment and flow cookie, as an AWS Gateway Load Balancer sends them.
const ENDPOINT: [u8; 32] = [
    1, 8, 1, 2, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 1, 1, 8, 2, 2, 9, 9, 9, 9, 9, 9, 9, 9, 1, 8, 3, 1,
    0xc0, 0xc1, 0xc2, 0xc3,
];

/// The same through another endpoint.
fn at_endpoint(n: u8) -> [u8; 32] {
    let mut options = ENDPOINT;
    options[11] = n;
    options
}

pub(crate) fn settings(encapsulation: Encapsulation) -> Settings {
    let mut settings = one_arm();
    settings.snat = Snat::None;
    settings.overlay = Some(Overlay {
        encapsulation,
        mtu: 1400,
        fixed_source_port: false,
    });
    settings
}

pub(crate) fn pair(swap: bool) -> Encapsulation {
    Encapsulation::VxlanPair {
        internal: INTERNAL,
        external: EXTERNAL,
        swap,
    }
}

pub(crate) const GENEVE: Encapsulation = Encapsulation::Geneve { udp_port: 6081 };

fn vxlan_header(vni: u32) -> Vec<u8> {
    let mut b = vec![8, 0, 0, 0];
    b.extend((vni << 8).to_be_bytes());
    b
}

fn geneve_header(ethertype: u16, options: &[u8]) -> Vec<u8> {
    let mut b = vec![(options.len() / 4) as u8, 0];
    b.extend(ethertype.to_be_bytes());
    b.extend([0; 4]);
    b.extend(options);
    b
}

/// A frame from the load balancer with this in it, and a UDP checksum of zero unless `summed`.
fn outer(from: &str, port: u16, parts: &[&[u8]], summed: bool) -> Vec<u8> {
    let from = at(from);
    let ours = if from.is_ipv4() {
        "10.0.0.1"
    } else {
        "fd00::1"
    };
    let payload = parts.concat();
    let frame = Frame::udp(from, (ip(ours), port).into(), &payload).between(PEER, MACS[0]);
    let mut bytes = frame.emit();
    if !summed {
        let field = bytes.len() - payload.len() - 2;
        bytes[field..field + 2].fill(0);
    }
    bytes
}

fn vxlan(tunnel: VxlanTunnel, inner: &Frame) -> Vec<u8> {
    let inner = inner.clone().between(STATIONS[0], STATIONS[1]).emit();
    outer(
        LB,
        tunnel.udp_port,
        &[&vxlan_header(tunnel.vni), &inner],
        false,
    )
}

/// A frame from the load balancer with this in it, by the internal tunnel or, of a pair, the external one.
pub(crate) fn wrapped(encapsulation: Encapsulation, external: bool, inner: &Frame) -> Vec<u8> {
    match encapsulation {
        Encapsulation::Vxlan(tunnel) => vxlan(tunnel, inner),
        Encapsulation::VxlanPair {
            internal,
            external: other,
            ..
        } => vxlan(if external { other } else { internal }, inner),
        Encapsulation::Geneve { udp_port } => {
            let packet = &inner.emit()[14..];
            let ethertype = if inner.src.is_ipv4() { 0x0800 } else { 0x86dd };
            let header = geneve_header(ethertype, &ENDPOINT);
            outer(LB, udp_port, &[&header, packet], false)
        }
    }
}

/// What went back: the tunnel's ports, its header, and what is inside.
fn opened(sent: &(usize, MemoryPacket), header_len: usize) -> (Frame, Vec<u8>, Vec<u8>) {
    let outer = Frame::parse(sent.1.bytes()).expect("right in every checksum");
    let Body::Udp { payload, .. } = outer.body.clone() else {
        panic!("{outer:?}")
    };
    let (header, inner) = payload.split_at(header_len);
    (outer, header.to_vec(), inner.to_vec())
}

fn ports(outer: &Frame) -> (u16, u16) {
    match outer.body {
        Body::Udp {
            src_port, dst_port, ..
        } => (src_port, dst_port),
        _ => panic!("{outer:?}"),
    }
}

fn send(bench: &mut Bench, bytes: Vec<u8>) -> Vec<(usize, MemoryPacket)> {
    bench.send_packet(INSIDE, MemoryPacket::new(bytes))
}

fn question() -> Frame {
    Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), b"question")
}

fn answer() -> Frame {
    Frame::udp(at("198.51.100.1:53"), at("10.0.7.2:5000"), b"answer")
}

#[test]
fn vxlan_goes_back_in_the_tunnel_that_it_came_by() {
    for (from, summed) in [
        (LB, false),
        (LB, true),
        ("[fd00::c8]:50001", false),
        ("[fd00::c8]:50001", true),
    ] {
        for question in [
            question(),
            Frame::udp(at("[fd00:5::2]:5000"), at("[2001:db8:1::1]:53"), b"odd"),
        ] {
            let mut bench = Bench::new(&allow_all(), settings(Encapsulation::Vxlan(INTERNAL)));
            let inner = question.clone().between(STATIONS[0], STATIONS[1]);
            let header = vxlan_header(800);
            let sent = send(
                &mut bench,
                outer(from, 10_800, &[&header, &inner.emit()], summed),
            );
            assert_eq!(sent.len(), 1, "{:?}", bench.moved());
            let (out, kept, back) = opened(&sent[0], 8);
            assert_eq!((out.dst, out.ttl), (at(from).ip(), 64));
            assert_eq!((out.src_mac, out.dst_mac), (MACS[0], PEER));
            assert_eq!(
                ports(&out),
                (50_001, 10_800),
                "the sender's entropy is kept"
            );
            assert_eq!(kept, header);
            assert_eq!(Frame::parse(&back), Ok(inner.with_ttl(63)));
            let field = sent[0].1.bytes().len() - back.len() - 10;
            let is_zero = sent[0].1.bytes()[field..field + 2] == [0, 0];
            assert_eq!(is_zero, !summed, "checksums as the sender has them");
            assert_eq!(
                bench.moved(),
                [
                    "active +1",
                    "allow out udp +1",
                    "opened +1",
                    "vxlan in +1",
                    "vxlan out +1"
                ]
            );
        }
    }
}

#[test]
fn a_pair_of_tunnels_is_two_arms() {
    for swap in [false, true] {
        let mut bench = Bench::new(&allow_all(), settings(pair(swap)));
        let mut pass = |from: VxlanTunnel, to: VxlanTunnel, f: Frame| {
            let sent = send(&mut bench, vxlan(from, &f));
            assert_eq!(sent.len(), 1, "{:?}", bench.moved());
            let (out, header, _) = opened(&sent[0], 8);
            let expected = if swap { to } else { from };
            assert_eq!(ports(&out), (50_001, expected.udp_port));
            assert_eq!(header, vxlan_header(expected.vni));
        };
        pass(INTERNAL, EXTERNAL, question());
        pass(EXTERNAL, INTERNAL, answer());
        bench.moved();
        let stranger = Frame::udp(at("198.51.100.9:53"), at("10.0.7.2:5000"), b"");
        assert!(send(&mut bench, vxlan(EXTERNAL, &stranger)).is_empty());
        assert_eq!(
            bench.moved(),
            ["deny in udp +1", "drop from_outside +1", "vxlan in +1"]
        );
        // The client's packets on the other tunnel are somebody else's.
        assert!(send(&mut bench, vxlan(EXTERNAL, &question())).is_empty());
        assert_eq!(bench.moved(), ["drop martian +1", "vxlan in +1"]);
    }
}

#[test]
fn what_is_in_no_tunnel_or_a_wrong_one_is_dropped() {
    let inner = question().between(STATIONS[0], STATIONS[1]).emit();
    let of_vni = |port, vni| outer(LB, port, &[&vxlan_header(vni), &inner], false);
    let mut without_flag = vxlan_header(800);
    without_flag[0] = 0;
    let arp = [&STATIONS[0][..], &STATIONS[1], &[8, 6], &[0; 28]].concat();
    let mut transit = question().between(PEER, MACS[0]);
    transit.dst = ip("198.51.100.7");
    for (name, bytes) in [
        ("unknown network", of_vni(10_800, 5)),
        ("network of the other tunnel", of_vni(10_800, 801)),
        (
            "no network",
            outer(LB, 10_800, &[&without_flag, &inner], false),
        ),
        ("cut", outer(LB, 10_800, &[&[8, 0, 0]], false)),
        (
            "no room for Ethernet",
            outer(LB, 10_800, &[&vxlan_header(800), &[0; 9]], false),
        ),
        (
            "ARP inside",
            outer(LB, 10_800, &[&vxlan_header(800), &arp], false),
        ),
        ("no tunnel", transit.emit()),
    ] {
        let mut bench = Bench::new(&allow_all(), settings(pair(true)));
        assert!(send(&mut bench, bytes).is_empty(), "{name}");
        assert_eq!(bench.moved(), ["drop overlay_decap +1"], "{name}");
    }
    let mut bench = Bench::new(&allow_all(), settings(pair(true)));
    // A packet inside that goes on behind the end of the datagram around it.
    let mut longer = of_vni(10_800, 800);
    let len = u16::from_be_bytes([longer[38], longer[39]]) - 4;
    longer[38..40].copy_from_slice(&len.to_be_bytes());
    assert!(send(&mut bench, longer).is_empty());
    assert_eq!(bench.moved(), ["drop truncated +1"]);
    let mut wrong = outer(LB, 10_800, &[&vxlan_header(800), &inner], true);
    wrong[40] ^= 1;
    assert!(send(&mut bench, wrong).is_empty());
    assert_eq!(bench.moved(), ["drop bad_checksum +1"]);
}

#[test]
fn the_node_itself_is_reached_without_a_tunnel_and_within() {
    let mut bench = Bench::new(&allow_all(), settings(GENEVE));
    let echo = Frame::echo(ip("10.0.0.2"), ip("10.0.0.1"), false, 7, 1);
    let (_, reply) = bench.one(INSIDE, echo.clone());
    assert_eq!((reply.src, reply.dst), (ip("10.0.0.1"), ip("10.0.0.2")));
    let query = Frame::udp(at("10.0.0.2:5000"), at("10.0.0.53:53"), b"query");
    assert_eq!(bench.one(INSIDE, query.clone()).0, LANE);
    bench.moved();

    let header = geneve_header(0x0800, &ENDPOINT);
    let sent = send(
        &mut bench,
        outer(LB, 6081, &[&header, &echo.emit()[14..]], false),
    );
    let (_, kept, inner) = opened(&sent[0], header.len());
    assert_eq!(kept, header);
    assert_eq!(inner[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
    assert_eq!(bench.moved(), ["geneve in +1", "geneve out +1"]);
    // The host could not answer into it.
    let bytes = outer(LB, 6081, &[&header, &query.emit()[14..]], false);
    assert!(send(&mut bench, bytes).is_empty());
    assert_eq!(bench.moved(), ["drop local_unserved +1", "geneve in +1"]);
}

#[test]
fn geneve_options_are_kept_and_endpoints_apart() {
    let mut bench = Bench::new(&allow_all(), settings(GENEVE));
    let packet = |n: u8, f: &Frame| {
        let header = geneve_header(0x0800, &at_endpoint(n));
        outer(LB, 6081, &[&header, &f.emit()[14..]], false)
    };
    // The same addresses in two networks.
    for n in [1, 2] {
        let sent = send(&mut bench, packet(n, &question()));
        let (out, header, inner) = opened(&sent[0], 40);
        assert_eq!(ports(&out), (50_001, 6081));
        assert_eq!(header, geneve_header(0x0800, &at_endpoint(n)));
        assert_eq!(inner, question().with_ttl(63).emit()[14..]);
        assert_eq!(
            bench.moved(),
            [
                "active +1",
                "allow out udp +1",
                "geneve in +1",
                "geneve out +1",
                "opened +1"
            ]
        );
    }
    assert_eq!(send(&mut bench, packet(2, &answer())).len(), 1);
    assert!(send(&mut bench, packet(3, &answer())).is_empty());
    let outside = bench.counters.dropped(DropReason::FromOutside);
    assert_eq!(outside.packets.get(), 1, "nobody asked in that network");

    // Whole frames pass as well, and IPv6.
    let bridged = geneve_header(0x6558, &ENDPOINT);
    let frame = question().between(STATIONS[0], STATIONS[1]);
    let sent = send(
        &mut bench,
        outer(LB, 6081, &[&bridged, &frame.emit()], false),
    );
    assert_eq!(opened(&sent[0], 40).2, frame.with_ttl(63).emit());
    let six = Frame::udp(at("[fd00:5::2]:5000"), at("[2001:db8:1::1]:53"), b"");
    let header = geneve_header(0x86dd, &[]);
    let sent = send(
        &mut bench,
        outer(LB, 6081, &[&header, &six.emit()[14..]], false),
    );
    assert_eq!(opened(&sent[0], 8).2, six.with_ttl(63).emit()[14..]);
}

#[test]
fn geneve_that_cannot_be_read_is_dropped() {
    let packet = question().emit()[14..].to_vec();
    let mut version = geneve_header(0x0800, &[]);
    version[0] |= 0x40;
    let mut control = geneve_header(0x0800, &[]);
    control[1] = 0x80;
    for (name, header) in [
        ("another version", version),
        ("control", control),
        (
            "an unknown critical option",
            geneve_header(0x0800, &[0, 9, 0x81, 0]),
        ),
        (
            "an option that is cut",
            geneve_header(0x0800, &[1, 8, 3, 2, 0, 0, 0, 0]),
        ),
        ("something else inside", geneve_header(0x8847, &[])),
    ] {
        let mut bench = Bench::new(&allow_all(), settings(GENEVE));
        let bytes = outer(LB, 6081, &[&header, &packet], false);
        assert!(send(&mut bench, bytes).is_empty(), "{name}");
        assert_eq!(bench.moved(), ["drop overlay_decap +1"], "{name}");
    }
    let known = geneve_header(0x0800, &[0, 9, 1, 0]);
    let mut bench = Bench::new(&allow_all(), settings(GENEVE));
    assert_eq!(
        send(&mut bench, outer(LB, 6081, &[&known, &packet], false)).len(),
        1
    );
}

#[test]
fn errors_and_resets_go_back_into_the_tunnel() {
    let deny = policy("deny", "reset", "");
    let mut bench = Bench::new(&deny, settings(pair(true)));
    let syn = Frame::tcp(at("10.0.7.2:5000"), at("198.51.100.1:80"), SYN, 9, 0, b"");
    let sent = send(&mut bench, vxlan(INTERNAL, &syn));
    let (out, header, inner) = opened(&sent[0], 8);
    assert_eq!(
        ports(&out).1,
        INTERNAL.udp_port,
        "to its sender, not onward"
    );
    assert_eq!(header, vxlan_header(800));
    let inner = Frame::parse(&inner).expect("a sound frame");
    assert_eq!((inner.src_mac, inner.dst_mac), (STATIONS[1], STATIONS[0]));
    assert!(matches!(inner.body, Body::Tcp { flags, .. } if flags & RST != 0));

    let mut bench = Bench::new(&allow_all(), settings(pair(true)));
    let sent = send(&mut bench, vxlan(INTERNAL, &question().with_ttl(1)));
    let (_, _, inner) = opened(&sent[0], 8);
    let inner = Frame::parse(&inner).expect("a sound frame");
    assert_eq!((inner.src, inner.dst), (ip("10.0.0.1"), ip("10.0.7.2")));
    assert!(matches!(inner.body, Body::Icmp { icmp_type: 11, .. }));

    // A policy that ends a connection tells both ends, each through its tunnel.
    let mut bench = Bench::new(&allow_all(), settings(pair(true)));
    send(&mut bench, vxlan(INTERNAL, &syn));
    bench.publish(&deny);
    let sent = send(&mut bench, vxlan(INTERNAL, &syn));
    let to: Vec<u16> = sent.iter().map(|s| ports(&opened(s, 8).0).1).collect();
    assert_eq!(to, [INTERNAL.udp_port, EXTERNAL.udp_port]);

    // An error from a router outside finds its flow.
    let mut bench = Bench::new(&allow_all(), settings(pair(true)));
    send(&mut bench, vxlan(INTERNAL, &question()));
    let error = Frame::icmp(
        ip("203.0.113.9"),
        ip("10.0.7.2"),
        3,
        1,
        0,
        &question().emit()[14..],
    );
    let sent = send(&mut bench, vxlan(EXTERNAL, &error));
    assert_eq!(ports(&opened(&sent[0], 8).0).1, INTERNAL.udp_port);
}

#[test]
fn packets_fit_the_tunnel() {
    let mut bench = Bench::new(&allow_all(), settings(pair(true)));
    let udp = |size: usize| Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), &vec![7; size]);
    assert_eq!(
        send(&mut bench, vxlan(INTERNAL, &udp(1372).with_df())).len(),
        1
    );
    bench.moved();
    let sent = send(&mut bench, vxlan(INTERNAL, &udp(1373).with_df()));
    let (_, _, inner) = opened(&sent[0], 8);
    let inner = Frame::parse(&inner).expect("a sound frame");
    assert!(
        matches!(
            inner.body,
            Body::Icmp {
                icmp_type: 3,
                code: 4,
                rest: 1400,
                ..
            }
        ),
        "{inner:?}"
    );
    assert_eq!(
        bench.moved(),
        [
            "drop overlay_mtu +1",
            "icmp_sent +1",
            "vxlan in +1",
            "vxlan out +1"
        ]
    );
    // What may be cut is cut to what fits, and each piece is put into the tunnel.
    let sent = send(&mut bench, vxlan(INTERNAL, &udp(1373)));
    let lens: Vec<usize> = sent.iter().map(|s| opened(s, 8).2.len() - 14).collect();
    assert_eq!(lens, [20 + 1376, 20 + 5]);
    for s in &sent {
        let (out, header, inner) = opened(s, 8);
        assert_eq!(ports(&out).1, EXTERNAL.udp_port);
        assert_eq!(header, vxlan_header(801));
        assert_eq!(inner[..12], [STATIONS[1], STATIONS[0]].concat());
    }
}

/// The pieces of a packet in this network of GENEVE, each as a frame from the load balancer.
fn pieces(endpoint: u8, f: &Frame, id: u32, ends: &[usize]) -> Vec<Vec<u8>> {
    let header = geneve_header(
        if f.src.is_ipv4() { 0x0800 } else { 0x86dd },
        &at_endpoint(endpoint),
    );
    split(INSIDE, f, id, ends)
        .iter()
        .map(|piece| outer(LB, 6081, &[&header, &piece[14..]], false))
        .collect()
}

/// Of these frames in GENEVE, the packets inside.
fn inside(sent: &[(usize, MemoryPacket)]) -> Vec<Vec<u8>> {
    sent.iter().map(|s| opened(s, 40).2).collect()
}

#[test]
fn pieces_in_a_tunnel_come_together_and_leave_as_they_came() {
    for (client, server) in [("10.0.7.2", "198.51.100.1"), ("fd00:5::2", "2001:db8:1::1")] {
        let mut bench = Bench::new(&allow_all(), settings(GENEVE));
        let large = Frame::udp(
            (ip(client), 5000).into(),
            (ip(server), 53).into(),
            &[7; 2500],
        );
        let [first, second, third] = pieces(1, &large, 9, &[1000, 2000])
            .try_into()
            .expect("three");
        assert!(send(&mut bench, third).is_empty());
        assert!(send(&mut bench, first).is_empty());
        // The same piece in another network is another datagram's.
        let strange = pieces(2, &large, 9, &[1000, 2000]).swap_remove(1);
        assert!(send(&mut bench, strange).is_empty());
        let sent = send(&mut bench, second);
        for s in &sent {
            let (out, header, _) = opened(s, 40);
            assert_eq!(ports(&out), (50_001, 6081));
            assert_eq!(header[8..], at_endpoint(1));
        }
        let expected: Vec<Vec<u8>> = split(INSIDE, &large.with_ttl(63), 9, &[1000, 2000])
            .iter()
            .map(|piece| piece[14..].to_vec())
            .collect();
        assert_eq!(inside(&sent), expected);
        assert_eq!(
            bench.moved(),
            [
                "active +1",
                "allow out udp +3",
                "geneve in +4",
                "geneve out +3",
                "opened +1",
                "reassembled +1"
            ]
        );
    }
    // The policy sees what they make.
    let deny = policy("deny", "drop", "");
    let mut bench = Bench::new(&deny, settings(GENEVE));
    let large = Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), &[7; 2500]);
    for piece in pieces(1, &large, 9, &[1000, 2000]) {
        assert!(send(&mut bench, piece).is_empty());
    }
    let denied = bench.counters.dropped(DropReason::PolicyDenied);
    assert_eq!(denied.packets.get(), 3);
}

#[test]
fn an_echo_in_pieces_is_answered_in_pieces() {
    let mut bench = Bench::new(&allow_all(), settings(GENEVE));
    let echo = Frame::icmp(
        ip("10.0.0.2"),
        ip("10.0.0.1"),
        8,
        0,
        7 << 16 | 1,
        &[3; 2000],
    );
    let mut sent = Vec::new();
    for piece in pieces(1, &echo, 9, &[1000]) {
        sent.extend(send(&mut bench, piece));
    }
    let replies = inside(&sent);
    let lens: Vec<usize> = replies.iter().map(Vec::len).collect();
    assert_eq!(lens, [20 + 1000, 20 + 1008]);
    for reply in replies {
        assert_eq!(reply[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
    }
}

#[test]
fn what_was_cut_around_the_tunnel_is_refused() {
    for reassembles in [true, false] {
        let mut all = settings(GENEVE);
        if !reassembles {
            all.timeouts.fragment = std::time::Duration::ZERO;
        }
        let mut bench = Bench::new(&allow_all(), all);
        let header = geneve_header(0x0800, &ENDPOINT);
        let inner = question().emit();
        let whole = [&header[..], &inner[14..]].concat();
        let outer = Frame::udp(at(LB), at("10.0.0.1:6081"), &whole);
        for piece in split(INSIDE, &outer, 5, &[32]) {
            assert!(send(&mut bench, piece).is_empty());
        }
        let reason = match reassembles {
            true => DropReason::OverlayDecap,
            false => DropReason::Fragment,
        };
        assert_eq!(bench.counters.dropped(reason).packets.get(), 2);
        // On its way to somebody else it is not even kept.
        let transit = Frame::udp(at(LB), at("198.51.100.1:6081"), &whole);
        let before = bench
            .counters
            .dropped(DropReason::OverlayDecap)
            .packets
            .get();
        for piece in split(INSIDE, &transit, 6, &[32]) {
            assert!(send(&mut bench, piece).is_empty());
        }
        let after = bench
            .counters
            .dropped(DropReason::OverlayDecap)
            .packets
            .get();
        assert_eq!(after - before, 2);
    }
    // The node itself answers without a tunnel, in pieces as well.
    let mut bench = Bench::new(&allow_all(), settings(GENEVE));
    let echo = Frame::icmp(
        ip("10.0.0.2"),
        ip("10.0.0.1"),
        8,
        0,
        7 << 16 | 1,
        &[3; 2000],
    );
    let sent: usize = split(INSIDE, &echo, 9, &[1000])
        .into_iter()
        .map(|piece| send(&mut bench, piece).len())
        .sum();
    assert_eq!(sent, 2);
}

/// Gives frames to workers that did not ask for them, and returns what comes out anywhere.
fn to_any(team: &mut Team, frames: Vec<Vec<u8>>) -> Vec<(usize, MemoryPacket)> {
    for bytes in frames {
        let worker = team.any();
        team.workers[worker].ports_mut()[INSIDE]
            .rx
            .push_back(MemoryPacket::new(bytes));
    }
    let sent = team.exchange_bytes().into_iter();
    sent.map(|(port, bytes)| (port, MemoryPacket::new(bytes)))
        .collect()
}

#[test]
fn the_packet_inside_says_whose_it_is() {
    let mut team = Team::new(4, settings(pair(true)));
    let server = "198.51.100.1:53";
    for n in 0..100u16 {
        let client = at(&format!("10.0.7.2:{}", 2000 + n));
        // Where it comes from outside tells nothing about its owner.
        let packet = |tunnel: VxlanTunnel, f: &Frame| {
            let inner = f.clone().between(STATIONS[0], STATIONS[1]).emit();
            let from = format!("10.0.0.200:{}", 50_000 + n * 7);
            let header = vxlan_header(tunnel.vni);
            vec![outer(&from, tunnel.udp_port, &[&header, &inner], false)]
        };
        let question = Frame::udp(client, at(server), b"question");
        let sent = to_any(&mut team, packet(INTERNAL, &question));
        let (out, _, inner) = opened(&sent[0], 8);
        assert_eq!(ports(&out), (50_000 + n * 7, EXTERNAL.udp_port));
        let inner = Frame::parse(&inner).expect("a sound frame");
        assert_eq!((inner.src, inner.ttl), (client.ip(), 63));

        let answer = Frame::udp(at(server), client, b"answer");
        let sent = to_any(&mut team, packet(EXTERNAL, &answer));
        assert_eq!(ports(&opened(&sent[0], 8).0).1, INTERNAL.udp_port);

        let quoted = &question.emit()[14..];
        let error = Frame::icmp(ip("203.0.113.9"), client.ip(), 3, 1, 0, quoted);
        let sent = to_any(&mut team, packet(EXTERNAL, &error));
        assert_eq!(ports(&opened(&sent[0], 8).0).1, INTERNAL.udp_port);

        let expired = Frame::udp(client, at(server), b"").with_ttl(1);
        let sent = to_any(&mut team, packet(INTERNAL, &expired));
        assert_eq!(ports(&opened(&sent[0], 8).0).1, INTERNAL.udp_port);
    }
    let active = team.active();
    assert_eq!(
        active.iter().sum::<u64>(),
        100,
        "one owner each: {active:?}"
    );
    assert!(active.iter().all(|n| *n > 8), "all take part: {active:?}");
}

#[test]
fn networks_are_apart_on_every_worker_and_pieces_reach_the_owner() {
    let mut team = Team::new(3, settings(GENEVE));
    for n in 0..60u16 {
        let client = at(&format!("10.0.7.2:{}", 2000 + n));
        let server = at("198.51.100.1:53");
        let question = Frame::udp(client, server, b"question");
        let large = Frame::udp(server, client, &[7; 2500]);
        for endpoint in [1, 2] {
            let asked = pieces(endpoint, &question, 0, &[]);
            let sent = to_any(&mut team, asked);
            assert_eq!(opened(&sent[0], 40).1[8..], at_endpoint(endpoint));
            let sent = to_any(&mut team, pieces(endpoint, &large, n.into(), &[1000, 2000]));
            assert_eq!(sent.len(), 3, "in as many pieces as it came in");
            for s in &sent {
                assert_eq!(opened(s, 40).1[8..], at_endpoint(endpoint));
            }
        }
        let stranger = to_any(&mut team, pieces(3, &large, n.into(), &[1000, 2000]));
        assert!(stranger.is_empty(), "nobody asked in that network");
    }
    assert_eq!(team.active().iter().sum::<u64>(), 120);
    assert_eq!(team.dropped(DropReason::FromOutside), 180);
}

#[test]
fn a_process_that_takes_over_knows_the_networks_of_the_flows() {
    for snat in [Snat::None, Snat::Auto] {
        let settings = || {
            let mut all = settings(GENEVE);
            all.snat = snat.clone();
            all
        };
        let packet = |n: u8, f: &Frame| {
            let header = geneve_header(0x0800, &at_endpoint(n));
            outer(LB, 6081, &[&header, &f.emit()[14..]], false)
        };
        let mut old = Bench::new(&allow_all(), settings());
        // So that numbers differ from one process to the other.
        send(&mut old, packet(9, &question().with_ttl(1)));
        send(&mut old, packet(1, &question()));
        send(&mut old, packet(2, &question()));
        let elapsed = std::time::Duration::from_millis(100);
        let (mut new, imported) = old.succeed(&allow_all(), settings(), elapsed);
        assert_eq!((imported.taken, imported.refused), (2, 0));
        let seen = match snat {
            Snat::Auto => "10.0.0.1:5000",
            _ => "10.0.7.2:5000",
        };
        let answer = Frame::udp(at("198.51.100.1:53"), at(seen), b"answer");
        for n in [2, 1] {
            let sent = send(&mut new, packet(n, &answer));
            let (_, header, inner) = opened(&sent[0], 40);
            assert_eq!(header[8..], at_endpoint(n));
            assert_eq!(inner[16..20], [10, 0, 7, 2]);
        }
        assert!(send(&mut new, packet(3, &answer)).is_empty());
        assert_eq!(new.counters.flows_active.get(), 2);
        assert_eq!(new.counters.flows_opened.get(), 0);

        // Other tunnels, or none, have other networks.
        for change in [Some(Encapsulation::Vxlan(INTERNAL)), Some(pair(true)), None] {
            let mut changed = settings();
            match change {
                Some(e) => changed.overlay.as_mut().expect("set above").encapsulation = e,
                None => changed.overlay = None,
            }
            let (_, imported) = old.succeed(&allow_all(), changed, elapsed);
            assert_eq!((imported.taken, imported.refused), (0, 2), "{change:?}");
        }
    }
    // Of a pair both sides are known, and flows of a node without tunnels do not come into one.
    let mut old = Bench::new(&allow_all(), settings(pair(true)));
    send(&mut old, vxlan(INTERNAL, &question()));
    let elapsed = std::time::Duration::ZERO;
    let (mut new, imported) = old.succeed(&allow_all(), settings(pair(true)), elapsed);
    assert_eq!(imported.taken, 1);
    let sent = send(&mut new, vxlan(EXTERNAL, &answer()));
    assert_eq!(ports(&opened(&sent[0], 8).0).1, INTERNAL.udp_port);
    assert!(send(&mut new, vxlan(EXTERNAL, &question())).is_empty());
    let mut plain = settings(GENEVE);
    plain.overlay = None;
    let mut old = Bench::new(&allow_all(), plain);
    old.one(INSIDE, question());
    let (_, imported) = old.succeed(&allow_all(), settings(GENEVE), elapsed);
    assert_eq!((imported.taken, imported.refused), (0, 1));
}

#[test]
fn connections_are_told_what_fits() {
    fn check(options: &[u8], expected: &[u8]) {
        let mut bench = Bench::new(&allow_all(), settings(pair(false)));
        let syn = Frame::tcp(
            at("10.0.7.2:5000"),
            at("198.51.100.1:80"),
            SYN,
            9,
            0,
            options,
        );
        let mut bytes = syn.between(STATIONS[0], STATIONS[1]).emit();
        // What was payload becomes options, which the checksum covers as well.
        let words = (5 + options.len() / 4) as u8;
        let (old, new) = (0x5002u16, u16::from(words) << 12 | 2);
        bytes[46] = words << 4;
        let sum = u32::from(!u16::from_be_bytes([bytes[50], bytes[51]]))
            + u32::from(!old)
            + u32::from(new);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[50..52].copy_from_slice(&sum.to_be_bytes());
        let sent = send(
            &mut bench,
            outer(LB, 10_800, &[&vxlan_header(800), &bytes], false),
        );
        let (_, _, inner) = opened(&sent[0], 8);
        Frame::parse(&inner).expect("right in every checksum");
        assert_eq!(&inner[54..], expected, "{options:?}");
    }
    // 1400 bytes less 40 of headers are 0x550.
    check(&[2, 4, 5, 0xb4], &[2, 4, 5, 0x50]);
    check(&[1, 2, 4, 5, 0xb4, 1, 1, 1], &[1, 2, 4, 5, 0x50, 1, 1, 1]);
    check(&[2, 4, 2, 0], &[2, 4, 2, 0]);
    check(&[0, 4, 5, 0xb4], &[0, 4, 5, 0xb4]);
    check(&[2, 4], &[2, 4]);
    check(&[3, 0, 2, 4, 5, 0xb4, 1, 1], &[3, 0, 2, 4, 5, 0x50, 1, 1]);
}

#[test]
fn translation_within_a_tunnel_by_key() {
    let mut all = settings(GENEVE);
    all.snat = Snat::Auto;
    let mut bench = Bench::new(&allow_all(), all);
    let header = geneve_header(0x0800, &ENDPOINT);
    let packet = |f: &Frame| outer(LB, 6081, &[&header, &f.emit()[14..]], false);
    let sent = send(&mut bench, packet(&question()));
    assert_eq!(opened(&sent[0], 40).2[12..16], [10, 0, 0, 1]);
    let server: SocketAddr = at("198.51.100.1:53");
    let sent = send(
        &mut bench,
        packet(&Frame::udp(server, at("10.0.0.1:5000"), b"answer")),
    );
    assert_eq!(opened(&sent[0], 40).2[16..20], [10, 0, 7, 2]);
}

#[test]
fn what_a_dhcp_server_says_in_a_tunnel_is_an_answer_like_any_other() {
    let mut team = Team::new(3, settings(pair(true)));
    for n in 2..40 {
        let client = at(&format!("10.0.7.{n}:68"));
        let server = at("198.51.100.1:67");
        let asked = vxlan(INTERNAL, &Frame::udp(client, server, b"request"));
        assert_eq!(to_any(&mut team, vec![asked]).len(), 1);
        // For the station whose frame it is in.
        let said = acquire::answer([0; 4], STATIONS[0], 5, &[]);
        let said = Frame::udp(server, client, &said);
        let answered = vxlan(EXTERNAL, &said);
        assert_eq!(to_any(&mut team, vec![answered]).len(), 1);
        let header = vxlan_header(801);
        let frames = split(INSIDE, &said, n, &[200])
            .iter()
            .map(|piece| outer(LB, 10_801, &[&header, piece], false))
            .collect();
        assert_eq!(to_any(&mut team, frames).len(), 2, "in pieces too");
        // Outside of the tunnel it is nobody's.
        let stray = said.between(PEER, MACS[INSIDE]).emit();
        assert!(to_any(&mut team, vec![stray]).is_empty());
    }
    assert_eq!(team.dropped(DropReason::OverlayDecap), 38);
}

/// What is written once can be read for ever, and as the same.
#[test]
fn records_of_flows_in_tunnels_are_read_as_they_were_written() {
    let mut old = Bench::new(&allow_all(), settings(GENEVE));
    let header = geneve_header(0x0800, &ENDPOINT);
    let bytes = outer(LB, 6081, &[&header, &question().emit()[14..]], false);
    assert_eq!(send(&mut old, bytes).len(), 1);
    let without_age = bytes_of(include_str!("handover/flows-1-geneve.hex"));
    let kept = bytes_of(include_str!("handover/flows-1-geneve-lasted.hex"));
    assert_eq!(
        export(&old.worker, old.now),
        kept,
        "flows are written differently now"
    );
    for written in [&without_age, &kept] {
        let mut new = Bench::new(&allow_all(), settings(GENEVE));
        let imported = new
            .worker
            .import_flows(new.now, std::time::Duration::ZERO, written);
        assert_eq!(imported.map(|i| i.taken), Ok(1));
        let back = outer(LB, 6081, &[&header, &answer().emit()[14..]], false);
        assert_eq!(send(&mut new, back).len(), 1);
    }
}

#[test]
fn the_source_port_may_be_the_tunnels_own() {
    let mut all = settings(pair(true));
    all.overlay.as_mut().expect("set above").fixed_source_port = true;
    let mut bench = Bench::new(&allow_all(), all);
    let sent = send(&mut bench, vxlan(INTERNAL, &question()));
    assert_eq!(ports(&opened(&sent[0], 8).0), (10_801, 10_801));
}

proptest! {
    /// Whatever is in a tunnel gets one verdict and no panic, and what comes out of it can be read.
    #[test]
    fn any_bytes_in_a_tunnel(
        mode in 0usize..3,
        noise in proptest::collection::vec(any::<u8>(), 0..120),
        changes in proptest::collection::vec((0usize..90, any::<u8>()), 0..3),
    ) {
        let (encapsulation, port, header) = [
            (pair(true), 10_800, vxlan_header(800)),
            (GENEVE, 6081, geneve_header(0x0800, &ENDPOINT)),
            (GENEVE, 6081, geneve_header(0x6558, &ENDPOINT)),
        ][mode].clone();
        let mut bench = Bench::new(&allow_all(), settings(encapsulation));
        let frame = question().between(STATIONS[0], STATIONS[1]).emit();
        let mut whole = [&header[..], if mode == 1 { &frame[14..] } else { &frame }].concat();
        for (at, value) in changes {
            if let Some(byte) = whole.get_mut(at) {
                *byte = value;
            }
        }
        for body in [whole, noise.clone(), [&header[..], &noise].concat()] {
            let before: u64 = DropReason::ALL.iter().map(|r| bench.counters.dropped(*r).packets.get()).sum();
            let sent = send(&mut bench, outer(LB, port, &[&body], false));
            let after: u64 = DropReason::ALL.iter().map(|r| bench.counters.dropped(*r).packets.get()).sum();
            prop_assert!(after - before <= 1);
            for (_, packet) in sent {
                prop_assert!(Frame::parse(packet.bytes()).is_ok());
            }
        }
    }
}
