//! The brake on guessing tokens: so many failures of one source in a minute, then a pause.
//!
//! Sources are addresses, never anything that the client chooses; an IPv6 client owns a /64 and
//! counts as one. The table is bounded: when it is full, the source that failed longest ago goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures within [`WINDOW`] that lead to a pause.
pub const MAX_FAILURES: u32 = 20;
/// How long a failure counts.
pub const WINDOW: Duration = Duration::from_secs(60);
/// How long a source then has to wait.
pub const PAUSE: Duration = Duration::from_secs(120);
/// Sources remembered at once.
pub const MAX_SOURCES: usize = 4096;

/// Remembers who failed.
#[derive(Debug, Default)]
pub struct Limiter {
    sources: HashMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    window_start: Instant,
    failures: u32,
    paused_until: Option<Instant>,
    last: Instant,
}

impl Limiter {
    /// How long the source still has to wait; none: it may try.
    pub fn pause(&self, source: IpAddr, now: Instant) -> Option<Duration> {
        let until = self.sources.get(&scope(source))?.paused_until?;
        until
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// Counts a failure.
    pub fn failed(&mut self, source: IpAddr, now: Instant) {
        let source = scope(source);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.forget_oldest();
        }
        let entry = self.sources.entry(source).or_insert(Source {
            window_start: now,
            failures: 0,
            paused_until: None,
            last: now,
        });
        if now.duration_since(entry.window_start) >= WINDOW {
            entry.window_start = now;
            entry.failures = 0;
        }
        entry.last = now;
        entry.failures += 1;
        if entry.failures >= MAX_FAILURES {
            entry.paused_until = Some(now + PAUSE);
            entry.window_start = now;
            entry.failures = 0;
        }
    }

    fn forget_oldest(&mut self) {
        // A source that is paused stays while there is another one to forget.
        let oldest = self
            .sources
            .iter()
            .min_by_key(|(_, source)| (source.paused_until.is_some(), source.last))
            .map(|(address, _)| *address);
        if let Some(address) = oldest {
            self.sources.remove(&address);
        }
    }
}

fn scope(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(limiter: &mut Limiter, source: &str, times: u32, now: Instant) {
        for _ in 0..times {
            limiter.failed(source.parse().unwrap(), now);
        }
    }

    fn pause(limiter: &Limiter, source: &str, now: Instant) -> Option<Duration> {
        limiter.pause(source.parse().unwrap(), now)
    }

    #[test]
    fn the_twentieth_failure_pauses_for_two_minutes() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        fail(&mut limiter, "192.0.2.1", MAX_FAILURES - 1, now);
        assert_eq!(pause(&limiter, "192.0.2.1", now), None);
        fail(&mut limiter, "192.0.2.1", 1, now);
        assert_eq!(pause(&limiter, "192.0.2.1", now), Some(PAUSE));
        assert_eq!(pause(&limiter, "192.0.2.1", now + PAUSE), None);
    }

    #[test]
    fn failures_outside_the_window_do_not_add_up() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        fail(&mut limiter, "192.0.2.1", MAX_FAILURES - 1, now);
        fail(&mut limiter, "192.0.2.1", MAX_FAILURES - 1, now + WINDOW);
        assert_eq!(pause(&limiter, "192.0.2.1", now + WINDOW), None);
    }

    #[test]
    fn one_source_does_not_pause_another() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        fail(&mut limiter, "192.0.2.1", MAX_FAILURES, now);
        assert_eq!(pause(&limiter, "192.0.2.2", now), None);
    }

    #[test]
    fn a_64_is_one_source_and_a_mapped_address_is_its_ipv4() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for host in 0..MAX_FAILURES {
            fail(&mut limiter, &format!("2001:db8::{host:x}"), 1, now);
        }
        assert!(pause(&limiter, "2001:db8::ffff", now).is_some());
        assert!(pause(&limiter, "2001:db8:0:1::1", now).is_none());
        fail(&mut limiter, "::ffff:192.0.2.1", MAX_FAILURES, now);
        assert!(pause(&limiter, "192.0.2.1", now).is_some());
    }

    #[test]
    fn many_sources_neither_grow_the_table_nor_free_a_paused_one() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        fail(&mut limiter, "192.0.2.1", MAX_FAILURES, now);
        for n in 0..2 * MAX_SOURCES {
            fail(&mut limiter, &format!("2001:db8:{n:x}::1"), 1, now);
        }
        assert_eq!(limiter.sources.len(), MAX_SOURCES);
        assert!(pause(&limiter, "192.0.2.1", now).is_some());
    }
}
