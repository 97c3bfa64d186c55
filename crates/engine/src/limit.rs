//! Token buckets, for what the engine sends of its own accord.

use crate::clock::Now;

/// Lets through `rate` per second on average, and a tenth of a second's worth at once.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    /// Nanoseconds worth of tokens in hand.
    credit_ns: u64,
    at: Now,
}

/// The most that can be saved up.
const FULL_NS: u64 = 100_000_000;

impl TokenBucket {
    pub(crate) fn full() -> TokenBucket {
        TokenBucket {
            credit_ns: FULL_NS,
            at: Now(0),
        }
    }

    fn fill(&mut self, now: Now) {
        let passed = now.0.saturating_sub(self.at.0);
        self.credit_ns = self.credit_ns.saturating_add(passed).min(FULL_NS);
        self.at = self.at.max(now);
    }

    /// Whether at least half of what can be saved up is there.
    fn is_half_full(&mut self, now: Now) -> bool {
        self.fill(now);
        self.credit_ns >= FULL_NS / 2
    }

    /// Takes a token if there is one. A rate of zero lets nothing through.
    pub(crate) fn take(&mut self, now: Now, rate_per_s: u32) -> bool {
        self.fill(now);
        let Some(price) = 1_000_000_000u64.checked_div(u64::from(rate_per_s)) else {
            return false;
        };
        // A rate below ten per second could never afford its price.
        let price = price.min(FULL_NS);
        if self.credit_ns < price {
            return false;
        }
        self.credit_ns -= price;
        true
    }
}

/// Places of the sources' own buckets; sources share them by hash.
const SOURCES: usize = 256;
/// What part of the whole rate each is sure of.
const SHARE: u32 = 16;

/// A bucket for all sources together, of which none can take everything: each has a part of its rate for sure, and beyond
/// it only what leaves half of what can be saved up to the others.
#[derive(Debug)]
pub(crate) struct SharedBucket {
    all: TokenBucket,
    sources: Vec<TokenBucket>,
}

impl SharedBucket {
    pub(crate) fn full() -> SharedBucket {
        SharedBucket {
            all: TokenBucket::full(),
            sources: vec![TokenBucket::full(); SOURCES],
        }
    }

    /// Takes a token for the source with this hash if there is one.
    pub(crate) fn take(&mut self, now: Now, source: u64, rate_per_s: u32) -> bool {
        let own = &mut self.sources[source as usize % SOURCES];
        let is_sure = own.take(now, (rate_per_s / SHARE).max(1));
        (is_sure || self.all.is_half_full(now)) && self.all.take(now, rate_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_source_takes_what_is_left_to_others() {
        let mut bucket = SharedBucket::full();
        let mut count = |ms: u64, source, asks| {
            let now = Now(ms * 1_000_000);
            (0..asks).filter(|_| bucket.take(now, source, 1600)).count()
        };
        // A lone source has the whole rate.
        let alone: usize = (1000..2000).map(|ms| count(ms, 7, 100)).sum();
        assert!((1600..1780).contains(&alone), "{alone}");
        // With another, which asks for less than its part, that one has all that it asks for.
        let (mut greedy, mut modest) = (0, 0);
        for ms in 2000..3000 {
            greedy += count(ms, 7, 100);
            modest += count(ms, 8, usize::from(ms % 20 == 0));
        }
        assert_eq!(modest, 50);
        assert!((1500..1600).contains(&greedy), "{greedy}");
        // Many together have no more than the whole.
        let many: usize = (3000..4000)
            .map(|ms| (0..200).map(|source| count(ms, source, 2)).sum::<usize>())
            .sum();
        assert!(many <= 1780, "{many}");
    }

    #[test]
    fn bursts_then_keeps_to_the_rate() {
        let mut bucket = TokenBucket::full();
        let mut count = |ms: u64| {
            (0..1000)
                .filter(|_| bucket.take(Now(ms * 1_000_000), 100))
                .count()
        };
        assert_eq!(count(0), 10);
        assert_eq!(count(0), 0);
        assert_eq!(count(50), 5);
        assert_eq!(count(60_000), 10);
    }

    #[test]
    fn zero_is_never_and_time_may_stand_still() {
        let mut bucket = TokenBucket::full();
        assert!(!bucket.take(Now(5), 0));
        assert!(bucket.take(Now(5), 1));
        assert!(!bucket.take(Now(4), 1));
    }
}
