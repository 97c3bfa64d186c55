//! Members of the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/cluster/members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMembersResponse {
    /// Every member that is not removed.
    pub members: Vec<ClusterMemberView>,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMemberView {
    /// Its id, 16 hexadecimal digits.
    pub node_id: String,
    /// `host:port` at which its peers reach it.
    pub addr: String,
    /// `leader`, `follower`, `learner`.
    pub role: String,
    /// Whether it votes.
    pub is_voter: bool,
    /// What the cloud says of the instance; `unknown` outside one.
    pub cloud_status: String,
    /// Where its drain stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_state: Option<String>,
    /// The cloud's termination event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_event_id: Option<String>,
    /// Why it will be removed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_evict_reason: Option<String>,
    /// Host name, for people.
    #[serde(default)]
    pub name: String,
    /// `host:port` of its management API; empty while unknown.
    #[serde(default)]
    pub http_addr: String,
    /// Whether the answering node counts it as live. Only a leader knows of every member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
    /// Software version it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}
