//! Service accounts and their tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a credential may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceAccountRole {
    /// Read everything that is not a secret.
    #[default]
    Readonly,
    /// Read and change everything.
    Admin,
}

/// Whether an account's tokens work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceAccountStatus {
    /// They do.
    Active,
    /// None does.
    Disabled,
}

/// Whether a token works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenStatus {
    /// It does, until it expires.
    Active,
    /// It does not.
    Revoked,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceAccount {
    /// Its id, a UUID.
    #[schema(format = "uuid")]
    pub id: String,
    /// Its unique name.
    pub name: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The most that its tokens may do.
    #[serde(default)]
    pub role: ServiceAccountRole,
    /// Whether its tokens work.
    pub status: ServiceAccountStatus,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Subject that created it.
    pub created_by: String,
    /// Counts its changes; what `ETag` is made of.
    #[serde(default)]
    pub revision: u64,
}

/// Creates a service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountCreateRequest {
    /// 1–128 bytes, unique.
    pub name: String,
    /// At most 1024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The most that its tokens may do.
    pub role: ServiceAccountRole,
}

/// Replaces a service account's fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountUpdateRequest {
    /// 1–128 bytes, unique.
    pub name: String,
    /// At most 1024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The most that its tokens may do.
    pub role: ServiceAccountRole,
}

/// Creates a token of a service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountTokenCreateRequest {
    /// Free name, at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lifetime, for example `24h`; default `90d`. Not together with `eternal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Never ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eternal: Option<bool>,
    /// At most the account's; default: the account's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ServiceAccountRole>,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenMeta {
    /// Its id, a UUID; the `jti` of the token.
    #[schema(format = "uuid")]
    pub id: String,
    /// The account that it belongs to.
    #[schema(format = "uuid")]
    pub service_account_id: String,
    /// Free name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it may do.
    #[serde(default)]
    pub role: ServiceAccountRole,
    /// Whether it works.
    pub status: TokenStatus,
    /// The key that signed it.
    pub kid: String,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Subject that created it.
    pub created_by: String,
    /// When it ends, RFC 3339; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When it was revoked, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// When it was last seen, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// A fresh token: the only answer that carries it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceAccountTokenResponse {
    /// The token itself; it is not kept anywhere.
    pub token: String,
    /// The rest.
    pub token_meta: TokenMeta,
}

impl std::fmt::Debug for ServiceAccountTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountTokenResponse")
            .field("token_meta", &self.token_meta)
            .finish_non_exhaustive()
    }
}
