//! How many flows a source and a source group may have, and how fast it may open them.

use std::time::Duration;

use engine::DropReason;
use engine::snapshot::Limits;
use sim::frame::{ACK, Frame, RST, SYN};

use crate::bench::*;

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
