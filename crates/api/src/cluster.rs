//! Members of the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/cluster/members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMembersResponse {
    /// Every member that is not removed.
    pub members: Vec<ClusterMemberView>,
    /// The cluster's name, which is typed out to confirm what endangers the quorum.
    #[serde(default)]
    pub cluster_name: String,
    /// How many members may fail now with writes going on; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_tolerance: Option<u64>,
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
    /// Where its drain stands: `draining` while flows remain, then `drained`; absent while it takes new flows.
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
    /// Whether it was asked to leave, and is still on its way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// `voter` or `learner` where an operator has decided it; absent where the cluster decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
}

/// Request of `POST /api/v1/cluster/members/{node_id}/remove`, `/demote` and `/drain`. May be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveClusterMemberRequest {
    /// Do it although the cluster would survive no failure afterwards, or not before more members are back.
    #[serde(default)]
    pub force: bool,
}

/// Request of `POST /api/v1/cluster/members/{node_id}/promote`. May be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteClusterMemberRequest {
    /// Leave it to the cluster again whether it votes, instead of deciding that it does.
    #[serde(default)]
    pub auto: bool,
    /// As in a removal: handing a decision back may cost a voter too.
    #[serde(default)]
    pub force: bool,
}

/// Request of `PUT /api/v1/cluster/members/voters`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceClusterVotersRequest {
    /// The members that vote from now on; every other member does not.
    pub ids: Vec<String>,
    /// As in a removal.
    #[serde(default)]
    pub force: bool,
}

/// The members that vote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterVotersResponse {
    /// Their ids; once what was asked for is done.
    pub voters: Vec<String>,
}

/// Request of `POST /api/v1/cluster/transfer`. May be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Who is to lead; the voter that is furthest if not said.
    #[serde(default)]
    pub node_id: Option<String>,
}

/// Answer of `POST /api/v1/cluster/transfer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferResponse {
    /// Who leads now.
    pub leader_id: String,
}

/// Request of `POST /api/v1/cluster/preflight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreflightRequest {
    /// `ip:port` of listeners that the answering member is to connect to; 8 at most.
    pub addresses: Vec<String>,
}

/// Answer of `POST /api/v1/cluster/preflight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreflightResponse {
    /// Each address, and what became of connecting to it.
    pub addresses: Vec<Reached>,
    /// The answering member's clock, milliseconds since 1970.
    pub time_ms: u64,
}

/// What became of connecting to an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reached {
    /// The address.
    pub address: String,
    /// Why it was not reached; absent if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}
