//! Consensus as metrics, read from the node's status at every scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::Role;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
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

impl Collector for ConsensusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let kind = prometheus_client::encoding::EncodeMetric::metric_type(&metric);
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        let ready = |ready: bool| u64::from(ready);
        gauge(
            "neuwerk_ready",
            "1 while GET /ready answers 200",
            ready(self.app.ready().ready),
        )?;
        gauge(
            "neuwerk_ready_traffic",
            "1 while GET /ready/traffic answers 200",
            ready(self.app.ready_traffic().ready),
        )?;
        if let Some(backup) = self.app.backups().stats() {
            if let Some(age_secs) = backup.age_secs {
                gauge(
                    "neuwerk_backup_age_seconds",
                    "Age of this node's last good scheduled backup",
                    age_secs,
                )?;
            }
            gauge(
                "neuwerk_backup_failing",
                "1 while the last attempt at a scheduled backup has failed",
                backup.failure.is_some().into(),
            )?;
        }
        let Some(View { status, newest }) = self.app.control_view() else {
            return Ok(());
        };
        let leads = matches!(status.role, Role::Leader { .. });
        gauge(
            "raft_is_leader",
            "1 on the node that leads and is acknowledged by a quorum",
            leads.into(),
        )?;
        gauge("raft_current_term", "Current term", status.term)?;
        gauge(
            "raft_last_log_index",
            "Last index in this node's log",
            status.last_index,
        )?;
        gauge(
            "raft_last_applied",
            "Last index that this node has applied",
            status.applied_index,
        )?;
        gauge(
            "neuwerk_raft_committed_index",
            "Newest index that this node knows to be committed",
            status.committed_index,
        )?;
        gauge(
            "neuwerk_cluster_quarantined",
            "1 while this node is not a member in good standing; GET /ready says why",
            status.quarantine.is_some().into(),
        )?;
        gauge(
            "neuwerk_cluster_storage_full",
            "1 while this node's disk has room for votes and membership only",
            status.storage_full.into(),
        )?;
        if let Some(index) = status.state_checked_index {
            gauge(
                "neuwerk_state_checked_index",
                "Index at which this node's state was last found equal to the other members'",
                index,
            )?;
        }
        let revision = newest.map_or(0, |policy| policy.revision);
        gauge(
            "neuwerk_policy_revision",
            "Newest policy revision that this node has applied",
            revision,
        )?;
        gauge(
            "neuwerk_cluster_feature_level",
            "Feature level in force: what all members may write",
            status.feature_level.into(),
        )?;
        if let Some(tolerance) = status.failure_tolerance {
            gauge(
                "neuwerk_cluster_failure_tolerance",
                "Members that may fail now without losing the quorum",
                tolerance.into(),
            )?;
        }
        let leader = match status.role {
            Role::Leader { .. } => Some(status.node_id.0),
            Role::Follower { leader_id, .. } => Some(leader_id.0),
            Role::NoLeader { .. } => None,
        };
        let changes = ConstCounter::new(self.leader_changes.seen(leader));
        let kind = prometheus_client::encoding::EncodeMetric::metric_type(&changes);
        let help = "Changes of the leader, as seen at scrapes";
        changes.encode(encoder.encode_descriptor("raft_leader_changes", help, None, kind)?)
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
