//! The leader's housekeeping: makes Raft's membership follow the replicated one, and bounds the log by size.
//!
//! Every step is taken again until it is done, by whichever node leads then; each looks at what is there instead of
//! remembering what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::alias::InstantOf;
use openraft::async_runtime::Select2;
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ChangeMembers};

use super::{Node, locked};
use crate::command::{Command, Response};
use crate::feature::VERSION;
use crate::id::NodeId;
use crate::raft::{Address, Types};
use crate::state::{Standing, State};
use crate::status::{MemberStatus, Role};

/// How often it looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Entries that a learner may be behind and count as caught up.
const CAUGHT_UP_LAG: u64 = 64;

/// Voters, at most.
const MAX_VOTERS: usize = 7;

/// The next thing to change about the membership, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Replicate to these.
    AddLearners(BTreeMap<NodeId, String>),
    /// Let these vote.
    Promote(BTreeSet<NodeId>),
    /// Take these out of Raft.
    Drop(BTreeSet<NodeId>),
    /// This leader is to leave: somebody else must lead first.
    HandOver,
    /// This one no longer counts: end its trust.
    Release(NodeId),
}

/// What the decision rests on.
struct Picture<'a> {
    own: NodeId,
    state: &'a State,
    members: &'a [MemberStatus],
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    /// Learners that have been caught up for long enough.
    ready: BTreeSet<NodeId>,
}

impl Picture<'_> {
    fn in_raft(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    fn live(&self, id: NodeId) -> bool {
        self.members
            .iter()
            .any(|member| member.node_id == id && member.live)
    }

    fn next(&self) -> Option<Step> {
        let standing = |id: NodeId| self.state.member(id).map(|member| member.standing);

        let joining: BTreeMap<NodeId, String> = self
            .state
            .members()
            .filter(|member| member.standing == Standing::Member && !self.in_raft(member.node_id))
            .map(|member| (member.node_id, member.addresses.cluster.clone()))
            .collect();
        if !joining.is_empty() {
            return Some(Step::AddLearners(joining));
        }

        let leaving: Vec<NodeId> = self
            .state
            .members()
            .filter(|member| member.standing == Standing::Leaving)
            .map(|member| member.node_id)
            .collect();
        if let Some(out) = leaving.iter().find(|id| !self.in_raft(**id)) {
            return Some(Step::Release(*out));
        }
        if leaving.contains(&self.own) {
            return Some(Step::HandOver);
        }
        // Members that were reserved but never confirmed are not in Raft; what is there without being a member is a
        // leftover of an interrupted removal.
        let out: BTreeSet<NodeId> = self
            .voters
            .union(&self.learners)
            .filter(|id| {
                **id != self.own
                    && standing(**id).is_none_or(|standing| standing == Standing::Leaving)
            })
            .copied()
            .collect();
        if !out.is_empty() {
            let rest: Vec<NodeId> = self.voters.difference(&out).copied().collect();
            // A removal that would leave no quorum of live voters waits until more are back.
            return self.has_quorum(&rest).then_some(Step::Drop(out));
        }

        self.promotion().map(Step::Promote)
    }

    fn has_quorum(&self, voters: &[NodeId]) -> bool {
        let live = voters.iter().filter(|id| self.live(**id)).count();
        !voters.is_empty() && live > voters.len() / 2
    }

    /// One, two or three members all vote; above that voters stay odd, and at most [`MAX_VOTERS`].
    fn promotion(&self) -> Option<BTreeSet<NodeId>> {
        let have = self.voters.len();
        let all = have + self.learners.len();
        let want = match all {
            0..=3 => all,
            _ => (all - 1 + all % 2).min(MAX_VOTERS),
        };
        let mut chosen: Vec<NodeId> = self
            .ready
            .iter()
            .copied()
            .take(want.saturating_sub(have))
            .collect();
        if have + chosen.len() > 3 && (have + chosen.len()).is_multiple_of(2) {
            chosen.pop();
        }
        let voters: Vec<NodeId> = self.voters.iter().chain(&chosen).copied().collect();
        (!chosen.is_empty() && self.has_quorum(&voters)).then(|| chosen.into_iter().collect())
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Looks after the cluster while this node leads, until it stops.
    pub(super) async fn run_steward(self) {
        let mut stop = self.inner.stop.subscribe();
        let mut led = false;
        let mut supported = None;
        loop {
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            if let Select2::First(()) =
                Types::<R>::select2(stopped, Types::<R>::sleep(LOOK_EVERY)).await
            {
                return;
            }
            self.bound_log().await;
            self.scrub().await;
            let leads = matches!(self.role(), Role::Leader { .. });
            if !leads && led {
                // What was reported to this node is of no use to its successor.
                locked(&self.inner.reports).clear();
            }
            led = leads;
            if leads && self.state().is_initialised() {
                self.refresh_members().await;
                self.tend_trust().await;
                // Without a quorum a change never ends; it is looked at afresh then.
                let limit = self.inner.config.propose_timeout * 2;
                let _ = Types::<R>::timeout(limit, self.reconcile()).await;
                self.raise_feature_level(&mut supported).await;
            } else {
                supported = None;
            }
        }
    }

    /// Takes a snapshot when the commands since the last one have become large.
    async fn bound_log(&self) {
        let bytes = &self.inner.unsnapped_bytes;
        if bytes.load(Ordering::Relaxed) > self.inner.config.snapshot_every_bytes {
            bytes.store(0, Ordering::Relaxed);
            // It fails only when consensus has stopped, which is noticed elsewhere.
            let _ = self.inner.raft.trigger().snapshot().await;
        }
    }

    /// Writes down what members say of themselves where it differs from the record.
    async fn refresh_members(&self) {
        let state = self.state();
        let stale: Vec<Command> = locked(&self.inner.reports)
            .iter()
            .filter_map(|(id, received)| {
                let (member, report) = (state.member(*id)?, &received.report);
                let same = member.name == report.name
                    && member.addresses == report.addresses
                    && member.incarnation == report.incarnation
                    && member.feature_level == report.feature_level;
                (!same).then(|| Command::UpdateMember {
                    node_id: *id,
                    name: report.name.clone(),
                    addresses: report.addresses.clone(),
                    incarnation: report.incarnation,
                    feature_level: report.feature_level,
                })
            })
            .collect();
        for command in stale {
            if let Err(error) = self.propose(command).await {
                tracing::debug!(%error, "a member's record could not be updated yet");
            }
        }
    }

    /// Puts the next feature level in force once every member has supported it for the configured time without a break.
    /// `since` is the level that they all support, and from when on.
    async fn raise_feature_level(&self, since: &mut Option<(u32, InstantOf<Types<R>>)>) {
        let level = self.state().feature_level();
        let candidates = self.candidates();
        let supported = candidates.iter().map(|member| member.supported).min();
        let next = supported
            .filter(|next| *next > level)
            .filter(|next| candidates.iter().all(|m| m.objection(*next).is_none()));
        let Some(next) = next else {
            *since = None;
            return;
        };
        let now = Types::<R>::now();
        let (_, first) = *since
            .filter(|(seen, _)| *seen == next)
            .get_or_insert((next, now));
        *since = Some((next, first));
        if now < first + self.inner.config.raise_after {
            return;
        }
        let command = Command::RaiseFeatureLevel {
            level: next,
            version: VERSION.into(),
        };
        match self.propose(command).await.map(|applied| applied.response) {
            Ok(Response::Refused(refusal)) => {
                tracing::debug!(%refusal, "the feature level is not raised yet");
            }
            Ok(_) => tracing::info!(
                level = next,
                "the feature level was raised: every member supports it"
            ),
            Err(error) => tracing::debug!(%error, "the feature level is not raised yet"),
        }
    }

    /// Learners that have been caught up without a break for the configured time.
    fn ready_learners(
        &self,
        members: &[MemberStatus],
        learners: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let now = Types::<R>::now();
        let mut reports = locked(&self.inner.reports);
        members
            .iter()
            .filter(|member| learners.contains(&member.node_id))
            .filter(|member| {
                let Some(received) = reports.get_mut(&member.node_id) else {
                    return false;
                };
                if !member.live || member.matched_index == 0 || member.lag >= CAUGHT_UP_LAG {
                    received.caught_up = None;
                    return false;
                }
                let since = *received.caught_up.get_or_insert(now);
                now >= since + self.inner.config.promote_after
            })
            .map(|member| member.node_id)
            .collect()
    }

    async fn reconcile(&self) {
        let members = self.inner.leader_members();
        let (voters, learners, settled) = self.inner.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            (
                membership.voter_ids().collect::<BTreeSet<_>>(),
                membership.learner_ids().collect::<BTreeSet<_>>(),
                metrics.membership_config == metrics.committed_membership_config
                    && membership.get_joint_config().len() == 1,
            )
        });
        let ready = self.ready_learners(&members, &learners);
        if !settled {
            return;
        }
        let state = self.state();
        let picture = Picture {
            own: self.node_id(),
            state: &state,
            members: &members,
            voters,
            learners,
            ready,
        };
        let Some(step) = picture.next() else { return };
        tracing::info!(?step, "membership change");
        let raft = &self.inner.raft;
        let changed = match step {
            Step::AddLearners(nodes) => {
                let nodes = nodes
                    .into_iter()
                    .map(|(id, cluster)| (id, Address { cluster }))
                    .collect();
                raft.change_membership(ChangeMembers::AddNodes(nodes), true)
                    .await
                    .map(drop)
            }
            Step::Promote(ids) => raft
                .change_membership(ChangeMembers::AddVoterIds(ids), true)
                .await
                .map(drop),
            Step::Drop(ids) => {
                let voters: BTreeSet<NodeId> = ids.intersection(&picture.voters).copied().collect();
                let learners: BTreeSet<NodeId> =
                    ids.intersection(&picture.learners).copied().collect();
                let mut changed = Ok(());
                if !voters.is_empty() {
                    changed = raft
                        .change_membership(ChangeMembers::RemoveVoters(voters), false)
                        .await
                        .map(drop);
                }
                if changed.is_ok() && !learners.is_empty() {
                    changed = raft
                        .change_membership(ChangeMembers::RemoveNodes(learners), false)
                        .await
                        .map(drop);
                }
                changed
            }
            Step::HandOver => {
                if let Err(error) = self.transfer_leader(None).await {
                    tracing::warn!(%error, "this leader is to leave but cannot hand over");
                }
                Ok(())
            }
            Step::Release(node_id) => {
                match self.propose(Command::ReleaseMember { node_id }).await {
                    Ok(_) => self.inner.transport.forget(node_id),
                    Err(error) => tracing::debug!(%error, "a member could not be released yet"),
                }
                Ok(())
            }
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "membership change failed; it will be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Addresses, Certificate, Credential, Reservation, Stamped};
    use crate::id::Digest;
    use crate::status::MemberRole;

    /// A cluster as the leader (member 0) sees it: members by number, each with its standing in state and in Raft.
    struct Scene {
        state: State,
        ids: Vec<NodeId>,
        index: u64,
    }

    impl Scene {
        fn new(size: usize) -> Self {
            let mut scene = Scene {
                state: State::default(),
                ids: vec![NodeId(1)],
                index: 0,
            };
            scene.apply(Command::Init(Box::new(crate::state::tests::init())));
            for n in 1..size {
                let reservation = Reservation {
                    name: String::new(),
                    addresses: Addresses::default(),
                    spki: Digest::of(&[n as u8]),
                    csr: Digest::of(&[n as u8, 1]),
                    credential: Credential::Bootstrap { kid: String::new() },
                };
                let response = scene.apply(Command::ReserveMember(reservation));
                let crate::Response::Reserved { node_id } = response else {
                    panic!("{response:?}")
                };
                scene.ids.push(node_id);
                scene.apply(Command::ConfirmMember {
                    node_id,
                    certificate: Certificate {
                        der: Vec::new(),
                        serial: Vec::new(),
                        not_before_ms: 0,
                        not_after_ms: 0,
                    },
                });
            }
            scene
        }

        fn apply(&mut self, command: Command) -> crate::Response {
            self.index += 1;
            let stamped = Stamped {
                command,
                time_ms: self.index,
                seed: [self.index as u8; 32],
                author: crate::command::Author::default(),
                idempotency_key: None,
                request: None,
            };
            self.state.apply(self.index, stamped)
        }

        fn leave(&mut self, n: usize) {
            let node_id = self.ids[n];
            self.apply(Command::RemoveMember { node_id });
        }

        fn pick(&self, numbers: &[usize]) -> BTreeSet<NodeId> {
            numbers.iter().map(|n| self.ids[*n]).collect()
        }

        /// What comes next with these voters, learners, ready learners and dead members.
        fn next(
            &self,
            voters: &[usize],
            learners: &[usize],
            ready: &[usize],
            dead: &[usize],
        ) -> Option<Step> {
            let dead = self.pick(dead);
            let members: Vec<MemberStatus> = self
                .ids
                .iter()
                .map(|id| MemberStatus {
                    node_id: *id,
                    name: String::new(),
                    address: String::new(),
                    http_address: String::new(),
                    role: MemberRole::Follower,
                    voter: false,
                    leaving: false,
                    live: !dead.contains(id),
                    last_contact_ms: None,
                    matched_index: 0,
                    applied_index: 0,
                    lag: 0,
                    report: None,
                    clock_offset_ms: None,
                })
                .collect();
            Picture {
                own: self.ids[0],
                state: &self.state,
                members: &members,
                voters: self.pick(voters),
                learners: self.pick(learners),
                ready: self.pick(ready),
            }
            .next()
        }
    }

    #[test]
    fn members_are_replicated_to_before_anything_else() {
        let scene = Scene::new(3);
        match scene.next(&[0], &[1], &[1], &[]) {
            Some(Step::AddLearners(nodes)) => assert!(nodes.keys().eq([&scene.ids[2]])),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn voters_stay_odd_above_three_and_at_most_seven() {
        // (voters, members, ready, dead, promoted)
        let all: Vec<usize> = (0..10).collect();
        for (voters, members, ready, dead, promoted) in [
            (1, 2, 1..2, 0..0, 1),
            (1, 3, 1..3, 0..0, 2),
            (1, 3, 1..2, 0..0, 1),
            (2, 3, 2..3, 0..0, 1),
            (3, 4, 3..4, 0..0, 0),
            (3, 5, 3..4, 0..0, 0),
            (3, 5, 3..5, 0..0, 2),
            (3, 6, 3..6, 0..0, 2),
            (3, 10, 3..10, 0..0, 4),
            (7, 10, 7..10, 0..0, 0),
            (3, 3, 0..0, 0..0, 0),
            // Never when the new quorum would not be live.
            (2, 3, 2..3, 1..3, 0),
            (1, 2, 1..2, 1..2, 0),
        ] {
            let scene = Scene::new(members);
            let ready: Vec<usize> = ready.collect();
            let dead: Vec<usize> = dead.collect();
            let step = scene.next(&all[..voters], &all[voters..members], &ready, &dead);
            let count = match &step {
                None => 0,
                Some(Step::Promote(ids)) => ids.len(),
                other => panic!("{other:?}"),
            };
            assert_eq!(
                count, promoted,
                "{voters} of {members}, ready {ready:?}, dead {dead:?}"
            );
        }
    }

    #[test]
    fn a_leaver_leaves_raft_before_its_trust_ends() {
        let mut scene = Scene::new(3);
        scene.leave(2);
        assert_eq!(
            scene.next(&[0, 1, 2], &[], &[], &[]),
            Some(Step::Drop(scene.pick(&[2])))
        );
        assert_eq!(
            scene.next(&[0, 1, 2], &[], &[], &[2]),
            Some(Step::Drop(scene.pick(&[2])))
        );
        assert_eq!(
            scene.next(&[0, 1, 2], &[], &[], &[1]),
            None,
            "too few would be left"
        );
        assert_eq!(
            scene.next(&[0, 1], &[], &[], &[]),
            Some(Step::Release(scene.ids[2]))
        );
    }

    #[test]
    fn a_leader_hands_over_before_it_leaves() {
        let mut scene = Scene::new(2);
        scene.leave(0);
        assert_eq!(scene.next(&[0, 1], &[], &[], &[]), Some(Step::HandOver));
    }

    #[test]
    fn leftovers_of_a_removal_are_taken_out() {
        let mut scene = Scene::new(3);
        scene.leave(2);
        scene.apply(Command::ReleaseMember {
            node_id: scene.ids[2],
        });
        assert_eq!(
            scene.next(&[0, 1], &[2], &[], &[]),
            Some(Step::Drop(scene.pick(&[2])))
        );
        assert_eq!(scene.next(&[0, 1], &[], &[], &[]), None);
    }
}
