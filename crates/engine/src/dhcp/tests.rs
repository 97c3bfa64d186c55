//! The client against a server that is played by hand.

use proptest::prelude::*;

use super::*;

const MAC: Mac = [2, 0, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 9];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

fn config() -> DhcpConfig {
    DhcpConfig {
        timeout: Duration::from_secs(5),
        retry_max: 2,
        lease_min: Duration::from_secs(60),
        server_ip: None,
        server_mac: None,
        remembered: None,
    }
}

fn remembered(expires_s: u64) -> Lease {
    Lease {
        address: ADDRESS,
        prefix_len: 24,
        server: SERVER,
        gateway: Some(SERVER),
        routes: Vec::new(),
        dns: Vec::new(),
        mtu: None,
        renew_at: Now(0),
        rebind_at: Now(0),
        expires: Now(expires_s * 1_000_000_000),
    }
}

struct Bench {
    client: Client,
    random: Random,
    now: Now,
    sent: Vec<Send>,
}

impl Bench {
    fn new(config: DhcpConfig) -> Bench {
        Bench {
            client: Client::new(config, MAC),
            random: Random::new(7),
            now: Now(1_000_000_000),
            sent: Vec::new(),
        }
    }

    fn turn(&mut self) -> Vec<Send> {
        let sent = &mut self.sent;
        self.client
            .handle_timeout(self.now, &mut self.random, |send| sent.push(send));
        std::mem::take(&mut self.sent)
    }

    /// Lets the next deadline come.
    fn next(&mut self) -> Vec<Send> {
        self.now = self.now.max(self.client.deadline());
        self.turn()
    }

    fn reply(&self, kind: Kind) -> Reply {
        Reply {
            kind,
            xid: self.client.xid,
            mac: MAC,
            address: ADDRESS,
            server: Some(SERVER),
            prefix_len: Some(24),
            routers: vec![SERVER],
            routes: None,
            dns: vec![SERVER],
            mtu: None,
            lease_s: Some(3600),
            renewal_s: None,
            rebinding_s: None,
        }
    }

    fn take(&mut self, reply: &Reply) -> Result<Vec<Send>, Refusal> {
        let sent = &mut self.sent;
        self.client
            .handle_reply(self.now, &mut self.random, SERVER_MAC, reply, |send| {
                sent.push(send)
            })?;
        Ok(std::mem::take(&mut self.sent))
    }

    /// From the first message to the lease.
    fn bind(&mut self) {
        self.turn();
        self.take(&self.reply(Kind::Offer)).unwrap();
        self.take(&self.reply(Kind::Ack)).unwrap();
        while self.client.lease().is_none() {
            self.next();
        }
    }

    fn now_s(&self) -> u64 {
        self.now.0 / 1_000_000_000
    }
}

fn kind(sent: &[Send]) -> Vec<Kind> {
    let kind = |send: &Send| match send {
        Send::Broadcast(m) | Send::BroadcastFrom(_, m) => Some(m.kind),
        Send::Unicast { message, .. } => Some(message.kind),
        Send::Probe(_) => None,
    };
    sent.iter().filter_map(kind).collect()
}

#[test]
fn a_lease_is_asked_for_probed_and_held() {
    let mut b = Bench::new(config());
    assert_eq!(kind(&b.turn()), [Kind::Discover]);
    let sent = b.take(&b.reply(Kind::Offer)).unwrap();
    let [Send::Broadcast(request)] = sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(
        (request.kind, request.requested, request.server),
        (Kind::Request, Some(ADDRESS), Some(SERVER))
    );
    assert_eq!(request.own, None);
    assert_eq!(b.take(&b.reply(Kind::Ack)), Ok(vec![Send::Probe(ADDRESS)]));
    assert_eq!(b.client.lease(), None, "not before it was probed");
    assert_eq!(b.next(), [Send::Probe(ADDRESS)]);
    assert_eq!(b.next(), []);
    let lease = b.client.lease().unwrap();
    assert_eq!(
        (lease.address, lease.prefix_len, lease.gateway),
        (ADDRESS, 24, Some(SERVER))
    );
    assert_eq!(b.client.standing(), Standing::Holding);
    assert!(b.now_s() < 3, "{}", b.now_s());
}

#[test]
fn an_address_that_another_station_has_is_declined() {
    let mut b = Bench::new(config());
    b.turn();
    b.take(&b.reply(Kind::Offer)).unwrap();
    b.take(&b.reply(Kind::Ack)).unwrap();
    let mut sent = Vec::new();
    let v4 = |a: Ipv4Addr| Addr::from(std::net::IpAddr::V4(a));
    b.client
        .handle_claim(b.now, &mut b.random, v4(SERVER), |send| sent.push(send));
    assert_eq!(sent, []);
    b.client
        .handle_claim(b.now, &mut b.random, v4(ADDRESS), |send| sent.push(send));
    let [Send::Broadcast(decline)] = sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(
        (decline.kind, decline.requested, decline.server),
        (Kind::Decline, Some(ADDRESS), Some(SERVER))
    );
    assert_eq!(b.client.standing(), Standing::Taken);
    let from = b.now;
    assert_eq!(kind(&b.next()), [Kind::Discover]);
    assert!(from.until(b.now) >= AFTER_DECLINE);
}

#[test]
fn questions_are_repeated_ever_more_rarely_and_never_given_up() {
    let mut b = Bench::new(config());
    let mut at = Vec::new();
    for _ in 0..4 {
        assert_eq!(kind(&b.next()), [Kind::Discover]);
        at.push(b.now);
    }
    let pauses: Vec<_> = at
        .windows(2)
        .map(|w| w[0].until(w[1]).as_secs_f64())
        .collect();
    for (pause, expected) in pauses.iter().zip([5.0, 10.0, 20.0]) {
        assert!((pause - expected).abs() <= 1.0, "{pauses:?}");
    }
    assert_eq!(b.client.standing(), Standing::Unanswered);
    let xid = b.client.xid;
    for _ in 0..100 {
        assert_eq!(kind(&b.next()), [Kind::Discover]);
    }
    assert_ne!(b.client.xid, xid);
}

#[test]
fn an_offer_that_is_not_confirmed_is_let_go() {
    let mut b = Bench::new(config());
    b.turn();
    b.take(&b.reply(Kind::Offer)).unwrap();
    assert_eq!(kind(&b.next()), [Kind::Request]);
    assert_eq!(kind(&b.next()), [Kind::Request]);
    assert_eq!(kind(&b.next()), [Kind::Discover]);
}

#[test]
fn a_lease_is_renewed_with_its_server_then_with_any_then_lost() {
    let mut b = Bench::new(config());
    b.bind();
    let bound = b.now_s();
    let sent = b.next();
    assert!(
        matches!(
            sent[..],
            [Send::Unicast {
                from: ADDRESS,
                to: SERVER,
                ..
            }]
        ),
        "{sent:?}"
    );
    assert!((1700..=1801).contains(&(b.now_s() - bound)), "T1");
    let other = Reply {
        server: Some([10, 0, 0, 2].into()),
        ..b.reply(Kind::Ack)
    };
    assert_eq!(
        b.take(&other),
        Err(Refusal::Unsound),
        "another server has no say before T2"
    );
    assert_eq!(b.take(&b.reply(Kind::Ack)), Ok(vec![]));
    assert_eq!(b.client.standing(), Standing::Holding);

    let renewed = b.now_s();
    let mut unicast = 0;
    loop {
        let sent = b.next();
        match sent[..] {
            [Send::Unicast { .. }] => unicast += 1,
            [Send::BroadcastFrom(ADDRESS, message)] => {
                break assert_eq!(message.own, Some(ADDRESS));
            }
            _ => panic!("{sent:?}"),
        }
    }
    assert!(unicast >= 3, "{unicast}");
    assert_eq!(b.now_s() - renewed, 3150, "T2");
    assert!(b.client.lease().is_some());
    while b.client.lease().is_some() {
        b.next();
    }
    assert_eq!(b.now_s() - renewed, 3600);
    assert_eq!(b.client.standing(), Standing::Expired);
    assert_eq!(kind(&b.next()), [Kind::Discover]);
}

#[test]
fn any_server_may_renew_after_t2_and_the_renewal_may_say_something_new() {
    let mut b = Bench::new(config());
    b.bind();
    while !matches!(b.client.state, State::Rebinding(_)) {
        b.next();
    }
    let other = Ipv4Addr::new(10, 0, 0, 2);
    let ack = Reply {
        server: Some(other),
        routers: vec![other],
        ..b.reply(Kind::Ack)
    };
    assert_eq!(b.take(&ack), Ok(vec![]));
    let lease = b.client.lease().unwrap();
    assert_eq!(
        (lease.address, lease.server, lease.gateway),
        (ADDRESS, other, Some(other))
    );
}

#[test]
fn a_refusal_ends_the_lease_and_begins_anew() {
    let mut b = Bench::new(config());
    b.bind();
    b.next();
    b.take(&b.reply(Kind::Nak)).unwrap();
    assert_eq!(
        (b.client.lease(), b.client.standing()),
        (None, Standing::Refused)
    );
    assert_eq!(kind(&b.next()), [Kind::Discover]);
}

#[test]
fn the_address_of_before_is_used_as_soon_as_it_is_confirmed() {
    let mut b = Bench::new(DhcpConfig {
        remembered: Some(remembered(1000)),
        ..config()
    });
    let sent = b.turn();
    let [Send::Broadcast(request)] = sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(
        (request.kind, request.requested, request.server),
        (Kind::Request, Some(ADDRESS), None)
    );
    b.take(&b.reply(Kind::Ack)).unwrap();
    assert_eq!(b.client.lease().unwrap().address, ADDRESS);
}

#[test]
fn the_address_of_before_is_used_for_the_rest_of_its_time_if_nobody_answers() {
    let mut b = Bench::new(DhcpConfig {
        remembered: Some(remembered(1000)),
        ..config()
    });
    b.turn();
    assert_eq!(b.next(), [Send::Probe(ADDRESS)]);
    b.next();
    b.next();
    assert_eq!(b.client.lease().unwrap().address, ADDRESS);
    assert_eq!(b.client.standing(), Standing::Unanswered);
    assert!(
        matches!(b.next()[..], [Send::BroadcastFrom(ADDRESS, _)]),
        "it is asked for further on"
    );
    while b.client.lease().is_some() {
        b.next();
    }
    assert_eq!(b.now_s(), 1000);

    let mut b = Bench::new(DhcpConfig {
        remembered: Some(remembered(1)),
        ..config()
    });
    assert_eq!(kind(&b.turn()), [Kind::Discover], "it has expired");
}

#[test]
fn another_network_says_no_to_the_address_of_before() {
    let mut b = Bench::new(DhcpConfig {
        remembered: Some(remembered(1000)),
        ..config()
    });
    b.turn();
    b.take(&b.reply(Kind::Nak)).unwrap();
    assert_eq!(kind(&b.next()), [Kind::Discover]);
}

#[test]
fn a_link_that_comes_up_is_asked_at_once() {
    let mut b = Bench::new(config());
    b.turn();
    b.next();
    b.client.handle_link_up(b.now);
    assert_eq!(kind(&b.turn()), [Kind::Discover]);
    b.take(&b.reply(Kind::Offer)).unwrap();
    b.take(&b.reply(Kind::Ack)).unwrap();
    while b.client.lease().is_none() {
        b.next();
    }
    b.client.handle_link_up(b.now);
    assert!(matches!(b.turn()[..], [Send::BroadcastFrom(ADDRESS, _)]));
    assert!(
        b.client.lease().is_some(),
        "it holds until somebody says no"
    );
}

/// The pauses between so many requests under the address that is held, from the next one on, in seconds.
fn pauses(b: &mut Bench, count: usize) -> Vec<f64> {
    let mut at = Vec::new();
    for _ in 0..=count {
        let sent = b.next();
        assert!(
            matches!(sent[..], [Send::BroadcastFrom(ADDRESS, _)]),
            "{sent:?}"
        );
        at.push(b.now);
    }
    at.windows(2)
        .map(|w| w[0].until(w[1]).as_secs_f64())
        .collect()
}

fn assert_about(pauses: &[f64], expected: &[f64]) {
    let near = |(pause, expected): (&f64, &f64)| (pause - expected).abs() <= 1.0;
    assert!(pauses.iter().zip(expected).all(near), "{pauses:?}");
    assert_eq!(pauses.len(), expected.len());
}

#[test]
fn a_confirmation_is_repeated_like_a_first_message_then_like_a_renewal() {
    let mut b = Bench::new(config());
    b.bind();
    let retries = b.client.config.retry_max as usize;
    let backoff: Vec<f64> = (0..retries).map(|n| 64f64.min((5 << n) as f64)).collect();
    let events: [fn(&mut Client, Now); 2] = [Client::handle_link_up, |client, now| {
        client.handle_mac(now, [2, 0, 0, 0, 0, 2]);
    }];
    for event in events {
        event(&mut b.client, b.now);
        assert_about(&pauses(&mut b, retries), &backoff);
        let lease = b.client.lease().unwrap().clone();
        assert!(b.now.until(b.client.deadline()) >= b.now.until(lease.expires) / 2);
    }
    // An answer ends it.
    let mac = b.client.mac;
    let ack = Reply {
        mac,
        ..b.reply(Kind::Ack)
    };
    b.take(&ack).unwrap();
    let lease = b.client.lease().unwrap();
    assert_eq!(b.client.deadline(), lease.renew_at);
    assert!(lease.renew_at > b.now);
}

#[test]
fn the_address_of_before_is_asked_for_like_a_first_message_once_it_is_used() {
    let mut b = Bench::new(DhcpConfig {
        remembered: Some(remembered(100_000)),
        ..config()
    });
    b.turn();
    while b.client.lease().is_none() {
        b.next();
    }
    assert_about(&pauses(&mut b, 2), &[5.0, 10.0]);
}

/// The same answer, for a lease without an end.
fn endless(reply: Reply) -> Reply {
    Reply {
        lease_s: Some(u32::MAX),
        ..reply
    }
}

/// A client that was given such a lease, and has yet to try the address.
fn given_without_end() -> Bench {
    let mut b = Bench::new(config());
    b.turn();
    b.take(&endless(b.reply(Kind::Offer))).unwrap();
    b.take(&endless(b.reply(Kind::Ack))).unwrap();
    b
}

#[test]
fn a_lease_without_an_end_is_confirmed_until_somebody_answers() {
    let mut b = given_without_end();
    while b.client.lease().is_none() {
        b.next();
    }
    b.client.handle_link_up(b.now);
    let waits = [5.0, 10.0, 20.0, 40.0, 64.0, 64.0, 64.0, 64.0, 64.0];
    assert_about(&pauses(&mut b, waits.len()), &waits);
    b.take(&endless(b.reply(Kind::Ack))).unwrap();
    assert_eq!(b.client.deadline(), Now(u64::MAX));
}

#[test]
fn a_new_address_on_the_link_has_the_server_asked_under_it() {
    const NEW: Mac = [2, 0, 0, 0, 0, 2];
    let mut b = Bench::new(config());
    b.bind();
    b.client.handle_mac(b.now, NEW);
    let sent = b.turn();
    let [Send::BroadcastFrom(ADDRESS, asked)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(asked.mac, NEW);
    assert!(b.client.expects((b.client.xid, NEW)) && !b.client.expects((b.client.xid, MAC)));
    assert!(
        b.client.lease().is_some(),
        "it holds until somebody says no"
    );
}

#[test]
fn a_short_lease_is_renewed_in_time_and_given_up_later() {
    let mut b = Bench::new(config());
    b.turn();
    let short = |reply: Reply| Reply {
        lease_s: Some(20),
        ..reply
    };
    b.take(&short(b.reply(Kind::Offer))).unwrap();
    let granted = b.now_s();
    b.take(&short(b.reply(Kind::Ack))).unwrap();
    while b.client.lease().is_none() {
        b.next();
    }
    b.next();
    assert!(b.now_s() - granted <= 10);
    while b.client.lease().is_some() {
        b.next();
    }
    assert_eq!(b.now_s() - granted, 60, "dhcp_lease_min_secs");
}

#[test]
fn an_endless_lease_is_never_renewed() {
    let mut b = given_without_end();
    b.next();
    b.next();
    assert_eq!(b.client.deadline(), Now(u64::MAX));
}

#[test]
fn offers_that_make_no_sense_are_refused() {
    fn check(expected: Refusal, pins: DhcpConfig, change: impl Fn(&mut Reply)) {
        let mut b = Bench::new(pins);
        b.turn();
        let mut offer = b.reply(Kind::Offer);
        change(&mut offer);
        assert_eq!(b.take(&offer), Err(expected), "{offer:?}");
        assert!(b.take(&b.reply(Kind::Offer)).is_ok() || expected == Refusal::Untrusted);
    }
    let a = |a: [u8; 4]| Ipv4Addr::from(a);
    check(Refusal::Unsound, config(), |o| o.server = None);
    check(Refusal::Unsound, config(), |o| o.lease_s = None);
    check(Refusal::Unsound, config(), |o| o.kind = Kind::Ack);
    check(Refusal::Unsound, config(), |o| o.kind = Kind::Nak);
    check(Refusal::Unsound, config(), |o| o.prefix_len = Some(1));
    for bad in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255; 4],
        [10, 0, 0, 0],
        [10, 0, 0, 255],
    ] {
        check(Refusal::Unsound, config(), |o| o.address = a(bad));
    }
    check(Refusal::Unsound, config(), |o| {
        o.server = Some(a([224, 0, 0, 1]))
    });
    let by_ip = DhcpConfig {
        server_ip: Some(a([10, 0, 0, 2])),
        ..config()
    };
    check(Refusal::Untrusted, by_ip, |_| {});
    let by_mac = DhcpConfig {
        server_mac: Some(MAC),
        ..config()
    };
    check(Refusal::Untrusted, by_mac, |_| {});
}

#[test]
fn classless_routes_take_the_place_of_the_router() {
    let mut b = Bench::new(config());
    b.turn();
    let a = |last| Ipv4Addr::new(10, 0, 0, last);
    let net = |s: &str| s.parse().unwrap();
    let mut offer = b.reply(Kind::Offer);
    offer.routes = Some(vec![
        (net("172.16.0.0/12"), a(3)),
        (net("0.0.0.0/0"), a(2)),
        (net("10.9.0.1/32"), Ipv4Addr::UNSPECIFIED),
        (net("224.0.0.0/4"), a(4)),
        (net("10.8.0.0/16"), ADDRESS),
    ]);
    b.take(&offer).unwrap();
    b.take(&Reply {
        kind: Kind::Ack,
        xid: b.client.xid,
        ..offer
    })
    .unwrap();
    while b.client.lease().is_none() {
        b.next();
    }
    let lease = b.client.lease().unwrap();
    assert_eq!(lease.gateway, Some(a(2)));
    assert_eq!(
        lease.routes,
        [
            (net("172.16.0.0/12"), a(3)),
            (net("10.9.0.1/32"), Ipv4Addr::UNSPECIFIED)
        ]
    );
}

proptest! {
    /// Whatever servers say and whenever, a lease that has expired is never held, and the client always has a next step.
    #[test]
    fn no_order_of_events_leads_astray(steps in prop::collection::vec((0u8..6, 0u64..4000, any::<u32>()), 1..60)) {
        let mut b = Bench::new(config());
        for (what, seconds, number) in steps {
            b.now = b.now + Duration::from_secs(seconds);
            b.turn();
            let kind = [Kind::Offer, Kind::Ack, Kind::Nak][usize::from(what % 3)];
            let mut reply = b.reply(kind);
            reply.lease_s = Some(number % 5000);
            reply.renewal_s = number.is_multiple_of(3).then_some(number % 7000);
            reply.rebinding_s = number.is_multiple_of(5).then_some(number % 7000);
            if what >= 3 {
                reply.address = Ipv4Addr::from(number);
            }
            let _ = b.take(&reply);
            b.turn();
            if let Some(lease) = b.client.lease() {
                prop_assert!(b.now < lease.expires);
                prop_assert!(lease.renew_at <= lease.rebind_at && lease.rebind_at <= lease.expires);
            }
            prop_assert!(b.client.deadline() > b.now);
            prop_assert!(b.client.deadline() < Now(u64::MAX));
        }
    }
}
