//! What must hold at every step, whatever happens: an observer that reads the real nodes after each step of theirs.
//!
//! It keeps what it has seen of logs, commits, states and policies for the whole story, so that what is true of one node
//! now is compared with what was true of another one long ago.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cluster::replay::Mark;
use cluster::store::{EntryMark, Store};
use cluster::{Digest, Node, NodeId, Position};

use super::runtime::Sim;

/// Every how many entries states are compared: hashing them takes longer than anything else here.
const COMPARE_EVERY: u64 = 8;

/// What a cluster promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// One leader per leader id.
    OneLeader,
    /// Two logs that hold the same entry are the same up to there.
    LogMatching,
    /// What is committed is on the disks of a quorum.
    Quorum,
    /// What is committed stays, and is the same everywhere.
    Committed,
    /// States are equal at the same index.
    SameState,
    /// What was synced is there after a restart.
    Durability,
    /// A node id belongs to one enrolment of one machine.
    IdsUnique,
    /// A policy is committed before it is applied, and applied before it is enforced.
    EnforcedLast,
    /// What was acknowledged is there, once.
    Acknowledged,
    /// A confirmed read sees every write that was acknowledged before it began.
    Linearizable,
    /// A joiner that holds the secret is understood.
    Join,
    /// Nothing panics.
    NoPanic,
    /// When all faults are gone, all nodes agree in bounded time.
    Converges,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invariant::OneLeader => "one leader per leader id",
            Invariant::LogMatching => "log matching",
            Invariant::Quorum => "nothing committed without a quorum",
            Invariant::Committed => "what is committed stays",
            Invariant::SameState => "states are equal at the same index",
            Invariant::Durability => "what was synced is there after a restart",
            Invariant::IdsUnique => "no node id is used again",
            Invariant::EnforcedLast => "enforced ≤ committed",
            Invariant::Acknowledged => "what was acknowledged is there, once",
            Invariant::Linearizable => "a confirmed read sees what was acknowledged",
            Invariant::Join => "a joiner that holds the secret is understood",
            Invariant::NoPanic => "nothing panics",
            Invariant::Converges => "all nodes agree once the faults are gone",
        })
    }
}

type Seen<T = ()> = Result<T, (Invariant, String)>;

/// What was seen so far.
pub struct Observer {
    leaders: BTreeMap<u64, NodeId>,
    /// By index and term: the entry, and the term of the one before it as far as known.
    entries: BTreeMap<(u64, u64), (Digest, Option<u64>)>,
    /// Term of what is committed, by index.
    committed: BTreeMap<u64, u64>,
    last_committed: u64,
    states: BTreeMap<u64, Digest>,
    /// Hash of the policy that was put at an index, as applied states say.
    policies: BTreeMap<u64, [u8; 32]>,
    /// Machine and disk that an id belongs to.
    ids: BTreeMap<NodeId, (usize, u64)>,
    places: Vec<Place>,
}

/// What was last seen on one machine's disk and in its node.
#[derive(Default)]
struct Place {
    node_id: Option<NodeId>,
    position: Option<Position>,
    last: Option<(u64, u64)>,
    /// Entries before this index are on disk.
    flushed: u64,
    /// Terms of the entries that are in the log.
    terms: BTreeMap<u64, u64>,
    voter_sets: Vec<BTreeSet<NodeId>>,
    enforced: Mark,
}

impl Observer {
    /// Has seen nothing.
    pub fn new(machines: usize) -> Self {
        Observer {
            leaders: BTreeMap::new(),
            entries: BTreeMap::new(),
            committed: BTreeMap::new(),
            last_committed: 0,
            states: BTreeMap::new(),
            policies: BTreeMap::new(),
            ids: BTreeMap::new(),
            places: (0..machines).map(|_| Place::default()).collect(),
        }
    }

    /// The newest index that is known to be committed.
    pub fn last_committed(&self) -> u64 {
        self.last_committed
    }

    /// Terms in which somebody led.
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// The voter sets that machines go by.
    pub fn voter_sets(&self) -> Vec<BTreeSet<NodeId>> {
        let sets = self.places.iter().flat_map(|place| &place.voter_sets);
        sets.cloned().collect()
    }

    /// A machine takes part under this id, with its `disk`th disk.
    pub fn belongs(&mut self, node_id: NodeId, machine: usize, disk: u64) -> Seen {
        let owner = *self.ids.entry(node_id).or_insert((machine, disk));
        ensure(owner == (machine, disk), Invariant::IdsUnique, || {
            format!(
                "{node_id} belonged to disk {} of m{} and is used by disk {disk} of m{machine}",
                owner.1, owner.0
            )
        })
    }

    /// A machine's disk was replaced, or put back to what it was.
    pub fn forget(&mut self, machine: usize) {
        self.places[machine] = Place::default();
    }

    /// A node has started from its disk.
    pub fn started(
        &mut self,
        machine: usize,
        node_id: NodeId,
        node: &Node<Sim>,
        store: &Store,
    ) -> Seen {
        let place = &mut self.places[machine];
        let before = (place.node_id == Some(node_id))
            .then(|| (place.flushed, std::mem::take(&mut place.terms)));
        *place = Place {
            node_id: Some(node_id),
            ..Place::default()
        };
        self.look(machine, node, store)?;
        let Some((flushed, terms)) = before else {
            return Ok(());
        };
        let place = &self.places[machine];
        let first = place
            .terms
            .first_key_value()
            .map_or(u64::MAX, |(index, _)| *index);
        let lost = terms.iter().find(|(index, term)| {
            **index < flushed
                && **index >= first.min(place.last.map_or(0, |(last, _)| last + 1))
                && place.terms.get(index) != Some(term)
        });
        ensure(lost.is_none(), Invariant::Durability, || {
            format!("m{machine} had synced entry {lost:?} and has lost it")
        })
    }

    /// Looks at a node after a step of its own.
    pub fn look(&mut self, machine: usize, node: &Node<Sim>, store: &Store) -> Seen {
        let (position, last, flushed) = (node.position(), store.last(), store.flushed());
        let place = &self.places[machine];
        let (same_position, same_log) = (
            place.position == Some(position),
            place.last == last && place.flushed == flushed,
        );
        if same_position && same_log {
            return Ok(());
        }
        if !same_log {
            self.look_at_log(machine, store, last)?;
            self.places[machine].flushed = flushed;
        }
        let before = self.places[machine].position.replace(position);
        if position.leads {
            self.look_at_leader(node.node_id(), position.term)?;
        }
        if before.is_some_and(|before| before.committed != position.committed) || before.is_none() {
            self.look_at_commit(machine, node, before.and_then(|before| before.committed))?;
        }
        let sets = node.voter_sets();
        self.places[machine].voter_sets = sets;
        if before.is_none_or(|before| before.applied != position.applied) {
            self.look_at_state(machine, node)?;
        }
        Ok(())
    }

    fn look_at_leader(&mut self, node_id: NodeId, term: u64) -> Seen {
        let leader = *self.leaders.entry(term).or_insert(node_id);
        ensure(leader == node_id, Invariant::OneLeader, || {
            format!("{leader} and {node_id} both lead term {term}")
        })
    }

    fn look_at_log(&mut self, machine: usize, store: &Store, last: Option<(u64, u64)>) -> Seen {
        let place = &mut self.places[machine];
        let known = place.last.map_or(0, |(index, _)| index);
        place.last = last;
        let Some((last, _)) = last else {
            place.terms.clear();
            return Ok(());
        };
        place.terms.split_off(&(last + 1));
        // Back to an entry that is known already: up to there nothing has changed.
        let mut back = 0;
        let (from, marks) = loop {
            let from = known.min(last).saturating_sub(back);
            let marks = match store.marks(from) {
                Ok(marks) => marks,
                // It has failed, and will be opened anew.
                Err(_) if store.failure().is_some() => return Ok(()),
                Err(error) => {
                    return Err((Invariant::Durability, format!("m{machine}: {error}")));
                }
            };
            let met = |mark: &EntryMark| place.terms.get(&mark.index) == Some(&mark.term);
            let reaches = marks.first().is_none_or(|mark| mark.index > from);
            if from == 0 || reaches || marks.first().is_some_and(met) {
                break (from, marks);
            }
            back = back * 2 + 1;
        };
        let first = marks.first().map_or(last + 1, |mark| mark.index);
        if first > from {
            // The beginning has become a snapshot, which may stand for other entries than those that were here.
            place.terms.clear();
        }
        place.terms.split_off(&first);
        let mut before = first
            .checked_sub(1)
            .and_then(|index| place.terms.get(&index).copied());
        for mark in marks {
            place.terms.insert(mark.index, mark.term);
            let entry = self
                .entries
                .entry((mark.index, mark.term))
                .or_insert((mark.digest, before));
            entry.1 = entry.1.or(before);
            let (digest, earlier) = *entry;
            let same = digest == mark.digest && (before.is_none() || earlier == before);
            ensure(same, Invariant::LogMatching, || {
                format!(
                    "m{machine} holds another entry {} of term {} than was seen before, or another one before it",
                    mark.index, mark.term
                )
            })?;
            before = Some(mark.term);
        }
        Ok(())
    }

    fn look_at_commit(
        &mut self,
        machine: usize,
        node: &Node<Sim>,
        before: Option<(u64, u64)>,
    ) -> Seen {
        let place = &self.places[machine];
        let Some((index, term)) = place.position.and_then(|position| position.committed) else {
            return Ok(());
        };
        if let Some((earlier, earlier_term)) = before {
            let onward = earlier < index || (earlier, earlier_term) == (index, term);
            ensure(onward, Invariant::Committed, || {
                format!(
                    "m{machine} goes back from commit {earlier} of term {earlier_term} to {index} of term {term}"
                )
            })?;
            if earlier == index {
                return Ok(());
            }
        }
        let from = before.map_or(0, |(earlier, _)| earlier + 1);
        // A log that does not hold the entry itself is about to give way to a snapshot: what it holds is not meant.
        let holds = place.terms.get(&index) == Some(&term);
        let below = place.terms.range(from..index).filter(|_| holds);
        for (at, term) in below.chain([(&index, &term)]) {
            let kept = *self.committed.entry(*at).or_insert(*term);
            ensure(kept == *term, Invariant::Committed, || {
                format!(
                    "m{machine} commits entry {at} of term {term}; it was committed with term {kept}"
                )
            })?;
        }
        if index <= self.last_committed {
            return Ok(());
        }
        self.last_committed = index;
        // A change of the voters may have been taken in the same step: the sets before it count as well.
        let enough = |sets: &[BTreeSet<NodeId>]| {
            !sets.is_empty()
                && sets.iter().all(|set| {
                    let holders = set.iter().filter(|id| self.holds(**id, index, term));
                    holders.count() > set.len() / 2
                })
        };
        let now = node.voter_sets();
        ensure(
            enough(&now) || enough(&place.voter_sets),
            Invariant::Quorum,
            || {
                format!(
                    "m{machine} takes entry {index} of term {term} for committed; voters are {now:?}"
                )
            },
        )
    }

    /// Whether a member has this entry on its disk, as last seen.
    fn holds(&self, node_id: NodeId, index: u64, term: u64) -> bool {
        self.places.iter().any(|place| {
            place.node_id == Some(node_id)
                && index < place.flushed
                && (place.terms.get(&index) == Some(&term)
                    // Behind a snapshot.
                    || place.terms.first_key_value().is_none_or(|(first, _)| index < *first))
        })
    }

    fn look_at_state(&mut self, machine: usize, node: &Node<Sim>) -> Seen {
        let state = node.state();
        let index = state.index();
        ensure(index <= self.last_committed, Invariant::Committed, || {
            format!(
                "m{machine} has applied entry {index}, committed are {}",
                self.last_committed
            )
        })?;
        if let Some(policy) = state.policy() {
            let kept = *self.policies.entry(policy.index).or_insert(policy.hash.0);
            ensure(kept == policy.hash.0, Invariant::SameState, || {
                format!("m{machine} has another policy of entry {}", policy.index)
            })?;
        }
        if index.is_multiple_of(COMPARE_EVERY) {
            self.compare(machine, index, state.hash())?;
        }
        Ok(())
    }

    /// Compares a state with what others had at that index.
    pub fn compare(&mut self, machine: usize, index: u64, hash: Digest) -> Seen {
        let kept = *self.states.entry(index).or_insert(hash);
        ensure(kept == hash, Invariant::SameState, || {
            format!("m{machine} has another state at index {index}")
        })
    }

    /// A dataplane runs on this policy from now on.
    pub fn enforces(&mut self, machine: usize, mark: &Mark) -> Seen {
        let committed = self.last_committed;
        ensure(mark.index <= committed, Invariant::EnforcedLast, || {
            format!(
                "m{machine} enforces entry {}, committed are {committed}",
                mark.index
            )
        })?;
        ensure(
            self.policies.get(&mark.index) == Some(&mark.hash),
            Invariant::EnforcedLast,
            || {
                format!(
                    "m{machine} enforces something that entry {} is not",
                    mark.index
                )
            },
        )?;
        let earlier = std::mem::replace(&mut self.places[machine].enforced, *mark);
        ensure(earlier.index <= mark.index, Invariant::EnforcedLast, || {
            format!(
                "m{machine} goes back from policy {} to {}",
                earlier.index, mark.index
            )
        })
    }
}

fn ensure(holds: bool, invariant: Invariant, detail: impl FnOnce() -> String) -> Seen {
    if holds {
        Ok(())
    } else {
        Err((invariant, detail()))
    }
}
