//! What connection tracking lets through, as scripts that read like a trace.
//!
//! A line is one segment: `>` from the client or `<` from the server; flags (`S`, `F`, `R`, `P`, `U`, `.` for ACK);
//! sequence number and, behind `+`, bytes of payload; `ack`, `win` and `ws` (window scale) with their numbers. Numbers count
//! from either end's first, and every script runs with firsts that wrap around as well. A segment must pass unless
//! the line ends in the reason for which it is dropped. `wait` lets seconds pass.

use std::time::Duration;

use engine::port::Packet;
use engine::port::memory::MemoryPacket;
use engine::{DropReason, Now};
use sim::frame::Frame;

use crate::bench::*;

const FLAGS: [(char, u8); 6] = [
    ('F', 0x01),
    ('S', 0x02),
    ('R', 0x04),
    ('P', 0x08),
    ('.', 0x10),
    ('U', 0x20),
];

fn run(script: &str) {
    run_with(script, false);
}

fn run_with(script: &str, picks_up: bool) {
    for firsts in [
        [0x1000, 0x2000],
        [0xffff_fff0, 0xffff_ff00],
        [u32::MAX, 1 << 31],
    ] {
        let mut settings = two_arms();
        settings.tcp_window_check = true;
        if picks_up {
            settings.pick_up_until = Now(u64::MAX);
        }
        let mut bench = Bench::new(&allow_all(), settings);
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            step(&mut bench, firsts, line);
        }
    }
}

fn step(bench: &mut Bench, firsts: [u32; 2], line: &str) {
    if let Some(seconds) = line.strip_prefix("wait ") {
        return bench.pass(Duration::from_secs(seconds.parse().expect("seconds")));
    }
    let (segment, reason) = match line.split_once(" : ") {
        Some((segment, reason)) => (segment, Some(reason)),
        None => (line, None),
    };
    let words: Vec<&str> = segment.split_whitespace().collect();
    let from = usize::from(words[0] == "<");
    let flags = FLAGS.iter().filter(|(c, _)| words[1].contains(*c));
    let flags = flags.fold(0, |all, (_, flag)| all | flag);
    let (seq, len) = words[2].split_once('+').unwrap_or((words[2], "0"));
    let number = |word: &str| word.parse::<i64>().expect("a number");
    let named = |name: &str| {
        let at = words.iter().position(|w| *w == name)?;
        Some(number(words[at + 1]))
    };
    let seq = firsts[from].wrapping_add(number(seq) as u32);
    let ack = named("ack").map_or(0, |ack| firsts[1 - from].wrapping_add(ack as u32));
    let (src, dst) = match from {
        0 => (at("10.0.0.2:5000"), at("198.51.100.1:80")),
        _ => (at("198.51.100.1:80"), at("192.0.2.1:5000")),
    };
    let payload = vec![0x5a; number(len) as usize];
    let mut frame = Frame::tcp(src, dst, flags, seq, ack, &payload)
        .between(PEER, MACS[from])
        .emit();
    // A router does not look at the checksum, so it stays as it was.
    let window = named("win").unwrap_or(0xffff) as u16;
    frame[48..50].copy_from_slice(&window.to_be_bytes());
    if let Some(shift) = named("ws") {
        frame.splice(54..54, [1, 3, 3, shift as u8]);
        frame[46] = 0x60;
        let len = u16::from_be_bytes([frame[16], frame[17]]) + 4;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        let sum = u16::from_be_bytes([frame[24], frame[25]]).wrapping_sub(4);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    bench.moved();
    let sent = bench.send_packet(from, MemoryPacket::new(frame));
    let moved = bench.moved();
    match reason {
        None => {
            assert_eq!(sent.len(), 1, "{line}: {moved:?}");
            assert_eq!(sent[0].0, 1 - from, "{line}");
            let b = sent[0].1.bytes();
            assert_eq!(b[38..42], seq.to_be_bytes(), "{line}");
        }
        Some(reason) => {
            let known = DropReason::ALL.iter().any(|r| r.name() == reason);
            assert!(known, "{line}: no such reason");
            let dropped = format!("drop {reason} +1");
            assert!(moved.contains(&dropped), "{line}: {moved:?}");
            assert!(sent.is_empty(), "{line}");
        }
    }
}

const OPEN: &str = "
    > S 0
    < S. 0 ack 1
    > . 1 ack 1
";

/// After the handshake.
fn run_open(script: &str) {
    run(&format!("{OPEN}{script}"));
}

#[test]
fn handshake_data_close_and_the_wait_after_it() {
    run_open(
        "
        > P. 1+100 ack 1
        < . 1 ack 101
        < P. 1+1000 ack 101
        > . 101 ack 1001
        > F. 101 ack 1001
        < F. 1001 ack 102
        > . 102 ack 1002
        < F. 1001 ack 102
        > . 102 ack 1002
        wait 122
        < . 1002 ack 102 : from_outside
        ",
    );
}

#[test]
fn first_segments_are_repeated_until_they_arrive() {
    run("
        > S 0
        > S 0
        < S. 0 ack 1
        < S. 0 ack 1
        > . 1 ack 1
        < S. 0 ack 1
        > . 1 ack 1
    ");
}

#[test]
fn simultaneous_open() {
    run("
        > S 0
        < S 0
        > S. 0 ack 1
        < S. 0 ack 1
        > . 1 ack 1
        < . 1+10 ack 1
        > . 1 ack 11
    ");
}

#[test]
fn simultaneous_close() {
    run_open(
        "
        > F. 1 ack 1
        < F. 1 ack 1
        > . 2 ack 2
        < . 2 ack 2
        wait 122
        < . 2 ack 2 : from_outside
        ",
    );
}

#[test]
fn half_close() {
    run_open(
        "
        > F. 1 ack 1
        < . 1 ack 2
        < P. 1+1000 ack 2
        > . 2 ack 1001
        wait 200
        < P. 1001+1000 ack 2
        > . 2 ack 2001
        < F. 2001 ack 2
        > . 2 ack 2002
        ",
    );
}

#[test]
fn a_port_is_used_again_in_time_wait() {
    run_open(
        "
        > F. 1 ack 1
        < F. 1 ack 2
        > . 2 ack 2
        > S 100000
        < S. 300000 ack 100001
        > . 100001 ack 300001
        < . 1 ack 2 : tcp_window
        ",
    );
}

#[test]
fn resets_count_only_within_the_window() {
    // RFC 5961 §3: a blind reset misses the window; one within it is for the end to judge.
    run_open(
        "
        < R 200000 : tcp_window
        < R -200000 : tcp_window
        > R 200000 : tcp_window
        < P. 1+10 ack 1
        < R 5000
        > . 1 ack 11
        < P. 11+10 ack 1
        wait 3600
        > . 1 ack 21
        < R 21
        wait 11
        < . 21 ack 1 : from_outside
        ",
    );
}

#[test]
fn a_refusal_must_be_of_the_question() {
    run("
        > S 0
        < R. 0 ack 5000 : tcp_window
        < R. 0 ack 1
    ");
}

#[test]
fn windows_scale_if_both_ends_say_so() {
    run("
        > S 0 ws 7
        < S. 0 ack 1 ws 7
        > . 1 ack 1
        < . 8000000+100 ack 1
        < . 9000000+100 ack 1 : tcp_window
    ");
    run("
        > S 0 ws 7
        < S. 0 ack 1
        > . 1 ack 1
        < . 60000+100 ack 1
        < . 70000+100 ack 1 : tcp_window
    ");
    run("
        > S 0
        < S. 0 ack 1 ws 7
        > . 1 ack 1
        > . 60000+100 ack 1
        > . 70000+100 ack 1 : tcp_window
    ");
}

#[test]
fn out_of_order_overlapping_and_repeated_segments() {
    run_open(
        "
        > . 101+100 ack 1
        > . 1+100 ack 1
        < . 1 ack 1
        < . 1 ack 201
        > . 51+200 ack 1
        > . 1+100 ack 1
        > . 5001+100 ack 1
        < . 1 ack 251
        > . 251+1000 ack 1
        < . 1 ack 5101
        ",
    );
}

#[test]
fn nobody_acknowledges_what_was_not_sent() {
    run_open(
        "
        > . 1+100 ack 1
        < . 1 ack 102 : tcp_window
        < . 1 ack 101
        > . 101 ack 2 : tcp_window
        ",
    );
}

#[test]
fn keep_alives() {
    run_open(
        "
        wait 7000
        > . 0 ack 1
        < . 1 ack 1
        wait 7000
        > . 0+1 ack 1
        < . 1 ack 1
        wait 7000
        < . 0 ack 1
        > . 1 ack 1
        ",
    );
}

#[test]
fn a_closed_window_is_probed() {
    run_open(
        "
        > . 1+100 ack 1
        < . 1 ack 101 win 0
        > . 101+1 ack 1
        < . 1 ack 101 win 0
        > . 100 ack 1
        < . 1 ack 102 win 1000
        > . 102+1000 ack 1
        ",
    );
}

#[test]
fn urgent_data() {
    run_open(
        "
        > PU. 1+10 ack 1
        < . 1 ack 11
        ",
    );
}

#[test]
fn a_stale_question_is_answered_by_a_challenge() {
    // RFC 5961 §4: the server acknowledges what it has; the client, which knows nothing of it, resets and asks again.
    run_open(
        "
        > S 500000
        < . 1 ack 1
        > R 1
        > S 500000
        < S. 700000 ack 500001
        > . 500001 ack 700001
        ",
    );
}

#[test]
fn a_question_with_data() {
    // TCP Fast Open, RFC 7413: taken with its data, or without.
    run("
        > S 0+100
        < S. 0 ack 101
        < . 1+10 ack 101
        > . 101 ack 11
    ");
    run("
        > S 0+100
        < S. 0 ack 1
        > . 1+100 ack 1
        < . 1 ack 101
    ");
}

#[test]
fn a_connection_met_in_its_midst() {
    run_with(
        "
        > . 1000+10 ack 500
        < . 500+10 ack 1010
        > . 1010 ack 510
        > F. 1010 ack 510
        < F. 510 ack 1011
        > . 1011 ack 511
        wait 122
        < . 511 ack 1011 : from_outside
        ",
        true,
    );
    run("
        < . 500+10 ack 1010 : from_outside
    ");
}

#[test]
fn a_server_that_has_kept_an_old_connection_is_told_that_it_is_over() {
    // RFC 9293 §3.5.1: nobody but the server knows of it, the node included.
    run("
        > S 0
        < . 70000 ack 900000
        > R 900000
        > S 0
        < S. 100000 ack 1
        > . 1 ack 100001
        < P. 100001+100 ack 1
        > . 1 ack 100101
        < . 70000 ack 900000 : tcp_window
        > R 900000 : tcp_window
    ");
    // Only that: what else is not of the question is dropped.
    run("
        > S 0
        < S. 0 ack 900000 : tcp_window
        < R. 0 ack 900000 : tcp_window
        < F. 0 ack 900000 : tcp_window
        < S. 0 ack 1
    ");
}

/// The first answer was lost behind us, and the server has forgotten it, or another one stands in for it.
#[test]
fn a_question_is_answered_again_by_another_number() {
    run("
        > S 0
        < S. 0 ack 1
        > S 0
        < S. 3000000 ack 2 : tcp_window
        < S. 3000000 ack 1
        > . 1 ack 3000001
        < P. 3000001+10 ack 1
        > . 1 ack 3000011
        < P. 3000011+10 ack 1
    ");
    // Its window scale is not that of the first answer.
    run("
        > S 0 ws 7
        < S. 0 ack 1
        < S. 3000000 ack 1 ws 7
        > . 1 ack 3000001
        < P. 3000001+10 ack 1
        > . 1 ack 3000011
        < P. 4000000+10 ack 1
    ");
    // The client has heard the first, and stays with it.
    run("
        > S 0
        < S. 0 ack 1
        > S 0
        < S. 3000000 ack 1
        > . 1 ack 1
        < S. 3000000 ack 1 : tcp_window
        < P. 1+10 ack 1
        > . 1 ack 11
    ");
    run("
        > S 0
        < S. 0 ack 1
        > S 0
        < R. 3000000 ack 1
        wait 11
        < . 3000001 ack 1 : from_outside
    ");
}

#[test]
fn a_port_that_has_had_a_connection_is_asked_nothing_from_outside() {
    run_open(
        "
        > F. 1 ack 1
        < F. 1 ack 2
        > . 2 ack 2
        < S 10 : from_outside
        ",
    );
}

#[test]
fn half_close_by_the_server() {
    run_open(
        "
        < F. 1 ack 1
        > . 1 ack 2
        > P. 1+1000 ack 2
        < . 2 ack 1001
        wait 200
        > P. 1001+1000 ack 2
        < . 2 ack 2001
        > F. 2001 ack 2
        < . 2 ack 2002
        wait 122
        < . 2 ack 2002 : from_outside
        ",
    );
}

#[test]
fn an_end_that_overtakes_the_data_before_it() {
    run_open(
        "
        > F. 101 ack 1
        < . 1 ack 1
        > P. 1+100 ack 1
        < . 1 ack 102
        < F. 1 ack 102
        < F. 1 ack 102
        > . 102 ack 2
        ",
    );
    run_open(
        "
        > FP. 1+100 ack 1
        < F. 1 ack 102
        > . 102 ack 2
        wait 122
        < . 2 ack 102 : from_outside
        ",
    );
}

#[test]
fn old_first_segments_change_nothing() {
    run_open(
        "
        > P. 1+100 ack 1
        > S 0
        < . 1 ack 101
        < S. 0 ack 1
        > . 101 ack 1
        < P. 1+100 ack 101
        wait 7000
        > . 101 ack 101
        ",
    );
}

#[test]
fn a_blind_question_within_the_window_is_for_the_end_to_challenge() {
    // RFC 5961 §4.
    run_open(
        "
        < S 5000
        > . 1 ack 1
        < S 900000 : tcp_window
        < P. 1+100 ack 1
        > P. 1+100 ack 101
        < . 101 ack 101
        wait 7000
        > . 101 ack 101
        ",
    );
}

#[test]
fn blind_data_acknowledges_what_it_cannot_know() {
    // RFC 5961 §5.
    run_open(
        "
        > P. 1+100 ack 1
        < . 1 ack 101
        < P. 1+10 ack -200000 : tcp_window
        < P. 1+10 ack 200000 : tcp_window
        < P. 1+10 ack 101
        ",
    );
}

#[test]
fn the_edges_of_the_window() {
    // Up to what the other end has offered, and not a byte beyond.
    run_open(
        "
        < R 65537 : tcp_window
        < P. 65537+1 ack 1 : tcp_window
        < P. 65535+1 ack 1
        > . 1 ack 1
        > P. 65537+1 ack 1 : tcp_window
        > P. 65535+1 ack 1
        ",
    );
}

#[test]
fn a_reset_ends_the_handshake_and_what_comes_later_opens_nothing() {
    run("
        > S 0
        < S. 0 ack 1
        > R 1
        wait 11
        < S. 0 ack 1 : from_outside
    ");
    run("
        > S 0
        > R 1
        wait 11
        < S. 0 ack 1 : from_outside
    ");
    run_open(
        "
        > P. 1+10 ack 1
        < R. 1 ack 11
        > S 100000
        < S. 700000 ack 100001
        > . 100001 ack 700001
        ",
    );
}

#[test]
fn a_simultaneous_open_that_one_end_gives_up() {
    run("
        > S 0
        < S 0
        > R. 1 ack 1
        wait 11
        < . 1 ack 1 : from_outside
    ");
}

#[test]
fn in_time_wait_only_the_client_begins_anew() {
    run_open(
        "
        > F. 1 ack 1
        < F. 1 ack 2
        > . 2 ack 2
        < S 400000 : from_outside
        < P. 2+10 ack 2
        > R 2
        > S 100000
        < S. 300000 ack 100001
        ",
    );
    // Nor does it wait for the last acknowledgement, if both have said that they are done.
    run_open(
        "
        < F. 1 ack 1
        > F. 1 ack 2
        > S 100000
        < S. 300000 ack 100001
        > . 100001 ack 300001
        ",
    );
}
