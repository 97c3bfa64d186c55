//! What is made to fail, at whom, for how long: the same for the same seed.

use std::fmt;
use std::time::{Duration, Instant};

/// What may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a start afterwards.
    Killed,
    /// SIGSTOP and SIGCONT.
    Paused,
    /// The cable of the management interface is pulled.
    Unplugged,
    /// No way to the other members, in either direction.
    Isolated,
    /// It and one other member do not reach each other; everyone still reaches a majority.
    Ring,
    /// It is heard and hears nothing.
    Deaf,
    /// A fifth of its packets to and from other members is lost.
    Lossy,
    /// No room left on the file system of its data.
    DiskFull,
    /// Every sync fails.
    SyncFails,
    /// Every sync takes 500 ms longer.
    SyncSlow,
    /// Its wall clock is an hour ahead.
    ClockAhead,
    /// Its wall clock is an hour behind.
    ClockBehind,
    /// SIGKILL at every member at once.
    AllKilled,
    /// One member after the other is stopped in order and started again.
    RollingRestart,
    /// The leader is killed while a new member joins. Once in a run: afterwards there are four members.
    DuringJoin,
    /// The leader is killed while the cluster's CA is replaced.
    DuringRotation,
    /// The leader is killed while a member that was away for long is sent a snapshot.
    DuringSnapshot,
}

impl Fault {
    /// Those that a short run goes through, in this order. A snapshot needs more writes than a short run makes.
    pub const SHORT: [Fault; 16] = [
        Fault::Killed,
        Fault::Paused,
        Fault::Unplugged,
        Fault::Isolated,
        Fault::Ring,
        Fault::Deaf,
        Fault::Lossy,
        Fault::DiskFull,
        Fault::SyncFails,
        Fault::SyncSlow,
        Fault::ClockAhead,
        Fault::ClockBehind,
        Fault::AllKilled,
        Fault::RollingRestart,
        Fault::DuringRotation,
        Fault::DuringJoin,
    ];
}

/// At whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// Whoever leads then.
    Leader,
    /// One that follows.
    Follower,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub fault: Fault,
    /// At whom, where that can be chosen.
    pub victim: Victim,
    /// How long it lasts.
    pub length: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step {
            fault,
            victim,
            length,
        } = self;
        write!(
            f,
            "{fault:?} ({victim:?}) for {:.1} s",
            length.as_secs_f64()
        )
    }
}

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Where all its choices come from.
    pub seed: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    EachOnce,
    For(Duration),
}

impl Plan {
    /// Every fault of [`Fault::SHORT`] once, briefly.
    #[must_use]
    pub fn each_once(seed: u64) -> Plan {
        Plan {
            seed,
            kind: Kind::EachOnce,
        }
    }

    /// Random faults for so long, from the first step on.
    #[must_use]
    pub fn random(seed: u64, length: Duration) -> Plan {
        Plan {
            seed,
            kind: Kind::For(length),
        }
    }

    /// Its steps, made as they are asked for.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let mut random = Random(self.seed);
        let (kind, begin) = (self.kind, Instant::now());
        (0..).map_while(move |number| {
            let (fault, length_ms) = match kind {
                Kind::EachOnce => (*Fault::SHORT.get(number)?, 1200),
                Kind::For(length) => {
                    let all = Fault::SHORT.len() as u64;
                    // A long run makes snapshots, and must not grow with every fault.
                    let fault = match Fault::SHORT[random.below(all) as usize] {
                        Fault::DuringJoin => Fault::DuringSnapshot,
                        fault => fault,
                    };
                    (begin.elapsed() < length).then_some((fault, 300 + random.below(5000)))?
                }
            };
            let victim = match random.below(2) {
                0 => Victim::Leader,
                _ => Victim::Follower,
            };
            Some(Step {
                fault,
                victim,
                length: Duration::from_millis(length_ms),
            })
        })
    }
}

/// A sequence of numbers that its seed decides.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let steps = |seed| Plan::each_once(seed).steps().collect::<Vec<_>>();
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
        assert_eq!(steps(1).len(), Fault::SHORT.len());
        let long = |seed| {
            let plan = Plan::random(seed, Duration::from_secs(3600));
            plan.steps().take(50).collect::<Vec<_>>()
        };
        assert_eq!(long(7), long(7));
        assert_ne!(long(7), long(8));
    }
}
