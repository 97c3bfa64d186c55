//! Packet cases: policy and packet in; verdict, packet out, and every counter that moved.

mod acquire;
mod attack;
mod bench;
mod counted;
mod fragments;
mod grants;
mod hairpin;
mod handover;
mod icmp;
mod limits;
mod link;
mod look;
mod nat;
mod overlay;
mod paths;
mod policy;
mod probe;
mod script;
mod tap;
mod tcp;
mod workers;

use bench::*;
use engine::DropReason;
use sim::frame::{ACK, Body, Frame, SYN};

/// Sends one UDP packet through a fresh worker.
fn check(
    policy: &str,
    port: usize,
    src: &str,
    dst: &str,
    expected: Result<(usize, &str), DropReason>,
    moved: &[&str],
) {
    let mut bench = Bench::new(policy, two_arms());
    let sent = bench.send(port, Frame::udp(at(src), at(dst), b"hello"));
    let got = sent.first().map(|(port, f)| (*port, f.src));
    assert_eq!(
        got,
        expected.ok().map(|(port, src)| (port, ip(src))),
        "{src} > {dst}: {:?}",
        bench.moved()
    );
    if let Err(reason) = expected {
        assert_eq!(
            bench.counters.dropped(reason).packets.get(),
            1,
            "{src} > {dst} {:?}",
            bench.moved()
        );
    }
    assert_eq!(bench.moved(), moved, "{src} > {dst}");
}

#[test]
fn verdicts() {
    let dns = policy(
        "deny",
        "drop",
        r#"{"id":"dns","action":"allow","match":{"proto":"udp","dst_ports":[53]}}"#,
    );
    let opened = ["active +1", "allow out udp +1", "nat +1", "opened +1"];
    let opened6 = ["active +1", "allow out udp +1", "opened +1"];
    check(
        &dns,
        INSIDE,
        "10.0.0.2:5000",
        "198.51.100.1:53",
        Ok((OUTSIDE, "192.0.2.1")),
        &opened,
    );
    check(
        &dns,
        INSIDE,
        "[fd00::2]:5000",
        "[2001:db8:1::1]:53",
        Ok((OUTSIDE, "fd00::2")),
        &opened6,
    );
    let denied = ["deny out udp +1", "drop policy_denied +1"];
    check(
        &dns,
        INSIDE,
        "10.0.0.2:5000",
        "198.51.100.1:54",
        Err(DropReason::PolicyDenied),
        &denied,
    );
    check(
        &dns,
        INSIDE,
        "[fd00::2]:5000",
        "[2001:db8:1::1]:54",
        Err(DropReason::PolicyDenied),
        &denied,
    );
    let outside = ["deny in udp +1", "drop from_outside +1"];
    let allow = allow_all();
    check(
        &allow,
        OUTSIDE,
        "198.51.100.1:53",
        "10.0.0.2:5000",
        Err(DropReason::FromOutside),
        &outside,
    );
    check(
        &allow,
        OUTSIDE,
        "198.51.100.1:53",
        "192.0.2.1:5000",
        Err(DropReason::FromOutside),
        &outside,
    );
    check(
        &allow,
        INSIDE,
        "10.0.0.1:53",
        "198.51.100.1:1",
        Err(DropReason::Martian),
        &["drop martian +1"],
    );
    check(
        &allow,
        INSIDE,
        "127.0.0.1:53",
        "198.51.100.1:1",
        Err(DropReason::Martian),
        &["drop martian +1"],
    );
    check(
        &allow,
        INSIDE,
        "192.0.2.77:53",
        "198.51.100.1:1",
        Err(DropReason::Martian),
        &["drop martian +1"],
    );
    check(
        &allow,
        INSIDE,
        "10.0.0.2:53",
        "240.0.0.1:1",
        Err(DropReason::Martian),
        &["drop martian +1"],
    );
    check(
        &allow,
        INSIDE,
        "10.0.0.2:53",
        "224.0.0.1:1",
        Err(DropReason::Multicast),
        &["drop multicast +1"],
    );
    check(
        &allow,
        INSIDE,
        "[fe80::2]:53",
        "[2001:db8:1::1]:1",
        Err(DropReason::Martian),
        &["drop martian +1"],
    );
    // What is of one link stays there, whatever the policy allows: so do the metadata of clouds.
    for (client, server) in [
        ("10.0.0.2:53", "169.254.169.254:80"),
        ("169.254.7.7:53", "198.51.100.1:1"),
        ("169.254.7.7:53", "10.0.0.3:1"),
    ] {
        let martian = Err(DropReason::Martian);
        let moved = ["drop martian +1"];
        check(&allow, INSIDE, client, server, martian, &moved);
    }
    check(
        &allow,
        INSIDE,
        "10.0.0.2:5",
        "10.0.0.1:6",
        Err(DropReason::LocalUnserved),
        &["drop local_unserved +1"],
    );
    // Inside to inside is judged too, and not translated.
    check(
        &allow,
        INSIDE,
        "10.0.0.2:5",
        "10.0.0.3:6",
        Ok((INSIDE, "10.0.0.2")),
        &opened6,
    );
    check(
        &dns,
        INSIDE,
        "10.0.0.2:5",
        "10.0.0.3:6",
        Err(DropReason::PolicyDenied),
        &denied,
    );
}

#[test]
fn an_answer_finds_its_way_back() {
    for (client, server) in [
        ("10.0.0.2:5000", "198.51.100.1:53"),
        ("[fd00::2]:5000", "[2001:db8:1::1]:53"),
    ] {
        let mut bench = Bench::new(&allow_all(), two_arms());
        let (_, out) = bench.one(INSIDE, Frame::udp(at(client), at(server), b"question"));
        assert_eq!(
            (out.ttl, out.src_mac, out.dst_mac),
            (63, MACS[OUTSIDE], PEER)
        );
        let Body::Udp { src_port, .. } = out.body else {
            panic!("{out:?}")
        };
        assert_eq!(src_port, 5000, "the port is kept where it is free");
        bench.moved();

        let answer = Frame::udp(at(server), (out.src, src_port).into(), b"answer");
        let (port, back) = bench.one(OUTSIDE, answer);
        let expected = Frame::udp(at(server), at(client), b"answer").with_ttl(63);
        assert_eq!((port, back), (INSIDE, expected.between(MACS[INSIDE], PEER)));
        assert_eq!(bench.moved(), ["allow in udp +1"]);
    }
}

#[test]
fn one_arm_tells_sides_apart_by_address() {
    let mut bench = Bench::new(&allow_all(), one_arm());
    let (port, out) = bench.one(
        INSIDE,
        Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), b""),
    );
    assert_eq!((port, out.src), (INSIDE, ip("10.0.0.1")));
    let (_, back) = bench.one(
        INSIDE,
        Frame::udp(at("198.51.100.1:53"), at("10.0.0.1:5000"), b""),
    );
    assert_eq!(back.dst, ip("10.0.7.2"));
    bench.dropped(
        INSIDE,
        Frame::udp(at("198.51.100.1:53"), at("10.0.7.2:5001"), b""),
        DropReason::FromOutside,
    );
}

#[test]
fn a_group_of_everyone_makes_nobody_inside() {
    let everyone = allow_all().replace("10.0.0.0/8", "0.0.0.0/0");
    let mut bench = Bench::new(&everyone, one_arm());
    let (_, out) = bench.one(
        INSIDE,
        Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), b""),
    );
    assert_eq!(out.src, ip("10.0.0.1"), "outside is outside still");
    let begun = Frame::udp(at("198.51.100.1:53"), at("10.0.7.2:5001"), b"");
    bench.dropped(INSIDE, begun, DropReason::FromOutside);

    // Without an internal prefix, groups that say who is inside are believed.
    for (cidr, inside) in [("10.0.0.0/8", true), ("0.0.0.0/0", false)] {
        let mut bench = Bench::new(&allow_all().replace("10.0.0.0/8", cidr), one_arm());
        bench.reconfigure(|s| s.internal.clear());
        let sent = bench.send(
            INSIDE,
            Frame::udp(at("10.0.7.2:5000"), at("198.51.100.1:53"), b""),
        );
        assert_eq!(!sent.is_empty(), inside, "{cidr}");
    }
}

/// A group that looks at everyone else does not make those strangers that others have.
#[test]
fn a_group_of_everyone_leaves_those_of_others_inside() {
    let others = r#"{"id":"all","mode":"audit","sources":{"cidrs":["0.0.0.0/0"]},"default_action":"allow","rules":[]}"#;
    let both = allow_all().replace("[]}]}", &format!("[]}},{others}]}}"));
    assert_ne!(both, allow_all());
    let mut bench = Bench::new(&both, one_arm());
    bench.reconfigure(|s| s.internal.clear());
    let server = at("198.51.100.1:53");
    let (_, out) = bench.one(INSIDE, Frame::udp(at("10.0.7.2:5000"), server, b""));
    assert_eq!(out.src, ip("10.0.0.1"), "outside is outside still");
    let stranger = Frame::udp(at("172.16.0.1:5000"), server, b"");
    bench.dropped(INSIDE, stranger, DropReason::FromOutside);
}

/// A group of what nobody has makes nobody inside either, beside one of everyone.
#[test]
fn groups_of_what_nobody_has_make_nobody_inside() {
    let bogons = r#"{"id":"bogons","mode":"enforce","sources":{"cidrs":["0.0.0.0/8","127.0.0.0/8","240.0.0.0/4"]},"default_action":"deny","rules":[]}"#;
    let everyone = allow_all().replace("10.0.0.0/8", "0.0.0.0/0");
    let both = everyone.replace("[]}]}", &format!("[]}},{bogons}]}}"));
    assert_ne!(both, everyone);
    let mut bench = Bench::new(&both, one_arm());
    let (client, server) = (at("10.0.7.2:5000"), at("198.51.100.1:53"));
    let (_, out) = bench.one(INSIDE, Frame::udp(client, server, b""));
    assert_eq!(out.src, ip("10.0.0.1"), "outside is outside still");
    let begun = Frame::udp(server, at("10.0.7.2:5001"), b"");
    bench.dropped(INSIDE, begun, DropReason::FromOutside);
}

#[test]
fn services_are_handed_to_the_host_and_back() {
    let mut bench = Bench::new(&policy("deny", "drop", ""), two_arms());
    let query = Frame::udp(at("10.0.0.2:5000"), at("10.0.0.53:53"), b"query");
    let (port, handed) = bench.one(INSIDE, query.clone());
    assert_eq!(port, LANE);
    assert_eq!(handed, query.between([0; 6], [0; 6]));
    assert_eq!(bench.moved(), ["allow out udp +1", "local +1"]);

    let answer = Frame::udp(at("10.0.0.53:53"), at("10.0.0.2:5000"), b"answer");
    let sent = bench.send_bytes(LANE, answer.clone().emit());
    assert_eq!(sent, [(INSIDE, answer.between(MACS[INSIDE], PEER))]);

    bench.dropped(
        INSIDE,
        Frame::udp(at("10.0.0.2:1"), at("10.0.0.53:54"), b""),
        DropReason::LocalUnserved,
    );
    bench.dropped(
        OUTSIDE,
        Frame::udp(at("9.9.9.9:1"), at("10.0.0.53:53"), b""),
        DropReason::FromOutside,
    );
    for spoofed in ["10.0.0.9:53", "10.0.0.53:99"] {
        let sent = bench.send_bytes(
            LANE,
            Frame::udp(at(spoofed), at("10.0.0.2:5000"), b"").emit(),
        );
        assert_eq!(sent, []);
    }
    assert_eq!(
        bench.counters.dropped(DropReason::LaneSource).packets.get(),
        2
    );
}

#[test]
fn a_link_without_addresses_of_its_own_has_services_all_the_same() {
    let mut settings = two_arms();
    let link: ipnet::IpNet = "169.254.0.1/16".parse().expect("a constant");
    settings.ports[INSIDE].addresses.push(link);
    let mut bench = Bench::new(&allow_all(), settings);
    let query = Frame::udp(at("169.254.7.7:5000"), at("10.0.0.53:53"), b"query");
    let (port, _) = bench.one(INSIDE, query);
    assert_eq!(port, LANE);
    let answer = Frame::udp(at("10.0.0.53:53"), at("169.254.7.7:5000"), b"answer");
    let sent = bench.send_bytes(LANE, answer.clone().emit());
    assert_eq!(sent, [(INSIDE, answer.between(MACS[INSIDE], PEER))]);
    let echo = Frame::echo(ip("169.254.7.7"), ip("169.254.0.1"), false, 1, 1);
    let (port, answer) = bench.one(INSIDE, echo);
    assert_eq!((port, answer.src), (INSIDE, ip("169.254.0.1")));
    for dst in ["169.254.7.8:5000", "198.51.100.1:5000"] {
        let frame = Frame::udp(at("169.254.7.7:5000"), at(dst), b"");
        bench.dropped(INSIDE, frame, DropReason::Martian);
    }
}

#[test]
fn draining_keeps_old_flows_and_refuses_new_ones() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let old = Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"");
    bench.one(INSIDE, old.clone());
    bench.reconfigure(|s| s.draining = true);
    bench.one(INSIDE, old);
    bench.dropped(
        INSIDE,
        Frame::udp(at("10.0.0.2:5001"), at("198.51.100.1:53"), b""),
        DropReason::Draining,
    );
}

#[test]
fn a_full_table_gives_up_a_half_open_flow_first() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 4);
    bench.reconfigure(|s| s.limits.max_flows = 4);
    let server = at("198.51.100.1:53");
    let udp = |port: u16| Frame::udp((ip("10.0.0.2"), port).into(), at("198.51.100.1:53"), b"");
    for port in 1..=4 {
        bench.one(INSIDE, udp(5000 + port));
        if port != 3 {
            bench.one(
                OUTSIDE,
                Frame::udp(server, (ip("192.0.2.1"), 5000 + port).into(), b""),
            );
        }
    }
    bench.moved();
    bench.one(INSIDE, udp(6000));
    assert_eq!(
        bench.moved(),
        ["allow out udp +1", "closed evicted +1", "opened +1"]
    );
    let (_, back) = bench.one(OUTSIDE, Frame::udp(server, at("192.0.2.1:5001"), b""));
    assert_eq!(back.dst, ip("10.0.0.2"));
    bench.dropped(
        OUTSIDE,
        Frame::udp(server, at("192.0.2.1:5003"), b""),
        DropReason::FromOutside,
    );
}

#[test]
fn established_tcp_does_not_give_way() {
    let mut bench = Bench::with_capacity(&allow_all(), two_arms(), 2);
    for port in [5001, 5002] {
        tcp::establish(&mut bench, port);
    }
    let syn = Frame::tcp(at("10.0.0.2:5003"), at("198.51.100.1:80"), SYN, 1, 0, b"");
    bench.dropped(INSIDE, syn, DropReason::FlowTableFull);
    let data = Frame::tcp(
        at("10.0.0.2:5001"),
        at("198.51.100.1:80"),
        ACK,
        101,
        501,
        b"x",
    );
    bench.one(INSIDE, data);
}

#[test]
fn padding_is_cut_off() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let frame =
        Frame::udp(at("10.0.0.2:5000"), at("198.51.100.1:53"), b"x").between(PEER, MACS[INSIDE]);
    let mut bytes = frame.emit();
    bytes.resize(60, 0xee);
    assert_eq!(bench.send_bytes(INSIDE, bytes).len(), 1);
}

#[test]
fn other_protocols_pass_by_address() {
    let mut bench = Bench::new(&allow_all(), two_arms());
    let (_, out) = bench.one(
        INSIDE,
        Frame::other(ip("10.0.0.2"), ip("198.51.100.1"), 47, b"gre"),
    );
    assert_eq!(out.src, ip("192.0.2.1"));
    let (_, back) = bench.one(
        OUTSIDE,
        Frame::other(ip("198.51.100.1"), ip("192.0.2.1"), 47, b"gre"),
    );
    assert_eq!(back.dst, ip("10.0.0.2"));
    // The answers could not be told apart.
    bench.dropped(
        INSIDE,
        Frame::other(ip("10.0.0.3"), ip("198.51.100.1"), 47, b"gre"),
        DropReason::NatPortsExhausted,
    );
}
