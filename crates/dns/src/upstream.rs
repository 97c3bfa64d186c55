//! Whom to ask, and when to ask another one too.
//!
//! Upstreams are asked in the configured order. One that takes longer than it usually does is not
//! waited for: the next is asked as well, and the first usable answer counts (hedging). One that failed
//! several times in a row, or was overtaken so, is suspect: the others are asked before it. Now and then,
//! from a second to half a minute apart, it gets a question beside the race, so that it comes back as soon
//! as it answers again. If all are suspect they are tried all the same.

/// Failures in a row after which an upstream is passed over.
const FAILURES: u32 = 3;
/// For how long at first, and at most, in milliseconds.
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 30_000;
/// The next upstream is asked no sooner than after this time, in milliseconds.
const SOONEST_HEDGE_MS: u64 = 20;
/// Round-trip time that is taken for granted before there is a measured one, in milliseconds.
const FIRST_RTT_MS: u64 = 200;
/// Most upstreams that one question is sent to.
pub const MAX_ASKED: usize = 8;

/// What is known of all upstreams. Times are milliseconds on any clock that does not go backwards.
#[derive(Debug, Clone)]
pub struct Upstreams {
    each: Vec<Health>,
    timeout_ms: u64,
}

/// What is known of one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Smoothed round-trip time in microseconds (RFC 6298 section 2); none before the first answer.
    pub rtt_us: Option<u64>,
    /// How much it varies, in microseconds.
    pub variation_us: u64,
    /// Failures since the last answer.
    pub failures: u32,
    /// It is passed over until then.
    pub paused_until_ms: u64,
}

impl Health {
    /// Whether the others are asked before it.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.failures >= FAILURES
    }
}

impl Upstreams {
    /// `count` upstreams, each of which may take `timeout_ms`.
    #[must_use]
    pub fn new(count: usize, timeout_ms: u64) -> Self {
        let fresh = Health {
            rtt_us: None,
            variation_us: 0,
            failures: 0,
            paused_until_ms: 0,
        };
        Self {
            each: vec![fresh; count],
            timeout_ms,
        }
    }

    /// What is known of an upstream.
    #[must_use]
    pub fn health(&self, upstream: usize) -> Option<Health> {
        self.each.get(upstream).copied()
    }

    /// Notes an answer, whatever it said, that took `rtt_us` microseconds.
    pub fn answered(&mut self, upstream: usize, rtt_us: u64) {
        let Some(health) = self.each.get_mut(upstream) else {
            return;
        };
        match health.rtt_us {
            None => {
                health.rtt_us = Some(rtt_us);
                health.variation_us = rtt_us / 2;
            }
            Some(smoothed) => {
                health.variation_us = (3 * health.variation_us + smoothed.abs_diff(rtt_us)) / 4;
                health.rtt_us = Some((7 * smoothed + rtt_us) / 8);
            }
        }
        health.failures = 0;
        health.paused_until_ms = 0;
    }

    /// Notes that an upstream did not answer in time, was not reached, or failed. Of one that is passed over
    /// anyway this is nothing new: many questions may have been under way to it.
    pub fn failed(&mut self, upstream: usize, now_ms: u64) {
        match self.each.get(upstream) {
            Some(health) if health.paused_until_ms <= now_ms => self.probe_failed(upstream, now_ms),
            _ => {}
        }
    }

    /// Notes the same of a question that [`Self::probe`] let through.
    pub fn probe_failed(&mut self, upstream: usize, now_ms: u64) {
        let Some(health) = self.each.get_mut(upstream) else {
            return;
        };
        health.failures = health.failures.saturating_add(1);
        if let Some(beyond) = health.failures.checked_sub(FAILURES) {
            let pause = FIRST_PAUSE_MS << beyond.min(5);
            health.paused_until_ms = now_ms + pause.min(LONGEST_PAUSE_MS);
        }
    }

    /// An upstream that is to be tried beside the race for a question, since its pause is over and the race
    /// will hardly come to it. It is passed over until that has ended.
    pub fn probe(&mut self, now_ms: u64) -> Option<usize> {
        if self.all_suspect() {
            return None;
        }
        let due = |health: &Health| health.is_suspect() && health.paused_until_ms <= now_ms;
        let at = self.each.iter().position(due)?;
        self.each[at].paused_until_ms = now_ms.saturating_add(self.timeout_ms);
        Some(at)
    }

    /// Whether none of them has answered lately.
    #[must_use]
    pub fn all_suspect(&self) -> bool {
        self.each.iter().all(Health::is_suspect)
    }

    /// Begins to ask about one question.
    #[must_use]
    pub fn race(&self, now_ms: u64) -> Race {
        let paused = |at: &usize| self.each[*at].paused_until_ms > now_ms;
        let suspect = |at: &usize| self.each[*at].is_suspect();
        let mut order: Vec<usize> = (0..self.each.len()).collect();
        // Stable: the configured order within each.
        order.sort_by_key(|at| (paused(at), suspect(at)));
        order.truncate(MAX_ASKED);
        Race {
            order,
            asked: Vec::new(),
        }
    }

    /// How long one is waited for before the next is asked too, in milliseconds.
    fn patience_ms(&self, upstream: usize) -> u64 {
        let health = &self.each[upstream];
        let usual = health.rtt_us.map_or(FIRST_RTT_MS, |rtt| {
            (rtt + 4 * health.variation_us).div_ceil(1_000)
        });
        usual.clamp(SOONEST_HEDGE_MS, self.timeout_ms.max(SOONEST_HEDGE_MS))
    }
}

/// One question on its way to upstreams.
#[derive(Debug, Clone)]
pub struct Race {
    /// Those not asked yet are at the end of `asked`'s length.
    order: Vec<usize>,
    asked: Vec<Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    upstream: usize,
    since_ms: u64,
    open: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask this upstream, and look again.
    Ask(usize),
    /// This upstream has used up its time; note its failure, and look again.
    TimedOut(usize),
    /// Wait for answers until then.
    Wait(u64),
    /// All have failed.
    GiveUp,
}

impl Race {
    /// What to do next.
    pub fn step(&mut self, upstreams: &Upstreams, now_ms: u64) -> Step {
        let timeout = upstreams.timeout_ms;
        let late = |asked: &&mut Asked| asked.open && asked.since_ms + timeout <= now_ms;
        if let Some(asked) = self.asked.iter_mut().find(late) {
            asked.open = false;
            return Step::TimedOut(asked.upstream);
        }
        let end = self
            .asked
            .iter()
            .filter(|asked| asked.open)
            .map(|asked| asked.since_ms + timeout)
            .min();
        let next = self.order.get(self.asked.len()).copied();
        match (next, end) {
            (None, None) => Step::GiveUp,
            (None, Some(end)) => Step::Wait(end),
            (Some(next), end) => {
                let hedge = self
                    .asked
                    .last()
                    .filter(|last| last.open)
                    .map(|last| last.since_ms + upstreams.patience_ms(last.upstream));
                if let (Some(hedge), Some(end)) = (hedge, end)
                    && hedge > now_ms
                {
                    return Step::Wait(hedge.min(end));
                }
                self.asked.push(Asked {
                    upstream: next,
                    since_ms: now_ms,
                    open: true,
                });
                Step::Ask(next)
            }
        }
    }

    /// Those that have taken longer than they usually do, while `winner` has answered.
    pub fn overtaken(
        &self,
        upstreams: &Upstreams,
        winner: usize,
        now_ms: u64,
    ) -> impl Iterator<Item = usize> {
        self.asked
            .iter()
            .filter(move |asked| {
                let patience_ms = upstreams.patience_ms(asked.upstream);
                asked.open && asked.upstream != winner && asked.since_ms + patience_ms <= now_ms
            })
            .map(|asked| asked.upstream)
    }

    /// Notes that an upstream failed, so that the next one is asked at once.
    pub fn failed(&mut self, upstream: usize) {
        for asked in &mut self.asked {
            if asked.upstream == upstream {
                asked.open = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_is_asked_first_and_the_next_when_it_is_slow() {
        let mut upstreams = Upstreams::new(3, 2_000);
        upstreams.answered(0, 10_000);
        let mut race = upstreams.race(100);
        assert_eq!(race.step(&upstreams, 100), Step::Ask(0));
        // 10 ms and four times 5 ms.
        assert_eq!(race.step(&upstreams, 100), Step::Wait(130));
        assert_eq!(race.step(&upstreams, 130), Step::Ask(1));
        assert_eq!(race.step(&upstreams, 130), Step::Wait(330));
        race.failed(1);
        assert_eq!(race.step(&upstreams, 140), Step::Ask(2));
        assert_eq!(race.step(&upstreams, 140), Step::Wait(2_100));
        assert_eq!(race.step(&upstreams, 2_100), Step::TimedOut(0));
        assert_eq!(race.step(&upstreams, 2_100), Step::Wait(2_140));
        assert_eq!(race.step(&upstreams, 2_140), Step::TimedOut(2));
        assert_eq!(race.step(&upstreams, 2_140), Step::GiveUp);
    }

    #[test]
    fn one_that_fails_is_passed_over_for_a_while() {
        let mut upstreams = Upstreams::new(2, 2_000);
        for _ in 0..2 {
            upstreams.failed(0, 1_000);
        }
        let first = |upstreams: &Upstreams, now| upstreams.race(now).step(upstreams, now);
        assert_eq!(first(&upstreams, 1_000), Step::Ask(0));
        upstreams.failed(0, 1_000);
        assert_eq!(first(&upstreams, 1_999), Step::Ask(1));
        // Then it is tried behind the other one.
        assert_eq!(first(&upstreams, 2_000), Step::Ask(1));
        upstreams.failed(0, 2_000);
        let paused_until = |upstreams: &Upstreams| upstreams.health(0).unwrap().paused_until_ms;
        assert_eq!(paused_until(&upstreams), 4_000);
        // Questions that were under way by then say nothing new.
        upstreams.failed(0, 3_999);
        assert_eq!(paused_until(&upstreams), 4_000);
        let mut now = 4_000;
        for _ in 0..40 {
            upstreams.failed(0, now);
            assert!((4_000..=30_000).contains(&(paused_until(&upstreams) - now)));
            now = paused_until(&upstreams);
        }
        // Both failed: in order all the same.
        for _ in 0..3 {
            upstreams.failed(1, now - 30_000);
        }
        assert_eq!(first(&upstreams, now), Step::Ask(0));
        upstreams.answered(1, 1_000);
        assert_eq!(first(&upstreams, now), Step::Ask(1));
    }

    #[test]
    fn one_that_is_overtaken_fails_and_comes_back_when_it_answers() {
        let mut upstreams = Upstreams::new(3, 2_000);
        let mut now = 0;
        for _ in 0..3 {
            let mut race = upstreams.race(now);
            assert_eq!(race.step(&upstreams, now), Step::Ask(0));
            now += 200;
            assert_eq!(race.step(&upstreams, now), Step::Ask(1));
            // The other one has hardly been asked.
            let slow: Vec<usize> = race.overtaken(&upstreams, 2, now + 10).collect();
            assert_eq!(slow, [0]);
            let slow: Vec<usize> = race.overtaken(&upstreams, 1, now + 1_000).collect();
            assert_eq!(slow, [0]);
            assert_eq!(race.overtaken(&upstreams, 0, now + 10).count(), 0);
            assert_eq!(upstreams.probe(now), None);
            upstreams.failed(0, now);
        }
        assert!(upstreams.health(0).unwrap().is_suspect() && !upstreams.all_suspect());
        assert_eq!(upstreams.race(now).step(&upstreams, now), Step::Ask(1));
        // One question is let through at a time, and no sooner than its pause is over.
        assert_eq!(upstreams.probe(now + 999), None);
        assert_eq!(upstreams.probe(now + 1_000), Some(0));
        assert_eq!(upstreams.probe(now + 1_000), None);
        upstreams.probe_failed(0, now + 2_999);
        assert_eq!(upstreams.probe(now + 4_998), None);
        assert_eq!(upstreams.probe(now + 4_999), Some(0));
        upstreams.answered(0, 1_000);
        now += 5_000;
        assert_eq!(upstreams.race(now).step(&upstreams, now), Step::Ask(0));
        // Where all have failed, the race itself tries them.
        for at in 0..3 {
            (0..3).for_each(|_| upstreams.failed(at, now));
        }
        assert!(upstreams.all_suspect());
        assert_eq!(upstreams.probe(now + 60_000), None);
    }

    #[test]
    fn without_upstreams_there_is_nothing_to_wait_for() {
        let upstreams = Upstreams::new(0, 1);
        assert_eq!(upstreams.race(0).step(&upstreams, 0), Step::GiveUp);
    }

    proptest! {
        /// Whatever happens: each upstream is asked once at most, and a race ends within the time that
        /// all of them may take one after the other.
        #[test]
        fn races_end(
            count in 0_usize..12,
            timeout in 1_u64..3_000,
            rtts in prop::collection::vec(prop::option::of(0_u64..5_000_000), 12),
            failing in prop::collection::vec(any::<bool>(), 200),
        ) {
            let mut upstreams = Upstreams::new(count, timeout);
            for (at, rtt) in rtts.iter().enumerate() {
                match rtt {
                    Some(rtt) => upstreams.answered(at, *rtt),
                    None => (0..5).for_each(|_| upstreams.failed(at, 0)),
                }
            }
            let mut race = upstreams.race(0);
            let mut asked = Vec::new();
            let mut now = 0;
            for fails in failing {
                match race.step(&upstreams, now) {
                    Step::Ask(at) => {
                        prop_assert!(!asked.contains(&at) && at < count);
                        asked.push(at);
                        if fails {
                            race.failed(at);
                        }
                    }
                    Step::TimedOut(at) => prop_assert!(asked.contains(&at)),
                    Step::Wait(until) => {
                        prop_assert!(until > now && until <= now + timeout);
                        now = until;
                    }
                    Step::GiveUp => {
                        prop_assert_eq!(asked.len(), count.min(MAX_ASKED));
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it does not end");
        }
    }
}
