//! What is counted of flows by worker and by source group, beside the fate of each packet.

use std::time::Duration;

use engine::counters::{
    CloseReason, Completion, Direction, GroupCounters, Handshake, IcmpDecision, Protocol, Total,
};
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
fn packets_are_counted_by_group_and_totals_keep_those_of_groups_that_are_gone() {
    let with = |id: &str, action: &str| {
        format!(
            r#"{{"default_policy":"allow","source_groups":[{{"id":"{id}","mode":"enforce",
            "default_action":"{action}","on_deny":"drop","sources":{{"cidrs":["10.0.0.0/25"]}}}}]}}"#
        )
    };
    let mut bench = Bench::new(&with("one", "allow"), two_arms());
    let packets = |volume: &engine::counters::Volume| volume.packets.get();
    let (out, back) = (Direction::Outbound, Direction::Inbound);
    let all = |bench: &Bench| {
        let of = |total: Total| total.packets;
        [out, back].map(|d| {
            let c = &bench.counters;
            (
                of(c.allowed(d, Protocol::Udp)),
                of(c.denied(d, Protocol::Udp)),
            )
        })
    };
    ask(&mut bench, "10.0.0.2:5000");
    ask(&mut bench, "10.0.0.2:5000");
    ask(&mut bench, "10.0.0.200:5001");
    let answer = Frame::udp(at("198.51.100.1:53"), at("192.0.2.1:5000"), b"");
    let bytes = answer.emit().len() as u64;
    bench.one(OUTSIDE, answer);
    let one = group(&bench, "one");
    assert_eq!(packets(one.allowed(out, Protocol::Udp)), 2);
    assert_eq!(packets(one.allowed(back, Protocol::Udp)), 1);
    assert_eq!(one.allowed(back, Protocol::Udp).bytes.get(), bytes);
    let none = &bench.counters.ungrouped;
    assert_eq!(packets(none.allowed(out, Protocol::Udp)), 1);
    assert_eq!(all(&bench), [(3, 0), (1, 0)]);

    // The flow is judged again, and ends: what it was denied belongs to the group that denies it.
    bench.publish(&with("two", "deny"));
    let question = || Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"");
    bench.dropped(INSIDE, question(), DropReason::PolicyChanged);
    bench.dropped(INSIDE, question(), DropReason::PolicyDenied);
    let unasked = Frame::udp(at("198.51.100.1:53"), at("192.0.2.1:7"), b"");
    bench.dropped(OUTSIDE, unasked, DropReason::FromOutside);
    let two = group(&bench, "two");
    assert_eq!(packets(two.denied(out, Protocol::Udp)), 2);
    assert_eq!(
        packets(bench.counters.ungrouped.denied(back, Protocol::Udp)),
        1
    );
    assert_eq!(all(&bench), [(3, 2), (1, 1)]);

    // Groups that are gone are not told of, but still counted; one that comes back is counted anew.
    bench.publish(&with("three", "allow"));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.counters.groups().len(), 1);
    assert_eq!(all(&bench), [(3, 2), (1, 1)]);
    bench.publish(&with("one", "allow"));
    ask(&mut bench, "10.0.0.3:5000");
    assert_eq!(packets(group(&bench, "one").allowed(out, Protocol::Udp)), 1);
    assert_eq!(all(&bench), [(4, 2), (1, 1)]);
}

#[test]
fn icmp_messages_are_counted_by_type_code_and_what_became_of_them() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (client, server) = (ip("10.0.0.2"), ip("198.51.100.1"));
    for seq in 0..2 {
        bench.one(
            INSIDE,
            Frame::icmp(client, server, 8, 0, 7 << 16 | seq, b""),
        );
    }
    bench.one(
        OUTSIDE,
        Frame::icmp(server, ip("192.0.2.1"), 0, 0, 7 << 16, b""),
    );
    let unasked = Frame::icmp(server, ip("10.0.0.9"), 8, 0, 9 << 16, b"");
    bench.dropped(OUTSIDE, unasked, DropReason::FromOutside);
    bench.publish(&policy("deny", "drop", ""));
    let v6 = Frame::icmp(ip("fd00::2"), ip("2001:db8:1::1"), 128, 0, 7 << 16, b"");
    bench.dropped(INSIDE, v6, DropReason::PolicyDenied);
    let decision = |direction, allowed, kind, messages| IcmpDecision {
        direction,
        allowed,
        kind: Some(kind),
        messages,
    };
    let (out, back) = (Direction::Outbound, Direction::Inbound);
    let clients: Vec<IcmpDecision> = group(&bench, "clients").icmp().collect();
    assert_eq!(
        clients,
        [
            decision(out, true, (false, 8, 0), 2),
            decision(back, true, (false, 0, 0), 1),
            decision(out, false, (true, 128, 0), 1),
        ]
    );
    let nobody: Vec<IcmpDecision> = bench.counters.ungrouped.icmp().collect();
    assert_eq!(nobody, [decision(back, false, (false, 8, 0), 1)]);
}

#[test]
fn flows_are_told_by_how_long_they_lasted() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    // One packet, and then two 20 s apart.
    ask(&mut bench, "10.0.0.2:5000");
    ask(&mut bench, "10.0.0.2:5001");
    bench.pass(Duration::from_secs(20));
    ask(&mut bench, "10.0.0.2:5001");
    establish(&mut bench, 5002);
    bench.one(INSIDE, out(5003, SYN, 100, 0, b""));
    bench.one(OUTSIDE, back(5003, RST | ACK, 0, 101, b""));
    // A restart in between changes nothing.
    let (mut bench, imported) = bench.succeed(&allow_all(), two_arms(), Duration::ZERO);
    assert_eq!(imported.taken, 4);
    bench.pass(Duration::from_secs(40));
    bench.one(INSIDE, out(5002, ACK, 101, 501, b""));
    bench.one(INSIDE, out(5002, RST, 101, 0, b""));
    bench.pass(Duration::from_secs(400));
    let bucket = |seconds: f64| {
        let bounds = engine::counters::Ages::BOUNDS;
        bounds.iter().position(|bound| *bound >= seconds).unwrap()
    };
    // Those without a packet since the restart were not judged by this worker: they are of no group.
    let nobody = &bench.counters.ungrouped;
    let idle = nobody.lifetimes(CloseReason::Idle).unwrap();
    let mut expected = [0; 17];
    (expected[0], expected[bucket(20.1)]) = (1, 1);
    assert_eq!(idle.flows(), expected);
    assert!(
        (19.8..20.2).contains(&idle.time().as_secs_f64()),
        "{idle:?}"
    );
    let refused = nobody.lifetimes(CloseReason::Finished).unwrap();
    assert_eq!((refused.flows()[0], refused.time()), (1, Duration::ZERO));
    let clients = group(&bench, "clients");
    let finished = clients.lifetimes(CloseReason::Finished).unwrap();
    let mut expected = [0; 17];
    expected[bucket(40.1)] = 1;
    assert_eq!(finished.flows(), expected);
    let ended = |completion| {
        let ages = bench.counters.ages(CloseReason::Finished, completion);
        ages.flows().iter().sum::<u64>()
    };
    assert_eq!(Completion::ALL.map(ended), [1, 0, 0, 1]);
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
