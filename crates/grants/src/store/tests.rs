use std::net::IpAddr;

use policy::{Document, Facts};
use proptest::prelude::*;

use super::*;
use crate::stream::{Answer, Body, End, Push};

const GRACE_MS: u64 = 420_000;
const DAY_MS: u64 = 86_400_000;

fn store(incarnation: u64) -> Store {
    Store::new(Settings {
        grace_ms: GRACE_MS,
        capacity: 1_000,
        silent_ms: 60_000,
        incarnation,
    })
}

fn policy(rules: &str) -> Arc<Compiled> {
    let document = format!(
        r#"{{"default_policy":"deny","source_groups":[{{"id":"web","mode":"enforce",
        "sources":{{"cidrs":["10.0.0.0/8"]}},"rules":[{rules}]}}]}}"#
    );
    let document = Document::parse_json(document.as_bytes()).unwrap();
    Arc::new(Compiled::compile(&document, 1).unwrap())
}

fn named(id: &str, name: &str, more: &str) -> String {
    format!(
        r#"{{"id":"{id}","action":"allow","match":{{"dns_names":["{name}"],"proto":"tcp","dst_ports":[443]}}{more}}}"#
    )
}

fn one() -> Arc<Compiled> {
    policy(&named("one", "**.example", ""))
}

fn installed(incarnation: u64, policy: Arc<Compiled>) -> Store {
    let mut store = store(incarnation);
    store.install(policy, 0);
    store
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];

fn learn(store: &mut Store, name: &str, last: u8, ttl_s: u32, now_ms: u64) -> Learned {
    let asked = Asked {
        group: "web",
        client: CLIENT.into(),
        name,
        addresses: &[address(last)],
        ttl_s,
    };
    store.learn(&asked, now_ms)
}

/// The counter that a new flow of a client would enter, if it is allowed.
fn judge(store: &Store, client: [u8; 4], last: u8) -> Option<engine::grant::UseId> {
    judge_at(store, client, address(last))
}

fn judge_at(store: &Store, client: [u8; 4], dst: IpAddr) -> Option<engine::grant::UseId> {
    let facts = Facts {
        src: client.into(),
        dst,
        proto: 6,
        src_port: 50_000,
        dst_port: 443,
        icmp: None,
    };
    let (decision, counted) = store.table.judge(&store.policy, &facts);
    assert_eq!(decision.allow, counted.is_some());
    counted
}

fn allows(store: &Store, last: u8) -> bool {
    judge(store, CLIENT, last).is_some()
}

fn sweep(store: &mut Store, now_ms: u64) {
    let mut from = Some(0);
    while let Some(at) = from {
        from = store.sweep(at, 3, now_ms);
    }
}

/// Sends what `from` has not told yet; all of it, if that is asked for.
fn tell(from: (&mut Store, Origin), to: (&mut Store, Origin), place: u64, now_ms: u64) -> u64 {
    let (sender, sender_id) = from;
    let (receiver, receiver_id) = to;
    let answer = match sender.changes_from(place, 1_000, now_ms) {
        Some(push) => receiver.take(sender_id, receiver_id, &encoded(&push), now_ms),
        None => Answer { wants_all: true },
    };
    let next = sender.next_place();
    if answer.wants_all {
        let (mut part, mut at) = (0, Some(0));
        while let Some(from) = at {
            let (push, next_at) = sender.everything(part, from, 2, End { next }, now_ms);
            receiver.take(sender_id, receiver_id, &encoded(&push), now_ms);
            (part, at) = (part + 1, next_at);
        }
    }
    assert!(!receiver.is_behind(sender_id));
    next
}

fn encoded(push: &Push) -> Push {
    let read = Push::decode(&push.encode()).unwrap();
    assert_eq!(read, *push);
    read
}

#[test]
fn what_was_learned_is_granted_to_the_rules_that_the_name_matches() {
    let rules = [
        named("one", "a.example", ""),
        named("two", "b.example", r#","grant_scope":"client""#),
    ];
    let mut store = installed(1, policy(&rules.join(",")));
    assert!(!allows(&store, 1));
    let learned = learn(&mut store, "a.example", 1, 300, 1_000);
    assert_eq!((learned.place, learned.changed), (1, true));
    assert_eq!(learned.until_ms, 301_000);
    assert!(judge(&store, CLIENT, 1).is_some());
    assert!(judge(&store, OTHER, 1).is_some());
    assert!(!allows(&store, 2));

    learn(&mut store, "b.example", 2, 300, 1_000);
    assert!(judge(&store, CLIENT, 2).is_some());
    assert!(judge(&store, OTHER, 2).is_none());

    assert_eq!(learn(&mut store, "c.example", 3, 300, 1_000).place, 0);
    assert!(!allows(&store, 3));
}

#[test]
fn what_is_learned_again_needs_no_telling_while_it_lasts() {
    let mut store = installed(1, one());
    assert_eq!(learn(&mut store, "a.example", 1, 300, 0).place, 1);
    learn(&mut store, "b.example", 1, 300, 0);
    let again = learn(&mut store, "a.example", 1, 200, 100_000);
    assert_eq!((again.place, again.changed), (1, false));
    let longer = learn(&mut store, "a.example", 1, 300, 100_000);
    assert_eq!((longer.place, longer.changed), (3, false));
}

#[test]
fn a_grant_ends_after_ttl_and_grace_and_takes_no_other_name_with_it() {
    let mut store = installed(1, one());
    learn(&mut store, "a.example", 1, 0, 0);
    learn(&mut store, "b.example", 1, 300, 0);
    let end = u64::from(MIN_TTL_S) * 1_000 + GRACE_MS;
    sweep(&mut store, end - 1);
    assert_eq!(store.len(), 2);
    sweep(&mut store, end);
    assert_eq!(store.len(), 1);
    assert!(allows(&store, 1));
    sweep(&mut store, 300_000 + GRACE_MS);
    assert!(store.is_empty() && !allows(&store, 1));
    learn(&mut store, "a.example", 2, u32::MAX, 0);
    sweep(&mut store, DAY_MS + GRACE_MS);
    assert!(store.is_empty());
}

#[test]
fn a_grant_lasts_while_flows_use_it_and_a_grace_longer() {
    let mut store = installed(1, one());
    learn(&mut store, "a.example", 1, 60, 0);
    let counted = judge(&store, CLIENT, 1).unwrap();
    store.uses().enter(counted);
    let mut now_ms = 0;
    while now_ms < 10 * GRACE_MS {
        now_ms += GRACE_MS / 14;
        sweep(&mut store, now_ms);
        assert!(allows(&store, 1));
    }
    store.uses().leave(counted);
    sweep(&mut store, now_ms + GRACE_MS / 2 - 1);
    assert!(allows(&store, 1));
    sweep(&mut store, now_ms + GRACE_MS);
    assert!(!allows(&store, 1));
}

#[test]
fn a_flow_that_a_worker_opened_by_the_table_before_keeps_its_grant() {
    let mut store = installed(1, one());
    learn(&mut store, "a.example", 1, 60, 0);
    let counted = judge(&store, CLIENT, 1).unwrap();
    let end = 60_000 + GRACE_MS;
    sweep(&mut store, end);
    assert!(!allows(&store, 1));
    store.uses().enter(counted);
    sweep(&mut store, end + 999);
    assert!(!allows(&store, 1));
    sweep(&mut store, end + 1_000);
    assert_eq!(judge(&store, CLIENT, 1), Some(counted));
    sweep(&mut store, end + GRACE_MS);
    assert!(allows(&store, 1));
}

#[test]
fn counters_are_used_again_once_nobody_can_enter_them() {
    let mut store = installed(1, one());
    for round in 0..100 {
        let now_ms = round * DAY_MS;
        learn(&mut store, "a.example", 1, 60, now_ms);
        sweep(&mut store, now_ms + DAY_MS / 2);
        sweep(&mut store, now_ms + DAY_MS / 2 + 1_000);
        assert_eq!(store.counters.held(), 0);
    }
    assert!(judge(&store, CLIENT, 1).is_none());
    learn(&mut store, "a.example", 1, 60, 101 * DAY_MS);
    assert_eq!(judge(&store, CLIENT, 1).unwrap().place(), 0);
}

#[test]
fn a_policy_edit_ends_no_grant_whose_name_some_rule_still_matches() {
    let mut store = installed(1, one());
    learn(&mut store, "a.example", 1, 60, 0);
    let counted = judge(&store, CLIENT, 1).unwrap();
    store.uses().enter(counted);
    let same = policy(
        &[
            named("new", "x.example", ""),
            named("one", "**.example", ""),
        ]
        .join(","),
    );
    store.install(same, 1_000);
    assert_eq!(judge(&store, CLIENT, 1), Some(counted));

    // Another rule takes the name over; the flow is not judged again before its next packet.
    store.install(policy(&named("two", "a.example", "")), 2_000);
    let new = judge(&store, CLIENT, 1).unwrap();
    assert_ne!(new, counted);
    sweep(&mut store, DAY_MS);
    assert!(allows(&store, 1));
    store.uses().leave(counted);
    store.uses().enter(new);
    sweep(&mut store, 2 * DAY_MS);
    assert!(allows(&store, 1));

    store.install(policy(&named("three", "b.example", "")), 2 * DAY_MS);
    assert!(!allows(&store, 1));
    sweep(&mut store, 2 * DAY_MS + 1);
    assert_eq!(store.tally().inert, 1);
    store.install(one(), 2 * DAY_MS + 1);
    assert!(allows(&store, 1));
}

/// Whatever happens while a policy is prepared, it is as if it had been installed at once.
#[test]
fn a_policy_that_was_prepared_is_the_same_as_one_that_was_not() {
    let first = one();
    let second = policy(
        &[
            named("two", "**.b.example", ""),
            named("one", "**.a.example", ""),
            named("own", "**.c.example", r#","grant_scope":"client""#),
        ]
        .join(","),
    );
    let names = ["x.a.example", "x.b.example", "x.c.example", "other.example"];
    // How many of ten steps are made between two parts of the preparation.
    for at_once in 1..=10 {
        for prepares in [true, false] {
            let mut store = installed(1, Arc::clone(&first));
            for n in 0..40_u8 {
                let name = format!("n{n}.{}", names[usize::from(n) % 4]);
                learn(&mut store, &name, n, 60, 0);
            }
            let used = judge(&store, CLIENT, 1).unwrap();
            store.uses().enter(used);
            let mut done = false;
            for step in 0..40_u8 {
                if prepares && usize::from(step) % at_once == 0 {
                    done = store.prepare(&second, 7);
                }
                let name = format!("m{step}.{}", names[usize::from(step) % 4]);
                learn(&mut store, &name, 100 + step, 60, 1);
                if step % 4 == 3 {
                    let at = store.find(&Key {
                        group: "web".into(),
                        name: format!("n{step}.{}", names[3]).into(),
                        client: None,
                    });
                    store.disclaim(at.unwrap(), address(step), OWN, 1);
                    store.drop_if_empty(at.unwrap());
                }
            }
            while prepares && !done {
                done = store.prepare(&second, 7);
            }
            assert_eq!(store.next_policy.is_some(), prepares);
            learn(&mut store, "last.a.example", 200, 60, 1);
            store.install(Arc::clone(&second), 2);
            for last in 0..=200 {
                let is_there = last < 40 || (100..140).contains(&last);
                let granted = is_there && last % 4 < 2 || last == 200;
                let case = format!("{last}, {at_once} at once, {prepares}");
                assert_eq!(allows(&store, last), granted, "{case}");
            }
            // The flow that was judged by a rule before still counts for its address.
            let at = store.find(&Key {
                group: "web".into(),
                name: "n1.x.b.example".into(),
                client: None,
            });
            assert_eq!(store.uses_at(at.unwrap(), address(1)), 1);
            store.uses().leave(used);
            learn(&mut store, "new.b.example", 201, 60, 3);
            assert!(allows(&store, 201));
        }
    }
}

#[test]
fn a_peer_is_granted_the_same_and_in_the_end_no_longer() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    learn(&mut a, "a.example", 1, 60, 0);
    // It is asked for everything first, since nobody knows it.
    let mut place = tell((&mut a, 1), (&mut b, 2), 1, 0);
    assert!(allows(&b, 1));
    learn(&mut a, "b.example", 2, 60, 10);
    let push = a.changes_from(place, 100, 10).unwrap();
    assert!(!b.take(1, 2, &push, 10).wants_all);
    place = a.next_place();
    assert!(allows(&b, 2));
    let end = 60_010 + GRACE_MS;
    sweep(&mut b, end);
    assert_eq!(b.len(), 2);
    sweep(&mut a, end);
    let push = a.changes_from(place, 100, end).unwrap();
    assert!(!b.take(1, 2, &push, end).wants_all);
    assert!(a.is_empty() && b.is_empty());
}

#[test]
fn a_grant_of_a_rule_that_a_peer_does_not_know_waits_for_its_policy() {
    let mut a = installed(1, one());
    let mut b = installed(2, policy(&named("none", "other.test", "")));
    learn(&mut a, "a.example", 1, 60, 0);
    tell((&mut a, 1), (&mut b, 2), 1, 0);
    assert!(!allows(&b, 1));
    let mut shown = Vec::new();
    b.each(&Wanted::default(), 0, 100, 0, |grant| shown.push(grant));
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (shown[0].state(), &shown[0].origins[..]),
        (State::Inert, &[1][..])
    );
    b.install(one(), 1);
    assert!(allows(&b, 1));
}

#[test]
fn a_peer_that_missed_a_change_asks_for_everything() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    let place = tell((&mut a, 1), (&mut b, 2), 1, 0);
    learn(&mut a, "a.example", 1, 60, 0);
    learn(&mut a, "b.example", 2, 60, 0);
    let late = a.changes_from(place + 1, 1, 0).unwrap();
    assert!(b.take(1, 2, &late, 0).wants_all);
    assert!(allows(&b, 2) && !allows(&b, 1));
    tell((&mut a, 1), (&mut b, 2), place + 1, 0);
    assert!(allows(&b, 1));
}

#[test]
fn a_peer_whose_sum_differs_asks_for_everything() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    learn(&mut a, "a.example", 1, 60, 0);
    let place = tell((&mut a, 1), (&mut b, 2), 1, 0);
    let mut push = a.changes_from(place, 10, 0).unwrap();
    assert!(!b.take(1, 2, &push, 0).wants_all);
    if let Body::Changes { sum, .. } = &mut push.body {
        *sum ^= 1;
    }
    assert!(b.take(1, 2, &push, 0).wants_all);
}

#[test]
fn what_a_restarted_peer_claims_no_longer_ends() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    learn(&mut a, "a.example", 1, 60, 0);
    learn(&mut a, "b.example", 2, 60, 0);
    tell((&mut a, 1), (&mut b, 2), 1, 0);
    let mut a = installed(3, one());
    learn(&mut a, "b.example", 2, 60, 5);
    tell((&mut a, 1), (&mut b, 2), 1, 5);
    assert!(!allows(&b, 1) && allows(&b, 2));
    // Unless live flows use it.
    let counted = judge(&b, CLIENT, 2).unwrap();
    b.uses().enter(counted);
    let mut a = installed(4, one());
    tell((&mut a, 1), (&mut b, 2), 1, 9);
    assert_eq!(judge(&b, CLIENT, 2), Some(counted));
    tell((&mut b, 2), (&mut a, 1), 1, 9);
    assert!(allows(&a, 2));
}

#[test]
fn what_a_peer_gives_up_before_its_time_stays_where_live_flows_use_it() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    a.settings.capacity = 2;
    learn(&mut a, "a.example", 1, 60, 0);
    learn(&mut a, "b.example", 2, 60, 0);
    let place = tell((&mut a, 1), (&mut b, 2), 1, 0);
    for last in [1, 2] {
        b.uses().enter(judge(&b, CLIENT, last).unwrap());
    }
    learn(&mut a, "c.example", 3, 60, 0);
    assert_eq!(a.evicted, 1);
    tell((&mut a, 1), (&mut b, 2), place, 0);
    assert!(allows(&b, 1) && allows(&b, 2) && allows(&b, 3));
}

#[test]
fn a_joiner_learns_of_absent_nodes_from_those_that_are_there() {
    let (mut a, mut b) = (installed(1, one()), installed(2, one()));
    learn(&mut a, "a.example", 1, 60, 0);
    tell((&mut a, 1), (&mut b, 2), 1, 0);
    let mut c = installed(3, one());
    tell((&mut b, 2), (&mut c, 3), 1, 0);
    assert!(allows(&c, 1));
    // It outlives its end by little where nobody says that it has ended.
    sweep(&mut c, 60_000 + GRACE_MS + 60_000);
    assert!(!allows(&c, 1));
    // And a node that has lost its own gets it back.
    let mut a = installed(4, one());
    tell((&mut b, 2), (&mut a, 1), 1, 0);
    assert!(allows(&a, 1));
    assert_eq!(a.next_place(), 2);
}

#[test]
fn who_speaks_for_itself_is_not_spoken_for() {
    let (mut a, mut b, mut c) = (
        installed(1, one()),
        installed(2, one()),
        installed(3, one()),
    );
    learn(&mut a, "a.example", 1, 60, 0);
    let place = tell((&mut a, 1), (&mut b, 2), 1, 0);
    tell((&mut a, 1), (&mut c, 3), 1, 0);
    let end = 60_000 + GRACE_MS;
    sweep(&mut a, end);
    tell((&mut a, 1), (&mut c, 3), place, end);
    assert!(!allows(&c, 1) && allows(&b, 1));
    tell((&mut b, 2), (&mut c, 3), 1, end);
    assert!(!allows(&c, 1));
}

/// Many addresses from a number on.
fn many(from: u32, count: u32) -> Vec<IpAddr> {
    let base = u32::from_be_bytes([198, 18, 0, 0]);
    (from..from + count)
        .map(|n| IpAddr::from((base + n).to_be_bytes()))
        .collect()
}

fn learn_many(
    store: &mut Store,
    client: [u8; 4],
    name: &str,
    addresses: &[IpAddr],
    ttl_s: u32,
    now_ms: u64,
) -> Learned {
    let asked = Asked {
        group: "web",
        client: client.into(),
        name,
        addresses,
        ttl_s,
    };
    store.learn(&asked, now_ms)
}

#[test]
fn who_has_most_loses_first_where_there_is_no_room() {
    let mut store = installed(1, one());
    learn(&mut store, "used.example", 1, 60, 0);
    let counted = judge(&store, CLIENT, 1).unwrap();
    store.uses().enter(counted);
    // Somebody with few names, which end soonest; and somebody with as few that have many addresses, for a day.
    for n in 2..=100 {
        learn(&mut store, &format!("n{n}.example"), n, 60, 0);
    }
    let lost = store.lost();
    for n in 0..50 {
        let name = format!("many{n}.example");
        let addresses = many(n * 400, 400);
        assert!(
            learn_many(&mut store, OTHER, &name, &addresses, 86_400, u64::from(n)).place > 0,
            "{name}"
        );
    }
    assert_eq!(store.len(), 1_000);
    assert!((1..=100).all(|last| allows(&store, last)));
    assert_eq!(store.evicted, 50 * 400 - 900);
    assert_eq!(store.refused, 0);
    assert_eq!(store.lost() - lost, store.evicted);
}

#[test]
fn what_flows_use_is_not_ended_and_what_has_no_room_is_to_be_learned_again() {
    let mut store = installed(1, one());
    let all = many(0, 500);
    for name in ["a.example", "b.example"] {
        learn_many(&mut store, CLIENT, name, &all, 60, 0);
    }
    for n in 0..500_u32 {
        let facts_of = judge_at(&store, CLIENT, many(n, 1)[0]).unwrap();
        store.uses().enter(facts_of);
    }
    let learned = learn(&mut store, "c.example", 1, 60, 7);
    assert_eq!((learned.place, learned.until_ms), (0, 7));
    assert_eq!(store.refused, 1);
}

#[test]
fn one_name_has_so_many_addresses_and_then_the_first_to_end_goes() {
    let mut store = Store::new(Settings {
        grace_ms: GRACE_MS,
        capacity: 100_000,
        silent_ms: 60_000,
        incarnation: 1,
    });
    store.install(one(), 0);
    for n in 0..10 {
        learn_many(
            &mut store,
            CLIENT,
            "a.example",
            &many(n * 500, 500),
            60,
            u64::from(n),
        );
    }
    assert_eq!(store.len(), MAX_SPOTS);
    let left = |from| {
        let all = many(from, 500).into_iter();
        all.filter(|address| judge_at(&store, CLIENT, *address).is_some())
            .count()
    };
    assert!(left(4_500) > 450 && left(0) < 50);
}

#[test]
fn everything_is_told_in_parts_of_a_bounded_size() {
    let settings = |incarnation| Settings {
        grace_ms: GRACE_MS,
        capacity: 1 << 20,
        silent_ms: 60_000,
        incarnation,
    };
    let mut a = Store::new(settings(1));
    a.install(one(), 0);
    let mut b = Store::new(settings(2));
    b.install(one(), 0);
    for n in 0..128_u32 {
        let name = format!("{}.{n}.example", "x".repeat(200));
        learn_many(&mut a, CLIENT, &name, &many(n * 512, 512), 60, u64::from(n));
    }
    let end = End {
        next: a.next_place(),
    };
    let (mut part, mut from) = (0, Some(0));
    while let Some(at) = from {
        let (push, then) = a.everything(part, at, usize::MAX >> 1, end, 600);
        assert!(push.encode().len() < 1 << 20);
        b.take(1, 2, &encoded(&push), 600);
        (part, from) = (part + 1, then);
    }
    assert!(part > 5);
    assert_eq!((b.len(), b.is_behind(1)), (128 * 512, false));
    // The same for changes and for what is kept.
    let push = a.changes_from(1, usize::MAX >> 1, 600).expect("not many");
    assert!(push.encode().len() < 1 << 20);
    let (kept, then) = a.kept(0, usize::MAX >> 1, 600);
    assert!(then.is_some() && crate::stream::encode_changes(&kept).len() < 1 << 20);
    // And what is kept for peers that are behind.
    for n in 0..600_u32 {
        let again = u64::from(n) * 400_000;
        learn_many(&mut a, CLIENT, "again.example", &many(0, 512), 60, again);
    }
    assert!(a.logged_addresses <= LOGGED_ADDRESSES);
    let logged = a.log.iter().map(|logged| logged.addresses.len());
    assert_eq!(logged.sum::<usize>(), a.logged_addresses);
}

#[test]
fn a_barred_address_is_granted_to_nobody_whoever_claims_it() {
    let barred = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let judge = Arc::clone(&barred);
    let mut b = store(2)
        .but_for(move |own| own == address(1) && judge.load(std::sync::atomic::Ordering::Relaxed));
    b.install(one(), 0);
    let mut a = installed(1, one());
    learn(&mut a, "a.example", 1, 60, 0);
    learn(&mut a, "b.example", 2, 60, 0);
    tell((&mut a, 1), (&mut b, 2), 1, 0);
    assert!(!b.is_behind(1), "it is in step all the same");
    let (kept, _) = a.kept(0, 100, 0);
    b.restore(&kept, 0, 0);
    assert!(!allows(&b, 1) && allows(&b, 2));
    barred.store(false, std::sync::atomic::Ordering::Relaxed);
    b.review(&[address(1)], 0);
    assert!(allows(&b, 1));
}

#[test]
fn a_grant_whose_rule_is_gone_ends_with_it() {
    let with = |revision, rules: &str| {
        let document = format!(
            r#"{{"source_groups":[{{"id":"web","mode":"enforce","sources":{{"cidrs":["10.0.0.0/8"]}},"rules":[{rules}]}}]}}"#
        );
        let document = Document::parse_json(document.as_bytes()).unwrap();
        Arc::new(Compiled::compile(&document, revision).unwrap())
    };
    let rule = named("one", "**.example", "");
    let mut a = installed(1, with(1, &rule));
    let mut b = installed(2, with(1, &rule));
    learn(&mut a, "a.example", 1, 60, 0);
    let told = tell((&mut a, 1), (&mut b, 2), 1, 0);

    // While everything is denied for a while, nothing ends.
    a.install(Arc::new(Compiled::deny_all()), 1);
    a.install(with(1, &rule), 2);
    assert!(allows(&a, 1));

    let lost = a.lost();
    a.install(with(2, &named("other", "b.example", "")), 3);
    assert_eq!((a.len(), a.lost() > lost), (0, true));
    tell((&mut a, 1), (&mut b, 2), told, 3);
    assert!(!allows(&b, 1));
    for store in [&mut a, &mut b] {
        store.install(with(3, &rule), 4);
        assert!(!allows(store, 1));
    }
}

#[test]
fn a_rule_that_is_opened_to_its_group_cuts_nobody() {
    let scope = r#","grant_scope":"client""#;
    let mut store = installed(1, policy(&named("one", "**.example", scope)));
    learn(&mut store, "a.example", 1, 60, 0);
    let counted = judge(&store, CLIENT, 1).unwrap();
    store.install(one(), 1);
    assert_eq!(judge(&store, CLIENT, 1), Some(counted));
    assert!(judge(&store, OTHER, 1).is_none());
}

#[test]
fn a_peer_has_everything_again_once_there_is_room() {
    let mut a = installed(1, one());
    let mut b = Store::new(Settings {
        grace_ms: GRACE_MS,
        capacity: 100,
        silent_ms: 60_000,
        incarnation: 2,
    });
    b.install(one(), 0);
    learn_many(&mut b, OTHER, "own.example", &many(0, 100), 60, 0);
    for n in 0..100 {
        let used = judge_at(&b, OTHER, many(n, 1)[0]).unwrap();
        b.uses().enter(used);
    }
    learn(&mut a, "a.example", 1, 86_400, 0);
    let told = tell((&mut a, 1), (&mut b, 2), 1, 0);
    assert!(!allows(&b, 1) && !b.is_behind(1));
    for n in 0..100 {
        let used = judge_at(&b, OTHER, many(n, 1)[0]).unwrap();
        b.uses().leave(used);
    }
    sweep(&mut b, 600_000);
    sweep(&mut b, 1_200_000);
    sweep(&mut b, 1_200_001);
    tell((&mut a, 1), (&mut b, 2), told, 1_200_001);
    assert!(allows(&b, 1));
}

#[test]
fn what_was_kept_comes_back_with_the_life_that_was_left() {
    let mut a = installed(1, one());
    learn(&mut a, "a.example", 1, 60, 0);
    learn(&mut a, "b.example", 2, 6_000, 0);
    let (kept, next) = a.kept(0, 100, 10_000);
    assert_eq!(next, None);
    let kept = crate::stream::decode_changes(&crate::stream::encode_changes(&kept)).unwrap();
    let mut b = store(2);
    b.restore(&kept, 5_000, 77);
    assert!(!allows(&b, 1));
    b.install(one(), 77);
    assert!(allows(&b, 1) && allows(&b, 2));
    sweep(&mut b, 77 + 45_000 + GRACE_MS);
    assert!(!allows(&b, 1) && allows(&b, 2));
    let mut late = store(3);
    late.restore(&kept, 45_000 + 10_000 + GRACE_MS, 0);
    assert_eq!(late.len(), 1);
}

#[test]
fn that_grants_may_be_missing_outlives_a_policy() {
    let mut store = installed(1, one());
    let before = store.changes();
    store.set_incomplete(true);
    assert!(store.changes() > before && store.table().is_incomplete());
    assert!(store.install(one(), 1).is_incomplete());
    store.set_incomplete(false);
    assert!(!store.install(one(), 2).is_incomplete());
}

#[test]
fn texts_and_lists_have_bounds() {
    let mut store = installed(1, one());
    let long = format!("{}.example", "a".repeat(MAX_TEXT_BYTES));
    assert_eq!(learn(&mut store, &long, 1, 60, 0).place, 0);
    assert_eq!(store.refused, 1);
    let change = crate::stream::Change {
        group: "web".into(),
        name: "a.example".into(),
        client: None,
        addresses: vec![address(1); MAX_ADDRESSES + 1],
        life_ms: 1,
        age_ms: 0,
        asker: None,
        origin: None,
    };
    let bytes = crate::stream::encode_changes(&[change]);
    assert!(crate::stream::decode_changes(&bytes).is_err());
}

/// One step of three nodes.
#[derive(Clone, Debug)]
enum Step {
    Learn {
        at: usize,
        name: u8,
        last: u8,
        ttl_s: u32,
    },
    Use {
        at: usize,
        last: u8,
    },
    Release {
        at: usize,
    },
    Wait {
        ms: u64,
    },
    Tell {
        from: usize,
        to: usize,
        lost: bool,
    },
    Restart {
        at: usize,
    },
    Edit {
        at: usize,
        known: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..3_usize;
    prop_oneof![
        4 => (node.clone(), 0..6_u8, 0..5_u8, 0..400_u32)
            .prop_map(|(at, name, last, ttl_s)| Step::Learn { at, name, last, ttl_s }),
        2 => (node.clone(), 0..5_u8).prop_map(|(at, last)| Step::Use { at, last }),
        1 => node.clone().prop_map(|at| Step::Release { at }),
        2 => (0..300_000_u64).prop_map(|ms| Step::Wait { ms }),
        6 => (node.clone(), node.clone(), any::<bool>())
            .prop_map(|(from, to, lost)| Step::Tell { from, to, lost }),
        1 => node.clone().prop_map(|at| Step::Restart { at }),
        1 => (node, any::<bool>()).prop_map(|(at, known)| Step::Edit { at, known }),
    ]
}

/// What a store has, beside times.
fn held(store: &Store) -> Vec<(Arc<str>, IpAddr)> {
    let mut held = Vec::new();
    store.each(&Wanted::default(), 0, usize::MAX >> 1, 0, |grant| {
        held.push((grant.name, grant.address));
    });
    held.sort();
    held.dedup();
    held
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nodes_come_to_hold_the_same_whatever_was_lost(steps in proptest::collection::vec(step(), 1..120)) {
        let mut nodes: Vec<Store> = (1..=3).map(|n| installed(n, one())).collect();
        let mut places = [[1_u64; 3]; 3];
        let mut used: Vec<Vec<UseOf>> = vec![Vec::new(), Vec::new(), Vec::new()];
        let (mut now_ms, mut incarnation) = (0, 10);
        for step in steps {
            match step {
                Step::Learn { at, name, last, ttl_s } => {
                    learn(&mut nodes[at], &format!("n{name}.example"), last, ttl_s, now_ms);
                }
                Step::Use { at, last } => {
                    if let Some(counted) = judge(&nodes[at], CLIENT, last) {
                        nodes[at].uses().enter(counted);
                        used[at].push(UseOf { last, counted });
                    }
                }
                Step::Release { at } => {
                    if let Some(one) = used[at].pop() {
                        nodes[at].uses().leave(one.counted);
                    }
                }
                Step::Wait { ms } => {
                    // As often as a node sweeps.
                    for _ in 0..ms / 30_000 {
                        now_ms += 30_000;
                        nodes.iter_mut().for_each(|node| sweep(node, now_ms));
                    }
                    now_ms += ms % 30_000;
                }
                Step::Tell { from, to, lost } if from != to => {
                    if lost {
                        places[from][to] = nodes[from].next_place();
                    } else {
                        places[from][to] = told(&mut nodes, from, to, places[from][to], now_ms);
                    }
                }
                Step::Tell { .. } => {}
                Step::Restart { at } => {
                    incarnation += 1;
                    nodes[at] = installed(incarnation, one());
                    used[at].clear();
                    places[at] = [1; 3];
                }
                Step::Edit { at, known } => {
                    let rules = named(if known { "one" } else { "two" }, "**.example", "");
                    nodes[at].install(policy(&rules), now_ms);
                }
            }
            for (node, used) in nodes.iter().zip(&used) {
                for one in used {
                    prop_assert!(allows(node, one.last), "a live flow has lost its grant");
                }
            }
        }
        let pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];
        for (from, to) in pairs.into_iter().chain(pairs) {
            places[from][to] = told(&mut nodes, from, to, places[from][to], now_ms);
        }
        prop_assert_eq!(held(&nodes[0]), held(&nodes[1]));
        prop_assert_eq!(held(&nodes[0]), held(&nodes[2]));
        for (node, used) in nodes.iter_mut().zip(&used) {
            used.iter().for_each(|one| node.uses().leave(one.counted));
            for round in 1..=60 {
                sweep(node, now_ms + round * 30_000);
            }
            prop_assert!(node.is_empty());
            prop_assert_eq!(node.counters.held(), 0);
            prop_assert_eq!(node.sum, 0);
            prop_assert_eq!(node.index.len(), 0);
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Push::decode(&bytes);
        let _ = Answer::decode(&bytes);
        let _ = crate::stream::decode_changes(&bytes);
    }
}

#[derive(Debug)]
struct UseOf {
    last: u8,
    counted: engine::grant::UseId,
}

fn told(nodes: &mut [Store], from: usize, to: usize, place: u64, now_ms: u64) -> u64 {
    let [sender, receiver] = nodes.get_disjoint_mut([from, to]).unwrap();
    let ids = [from as u64 + 1, to as u64 + 1];
    tell((sender, ids[0]), (receiver, ids[1]), place, now_ms)
}

/// Rules of every kind, of which some overlap.
fn several() -> [Arc<Compiled>; 2] {
    let own = r#","grant_scope":"client""#;
    [
        policy(
            &[
                named("one", "**.a.example", ""),
                named("own", "**.example", own),
                named("two", "x.b.example", ""),
            ]
            .join(","),
        ),
        policy(
            &[
                named("two", "**.b.example", ""),
                named("own", "**.a.example", own),
            ]
            .join(","),
        ),
    ]
}

proptest! {
    /// Names that share addresses are counted as they come and go: what is granted is at any time what would be made of
    /// them anew, and no counter is left at the end.
    #[test]
    fn what_is_counted_along_is_what_would_be_made_anew(
        steps in proptest::collection::vec((0_u8..12, 0_u8..6, 0_u8..4, 0_u8..2, 1_u32..400), 1..80),
    ) {
        const NAMES: [&str; 6] = [
            "x.a.example",
            "y.a.example",
            "x.b.example",
            "y.b.example",
            "c.example",
            "elsewhere.test",
        ];
        let policies = several();
        let mut store = installed(1, Arc::clone(&policies[0]));
        let mut now_ms = 0;
        let mut next = 1;
        let judged = |store: &Store| {
            let clients = [CLIENT, OTHER];
            clients.map(|client| [0, 1, 2, 3].map(|last| judge(store, client, last).is_some()))
        };
        for (what, name, last, client, ttl_s) in steps {
            match what {
                // Time passes.
                0 => {
                    now_ms += u64::from(ttl_s) * 2_000;
                    sweep(&mut store, now_ms);
                }
                1 => drop(store.prepare(&policies[next], usize::from(last))),
                2 => {
                    store.install(Arc::clone(&policies[next]), now_ms);
                    next = 1 - next;
                }
                _ => {
                    let asked = Asked {
                        group: "web",
                        client: [CLIENT, OTHER][usize::from(client)].into(),
                        name: NAMES[usize::from(name)],
                        addresses: &[address(last)],
                        ttl_s,
                    };
                    store.learn(&asked, now_ms);
                }
            }
            let before = judged(&store);
            for last in 0..4 {
                store.rebuild(address(last), None, now_ms);
            }
            prop_assert_eq!(before, judged(&store));
        }
        store.install(policy(""), now_ms);
        sweep(&mut store, now_ms + DAY_MS);
        sweep(&mut store, now_ms + 2 * DAY_MS);
        sweep(&mut store, now_ms + 3 * DAY_MS);
        prop_assert_eq!(store.len(), 0);
        prop_assert_eq!(store.counters.held(), 0);
    }
}

/// As with random labels below a wildcard: the table is made anew only when it changes.
#[test]
fn one_more_name_of_an_address_changes_nothing() {
    let mut store = installed(1, one());
    learn(&mut store, "first.example", 1, 60, 0);
    let changes = store.changes();
    for n in 0..500 {
        let learned = learn(&mut store, &format!("n{n}.example"), 1, 60, 0);
        assert!(!learned.changed && learned.place > 0);
    }
    assert_eq!(store.changes(), changes);
    let next = one();
    while !store.prepare(&next, 100) {}
    learn(&mut store, "last.example", 1, 60, 0);
    store.install(next, 0);
    assert!(allows(&store, 1));
    let changes = store.changes();
    // All but the last one go.
    let kept = learn(&mut store, "last.example", 1, 6_000, 0);
    assert!(kept.place > 0);
    sweep(&mut store, 2_000_000);
    assert_eq!((store.len(), store.changes()), (1, changes));
    assert!(allows(&store, 1));
    sweep(&mut store, DAY_MS);
    assert!(!allows(&store, 1));
}
