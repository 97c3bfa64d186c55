//! Counters of this node, and the cluster as this node sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::recovery::BackupStats;

/// Answer of `GET /api/v1/stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsSnapshot {
    /// Packets and flows of this node.
    pub dataplane: DataplaneStats,
    /// The DNS proxy of this node.
    pub dns: DnsStats,
    /// TLS decisions of this node.
    pub tls: TlsStats,
    /// Address leases of this node.
    pub dhcp: DhcpStats,
    /// Consensus, and every member.
    pub cluster: ClusterStats,
    /// Scheduled backups of this node; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupStats>,
}

/// Packets and flows of this node since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataplaneStats {
    /// Flows that are tracked now.
    pub active_flows: u64,
    /// Translations that are held now.
    pub active_nat_entries: u64,
    /// Flows opened.
    pub flows_opened: u64,
    /// Flows closed, for whatever reason.
    pub flows_closed: u64,
    /// Share of the ports of all translation addresses of a family that one protocol uses, 0 to 1; of families and
    /// protocols, the largest. Up to 10 s old.
    pub nat_port_utilization: f64,
    /// IPv4 fragments dropped.
    pub ipv4_fragments_dropped: u64,
    /// Packets whose time to live ended here.
    pub ipv4_ttl_exceeded: u64,
    /// Packets by verdict.
    pub packets: DecisionCounters,
    /// Bytes by verdict.
    pub bytes: DecisionCounters,
    /// Dropped packets by reason; reasons that never happened are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
    /// Packet workers.
    #[serde(default)]
    pub workers: u64,
}

/// A count by verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionCounters {
    /// Forwarded.
    pub allow: u64,
    /// Denied by policy.
    pub deny: u64,
    /// Passed while TLS metadata was awaited.
    pub pending_tls: u64,
}

/// The DNS proxy of this node since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsStats {
    /// Queries allowed.
    pub queries_allow: u64,
    /// Queries denied.
    pub queries_deny: u64,
    /// Names denied by policy.
    pub nxdomain_policy: u64,
    /// Names that do not exist.
    pub nxdomain_upstream: u64,
}

/// TLS decisions of this node since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TlsStats {
    /// Allowed.
    pub allow: u64,
    /// Denied.
    pub deny: u64,
}

/// Address leases of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DhcpStats {
    /// Whether every data port that asks for a lease holds one; false where none asks.
    pub lease_active: bool,
    /// When the first of them ends, seconds since 1970; 0 without one, or if it never ends.
    pub lease_expiry_epoch: u64,
    /// The data ports that get their addresses by themselves; left out where all are configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortAddresses>,
}

/// What a data port without configured addresses has got from DHCP and router advertisements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortAddresses {
    /// `data` on a node with one arm, else `inside` or `outside`.
    pub port: String,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// Default routers, at most one of each family.
    pub gateways: Vec<String>,
    /// Name servers that the DHCP server names. The node does not use them.
    pub dns: Vec<String>,
    /// The DHCP server that leased the IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// When the lease ends, seconds since 1970; absent without one, or if it never ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expiry_epoch: Option<u64>,
    /// Why the port has no address, if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Consensus as the answering node sees it. The members' figures are the leader's, half a second old
/// at most, on every node that hears from it; without a leader, what is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStats {
    /// Whether the answering node leads.
    pub is_leader: bool,
    /// Raft term.
    pub current_term: u64,
    /// Last index in the answering node's log.
    pub last_log_index: u64,
    /// Last index it has applied.
    pub last_applied: u64,
    /// Members that are not removed.
    pub node_count: u64,
    /// Those besides the leader.
    pub follower_count: u64,
    /// Of these, how many have all that is committed.
    pub followers_caught_up: u64,
    /// The members.
    pub nodes: Vec<ClusterNodeCatchup>,
    /// The answering node.
    #[serde(default)]
    pub node_id: String,
    /// The leader that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_id: Option<String>,
    /// How many members may fail now with writes going on; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_tolerance: Option<u64>,
    /// How long the answering node would need at most to notice that its leader is lost, in milliseconds. It follows the
    /// longest round trip and the disks.
    #[serde(default)]
    pub detection_time_ms: u64,
    /// The cluster.
    #[serde(default)]
    pub cluster_id: String,
    /// Generation of the cluster's history.
    #[serde(default)]
    pub lineage: String,
    /// Newest policy revision that the answering node has applied.
    #[serde(default)]
    pub policy_revision: u64,
    /// Feature level in force: what all members may write.
    #[serde(default)]
    pub feature_level: u64,
    /// Highest feature level that the answering node supports.
    #[serde(default)]
    pub feature_level_supported: u64,
    /// Members that hold that level back, each with the reason; empty while it rises or is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feature_level_held_back_by: Vec<String>,
}

/// One member: how far it is, and what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNodeCatchup {
    /// Its id, 16 hexadecimal digits.
    pub node_id: String,
    /// `host:port` at which its peers reach it.
    pub addr: String,
    /// `leader`, `follower`, `learner`.
    pub role: String,
    /// Whether it has all that is committed.
    pub caught_up: bool,
    /// Last index known to be in its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_index: Option<u64>,
    /// How many entries it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_entries: Option<u64>,
    /// Whether it votes.
    #[serde(default)]
    pub voter: bool,
    /// Whether it is live, not quarantined, and enforces the newest policy.
    #[serde(default)]
    pub healthy: bool,
    /// Software version it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Mode of its dataplane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// SHA-256 of its effective configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_hash: Option<String>,
    /// Milliseconds since it last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_contact_ms: Option<u64>,
    /// Last index it has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// Policy revision that it should enforce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_revision: Option<u64>,
    /// SHA-256 of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_hash: Option<String>,
    /// Policy revision that all its packet workers run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_revision: Option<u64>,
    /// SHA-256 of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_hash: Option<String>,
    /// Why the newest policy is not enforced there, if replay failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_failure: Option<String>,
    /// Why it is quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_reason: Option<String>,
    /// Index at which its state was last found equal to the other members'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_checked_index: Option<u64>,
    /// When its certificate ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at: Option<String>,
    /// Its clock less the leader's, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// Host name, for people.
    #[serde(default)]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_snapshot_is_read() {
        let published = r#"{
            "dataplane": {"active_flows":1,"active_nat_entries":2,"flows_opened":3,"flows_closed":4,
              "nat_port_utilization":0.5,"ipv4_fragments_dropped":5,"ipv4_ttl_exceeded":6,
              "packets":{"allow":7,"deny":8,"pending_tls":9},"bytes":{"allow":10,"deny":11,"pending_tls":12}},
            "dns":{"queries_allow":1,"queries_deny":2,"nxdomain_policy":3,"nxdomain_upstream":4},
            "tls":{"allow":1,"deny":2},
            "dhcp":{"lease_active":true,"lease_expiry_epoch":9},
            "cluster":{"is_leader":true,"current_term":1,"last_log_index":2,"last_applied":2,"node_count":1,
              "follower_count":0,"followers_caught_up":0,
              "nodes":[{"node_id":"a","addr":"b","role":"leader","matched_index":2,"lag_entries":0,"caught_up":true}]}}"#;
        let snapshot: StatsSnapshot = serde_json::from_str(published).unwrap();
        assert_eq!(snapshot.dataplane.bytes.deny, 11);
        assert_eq!(snapshot.cluster.nodes[0].matched_index, Some(2));
    }
}
