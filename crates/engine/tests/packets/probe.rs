//! Health probes of load balancers.

use super::bench::*;
use engine::DropReason;
use engine::snapshot::Probes;
use sim::frame::{ACK, Body, FIN, Frame, RST, SYN};

const CHECKER: &str = "35.191.7.7:40000";

fn bench(probes: Probes) -> Bench {
    let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
    bench.reconfigure(|s| s.probes = probes);
    bench
}

fn segment(from: &str, to: &str, flags: u8, seq: u32, ack: u32) -> Frame {
    Frame::tcp(at(from), at(to), flags, seq, ack, b"")
}

fn fields(frame: &Frame) -> (u8, u32, u32) {
    let Body::Tcp {
        flags, seq, ack, ..
    } = frame.body
    else {
        panic!("{frame:?}")
    };
    (flags, seq, ack)
}

#[test]
fn a_ready_node_shakes_hands_and_takes_leave() {
    let mut b = bench(Probes::Ready);
    let to = "192.0.2.1:80";
    let (port, answer) = b.one(OUTSIDE, segment(CHECKER, to, SYN, 100, 0));
    let (flags, first, ack) = fields(&answer);
    assert_eq!(
        (port, answer.dst, flags, ack),
        (OUTSIDE, ip("35.191.7.7"), SYN | ACK, 101)
    );
    let next = first.wrapping_add(1);
    assert_eq!(b.send(OUTSIDE, segment(CHECKER, to, ACK, 101, next)), []);
    let (_, answer) = b.one(OUTSIDE, segment(CHECKER, to, FIN | ACK, 101, next));
    assert_eq!(fields(&answer), (FIN | ACK, next, 102));
    assert_eq!(
        b.send(OUTSIDE, segment(CHECKER, to, ACK, 102, next + 1)),
        []
    );
    assert_eq!(b.send(OUTSIDE, segment(CHECKER, to, RST, 102, 0)), []);
    let request = Frame::tcp(at(CHECKER), at(to), ACK, 101, next, b"GET / HTTP/1.1\r\n");
    let (_, answer) = b.one(OUTSIDE, request);
    assert_eq!(fields(&answer).0 & RST, RST, "nobody reads it");
    assert_eq!(b.counters.probes_answered.get(), 1);
    assert_eq!(b.counters.flows_active.get(), 0, "no state");
    // Whoever has not seen our answer is not in on it.
    b.dropped(
        OUTSIDE,
        segment(CHECKER, to, FIN | ACK, 101, first.wrapping_add(9)),
        DropReason::LocalUnserved,
    );
}

#[test]
fn who_is_answered_and_where() {
    let check = |port: usize, from: &str, to: &str, answered: bool| {
        let mut b = bench(Probes::Ready);
        let sent = b.send(port, segment(from, to, SYN, 1, 0));
        assert_eq!(
            sent.len(),
            usize::from(answered),
            "{from} > {to}: {:?}",
            b.moved()
        );
    };
    check(OUTSIDE, "198.51.100.1:4000", "192.0.2.1:8080", true);
    check(OUTSIDE, "[2001:db8:9::1]:4000", "[2001:db8::1]:8080", true);
    check(INSIDE, "10.0.0.2:4000", "10.0.0.1:8080", true);
    check(OUTSIDE, "198.51.100.1:4000", "192.0.2.1:80", false);
    check(INSIDE, "10.0.0.2:4000", "10.0.0.1:80", false);
    check(OUTSIDE, "198.51.100.1:4000", "192.0.2.1:8081", false);
    check(OUTSIDE, "198.51.100.1:4000", "10.0.0.1:8080", false);
    check(INSIDE, "10.0.0.2:4000", "10.0.0.53:8080", false);
}

#[test]
fn a_node_that_is_not_ready_or_drains_keeps_silent() {
    for (probes, draining, reason) in [
        (Probes::NotReady, false, DropReason::LocalUnserved),
        (Probes::Ready, true, DropReason::LocalUnserved),
        (Probes::Off, false, DropReason::FromOutside),
    ] {
        let mut b = bench(probes);
        b.reconfigure(|s| s.draining = draining);
        b.dropped(
            OUTSIDE,
            segment(CHECKER, "192.0.2.1:8080", SYN, 1, 0),
            reason,
        );
        assert_eq!(b.counters.probes_answered.get(), 0);
        assert_eq!(
            b.counters.probes_not_ready.get(),
            u64::from(probes != Probes::Off)
        );
    }
}

/// How many of so many probes of one source, all at once, are answered.
fn flood(b: &mut Bench, source: [u8; 4], to: &str, count: u16) -> usize {
    let probe = |n| Frame::tcp((source, 1000 + n).into(), at(to), SYN, 1, 0, b"");
    (0..count).map(|n| b.send(OUTSIDE, probe(n)).len()).sum()
}

#[test]
fn a_flood_of_probes_is_limited() {
    let mut b = bench(Probes::Ready);
    let to = "192.0.2.1:8080";
    let mut answered = 0;
    for n in 0..200 {
        answered += flood(&mut b, [198, 51, n, 1], to, 10);
    }
    assert_eq!(answered, 100, "a tenth of a second's worth");
    assert_eq!(b.counters.probes_limited.get(), 1900);
}

#[test]
fn no_source_keeps_the_probes_of_others_unanswered() {
    let mut b = bench(Probes::Ready);
    let to = "192.0.2.1:8080";
    let answered = flood(&mut b, [198, 51, 100, 1], to, 500);
    assert!((1..=60).contains(&answered), "{answered}");
    assert_eq!(flood(&mut b, [198, 51, 100, 2], to, 5), 5);
}

#[test]
fn googles_checkers_are_answered_whatever_else_is_probed() {
    let mut b = bench(Probes::Ready);
    for n in 0..200 {
        flood(&mut b, [198, 51, n, 1], "192.0.2.1:8080", 10);
    }
    assert_eq!(flood(&mut b, [35, 191, 7, 7], "192.0.2.1:80", 5), 5);
}
