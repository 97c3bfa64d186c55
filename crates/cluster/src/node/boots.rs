//! Two machines with one identity: a virtual machine that was cloned, or a disk that was copied.
//!
//! Every boot has a number of its own. A member that restarts reports under a new one and never again under the old one;
//! when both go on reporting, two machines run. The one that was there first stays, the other is told to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::alias::InstantOf;
use openraft::async_runtime::Instant as _;

use crate::id::NodeId;
use crate::raft::Types;

/// A boot that has been silent for this long has ended. Six reports fit in.
const ENDED_AFTER: Duration = Duration::from_secs(3);

/// One machine, as it reports.
struct Boot<R: AsyncRuntime> {
    incarnation: u64,
    /// Where it says that it is.
    address: String,
    first: InstantOf<Types<R>>,
    last: InstantOf<Types<R>>,
}

/// The boots of one member: the one that counts, and one that has come up beside it.
struct Seen<R: AsyncRuntime> {
    current: Boot<R>,
    other: Option<Boot<R>>,
}

/// What a report tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One machine runs under this identity, as far as known.
    Alone,
    /// The sender is the second of two.
    Second {
        /// Where the first one is.
        first: String,
    },
}

/// The boots of all members; kept by the leader.
pub(super) struct Boots<R: AsyncRuntime> {
    seen: BTreeMap<NodeId, Seen<R>>,
}

impl<R: AsyncRuntime> Default for Boots<R> {
    fn default() -> Self {
        Boots {
            seen: BTreeMap::new(),
        }
    }
}

impl<R: AsyncRuntime> Boots<R> {
    /// Takes a report of `node_id` into account.
    pub(super) fn see(
        &mut self,
        node_id: NodeId,
        incarnation: u64,
        address: &str,
        now: InstantOf<Types<R>>,
    ) -> Verdict {
        let boot = |first| Boot {
            incarnation,
            address: address.to_owned(),
            first,
            last: now,
        };
        let seen = self.seen.entry(node_id).or_insert_with(|| Seen {
            current: boot(now),
            other: None,
        });
        if seen.current.incarnation == incarnation {
            seen.current.last = now;
            return Verdict::Alone;
        }
        let first = match &seen.other {
            Some(other) if other.incarnation == incarnation => other.first,
            _ => now,
        };
        if now.saturating_duration_since(seen.current.last) >= ENDED_AFTER {
            seen.current = boot(first);
            seen.other = None;
            return Verdict::Alone;
        }
        seen.other = Some(boot(first));
        // The first one has been heard since the second came up.
        match seen.current.last > first {
            true => Verdict::Second {
                first: seen.current.address.clone(),
            },
            false => Verdict::Alone,
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::type_config::TypeConfigExt as _;

    use super::*;
    use crate::node::Tokio;

    const A: NodeId = NodeId(1);

    #[tokio::test(start_paused = true)]
    async fn a_restart_is_no_clone() {
        let mut boots = Boots::<Tokio>::default();
        let mut now = Types::<Tokio>::now();
        for incarnation in 1..5 {
            for _ in 0..20 {
                assert_eq!(boots.see(A, incarnation, "a", now), Verdict::Alone);
                now += Duration::from_millis(500);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_of_two_machines_is_told_where_the_first_is() {
        let mut boots = Boots::<Tokio>::default();
        let mut now = Types::<Tokio>::now();
        let mut told = 0;
        assert_eq!(boots.see(A, 1, "first", now), Verdict::Alone);
        for _ in 0..10 {
            now += Duration::from_millis(250);
            if boots.see(A, 2, "second", now) != Verdict::Alone {
                told += 1;
            }
            now += Duration::from_millis(250);
            assert_eq!(boots.see(A, 1, "first", now), Verdict::Alone);
        }
        assert_eq!(told, 9, "all but the first");
        // It starts again and again, each time with another number; the first one still stays.
        for incarnation in 3..6 {
            now += Duration::from_millis(100);
            boots.see(A, incarnation, "second", now);
            now += Duration::from_millis(100);
            assert_eq!(boots.see(A, 1, "first", now), Verdict::Alone);
            now += Duration::from_millis(100);
            let first = "first".to_owned();
            assert_eq!(
                boots.see(A, incarnation, "second", now),
                Verdict::Second { first }
            );
        }
        // Once the first one is gone, the other may go on.
        now += ENDED_AFTER;
        assert_eq!(boots.see(A, 6, "second", now), Verdict::Alone);
    }
}
