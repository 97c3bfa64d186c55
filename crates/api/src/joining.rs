//! How nodes are let in, and the CA that they are recognised by.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /api/v1/cluster/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreateRequest {
    /// How long it admits members, as `1h`; at most `30d`, by default `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// How many members it admits; 1 to 1000, by default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
}

/// A join token, shown only once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenResponse {
    /// Its id, a UUID.
    #[schema(format = "uuid")]
    pub id: String,
    /// The token: place it as the new node's `bootstrap-token` file.
    pub token: String,
    /// When it ends, RFC 3339.
    pub expires_at: String,
    /// How many members it admits.
    pub uses: u32,
}

/// Whether a join token admits members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinTokenStatus {
    /// It does.
    Active,
    /// Past its time.
    Expired,
    /// All uses are consumed.
    UsedUp,
    /// Ended by an administrator.
    Revoked,
}

impl JoinTokenStatus {
    /// The word in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            JoinTokenStatus::Active => "active",
            JoinTokenStatus::Expired => "expired",
            JoinTokenStatus::UsedUp => "used up",
            JoinTokenStatus::Revoked => "revoked",
        }
    }
}

/// What is known of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenMeta {
    /// Its id, a UUID.
    #[schema(format = "uuid")]
    pub id: String,
    /// Whether it admits members.
    pub status: JoinTokenStatus,
    /// How many members it still admits.
    pub uses_left: u32,
    /// When it ends, RFC 3339.
    pub expires_at: String,
    /// Subject that created it.
    pub created_by: String,
    /// When it was revoked, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
}

/// Whether a node with a valid credential is let in at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinApprovalMode {
    /// At once.
    Auto,
    /// When an administrator approves it.
    Manual,
}

impl JoinApprovalMode {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            JoinApprovalMode::Auto => "auto",
            JoinApprovalMode::Manual => "manual",
        }
    }
}

/// How new members are let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinSettings {
    /// Whether the bootstrap secret admits members.
    pub bootstrap: bool,
    /// Key id of the bootstrap secret, once it was rotated; before that each member goes by its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_kid: Option<String>,
    /// When it was last rotated, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_rotated_at: Option<String>,
    /// Whether a node with a valid credential is let in at once.
    pub approval: JoinApprovalMode,
    /// Ids of the nodes that wait for approval.
    #[serde(default)]
    pub waiting: Vec<String>,
    /// What an operator should change, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<String>,
}

/// Body of `PUT /api/v1/cluster/join`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinSettingsRequest {
    /// Whether the bootstrap secret admits members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<bool>,
    /// Whether a node with a valid credential is let in at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<JoinApprovalMode>,
}

/// A new bootstrap secret, shown only once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootstrapSecretResponse {
    /// Its key id.
    pub kid: String,
    /// The secret: place it as the `bootstrap-token` file of nodes that are to join.
    pub secret: String,
}

/// How far the rotation of the CA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaRotationPhase {
    /// Both CAs are trusted, the old one issues.
    Trusting,
    /// Both CAs are trusted, the new one issues.
    Issuing,
}

/// A rotation of the CA that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaRotationView {
    /// How far it is.
    pub phase: CaRotationPhase,
    /// Whether it goes back to the CA that it began with.
    pub aborting: bool,
    /// When this phase began, RFC 3339.
    pub since: String,
    /// SHA-256 of the other CA's certificate: of the new one while trusting, of the old one while issuing.
    pub other_sha256: String,
    /// Members that it waits for.
    pub pending: Vec<String>,
}

/// The cluster's CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterCaView {
    /// SHA-256 of the certificate of the CA that issues.
    pub sha256: String,
    /// SHA-256 of its public key: what join tokens pin.
    pub key_sha256: String,
    /// The rotation that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<CaRotationView>,
}
