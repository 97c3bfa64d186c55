//! Packets that come in pieces or have to leave in pieces.

use std::net::IpAddr;
use std::time::Duration;

use engine::DropReason;
use engine::port::memory::MemoryPacket;
use engine::port::{Checksum, Gso, GsoKind, Meta, Packet};
use engine::snapshot::LocalService;
use proptest::prelude::*;
use sim::frame::{ACK, Body, Frame, SYN};

use crate::bench::*;

/// The packet in pieces that end at these bytes of its payload.
pub(crate) fn split(port: usize, frame: &Frame, id: u32, ends: &[usize]) -> Vec<Vec<u8>> {
    let whole = frame.clone().between(PEER, MACS[port]).emit();
    let v4 = frame.src.is_ipv4();
    let (head, rest) = whole.split_at(if v4 { 34 } else { 54 });
    let mut start = 0;
    let ends = ends.iter().copied().filter(|e| *e < rest.len());
    let ends: Vec<usize> = ends.chain([rest.len()]).collect();
    ends.iter()
        .map(|end| {
            let piece = piece(head, id, start, end < &rest.len(), &rest[start..*end]);
            start = *end;
            piece
        })
        .collect()
}

/// One fragment behind the headers of an unfragmented packet.
fn piece(head: &[u8], id: u32, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut b = head.to_vec();
    if head.len() == 34 {
        b[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        b[18..20].copy_from_slice(&(id as u16).to_be_bytes());
        let word = u16::from(b[20] & 0x40) << 8 | u16::from(more) << 13 | (offset / 8) as u16;
        b[20..22].copy_from_slice(&word.to_be_bytes());
        seal(&mut b);
    } else {
        b[18..20].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        let next = std::mem::replace(&mut b[20], 44);
        b.extend([next, 0]);
        b.extend((offset as u16 | u16::from(more)).to_be_bytes());
        b.extend(id.to_be_bytes());
    }
    b.extend(payload);
    b
}

fn seal(b: &mut [u8]) {
    b[24..26].fill(0);
    let sum = b[14..34].chunks(2).fold(0u32, |sum, w| {
        sum + u32::from(u16::from_be_bytes([w[0], w[1]]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    b[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Identification and whole packet of pieces, which must come in order and without gaps.
fn join(pieces: &[Vec<u8>]) -> (u32, Frame) {
    let first = &pieces[0];
    let v4 = first[12..14] == [8, 0];
    let mut whole = first[..if v4 { 34 } else { 54 }].to_vec();
    let mut ids = Vec::new();
    for (i, b) in pieces.iter().enumerate() {
        let (head, word) = match v4 {
            true => (34, u16::from_be_bytes([b[20], b[21]])),
            false => (62, u16::from_be_bytes([b[56], b[57]])),
        };
        let (offset, more) = match v4 {
            true => ((word & 0x1fff) * 8, word & 0x2000 != 0),
            false => (word & 0xfff8, word & 1 != 0),
        };
        assert_eq!(usize::from(offset), whole.len() - if v4 { 34 } else { 54 });
        assert_eq!(more, i + 1 < pieces.len());
        ids.push(match v4 {
            true => u32::from(u16::from_be_bytes([b[18], b[19]])),
            false => u32::from_be_bytes([b[58], b[59], b[60], b[61]]),
        });
        whole.extend(&b[head..]);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    if v4 {
        let len = whole.len() as u16 - 14;
        whole[16..18].copy_from_slice(&len.to_be_bytes());
        whole[18..20].fill(0);
        whole[20] &= 0x40;
        whole[21] = 0;
        seal(&mut whole);
    } else {
        let len = whole.len() as u16 - 54;
        whole[20] = first[54];
        whole[18..20].copy_from_slice(&len.to_be_bytes());
    }
    (
        ids[0],
        Frame::parse(&whole).unwrap_or_else(|e| panic!("{e}")),
    )
}

fn send(bench: &mut Bench, port: usize, pieces: Vec<Vec<u8>>) -> Vec<(usize, Vec<u8>)> {
    let mut sent = Vec::new();
    for piece in pieces {
        sent.extend(bench.send_packet(port, MemoryPacket::new(piece)));
    }
    sent.into_iter()
        .map(|(port, p)| (port, p.bytes().to_vec()))
        .collect()
}

/// What comes out, which must be one packet by one port.
fn one(bench: &mut Bench, port: usize, pieces: Vec<Vec<u8>>) -> (usize, u32, Frame) {
    let sent = send(bench, port, pieces);
    assert!(!sent.is_empty(), "{:?}", bench.moved());
    assert!(sent.iter().all(|(port, _)| *port == sent[0].0));
    let pieces: Vec<Vec<u8>> = sent.iter().map(|(_, b)| b.clone()).collect();
    let (id, frame) = join(&pieces);
    (sent[0].0, id, frame)
}

fn bench() -> Bench {
    Bench::new(&allow_all(), two_arms())
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

const V4: [&str; 3] = ["10.0.0.2:5000", "198.51.100.1:53", "192.0.2.1"];
const V6: [&str; 3] = ["[fd00::2]:5000", "[2001:db8:1::1]:53", "fd00::2"];

#[test]
fn datagrams_pass_both_ways_in_the_pieces_they_came_in() {
    for [client, server, shown] in [V4, V6] {
        let mut bench = bench();
        let question = Frame::udp(at(client), at(server), &payload(4000));
        let pieces = split(INSIDE, &question, 77, &[1448, 2896]);
        let sizes: Vec<usize> = pieces.iter().map(Vec::len).collect();
        let sent = send(&mut bench, INSIDE, pieces);
        let out: Vec<Vec<u8>> = sent.iter().map(|(_, b)| b.clone()).collect();
        assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        let (_, frame) = join(&out);
        assert_eq!(
            (frame.src, frame.dst, frame.ttl),
            (ip(shown), ip(server_ip(server)), 63)
        );
        assert_eq!(frame.body, question.body);
        let moved = bench.moved();
        assert!(moved.contains(&"allow out udp +3".to_string()), "{moved:?}");
        assert!(moved.contains(&"reassembled +1".to_string()), "{moved:?}");

        let answer = Frame::udp(at(server), (ip(shown), 5000).into(), &payload(3000));
        let pieces = split(OUTSIDE, &answer, 0x1234, &[1448, 2896]);
        let (port, id, frame) = one(&mut bench, OUTSIDE, pieces);
        assert_eq!((port, id), (INSIDE, 0x1234));
        assert_eq!(frame.dst, at(client).ip());
        assert_eq!(frame.body, answer.body);
        assert_eq!(bench.moved(), ["allow in udp +3", "reassembled +1"]);
    }
}

fn server_ip(server: &str) -> &str {
    match server.strip_prefix('[') {
        Some(rest) => rest.split(']').next().expect("a constant"),
        None => server.split(':').next().expect("a constant"),
    }
}

proptest! {
    #[test]
    fn the_order_and_repetition_of_pieces_do_not_matter(
        v4: bool,
        sizes in prop::collection::vec(1usize..180, 1..8),
        last in 1usize..1400,
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        let [client, server, _] = if v4 { V4 } else { V6 };
        let mut bench = bench();
        let ends: Vec<usize> = sizes
            .iter()
            .scan(0, |end, size| {
                *end += size * 8;
                Some(*end)
            })
            .collect();
        let len = ends[ends.len() - 1] + last - 8;
        let frame = Frame::udp(at(client), at(server), &payload(len));
        let pieces = split(INSIDE, &frame, 9, &ends);
        // Each piece at least once, some twice, the last of them completes it.
        let mut sequence: Vec<usize> = order.iter().map(|i| i.index(pieces.len())).collect();
        sequence.extend((0..pieces.len()).filter(|i| !order.iter().any(|o| o.index(pieces.len()) == *i)));
        let mut seen = std::collections::HashSet::new();
        let mut out = Vec::new();
        for i in sequence {
            if seen.len() < pieces.len() {
                out.extend(send(&mut bench, INSIDE, vec![pieces[i].clone()]));
            }
            seen.insert(i);
        }
        let out: Vec<Vec<u8>> = out.into_iter().map(|(_, b)| b).collect();
        prop_assert_eq!(join(&out).1.body, frame.body);
    }

    #[test]
    fn any_bytes_in_the_fragment_fields_do_no_harm(
        v4: bool,
        fields in prop::collection::vec((0u16..4, any::<u16>(), 0usize..300, any::<[u8; 8]>()), 1..60),
    ) {
        let [client, server, _] = if v4 { V4 } else { V6 };
        let mut bench = bench();
        for (id, word, len, start) in fields {
            let mut data = payload(len);
            let n = len.min(8);
            data[..n].copy_from_slice(&start[..n]);
            let frame = Frame::udp(at(client), at(server), b"").between(PEER, MACS[INSIDE]).emit();
            let head = &frame[..if v4 { 34 } else { 54 }];
            let mut b = piece(head, u32::from(id), 0, true, &data);
            if v4 {
                b[20..22].copy_from_slice(&(word & 0x3fff).to_be_bytes());
                seal(&mut b);
            } else {
                b[56..58].copy_from_slice(&word.to_be_bytes());
            }
            bench.send_packet(INSIDE, MemoryPacket::new(b));
        }
        bench.pass(Duration::from_secs(60));
        let next = Frame::udp(at(client), at(server), &payload(2000));
        let (_, _, out) = one(&mut bench, INSIDE, split(INSIDE, &next, 1, &[1000]));
        prop_assert_eq!(out.body, next.body);
    }
}

/// Sends pieces of a UDP datagram of 2000 bytes, each given by offset, end and whether more follow, and expects that
/// nothing comes out and that this is counted.
fn refused(pieces: &[(usize, usize, bool)], expected: &[&str]) {
    for [client, server, _] in [V4, V6] {
        let mut bench = bench();
        let frame = Frame::udp(at(client), at(server), &payload(1992));
        let bytes = frame.between(PEER, MACS[INSIDE]).emit();
        let (head, rest) = bytes.split_at(if client == V4[0] { 34 } else { 54 });
        let pieces = pieces
            .iter()
            .map(|(start, end, more)| piece(head, 5, *start, *more, &rest[*start..*end]))
            .collect();
        assert_eq!(send(&mut bench, INSIDE, pieces), [], "{:?}", bench.moved());
        bench.pass(Duration::from_secs(30));
        assert_eq!(bench.moved(), expected, "{client}");
    }
}

#[test]
fn pieces_that_contradict_each_other_take_the_datagram_with_them() {
    let overlap = ["drop fragment_overlap +3", "fragments +3"];
    // RFC 5722: by as little as eight bytes, in either order; and nothing comes of it later.
    refused(
        &[(0, 1000, true), (992, 2000, false), (1000, 2000, false)],
        &overlap,
    );
    refused(
        &[(992, 2000, false), (0, 1000, true), (0, 992, true)],
        &overlap,
    );
    // RFC 3128: the ports written anew.
    refused(
        &[(0, 1000, true), (8, 16, true), (1000, 2000, false)],
        &overlap,
    );
    // Two ends, and something behind the end.
    refused(
        &[(1000, 2000, false), (1000, 1008, false), (0, 1000, true)],
        &overlap,
    );
    refused(
        &[(1008, 1016, true), (8, 1000, false), (0, 8, true)],
        &overlap,
    );
}

#[test]
fn pieces_that_make_no_datagram_are_dropped() {
    // RFC 1858: the ports are in the second piece.
    refused(&[(0, 0, true)], &["drop fragment +1", "fragments +1"]);
    refused(&[(0, 1001, true)], &["drop fragment +1", "fragments +1"]);
    refused(&[(0, 1000, true)], &["drop fragment +1", "fragments +1"]);
    refused(
        &[(1000, 2000, false)],
        &["drop fragment +1", "fragments +1"],
    );
}

#[test]
fn the_first_piece_has_the_whole_tcp_header() {
    for [client, server, _] in [V4, V6] {
        let mut bench = bench();
        let syn = Frame::tcp(at(client), at(server), SYN, 1, 0, b"");
        let pieces = split(INSIDE, &syn, 1, &[16]);
        assert_eq!(send(&mut bench, INSIDE, pieces), []);
        assert_eq!(
            bench.moved(),
            ["drop fragment +2", "fragments +2", "reassembled +1"]
        );
    }
}

#[test]
fn tcp_in_pieces_counts_with_all_its_bytes() {
    let mut bench = bench();
    crate::tcp::establish(&mut bench, 5000);
    let (client, server) = (at("10.0.0.2:5000"), at("198.51.100.1:80"));
    let data = Frame::tcp(client, server, ACK, 101, 501, &payload(2000));
    let (_, _, frame) = one(&mut bench, INSIDE, split(INSIDE, &data, 3, &[800]));
    assert_eq!(frame.body, data.body);
    // The server may acknowledge all of it.
    let ack = Frame::tcp(server, at("192.0.2.1:5000"), ACK, 501, 2101, b"");
    bench.one(OUTSIDE, ack);
}

#[test]
fn a_length_that_leaves_bytes_over_is_refused() {
    let mut bench = bench();
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
    let mut pieces = split(INSIDE, &frame, 1, &[1000]);
    pieces[0][38..40].copy_from_slice(&100u16.to_be_bytes());
    assert_eq!(send(&mut bench, INSIDE, pieces), []);
    assert_eq!(
        bench.moved(),
        ["drop malformed_header +2", "reassembled +1"]
    );
}

#[test]
fn the_policy_judges_what_comes_in_pieces() {
    let dns = policy(
        "deny",
        "drop",
        r#"{"id":"dns","action":"allow","match":{"proto":"udp","dst_ports":[53]}}"#,
    );
    let mut bench = Bench::new(&dns, two_arms());
    let frame = Frame::udp(at(V4[0]), at("198.51.100.1:54"), &payload(2000));
    assert_eq!(
        send(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000])),
        []
    );
    assert_eq!(
        bench.moved(),
        ["deny out udp +2", "drop policy_denied +2", "reassembled +1"]
    );
    let stranger = Frame::udp(at(V4[1]), at("192.0.2.1:5000"), &payload(2000));
    assert_eq!(
        send(&mut bench, OUTSIDE, split(OUTSIDE, &stranger, 1, &[1000])),
        []
    );
    assert_eq!(
        bench.moved(),
        ["deny in udp +2", "drop from_outside +2", "reassembled +1"]
    );
}

#[test]
fn datagrams_of_two_clients_never_leave_under_one_identification() {
    let mut bench = bench();
    let mut ids = std::collections::HashSet::new();
    for n in 2..50 {
        for round in 0..2 {
            let client = format!("10.0.0.{n}:5000").parse().expect("a constant");
            let frame = Frame::udp(client, at(V4[1]), &payload(2000));
            let pieces = split(INSIDE, &frame, 7 + round, &[1000]);
            let (_, id, out) = one(&mut bench, INSIDE, pieces);
            assert_eq!(out.src, ip("192.0.2.1"));
            assert!(ids.insert(id), "{id} twice");
        }
    }
}

#[test]
fn what_is_kept_is_bounded_by_source_and_in_all() {
    let mut bench = bench();
    let lonely = |a: u8, b: u8, id| {
        let client: IpAddr = [10, 0, a, b].into();
        let frame = Frame::udp((client, 5).into(), at(V4[1]), &payload(2000));
        split(INSIDE, &frame, id, &[1000]).swap_remove(0)
    };
    for id in 0..200 {
        send(&mut bench, INSIDE, vec![lonely(0, 2, id)]);
    }
    assert_eq!(bench.moved(), ["drop fragment_limit +72", "fragments +72"]);
    // Many sources push the oldest out, and one that comes in the midst is served.
    for n in 0..1500u16 {
        send(
            &mut bench,
            INSIDE,
            vec![lonely((n >> 8) as u8 + 1, n as u8, 1)],
        );
    }
    let lost = bench
        .counters
        .dropped(DropReason::FragmentLimit)
        .packets
        .get();
    assert_eq!(lost, 72 + 128 + 1500 - 1024);
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
    one(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000]));
}

/// The first half, and the second, of a datagram of a client.
fn halves(client: &str, id: u32) -> [Vec<u8>; 2] {
    let frame = Frame::udp(at(client), at(V4[1]), &payload(2000));
    let halves = split(INSIDE, &frame, id, &[1000]);
    halves.try_into().expect("cut once")
}

#[test]
fn a_source_that_holds_all_it_may_gives_up_its_oldest_for_the_new() {
    let mut bench = bench();
    for id in 0..200 {
        let [first, _] = halves(V4[0], id);
        send(&mut bench, INSIDE, vec![first]);
    }
    bench.moved();
    one(&mut bench, INSIDE, halves(V4[0], 500).into());
    let [_, late] = halves(V4[0], 199);
    assert!(!send(&mut bench, INSIDE, vec![late]).is_empty(), "kept");
    let [_, late] = halves(V4[0], 72);
    assert!(send(&mut bench, INSIDE, vec![late]).is_empty(), "given up");
}

#[test]
fn what_makes_a_datagram_whole_pushes_nothing_out() {
    let mut bench = bench();
    for id in 0..128 {
        let [first, _] = halves(V4[0], id);
        send(&mut bench, INSIDE, vec![first]);
    }
    for id in 0..128 {
        let [_, second] = halves(V4[0], id);
        assert_eq!(send(&mut bench, INSIDE, vec![second]).len(), 2);
    }
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::FragmentLimit)
            .packets
            .get(),
        0
    );
}

#[test]
fn datagrams_that_were_refused_count_for_their_source() {
    let mut bench = bench();
    let [first, second] = halves("10.0.0.3:5000", 7);
    send(&mut bench, INSIDE, vec![first]);
    for id in 0..1500 {
        let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
        let [first, _] = halves(V4[0], id);
        let overlapping = split(INSIDE, &frame, id, &[504]).swap_remove(1);
        send(&mut bench, INSIDE, vec![first, overlapping]);
    }
    let overlaps = bench.counters.dropped(DropReason::FragmentOverlap);
    assert_eq!(overlaps.packets.get(), 3000);
    assert_eq!(send(&mut bench, INSIDE, vec![second]).len(), 2);
}

#[test]
fn zero_time_means_that_fragments_are_dropped() {
    let mut settings = two_arms();
    settings.timeouts.fragment = Duration::ZERO;
    let mut bench = Bench::new(&allow_all(), settings);
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
    assert_eq!(
        send(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000])),
        []
    );
    assert_eq!(bench.moved(), ["drop fragment +2", "fragments +2"]);
}

#[test]
fn a_datagram_for_a_worker_without_room_is_not_lost_for_its_pieces() {
    // There is no way to any other worker.
    let mut bench = Bench::one_of(&allow_all(), two_arms(), 1024);
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
    let sent = send(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000]));
    assert_eq!(sent, []);
    assert_eq!(
        bench.moved(),
        ["drop worker_queue_full +2", "reassembled +1"]
    );
}

#[test]
fn our_own_addresses_answer_echo_in_pieces() {
    let of_link = link_local(INSIDE).to_string();
    for (src, dst) in [
        ("10.0.0.2", "10.0.0.1"),
        ("fd00::2", "fd00::1"),
        ("fe80::7", &of_link),
    ] {
        let mut bench = bench();
        let (kind, reply) = if src == "10.0.0.2" {
            (8, 0)
        } else {
            (128, 129)
        };
        let ask = Frame::icmp(ip(src), ip(dst), kind, 0, 0x0001_0002, &payload(4000));
        let (port, _, out) = one(&mut bench, INSIDE, split(INSIDE, &ask, 1, &[1480, 2960]));
        assert_eq!((port, out.src, out.dst), (INSIDE, ip(dst), ip(src)));
        let Body::Icmp {
            icmp_type,
            payload: got,
            ..
        } = out.body
        else {
            panic!("{out:?}")
        };
        assert_eq!((icmp_type, got), (reply, payload(4000)));
    }
}

#[test]
fn the_host_gets_datagrams_whole() {
    let mut bench = bench();
    let ask = Frame::udp(at("10.0.0.2:5000"), at("10.0.0.53:53"), &payload(3000));
    let sent = send(&mut bench, INSIDE, split(INSIDE, &ask, 1, &[1480]));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, LANE);
    assert_eq!(
        Frame::parse(&with_zero_id(&sent[0].1)).map(|f| f.body),
        Ok(ask.body)
    );
}

fn with_zero_id(b: &[u8]) -> Vec<u8> {
    let mut b = b.to_vec();
    b[18..20].fill(0);
    seal(&mut b);
    b
}

#[test]
fn an_expired_hop_limit_is_told_once() {
    let mut bench = bench();
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000)).with_ttl(1);
    let sent = send(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000]));
    assert_eq!(sent.len(), 1);
    assert_eq!(
        bench.moved(),
        ["drop ttl_exceeded +2", "icmp_sent +1", "reassembled +1"]
    );
}

#[test]
fn a_packet_too_large_for_the_next_link_leaves_in_pieces_if_it_may() {
    let mut bench = Bench::with_mtus(&allow_all(), two_arms(), [9000, 1500]);
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(4000));
    let bytes = frame.clone().between(PEER, MACS[INSIDE]).emit();
    let sent = send(&mut bench, INSIDE, vec![bytes]);
    assert_eq!(
        sent.iter().map(|(p, b)| (*p, b.len())).collect::<Vec<_>>(),
        [(OUTSIDE, 1514), (OUTSIDE, 1514), (OUTSIDE, 1082)]
    );
    let (id, out) = join(&sent.into_iter().map(|(_, b)| b).collect::<Vec<_>>());
    assert_ne!(id, 0);
    assert_eq!((out.src, out.body), (ip("192.0.2.1"), frame.body.clone()));
    assert!(bench.moved().contains(&"fragmented +1".to_string()));
    // Pieces that are too large are cut anew.
    let (_, _, out) = one(&mut bench, INSIDE, split(INSIDE, &frame, 8, &[3000]));
    assert_eq!(out.body, frame.body);

    bench.moved();
    bench.send(INSIDE, frame.with_df());
    assert_eq!(bench.moved(), ["drop too_big +1", "icmp_sent +1"]);
    let v6 = Frame::udp(at(V6[0]), at(V6[1]), &payload(4000));
    send(&mut bench, INSIDE, split(INSIDE, &v6, 8, &[3000]));
    assert!(bench.moved().contains(&"drop too_big +2".to_string()));
}

#[test]
fn datagrams_of_a_super_packet_leave_in_pieces_each_if_they_may() {
    let super_packet = |frame: Frame, size: u16| {
        let gso = Some(Gso {
            kind: GsoKind::Udp,
            size,
            header_len: 42,
            ecn: false,
        });
        let checksum = Checksum::Partial {
            start: 34,
            offset: 6,
        };
        let meta = Meta {
            checksum,
            gso,
            ..Meta::default()
        };
        let mut bytes = frame.between(PEER, MACS[INSIDE]).emit();
        // The sender has given the first datagram this one, and one more to each that follows.
        bytes[18..20].copy_from_slice(&0xfffeu16.to_be_bytes());
        seal(&mut bytes);
        MemoryPacket::new(bytes).with_meta(meta)
    };
    // Outside under the node's identifications, inside under the sender's.
    for (server, out, shown) in [
        (V4[1], OUTSIDE, "192.0.2.1"),
        ("10.0.0.3:53", INSIDE, "10.0.0.2"),
    ] {
        let mtus = if out == OUTSIDE {
            [9000, 1500]
        } else {
            [1500, 9000]
        };
        let mut bench = Bench::with_mtus(&allow_all(), two_arms(), mtus);
        bench.one(INSIDE, Frame::udp(at(V4[0]), at(server), b""));
        bench.moved();
        // Three datagrams, of which the last needs no cut.
        let all = payload(2 * 4000 + 500);
        let frame = Frame::udp(at(V4[0]), at(server), &all);
        let sent = bench.send_packet(INSIDE, super_packet(frame.clone(), 4000));
        let lens: Vec<usize> = sent.iter().map(|(_, p)| p.bytes().len()).collect();
        assert_eq!(lens, [1514, 1514, 1082, 1514, 1514, 1082, 542]);
        assert!(
            sent.iter()
                .all(|(port, p)| (*port, p.meta()) == (out, &Meta::default()))
        );
        let bytes: Vec<Vec<u8>> = sent.iter().map(|(_, p)| p.bytes().to_vec()).collect();
        let joined = [&bytes[..3], &bytes[3..6], &bytes[6..]].map(join);
        // Checksums are right, or they would not parse.
        for ((_, datagram), expected) in joined.iter().zip(all.chunks(4000)) {
            assert_eq!((datagram.src, datagram.ttl), (ip(shown), 63));
            let Body::Udp { payload, .. } = &datagram.body else {
                panic!("{datagram:?}")
            };
            assert_eq!(payload, expected);
        }
        let ids = joined.map(|(id, _)| id);
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        if out == INSIDE {
            assert_eq!(ids[..2], [0xfffe, 0xffff]);
        }
        assert_eq!(bench.moved(), ["allow out udp +1", "fragmented +2"]);

        // The size of the datagrams counts, not that of all.
        let sent = bench.send_packet(INSIDE, super_packet(frame.clone(), 1000));
        assert_eq!((sent.len(), sent[0].1.bytes().len()), (1, 42 + all.len()));
        bench.moved();
        let sent = bench.send_packet(INSIDE, super_packet(frame.with_df(), 4000));
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].1.bytes()[34..36], [3, 4]);
        assert_eq!(bench.moved(), ["drop too_big +1", "icmp_sent +1"]);
    }
}

#[test]
fn what_the_host_sends_leaves_as_the_link_carries_it() {
    let mut settings = two_arms();
    settings.services.push(LocalService {
        address: ip("fd00::53"),
        ports: vec![53],
    });
    let mut bench = Bench::with_mtus(&allow_all(), settings, [1400, 1500]);
    let answer = Frame::udp(at("10.0.0.53:53"), at("10.0.0.2:5000"), &payload(1450));
    let sent = bench.send_packet(LANE, MemoryPacket::new(answer.clone().emit()));
    let pieces: Vec<Vec<u8>> = sent.iter().map(|(_, p)| p.bytes().to_vec()).collect();
    assert_eq!(pieces.len(), 2);
    assert!(
        sent.iter()
            .all(|(port, p)| *port == INSIDE && p.bytes().len() <= 1414)
    );
    let (_, joined) = join(&pieces);
    assert_eq!(joined, answer.clone().between(MACS[INSIDE], PEER));
    assert_eq!(bench.moved(), ["allow in udp +1", "fragmented +1"]);

    let answer6 = Frame::udp(at("[fd00::53]:53"), at("[fd00::2]:5000"), &payload(1450));
    for (answer, from, told) in [
        (answer.with_df(), "169.254.255.2", (3, 4)),
        (answer6, "fd6e:7765::2", (2, 0)),
    ] {
        let mut sent = bench.send_bytes(LANE, answer.clone().emit());
        let (port, error) = sent.pop().expect("the host is told");
        assert_eq!((port, sent.len()), (LANE, 0));
        assert_eq!((error.src, error.dst), (ip(from), answer.src));
        let Body::Icmp {
            icmp_type,
            code,
            rest,
            payload,
        } = error.body
        else {
            panic!("{error:?}")
        };
        assert_eq!(((icmp_type, code), rest), (told, 1400));
        assert!(answer.emit()[14..].starts_with(&payload));
        assert_eq!(bench.moved(), ["drop too_big +1", "icmp_sent +1"]);
    }
}

#[test]
fn an_error_too_large_for_the_client_leaves_in_pieces_if_it_may() {
    let mut bench = Bench::with_mtus(&allow_all(), two_arms(), [1500, 9000]);
    let question = Frame::udp(at(V4[0]), at(V4[1]), &payload(1400));
    let (_, out) = bench.one(INSIDE, question);
    let quoted = [&out.emit()[14..], &payload(600)[..]].concat();
    bench.moved();
    let error = Frame::icmp(ip("203.0.113.9"), ip("192.0.2.1"), 3, 3, 0, &quoted);
    let bytes = error.clone().between(PEER, MACS[OUTSIDE]).emit();
    let sent = bench.send_packet(OUTSIDE, MemoryPacket::new(bytes));
    assert!(sent.iter().all(|(_, p)| p.bytes().len() <= 1514));
    let pieces: Vec<Vec<u8>> = sent.iter().map(|(_, p)| p.bytes().to_vec()).collect();
    assert_eq!(join(&pieces).1.dst, ip("10.0.0.2"));
    let moved = ["allow in icmp +1", "fragmented +1", "icmp_translated +1"];
    assert_eq!(bench.moved(), moved);
    // Of an error nobody is told.
    bench.send(OUTSIDE, error.with_df());
    assert_eq!(bench.moved(), ["drop too_big +1"]);
}

#[test]
fn an_error_about_the_first_piece_finds_its_flow() {
    let mut bench = bench();
    let frame = Frame::udp(at(V4[0]), at(V4[1]), &payload(2000));
    let sent = send(&mut bench, INSIDE, split(INSIDE, &frame, 1, &[1000]));
    for ((_, piece), expected) in sent
        .iter()
        .zip(["icmp_translated +1", "drop icmp_no_flow +1"])
    {
        bench.moved();
        let quoted = &piece[14..14 + 48];
        let error = Frame::icmp(ip("203.0.113.9"), ip("192.0.2.1"), 11, 0, 0, quoted);
        bench.send_packet(
            OUTSIDE,
            MemoryPacket::new(error.between(PEER, MACS[OUTSIDE]).emit()),
        );
        assert!(bench.moved().contains(&expected.to_string()), "{expected}");
    }
}
