//! How often a source may try: a few failures are free, then each one doubles the wait. Used by listeners that
//! strangers reach.
//!
//! Bounded in memory. Time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that cost nothing: a joiner that is started before its secret is in place.
const FREE_FAILURES: u32 = 3;

/// The wait after the first failure that costs.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A source that has been quiet for this long begins afresh.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);

/// Most sources that are remembered.
const MAX_SOURCES: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Throttle {
    sources: HashMap<IpAddr, Source>,
}

#[derive(Debug, Default)]
struct Source {
    /// Attempts under way.
    open: usize,
    failures: u32,
    last: Option<Instant>,
}

impl Source {
    fn may_try_at(&self) -> Option<Instant> {
        let doublings = self.failures.checked_sub(FREE_FAILURES + 1)?;
        let wait = FIRST_WAIT
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(LONGEST_WAIT);
        Some(self.last? + wait)
    }
}

impl Source {
    fn is_forgotten(&self, now: Instant) -> bool {
        let quiet = |last| now.saturating_duration_since(last) >= FORGOTTEN_AFTER;
        self.open == 0 && self.last.is_none_or(quiet)
    }
}

impl Throttle {
    /// Whether `address` may try now. If so, [`Throttle::close`] must follow.
    pub(crate) fn open(&mut self, address: IpAddr, at_most: usize, now: Instant) -> bool {
        let key = source(address);
        if !self.sources.contains_key(&key) && self.sources.len() >= MAX_SOURCES {
            self.forget(now);
        }
        if !self.sources.contains_key(&key) && self.sources.len() >= MAX_SOURCES {
            // Somebody tries from everywhere: make room by the oldest, never by an open one.
            let oldest = self
                .sources
                .iter()
                .filter(|(_, source)| source.open == 0)
                .min_by_key(|(_, source)| source.last)
                .map(|(key, _)| *key);
            match oldest {
                Some(oldest) => self.sources.remove(&oldest),
                None => return false,
            };
        }
        let source = self.sources.entry(key).or_default();
        if source.is_forgotten(now) {
            *source = Source::default();
        }
        if source.open >= at_most || source.may_try_at().is_some_and(|at| now < at) {
            return false;
        }
        source.open += 1;
        true
    }

    /// An attempt of `address` has ended, well or not.
    pub(crate) fn close(&mut self, address: IpAddr, well: bool, now: Instant) {
        let Some(source) = self.sources.get_mut(&source(address)) else {
            return;
        };
        source.open = source.open.saturating_sub(1);
        source.last = Some(now);
        source.failures = if well {
            0
        } else {
            source.failures.saturating_add(1)
        };
    }

    fn forget(&mut self, now: Instant) {
        self.sources.retain(|_, source| !source.is_forgotten(now));
    }
}

/// Whoever has one IPv6 address has the /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let prefix = v6.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1";

    #[test]
    fn failures_cost_more_each_time_and_success_clears_them() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(throttle.open(ip(A), 1, now));
            throttle.close(ip(A), false, now);
            let mut wait = 0;
            while !throttle.open(ip(A), 1, now + Duration::from_secs(wait)) {
                wait += 1;
            }
            throttle.sources.get_mut(&ip(A)).expect("known").open = 0;
            waits.push(wait);
            now += Duration::from_secs(wait);
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(throttle.open(ip(A), 1, now));
        throttle.close(ip(A), true, now);
        for _ in 0..6 {
            assert!(throttle.open(ip(A), 1, now));
            throttle.close(ip(A), false, now);
            now += Duration::from_secs(3);
        }
        assert!(!throttle.open(ip(A), 1, now));
        assert!(throttle.open(ip(A), 1, now + FORGOTTEN_AFTER));
    }

    #[test]
    fn sources_are_told_apart_by_address_or_64() {
        let now = Instant::now();
        let check = |first: &str, second: &str, same: bool| {
            let mut throttle = Throttle::default();
            assert!(throttle.open(ip(first), 1, now));
            assert_eq!(throttle.open(ip(second), 1, now), !same, "{first} {second}");
        };
        check(A, A, true);
        check(A, "192.0.2.2", false);
        check(A, "::ffff:192.0.2.1", true);
        check("2001:db8::1", "2001:db8::ffff:2", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let now = Instant::now();
        let mut throttle = Throttle::default();
        assert!(throttle.open(ip(A), 1, now));
        for i in 0..MAX_SOURCES + 200 {
            let address =
                IpAddr::from((0x0a00_0000 + u32::try_from(i).expect("small")).to_be_bytes());
            let at = now + Duration::from_millis(u64::try_from(i).expect("small"));
            assert!(throttle.open(address, 1, at));
            throttle.close(address, false, at);
            assert!(throttle.sources.len() <= MAX_SOURCES);
        }
        assert!(throttle.sources.contains_key(&ip(A)), "it is open");
        throttle.close(ip(A), true, now);
        throttle.forget(now + FORGOTTEN_AFTER * 2);
        assert!(throttle.sources.is_empty());
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
