//! Consensus as metrics, read from the node's status at every scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::Role;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::http::App;
use crate::readiness::View;

/// Reads the control plane that `app` has now; without one there is nothing to tell.
pub(super) struct ConsensusCollector {
    app: Arc<App>,
    leader_changes: LeaderChanges,
}

/// Counts the leaders that were seen one after another.
#[derive(Debug, Default)]
struct LeaderChanges {
    /// Zero is no member's id in practice; it stands for none seen yet.
    last: AtomicU64,
    changes: AtomicU64,
}

impl LeaderChanges {
    fn seen(&self, leader: Option<u64>) -> u64 {
        if let Some(leader) = leader {
            let last = self.last.swap(leader, Ordering::Relaxed);
            if last != 0 && last != leader {
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.changes.load(Ordering::Relaxed)
    }
}

impl ConsensusCollector {
    /// Registers it.
    pub(super) fn register(registry: &mut Registry, app: Arc<App>) {
        let leader_changes = LeaderChanges::default();
        registry.register_collector(Box::new(Self {
            app,
            leader_changes,
        }));
    }
}

impl std::fmt::Debug for ConsensusCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsensusCollector")
    }
}

/// A value, if there is one now.
type Read<T> = fn(&T) -> Option<u64>;

#[rustfmt::skip] // A table reads better in columns.
const OF_NODE: &[(&str, &str, Read<App>)] = &[
    ("neuwerk_ready",                     "1 while GET /ready answers 200",                         |app| Some(app.ready().ready.into())),
    ("neuwerk_ready_traffic",             "1 while GET /ready/traffic answers 200",                 |app| Some(app.ready_traffic().ready.into())),
    ("neuwerk_backup_age_seconds",        "Age of this node's last good scheduled backup",          |app| app.backups().stats()?.age_secs),
    ("neuwerk_backup_failing",            "1 while the last attempt at a scheduled backup has failed", |app| Some(app.backups().stats()?.failure.is_some().into())),
];

#[rustfmt::skip] // A table reads better in columns.
const OF_MEMBER: &[(&str, &str, Read<View>)] = &[
    ("raft_is_leader",                    "1 on the node that leads and is acknowledged by a quorum", |v| Some(matches!(v.status.role, Role::Leader { .. }).into())),
    ("raft_current_term",                 "Current term",                                           |v| Some(v.status.term)),
    ("raft_last_log_index",               "Last index in this node's log",                          |v| Some(v.status.last_index)),
    ("raft_last_applied",                 "Last index that this node has applied",                  |v| Some(v.status.applied_index)),
    ("neuwerk_raft_committed_index",      "Newest index that this node knows to be committed",      |v| Some(v.status.committed_index)),
    ("neuwerk_cluster_detection_time_milliseconds", "Longest time for which a lost leader goes unnoticed", |v| Some(v.status.detection_time_ms)),
    ("neuwerk_cluster_quarantined",       "1 while this node is not a member in good standing; GET /ready says why", |v| Some(v.status.quarantine.is_some().into())),
    ("neuwerk_cluster_storage_full",      "1 while this node's disk has room for votes and membership only", |v| Some(v.status.storage_full.into())),
    ("neuwerk_state_checked_index",       "Index at which this node's state was last found equal to the other members'", |v| v.status.state_checked_index),
    ("neuwerk_policy_revision",           "Newest policy revision that this node has applied",      |v| Some(v.newest.as_ref().map_or(0, |policy| policy.revision))),
    ("neuwerk_cluster_feature_level",     "Feature level in force: what all members may write",     |v| Some(v.status.feature_level.into())),
    ("neuwerk_cluster_failure_tolerance", "Members that may fail now without losing the quorum",    |v| v.status.failure_tolerance.map(u64::from)),
];

const LEADER_CHANGES: (&str, &str) = (
    "raft_leader_changes",
    "Changes of the leader, as seen at scrapes",
);

/// Name and help of every gauge.
pub(super) fn gauges() -> impl Iterator<Item = (&'static str, &'static str)> {
    let node = OF_NODE.iter().map(|(name, help, _)| (*name, *help));
    node.chain(OF_MEMBER.iter().map(|(name, help, _)| (*name, *help)))
}

/// Name and help of every counter.
pub(super) fn counters() -> [(&'static str, &'static str); 1] {
    [LEADER_CHANGES]
}

fn encode_gauges<T>(
    encoder: &mut DescriptorEncoder,
    table: &[(&str, &str, Read<T>)],
    of: &T,
) -> Result<(), std::fmt::Error> {
    for (name, help, read) in table {
        if let Some(value) = read(of) {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
    }
    Ok(())
}

impl Collector for ConsensusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        encode_gauges(&mut encoder, OF_NODE, &*self.app)?;
        let Some(view) = self.app.control_view() else {
            return Ok(());
        };
        encode_gauges(&mut encoder, OF_MEMBER, &view)?;
        let leader = match view.status.role {
            Role::Leader { .. } => Some(view.status.node_id.0),
            Role::Follower { leader_id, .. } => Some(leader_id.0),
            Role::NoLeader { .. } => None,
        };
        let (name, help) = LEADER_CHANGES;
        let changes = ConstCounter::new(self.leader_changes.seen(leader));
        changes.encode(encoder.encode_descriptor(name, help, None, changes.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_different_leader_is_a_change() {
        let changes = LeaderChanges::default();
        for (leader, expected) in [
            (None, 0),
            (Some(1), 0),
            (None, 0),
            (Some(1), 0),
            (Some(2), 1),
            (Some(1), 2),
        ] {
            assert_eq!(changes.seen(leader), expected);
        }
    }
}
