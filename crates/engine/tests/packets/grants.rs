//! Packets to addresses that names were found to have.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::bench::*;
use engine::counters::CloseReason;
use engine::grant::{Address, Granted, Table, UseId, Uses};
use engine::{DropReason, Imported, Snapshot};
use policy::{Compiled, NameRule};
use sim::frame::{ACK, Frame, SYN};

const SERVER: &str = "198.51.100.1:80";

/// One rule by name, for TCP port 80, with this id, and another for all of another name.
fn named(id: &str) -> String {
    let rules = format!(
        r#"{{"id":"{id}","action":"allow","match":{{"dns_names":["a.example"],"proto":"tcp","dst_ports":[80]}}}},
        {{"id":"other","action":"allow","match":{{"dns_names":["b.example"]}}}}"#
    );
    policy("deny", "drop", &rules)
}

/// The rule with an id, if the policy has it by name.
fn rule(policy: &Compiled, id: &str) -> Option<NameRule> {
    policy.name_rules().find(|rule| {
        let (group, rule) = policy.name_rule_position(*rule).unwrap_or_default();
        policy.rule_id(group, rule) == Some(id)
    })
}

/// A table in which an address is granted to a rule, if the policy has it.
fn granted(
    policy: &Compiled,
    uses: &Arc<Uses>,
    address: IpAddr,
    id: &str,
    client: Option<IpAddr>,
    counted: UseId,
) -> Table {
    let mut table = Table::new(Arc::clone(uses));
    let granted = rule(policy, id).map(|rule| Granted {
        rule,
        client,
        counted,
    });
    table.set(address, Address::new(granted));
    table
}

/// Publishes a policy under which the server is granted to `web`.
fn publish(bench: &mut Bench, policy: &str, uses: &Arc<Uses>) {
    let address = at(SERVER).ip();
    bench.publish_with(policy, |policy| {
        granted(policy, uses, address, "web", None, UseId::at(7))
    });
}

fn syn(client: &str, server: &str) -> Frame {
    Frame::tcp(at(client), at(server), SYN, 1, 0, b"")
}

fn in_force(bench: &Bench) -> Arc<Snapshot> {
    bench.published.load_full()
}

#[test]
fn a_grant_lets_packets_through_that_fit_its_rule_otherwise() {
    let mut bench = Bench::new(&named("web"), two_arms());
    let denied = DropReason::PolicyDenied;
    bench.dropped(INSIDE, syn("10.0.0.2:5000", SERVER), denied);
    let uses = Arc::default();
    publish(&mut bench, &named("web"), &uses);
    bench.one(INSIDE, syn("10.0.0.2:5000", SERVER));
    assert_eq!(uses.of(UseId::at(7)), 1);
    bench.dropped(INSIDE, syn("10.0.0.2:5001", "198.51.100.1:81"), denied);
    bench.dropped(INSIDE, syn("10.0.0.2:5002", "198.51.100.2:80"), denied);
    let udp = Frame::udp(at("10.0.0.2:5003"), at(SERVER), b"");
    bench.dropped(INSIDE, udp, denied);
    assert_eq!(uses.of(UseId::at(7)), 1);
}

#[test]
fn a_grant_is_in_force_for_the_next_packet_without_another_policy() {
    let mut bench = Bench::new(&named("web"), two_arms());
    let snapshot = in_force(&bench);
    let uses = Arc::default();
    let server = at(SERVER).ip();
    let table = granted(snapshot.policy(), &uses, server, "web", None, UseId::at(0));
    let before = snapshot.grants().load_full();
    snapshot.grants().store(Arc::new(table));
    bench.one(INSIDE, syn("10.0.0.2:5000", SERVER));
    bench.moved();
    // Without it no further flow begins, and the one that did goes on.
    snapshot.grants().store(before);
    bench.dropped(
        INSIDE,
        syn("10.0.0.2:5001", SERVER),
        DropReason::PolicyDenied,
    );
    bench.one(
        OUTSIDE,
        Frame::tcp(at(SERVER), at("192.0.2.1:5000"), SYN | ACK, 1, 2, b""),
    );
}

#[test]
fn a_grant_for_one_client_is_for_no_other() {
    let uses = Arc::default();
    let mut bench = Bench::new(&named("web"), two_arms());
    bench.publish_with(&named("web"), |policy| {
        let client = Some(ip("10.0.0.2"));
        granted(policy, &uses, at(SERVER).ip(), "web", client, UseId::at(1))
    });
    let other = syn("10.0.0.3:5000", SERVER);
    bench.dropped(INSIDE, other, DropReason::PolicyDenied);
    bench.one(INSIDE, syn("10.0.0.2:5000", SERVER));
    assert_eq!(uses.of(UseId::at(1)), 1);
}

#[test]
fn flows_survive_an_edit_that_keeps_their_rule_and_end_with_it() {
    let uses = Arc::default();
    let mut bench = Bench::new(&named("web"), two_arms());
    publish(&mut bench, &named("web"), &uses);
    super::tcp::establish(&mut bench, 5000);
    assert_eq!(uses.of(UseId::at(7)), 1);
    let data = |seq| Frame::tcp(at("10.0.0.2:5000"), at(SERVER), ACK, seq, 501, b"x");
    bench.moved();
    // The rule stands elsewhere in the new policy.
    let moved = named("web").replace(
        r#""rules":["#,
        r#""rules":[{"id":"new","action":"allow","match":{"dst_ports":[1]}},"#,
    );
    publish(&mut bench, &moved, &uses);
    bench.one(INSIDE, data(101));
    assert_eq!(bench.moved(), ["allow out tcp +1", "rejudged +1"]);
    assert_eq!(uses.of(UseId::at(7)), 1);
    publish(&mut bench, &named("gone"), &uses);
    bench.dropped(INSIDE, data(102), DropReason::PolicyChanged);
    assert_eq!(bench.counters.closed(CloseReason::Policy), 1);
    assert_eq!(uses.of(UseId::at(7)), 0);
}

#[test]
fn a_flow_that_ends_by_itself_uses_its_grant_no_more() {
    let uses = Arc::default();
    let mut bench = Bench::new(&named("web"), two_arms());
    publish(&mut bench, &named("web"), &uses);
    bench.one(INSIDE, syn("10.0.0.2:5000", SERVER));
    assert_eq!(uses.of(UseId::at(7)), 1);
    bench.pass(Duration::from_secs(3600));
    assert_eq!(uses.of(UseId::at(7)), 0);
}

#[test]
fn a_flow_that_is_taken_over_uses_its_grant_before_its_next_packet() {
    let uses = Arc::default();
    let mut bench = Bench::new(&named("web"), two_arms());
    publish(&mut bench, &named("web"), &uses);
    super::tcp::establish(&mut bench, 5000);
    let of_next = Arc::default();
    let mut next = Bench::new(&named("web"), two_arms());
    let address = at(SERVER).ip();
    next.publish_with(&named("web"), |policy| {
        granted(policy, &of_next, address, "web", None, UseId::at(3))
    });
    let imported = bench.hand_over(&mut next, Duration::ZERO);
    let expected = Imported {
        taken: 1,
        ..Imported::default()
    };
    assert_eq!(imported, expected);
    assert_eq!(of_next.of(UseId::at(3)), 1);
    next.one(
        INSIDE,
        Frame::tcp(at("10.0.0.2:5000"), at(SERVER), ACK, 101, 501, b"x"),
    );
    assert_eq!(of_next.of(UseId::at(3)), 1);
}

/// Publishes another table under the same policy.
fn regrant(bench: &Bench, change: impl FnOnce(&Compiled, &mut Table)) {
    let snapshot = in_force(bench);
    let mut table = Table::clone(&snapshot.grants().load());
    change(snapshot.policy(), &mut table);
    snapshot.grants().store(Arc::new(table));
}

fn grant_web(policy: &Compiled, table: &mut Table) {
    let granted = rule(policy, "web").map(|rule| Granted {
        rule,
        client: None,
        counted: UseId::at(7),
    });
    table.set(at(SERVER).ip(), Address::new(granted));
}

#[test]
fn a_first_packet_waits_for_a_grant_that_may_be_on_its_way() {
    let mut bench = Bench::new(&named("web"), two_arms());
    regrant(&bench, |_, table| table.set_incomplete(true));
    for port in [5000, 5001] {
        let held = bench.send(INSIDE, syn(&format!("10.0.0.2:{port}"), SERVER));
        assert_eq!(held, []);
    }
    assert_eq!(bench.moved(), [""; 0]);
    bench.pass(Duration::from_millis(20));
    regrant(&bench, grant_web);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.exchange_frames().len(), 0);
    assert_eq!(
        bench.moved(),
        ["active +2", "allow out tcp +2", "nat +2", "opened +2"],
        "both have gone on their way"
    );
}

#[test]
fn what_no_grant_could_let_through_does_not_wait() {
    let web = r#"{"id":"web","action":"allow","match":{"dns_names":["a.example"],"proto":"tcp","dst_ports":[80]}}"#;
    let mut bench = Bench::new(&policy("deny", "drop", web), two_arms());
    regrant(&bench, |_, table| table.set_incomplete(true));
    let denied = DropReason::PolicyDenied;
    bench.dropped(INSIDE, syn("10.0.0.2:5000", "198.51.100.1:81"), denied);
    // Nor what would have passed if that could.
    regrant(&bench, grant_web);
    bench.dropped(INSIDE, syn("10.0.0.2:5000", "198.51.100.1:81"), denied);
}

#[test]
fn a_first_packet_waits_also_where_its_destination_is_granted_to_others() {
    let mut bench = Bench::new(&named("web"), two_arms());
    let granted_to = |client: &str| {
        let client = Some(ip(client));
        move |policy: &Compiled, table: &mut Table| {
            let granted = rule(policy, "web").map(|rule| Granted {
                rule,
                client,
                counted: UseId::at(7),
            });
            table.set(at(SERVER).ip(), Address::new(granted));
            table.set_incomplete(true);
        }
    };
    regrant(&bench, granted_to("10.0.0.3"));
    assert_eq!(bench.send(INSIDE, syn("10.0.0.2:5000", SERVER)), []);
    bench.pass(Duration::from_millis(20));
    assert_eq!(bench.moved(), [""; 0]);
    regrant(&bench, granted_to("10.0.0.2"));
    bench.pass(Duration::from_millis(1));
    assert_eq!(uses_of(&bench), 1);
    assert_eq!(denied(&bench), 0);
}

#[test]
fn a_first_packet_waits_no_longer_than_fifty_milliseconds() {
    let mut bench = Bench::new(&named("web"), two_arms());
    regrant(&bench, |_, table| table.set_incomplete(true));
    bench.send(INSIDE, syn("10.0.0.2:5000", SERVER));
    bench.pass(Duration::from_millis(49));
    assert_eq!(denied(&bench), 0);
    bench.pass(Duration::from_millis(1));
    assert_eq!(denied(&bench), 1);
    // The wait is for new flows alone, and only while grants may be missing.
    regrant(&bench, |_, table| table.set_incomplete(false));
    let next = syn("10.0.0.2:5001", SERVER);
    bench.dropped(INSIDE, next, DropReason::PolicyDenied);
}

#[test]
fn first_packets_that_wait_are_bounded() {
    let mut bench = Bench::new(&named("web"), two_arms());
    regrant(&bench, |_, table| table.set_incomplete(true));
    for port in 5000..5300 {
        bench.send(INSIDE, syn(&format!("10.0.0.2:{port}"), SERVER));
    }
    // One source leaves as many places as it has.
    assert_eq!(denied(&bench), 300 - 128);
    for port in 5000..5300 {
        bench.send(INSIDE, syn(&format!("10.0.0.3:{port}"), SERVER));
    }
    assert_eq!(denied(&bench), 600 - 128 - 64);
    regrant(&bench, grant_web);
    bench.pass(Duration::from_millis(1));
    assert_eq!(uses_of(&bench), 128 + 64);
    // The places are free again.
    for port in 6000..6300 {
        bench.send(INSIDE, syn(&format!("10.0.0.2:{port}"), "198.51.100.7:80"));
    }
    assert_eq!(denied(&bench), 600 - 128 - 64 + 300 - 128);
}

fn denied(bench: &Bench) -> u64 {
    let denied = bench.counters.dropped(DropReason::PolicyDenied);
    denied.packets.get()
}

fn uses_of(bench: &Bench) -> u32 {
    in_force(bench).grants().load().uses().of(UseId::at(7))
}

#[test]
fn a_denied_datagram_in_pieces_does_not_wait_nor_does_what_comes_after_it() {
    let mut bench = Bench::new(&named("web"), two_arms());
    regrant(&bench, |_, table| table.set_incomplete(true));
    let datagram = Frame::udp(at("10.0.0.2:5000"), at(SERVER), &[7; 2_000]);
    for piece in super::fragments::split(INSIDE, &datagram, 9, &[1_000]) {
        assert_eq!(bench.send_bytes(INSIDE, piece), []);
    }
    // Both pieces count.
    assert_eq!(denied(&bench), 2, "{:?}", bench.moved());
    let from_outside = Frame::udp(at("198.51.100.9:53"), at("192.0.2.77:53"), b"");
    bench.dropped(OUTSIDE, from_outside, DropReason::FromOutside);
}
