//! Whether this node is ready: named checks, each set by the part that it is about.
//!
//! Two checks are not set but derived at every question, because silence changes them: `cluster`
//! and `policy_replication`. They look only at what was heard within the effective detection time,
//! never at what a node believes of itself.

use std::sync::{PoisonError, RwLock};

use api::health::{Check, Ready};
use cluster::{NoLeader, PolicyMark, Role, Status};

/// Checks that some part of the node sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The packet workers run and turn.
    DataplaneRunning,
    /// Addresses, routes and ports are as configured.
    DataplaneConfig,
    /// A policy is in force.
    PolicyReady,
    /// Names resolve and their grants are visible.
    DnsAllowlist,
    /// The TLS service plane runs.
    ServicePlane,
    /// The node is not on its way out.
    Draining,
}

const PARTS: [(Part, &str, &str); 6] = [
    (Part::DataplaneRunning, "dataplane_running", "starting"),
    (Part::DataplaneConfig, "dataplane_config", "starting"),
    (
        Part::PolicyReady,
        "policy_ready",
        "no policy is in force yet",
    ),
    (
        Part::DnsAllowlist,
        "dns_allowlist",
        "no active policy needs it",
    ),
    (
        Part::ServicePlane,
        "service_plane",
        "no active policy needs it",
    ),
    (Part::Draining, "draining", "not draining"),
];

/// What a part says of itself.
#[derive(Clone, Debug)]
struct Said {
    ok: bool,
    detail: String,
}

/// The cluster as this node sees it now.
#[derive(Clone, Debug)]
pub struct View {
    /// Its status.
    pub status: Status,
    /// Newest policy that this node has applied; none: no policy was ever put.
    pub newest: Option<PolicyMark>,
}

/// The checks.
#[derive(Debug)]
pub struct Readiness {
    parts: RwLock<[Said; PARTS.len()]>,
    control: RwLock<Control>,
}

/// What the control plane says of itself, besides its status.
#[derive(Clone, Debug)]
struct Control {
    /// Why there is no control plane, while there is none.
    waiting_for: String,
    /// A member goes on under another lineage, without this node.
    superseded: bool,
    /// The policy that every packet worker runs on; none: not known yet.
    enforced: Option<PolicyMark>,
    /// Why the newest policy is not enforced, if replay failed.
    replay_failure: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        let said = PARTS.map(|(part, _, detail)| Said {
            ok: matches!(
                part,
                Part::DnsAllowlist | Part::ServicePlane | Part::Draining
            ),
            detail: detail.into(),
        });
        Self {
            parts: RwLock::new(said),
            control: RwLock::new(Control {
                waiting_for: "the control plane is starting".into(),
                superseded: false,
                enforced: None,
                replay_failure: None,
            }),
        }
    }
}

impl Readiness {
    /// A part is well; `detail` says what it stands at.
    pub fn set_ok(&self, part: Part, detail: impl Into<String>) {
        self.set(part, true, detail.into());
    }

    /// A part is not well; `detail` says why.
    pub fn set_failed(&self, part: Part, detail: impl Into<String>) {
        self.set(part, false, detail.into());
    }

    fn set(&self, part: Part, ok: bool, detail: String) {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        parts[part as usize] = Said { ok, detail };
    }

    /// Why there is no control plane, for example what enrolment waits for.
    pub fn set_waiting_for(&self, reason: impl Into<String>) {
        self.control_mut(|control| control.waiting_for = reason.into());
    }

    /// Whether a member was met that goes on under another lineage.
    pub fn set_superseded(&self, superseded: bool) {
        self.control_mut(|control| control.superseded = superseded);
    }

    /// How far replay has come.
    pub fn set_enforced(&self, enforced: PolicyMark, failure: Option<String>) {
        self.control_mut(|control| {
            control.enforced = Some(enforced);
            control.replay_failure = failure;
        });
    }

    fn control_mut(&self, change: impl FnOnce(&mut Control)) {
        change(&mut self.control.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Every check. `view` is none while there is no control plane.
    pub fn ready(&self, view: Option<&View>) -> Ready {
        let control = self
            .control
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut checks = self.parts();
        checks.push(cluster_check(&control, view));
        checks.push(replication_check(&control, view));
        Ready::of(checks)
    }

    /// The checks that say whether this node enforces and forwards.
    pub fn ready_traffic(&self) -> Ready {
        Ready::of(self.parts())
    }

    fn parts(&self) -> Vec<Check> {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        let named = PARTS.iter().zip(parts.iter());
        named
            .map(|((_, name, _), said)| check(name, said.ok, said.detail.clone()))
            .collect()
    }
}

fn check(name: &str, ok: bool, detail: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        ok,
        detail: Some(detail.into()).filter(|detail: &String| !detail.is_empty()),
    }
}

/// A member in good standing with a healthy leader.
fn cluster_check(control: &Control, view: Option<&View>) -> Check {
    let name = "cluster";
    let Some(view) = view else {
        return check(name, false, control.waiting_for.clone());
    };
    match (&view.status.role, &view.status.quarantine) {
        // Who is out of the cluster needs no good standing in it.
        (Role::NoLeader { reason }, _) if control.superseded => {
            let remedy = "the cluster was recovered without this node, which becomes a member again with: neuwerk \
                          cluster rejoin";
            check(name, false, format!("{reason}; {remedy}"))
        }
        (Role::NoLeader { reason }, _) if *reason == NoLeader::Removed => {
            let remedy = "to make it a new member: neuwerk cluster rejoin";
            check(name, false, format!("{reason}; {remedy}"))
        }
        (_, Some(reason)) => check(name, false, format!("in quarantine: {reason}")),
        (Role::Leader { .. }, None) => check(name, true, "leads, and a quorum acknowledges it"),
        (Role::Follower { leader_id, .. }, None) => {
            check(name, true, format!("follows {leader_id}"))
        }
        (Role::NoLeader { reason }, None) => check(name, false, reason.to_string()),
    }
}

/// The newest policy up to a commit index that a leader has confirmed since boot is enforced.
fn replication_check(control: &Control, view: Option<&View>) -> Check {
    let name = "policy_replication";
    let Some(view) = view else {
        return check(name, false, control.waiting_for.clone());
    };
    let status = &view.status;
    let Some(confirmed) = status.confirmed_index else {
        return check(
            name,
            false,
            "no leader has confirmed the commit index of late",
        );
    };
    if status.applied_index < confirmed {
        let detail = format!("applied {} of {confirmed}", status.applied_index);
        return check(name, false, detail);
    }
    let Some(newest) = &view.newest else {
        return check(name, true, "no policy was ever put");
    };
    let revision = newest.revision;
    match (&control.enforced, &control.replay_failure) {
        (Some(enforced), _) if enforced.reaches(newest) => check(
            name,
            true,
            format!("enforces revision {}", enforced.revision),
        ),
        (_, Some(failure)) => check(
            name,
            false,
            format!("revision {revision} is not enforced: {failure}"),
        ),
        (enforced, None) => {
            let enforced = match enforced {
                Some(enforced) if enforced.lineage != newest.lineage => {
                    "a policy from before this cluster's history".into()
                }
                Some(enforced) => format!("revision {}", enforced.revision),
                None => "nothing".into(),
            };
            let detail = format!("enforces {enforced}, newest is revision {revision}");
            check(name, false, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Digest, Lineage, NodeId};

    use super::*;

    fn mark(lineage: u64, revision: u64) -> PolicyMark {
        PolicyMark {
            index: revision * 10,
            revision,
            hash: Digest::of(&revision.to_be_bytes()),
            lineage: Lineage(lineage),
        }
    }

    fn view(role: Role, confirmed: bool, newest: Option<u64>) -> View {
        View {
            status: Status {
                node_id: NodeId(1),
                cluster_id: None,
                lineage: None,
                role,
                term: 1,
                last_index: 10,
                committed_index: 10,
                applied_index: 10,
                snapshot_index: 0,
                confirmed_index: confirmed.then_some(10),
                feature_level: 2,
                leader_contact_ms: None,
                failure_tolerance: None,
                detection_time_ms: 600,
                quarantine: None,
                state_checked_index: None,
                storage_full: false,
            },
            newest: newest.map(|revision| mark(1, revision)),
        }
    }

    const LEADER: Role = Role::Leader { term: 1 };

    fn well() -> Readiness {
        let readiness = Readiness::default();
        for part in [
            Part::DataplaneRunning,
            Part::DataplaneConfig,
            Part::PolicyReady,
        ] {
            readiness.set_ok(part, "");
        }
        readiness.set_enforced(mark(1, 3), None);
        readiness
    }

    fn failing(ready: &Ready) -> Vec<&str> {
        ready.failing().map(|check| check.name.as_str()).collect()
    }

    #[test]
    fn a_node_without_a_control_plane_is_not_ready_and_says_why() {
        let readiness = well();
        readiness.set_waiting_for("192.0.2.1:9601 does not answer");
        let ready = readiness.ready(None);
        assert_eq!(failing(&ready), ["cluster", "policy_replication"]);
        assert_eq!(
            ready.checks[6].detail.as_deref(),
            Some("192.0.2.1:9601 does not answer")
        );
        assert!(readiness.ready_traffic().ready);
    }

    #[test]
    fn everything_well() {
        let ready = well().ready(Some(&view(LEADER, true, Some(3))));
        assert!(ready.ready, "{ready:?}");
        assert_eq!(ready.checks.len(), 8);
    }

    #[test]
    fn a_lost_quorum_withdraws_no_traffic() {
        let lost = Role::NoLeader {
            reason: NoLeader::QuorumLost,
        };
        let readiness = well();
        assert_eq!(
            failing(&readiness.ready(Some(&view(lost, true, Some(3))))),
            ["cluster"]
        );
        assert!(readiness.ready_traffic().ready);
    }

    #[test]
    fn a_node_that_was_left_behind_says_what_to_do() {
        let alone = Role::NoLeader {
            reason: NoLeader::Starting,
        };
        let readiness = well();
        readiness.set_superseded(true);
        let mut view = view(alone, false, None);
        view.status.quarantine = Some("nobody answers it".into());
        let ready = readiness.ready(Some(&view));
        let detail = ready.failing().find_map(|check| check.detail.clone());
        let detail = detail.unwrap_or_default();
        assert!(detail.contains("neuwerk cluster rejoin"), "{detail}");
    }

    #[test]
    fn a_removed_node_says_so_in_the_word_that_clients_know() {
        let removed = Role::NoLeader {
            reason: NoLeader::Removed,
        };
        let mut view = view(removed, true, Some(3));
        view.status.quarantine = Some("nobody answers it".into());
        let ready = well().ready(Some(&view));
        let detail = ready.checks[6].detail.as_deref().unwrap_or_default();
        assert!(detail.starts_with(api::health::REMOVED), "{detail}");
        assert!(detail.ends_with(": neuwerk cluster rejoin"), "{detail}");
    }

    #[test]
    fn a_draining_node_takes_no_traffic() {
        let readiness = well();
        readiness.set_failed(Part::Draining, "asked to stop");
        assert_eq!(failing(&readiness.ready_traffic()), ["draining"]);
    }

    #[test]
    fn replication_needs_a_confirmed_commit_index() {
        let ready = well().ready(Some(&view(LEADER, false, Some(3))));
        assert_eq!(failing(&ready), ["policy_replication"]);
    }

    #[test]
    fn replication_needs_everything_applied_and_enforced() {
        let mut behind = view(LEADER, true, Some(3));
        behind.status.applied_index = 9;
        assert_eq!(
            failing(&well().ready(Some(&behind))),
            ["policy_replication"]
        );

        let newer = view(LEADER, true, Some(4));
        assert_eq!(failing(&well().ready(Some(&newer))), ["policy_replication"]);
        let readiness = well();
        readiness.set_enforced(mark(1, 3), Some("rule 7 needs a part".into()));
        let detail = readiness.ready(Some(&newer)).checks[7]
            .detail
            .clone()
            .unwrap();
        assert!(detail.contains("rule 7 needs a part"), "{detail}");
    }

    #[test]
    fn a_policy_from_another_history_is_not_the_newest_however_high_its_revision() {
        let readiness = well();
        readiness.set_enforced(mark(2, 9), None);
        let ready = readiness.ready(Some(&view(LEADER, true, Some(3))));
        assert_eq!(failing(&ready), ["policy_replication"]);
        let detail = ready.checks[7].detail.clone().unwrap();
        assert!(detail.contains("before this cluster's history"), "{detail}");
    }

    #[test]
    fn quarantine_is_not_good_standing() {
        let mut view = view(LEADER, true, Some(3));
        view.status.quarantine = Some("it may have acknowledged more than it has".into());
        let ready = well().ready(Some(&view));
        assert_eq!(failing(&ready), ["cluster"]);
    }
}
