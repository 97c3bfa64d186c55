//! Autoconfiguration against routers that are played by hand.

use proptest::prelude::*;

use super::*;
use crate::wire::ra::{PrefixInfo, RouteInfo};

const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

fn stable() -> Stable {
    Stable {
        interface: "eth1".into(),
        secret: [7; 16],
    }
}

fn net(s: &str) -> Ipv6Net {
    s.parse().unwrap()
}

fn prefix(valid_s: u32, preferred_s: u32) -> PrefixInfo {
    PrefixInfo {
        prefix: net("2001:db8::/64"),
        on_link: true,
        autonomous: true,
        valid_s,
        preferred_s,
    }
}

fn ra(prefixes: Vec<PrefixInfo>) -> Advertisement {
    Advertisement {
        lifetime_s: 1800,
        preference: Preference::Medium,
        mac: None,
        mtu: None,
        prefixes,
        routes: Vec::new(),
    }
}

struct Bench {
    autoconf: Autoconf,
    random: Random,
    now: Now,
    sent: Vec<Send>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            autoconf: Autoconf::new(stable(), 1500),
            random: Random::new(7),
            now: Now(1_000_000_000),
            sent: Vec::new(),
        }
    }

    fn pass(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.autoconf.deadline() <= end {
            self.now = self.now.max(self.autoconf.deadline());
            let sent = &mut self.sent;
            self.autoconf
                .handle_timeout(self.now, &mut self.random, |send| sent.push(send));
        }
        self.now = end;
    }

    fn hear(&mut self, router: Ipv6Addr, ra: &Advertisement) {
        let sent = &mut self.sent;
        self.autoconf
            .handle_advertisement(self.now, router, ra, |send| sent.push(send));
    }

    fn claim(&mut self, address: Ipv6Addr) {
        let sent = &mut self.sent;
        self.autoconf
            .handle_claim(self.now, address, |send| sent.push(send));
    }

    fn only_address(&self) -> Address6 {
        let addresses = self.autoconf.advertised().addresses;
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        addresses[0]
    }
}

#[test]
fn routers_are_asked_for_until_one_answers() {
    let mut b = Bench::new();
    b.pass(70);
    assert_eq!(
        b.sent,
        [Send::Solicit; 5],
        "after about 1, 5, 13, 29 and 61 s"
    );
    b.hear(ROUTER, &ra(Vec::new()));
    b.sent.clear();
    b.pass(1000);
    assert_eq!(b.sent, []);
    b.autoconf.handle_link_up(b.now);
    b.pass(0);
    assert_eq!(b.sent, [Send::Solicit]);
}

#[test]
fn a_prefix_leads_to_an_address_that_nobody_else_has() {
    let mut b = Bench::new();
    b.hear(ROUTER, &ra(vec![prefix(7200, 3600)]));
    let tried = identify(&stable(), net("2001:db8::/64"), 0).0;
    assert_eq!(b.sent, [Send::Try(tried)]);
    assert!(b.autoconf.is_trying(tried));
    assert_eq!(b.autoconf.advertised().addresses, []);
    b.pass(1);
    assert_eq!(
        b.only_address(),
        Address6 {
            address: tried,
            deprecated: false
        }
    );
    assert_eq!(b.autoconf.advertised().router, Some(ROUTER));
    assert_eq!(b.autoconf.advertised().on_link, [net("2001:db8::/64")]);
}

#[test]
fn an_address_that_is_claimed_gives_way_to_the_next_three_times() {
    let mut b = Bench::new();
    b.hear(ROUTER, &ra(vec![prefix(7200, 3600)]));
    for counter in 0..3 {
        let tried = identify(&stable(), net("2001:db8::/64"), counter).0;
        assert!(b.autoconf.is_trying(tried), "{counter}");
        b.claim(tried);
    }
    b.pass(5);
    assert_eq!(b.autoconf.advertised().addresses, []);
    assert_eq!(b.autoconf.duplicates(), 3);
}

#[test]
fn identifiers_are_stable_and_tell_nothing_across_networks() {
    let id = |stable: &Stable, prefix: &str| u128::from(identify(stable, net(prefix), 0).0) as u64;
    let a = id(&stable(), "2001:db8::/64");
    assert_eq!(a, id(&stable(), "2001:db8::/64"));
    assert_ne!(a, id(&stable(), "2001:db8:0:1::/64"));
    assert_ne!(
        a,
        id(
            &Stable {
                secret: [8; 16],
                ..stable()
            },
            "2001:db8::/64"
        )
    );
    assert_ne!(
        a,
        id(
            &Stable {
                interface: "eth2".into(),
                ..stable()
            },
            "2001:db8::/64"
        )
    );
}

#[test]
fn addresses_are_deprecated_and_then_end() {
    let mut b = Bench::new();
    b.hear(ROUTER, &ra(vec![prefix(100, 50)]));
    b.pass(49);
    assert!(!b.only_address().deprecated);
    b.pass(1);
    assert!(b.only_address().deprecated);
    b.pass(50);
    assert_eq!(b.autoconf.advertised().addresses, []);
    assert_eq!(b.autoconf.advertised().on_link, []);
    assert_eq!(b.autoconf.advertised().router, Some(ROUTER));
    b.pass(1700);
    assert_eq!(b.autoconf.advertised(), Advertised::default());
}

#[test]
fn a_stranger_cannot_end_an_address_within_two_hours() {
    let mut b = Bench::new();
    b.hear(ROUTER, &ra(vec![prefix(86_400, 86_400)]));
    b.pass(1);
    b.hear(
        OTHER,
        &ra(vec![PrefixInfo {
            on_link: false,
            ..prefix(0, 0)
        }]),
    );
    assert!(b.only_address().deprecated);
    b.pass(7199);
    assert_eq!(b.autoconf.advertised().addresses.len(), 1);
    b.hear(
        OTHER,
        &ra(vec![PrefixInfo {
            on_link: false,
            ..prefix(0, 0)
        }]),
    );
    b.pass(1);
    assert_eq!(
        b.autoconf.advertised().addresses.len(),
        0,
        "two hours after the first time"
    );
}

#[test]
fn the_preferred_router_is_used_as_long_as_it_lives() {
    let mut b = Bench::new();
    b.hear(ROUTER, &ra(Vec::new()));
    b.hear(OTHER, &ra(Vec::new()));
    assert_eq!(
        b.autoconf.advertised().router,
        Some(ROUTER),
        "the first of equals"
    );
    b.hear(
        OTHER,
        &Advertisement {
            preference: Preference::High,
            lifetime_s: 60,
            ..ra(Vec::new())
        },
    );
    assert_eq!(b.autoconf.advertised().router, Some(OTHER));
    b.pass(60);
    assert_eq!(b.autoconf.advertised().router, Some(ROUTER));
    b.hear(
        ROUTER,
        &Advertisement {
            lifetime_s: 0,
            ..ra(Vec::new())
        },
    );
    assert_eq!(b.autoconf.advertised().router, None);
}

#[test]
fn routes_go_through_the_preferred_router_of_each() {
    let route = |prefix: &str, preference, lifetime_s| RouteInfo {
        prefix: net(prefix),
        preference,
        lifetime_s,
    };
    let with = |routes| Advertisement {
        lifetime_s: 0,
        routes,
        ..ra(Vec::new())
    };
    let mut b = Bench::new();
    b.hear(
        ROUTER,
        &with(vec![route("2001:db8:8::/48", Preference::Medium, 60)]),
    );
    b.hear(
        OTHER,
        &with(vec![route("2001:db8:8::/48", Preference::High, 30)]),
    );
    assert_eq!(
        b.autoconf.advertised().routes,
        [(net("2001:db8:8::/48"), OTHER)]
    );
    b.pass(30);
    assert_eq!(
        b.autoconf.advertised().routes,
        [(net("2001:db8:8::/48"), ROUTER)]
    );
    assert_eq!(b.autoconf.advertised().router, None);
    b.hear(ROUTER, &with(vec![route("::/0", Preference::Low, 60)]));
    assert_eq!(
        b.autoconf.advertised().router,
        Some(ROUTER),
        "a route to everything"
    );
}

#[test]
fn what_cannot_be_an_address_of_ours_leads_to_none() {
    fn check(info: PrefixInfo) {
        let mut b = Bench::new();
        b.hear(ROUTER, &ra(vec![info]));
        b.pass(2);
        assert_eq!(b.autoconf.advertised().addresses, [], "{info:?}");
    }
    let of = |s: &str| PrefixInfo {
        prefix: net(s),
        ..prefix(7200, 3600)
    };
    check(of("fe80::/64"));
    check(of("ff02::/64"));
    check(of("2001:db8::/63"));
    check(of("2001:db8::/96"));
    check(prefix(3600, 7200));
    check(prefix(0, 0));
    check(PrefixInfo {
        autonomous: false,
        ..prefix(7200, 3600)
    });
}

#[test]
fn an_mtu_is_believed_within_bounds() {
    let mut b = Bench::new();
    for (mtu, expected) in [
        (1279, None),
        (1501, None),
        (1400, Some(1400)),
        (70_000, Some(1400)),
    ] {
        b.hear(
            ROUTER,
            &Advertisement {
                mtu: Some(mtu),
                ..ra(Vec::new())
            },
        );
        assert_eq!(b.autoconf.advertised().mtu, expected);
    }
}

#[test]
fn a_flood_of_routers_prefixes_and_routes_is_bounded() {
    let mut b = Bench::new();
    for i in 0..1000u128 {
        let router = Ipv6Addr::from(0xfe80 << 112 | i);
        let unique = Ipv6Net::new(Ipv6Addr::from((0x2001_0db8u128 << 96) | i << 64), 64).unwrap();
        let routes = vec![RouteInfo {
            prefix: unique,
            preference: Preference::High,
            lifetime_s: 9000,
        }];
        let prefixes = vec![PrefixInfo {
            prefix: unique,
            ..prefix(7200, 3600)
        }];
        b.hear(
            router,
            &Advertisement {
                routes,
                ..ra(prefixes)
            },
        );
    }
    b.pass(1);
    let advertised = b.autoconf.advertised();
    assert_eq!(
        (advertised.addresses.len(), advertised.routes.len()),
        (MAX_PREFIXES, MAX_ROUTES)
    );
    assert_eq!(b.autoconf.heard.routers.len(), MAX_ROUTERS);
    assert_eq!(
        advertised.router,
        Some(Ipv6Addr::from(0xfe80 << 112)),
        "the first is kept"
    );
}

proptest! {
    /// Whatever is advertised and whenever, everything ends with its lifetime and there is always a next step in future.
    #[test]
    fn nothing_outlives_its_lifetime(steps in prop::collection::vec((0u64..9000, 0u32..9000, 0u32..9000, 0u16..9000, 0u8..4), 1..40)) {
        let mut b = Bench::new();
        for (seconds, valid, preferred, lifetime_s, which) in steps {
            b.pass(seconds);
            prop_assert!(b.autoconf.deadline() > b.now);
            let router = if which & 1 == 0 { ROUTER } else { OTHER };
            b.hear(router, &Advertisement { lifetime_s, ..ra(vec![prefix(valid, preferred)]) });
        }
        b.pass(20_000);
        prop_assert_eq!(b.autoconf.advertised(), Advertised::default());
    }
}
