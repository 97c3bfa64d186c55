//! Which join attempts go into the change log: every one that is news.
//!
//! Strangers reach the join listener, and a log that they can fill is one that nobody reads and everybody stores. The same
//! refusal of the same source is told once an hour, and of all sources a few a minute; the next entry tells how many were
//! left out. Time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The same again is no news for this long.
const REPEAT_AFTER: Duration = Duration::from_secs(60 * 60);

/// Entries within [`WINDOW`], from all sources.
const MAX_PER_WINDOW: u32 = 10;

/// See [`MAX_PER_WINDOW`].
const WINDOW: Duration = Duration::from_secs(60);

/// Refusals that are remembered.
const MAX_REMEMBERED: usize = 256;

/// What was told, and when.
#[derive(Debug, Default)]
pub(super) struct Journal {
    told: HashMap<(IpAddr, String), Instant>,
    window: Option<(Instant, u32)>,
    left_out: u64,
}

impl Journal {
    /// Whether a refusal is to be told; if so, how many were left out since the last one.
    pub(super) fn tell(&mut self, source: IpAddr, reason: &str, now: Instant) -> Option<u64> {
        let told = self.told.get(&(source, reason.to_owned()));
        let repeated = told.is_some_and(|at| now.saturating_duration_since(*at) < REPEAT_AFTER);
        let (since, count) = self
            .window
            .filter(|(since, _)| now.saturating_duration_since(*since) < WINDOW)
            .unwrap_or((now, 0));
        if repeated || count >= MAX_PER_WINDOW {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.window = Some((since, count + 1));
        if self.told.len() >= MAX_REMEMBERED {
            self.told
                .retain(|_, at| now.saturating_duration_since(*at) < REPEAT_AFTER);
        }
        if self.told.len() < MAX_REMEMBERED {
            self.told.insert((source, reason.to_owned()), now);
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_an_hour_and_those_left_out_are_counted() {
        let mut journal = Journal::default();
        let (a, b) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let start = Instant::now();
        assert_eq!(journal.tell(a, "wrong", start), Some(0));
        assert_eq!(journal.tell(a, "wrong", start + WINDOW), None);
        assert_eq!(journal.tell(a, "expired", start + WINDOW), Some(1));
        assert_eq!(journal.tell(b, "wrong", start + WINDOW), Some(0));
        assert_eq!(journal.tell(a, "wrong", start + REPEAT_AFTER), Some(0));
    }

    #[test]
    fn a_flood_fills_neither_log_nor_memory() {
        let mut journal = Journal::default();
        let start = Instant::now();
        let mut told = 0;
        for n in 0..100_000_u32 {
            let now = start + Duration::from_millis(u64::from(n));
            let source = IpAddr::from(n.to_be_bytes());
            told += u32::from(journal.tell(source, "wrong", now).is_some());
        }
        assert_eq!(told, 2 * MAX_PER_WINDOW, "100 seconds");
        assert!(journal.told.len() <= MAX_REMEMBERED);
    }
}
