//! The change log: who changed what, and what happened to the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/cluster/changes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeLog {
    /// The newest ones that match, oldest first.
    pub changes: Vec<ChangeView>,
}

/// One entry of the change log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// Log index. One request may make several entries under one index.
    pub index: u64,
    /// When, by the leader's clock, RFC 3339.
    pub time: String,
    /// On whose behalf: a credential's subject, `root`, or `system` for the cluster itself.
    pub actor: String,
    /// The member at which the request came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// `created`, `changed`, `ended`, or `event`.
    pub action: String,
    /// The kind of record (`policy`, `service_account`, `member` …) or of event (`break_glass` …).
    pub record: String,
    /// Which one: id, revision or name.
    pub subject: String,
    /// More.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
