//! Flows under a policy that changes.

use super::bench::*;
use engine::event::Event;
use engine::{DropReason, counters::CloseReason};
use sim::frame::{ACK, Body, Frame, RST};

fn web(on_deny: &str, port: u16) -> String {
    let rule = format!(
        r#"{{"id":"web","action":"allow","match":{{"proto":"tcp","dst_ports":[{port}]}}}}"#
    );
    policy("deny", on_deny, &rule)
}

#[test]
fn a_flow_that_stays_allowed_goes_on() {
    let mut bench = Bench::new(&web("drop", 80), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.moved();
    bench.publish(&allow_all());
    bench.one(
        INSIDE,
        Frame::tcp(
            at("10.0.0.2:5000"),
            at("198.51.100.1:80"),
            ACK,
            101,
            501,
            b"x",
        ),
    );
    assert_eq!(bench.moved(), ["allow out tcp +1", "rejudged +1"]);
    assert_eq!(bench.counters.generation(), 2);
    bench.one(
        INSIDE,
        Frame::tcp(
            at("10.0.0.2:5000"),
            at("198.51.100.1:80"),
            ACK,
            102,
            501,
            b"x",
        ),
    );
    assert_eq!(bench.moved(), ["allow out tcp +1"]);
}

#[test]
fn what_no_verdict_depends_on_judges_no_flow_again() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.moved();
    let mut seq = 101;
    let mut moved = |bench: &mut Bench| {
        let (client, server) = (at("10.0.0.2:5000"), at("198.51.100.1:80"));
        bench.one(INSIDE, Frame::tcp(client, server, ACK, seq, 501, b"x"));
        seq += 1;
        bench.moved()
    };
    bench.reconfigure(|s| s.draining = true);
    bench.reconfigure(|s| s.probes = engine::snapshot::Probes::Ready);
    bench.reconfigure(|s| s.ports[OUTSIDE].gateways = vec![ip("192.0.2.253")]);
    bench.reconfigure(|s| s.ports[INSIDE].mtu = Some(1400));
    assert_eq!(moved(&mut bench), ["allow out tcp +1"]);
    assert_eq!(bench.counters.generation(), 5);
    // Translations, and so everything that they are checked by, count; and so does a policy that is published again.
    type Change = fn(&mut engine::snapshot::Settings);
    let changes: [Change; 4] = [
        |s| s.snat = engine::snapshot::Snat::None,
        |s| s.snat = engine::snapshot::Snat::Pool(vec![ip("192.0.2.1"), ip("192.0.2.9")]),
        |s| s.services.clear(),
        |s| {
            s.ports[INSIDE]
                .addresses
                .push("10.9.0.1/24".parse().expect("a constant"))
        },
    ];
    for change in changes {
        bench.reconfigure(change);
        assert_eq!(moved(&mut bench), ["allow out tcp +1", "rejudged +1"]);
        assert_eq!(moved(&mut bench), ["allow out tcp +1"]);
    }
    bench.publish(&allow_all());
    assert_eq!(moved(&mut bench), ["allow out tcp +1", "rejudged +1"]);
}

#[test]
fn a_flow_that_is_now_denied_is_dropped() {
    let mut bench = Bench::new(&web("drop", 80), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.moved();
    bench.publish(&web("drop", 81));
    let segment = Frame::tcp(
        at("198.51.100.1:80"),
        at("192.0.2.1:5000"),
        ACK,
        501,
        101,
        b"x",
    );
    bench.dropped(OUTSIDE, segment, DropReason::PolicyChanged);
    assert_eq!(
        bench.moved(),
        [
            "active -1",
            "closed policy +1",
            "deny in tcp +1",
            "drop policy_changed +1",
            "nat -1",
            "rejudged +1"
        ]
    );
    let events: Vec<_> = bench.events.try_iter().collect();
    let closed = events.iter().any(|e| {
        matches!(
            e,
            Event::Closed {
                reason: CloseReason::Policy,
                ..
            }
        )
    });
    let denied = events
        .iter()
        .any(|e| matches!(e, Event::Denied { flow, icmp: None } if flow.revision == 2));
    assert!(closed && denied, "{events:?}");
}

#[test]
fn a_flow_that_is_now_denied_is_reset_on_both_sides() {
    let mut bench = Bench::new(&web("reset", 80), two_arms());
    super::tcp::establish(&mut bench, 5000);
    bench.publish(&web("reset", 81));
    let mut sent = bench.send(
        OUTSIDE,
        Frame::tcp(
            at("198.51.100.1:80"),
            at("192.0.2.1:5000"),
            ACK,
            501,
            101,
            b"x",
        ),
    );
    sent.sort_by_key(|(port, _)| *port);
    let reset = |f: &Frame| match f.body {
        Body::Tcp { seq, flags, .. } => (f.src, f.dst, seq, flags & RST != 0),
        _ => panic!("{f:?}"),
    };
    assert_eq!(
        reset(&sent[0].1),
        (ip("198.51.100.1"), ip("10.0.0.2"), 501, true)
    );
    assert_eq!(
        reset(&sent[1].1),
        (ip("192.0.2.1"), ip("198.51.100.1"), 101, true)
    );
    assert_eq!((sent[0].0, sent[1].0, sent.len()), (INSIDE, OUTSIDE, 2));
}

#[test]
fn a_denied_connection_is_refused_if_the_group_says_so() {
    for (on_deny, replies) in [("drop", 0), ("reset", 1)] {
        let mut bench = Bench::new(&web(on_deny, 81), two_arms());
        let syn = Frame::tcp(
            at("10.0.0.2:5000"),
            at("198.51.100.1:80"),
            sim::frame::SYN,
            7,
            0,
            b"",
        );
        let sent = bench.send(INSIDE, syn);
        assert_eq!(sent.len(), replies, "{on_deny}");
        if let Some((port, reply)) = sent.first() {
            assert_eq!(*port, INSIDE);
            assert!(
                matches!(reply.body, Body::Tcp { seq: 0, ack: 8, flags, .. } if flags == RST | ACK),
                "{reply:?}"
            );
        }
        assert!(matches!(bench.events.try_recv(), Ok(Event::Denied { .. })));
    }
}

#[test]
fn audit_mode_lets_pass_and_says_so() {
    let audited = web("drop", 81).replace("enforce", "audit");
    let mut bench = Bench::new(&audited, two_arms());
    bench.one(
        INSIDE,
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:80"), b""),
    );
    let moved = bench.moved();
    assert!(moved.contains(&"would_deny +1".to_string()), "{moved:?}");
    assert!(matches!(
        bench.events.try_recv(),
        Ok(Event::Opened {
            would_deny: true,
            ..
        })
    ));
}
