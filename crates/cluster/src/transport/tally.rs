//! How long requests to each peer took, and how they failed, since the transport was made.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Kind, TransportError};
use crate::id::NodeId;

/// Upper bounds of the buckets, in seconds: from a LAN's round trip to what a forwarded request may take.
pub const BOUNDS_S: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// The requests of one kind to one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Requests {
    /// Answered ones, by how long they took: bucket n up to `BOUNDS_S[n]`, the last one beyond.
    pub answered: [u64; BOUNDS_S.len() + 1],
    /// How long the answered ones took in all.
    pub took: Duration,
    /// Those that came to nothing, by [`TransportError::name`].
    pub failed: BTreeMap<&'static str, u64>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            answered: [0; BOUNDS_S.len() + 1],
            took: Duration::ZERO,
            failed: BTreeMap::new(),
        }
    }
}

/// What was counted, by peer and by [`Kind::name`].
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<(NodeId, &'static str), Requests>>);

impl Tally {
    /// A request came to this.
    pub(crate) fn enter<T>(
        &self,
        peer: NodeId,
        kind: Kind,
        took: Duration,
        outcome: &Result<T, TransportError>,
    ) {
        let mut requests = self.requests();
        let requests = requests.entry((peer, kind.name())).or_default();
        match outcome {
            Ok(_) => {
                let seconds = took.as_secs_f64();
                let bucket = BOUNDS_S.iter().position(|bound| seconds <= *bound);
                requests.answered[bucket.unwrap_or(BOUNDS_S.len())] += 1;
                requests.took += took;
            }
            Err(error) => *requests.failed.entry(error.name()).or_default() += 1,
        }
    }

    /// What was counted so far.
    pub fn read(&self) -> Vec<((NodeId, &'static str), Requests)> {
        let requests = self.requests();
        requests
            .iter()
            .map(|(key, requests)| (*key, requests.clone()))
            .collect()
    }

    /// A member is gone.
    pub(crate) fn forget(&self, peer: NodeId) {
        self.requests().retain(|(of, _), _| *of != peer);
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<(NodeId, &'static str), Requests>> {
        // Nothing in there can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_time_and_failures_by_kind() {
        let tally = Tally::default();
        let peer = NodeId(7);
        for micros in [500, 501, 6_000_000] {
            let took = Duration::from_micros(micros);
            tally.enter(peer, Kind::Append, took, &Ok(()));
        }
        let lost = Err::<(), _>(TransportError::Lost("no answer in time".into()));
        tally.enter(peer, Kind::Append, Duration::ZERO, &lost);
        let [((of, kind), requests)] = &tally.read()[..] else {
            panic!("one peer, one kind");
        };
        assert_eq!((*of, *kind), (peer, "append"));
        assert_eq!(requests.answered[..2], [1, 1]);
        assert_eq!(requests.answered[BOUNDS_S.len()], 1);
        assert_eq!(requests.took, Duration::from_micros(6_001_001));
        assert_eq!(requests.failed, BTreeMap::from([("lost", 1)]));
        tally.forget(peer);
        assert!(tally.read().is_empty());
    }
}
