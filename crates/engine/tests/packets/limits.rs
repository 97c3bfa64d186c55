//! How many flows a source and a source group may have, and how fast it may open them.

use std::sync::Arc;
use std::time::Duration;

use engine::snapshot::{Limits, NatMapping, Settings};
use engine::{DropReason, NodeTally};
use sim::frame::{ACK, Frame, RST, SYN};

use crate::bench::*;
use crate::workers::Team;

fn bench(limits: Limits) -> Bench {
    let mut settings = two_arms_with(&["172.16.0.0/12", "fd00:0:0:1::/64"]);
    settings.limits = limits;
    Bench::new(&allow_all(), settings)
}

fn udp(client: &str) -> Frame {
    Frame::udp(at(client), at("198.51.100.1:53"), b"x")
}

#[test]
fn a_source_has_so_many_flows_and_others_have_theirs() {
    let mut bench = bench(Limits {
        max_flows_per_source: Some(2),
        ..Limits::default()
    });
    bench.one(INSIDE, udp("10.0.0.2:1001"));
    bench.one(INSIDE, udp("10.0.0.2:1002"));
    bench.dropped(INSIDE, udp("10.0.0.2:1003"), DropReason::SourceFull);
    bench.one(INSIDE, udp("10.0.0.2:1002"));
    bench.one(INSIDE, udp("10.0.0.3:1003"));
    // In IPv6 a /64 is one source.
    let v6 = |client: &str| Frame::udp(at(client), at("[2001:db8:1::1]:53"), b"x");
    bench.one(INSIDE, v6("[fd00::2]:1"));
    bench.one(INSIDE, v6("[fd00::3]:1"));
    bench.dropped(INSIDE, v6("[fd00::4]:1"), DropReason::SourceFull);
    bench.one(INSIDE, v6("[fd00:0:0:1::4]:1"));
}

#[test]
fn a_group_has_so_many_flows() {
    let mut bench = bench(Limits {
        max_flows_per_group: Some(2),
        ..Limits::default()
    });
    bench.one(INSIDE, udp("10.0.0.2:1001"));
    bench.one(INSIDE, udp("10.0.0.3:1001"));
    bench.dropped(INSIDE, udp("10.0.0.4:1001"), DropReason::SourceGroupFull);
    // Whoever is in no group is not limited with it.
    bench.one(INSIDE, udp("172.16.0.4:1001"));
}

#[test]
fn every_way_in_which_a_flow_ends_makes_room_for_another() {
    let mut bench = bench(Limits {
        max_flows_per_source: Some(1),
        max_flows_per_group: Some(1),
        ..Limits::default()
    });
    let deny = policy("deny", "drop", "");
    bench.one(INSIDE, udp("10.0.0.2:1001"));
    // By its idle time.
    bench.pass(Duration::from_secs(400));
    bench.one(INSIDE, udp("10.0.0.2:1002"));
    // By a new policy.
    bench.publish(&deny);
    bench.dropped(INSIDE, udp("10.0.0.2:1002"), DropReason::PolicyChanged);
    bench.publish(&allow_all());
    // By a connection that takes its place.
    let (client, server) = (at("10.0.0.2:1003"), at("198.51.100.1:80"));
    bench.one(INSIDE, Frame::tcp(client, server, SYN, 1, 0, b""));
    let reset = Frame::tcp(server, at("192.0.2.1:1003"), RST | ACK, 0, 2, b"");
    bench.one(OUTSIDE, reset);
    bench.one(INSIDE, Frame::tcp(client, server, SYN, 9, 0, b""));
    bench.dropped(INSIDE, udp("10.0.0.2:1004"), DropReason::SourceGroupFull);
    // By its end.
    bench.pass(Duration::from_secs(60));
    bench.one(INSIDE, udp("10.0.0.2:1005"));
}

#[test]
fn a_source_opens_flows_no_faster_than_it_may() {
    let mut bench = bench(Limits {
        new_flows_per_source_per_s: Some(10),
        ..Limits::default()
    });
    for port in 1001..1011 {
        bench.one(INSIDE, udp(&format!("10.0.0.2:{port}")));
    }
    bench.dropped(INSIDE, udp("10.0.0.2:1011"), DropReason::SourceRate);
    bench.one(INSIDE, udp("10.0.0.3:1011"));
    // Flows that are there go on.
    bench.one(INSIDE, udp("10.0.0.2:1001"));
    bench.pass(Duration::from_millis(100));
    bench.one(INSIDE, udp("10.0.0.2:1012"));
    bench.dropped(INSIDE, udp("10.0.0.2:1013"), DropReason::SourceRate);
}

/// Two workers that count together.
fn team(limits: Limits, change: impl FnOnce(&mut Settings)) -> Team {
    let mut settings = two_arms_with(&["172.16.0.0/12"]);
    settings.limits = limits;
    change(&mut settings);
    let tally = Arc::new(NodeTally::new(8192, 7).expect("there is memory"));
    Team::with_tally(2, settings, Some(&tally))
}

/// How many flows each worker has.
fn active(team: &Team) -> Vec<u64> {
    let counters = team.counters.iter();
    counters.map(|worker| worker.flows_active.get()).collect()
}

#[test]
fn limits_by_source_and_group_are_those_of_the_node_wherever_its_flows_are() {
    let of_source = Limits {
        max_flows_per_source: Some(20),
        ..Limits::default()
    };
    let of_group = Limits {
        max_flows_per_group: Some(20),
        ..Limits::default()
    };
    for (limits, reason) in [
        (of_source, DropReason::SourceFull),
        (of_group, DropReason::SourceGroupFull),
    ] {
        let mut team = team(limits, |_| ());
        for port in 1..=60 {
            team.send(INSIDE, udp(&format!("10.0.0.2:{port}")));
        }
        assert_eq!(active(&team).iter().sum::<u64>(), 20, "{:?}", active(&team));
        assert!(
            active(&team).iter().all(|flows| *flows > 0),
            "both have some"
        );
        assert_eq!(team.dropped(reason), 40);
        // What ends at one worker makes room at the other.
        team.now = team.now + Duration::from_secs(400);
        for port in 101..=160 {
            team.send(INSIDE, udp(&format!("10.0.0.2:{port}")));
        }
        assert_eq!(active(&team).iter().sum::<u64>(), 20);
    }
}

#[test]
fn a_source_whose_flows_are_all_at_one_worker_has_its_whole_limit() {
    let limits = Limits {
        max_flows_per_source: Some(20),
        new_flows_per_source_per_s: Some(25),
        ..Limits::default()
    };
    // All flows of a client's port share a mapping, and the worker that has it.
    let mut team = team(limits, |settings| {
        settings.nat_mapping = NatMapping::EndpointIndependent;
    });
    for server in 1..=30 {
        let server = at(&format!("198.51.100.{server}:53"));
        team.send(INSIDE, Frame::udp(at("10.0.0.2:1001"), server, b"x"));
    }
    let mut active = active(&team);
    active.sort_unstable();
    assert_eq!(active, [0, 20]);
    assert_eq!(team.dropped(DropReason::SourceFull), 10);
}

#[test]
fn the_rate_of_a_source_is_that_of_the_node() {
    let limits = Limits {
        new_flows_per_source_per_s: Some(10),
        ..Limits::default()
    };
    let mut team = team(limits, |_| ());
    for port in 1..=40 {
        team.send(INSIDE, udp(&format!("10.0.0.2:{port}")));
    }
    assert_eq!(active(&team).iter().sum::<u64>(), 10);
    assert!(
        active(&team).iter().all(|flows| *flows > 0),
        "both have some"
    );
    assert_eq!(team.dropped(DropReason::SourceRate), 30);
}
