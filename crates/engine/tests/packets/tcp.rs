//! TCP from the first SYN to the end of TIME_WAIT.

use std::time::Duration;

use super::bench::*;
use engine::port::Packet;
use engine::port::memory::MemoryPacket;
use engine::{DropReason, Now};
use sim::frame::{ACK, Body, FIN, Frame, RST, SYN};

const SERVER: &str = "198.51.100.1:80";

pub(crate) fn out(port: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Frame {
    Frame::tcp(
        (ip("10.0.0.2"), port).into(),
        at(SERVER),
        flags,
        seq,
        ack,
        payload,
    )
}

pub(crate) fn back(port: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Frame {
    Frame::tcp(
        at(SERVER),
        (ip("192.0.2.1"), port).into(),
        flags,
        seq,
        ack,
        payload,
    )
}

/// Opens a connection: the client's next byte is 101, the server's 501.
pub(crate) fn establish(bench: &mut Bench, port: u16) {
    bench.one(INSIDE, out(port, SYN, 100, 0, b""));
    bench.one(OUTSIDE, back(port, SYN | ACK, 500, 101, b""));
    bench.one(INSIDE, out(port, ACK, 101, 501, b""));
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Whether the flow still stands after this time, shown by a segment from the server.
fn stands_after(bench: &mut Bench, time: u64, port: u16) -> bool {
    bench.pass(secs(time));
    !bench
        .send(OUTSIDE, back(port, ACK, 501, 101, b""))
        .is_empty()
}

#[test]
fn idle_times_by_state() {
    fn check(steps: &[(usize, u8, u32, u32)], lives: u64) {
        for (time, expected) in [(lives - 1, true), (lives + 1, false)] {
            let mut bench = Bench::new(&allow_all(), two_arms());
            for (port, flags, seq, ack) in steps {
                let frame = if *port == INSIDE {
                    out(5000, *flags, *seq, *ack, b"")
                } else {
                    back(5000, *flags, *seq, *ack, b"")
                };
                bench.one(*port, frame);
            }
            assert_eq!(
                stands_after(&mut bench, time, 5000),
                expected,
                "{steps:?} {time}"
            );
            bench.pass(secs(10_000));
            assert_eq!(bench.counters.flows_active.get(), 0, "timers clean up");
        }
    }
    let syn = (INSIDE, SYN, 100, 0);
    let syn_ack = (OUTSIDE, SYN | ACK, 500, 101);
    let ack = (INSIDE, ACK, 101, 501);
    let fin = (INSIDE, FIN | ACK, 101, 501);
    check(&[syn], 30);
    check(&[syn, syn_ack], 60);
    check(&[syn, syn_ack, ack], 7440);
    check(&[syn, syn_ack, ack, fin], 240);
    let fin_back = (OUTSIDE, FIN | ACK, 501, 102);
    check(&[syn, syn_ack, ack, fin, fin_back], 240);
    check(
        &[syn, syn_ack, ack, fin, fin_back, (INSIDE, ACK, 102, 502)],
        120,
    );
    // Simultaneous close: the FINs cross.
    let crossing = (OUTSIDE, FIN | ACK, 501, 101);
    check(
        &[syn, syn_ack, ack, fin, crossing, (INSIDE, ACK, 102, 502)],
        240,
    );
    check(
        &[
            syn,
            syn_ack,
            ack,
            fin,
            crossing,
            (INSIDE, ACK, 102, 502),
            (OUTSIDE, ACK, 502, 102),
        ],
        120,
    );
    check(&[syn, syn_ack, ack, (OUTSIDE, RST, 501, 0)], 10);
}

#[test]
fn data_flows_after_one_side_has_closed() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    establish(&mut bench, 5000);
    bench.one(INSIDE, out(5000, FIN | ACK, 101, 501, b""));
    for i in 0..5 {
        bench.pass(secs(200));
        bench.one(OUTSIDE, back(5000, ACK, 501 + i, 102, b"x"));
        bench.one(INSIDE, out(5000, ACK, 102, 502 + i, b""));
    }
}

#[test]
fn a_forged_reset_does_not_end_a_connection_that_goes_on() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    establish(&mut bench, 5000);
    bench.one(OUTSIDE, back(5000, RST, 999_999, 0, b""));
    bench.one(INSIDE, out(5000, ACK, 101, 501, b"x"));
    bench.one(OUTSIDE, back(5000, ACK, 501, 102, b""));
    assert!(stands_after(&mut bench, 3000, 5000));
}

/// Whoever guesses hits the window, but not the number; who is guessed at says nothing that the guesser could be.
#[test]
fn a_reset_that_may_be_guessed_does_not_end_an_idle_connection() {
    for (reset, ends) in [
        (back(5000, RST, 502, 0, b""), false),
        (back(5000, RST, 500, 0, b""), false),
        (back(5000, RST | ACK, 502, 100, b""), false),
        (back(5000, RST, 501, 0, b""), true),
        // It has sent something that was lost before it came here.
        (back(5000, RST | ACK, 502, 101, b""), true),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        bench.reconfigure(|s| s.tcp_window_check = true);
        establish(&mut bench, 5000);
        bench.one(OUTSIDE, reset.clone());
        // The challenge of who received it.
        bench.one(INSIDE, out(5000, ACK, 101, 501, b""));
        bench.pass(secs(60));
        let stand = bench.counters.flows_active.get();
        assert_eq!(stand, u64::from(!ends), "{reset:?}");
    }
}

#[test]
fn a_port_may_be_used_again_after_the_end() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    establish(&mut bench, 5000);
    bench.one(INSIDE, out(5000, FIN | ACK, 101, 501, b""));
    bench.one(OUTSIDE, back(5000, FIN | ACK, 501, 102, b""));
    bench.one(INSIDE, out(5000, ACK, 102, 502, b""));
    bench.moved();
    bench.one(INSIDE, out(5000, SYN, 70_000, 0, b""));
    assert_eq!(
        bench.moved(),
        ["allow out tcp +1", "closed reused +1", "opened +1"]
    );
}

#[test]
fn the_middle_of_an_unknown_connection_is_refused() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (port, reply) = bench.one(INSIDE, out(5000, ACK, 101, 501, b"x"));
    assert_eq!(
        (port, reply.src, reply.dst),
        (INSIDE, ip("198.51.100.1"), ip("10.0.0.2"))
    );
    assert!(
        matches!(
            reply.body,
            Body::Tcp {
                seq: 501,
                flags: RST,
                ..
            }
        ),
        "{reply:?}"
    );
    assert_eq!(bench.moved(), ["drop no_flow +1", "resets +1"]);
    bench.dropped(INSIDE, out(5000, RST, 101, 0, b""), DropReason::NoFlow);
    assert_eq!(bench.send(INSIDE, out(5000, SYN | ACK, 1, 1, b"")).len(), 1);
    bench.dropped(
        OUTSIDE,
        back(5000, ACK, 501, 101, b""),
        DropReason::FromOutside,
    );
}

#[test]
fn refusals_are_limited() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.limits.resets_per_s = 100);
    let replies: usize = (0..50)
        .map(|i| bench.send(INSIDE, out(5000 + i, ACK, 1, 1, b"")).len())
        .sum();
    // The rest is left to others.
    assert_eq!((replies, bench.counters.replies_limited.get()), (6, 44));
    let other = Frame::tcp(at("10.0.0.3:5000"), at(SERVER), ACK, 1, 1, b"");
    assert_eq!(bench.send(INSIDE, other).len(), 1);
}

#[test]
fn the_middle_of_a_connection_is_picked_up_while_that_is_allowed() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let until = Now(bench.now.0 + 5_000_000_000);
    bench.reconfigure(|s| s.pick_up_until = until);
    bench.one(INSIDE, out(5000, ACK, 101, 501, b"x"));
    assert_eq!(bench.counters.picked_up.get(), 1);
    assert!(
        stands_after(&mut bench, 7000, 5000),
        "it counts as established"
    );
    bench.send(INSIDE, out(5001, ACK, 101, 501, b"x"));
    assert_eq!(bench.counters.dropped(DropReason::NoFlow).packets.get(), 1);
}

/// What a connection that is picked up had sent before is known only by what the other end acknowledges.
#[test]
fn a_connection_that_is_picked_up_goes_on_whatever_was_sent_before() {
    let picking_up = || {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let until = Now(bench.now.0 + 5_000_000_000);
        bench.reconfigure(|s| {
            s.tcp_window_check = true;
            s.pick_up_until = until;
        });
        bench
    };

    // A keepalive repeats the last byte (RFC 9293 §3.8.4).
    let mut bench = picking_up();
    bench.one(INSIDE, out(5000, ACK, 100, 501, b""));
    bench.one(OUTSIDE, back(5000, ACK, 501, 101, b""));
    bench.one(INSIDE, out(5000, ACK, 101, 501, b"data"));
    bench.one(OUTSIDE, back(5000, ACK, 501, 105, b""));

    // The first of several segments is repeated, of which the others have arrived.
    let mut bench = picking_up();
    bench.one(INSIDE, out(5000, ACK, 101, 501, &[0; 100]));
    bench.one(OUTSIDE, back(5000, ACK, 501, 101 + 40_000, b""));
    bench.one(INSIDE, out(5000, ACK, 101 + 40_000, 501, b"data"));
    bench.one(OUTSIDE, back(5000, ACK, 501, 105 + 40_000, b""));

    // Much was lost in between, and what the client sends is far ahead of what the server waits for.
    let mut bench = picking_up();
    bench.one(INSIDE, out(5000, ACK, 3_000_000, 501, &[0; 100]));
    bench.one(OUTSIDE, back(5000, ACK, 501, 1_000_000, b""));
    bench.one(INSIDE, out(5000, ACK, 1_000_000, 501, &[0; 100]));
    bench.one(OUTSIDE, back(5000, ACK, 501, 1_000_100, b""));

    // The same the other way.
    let mut bench = picking_up();
    bench.one(INSIDE, out(5000, ACK, 101, 501, b""));
    bench.one(OUTSIDE, back(5000, ACK, 501, 101, &[0; 100]));
    bench.one(INSIDE, out(5000, ACK, 101, 501 + 40_000, b""));
    bench.one(OUTSIDE, back(5000, ACK, 501 + 40_000, 101, b"data"));

    // More than any window was not sent.
    bench.dropped(
        OUTSIDE,
        back(5000, ACK, 501 + 40_004, 101 + 0x4000_0000, b""),
        DropReason::TcpWindow,
    );
}

#[test]
fn window_check() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.tcp_window_check = true);
    establish(&mut bench, 5000);
    bench.one(INSIDE, out(5000, ACK, 101, 501, b"fine"));
    bench.one(OUTSIDE, back(5000, ACK, 501, 105, b"fine"));
    bench.one(OUTSIDE, back(5000, ACK, 501, 105, b"fine"));
    for forged in [
        back(5000, ACK, 501 + 200_000, 105, b"ahead"),
        back(5000, ACK, 501u32.wrapping_sub(200_000), 105, b"behind"),
        back(
            5000,
            ACK,
            505,
            105 + 100,
            b"acknowledges what was never sent",
        ),
        back(5000, RST, 501 + 200_000, 0, b""),
    ] {
        bench.dropped(OUTSIDE, forged, DropReason::TcpWindow);
    }
    bench.one(OUTSIDE, back(5000, ACK, 505, 105, b"still fine"));
}

/// A client that was started anew knows nothing of its connection, and takes the same port again.
#[test]
fn a_client_that_has_forgotten_its_connection_gets_another_on_the_same_port() {
    const ANEW: u32 = 0x9000_0000;
    let begun_anew = || {
        let mut bench = Bench::new(&allow_all(), two_arms());
        bench.reconfigure(|s| s.tcp_window_check = true);
        establish(&mut bench, 5000);
        bench.one(INSIDE, out(5000, SYN, ANEW, 0, b""));
        bench
    };

    // The server still has the connection: it says so, is told that it is over, and takes the next question.
    let mut bench = begun_anew();
    bench.one(OUTSIDE, back(5000, ACK, 501, 101, b""));
    bench.one(INSIDE, out(5000, RST, 101, 0, b""));
    bench.one(INSIDE, out(5000, SYN, ANEW, 0, b""));
    bench.one(OUTSIDE, back(5000, SYN | ACK, 7, ANEW + 1, b""));
    bench.one(INSIDE, out(5000, ACK, ANEW + 1, 8, b"data"));

    // The server has forgotten it as well, and accepts at once.
    let mut bench = begun_anew();
    bench.one(OUTSIDE, back(5000, SYN | ACK, 0x4000_0000, ANEW + 1, b""));
    bench.one(INSIDE, out(5000, ACK, ANEW + 1, 0x4000_0001, b"data"));
    bench.one(OUTSIDE, back(5000, ACK, 0x4000_0001, ANEW + 5, b"data"));
    bench.pass(secs(7000));
    assert_eq!(
        bench.counters.flows_active.get(),
        1,
        "it counts as established"
    );
    bench.dropped(
        OUTSIDE,
        back(5000, ACK, 501, 101, b"of the old one"),
        DropReason::TcpWindow,
    );

    // Nobody is there any more.
    let mut bench = begun_anew();
    bench.one(OUTSIDE, back(5000, RST | ACK, 0, ANEW + 1, b""));

    // Nobody else ends or replaces a connection so: not before the client has asked, and not after it has gone on.
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.tcp_window_check = true);
    establish(&mut bench, 5000);
    let forged = [SYN | ACK, RST | ACK].map(|flags| back(5000, flags, 0x4000_0000, ANEW, b""));
    for forged in &forged {
        bench.dropped(OUTSIDE, forged.clone(), DropReason::TcpWindow);
    }
    bench.one(INSIDE, out(5000, SYN, ANEW, 0, b""));
    bench.one(INSIDE, out(5000, ACK, 101, 501, b"goes on"));
    for forged in forged {
        bench.dropped(OUTSIDE, forged, DropReason::TcpWindow);
    }
}

#[test]
fn a_second_attempt_from_a_port_reaches_a_server_that_has_not_answered_the_first() {
    for anew in [
        0x7000_0000,
        0xb000_0000,
        0xefff_0000,
        0xf100_0000,
        0x1000_0000,
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        bench.reconfigure(|s| s.tcp_window_check = true);
        bench.one(INSIDE, out(5000, SYN, 0xf000_0000, 0, b""));
        bench.one(INSIDE, out(5000, SYN, anew, 0, b""));
        bench.one(OUTSIDE, back(5000, SYN | ACK, 9, anew + 1, b""));
        bench.one(INSIDE, out(5000, ACK, anew + 1, 10, b"data"));
        assert_eq!(bench.counters.flows_opened.get(), 1, "{anew:x}");
    }
}

/// Who does not see the client's SYN can only guess what it has to acknowledge.
#[test]
fn an_answer_to_another_question_does_not_stand_for_the_servers() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.tcp_window_check = true);
    bench.one(INSIDE, out(5000, SYN, 0xf000_0000, 0, b""));
    for flags in [SYN | ACK, RST | ACK] {
        let forged = back(5000, flags, 0x1234_0000, 0xd000_0000, b"");
        bench.dropped(OUTSIDE, forged, DropReason::TcpWindow);
    }
    bench.one(OUTSIDE, back(5000, SYN | ACK, 9, 0xf000_0001, b""));
    bench.one(INSIDE, out(5000, ACK, 0xf000_0001, 10, b"data"));
    bench.pass(secs(7000));
    assert_eq!(bench.counters.flows_active.get(), 1, "it is established");
}

/// What was under way when an end gave up proves nothing about that end.
#[test]
fn only_the_end_that_is_said_to_have_reset_a_connection_proves_otherwise() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    establish(&mut bench, 5000);
    bench.one(INSIDE, out(5000, RST, 101, 0, b""));
    bench.one(OUTSIDE, back(5000, ACK, 501, 101, b"under way"));
    bench.pass(secs(60));
    assert_eq!(bench.counters.flows_active.get(), 0);
    establish(&mut bench, 5001);
    bench.one(OUTSIDE, back(5001, RST, 501, 0, b""));
    bench.one(INSIDE, out(5001, ACK, 101, 501, b"under way"));
    bench.one(OUTSIDE, back(5001, ACK, 501, 110, b"lives on"));
    assert!(stands_after(&mut bench, 7000, 5001));
}

#[test]
fn flags_that_no_stack_sends() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    for flags in [0, SYN | FIN, SYN | RST, FIN | RST, 0x20] {
        bench.dropped(INSIDE, out(5000, flags, 1, 1, b""), DropReason::BadTcpFlags);
    }
}

#[test]
fn the_largest_segment_is_clamped_in_both_directions() {
    /// The frame with an option that offers segments of 1460 bytes.
    fn offering(frame: Frame, port: usize) -> Vec<u8> {
        let mut b = frame.between(PEER, MACS[port]).emit();
        b.extend([2, 4, 5, 180]);
        b[17] += 4;
        // One's complement: four bytes more in the header and as many less of the checksum.
        let sum = u16::from_be_bytes([b[24], b[25]]) - 4;
        b[24..26].copy_from_slice(&sum.to_be_bytes());
        b[46] = 0x60;
        b
    }
    for (max, expected) in [(None, 1460), (Some(1200), 1200), (Some(1500), 1460)] {
        let mut settings = two_arms();
        settings.tcp_mss_max = max;
        let mut bench = Bench::new(&allow_all(), settings);
        for (port, frame) in [
            (INSIDE, out(5000, SYN, 100, 0, b"")),
            (OUTSIDE, back(5000, SYN | ACK, 500, 101, b"")),
        ] {
            let sent = bench.send_packet(port, MemoryPacket::new(offering(frame, port)));
            let b = sent[0].1.bytes();
            let mss = u16::from_be_bytes([b[56], b[57]]);
            assert_eq!(mss, expected, "{max:?} {port}");
        }
    }
}
