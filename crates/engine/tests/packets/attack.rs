//! What an attack leaves to others: connections that are there go on, and new ones are made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use engine::DropReason;
use engine::counters::CloseReason;
use engine::port::memory::MemoryPacket;
use sim::frame::{ACK, Body, Frame, SYN};

use crate::bench::*;
use crate::fragments;

const SERVER: &str = "198.51.100.1:80";

/// 250 addresses of the inside, none of them a victim's.
fn attacker(n: u32) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 5 + (n % 250) as u8).into()
}

fn syn(n: u32) -> Frame {
    let port = 1024 + (n.wrapping_mul(40_503) % 64_512) as u16;
    Frame::tcp((attacker(n), port).into(), at(SERVER), SYN, n, 0, b"")
}

/// Sends frames from inside in bursts, and forgets what comes out.
fn flood(bench: &mut Bench, frames: impl Iterator<Item = Frame>) {
    let mut frames = frames.peekable();
    while frames.peek().is_some() {
        for frame in frames.by_ref().take(256) {
            let bytes = frame.between(PEER, MACS[INSIDE]).emit();
            let packet = MemoryPacket::new(bytes);
            bench.worker.ports_mut()[INSIDE].rx.push_back(packet);
        }
        bench.exchange_frames();
        bench.now = bench.now + Duration::from_millis(2);
    }
}

/// A connection of a victim.
struct Victim {
    client: SocketAddr,
    /// The client as the server sees it.
    nat: SocketAddr,
}

impl Victim {
    fn ask(bench: &mut Bench, client: &str) -> Victim {
        let client = at(client);
        let (_, asked) = bench.one(INSIDE, Frame::tcp(client, at(SERVER), SYN, 100, 0, b""));
        let Body::Tcp { src_port, .. } = asked.body else {
            panic!("{asked:?}")
        };
        Victim {
            client,
            nat: (asked.src, src_port).into(),
        }
    }

    fn connect(bench: &mut Bench, client: &str) -> Victim {
        let victim = Victim::ask(bench, client);
        victim.receive(bench, SYN | ACK, 500);
        victim.goes_on(bench);
        victim
    }

    fn receive(&self, bench: &mut Bench, flags: u8, seq: u32) {
        let frame = Frame::tcp(at(SERVER), self.nat, flags, seq, 101, b"");
        let (port, got) = bench.one(OUTSIDE, frame);
        assert_eq!((port, got.dst), (INSIDE, self.client.ip()));
    }

    /// Shows that the connection stands, by a segment each way.
    fn goes_on(&self, bench: &mut Bench) {
        let segment = Frame::tcp(self.client, at(SERVER), ACK, 101, 501, b"");
        let (port, sent) = bench.one(INSIDE, segment);
        assert_eq!((port, sent.src), (OUTSIDE, self.nat.ip()));
        self.receive(bench, ACK, 501);
    }
}

#[test]
fn questions_without_answers_keep_nobody_from_a_destination() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 1 << 17);
    let old = Victim::connect(&mut bench, "10.0.0.2:5000");
    // More than there are ports, of which most are in use then.
    flood(&mut bench, (0..80_000).map(syn));
    let active = bench.counters.flows_active.get();
    assert!((55_000..64_600).contains(&active), "{active}");
    let count = |bench: &Bench| {
        let counters = &bench.counters;
        [&counters.flows_opened, &counters.nat_port_probes].map(|counter| counter.get())
    };
    let before = count(&bench);
    // A handshake takes a while, in which more and more is asked.
    let new = Victim::ask(&mut bench, "10.0.0.3:6000");
    flood(&mut bench, (80_000..84_000).map(syn));
    new.receive(&mut bench, SYN | ACK, 500);
    flood(&mut bench, (84_000..86_000).map(syn));
    new.goes_on(&mut bench);
    old.goes_on(&mut bench);

    let exhausted = bench.counters.dropped(DropReason::NatPortsExhausted);
    assert_eq!(exhausted.packets.get(), 0);
    let after = count(&bench);
    let [opened, probes] = [after[0] - before[0], after[1] - before[1]];
    assert!(
        probes < 20 * opened,
        "{probes} ports tried for {opened} flows"
    );
    assert!(bench.counters.closed(CloseReason::Evicted) > 14_000);
}

#[test]
fn a_table_full_of_questions_gives_way_to_whoever_asks() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 512);
    let old = Victim::connect(&mut bench, "10.0.0.2:5000");
    for round in 0..20 {
        flood(&mut bench, (1000 * round..1000 * round + 300).map(syn));
        let new = Victim::ask(&mut bench, &format!("10.0.0.3:{}", 6000 + round));
        flood(
            &mut bench,
            (1000 * round + 300..1000 * round + 500).map(syn),
        );
        new.receive(&mut bench, SYN | ACK, 500);
        new.goes_on(&mut bench);
        old.goes_on(&mut bench);
    }
    assert_eq!(bench.counters.flows_active.get(), 512);
    let full = bench.counters.dropped(DropReason::FlowTableFull);
    assert_eq!(full.packets.get(), 0);
}

#[test]
fn one_source_cannot_fill_the_table() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 64);
    let many: Vec<Victim> = (5001..5061)
        .map(|port| Victim::connect(&mut bench, &format!("10.0.0.2:{port}")))
        .collect();
    let more = Frame::tcp(at("10.0.0.2:5062"), at(SERVER), SYN, 1, 0, b"");
    bench.dropped(INSIDE, more, DropReason::FlowTableFull);
    // The last sixteenth is for those that have less than that.
    for client in ["10.0.0.3:1", "10.0.0.4:1", "10.0.0.5:1"] {
        Victim::connect(&mut bench, client).goes_on(&mut bench);
    }
    for one in many {
        one.goes_on(&mut bench);
    }
}

#[test]
fn bindings_without_answers_give_way_as_well() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    bench.reconfigure(|s| s.limits.max_nat_bindings = 8);
    let old = Victim::connect(&mut bench, "10.0.0.2:5000");
    // Flows without a binding are no help.
    for port in 1000..1008 {
        let from = (ip("fd00::9"), port).into();
        bench.one(INSIDE, Frame::udp(from, at("[2001:db8:1::1]:53"), b""));
    }
    flood(&mut bench, (0..100).map(syn));
    Victim::connect(&mut bench, "10.0.0.3:6000").goes_on(&mut bench);
    old.goes_on(&mut bench);
    assert_eq!(bench.counters.nat_active.get(), 8);
    let full = bench.counters.dropped(DropReason::NatTableFull);
    assert_eq!(full.packets.get(), 0);
    // Those that were answered stay.
    for port in 6001..6007 {
        Victim::connect(&mut bench, &format!("10.0.0.3:{port}"));
    }
    bench.dropped(INSIDE, syn(0), DropReason::NatTableFull);
    old.goes_on(&mut bench);
}

#[test]
fn pieces_that_make_nothing_keep_nobodys_datagrams_from_becoming_whole() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let old = Victim::connect(&mut bench, "10.0.0.2:5000");
    let payload = vec![0x5a; 2000];
    for round in 0..20u16 {
        let pieces = |n: u16| {
            let from = (attacker(u32::from(n)), 7).into();
            let frame = Frame::udp(from, at("198.51.100.1:9"), &payload);
            fragments::split(INSIDE, &frame, u32::from(round * 500 + n), &[1000]).swap_remove(0)
        };
        let mine = Frame::udp(at("10.0.0.2:7"), at("198.51.100.1:7"), &payload);
        let mut mine = fragments::split(INSIDE, &mine, u32::from(round), &[1000]);
        let rest = mine.split_off(1);
        assert!(bench.send_bytes(INSIDE, mine.remove(0)).is_empty());
        for n in 0..500 {
            bench.send_packet(INSIDE, MemoryPacket::new(pieces(n)));
        }
        let sent = bench.send_packet(INSIDE, MemoryPacket::new(rest[0].clone()));
        assert_eq!(
            sent.len(),
            2,
            "round {round}: in the two pieces that it came in"
        );
        old.goes_on(&mut bench);
    }
    let lost = [DropReason::Fragment, DropReason::FragmentLimit];
    let lost: u64 = lost
        .map(|r| bench.counters.dropped(r).packets.get())
        .iter()
        .sum();
    // All but those for which there is room.
    assert!((8_000..10_000).contains(&lost), "{lost}");
}

#[test]
fn a_scan_of_ports_is_refused_port_by_port_and_opens_nothing() {
    let only_dns = policy(
        "deny",
        "drop",
        r#"{"id":"web","action":"allow","match":{"proto":"tcp","dst_ports":[80]}}"#,
    );
    let mut bench = Bench::new(&only_dns, two_arms());
    let old = Victim::connect(&mut bench, "10.0.0.2:5000");
    let scan = (1..=u16::MAX)
        .filter(|port| *port != 80)
        .step_by(7)
        .map(|port| {
            Frame::tcp(
                at("10.0.0.9:4000"),
                (ip("198.51.100.1"), port).into(),
                SYN,
                1,
                0,
                b"",
            )
        });
    let count = scan.clone().count() as u64;
    flood(&mut bench, scan);
    assert_eq!(
        bench
            .counters
            .dropped(DropReason::PolicyDenied)
            .packets
            .get(),
        count
    );
    assert_eq!(bench.counters.flows_active.get(), 1);
    old.goes_on(&mut bench);
    Victim::connect(&mut bench, "10.0.0.3:6000");
}
