//! What a node says of itself and knows of the others. Plain data, for readiness, stats and logs.

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, Digest, Lineage, NodeId};
use crate::state::{PolicyRevision, State};

/// A policy at one of the four stations committed ≥ applied ≥ compiled ≥ enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyMark {
    /// Log index at which this policy was put; 0 for none.
    pub index: u64,
    /// Its revision.
    pub revision: u64,
    /// SHA-256 of the document.
    pub hash: Digest,
    /// The history that index and revision count in; zero from a version that did not say.
    #[serde(default, skip_serializing_if = "is_unsaid")]
    pub lineage: Lineage,
}

fn is_unsaid(lineage: &Lineage) -> bool {
    *lineage == Lineage::default()
}

impl PolicyMark {
    /// The mark of a revision that `state` holds.
    pub fn of(state: &State, policy: &PolicyRevision) -> Self {
        PolicyMark {
            index: policy.index,
            revision: policy.revision,
            hash: policy.hash,
            lineage: state.lineage().unwrap_or_default(),
        }
    }

    /// Whether a station that stands here has come as far as `wanted`. An index of another history says nothing: what a
    /// node enforces from before a recovery is not the policy, however high its revision.
    pub fn reaches(&self, wanted: &PolicyMark) -> bool {
        let same_history = self.lineage == wanted.lineage || is_unsaid(&self.lineage);
        same_history
            && (self.index > wanted.index
                || (self.index == wanted.index && self.hash == wanted.hash))
    }
}

/// What a node tells the leader about itself, when it changes and every 500 ms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeReport {
    /// Version of the program.
    pub version: String,
    /// Where its management API listens, `host:port`.
    pub http_address: String,
    /// Dataplane mode, as named in the configuration.
    pub mode: String,
    /// Hash of the configuration that it runs with.
    pub configuration_hash: String,
    /// Newest policy in its state.
    pub applied: PolicyMark,
    /// Newest policy that compiled.
    pub compiled: PolicyMark,
    /// Newest policy that every packet worker runs on.
    pub enforced: PolicyMark,
    /// Why the newest policy did not compile.
    pub compile_error: Option<String>,
    /// `/ready`.
    pub ready: bool,
    /// `/ready/traffic`.
    pub ready_traffic: bool,
    /// Names of the checks that fail.
    pub failing_checks: Vec<String>,
    /// Why the node is in quarantine.
    pub quarantine: Option<String>,
    /// Its disk has room for votes and membership only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub storage_full: bool,
    /// When its certificate ends, milliseconds since 1970.
    pub certificate_expires_ms: Option<u64>,
    /// Its wall clock when it reported, milliseconds since 1970.
    pub wall_clock_ms: u64,
    /// Its boot.
    pub incarnation: u64,
    /// What it trusts and shows.
    #[serde(default, skip_serializing_if = "TrustReport::is_empty")]
    pub trust: TrustReport,
    /// It refuses new flows, and the last one that it had has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

/// What a node says of its keys and of the authorities that it goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustReport {
    /// The public key that secrets are wrapped for (X25519); empty from a version that has none.
    #[serde(with = "serde_bytes")]
    pub sealing_key: Vec<u8>,
    /// SHA-256 of the certificate of each cluster CA that it trusts.
    pub authorities: Vec<Digest>,
    /// SHA-256 of the certificate that it shows.
    pub certificate: Option<Digest>,
}

impl TrustReport {
    fn is_empty(&self) -> bool {
        *self == TrustReport::default()
    }
}

/// What a node is now, by what it heard within the effective detection time; never by what it believes of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A quorum acknowledges this node.
    Leader {
        /// Its term.
        term: u64,
    },
    /// This node hears from a leader.
    Follower {
        /// Who leads.
        leader_id: NodeId,
        /// Where the leader's cluster listener is, `host:port`.
        leader_address: String,
        /// Where the leader's management API is, `host:port`; empty while unknown.
        leader_http: String,
    },
    /// Neither.
    NoLeader {
        /// Why not.
        reason: NoLeader,
    },
}

/// Why a node has no leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NoLeader {
    /// Nothing was heard since start.
    #[error("no leader was heard from since start")]
    Starting,
    /// This node was the leader but no quorum answers it.
    #[error("this node leads but no quorum acknowledges it")]
    QuorumLost,
    /// The leader has gone silent.
    #[error("the leader has gone silent")]
    LeaderSilent,
    /// An election is under way.
    #[error("an election is under way")]
    Electing,
    /// This node was not admitted to a cluster yet.
    #[error("this node is not a member yet")]
    NotMember,
    /// This node was removed from the cluster.
    #[error("this node was removed from the cluster")]
    Removed,
    /// The control plane has stopped after a fault of its storage, and must be restarted from disk.
    #[error("the control plane has stopped")]
    Stopped,
}

/// What a member is in consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// It leads.
    Leader,
    /// It follows and votes.
    Follower,
    /// It follows and does not vote.
    Learner,
    /// It has an id but is not in the consensus group yet.
    Joining,
}

/// A member, as the leader sees it (or saw it last, on a node that is not the leader).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub node_id: NodeId,
    /// Its host name.
    pub name: String,
    /// Where its cluster listener is, `host:port`.
    pub address: String,
    /// Where its management API is, `host:port`; empty while unknown.
    pub http_address: String,
    /// What it is in consensus.
    pub role: MemberRole,
    /// Whether it votes.
    pub voter: bool,
    /// Asked to leave.
    pub leaving: bool,
    /// It answered the leader within 1.5 s, and is not quarantined.
    pub live: bool,
    /// Time since it last answered the leader; none: not since this leader leads.
    pub last_contact_ms: Option<u64>,
    /// Newest log index known to be on its disk.
    pub matched_index: u64,
    /// Newest log index that it says it has applied.
    pub applied_index: u64,
    /// Entries that it is behind the leader's log.
    pub lag: u64,
    /// Index of the last comparison of its state with the others' that it has passed; none: none yet under this leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_index: Option<u64>,
    /// What it last reported of itself; none: nothing yet.
    pub report: Option<NodeReport>,
    /// Its wall clock less the leader's when its last report came, the way there included, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
}

/// A node's view of itself and the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// The cluster, once known.
    pub cluster_id: Option<ClusterId>,
    /// Its lineage, once known.
    pub lineage: Option<Lineage>,
    /// What this node is.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Last index in this node's log.
    pub last_index: u64,
    /// Newest index that this node knows to be committed.
    pub committed_index: u64,
    /// Newest index in this node's state.
    pub applied_index: u64,
    /// Last index that is in a snapshot on disk.
    pub snapshot_index: u64,
    /// The commit index that a leader has confirmed since this boot and within the effective detection time. Nothing
    /// else makes a node's state known to be fresh: it is, once `applied_index` has reached this.
    pub confirmed_index: Option<u64>,
    /// Time since the leader (or, on the leader, a quorum) was last heard from; none: never.
    pub leader_contact_ms: Option<u64>,
    /// Feature level in force in this node's state.
    pub feature_level: u32,
    /// Members that may fail now without losing quorum; none on a node that does not know.
    pub failure_tolerance: Option<u32>,
    /// How long a leader's silence goes unnoticed at most, in milliseconds.
    pub detection_time_ms: u64,
    /// Why this node is not a member in good standing; none: it is.
    pub quarantine: Option<String>,
    /// Index at which this node's state was last found equal to the others'; none: not yet under this leader. A check that
    /// could not be made does not count.
    pub state_checked_index: Option<u64>,
    /// This node's disk has room for votes and membership only: while it leads, changes are refused.
    pub storage_full: bool,
}

/// Where consensus stands on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Current term.
    pub term: u64,
    /// Whether this node holds itself to be the leader of that term, acknowledged or not.
    pub leads: bool,
    /// Newest entry that this node knows to be committed, as index and term.
    pub committed: Option<(u64, u64)>,
    /// Newest index in this node's state.
    pub applied: u64,
}

impl From<crate::replay::Mark> for PolicyMark {
    fn from(mark: crate::replay::Mark) -> Self {
        PolicyMark {
            index: mark.index,
            revision: mark.revision,
            hash: Digest(mark.hash),
            lineage: mark.lineage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(lineage: u64, index: u64, hash: u8) -> PolicyMark {
        PolicyMark {
            index,
            revision: index,
            hash: Digest([hash; 32]),
            lineage: Lineage(lineage),
        }
    }

    #[test]
    fn a_policy_is_reached_in_its_own_history_only() {
        let wanted = mark(1, 7, 7);
        for (station, expected) in [
            (mark(1, 7, 7), true),
            (mark(1, 8, 8), true),
            (mark(1, 6, 6), false),
            (mark(1, 7, 8), false),
            // Higher, and of the history before a recovery.
            (mark(2, 9, 9), false),
            // An older version does not say.
            (mark(0, 7, 7), true),
        ] {
            assert_eq!(station.reaches(&wanted), expected, "{station:?}");
        }
    }
}
