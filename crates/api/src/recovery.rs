//! Backups, and coming back into a cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a backup. Without either field it is sealed for `cluster.backup.recipient` of the node that is asked.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// Public key to seal it for, `age1…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Passphrase to seal it with instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
}

impl std::fmt::Debug for BackupRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupRequest")
            .field("recipient", &self.recipient)
            .finish_non_exhaustive()
    }
}

/// Scheduled backups of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupStats {
    /// When the last good one was made, RFC 3339; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<String>,
    /// Its age, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_secs: Option<u64>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why the last attempt failed; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Asks a node to put its data aside and to join as a new member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RejoinRequest {
    /// Join listeners to knock at, `host:port`. None: `cluster.join`, or else those of the members that it knew.
    #[serde(default)]
    pub join: Vec<String>,
    /// The cluster's name; needed where the node is a member in good standing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// A node that has put its data aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rejoining {
    /// Who it was, 16 hexadecimal digits; absent if it was nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_node_id: Option<String>,
    /// Where its old data is kept.
    pub kept_at: String,
    /// Where it knocks.
    pub join: Vec<String>,
}
