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

use super::autopilot::{self, Candidate, Foresight, Picture, Step, Wish};
use super::report::LIVE_WITHIN;
use super::{Node, locked};
use crate::command::{Command, Response};
use crate::feature::VERSION;
use crate::id::NodeId;
use crate::raft::{Address, Types};
use crate::status::{MemberStatus, Role};

/// How often it looks: when members report, too, so that an idle node is woken for both at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Entries that a learner may be behind and count as caught up.
const CAUGHT_UP_LAG: u64 = 64;

/// What a leader remembers from one look to the next.
struct Watch<R: AsyncRuntime> {
    /// Since when a member has not been live.
    down: BTreeMap<NodeId, InstantOf<Types<R>>>,
    /// The last failure tolerance that was told.
    told: Option<u32>,
    /// The failure tolerance now, and since when.
    tolerance: Option<(u32, InstantOf<Types<R>>)>,
}

impl<R: AsyncRuntime> Watch<R> {
    fn new() -> Self {
        Watch {
            down: BTreeMap::new(),
            told: None,
            tolerance: None,
        }
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Looks after the cluster while this node leads, until it stops.
    pub(super) async fn run_steward(self) {
        let mut stop = self.inner.stop.subscribe();
        let mut led = false;
        let mut supported = None;
        let mut watch = Watch::new();
        loop {
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            let look = Types::<R>::sleep_until(self.inner.next(LOOK_EVERY));
            if let Select2::First(()) = Types::<R>::select2(stopped, look).await {
                return;
            }
            self.bound_log().await;
            self.scrub().await;
            let leads = matches!(self.role(), Role::Leader { .. });
            if !leads && led {
                // What was reported to this node is of no use to its successor.
                locked(&self.inner.reports).clear();
                *locked(&self.inner.tempo) = None;
                watch = Watch::new();
            }
            led = leads;
            if leads && self.state().is_initialised() {
                self.refresh_members().await;
                self.tend_tempo();
                self.tend_trust().await;
                // Without a quorum a change never ends; it is looked at afresh then.
                let limit = self.inner.config.propose_timeout * 2;
                let _ = Types::<R>::timeout(limit, self.reconcile(&mut watch)).await;
                self.raise_feature_level(&mut supported).await;
            } else {
                supported = None;
            }
        }
    }

    /// Takes a snapshot when the commands since the last one have become large, and drops what is in a snapshot where the
    /// entries that are kept behind it are large.
    async fn bound_log(&self) {
        if let Some(excess) = self
            .inner
            .store
            .excess(self.inner.config.snapshot_every_bytes)
        {
            let snapshot = self
                .inner
                .metrics(|metrics| metrics.snapshot.map_or(0, |id| id.index));
            if snapshot > 0 {
                let _ = self
                    .inner
                    .raft
                    .trigger()
                    .purge_log(excess.min(snapshot))
                    .await;
            }
        }
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

    /// Learners that this leader reaches under their advertised address, and that have been caught up without a break
    /// for the configured time.
    fn ready_learners(
        &self,
        members: &[MemberStatus],
        learners: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let now = Types::<R>::now();
        // A report only shows that the member reaches this leader; a heartbeat that it answers, the reverse.
        let answers: BTreeSet<NodeId> = self.inner.metrics(|metrics| {
            let heartbeats = metrics.heartbeat.iter().flatten();
            heartbeats
                .filter(|(_, at)| at.is_some_and(|at| now < at.into_inner() + LIVE_WITHIN))
                .map(|(id, _)| *id)
                .collect()
        });
        let mut reports = locked(&self.inner.reports);
        members
            .iter()
            .filter(|member| learners.contains(&member.node_id))
            .filter(|member| {
                let Some(received) = reports.get_mut(&member.node_id) else {
                    return false;
                };
                let keeps_up = member.live
                    && answers.contains(&member.node_id)
                    && member.matched_index > 0
                    && member.lag < CAUGHT_UP_LAG;
                if !keeps_up {
                    received.caught_up = None;
                    return false;
                }
                let since = *received.caught_up.get_or_insert(now);
                now >= since + self.inner.config.promote_after
            })
            .map(|member| member.node_id)
            .collect()
    }

    /// What the autopilot decides by. `down` tells since when members have not been live.
    fn picture(
        &self,
        members: &[MemberStatus],
        down: &BTreeMap<NodeId, InstantOf<Types<R>>>,
    ) -> Picture {
        let (voters, learners) = self.inner.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            (
                membership.voter_ids().collect::<BTreeSet<_>>(),
                membership.learner_ids().collect::<BTreeSet<_>>(),
            )
        });
        let ready = self.ready_learners(members, &learners);
        let forgetful = self.inner.certainly_forgetful();
        let now = Types::<R>::now();
        let state = self.state();
        let candidate = |status: &MemberStatus| {
            let member = state.member(status.node_id)?;
            // Reserved, and not let in yet.
            if member.standing == crate::state::Standing::Joining {
                return None;
            }
            let candidate = Candidate {
                address: member.addresses.cluster.clone(),
                standing: member.standing,
                suffrage: member.suffrage,
                live: status.live,
                ready: ready.contains(&status.node_id),
                absent: down
                    .get(&status.node_id)
                    .is_some_and(|since| now >= *since + self.inner.config.replace_after),
                matched: status.matched_index,
                forgetful: forgetful.contains(&status.node_id),
            };
            Some((status.node_id, candidate))
        };
        Picture {
            own: self.node_id(),
            members: members.iter().filter_map(candidate).collect(),
            voters,
            learners,
        }
    }

    /// What would become of the voters if `wish` were granted now. Means something on the leader only.
    pub fn foresee(&self, wish: &Wish) -> Foresight {
        let members = self.inner.leader_members();
        autopilot::foresee(self.picture(&members, &BTreeMap::new()), wish)
    }

    /// Tells operators when one more failure would stop changes, and when that is over; not what passes in a moment, as
    /// when a leader has not heard from everybody yet.
    fn tell_tolerance(&self, members: &[MemberStatus], watch: &mut Watch<R>) {
        let now = Types::<R>::now();
        let tolerance = self.inner.failure_tolerance(members);
        let since = match watch.tolerance {
            Some((same, since)) if same == tolerance => since,
            _ => now,
        };
        watch.tolerance = Some((tolerance, since));
        if watch.told == Some(tolerance) || now < since + LIVE_WITHIN {
            return;
        }
        let before = watch.told.replace(tolerance);
        let down: Vec<String> = members
            .iter()
            .filter(|member| member.voter && !member.live)
            .map(|member| member.node_id.to_string())
            .collect();
        if tolerance == 0 && members.len() > 1 {
            tracing::warn!(
                failure_tolerance = tolerance,
                ?down,
                "one more failure stops all changes; the policy stays in force"
            );
        } else if before.is_some() {
            tracing::info!(
                failure_tolerance = tolerance,
                "the number of members that may fail has changed"
            );
        }
    }

    async fn reconcile(&self, watch: &mut Watch<R>) {
        let members = self.inner.leader_members();
        let now = Types::<R>::now();
        watch
            .down
            .retain(|id, _| members.iter().any(|m| m.node_id == *id && !m.live));
        for member in members.iter().filter(|member| !member.live) {
            watch.down.entry(member.node_id).or_insert(now);
        }
        let (settled, joint) = self.inner.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            (
                metrics.membership_config == metrics.committed_membership_config,
                membership.get_joint_config().len() > 1,
            )
        });
        if settled && !joint {
            self.tell_tolerance(&members, watch);
        }
        let picture = self.picture(&members, &watch.down);
        if !settled {
            return;
        }
        if joint {
            // Whoever began this change is gone: its second half is to be made.
            self.change(ChangeMembers::AddVoterIds(BTreeSet::new()))
                .await;
            return;
        }
        let Some(step) = picture.next() else { return };
        tracing::info!(?step, "membership change");
        match step {
            Step::AddLearners(nodes) => {
                let nodes = nodes
                    .into_iter()
                    .map(|(id, cluster)| (id, Address { cluster }))
                    .collect();
                self.change(ChangeMembers::AddNodes(nodes)).await;
            }
            Step::SetVoters(ids) => self.change(ChangeMembers::ReplaceAllVoters(ids)).await,
            Step::Drop(ids) => {
                // Whoever comes in again begins afresh.
                locked(&self.inner.forgetful).retain(|id, _| !ids.contains(id));
                self.change(ChangeMembers::RemoveNodes(ids)).await;
            }
            Step::HandOver(to) => {
                if let Err(error) = self.transfer_leader(Some(to)).await {
                    tracing::warn!(%error, "this leader is not to vote any more but cannot hand over");
                }
            }
            Step::Release(node_id) => {
                match self.propose(Command::ReleaseMember { node_id }).await {
                    Ok(_) => self.inner.transport.forget(node_id),
                    Err(error) => tracing::debug!(%error, "a member could not be released yet"),
                }
            }
        }
    }

    /// Changes Raft's membership; who does not vote any more stays a learner.
    async fn change(&self, changes: ChangeMembers<NodeId, Address>) {
        if let Err(error) = self.inner.raft.change_membership(changes, true).await {
            tracing::warn!(%error, "membership change failed; it will be tried again");
        }
    }
}
