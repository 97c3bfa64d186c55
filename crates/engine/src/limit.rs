//! A token bucket, for what the engine sends of its own accord.

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

    /// Takes a token if there is one. A rate of zero lets nothing through.
    pub(crate) fn take(&mut self, now: Now, rate_per_s: u32) -> bool {
        let passed = now.0.saturating_sub(self.at.0);
        self.credit_ns = self.credit_ns.saturating_add(passed).min(FULL_NS);
        self.at = self.at.max(now);
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

#[cfg(test)]
mod tests {
    use super::*;

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
