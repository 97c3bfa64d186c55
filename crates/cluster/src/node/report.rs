//! What nodes know of one another: each reports to the leader, and the leader answers with what it knows of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::InstantOf;
use openraft::async_runtime::{Instant, Select2};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ServerState};
use serde::{Deserialize, Serialize};

use super::autopilot::tolerance;
use super::tempo::Measured;
use super::{Inner, Node, locked};
use crate::command::Addresses;
use crate::feature::{Candidate, Features};
use crate::id::NodeId;
use crate::raft::Types;
use crate::state::Standing;
use crate::status::{MemberRole, MemberStatus, NodeReport, Position, Role, Status};
use crate::transport::Kind;

/// How often a node reports at least.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// How long a report may take.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);

/// A member is live if it answered the leader within this time.
pub(super) const LIVE_WITHIN: Duration = Duration::from_millis(1500);

/// What a member sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) node: NodeReport,
    pub(crate) applied_index: u64,
    pub(crate) name: String,
    pub(crate) addresses: Addresses,
    pub(crate) incarnation: u64,
    pub(crate) feature_level: u32,
    #[serde(default, skip_serializing_if = "Measured::is_empty")]
    pub(crate) measured: Measured,
}

/// What the leader answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeaderView {
    pub(crate) members: Vec<MemberStatus>,
    pub(crate) failure_tolerance: u32,
    /// Where the machine is that had this identity first, if the one that is answered is a copy of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duplicate_of: Option<String>,
    /// Members whose state differs from the majority's, and the index at which that was seen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) diverged: BTreeMap<NodeId, u64>,
    /// What the one that is answered is to multiply its timers by from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stretch: Option<u32>,
}

/// A report, and when it came.
pub(crate) struct Received<R: AsyncRuntime> {
    pub(crate) report: Report,
    pub(crate) at: InstantOf<Types<R>>,
    /// When the member's present boot first reported.
    pub(crate) since: InstantOf<Types<R>>,
    /// The member's wall clock less this node's when it came.
    pub(crate) clock_offset_ms: i64,
    /// Since when the member has been caught up without a break.
    pub(crate) caught_up: Option<InstantOf<Types<R>>>,
}

impl<R: AsyncRuntime> Node<R> {
    /// Says of this node what the others should know. It goes to the leader at once if it changed.
    pub fn report(&self, report: NodeReport) {
        self.inner.own_report.send_if_modified(|current| {
            // The clock alone is no news; it goes along with the next report.
            let news = NodeReport {
                wall_clock_ms: current.wall_clock_ms,
                ..report.clone()
            } != *current;
            *current = report;
            news
        });
    }

    /// All members. On the leader as it sees them now, elsewhere as the leader last said.
    pub fn members(&self) -> Vec<MemberStatus> {
        if let Role::Leader { .. } = self.role() {
            return self.inner.leader_members();
        }
        let Some((view, at)) = locked(&self.inner.leader_view).clone() else {
            return self.inner.known_members();
        };
        let age = at.elapsed();
        let mut said = view.members;
        for member in &mut said {
            member.last_contact_ms = member.last_contact_ms.map(|ms| ms + millis(age));
        }
        if age < LIVE_WITHIN {
            return said;
        }
        // What a leader said stays true only as long as it is fresh: of what is older, only what members said of
        // themselves is told, and when they were last heard.
        let mut members = self.inner.known_members();
        for member in &mut members {
            if let Some(earlier) = said.iter_mut().find(|m| m.node_id == member.node_id) {
                member.last_contact_ms = earlier.last_contact_ms;
                member.clock_offset_ms = earlier.clock_offset_ms;
                member.report = member.report.take().or(earlier.report.take());
            }
        }
        members
    }

    /// This node's view of itself and the cluster.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let role = self.role();
        let state = self.state();
        let now = Types::<R>::now();
        let (term, last, committed, snapshot, leads, acked, own_commit) =
            inner.metrics(|metrics| {
                (
                    metrics.current_term,
                    metrics.last_log_index.unwrap_or(0),
                    metrics.local_committed.map_or(0, |id| id.index),
                    metrics.snapshot.map_or(0, |id| id.index),
                    metrics.state == ServerState::Leader,
                    metrics.last_quorum_acked.map(|acked| acked.into_inner()),
                    metrics
                        .cluster_committed
                        .filter(|id| id.leader_id.term == metrics.current_term)
                        .map(|id| id.index),
                )
            });
        let contact = locked(&inner.contact).as_ref().map(|c| (c.at, c.confirmed));
        let heard_at = if leads {
            acked
        } else {
            contact.map(|(at, _)| at)
        };
        let confirmed_index = match role {
            Role::Leader { .. } => own_commit,
            Role::Follower { .. } => contact
                .and_then(|(_, confirmed)| confirmed)
                .filter(|(_, at)| now < *at + inner.detection_time())
                .map(|(index, _)| index),
            Role::NoLeader { .. } => None,
        };
        let failure_tolerance = match role {
            Role::Leader { .. } => Some(inner.failure_tolerance(&inner.leader_members())),
            Role::Follower { .. } => locked(&inner.leader_view)
                .as_ref()
                .filter(|(_, at)| now < *at + LIVE_WITHIN)
                .map(|(view, _)| view.failure_tolerance),
            Role::NoLeader { .. } => None,
        };
        Status {
            node_id: self.node_id(),
            cluster_id: state.cluster_id(),
            lineage: state.lineage(),
            role,
            term,
            last_index: last,
            committed_index: committed.max(state.index()),
            applied_index: state.index(),
            snapshot_index: snapshot,
            confirmed_index,
            feature_level: state.feature_level(),
            leader_contact_ms: heard_at.map(|at| millis(now.saturating_duration_since(at))),
            failure_tolerance,
            detection_time_ms: millis(inner.detection_time()),
            quarantine: inner.quarantine(),
            state_checked_index: inner.last_passed(),
            storage_full: !inner.has_room(),
        }
    }

    /// The feature level in force, and what the next one waits for. What other members support is known to the leader,
    /// and by and by to all.
    pub fn features(&self) -> Features {
        let level = self.state().feature_level();
        let supported = self.inner.config.feature_level;
        let held_back_by = match level < supported {
            true => self
                .candidates()
                .iter()
                .filter_map(|member| member.objection(supported))
                .collect(),
            false => Vec::new(),
        };
        Features {
            level,
            supported,
            held_back_by,
        }
    }

    /// What each member supports, as it has said last.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let state = self.state();
        let members = self.members().into_iter();
        members
            .map(|member| Candidate {
                node_id: member.node_id,
                name: member.name,
                version: member
                    .report
                    .map_or_else(String::new, |report| report.version),
                live: member.live,
                supported: state
                    .member(member.node_id)
                    .map_or(0, |member| member.feature_level),
            })
            .collect()
    }

    /// Where consensus stands on this node: cheap, for checks that look at every step.
    pub fn position(&self) -> Position {
        let applied = self.inner.state.borrow().index();
        self.inner.metrics(|metrics| Position {
            term: metrics.current_term,
            leads: metrics.state == ServerState::Leader,
            committed: metrics
                .local_committed
                .map(|id| (id.index, id.leader_id.term)),
            applied,
        })
    }

    /// The sets of voters that this node goes by, each of which must agree: two while a change is under way.
    pub fn voter_sets(&self) -> Vec<BTreeSet<NodeId>> {
        self.inner.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            membership.get_joint_config().clone()
        })
    }

    /// Reports until the node stops.
    pub(super) async fn run_reporter(self) {
        let mut changes = self.inner.own_report.subscribe();
        let mut stop = self.inner.stop.subscribe();
        loop {
            let report = self.inner.own_report();
            match self.role() {
                Role::Leader { .. } => self.inner.receive(self.node_id(), report),
                Role::Follower { .. } => {
                    let body = rmp_serde::to_vec_named(&report)
                        .expect("a report has no value that MessagePack lacks");
                    let sent = Types::<R>::now();
                    // A report that does not arrive is followed by the next one.
                    if let Ok(answer) = self
                        .ask_leader(Kind::Report, body.into(), REPORT_DEADLINE)
                        .await
                        && let Ok(view) = rmp_serde::from_slice::<LeaderView>(&answer)
                    {
                        locked(&self.inner.round_trips).enter(sent.elapsed());
                        if let Some(first) = view.duplicate_of {
                            *locked(&self.inner.duplicate_of) = Some(first);
                            return;
                        }
                        if view.stretch.is_some() {
                            self.inner.retime.send_replace(view.stretch);
                        }
                        *locked(&self.inner.leader_view) = Some((view, Types::<R>::now()));
                    }
                }
                Role::NoLeader { .. } => {}
            }
            let changed = async {
                // The sender lives as long as this node.
                let _ = changes.changed().await;
            };
            let pause = Types::<R>::timeout_at(self.inner.next(REPORT_EVERY), changed);
            let stopped = async {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            if let Select2::First(()) = Types::<R>::select2(stopped, pause).await {
                return;
            }
        }
    }
}

impl<R: AsyncRuntime> Inner<R> {
    fn own_report(&self) -> Report {
        let mut node = self.own_report.borrow().clone();
        node.wall_clock_ms = (self.environment.wall_clock_ms)();
        node.incarnation = self.config.incarnation;
        node.storage_full = !self.has_room();
        node.quarantine = node.quarantine.or_else(|| self.quarantine());
        let mut addresses = self.config.addresses.clone();
        if !node.http_address.is_empty() {
            addresses.http = node.http_address.clone();
        }
        Report {
            node,
            applied_index: self.state.borrow().index(),
            name: self.config.name.clone(),
            addresses,
            incarnation: self.config.incarnation,
            feature_level: self.config.feature_level,
            measured: self.measured(),
        }
    }

    /// Why this node is not a member in good standing, as far as it knows itself; none: it is.
    fn quarantine(&self) -> Option<String> {
        self.forgetting().or_else(|| self.differing())
    }

    /// Keeps a member's report.
    pub(crate) fn receive(&self, from: NodeId, report: Report) {
        let now = Types::<R>::now();
        let mut reports = locked(&self.reports);
        let earlier = reports.get(&from);
        let caught_up = earlier.and_then(|earlier| earlier.caught_up);
        let since = earlier
            .filter(|earlier| earlier.report.incarnation == report.incarnation)
            .map_or(now, |earlier| earlier.since);
        let (theirs, ours) = (
            report.node.wall_clock_ms,
            (self.environment.wall_clock_ms)(),
        );
        reports.insert(
            from,
            Received {
                report,
                at: now,
                since,
                clock_offset_ms: signed_difference(theirs, ours),
                caught_up,
            },
        );
    }

    /// Takes a report from another member and answers with what this leader knows.
    pub(crate) fn answer_report(&self, from: NodeId, body: &[u8]) -> Result<Bytes, String> {
        let report: Report = rmp_serde::from_slice(body).map_err(|error| error.to_string())?;
        if self.state.borrow().member(from).is_none() {
            return Err("not a member".into());
        }
        if !matches!(self.role(), Role::Leader { .. }) {
            return Err("not the leader".into());
        }
        let duplicate_of = self.second_of_two(from, report.incarnation, &report.addresses.cluster);
        // Its address of record follows, once it is committed.
        if duplicate_of.is_none()
            && self
                .state
                .borrow()
                .member(from)
                .is_some_and(|member| member.addresses.cluster != report.addresses.cluster)
        {
            self.relocate(from, &report.addresses.cluster);
        }
        if duplicate_of.is_none() {
            self.receive(from, report);
        }
        let members = self.leader_members();
        // One after the other: none of these locks is taken while another one is held.
        let diverged = locked(&self.findings).diverged.clone();
        let view = LeaderView {
            failure_tolerance: self.failure_tolerance(&members),
            members,
            duplicate_of,
            diverged,
            stretch: self.turn(from),
        };
        Ok(Bytes::from(
            rmp_serde::to_vec_named(&view).expect("a view has no value that MessagePack lacks"),
        ))
    }

    /// Members as the replicated state names them, when no leader has said more.
    fn known_members(&self) -> Vec<MemberStatus> {
        let state = self.state.borrow().clone();
        let voters: Vec<NodeId> =
            self.metrics(|metrics| metrics.membership_config.membership().voter_ids().collect());
        state
            .members()
            .map(|member| {
                let voter = voters.contains(&member.node_id);
                MemberStatus {
                    node_id: member.node_id,
                    name: member.name.clone(),
                    address: member.addresses.cluster.clone(),
                    http_address: member.addresses.http.clone(),
                    role: if voter {
                        MemberRole::Follower
                    } else {
                        MemberRole::Learner
                    },
                    voter,
                    leaving: member.standing == Standing::Leaving,
                    live: false,
                    last_contact_ms: None,
                    matched_index: 0,
                    applied_index: 0,
                    lag: 0,
                    checked_index: None,
                    report: (member.node_id == self.config.node_id).then(|| self.own_report().node),
                    clock_offset_ms: None,
                }
            })
            .collect()
    }

    /// Members as this leader sees them now.
    pub(super) fn leader_members(&self) -> Vec<MemberStatus> {
        let mut members = self.known_members();
        let own = self.config.node_id;
        let now = Types::<R>::now();
        let (last, heartbeat, replication, learners) = self.metrics(|metrics| {
            let learners: Vec<NodeId> = metrics
                .membership_config
                .membership()
                .learner_ids()
                .collect();
            (
                metrics.last_log_index.unwrap_or(0),
                metrics.heartbeat.clone().unwrap_or_default(),
                metrics.replication.clone().unwrap_or_default(),
                learners,
            )
        });
        let applied_here = self.state.borrow().index();
        let forgetful = self.forgetful();
        let (diverged, passed) = {
            let findings = locked(&self.findings);
            (findings.diverged.clone(), findings.passed.clone())
        };
        let own_report = self.own_report().node;
        let reports = locked(&self.reports);
        for member in &mut members {
            let id = member.node_id;
            let received = reports.get(&id);
            member.role = match () {
                () if id == own => MemberRole::Leader,
                () if member.voter => MemberRole::Follower,
                () if learners.contains(&id) => MemberRole::Learner,
                () => MemberRole::Joining,
            };
            member.checked_index = passed.get(&id).copied();
            if id == own {
                member.live = true;
                member.last_contact_ms = Some(0);
                member.matched_index = last;
                member.applied_index = applied_here;
                member.report = Some(own_report.clone());
                member.clock_offset_ms = Some(0);
                continue;
            }
            let acked = heartbeat
                .get(&id)
                .and_then(|at| at.map(|at| at.into_inner()));
            let contact = acked.max(received.map(|received| received.at));
            member.last_contact_ms = contact.map(|at| millis(now.saturating_duration_since(at)));
            member.matched_index = replication
                .get(&id)
                .and_then(|id| id.as_ref().map(|id| id.index))
                .unwrap_or(0);
            member.lag = last.saturating_sub(member.matched_index);
            if let Some(received) = received {
                member.applied_index = received.report.applied_index;
                member.report = Some(received.report.node.clone());
                member.clock_offset_ms = Some(received.clock_offset_ms);
            }
            if let Some(reason) = self.verdict(id, &forgetful, &diverged) {
                member.report.get_or_insert_default().quarantine = Some(reason);
            }
            member.live = contact.is_some_and(|at| now < at + LIVE_WITHIN)
                && member
                    .report
                    .as_ref()
                    .is_none_or(|report| report.quarantine.is_none());
        }
        members
    }

    /// Whether a member is live somewhere else than at `address`, as far as is known: here, or to the leader.
    pub(super) fn is_live_elsewhere(&self, node_id: NodeId, address: &str) -> bool {
        let now = Types::<R>::now();
        let reported = locked(&self.reports).get(&node_id).is_some_and(|received| {
            now < received.at + LIVE_WITHIN && received.report.addresses.cluster != address
        });
        reported
            || locked(&self.leader_view)
                .as_ref()
                .is_some_and(|(view, at)| {
                    let mut members = view.members.iter();
                    now < *at + LIVE_WITHIN
                        && members.any(|m| m.node_id == node_id && m.live && m.address != address)
                })
    }

    /// Whether another boot of a member than `incarnation` has just reported to this leader: it has not ended yet, or two
    /// machines run under one identity.
    pub(super) fn another_runs(&self, node_id: NodeId, incarnation: u64) -> bool {
        let now = Types::<R>::now();
        locked(&self.reports).get(&node_id).is_some_and(|received| {
            now < received.at + LIVE_WITHIN && received.report.incarnation != incarnation
        })
    }

    /// Whether this node's disk has room for more than votes and membership.
    pub(super) fn has_room(&self) -> bool {
        (self.environment.free_bytes)().is_none_or(|free| free >= self.config.reserve_bytes)
    }

    /// Whether this leader and enough others to commit have room.
    pub(super) fn quorum_has_room(&self) -> bool {
        if !self.has_room() {
            return false;
        }
        let full: BTreeSet<NodeId> = locked(&self.reports)
            .iter()
            .filter(|(_, received)| received.report.node.storage_full)
            .map(|(id, _)| *id)
            .collect();
        full.is_empty()
            || self.metrics(|metrics| {
                metrics
                    .membership_config
                    .membership()
                    .get_joint_config()
                    .iter()
                    .all(|voters| voters.difference(&full).count() > voters.len() / 2)
            })
    }

    /// What this leader holds against a member.
    fn verdict(
        &self,
        id: NodeId,
        forgetful: &BTreeSet<NodeId>,
        diverged: &BTreeMap<NodeId, u64>,
    ) -> Option<String> {
        if forgetful.contains(&id) {
            let reason = "it has lost entries that it acknowledged, and begins afresh as a learner";
            return Some(reason.into());
        }
        let index = diverged.get(&id)?;
        Some(format!(
            "its state at index {index} differs from that of the majority"
        ))
    }

    /// Voters that may fail now, beyond those that are down, before quorum is lost.
    pub(super) fn failure_tolerance(&self, members: &[MemberStatus]) -> u32 {
        let live: BTreeSet<NodeId> = members
            .iter()
            .filter(|m| m.live)
            .map(|m| m.node_id)
            .collect();
        self.metrics(|metrics| {
            let memberships = [
                &metrics.membership_config,
                &metrics.committed_membership_config,
            ];
            least_tolerance(
                memberships.map(|of| of.membership().get_joint_config()),
                &live,
            )
        })
    }
}

/// The least of what the voter sets tolerate by which a leader may have to be elected: those of a membership change that
/// is under way, and those before a change that nobody may have but its leader.
fn least_tolerance(memberships: [&Vec<BTreeSet<NodeId>>; 2], live: &BTreeSet<NodeId>) -> u32 {
    let sets = memberships.into_iter().flatten();
    sets.map(|voters| tolerance(voters.len(), voters.intersection(live).count()))
        .min()
        .unwrap_or(0)
}

/// `a` less `b`.
fn signed_difference(a: u64, b: u64) -> i64 {
    let distance = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
    if a < b { -distance } else { distance }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_change_counts_when_it_is_committed() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let (before, after) = (set(&[1, 2, 3]), set(&[1, 2, 3, 4, 5]));
        let joint = vec![before.clone(), after.clone()];
        let (before, after) = (vec![before], vec![after]);
        let live = set(&[1, 2, 4, 5]);
        for (effective, committed, expected) in [
            (&before, &before, 0),
            (&joint, &before, 0),
            (&joint, &joint, 0),
            (&after, &joint, 0),
            (&after, &after, 1),
        ] {
            let told = least_tolerance([effective, committed], &live);
            assert_eq!(told, expected, "{effective:?} after {committed:?}");
        }
        assert_eq!(least_tolerance([&vec![], &vec![]], &live), 0);
    }

    #[test]
    fn clocks_may_differ_either_way() {
        assert_eq!(signed_difference(7, 5), 2);
        assert_eq!(signed_difference(5, 7), -2);
        assert_eq!(signed_difference(0, u64::MAX), -i64::MAX);
    }
}
