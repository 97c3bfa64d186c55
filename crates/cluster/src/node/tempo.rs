//! How much slower than on a LAN the timers of consensus run.
//!
//! They are fixed when consensus starts, and have to be alike in all members. So each member tells the leader what it
//! measures: how long a report takes there and back, and how long its disk takes to sync. The leader concludes by what
//! the timers must be multiplied, and has one member after the other, itself last, start consensus anew with that
//! ([`Node::retimed`]); meanwhile those with shorter timers stand for election a little early at worst.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::alias::InstantOf;
use openraft::async_runtime::Instant;
use openraft::type_config::TypeConfigExt;
use serde::{Deserialize, Serialize};

use super::report::{LIVE_WITHIN, Received};
use super::{Inner, Node, Timing, locked};
use crate::id::NodeId;
use crate::raft::Types;

/// Round trip and sync, added up, that the timers suit as they are: an eighth of the shortest election time.
const DESIGNED_FOR: Duration = Duration::from_millis(25);

/// The most by which the timers are multiplied.
const MOST: u32 = 16;

/// How long more must have been needed before the timers become longer.
const LENGTHEN_AFTER: Duration = Duration::from_secs(10);

/// How long less must have sufficed, by half, before they become shorter.
const SHORTEN_AFTER: Duration = Duration::from_secs(60);

/// Measurements of which the least counts: what a busy moment adds is not the way's.
const KEPT: usize = 16;

impl Timing {
    /// These timers, multiplied.
    #[must_use]
    pub fn stretched(self, factor: u32) -> Self {
        let factor = u64::from(factor.clamp(1, MOST));
        Timing {
            heartbeat_ms: self.heartbeat_ms.saturating_mul(factor),
            election_min_ms: self.election_min_ms.saturating_mul(factor),
            election_max_ms: self.election_max_ms.saturating_mul(factor),
        }
    }
}

/// What a member measures, as it reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Measured {
    /// By what its timers are multiplied; none: they are configured, and stay.
    pub(crate) stretch: Option<u32>,
    /// To the leader and back, in microseconds.
    pub(crate) round_trip_us: Option<u64>,
    /// One sync of its disk, in microseconds.
    pub(crate) sync_us: Option<u64>,
}

impl Measured {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The last few of a kind of measurement.
#[derive(Debug, Default)]
pub(crate) struct Least(VecDeque<Duration>);

impl Least {
    pub(crate) fn enter(&mut self, took: Duration) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    pub(crate) fn micros(&self) -> Option<u64> {
        let least = self.0.iter().min()?;
        Some(u64::try_from(least.as_micros()).unwrap_or(u64::MAX))
    }
}

/// The power of two by which timers must be multiplied where round trip and sync add up to `delay`.
fn needed(delay: Duration) -> u32 {
    let times = delay.as_nanos().div_ceil(DESIGNED_FOR.as_nanos()).max(1);
    let times = u32::try_from(times).unwrap_or(MOST);
    times.min(MOST).next_power_of_two()
}

/// Longest round trip plus the sync that a majority of the voters does not exceed.
fn delay(round_trips_us: impl Iterator<Item = u64>, mut voters_sync_us: Vec<u64>) -> Duration {
    voters_sync_us.sort_unstable();
    let sync = voters_sync_us.get(voters_sync_us.len() / 2).copied();
    let round_trip = round_trips_us.max().unwrap_or(0);
    Duration::from_micros(round_trip.saturating_add(sync.unwrap_or(0)))
}

/// What a leader aims at.
pub(crate) struct Tempo<I> {
    aim: u32,
    /// Since when another aim would be better, and in which direction.
    other: Option<(Ordering, I)>,
}

impl<I: Instant> Tempo<I> {
    pub(crate) fn new(aim: u32) -> Self {
        Tempo { aim, other: None }
    }

    /// Takes note of what is measured now.
    fn look(&mut self, delay: Duration, now: I) -> u32 {
        let (longer, shorter) = (needed(delay), needed(delay.saturating_mul(2)));
        let (direction, better, after) = if longer > self.aim {
            (Ordering::Greater, longer, LENGTHEN_AFTER)
        } else if shorter < self.aim {
            (Ordering::Less, shorter, SHORTEN_AFTER)
        } else {
            self.other = None;
            return self.aim;
        };
        match self.other {
            Some((same, since)) if same == direction => {
                if now >= since + after {
                    *self = Self::new(better);
                }
            }
            _ => self.other = Some((direction, now)),
        }
        self.aim
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Waits until the cluster wants this node's timers multiplied otherwise, and tells by what. Consensus has to be
    /// started anew with [`NodeConfig::stretch`](super::NodeConfig::stretch) as told.
    pub async fn retimed(&self) -> u32 {
        let mut wanted = self.inner.retime.subscribe();
        let wanted = wanted.wait_for(Option::is_some).await;
        // The sender lives as long as this node.
        wanted.ok().and_then(|wanted| *wanted).unwrap_or(1)
    }

    /// Concludes from the reports, while this node leads, how long the cluster's timers should be; and is the last to
    /// go by it.
    pub(super) fn tend_tempo(&self) {
        let inner = &self.inner;
        let Some(own) = inner.config.stretch else {
            return;
        };
        let voters: Vec<NodeId> =
            inner.metrics(|metrics| metrics.membership_config.membership().voter_ids().collect());
        let now = Types::<R>::now();
        let delay = {
            let reports = locked(&inner.reports);
            if reports.len() < 2 {
                return;
            }
            let live = || {
                let recent = reports
                    .iter()
                    .filter(|(_, received)| is_live(received, now));
                recent.map(|(id, received)| (id, received.report.measured))
            };
            let syncs = live().filter(|(id, _)| voters.contains(id));
            delay(
                live().filter_map(|(_, measured)| measured.round_trip_us),
                syncs.filter_map(|(_, measured)| measured.sync_us).collect(),
            )
        };
        locked(&inner.tempo)
            .get_or_insert_with(|| Tempo::new(own))
            .look(delay, now);
        if let Some(aim) = inner.turn(inner.config.node_id) {
            tracing::info!(
                from = own,
                to = aim,
                ?delay,
                "the cluster's timers are changed"
            );
            inner.retime.send_replace(Some(aim));
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// What this node measures itself.
    pub(super) fn measured(&self) -> Measured {
        Measured {
            stretch: self.config.stretch,
            round_trip_us: locked(&self.round_trips).micros(),
            sync_us: self.store.sync_us(),
        }
    }

    /// What `member` is to multiply its timers by from now on, if it is its turn: only while all voters are up and answer
    /// this leader, one at a time, this leader last.
    pub(super) fn turn(&self, member: NodeId) -> Option<u32> {
        let aim = locked(&self.tempo).as_ref()?.aim;
        let own = self.config.node_id;
        let now = Types::<R>::now();
        let (voters, acked) = self.metrics(|metrics| {
            let voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
            (voters, metrics.heartbeat.clone().unwrap_or_default())
        });
        let reports = locked(&self.reports);
        let answers = |id: &NodeId| {
            let acked = acked.get(id).and_then(|at| at.map(|at| at.into_inner()));
            let received = reports.get(id).filter(|received| is_live(received, now));
            received.is_some_and(|received| *id == own || acked > Some(received.since))
        };
        if !voters.iter().all(answers) {
            return None;
        }
        let differs = |received: &Received<R>| {
            let stretch = received.report.measured.stretch;
            is_live(received, now) && stretch.is_some_and(|stretch| stretch != aim)
        };
        let mut waiting = reports
            .iter()
            .filter(|(_, received)| differs(received))
            .map(|(id, _)| *id);
        let next = waiting.clone().find(|id| *id != own).or(waiting.next())?;
        (next == member).then_some(aim)
    }
}

fn is_live<R: AsyncRuntime>(received: &Received<R>, now: InstantOf<Types<R>>) -> bool {
    now < received.at + LIVE_WITHIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Tokio;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn timers_follow_round_trip_and_sync() {
        for (delay_ms, factor) in [
            (0, 1),
            (25, 1),
            (26, 2),
            (50, 2),
            (51, 4),
            (200, 8),
            (9_000, 16),
        ] {
            assert_eq!(needed(MS * delay_ms), factor, "{delay_ms} ms");
        }
        let stretched = Timing::default().stretched(4);
        assert_eq!(stretched.heartbeat_ms, 4 * Timing::default().heartbeat_ms);
        assert_eq!(
            stretched.detection_time(),
            4 * Timing::default().detection_time()
        );
        assert_eq!(Timing::default().stretched(0), Timing::default());
    }

    #[test]
    fn the_farthest_member_counts_and_the_disk_of_a_majority() {
        let of =
            |round_trips: &[u64], syncs: &[u64]| delay(round_trips.iter().copied(), syncs.to_vec());
        assert_eq!(of(&[], &[]), Duration::ZERO);
        assert_eq!(of(&[300, 80_000], &[500_000, 1_000, 2_000]), MS * 82);
        assert_eq!(of(&[], &[500_000, 400_000, 2_000]), MS * 400);
        assert_eq!(of(&[1_000], &[5_000, 3_000]), MS * 6);
    }

    #[test]
    fn the_least_of_the_last_few_counts() {
        let mut least = Least::default();
        assert_eq!(least.micros(), None);
        least.enter(MS);
        for _ in 1..KEPT {
            least.enter(MS * 3);
        }
        assert_eq!(least.micros(), Some(1_000));
        least.enter(MS * 20);
        assert_eq!(least.micros(), Some(3_000));
    }

    #[test]
    fn timers_lengthen_soon_and_shorten_late() {
        let start = Types::<Tokio>::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut tempo = Tempo::new(1);
        // A slow moment.
        assert_eq!(tempo.look(MS * 90, at(0)), 1);
        assert_eq!(tempo.look(MS * 90, at(8)), 1);
        assert_eq!(tempo.look(MS * 5, at(9)), 1);
        // It lasts.
        assert_eq!(tempo.look(MS * 90, at(10)), 1);
        assert_eq!(tempo.look(MS * 90, at(20)), 4);
        // Shorter, but not by half of what would suit.
        assert_eq!(tempo.look(MS * 40, at(21)), 4);
        assert_eq!(tempo.look(MS * 40, at(100)), 4);
        // A quarter of it.
        assert_eq!(tempo.look(MS * 20, at(101)), 4);
        assert_eq!(tempo.look(MS * 20, at(160)), 4);
        assert_eq!(tempo.look(MS * 20, at(161)), 2);
    }
}
