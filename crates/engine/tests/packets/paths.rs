//! Flows that would leave by another way than the one they were opened for, and what comes beside a frame.

use engine::DropReason;
use engine::port::memory::MemoryPacket;
use engine::port::{Checksum, Gso, GsoKind, Meta, Packet};
use engine::snapshot::Snat;
use sim::frame::{ACK, Body, Frame, RST};

use crate::bench::*;
use crate::tcp::establish;

fn udp(src: &str, dst: &str) -> Frame {
    Frame::udp(at(src), at(dst), b"x")
}

fn dropped(bench: &Bench, reason: DropReason) -> u64 {
    bench.counters.dropped(reason).packets.get()
}

/// From one network inside to another, which nothing translates.
#[test]
fn no_flow_leaves_by_another_port_than_it_was_opened_for() {
    let routed = two_arms_with(&["10.20.0.0/16"]);
    let mut bench = Bench::new(&allow_all(), routed.clone());
    let question = udp("10.0.0.2:5000", "10.20.0.7:53");
    let segment = Frame::tcp(at("10.0.0.2:5001"), at("10.20.0.7:80"), ACK, 101, 501, b"x");
    let until = engine::Now(bench.now.0 + 1_000_000_000);
    bench.reconfigure(|s| s.pick_up_until = until);
    for frame in [&question, &segment] {
        assert_eq!(bench.one(INSIDE, frame.clone()).0, INSIDE);
    }

    // The lease that brought the route is gone.
    bench.reconfigure(|s| s.ports[INSIDE].routes.clear());
    bench.dropped(INSIDE, question.clone(), DropReason::PathChanged);
    bench.reconfigure(|s| s.pick_up_until = engine::Now(0));
    let (port, reset) = bench.one(INSIDE, segment);
    let Body::Tcp { flags, .. } = reset.body else {
        panic!("{reset:?}")
    };
    assert_eq!((port, flags & RST), (INSIDE, RST));
    assert_eq!(bench.counters.flows_active.get(), 0);
    // It begins anew, translated.
    let (port, sent) = bench.one(INSIDE, question);
    assert_eq!((port, sent.src), (OUTSIDE, ip("192.0.2.1")));
}

#[test]
fn an_answer_does_not_leave_by_the_port_that_it_came_from() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let question = udp("10.0.0.2:5000", "198.51.100.1:53");
    bench.one(INSIDE, question.clone());
    let inside = bench.published.load().settings().ports[INSIDE].clone();
    bench.reconfigure(|s| {
        s.ports[INSIDE].addresses.remove(0);
    });
    let answer = udp("198.51.100.1:53", "192.0.2.1:5000");
    bench.dropped(OUTSIDE, answer.clone(), DropReason::NoRoute);
    // The flow goes on as soon as the way is there again.
    bench.reconfigure(|s| s.ports[INSIDE] = inside);
    assert_eq!(bench.one(OUTSIDE, answer).0, INSIDE);
    assert_eq!(bench.counters.flows_opened.get(), 1);
}

#[test]
fn with_one_arm_a_flow_ends_when_one_of_its_ends_changes_sides() {
    let groups = [("dbs", "10.2.0.0/16"), ("clients", "10.1.0.0/16")];
    let without = |gone: &str| {
        let groups = groups.iter().filter(|(id, _)| *id != gone);
        let groups: Vec<_> = groups
            .map(|(id, cidr)| {
                format!(
                    r#"{{"id":"{id}","mode":"enforce","default_action":"allow","sources":{{"cidrs":["{cidr}"]}},"rules":[]}}"#
                )
            })
            .collect();
        let groups = groups.join(",");
        format!(r#"{{"default_policy":"allow","source_groups":[{groups}]}}"#)
    };
    let mut settings = one_arm();
    settings.internal.clear();
    settings.snat = Snat::Auto;
    for (gone, expected) in [("dbs", 1), ("clients", 1), ("", 0)] {
        let mut bench = Bench::new(&without(""), settings.clone());
        let question = udp("10.1.0.5:5000", "10.2.0.9:53");
        let (_, sent) = bench.one(INSIDE, question.clone());
        assert_eq!(sent.src, ip("10.1.0.5"), "inside nothing is translated");
        bench.publish(&without(gone));
        bench.send(INSIDE, question);
        assert_eq!(dropped(&bench, DropReason::PathChanged), expected, "{gone}");
    }
}

/// A lease that has ended may be had again.
#[test]
fn with_one_arm_a_flow_outlives_the_time_without_an_address() {
    let mut settings = one_arm();
    settings.internal.clear();
    settings.snat = Snat::None;
    settings.ports[0].acquires = true;
    let nobody = r#"{"default_policy":"allow","source_groups":[]}"#;
    let mut bench = Bench::new(nobody, settings);
    let question = udp("10.0.0.2:5000", "198.51.100.1:53");
    bench.one(INSIDE, question.clone());
    let before = bench.published.load().settings().ports.clone();
    bench.reconfigure(|s| {
        s.ports[0].addresses.remove(0);
        s.ports[0].gateways.remove(0);
    });
    bench.dropped(INSIDE, question.clone(), DropReason::NoRoute);
    bench.reconfigure(|s| s.ports = before);
    bench.one(INSIDE, question);
    assert_eq!(bench.counters.flows_opened.get(), 1);
}

/// Its clients are inside by their group, and have a prefix on the link that the node takes no address of.
#[test]
fn a_family_that_the_node_has_no_address_of_outlives_a_policy_edit() {
    let mut settings = one_arm();
    settings.internal.clear();
    settings.snat = Snat::None;
    let port = &mut settings.ports[0];
    port.acquires = true;
    port.addresses.retain(|own| own.addr().is_ipv4());
    port.on_link = vec!["fd00::/64".parse().expect("a constant")];
    let mut bench = Bench::new(&allow_all(), settings);
    let question = udp("[fd00::2]:5000", "[2001:db8:9::1]:53");
    bench.one(INSIDE, question.clone());
    bench.publish(&policy("allow", "reset", ""));
    bench.one(INSIDE, question);
    assert_eq!(bench.counters.flows_opened.get(), 1);
}

/// What a client on the same host writes beside its frame is not judged, and must change nothing that is.
#[test]
fn a_checksum_is_completed_nowhere_but_in_its_field_or_behind_the_header() {
    let partial = |start, offset| Meta {
        checksum: Checksum::Partial { start, offset },
        ..Meta::default()
    };
    let check = |frame: Frame, meta: Meta, passes: bool| {
        let mut bench = Bench::without_segmentation(&allow_all(), two_arms());
        bench.reconfigure(|s| s.pick_up_until = engine::Now(u64::MAX));
        let mut packet = MemoryPacket::new(frame.between(PEER, MACS[INSIDE]).emit());
        *packet.meta_mut() = meta;
        let sent = bench.send_packet(INSIDE, packet);
        assert_eq!(sent.len(), usize::from(passes), "{meta:?}");
        let refused = dropped(&bench, DropReason::MalformedHeader);
        assert_eq!(refused, u64::from(!passes));
    };
    let tcp = || {
        Frame::tcp(
            at("10.0.0.2:5000"),
            at("198.51.100.1:443"),
            ACK,
            1,
            1,
            &[0; 60],
        )
    };
    let udp = || Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:443"), &[0; 60]);
    check(tcp(), partial(34, 16), true);
    check(udp(), partial(34, 6), true);
    // Of a packet inside: its own business.
    check(udp(), partial(34 + 8 + 20, 6), true);
    // The ports, the flags, the addresses, the type of a message.
    for (start, offset) in [
        (34, 2),
        (34, 0),
        (34, 12),
        (14, 16),
        (14, 2),
        (0, 36),
        (20, 16),
    ] {
        check(tcp(), partial(start, offset), false);
        check(udp(), partial(start, offset.min(5)), false);
    }
    check(
        Frame::echo(ip("10.0.0.2"), ip("198.51.100.1"), false, 1, 1),
        partial(34, 0),
        false,
    );
}

#[test]
fn a_super_packet_of_a_tunnel_that_passes_through_is_refused() {
    let gso = |kind, header_len| Meta {
        checksum: Checksum::Partial {
            start: header_len - 20,
            offset: 16,
        },
        gso: Some(Gso {
            kind,
            size: 1000,
            header_len,
            ecn: false,
        }),
        ..Meta::default()
    };
    let udp = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:4789"), &[0; 4000]);
    let tcp = Frame::tcp(
        at("10.0.0.2:5000"),
        at("198.51.100.1:80"),
        ACK,
        1,
        1,
        &[0; 4000],
    );
    for (frame, meta, passes) in [
        (&udp, gso(GsoKind::Tcp4, 34 + 50 + 20), false),
        (&tcp, gso(GsoKind::Tcp6, 54), false),
        (&tcp, gso(GsoKind::Tcp4, 54), true),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        bench.reconfigure(|s| s.pick_up_until = engine::Now(u64::MAX));
        let frame = frame.clone().between(PEER, MACS[INSIDE]).emit();
        let mut packet = MemoryPacket::new(frame);
        *packet.meta_mut() = meta;
        assert_eq!(bench.send_packet(INSIDE, packet).len(), usize::from(passes));
        let refused = dropped(&bench, DropReason::GsoUnsupported);
        assert_eq!(refused, u64::from(!passes));
    }
}

/// Expiry keeps up with what a burst opens, and an idle worker turns on until all that is due has left.
#[test]
fn what_is_due_leaves_however_much_it_is() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 4096);
    for port in 0..2000 {
        let syn = udp(&format!("10.0.0.2:{}", 10_000 + port), "198.51.100.1:53");
        bench.one(INSIDE, syn);
    }
    bench.now = bench.now + std::time::Duration::from_secs(400);
    let mut turns = 0;
    while bench.counters.flows_active.get() > 0 {
        bench.worker.poll(bench.now);
        turns += 1;
        let due = bench.worker.next_deadline(bench.now);
        let is_done = bench.counters.flows_active.get() == 0;
        assert!(is_done || due == Some(bench.now), "it sleeps with {turns}");
        assert!(turns < 1000);
    }
}

#[test]
fn addresses_of_prefix_translation_take_no_places_of_those_that_have_ports() {
    let mut settings = two_arms();
    settings.nptv6 = Some(engine::snapshot::Nptv6 {
        inside: "fd00:1::/48".parse().unwrap(),
        outside: "2001:db8:1::/48".parse().unwrap(),
    });
    settings.ports[INSIDE].routes = two_arms_with(&["fd00:1::/48"]).ports[INSIDE].routes.clone();
    let mut bench = Bench::new(&allow_all(), settings);
    for host in 1..100 {
        let src = format!("[fd00:1::{host:x}]:5000");
        bench.one(INSIDE, udp(&src, "[2001:db8:9::1]:53"));
    }
    establish(&mut bench, 5000);
    let used: Vec<_> = bench.counters.nat_use.addresses().collect();
    assert_eq!(used, [(ip("192.0.2.1"), 1)]);
}
