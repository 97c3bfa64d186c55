//! Who should vote: the next step towards it, as a pure function of what the leader sees.
//!
//! One, two or three members all vote. Above that voters stay odd, and at most [`MAX_VOTERS`], so that one more never
//! makes a cluster that survives fewer failures. Whatever differs from the voters that should be is mended by *one*
//! joint change: a pair of learners is promoted together, and a spare takes the place of a voter that has left, was
//! demoted, or has been gone for long, without a moment in between with one voter less.
//!
//! No step is taken whose outcome lacks a live quorum, and none that the cluster decides by itself lowers the number of
//! failures that it survives. What an operator asked for may lower it; whoever asks is told before, by [`foresee`].

use std::collections::{BTreeMap, BTreeSet};

use crate::command::Suffrage;
use crate::id::NodeId;
use crate::state::Standing;

/// Voters, at most.
pub(crate) const MAX_VOTERS: usize = 7;

/// A member as far as voting goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Where its cluster listener is.
    pub(crate) address: String,
    pub(crate) standing: Standing,
    pub(crate) suffrage: Suffrage,
    /// It answers, and is not in quarantine.
    pub(crate) live: bool,
    /// It has been caught up, under its advertised address, for long enough to vote.
    pub(crate) ready: bool,
    /// It has not been live for so long that a spare may take its place.
    pub(crate) absent: bool,
    /// Newest log index known to be on its disk.
    pub(crate) matched: u64,
    /// It has less than it acknowledged to this leader: what it promised before counts for nothing.
    pub(crate) forgetful: bool,
}

/// What a decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    /// The leader.
    pub(crate) own: NodeId,
    /// The members of the replicated state, leaving ones included.
    pub(crate) members: BTreeMap<NodeId, Candidate>,
    /// Raft's voters.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Raft's learners.
    pub(crate) learners: BTreeSet<NodeId>,
}

/// The next thing to change about the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Replicate to these.
    AddLearners(BTreeMap<NodeId, String>),
    /// Let these vote, and nobody else; who voted before goes on as a learner.
    SetVoters(BTreeSet<NodeId>),
    /// Take these learners out of Raft.
    Drop(BTreeSet<NodeId>),
    /// This leader is not to vote any more: the one named must lead first.
    HandOver(NodeId),
    /// This one no longer counts: end its trust.
    Release(NodeId),
}

/// What an operator may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// That a member goes.
    Remove(NodeId),
    /// That members vote, or do not, from now on.
    Suffrage(BTreeMap<NodeId, Suffrage>),
}

/// What would become of the voters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foresight {
    /// Members that may fail now.
    pub tolerance_now: u32,
    /// Members that may fail once it is done.
    pub tolerance_after: u32,
    /// Whether it can be done with the members that are live now.
    pub possible: bool,
    /// The voters afterwards.
    pub voters: BTreeSet<NodeId>,
    /// Members that are not live, of those that would vote.
    pub missing: Vec<NodeId>,
}

/// How many voters there should be among `members`.
fn wanted(members: usize) -> usize {
    match members {
        0..=3 => members,
        _ => (members - 1 + members % 2).min(MAX_VOTERS),
    }
}

/// How many of `live` of `voters` may fail before fewer than a quorum are left.
pub(crate) fn tolerance(voters: usize, live: usize) -> u32 {
    u32::try_from(live.saturating_sub(voters / 2 + 1)).unwrap_or(u32::MAX)
}

impl Picture {
    /// What to do next; none: everything is as it should be, or can be for now.
    pub(crate) fn next(&self) -> Option<Step> {
        let joining: BTreeMap<NodeId, String> = self
            .members
            .iter()
            .filter(|(id, member)| member.standing == Standing::Member && !self.in_raft(**id))
            .map(|(id, member)| (*id, member.address.clone()))
            .collect();
        if !joining.is_empty() {
            return Some(Step::AddLearners(joining));
        }
        let leaving = |id: &NodeId| self.members[id].standing == Standing::Leaving;
        if let Some(out) = self
            .members
            .keys()
            .find(|id| leaving(id) && !self.in_raft(**id))
        {
            return Some(Step::Release(*out));
        }
        if let Some(step) = self.afresh() {
            return Some(step);
        }
        let target = self.target();
        if !target.contains(&self.own)
            && let Some(successor) = self.successor(|id| target.contains(&id))
        {
            return Some(Step::HandOver(successor));
        }
        if target != self.voters && self.is_allowed(&target) {
            return Some(Step::SetVoters(target));
        }
        // Whoever replicates without being a member is a leftover of an interrupted removal.
        let out: BTreeSet<NodeId> = self
            .learners
            .iter()
            .filter(|id| self.members.get(id).is_none_or(|_| leaving(id)))
            .copied()
            .collect();
        (!out.is_empty()).then_some(Step::Drop(out))
    }

    /// A member that has lost what it acknowledged goes out of Raft, to come in again as a learner: never when that
    /// would take the majority. Until it is back an even number may vote.
    fn afresh(&self) -> Option<Step> {
        let forgetful = |id: &&NodeId| {
            **id != self.own && self.members.get(*id).is_some_and(|member| member.forgetful)
        };
        if let Some(id) = self.learners.iter().find(forgetful) {
            return Some(Step::Drop(BTreeSet::from([*id])));
        }
        self.voters.iter().filter(forgetful).find_map(|id| {
            let mut rest = self.voters.clone();
            rest.remove(id);
            // Of all voters, the forgetful one included.
            (self.live_among(&rest) > self.voters.len() / 2).then_some(Step::SetVoters(rest))
        })
    }

    fn in_raft(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    fn is_live(&self, id: NodeId) -> bool {
        id == self.own || self.members.get(&id).is_some_and(|member| member.live)
    }

    /// Whether a member is to stay, and nobody has said that it is not to vote.
    fn may_vote(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| {
            member.standing == Standing::Member && member.suffrage != Suffrage::Learner
        })
    }

    /// Who could lead instead of this leader: the live voter that is furthest, of those that `suit`.
    fn successor(&self, suit: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        self.voters
            .iter()
            .filter(|id| {
                **id != self.own && self.may_vote(**id) && self.is_live(**id) && suit(**id)
            })
            .max_by_key(|id| self.members[id].matched)
            .copied()
    }

    /// Who should vote, out of those that can. Without the leader only where another one of them can lead.
    fn target(&self) -> BTreeSet<NodeId> {
        let must_stay = self.successor(|_| true).is_none();
        let stays = |id: &NodeId| self.may_vote(*id) || (*id == self.own && must_stay);
        let count = |counts: &dyn Fn(&Candidate) -> bool| {
            let members = self.members.iter();
            let counted = members.filter(|(id, member)| {
                stays(id) && self.in_raft(**id) && (**id == self.own || counts(member))
            });
            wanted(counted.count())
        };
        // Members that have been gone for long make no cluster larger; nor do they make it smaller by that alone.
        let size = count(&|member| !member.absent).max(self.voters.len().min(count(&|_| true)));
        let mut ranked: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(id, member)| {
                stays(id) && (self.voters.contains(id) || (member.ready && member.live))
            })
            .map(|(id, _)| *id)
            .collect();
        ranked.sort_by_key(|id| {
            let (member, votes) = (&self.members[id], self.voters.contains(id));
            (
                member.absent && *id != self.own,
                member.suffrage != Suffrage::Voter,
                *id != self.own,
                !(votes && self.is_live(*id)),
                !votes,
                *id,
            )
        });
        ranked.truncate(size);
        if ranked.len() > 3 && ranked.len().is_multiple_of(2) {
            ranked.pop();
        }
        let leads = |id: &NodeId| *id == self.own;
        if !ranked.iter().any(leads) && self.successor(|id| ranked.contains(&id)).is_none() {
            ranked.pop();
            ranked.push(self.own);
        }
        ranked.into_iter().collect()
    }

    fn is_allowed(&self, target: &BTreeSet<NodeId>) -> bool {
        // An operator's word, or the word of one that is gone.
        let asked = self
            .voters
            .iter()
            .any(|id| *id != self.own && !self.may_vote(*id));
        self.has_quorum(&self.voters)
            && self.has_quorum(target)
            && (asked || self.tolerance(target) >= self.tolerance(&self.voters))
    }

    fn has_quorum(&self, voters: &BTreeSet<NodeId>) -> bool {
        !voters.is_empty() && self.live_among(voters) > voters.len() / 2
    }

    fn tolerance(&self, voters: &BTreeSet<NodeId>) -> u32 {
        tolerance(voters.len(), self.live_among(voters))
    }

    fn live_among(&self, voters: &BTreeSet<NodeId>) -> usize {
        voters.iter().filter(|id| self.is_live(**id)).count()
    }

    /// The picture once `step` is done.
    fn after(mut self, step: Step) -> Picture {
        match step {
            Step::AddLearners(nodes) => self.learners.extend(nodes.into_keys()),
            Step::SetVoters(voters) => {
                self.learners.extend(self.voters.difference(&voters));
                self.learners.retain(|id| !voters.contains(id));
                self.voters = voters;
            }
            Step::Drop(out) => {
                self.learners.retain(|id| !out.contains(id));
                // Whoever comes in again begins afresh.
                for id in &out {
                    if let Some(member) = self.members.get_mut(id) {
                        member.forgetful = false;
                    }
                }
            }
            Step::HandOver(successor) => self.own = successor,
            Step::Release(id) => drop(self.members.remove(&id)),
        }
        self
    }
}

/// What would become of the voters if `wish` were granted.
pub(crate) fn foresee(picture: Picture, wish: &Wish) -> Foresight {
    let tolerance_now = picture.tolerance(&picture.voters);
    let mut future = picture;
    match wish {
        Wish::Remove(id) => {
            if let Some(member) = future.members.get_mut(id) {
                member.standing = Standing::Leaving;
            }
        }
        Wish::Suffrage(wanted) => {
            for (id, suffrage) in wanted {
                if let Some(member) = future.members.get_mut(id) {
                    member.suffrage = *suffrage;
                }
            }
        }
    }
    // Each step brings it closer; the bound is for a mistake in that.
    let most = 8 + 4 * future.members.len();
    for _ in 0..most {
        let Some(step) = future.next() else { break };
        future = future.after(step);
    }
    let votes = |id: &NodeId| future.voters.contains(id);
    let possible = match wish {
        Wish::Remove(id) => !future.in_raft(*id),
        Wish::Suffrage(wanted) => wanted.iter().all(|(id, suffrage)| match suffrage {
            Suffrage::Auto => true,
            Suffrage::Voter => votes(id),
            Suffrage::Learner => !votes(id),
        }),
    };
    let missing = future
        .target()
        .into_iter()
        .filter(|id| !future.is_live(*id));
    Foresight {
        tolerance_now,
        tolerance_after: future.tolerance(&future.voters),
        possible,
        missing: missing.collect(),
        voters: future.voters,
    }
}

#[cfg(test)]
mod tests;
