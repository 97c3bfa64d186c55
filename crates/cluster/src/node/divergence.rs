//! The divergence check: members at the same index must have the same state.
//!
//! Every 60 s, and every 1,000 entries, the leader asks all members for the fingerprint of their state at one index, and
//! compares. Whoever differs from what a majority of the voters has is in quarantine: it is not healthy, leads no more and
//! is not elected, until a later check finds it equal. Its log is as good as anybody's, so it goes on voting and
//! acknowledging, and no majority is lost by it. When no majority agrees, everybody is told and nobody is accused.
//!
//! A check counts only for the members that took part in it: one that did not answer, has not got to the index, or runs
//! another program whose encoding of the state may differ, was not checked, and what is shown is its last passed check.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use openraft::AsyncRuntime;
use openraft::alias::InstantOf;
use openraft::async_runtime::Select2;
use openraft::type_config::TypeConfigExt;
use serde::{Deserialize, Serialize};

use super::{Inner, Node, locked};
use crate::id::{Digest, NodeId};
use crate::raft::Types;
use crate::raft::network::{packed, peer};
use crate::state::State;
use crate::status::Role;
use crate::transport::Kind;

/// Entries after which one is due.
const EVERY_ENTRIES: u64 = 1_000;

/// How soon it is tried again when not every live member could take part.
const RETRY: Duration = Duration::from_secs(5);

/// How often this looks whether one is due.
const LOOK: Duration = Duration::from_millis(500);

/// How long a member may take: a large state takes a moment to hash.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// States are kept at indices that are multiples of this, for members that are not at the same index just now.
const KEEP_EVERY: u64 = 16;

/// How many of them.
const KEPT: usize = 64;

/// What tells one program's encoding of the state from another's: a hash of the sources that make it.
const PROGRAM: &str = env!("NEUWERK_STATE_SOURCE");

/// States of a little while ago. They share nearly everything with the newest one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Album {
    states: Arc<Mutex<VecDeque<State>>>,
}

impl Album {
    /// Takes note of the state after each entry.
    pub(crate) fn note(&self, state: &State) {
        if !state.index().is_multiple_of(KEEP_EVERY) {
            return;
        }
        let mut states = locked(&self.states);
        if states.len() == KEPT {
            states.pop_front();
        }
        states.push_back(state.clone());
    }

    fn at(&self, index: u64) -> Option<State> {
        let states = locked(&self.states);
        states.iter().find(|state| state.index() == index).cloned()
    }
}

/// What the leader asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) index: u64,
    pub(crate) program: String,
}

/// What a member answers; none: it cannot say.
pub(crate) type Fingerprint = Option<Digest>;

/// What the checks of this leader have found.
pub(super) struct Findings<R: AsyncRuntime> {
    /// Members whose state differs, and the index at which it was seen.
    pub(super) diverged: BTreeMap<NodeId, u64>,
    /// The index at which no majority agreed, if that was so at the last check.
    pub(super) undecided: Option<u64>,
    /// The last check that each member has passed.
    pub(super) passed: BTreeMap<NodeId, u64>,
    /// When a check that everybody live took part in was made last.
    complete: Option<(u64, InstantOf<Types<R>>)>,
    tried: Option<InstantOf<Types<R>>>,
}

impl<R: AsyncRuntime> Default for Findings<R> {
    fn default() -> Self {
        Findings {
            diverged: BTreeMap::new(),
            undecided: None,
            passed: BTreeMap::new(),
            complete: None,
            tried: None,
        }
    }
}

/// What the fingerprints at one index say.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// These agree with one another and the others do not agree with them.
    Decided {
        equal: BTreeSet<NodeId>,
        diverged: BTreeSet<NodeId>,
    },
    /// They differ, and no side has a majority of the voters.
    Undecided,
}

fn compare(voters: &BTreeSet<NodeId>, prints: &BTreeMap<NodeId, Digest>) -> Outcome {
    let mut sides: BTreeMap<Digest, BTreeSet<NodeId>> = BTreeMap::new();
    for (id, print) in prints {
        sides.entry(*print).or_default().insert(*id);
    }
    if sides.len() <= 1 {
        return Outcome::Decided {
            equal: prints.keys().copied().collect(),
            diverged: BTreeSet::new(),
        };
    }
    let majority = |side: &&BTreeSet<NodeId>| side.intersection(voters).count() > voters.len() / 2;
    match sides.values().find(majority) {
        Some(equal) => Outcome::Decided {
            equal: equal.clone(),
            diverged: prints
                .keys()
                .filter(|id| !equal.contains(id))
                .copied()
                .collect(),
        },
        None => Outcome::Undecided,
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// The fingerprint of this node's state at an index, hashed where that keeps nobody waiting.
    pub(crate) async fn fingerprint(&self, ask: Ask) -> Fingerprint {
        if ask.program != PROGRAM {
            return None;
        }
        let now = self.state.borrow().clone();
        let state = match now.index() == ask.index {
            true => (*now).clone(),
            false => self.album.at(ask.index)?,
        };
        self.io().run(move || state.fingerprint()).await.ok()
    }

    /// Why this node's state cannot be trusted, by what the leader's checks have found.
    pub(super) fn differing(&self) -> Option<String> {
        let own = self.config.node_id;
        let leads = matches!(self.role(), Role::Leader { .. });
        let view = locked(&self.leader_view);
        let told = view.as_ref().filter(|_| !leads).map(|(view, _)| view);
        let index = match told {
            Some(view) => view.diverged.get(&own).copied(),
            None if leads => locked(&self.findings).diverged.get(&own).copied(),
            None => None,
        }?;
        Some(format!(
            "its state at index {index} differs from that of the majority; to fetch it from the others: {}",
            self.config.refetch
        ))
    }

    /// The last check that a member has passed, as far as this node knows.
    pub(super) fn last_passed(&self) -> Option<u64> {
        let own = self.config.node_id;
        if matches!(self.role(), Role::Leader { .. }) {
            return locked(&self.findings).passed.get(&own).copied();
        }
        let view = locked(&self.leader_view);
        let (view, _) = view.as_ref()?;
        let member = view.members.iter().find(|member| member.node_id == own)?;
        member.checked_index
    }

    /// A node may stand for election once it is sound, and while its state is not known to differ.
    pub(super) fn set_candidacy(&self) {
        let may = self.guard.is_sound() && self.differing().is_none();
        self.raft.runtime_config().elect(may);
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Checks while this node leads, until it stops.
    pub(super) async fn run_divergence(self) {
        let mut stop = self.inner.stop.subscribe();
        let mut led = false;
        loop {
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            let look = Types::<R>::sleep_until(self.inner.next(LOOK));
            if let Select2::First(()) = Types::<R>::select2(stopped, look).await {
                return;
            }
            self.inner.set_candidacy();
            let leads = matches!(self.role(), Role::Leader { .. });
            if leads && !led {
                // What an earlier time as leader has found may no longer be so.
                *locked(&self.inner.findings) = Findings::default();
            }
            led = leads;
            if leads && self.state().is_initialised() {
                if self.is_due() {
                    self.check_states().await;
                }
                self.yield_lead().await;
            }
        }
    }

    fn is_due(&self) -> bool {
        let now = Types::<R>::now();
        let index = self.state().index();
        let findings = locked(&self.inner.findings);
        if findings.tried.is_some_and(|at| now < at + RETRY) {
            return false;
        }
        // Whoever is in quarantine is to come out of it soon.
        let every = match findings.diverged.is_empty() {
            true => self.inner.config.compare_every,
            false => RETRY,
        };
        findings.complete.is_none_or(|(checked, at)| {
            now >= at + every || index / EVERY_ENTRIES > checked / EVERY_ENTRIES
        })
    }

    /// Compares at the index that this node is at, and where that does not reach everybody, at one of a moment ago.
    async fn check_states(&self) {
        locked(&self.inner.findings).tried = Some(Types::<R>::now());
        let index = self.state().index();
        let earlier = index / KEEP_EVERY * KEEP_EVERY;
        for index in [index, earlier] {
            if self.check_at(index).await {
                return;
            }
        }
    }

    /// True if every live member took part.
    async fn check_at(&self, index: u64) -> bool {
        let ask = Ask {
            index,
            program: PROGRAM.into(),
        };
        let own = self.node_id();
        let Some(print) = self.inner.fingerprint(ask.clone()).await else {
            return false;
        };
        let (state, question) = (self.state(), packed(&ask));
        let members = self.inner.leader_members();
        let asking = members.iter().filter(|m| m.node_id != own).map(|member| {
            let peer = peer(&state, member.node_id, &member.address);
            let call = self.inner.transport.call(
                &peer,
                Kind::Fingerprint,
                question.clone(),
                ANSWER_WITHIN,
            );
            async move {
                let answer = Types::<R>::timeout(ANSWER_WITHIN, call).await.ok()?.ok()?;
                let print: Fingerprint = rmp_serde::from_slice(&answer).ok()?;
                Some((peer.node_id, print?))
            }
        });
        let mut prints: BTreeMap<NodeId, Digest> =
            join_all(asking).await.into_iter().flatten().collect();
        prints.insert(own, print);
        let voters = self.inner.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            membership.voter_ids().collect()
        });
        self.take_note(index, &voters, &prints);
        let all = members
            .iter()
            .filter(|member| member.live)
            .all(|member| prints.contains_key(&member.node_id));
        if all {
            locked(&self.inner.findings).complete = Some((index, Types::<R>::now()));
        }
        all
    }

    fn take_note(&self, index: u64, voters: &BTreeSet<NodeId>, prints: &BTreeMap<NodeId, Digest>) {
        let mut findings = locked(&self.inner.findings);
        match compare(voters, prints) {
            Outcome::Undecided => {
                if findings.undecided.is_none() {
                    tracing::warn!(
                        index,
                        "the members' states differ, and no majority agrees: compare them with neuwerk sysdump --cluster"
                    );
                }
                findings.undecided = Some(index);
            }
            Outcome::Decided { equal, diverged } => {
                findings.undecided = None;
                for id in equal {
                    findings.passed.insert(id, index);
                    if findings.diverged.remove(&id).is_some() {
                        tracing::info!(member = %id, index, "a member's state is as the majority's again");
                    }
                }
                for id in diverged {
                    if findings.diverged.insert(id, index).is_none() {
                        tracing::warn!(
                            member = %id,
                            index,
                            next = self.inner.config.refetch,
                            "a member's state differs from the majority's: it is in quarantine; run the next command there"
                        );
                    }
                }
            }
        }
    }

    /// A leader whose own state differs hands over.
    async fn yield_lead(&self) {
        let differs = locked(&self.inner.findings)
            .diverged
            .contains_key(&self.node_id());
        if differs && let Err(error) = self.transfer_leader(None).await {
            tracing::debug!(%error, "this leader's state differs but nobody takes over yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters 1 to `voters`; the members' states as letters, a dot for one that did not take part.
    fn check(voters: u64, states: &str, expected: Option<&[u64]>) {
        let prints = (1..)
            .map(NodeId)
            .zip(states.bytes())
            .filter(|(_, state)| *state != b'.')
            .map(|(id, state)| (id, Digest::of(&[state])))
            .collect();
        let found = match compare(&(1..=voters).map(NodeId).collect(), &prints) {
            Outcome::Undecided => None,
            Outcome::Decided { diverged, .. } => Some(diverged.into_iter().collect::<Vec<_>>()),
        };
        let expected = expected.map(|ids| ids.iter().copied().map(NodeId).collect::<Vec<_>>());
        assert_eq!(found, expected, "{voters} voters: {states}");
    }

    #[test]
    fn whoever_differs_from_the_majority_of_voters_is_accused_and_nobody_else() {
        check(1, "a", Some(&[]));
        check(3, "aaa", Some(&[]));
        check(3, "aab", Some(&[3]));
        check(3, "baa", Some(&[1]));
        check(3, "aa.", Some(&[]));
        check(3, "a..", Some(&[]));
        // A learner does not make a majority, but may differ from one.
        check(3, "aaab", Some(&[4]));
        check(2, "abb", None);
        check(2, "ab", None);
        check(3, "abc", None);
        check(3, "ab.", None);
        check(5, "aabb.", None);
        check(5, "aaabb", Some(&[4, 5]));
    }

    #[test]
    fn states_of_a_moment_ago_are_kept_and_no_more() {
        let album = Album::default();
        let mut state = State::default();
        for index in 1..=3000 {
            state.advance(index);
            album.note(&state);
        }
        assert_eq!(locked(&album.states).len(), KEPT);
        assert_eq!(album.at(2992).map(|state| state.index()), Some(2992));
        assert_eq!(album.at(2993), None);
        assert_eq!(album.at(16), None);
    }
}
