//! What the workers of one node count together, for limits that hold for the node: how many flows each source and each
//! source group has, and how fast sources open new ones. Looked at and written only when a flow begins or ends, without a
//! lock; and only on nodes that have such limits.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mem::Table;

use super::{RATES, burst_ns, places_of_rate, price_ns};
use crate::address::Addr;
use crate::clock::Now;
use crate::flow::key::{KeyHasher, Random};
use crate::fragment::source;

/// Places of one line, which is a cache line.
const PLACES: usize = 8;
/// Flows for each line. Even if each has a source of its own, half of all places are free.
const FLOWS_PER_LINE: usize = 4;
/// Bits of a place that count flows; the others tell sources of one line apart.
const COUNT_BITS: u32 = 30;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// The tally of one node. Each worker has one of its own beside it ([`Worker::with_tally`](crate::Worker::with_tally)).
#[derive(Debug)]
pub struct NodeTally {
    /// A source has a place in one of two lines: a part of its hash above the count of its flows; zero where nobody is.
    /// Two workers that meet a source at the same time may give it one place each. A source that finds both lines full
    /// is not counted.
    sources: Table<AtomicU64>,
    hasher: KeyHasher,
    /// When each place will have its whole rate again.
    rates: Table<AtomicU64>,
    /// By id. Locked when a worker takes over a policy.
    groups: Mutex<BTreeMap<Arc<str>, Arc<AtomicU32>>>,
}

/// Where a source may be, and how it is told from others there.
struct Lines {
    lines: [usize; 2],
    tag: u64,
}

impl NodeTally {
    /// For this many flows of all workers together. `seed` is secret, from the system's random source.
    ///
    /// # Errors
    /// When the system refuses the address space.
    pub fn new(flows: usize, seed: u64) -> io::Result<NodeTally> {
        let lines = (flows / FLOWS_PER_LINE).max(8);
        Ok(NodeTally {
            sources: Table::new(lines * PLACES)?,
            // Apart from the generator that the flow tables' keys come from.
            hasher: KeyHasher::new(Random::new(seed.rotate_left(32)).next()),
            rates: Table::new(RATES)?,
            groups: Mutex::default(),
        })
    }

    fn lines(&self, client: Addr) -> Lines {
        let hash = self.hasher.hash_address(source(client));
        let lines = (self.sources.len() / PLACES) as u64;
        let line = |half: u64| ((half * lines) >> 32) as usize;
        let first = line(hash >> 32);
        let second = match line(hash & u64::from(u32::MAX)) {
            same if same == first => (first + 1) % lines as usize,
            other => other,
        };
        // All bits of the hash decide; never zero.
        let tag = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> COUNT_BITS;
        Lines {
            lines: [first, second],
            tag: tag.max(1),
        }
    }

    fn places(&self, lines: &Lines) -> impl Iterator<Item = &AtomicU64> {
        let line = |line: usize| &self.sources[line * PLACES..][..PLACES];
        lines.lines.into_iter().flat_map(line)
    }

    /// How many flows a client's source has.
    pub(super) fn flows_of(&self, client: Addr) -> u32 {
        let lines = self.lines(client);
        let words = self
            .places(&lines)
            .map(|place| place.load(Ordering::Relaxed));
        let mine = words.filter(|word| word >> COUNT_BITS == lines.tag);
        mine.map(|word| (word & COUNT) as u32).sum()
    }

    /// Counts a flow of a client's source.
    pub(super) fn enter(&self, client: Addr) {
        let lines = self.lines(client);
        let one_more = |word: u64| {
            let is_mine = word >> COUNT_BITS == lines.tag && word & COUNT < COUNT;
            is_mine.then(|| word + 1)
        };
        if self.places(&lines).any(|place| change(place, one_more)) {
            return;
        }
        let first = |word: u64| (word == 0).then_some(lines.tag << COUNT_BITS | 1);
        let _ = self.places(&lines).any(|place| change(place, first));
    }

    /// Counts a flow of a client's source no more.
    pub(super) fn leave(&self, client: Addr) {
        let lines = self.lines(client);
        let one_less = |word: u64| match (word >> COUNT_BITS == lines.tag, word & COUNT) {
            (false, _) => None,
            (true, 1) => Some(0),
            (true, _) => Some(word - 1),
        };
        let _ = self.places(&lines).any(|place| change(place, one_less));
    }

    /// The count of a source group's flows.
    pub(super) fn group(&self, id: &Arc<str>) -> Arc<AtomicU32> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let count = groups.entry(Arc::clone(id)).or_default();
        Arc::clone(count)
    }

    /// Forgets groups that no worker has any more.
    pub(super) fn forget_groups(&self) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, count| Arc::strong_count(count) > 1);
    }

    /// Takes one new flow from what a source may open by now.
    pub(super) fn take(&self, now: Now, client: Addr, rate: u32) -> bool {
        let price = price_ns(rate);
        let hash = self.hasher.hash_address(source(client));
        let mut admitted = false;
        for place in places_of_rate(hash) {
            let later = |due: u64| {
                let due = due.max(now.0) + price;
                (due <= now.0 + burst_ns(price)).then_some(due)
            };
            admitted |= change(&self.rates[place], later);
        }
        admitted
    }
}

/// Changes a word, if it is one to be changed, whoever else does so meanwhile.
fn change(word: &AtomicU64, to: impl FnMut(u64) -> Option<u64>) -> bool {
    word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_the_same_sources_at_the_same_time() {
        let node = NodeTally::new(4096, 7).unwrap();
        let client = |n: u32| Addr::v4(0x0a00_0000 + n);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..1000 {
                        node.enter(client(round % 64));
                        node.enter(client(99));
                        node.leave(client(round % 64));
                    }
                });
            }
        });
        assert_eq!(node.flows_of(client(99)), 4000);
        assert!((0..64).all(|n| node.flows_of(client(n)) == 0));
        for _ in 0..4000 {
            node.leave(client(99));
        }
        assert!(
            node.sources
                .iter()
                .all(|place| place.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn as_many_sources_as_flows_have_a_place_each() {
        let flows = 1 << 16;
        let node = NodeTally::new(flows as usize, 3).unwrap();
        for n in 0..flows {
            node.enter(Addr::v4(n));
        }
        let counted = (0..flows)
            .filter(|n| node.flows_of(Addr::v4(*n)) == 1)
            .count();
        assert_eq!(counted, flows as usize);
        // More than it is made for: those without a place are not limited, and their ends harm nobody.
        for n in flows..4 * flows {
            node.enter(Addr::v4(n));
        }
        for n in 0..4 * flows {
            assert!(node.flows_of(Addr::v4(n)) <= 1);
            node.leave(Addr::v4(n));
        }
        assert!(
            node.sources
                .iter()
                .all(|place| place.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn a_group_is_forgotten_with_its_last_worker() {
        let node = NodeTally::new(1, 3).unwrap();
        let id: Arc<str> = "one".into();
        let (a, b) = (node.group(&id), node.group(&id));
        a.fetch_add(1, Ordering::Relaxed);
        node.forget_groups();
        assert_eq!(b.load(Ordering::Relaxed), 1);
        drop((a, b));
        node.forget_groups();
        assert!(node.groups.lock().unwrap().is_empty());
    }
}
