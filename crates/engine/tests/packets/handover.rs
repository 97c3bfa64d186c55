//! One process takes over the flows of another.

use std::time::Duration;

use super::bench::*;
use super::tcp::establish;
use engine::snapshot::Snat;
use engine::{DropReason, Imported, MalformedFlows, Worker};
use proptest::prelude::*;
use sim::frame::{ACK, Body, FIN, Frame, RST, SYN};

const SERVER: &str = "198.51.100.1:80";
const AT_ONCE: Duration = Duration::from_millis(100);

fn udp(client: &str) -> Frame {
    Frame::udp(at(client), at(SERVER), b"question")
}

/// An answer to the client's address and port outside.
fn answer(port: u16) -> Frame {
    Frame::udp(at(SERVER), (ip("192.0.2.1"), port).into(), b"answer")
}

fn source_port(frame: &Frame) -> u16 {
    match frame.body {
        Body::Udp { src_port, .. } => src_port,
        _ => panic!("{frame:?}"),
    }
}

fn taken(taken: u64) -> Imported {
    Imported {
        taken,
        ..Imported::default()
    }
}

#[test]
fn answers_find_their_client_before_it_has_spoken_again() {
    let mut old = Bench::new(&allow_all(), two_arms());
    establish(&mut old, 5000);
    old.one(INSIDE, udp("10.0.0.2:6000"));
    // The port is taken, so this client gets another.
    let (_, out) = old.one(INSIDE, udp("10.0.0.3:6000"));
    let port = source_port(&out);
    assert_ne!(port, 6000);

    let (mut new, imported) = old.succeed(&allow_all(), two_arms(), AT_ONCE);
    assert_eq!(imported, taken(3));
    assert_eq!(
        (
            new.counters.flows_active.get(),
            new.counters.nat_active.get()
        ),
        (3, 3)
    );
    let (_, back) = new.one(OUTSIDE, answer(6000));
    assert_eq!(back.dst, ip("10.0.0.2"));
    let (_, back) = new.one(OUTSIDE, answer(port));
    assert_eq!(back.dst, ip("10.0.0.3"));
    let data = Frame::tcp(at(SERVER), at("192.0.2.1:5000"), ACK, 501, 101, b"data");
    assert_eq!(new.one(OUTSIDE, data).1.dst, ip("10.0.0.2"));
    let (_, out) = new.one(INSIDE, udp("10.0.0.3:6000"));
    assert_eq!(source_port(&out), port, "the binding is kept");
    assert_eq!(new.counters.picked_up.get(), 0);
}

#[test]
fn a_window_is_still_checked() {
    let settings = || {
        let mut settings = two_arms();
        settings.tcp_window_check = true;
        settings
    };
    let mut old = Bench::new(&allow_all(), settings());
    establish(&mut old, 5000);
    let (mut new, _) = old.succeed(&allow_all(), settings(), AT_ONCE);
    let forged = Frame::tcp(at(SERVER), at("192.0.2.1:5000"), RST, 9_000_000, 0, b"");
    new.dropped(OUTSIDE, forged, DropReason::TcpWindow);
}

#[test]
fn the_policy_of_the_new_process_judges() {
    let mut old = Bench::new(&allow_all(), two_arms());
    establish(&mut old, 5000);
    let (mut new, _) = old.succeed(&policy("deny", "drop", ""), two_arms(), AT_ONCE);
    let data = Frame::tcp(at(SERVER), at("192.0.2.1:5000"), ACK, 501, 101, b"data");
    new.dropped(OUTSIDE, data, DropReason::PolicyChanged);
    assert_eq!(new.counters.flows_active.get(), 0);
}

#[test]
fn the_time_between_counts_as_idle() {
    for (idle, between, kept) in [(250, 49, 1), (250, 51, 0), (0, 299, 1), (0, 301, 0)] {
        let mut old = Bench::new(&allow_all(), two_arms());
        old.one(INSIDE, udp("10.0.0.2:6000"));
        old.pass(Duration::from_secs(idle));
        let elapsed = Duration::from_secs(between);
        let (mut new, imported) = old.succeed(&allow_all(), two_arms(), elapsed);
        assert_eq!(
            (imported.taken, imported.expired),
            (kept, 1 - kept),
            "{idle} {between}"
        );
        // What was idle for long is cleaned up in its time, not a whole idle time later.
        new.pass(Duration::from_secs(3));
        assert_eq!(new.counters.flows_active.get(), 0, "{idle} {between}");
    }
}

#[test]
fn what_other_settings_forbid_is_not_taken() {
    let mut old = Bench::new(&allow_all(), two_arms());
    old.one(INSIDE, udp("10.0.0.2:6000"));
    let check = |change: &dyn Fn(&mut engine::snapshot::Settings), expected| {
        let mut settings = two_arms();
        change(&mut settings);
        let (_, imported) = old.succeed(&allow_all(), settings, AT_ONCE);
        assert_eq!(imported.taken, expected);
        assert_eq!(imported.refused, 1 - expected);
    };
    check(&|_| {}, 1);
    check(&|s| s.snat = Snat::None, 0);
    check(&|s| s.snat = Snat::Static(ip("192.0.2.7")), 0);
    let pool = || Snat::Pool(vec![ip("192.0.2.7"), ip("192.0.2.1")]);
    check(&|s| s.snat = pool(), 1);
    check(&|s| s.ports[1].gateways.clear(), 0);
    check(&|s| s.limits.max_flows = 0, 0);
    check(&|s| s.limits.max_nat_bindings = 0, 0);
    check(&|s| s.services[0].address = ip("10.0.0.2"), 0);

    // Not translated before, but it would be now.
    let mut settings = two_arms();
    settings.snat = Snat::None;
    let mut old = Bench::new(&allow_all(), settings);
    old.one(INSIDE, udp("10.0.0.2:6000"));
    let (_, imported) = old.succeed(&allow_all(), two_arms(), AT_ONCE);
    assert_eq!(imported.refused, 1);
}

#[test]
fn twice_the_same_is_taken_once() {
    let mut old = Bench::new(&allow_all(), two_arms());
    establish(&mut old, 5000);
    let mut twice = Vec::new();
    let chunk = export(&old.worker, old.now);
    twice.extend(&chunk);
    twice.extend(&chunk[2..]);
    let mut new = Bench::new(&allow_all(), two_arms());
    let imported = new.worker.import_flows(new.now, AT_ONCE, &twice);
    let expected = Imported {
        refused: 1,
        ..taken(1)
    };
    assert_eq!(imported, Ok(expected));
}

#[test]
fn a_longer_record_of_a_later_version_is_read_as_far_as_it_is_known() {
    let mut old = Bench::new(&allow_all(), two_arms());
    establish(&mut old, 5000);
    old.one(INSIDE, udp("10.0.0.2:6000"));
    let chunk = export(&old.worker, old.now);
    let len = usize::from(chunk[0]);
    let mut longer = vec![len as u8 + 5, 0];
    for record in chunk[2..].chunks(len) {
        longer.extend(record);
        longer.extend([0xee; 5]);
    }
    let mut new = Bench::new(&allow_all(), two_arms());
    assert_eq!(
        new.worker.import_flows(new.now, AT_ONCE, &longer),
        Ok(taken(2))
    );
    let mut other = Bench::new(&allow_all(), two_arms());
    longer.truncate(longer.len() - 1);
    let cut = other.worker.import_flows(other.now, AT_ONCE, &longer);
    let expected = MalformedFlows {
        len: longer.len() - 2,
        record_len: len + 5,
    };
    assert_eq!(cut, Err(expected));
}

/// The bytes that a file of hexadecimal digits stands for.
pub(crate) fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

pub(crate) fn export<P: engine::port::Port, L: engine::port::Port>(
    worker: &Worker<P, L>,
    now: engine::Now,
) -> Vec<u8> {
    let mut chunks = Vec::new();
    worker
        .export_flows(now, |chunk| {
            chunks.push(chunk.to_vec());
            Ok(())
        })
        .expect("valid by construction");
    assert_eq!(chunks.len(), 1);
    chunks.remove(0)
}

/// What is written once can be read for ever, and as the same; the first version wrote no networks and no ages.
#[test]
fn records_are_read_as_they_were_written() {
    let mut old = Bench::new(&allow_all(), two_arms());
    establish(&mut old, 5000);
    old.one(INSIDE, udp("10.0.0.3:6000"));
    let v6 = Frame::udp(at("[fd00::2]:7000"), at("[2001:db8:1::1]:53"), b"q");
    old.one(INSIDE, v6);
    old.pass(Duration::from_secs(7));
    let chunk = export(&old.worker, old.now);
    let first = bytes_of(include_str!("handover/flows-1.hex"));
    let kept = bytes_of(include_str!("handover/flows-1-lasted.hex"));
    let mut at_first = Bench::new(&allow_all(), two_arms());
    let imported = at_first.worker.import_flows(at_first.now, AT_ONCE, &first);
    assert_eq!(imported, Ok(taken(3)));

    let mut new = Bench::new(&allow_all(), two_arms());
    new.pass(Duration::from_secs(100));
    let imported = new.worker.import_flows(new.now, AT_ONCE, &kept);
    assert_eq!(imported, Ok(taken(3)));
    for (port, client) in [(5000, "10.0.0.2"), (6000, "10.0.0.3")] {
        let back = match port {
            5000 => Frame::tcp(at(SERVER), at("192.0.2.1:5000"), ACK, 501, 101, b"x"),
            _ => answer(port),
        };
        assert_eq!(new.one(OUTSIDE, back).1.dst, ip(client));
    }
    let v6 = Frame::udp(at("[2001:db8:1::1]:53"), at("[fd00::2]:7000"), b"a");
    assert_eq!(new.one(OUTSIDE, v6).0, INSIDE);
    let hex: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "flows are written differently now");
}

#[derive(Clone, Debug)]
enum Act {
    /// A packet of this connection, of this kind, from inside or from outside.
    Packet(u16, u8, bool),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        9 => (0u16..6, 0u8..6, any::<bool>()).prop_map(|(c, k, inside)| Act::Packet(c, k, inside)),
        1 => prop_oneof![1u64..20, 100u64..400].prop_map(Act::Pass),
    ]
}

/// Sends a packet of connection `c`: UDP where it is even, else TCP, over IPv6 where it is above 3.
fn perform(bench: &mut Bench, act: &Act) -> Vec<(usize, Frame)> {
    let (c, kind, inside) = match *act {
        Act::Packet(c, kind, inside) => (c, kind, inside),
        Act::Pass(s) => {
            bench.pass(Duration::from_secs(s));
            return Vec::new();
        }
    };
    let (client, server, outside) = match c > 3 {
        true => ("fd00::2", "2001:db8:1::1", "fd00::2"),
        false => ("10.0.0.2", "198.51.100.1", "192.0.2.1"),
    };
    let server = (ip(server), 80).into();
    let (src, dst, port) = match inside {
        true => ((ip(client), 5000 + c).into(), server, INSIDE),
        false => (server, (ip(outside), 5000 + c).into(), OUTSIDE),
    };
    let frame = if c % 2 == 0 {
        Frame::udp(src, dst, b"data")
    } else {
        let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST, ACK][usize::from(kind)];
        let payload: &[u8] = if kind == 5 { b"data" } else { b"" };
        let (seq, ack) = if inside { (100, 500) } else { (500, 100) };
        let ack = if flags & ACK != 0 { ack + 1 } else { 0 };
        let seq = if flags & SYN != 0 { seq } else { seq + 1 };
        Frame::tcp(src, dst, flags, seq, ack, payload)
    };
    bench.send(port, frame)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_packet_fares_as_without_a_hand_over(
        before in proptest::collection::vec(act(), 1..30),
        after in proptest::collection::vec(act(), 1..30),
        check in any::<bool>(),
    ) {
        let mut settings = two_arms();
        settings.tcp_window_check = check;
        let mut old = Bench::new(&allow_all(), settings.clone());
        for act in &before {
            perform(&mut old, act);
        }
        let (mut new, imported) = old.succeed(&allow_all(), settings, Duration::ZERO);
        prop_assert_eq!(imported.refused, 0);
        for act in &after {
            prop_assert_eq!(perform(&mut new, act), perform(&mut old, act), "{:?}", act);
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1000), whole: bool) {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let mut chunk = bytes;
        if whole && chunk.len() > 2 {
            chunk[..2].copy_from_slice(&122u16.to_le_bytes());
            chunk.truncate(2 + (chunk.len() - 2) / 122 * 122);
        }
        let _ = bench.worker.import_flows(bench.now, AT_ONCE, &chunk);
        bench.pass(Duration::from_secs(100));
    }
}
