//! Who the caller is, login, and minting on the node itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The caller, as its credential says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthUser {
    /// Subject of the credential.
    pub sub: String,
    /// `admin`, `readonly`.
    pub roles: Vec<String>,
    /// When the credential ends, seconds since 1970; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// Service account that the credential belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sa_id: Option<String>,
}

/// Exchanges a token for a cookie.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenLoginRequest {
    /// The token, bare or with `Bearer ` in front; at most 8192 characters.
    pub token: String,
}

/// Asks a node for a token outside the service accounts. Only its control socket and its cluster
/// listener, under a member's own certificate, answer. Works without a quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MintRequest {
    /// Subject, 1–128 characters.
    pub sub: String,
    /// `admin`, `readonly`; at least one.
    pub roles: Vec<String>,
    /// Lifetime, for example `24h`; default `90d`, at most 10 years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Key to sign with; default: the active one. A retired one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
}

/// A freshly minted token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Minted {
    /// The token itself; it is not kept anywhere.
    pub token: String,
    /// The key that signed it.
    pub kid: String,
    /// Its id.
    pub jti: String,
    /// When it ends, seconds since 1970.
    pub exp: i64,
}

/// A key that signs API tokens, without its private half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SigningKeyView {
    /// The `kid` of the tokens that it signs.
    pub kid: String,
    /// Whether tokens that it signed are good.
    pub status: SigningKeyStatus,
    /// Whether it signs new tokens; one key does.
    pub signs: bool,
    /// RFC 3339.
    pub created_at: String,
    /// When its tokens stopped working, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<String>,
    /// SHA-256 of its public half.
    pub public_key_sha256: String,
}

/// What has become of a signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SigningKeyStatus {
    /// Its tokens are good.
    Active,
    /// Its tokens are not.
    Retired,
}

/// Secrets stay out of logs.
macro_rules! redacted {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}
redacted!(TokenLoginRequest);
redacted!(Minted);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let request = TokenLoginRequest {
            token: "s3cret".into(),
        };
        assert!(!format!("{request:?}").contains("s3cret"));
    }
}
