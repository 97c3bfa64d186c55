//! Time as the engine sees it: a monotonic count of nanoseconds that the caller hands in.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Monotonic time in nanoseconds since an origin that the shell chooses (usually its start).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Now(pub u64);

impl Now {
    /// The time left until `later`; zero if that has passed.
    pub fn until(self, later: Now) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }

    /// The engine's own unit for idle times.
    pub(crate) fn tick(self) -> Tick {
        Tick((self.0 >> TICK_SHIFT) as u32)
    }
}

impl Add<Duration> for Now {
    type Output = Now;
    fn add(self, rhs: Duration) -> Now {
        Now(self
            .0
            .saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One tick is 2^26 ns, about 67 ms: fine enough for any time-out, and a `u32` of them lasts
/// nine years before it wraps.
pub(crate) const TICK_SHIFT: u32 = 26;

/// A coarse time stamp, kept in flows. Wraps; only differences mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    /// Ticks since `earlier`; zero if `earlier` is in fact later.
    pub(crate) fn since(self, earlier: Tick) -> u32 {
        let d = self.0.wrapping_sub(earlier.0);
        if d > u32::MAX / 2 { 0 } else { d }
    }

    /// This stamp moved `ticks` into the future.
    pub(crate) fn plus(self, ticks: u32) -> Tick {
        Tick(self.0.wrapping_add(ticks))
    }
}

/// Ticks that cover `d`, rounded up, at most a quarter of the range (two years).
pub(crate) fn ticks(d: Duration) -> u32 {
    let t = d.as_nanos().div_ceil(1 << TICK_SHIFT);
    u32::try_from(t).unwrap_or(u32::MAX).min(u32::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_round_up_and_survive_the_wrap() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_nanos(1)), 1);
        assert_eq!(ticks(Duration::from_secs(1)), 15);
        assert_eq!(ticks(Duration::MAX), u32::MAX / 4);
        let late = Tick(u32::MAX);
        assert_eq!(late.plus(5).since(late), 5);
        assert_eq!(late.since(late.plus(5)), 0);
    }

    #[test]
    fn time_left_never_goes_negative() {
        assert_eq!(Now(10).until(Now(4)), Duration::ZERO);
        assert_eq!(Now(4).until(Now(10)), Duration::from_nanos(6));
        assert_eq!(Now(u64::MAX) + Duration::MAX, Now(u64::MAX));
    }
}
