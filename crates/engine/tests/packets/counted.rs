//! What is counted of flows by worker and by source group, beside the fate of each packet.

use std::time::Duration;

use engine::counters::{CloseReason, GroupCounters, Handshake, Protocol};
use engine::{DropReason, Event};
use sim::frame::{ACK, Frame, RST, SYN};

use super::bench::*;
use super::tcp::{back, establish, out};

/// What is counted of a source group.
fn group(bench: &Bench, id: &str) -> std::sync::Arc<GroupCounters> {
    let groups = bench.counters.groups();
    let found = groups.iter().find(|(name, _)| **name == *id);
    found.expect("the policy has it").1.clone()
}

fn ask(bench: &mut Bench, client: &str) {
    let question = Frame::udp(at(client), at("198.51.100.1:53"), b"");
    bench.one(INSIDE, question);
}

#[test]
fn handshakes_are_counted_step_by_step() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    establish(&mut bench, 5000);
    // Refused, not answered, and answered in vain.
    bench.one(INSIDE, out(5001, SYN, 100, 0, b""));
    bench.one(OUTSIDE, back(5001, RST | ACK, 0, 101, b""));
    bench.one(INSIDE, out(5002, SYN, 100, 0, b""));
    bench.one(INSIDE, out(5003, SYN, 100, 0, b""));
    bench.one(OUTSIDE, back(5003, SYN | ACK, 500, 101, b""));
    let steps = Handshake::ALL.map(|step| bench.counters.handshakes(step));
    assert_eq!(steps, [4, 2, 1, 1]);

    bench.pass(Duration::from_secs(61));
    let clients = group(&bench, "clients");
    assert_eq!(bench.counters.unanswered(CloseReason::Idle), 1);
    assert_eq!(clients.unfinished(CloseReason::Idle), 1);
    assert_eq!(clients.handshakes_completed.get(), 1);
    assert_eq!(clients.opened(Protocol::Tcp), 4);
}

#[test]
fn segments_of_handshakes_that_are_dropped_are_counted_by_reason() {
    let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
    bench.dropped(
        INSIDE,
        out(5000, SYN, 100, 0, b""),
        DropReason::PolicyDenied,
    );
    let (server, client) = (at("198.51.100.1:80"), at("10.0.0.2:5000"));
    let answer = Frame::tcp(server, client, SYN | ACK, 500, 101, b"");
    bench.dropped(OUTSIDE, answer, DropReason::FromOutside);
    let segment = Frame::tcp(server, client, ACK, 500, 101, b"");
    bench.dropped(OUTSIDE, segment, DropReason::FromOutside);
    for (is_answer, dropped) in [
        (false, DropReason::PolicyDenied),
        (true, DropReason::FromOutside),
    ] {
        for reason in DropReason::ALL {
            let expected = u64::from(*reason == dropped);
            let counted = bench.counters.handshake_drops(is_answer, *reason);
            assert_eq!(counted, expected, "{is_answer} {reason:?}");
        }
    }
}

#[test]
fn flows_are_counted_by_the_group_that_allows_them() {
    let with = |id: &str| {
        format!(
            r#"{{"default_policy":"allow","source_groups":[{{"id":"{id}","mode":"enforce",
            "default_action":"allow","sources":{{"cidrs":["10.0.0.0/25"]}}}}]}}"#
        )
    };
    let mut bench = Bench::new(&with("one"), two_arms());
    ask(&mut bench, "10.0.0.2:5000");
    ask(&mut bench, "10.0.0.200:5000");
    let opened = |counters: &GroupCounters| counters.opened(Protocol::Udp);
    let one = group(&bench, "one");
    assert_eq!((opened(&one), opened(&bench.counters.ungrouped)), (1, 1));

    // A group that has left is told of as long as it has flows.
    bench.publish(&with("two"));
    ask(&mut bench, "10.0.0.3:5000");
    assert_eq!(opened(&group(&bench, "one")), 1);
    assert_eq!(opened(&group(&bench, "two")), 1);
    bench.pass(Duration::from_secs(400));
    bench.publish(&with("three"));
    bench.pass(Duration::from_secs(1));
    let groups = bench.counters.groups();
    let names: Vec<&str> = groups.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["three"]);
}

#[test]
fn the_ports_that_are_tried_are_counted_for_each_flow() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    ask(&mut bench, "10.0.0.2:5000");
    ask(&mut bench, "10.0.0.3:5000");
    let [found, in_vain] = &bench.counters.nat_scans;
    assert_eq!((found.ports(), in_vain.ports()), (3, 0));
    assert_eq!(found.flows(), [1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.counters.nat_port_probes.get(), 3);
    assert_eq!(bench.counters.nat_ports_kept.get(), 1);
}

#[test]
fn denials_that_nobody_takes_are_lost_and_counted() {
    let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
    let server = ip("198.51.100.1");
    for port in 1..=1100 {
        let question = Frame::udp(at("10.0.0.2:5000"), (server, port).into(), b"");
        bench.dropped(INSIDE, question, DropReason::PolicyDenied);
    }
    assert_eq!(bench.counters.events_lost.get(), 1100 - 1024);
    let told: Vec<_> = bench.events.try_iter().collect();
    assert_eq!(told.len(), 1024);
    let question = Frame::icmp(ip("10.0.0.2"), server, 8, 0, 7 << 16, b"");
    bench.dropped(INSIDE, question, DropReason::PolicyDenied);
    let told = bench.events.try_recv().expect("there is room again");
    assert!(
        matches!(told, Event::Denied { icmp: Some((8, 0)), flow } if flow.dst == server),
        "{told:?}"
    );
}
