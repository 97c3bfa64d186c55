//! API tokens: JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037) by a key of the cluster.
//!
//! A token is good while its key is not retired and, if it belongs to a service account, while the
//! replicated state lists it as active and the account as well. So a node can verify, and mint,
//! with no leader at all.

use std::time::Duration;

use cluster::State;
use cluster::command::{AccountStatus, Role, SigningKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Identity, Proof, role_name, role_of_name};

/// `iss` and `aud` of every token.
pub const ISSUER: &str = "neuwerk-api";
/// Lifetime of a token for which none was asked.
pub const DEFAULT_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Longest lifetime that may be asked for: ten years.
pub const MAX_TTL: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// How far clocks may differ, seconds.
pub const SKEW_S: u64 = 60;
/// Longest token that is looked at, bytes.
pub const MAX_TOKEN_BYTES: usize = 8192;
/// Longest subject, bytes.
pub const MAX_SUBJECT_BYTES: usize = 128;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// [`ISSUER`].
    pub aud: String,
    /// Subject.
    pub sub: String,
    /// End, seconds since 1970; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When it was made, seconds since 1970.
    pub iat: u64,
    /// Its id.
    pub jti: String,
    /// The key that signed it.
    pub kid: String,
    /// Service account that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sa_id: Option<Uuid>,
    /// Reserved by the published form; carries no meaning yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// `admin`, `readonly`.
    pub roles: Vec<String>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a token of this kind.
    #[error("the token is malformed")]
    Malformed,
    /// Nobody here knows the key that signed it.
    #[error("the token was signed by an unknown key")]
    UnknownKey,
    /// The key that signed it was retired.
    #[error("the key that signed the token was retired")]
    RetiredKey,
    /// The signature is not the key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// Not for this API.
    #[error("the token is not for this API")]
    Audience,
    /// Past its end.
    #[error("the token has expired")]
    Expired,
    /// Made in the future.
    #[error("the token is not valid yet: compare the clocks")]
    NotYet,
    /// No role that is known.
    #[error("the token carries no known role")]
    NoRole,
    /// The service account or the token is not in this node's state, which may be behind.
    #[error("the token is not known")]
    UnknownRecord,
    /// Revoked.
    #[error("the token was revoked")]
    Revoked,
    /// The account was disabled.
    #[error("the service account is disabled")]
    AccountDisabled,
}

impl Invalid {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Invalid::Malformed => "malformed",
            Invalid::UnknownKey => "unknown_key",
            Invalid::RetiredKey => "retired_key",
            Invalid::Signature => "signature",
            Invalid::Audience => "audience",
            Invalid::Expired => "expired",
            Invalid::NotYet => "not_yet",
            Invalid::NoRole => "no_role",
            Invalid::UnknownRecord => "unknown_record",
            Invalid::Revoked => "revoked",
            Invalid::AccountDisabled => "account_disabled",
        }
    }
}

/// Takes the token out of `Bearer …`, the scheme in any case (RFC 9110 §11.1).
pub fn strip_scheme(text: &str) -> Option<&str> {
    let (scheme, token) = text.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a token says and which key says so, once the signature was found good. Whether it is accepted is up to
/// [`judge`].
pub(super) fn read<'a>(state: &'a State, token: &str) -> Result<(Claims, &'a SigningKey), Invalid> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Invalid::Malformed);
    }
    let kid = &key_id(token)?;
    let record = state.signing_key(kid).ok_or(Invalid::UnknownKey)?;
    if record.retired_ms.is_some() {
        return Err(Invalid::RetiredKey);
    }
    let claims = decode(&record.key, token)?;
    if claims.kid != *kid {
        return Err(Invalid::Malformed);
    }
    Ok((claims, &record.key))
}

/// The id of the key that a token says it was signed with.
///
/// # Errors
/// [`Invalid::Malformed`].
pub fn key_id(token: &str) -> Result<String, Invalid> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Invalid::Malformed)?;
    header.kid.ok_or(Invalid::Malformed)
}

/// Whether what a token says is good at `now_s`, and for what.
pub(super) fn judge(
    state: &State,
    claims: &Claims,
    now_s: u64,
    proof: Proof,
) -> Result<Identity, Invalid> {
    if claims
        .exp
        .is_some_and(|exp| exp.saturating_add(SKEW_S) <= now_s)
    {
        return Err(Invalid::Expired);
    }
    if claims.iat > now_s.saturating_add(SKEW_S) {
        return Err(Invalid::NotYet);
    }
    let mut role = claims
        .roles
        .iter()
        .filter_map(|name| role_of_name(name))
        .max()
        .ok_or(Invalid::NoRole)?;
    if let Some(account) = claims.sa_id {
        role = role.min(account_role(state, account, &claims.jti)?);
    }
    Ok(Identity {
        subject: claims.sub.clone(),
        role,
        expires_s: claims.exp,
        account: claims.sa_id,
        proof,
    })
}

/// What a service account's token may do now.
fn account_role(state: &State, account: Uuid, jti: &str) -> Result<Role, Invalid> {
    let token = Uuid::try_parse(jti).map_err(|_| Invalid::Malformed)?;
    let account_record = state.account(account).ok_or(Invalid::UnknownRecord)?;
    let token_record = state.token(account, token).ok_or(Invalid::UnknownRecord)?;
    if token_record.revoked_ms.is_some() {
        return Err(Invalid::Revoked);
    }
    if account_record.spec.status != AccountStatus::Active {
        return Err(Invalid::AccountDisabled);
    }
    Ok(token_record.spec.role.min(account_record.spec.role))
}

fn decode(key: &SigningKey, token: &str) -> Result<Claims, Invalid> {
    use jsonwebtoken::errors::ErrorKind;

    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[ISSUER]);
    validation.set_required_spec_claims(&["iss", "aud", "sub"]);
    // Time is compared by the caller, whose clock it is.
    validation.validate_exp = false;
    let key = DecodingKey::from_ed_der(&key.public);
    jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .map(|data| data.claims)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => Invalid::Signature,
            ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => Invalid::Audience,
            _ => Invalid::Malformed,
        })
}

/// Signs claims.
///
/// # Errors
/// The stored key cannot be read or used.
pub fn sign(state: &State, key: &SigningKey, claims: &Claims) -> Result<String, MintError> {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(key.kid.clone());
    let private = state.open(&key.key_pkcs8)?;
    let encoding = EncodingKey::from_ed_der(&private);
    jsonwebtoken::encode(&header, claims, &encoding).map_err(|_| MintError::Key {
        kid: key.kid.clone(),
    })
}

/// Why no token was minted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// This node has no signing key yet.
    #[error("this node holds no signing key yet: it has not joined a cluster")]
    NoKey,
    /// No such key.
    #[error("there is no signing key {kid:?}")]
    UnknownKey {
        /// The key asked for.
        kid: String,
    },
    /// The key is retired.
    #[error("the signing key {kid:?} is retired")]
    RetiredKey {
        /// The key asked for.
        kid: String,
    },
    /// The key cannot sign.
    #[error("the signing key {kid:?} cannot be used")]
    Key {
        /// The key.
        kid: String,
    },
    /// The key is sealed, and this node cannot open it now.
    #[error(transparent)]
    Sealed(#[from] cluster::keyring::SealError),
    /// The subject is empty, too long, or has control characters.
    #[error("the subject must have 1 to {MAX_SUBJECT_BYTES} bytes and no control characters")]
    Subject,
    /// No role, or one that is not known.
    #[error("roles must be of admin, readonly: {0:?} is not")]
    Role(String),
    /// Not a lifetime.
    #[error("the lifetime must be between 1s and 3650d, for example 24h")]
    Ttl,
}

/// Mints a token outside the service accounts. It is not recorded, so only retiring its key ends
/// it early; that is why only this node's root and members can ask for it.
///
/// # Errors
/// What is wrong with the request, or that there is no key.
pub fn mint(
    state: &State,
    request: &api::auth::MintRequest,
    jti: Uuid,
    now_s: u64,
) -> Result<api::auth::Minted, MintError> {
    let record = match &request.kid {
        None => state.active_signing_key().ok_or(MintError::NoKey)?,
        Some(kid) => state
            .signing_key(kid)
            .ok_or_else(|| MintError::UnknownKey { kid: kid.clone() })?,
    };
    let key = &record.key;
    if record.retired_ms.is_some() {
        return Err(MintError::RetiredKey {
            kid: key.kid.clone(),
        });
    }
    let subject = request.sub.trim();
    let printable = !subject.chars().any(char::is_control);
    if subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES || !printable {
        return Err(MintError::Subject);
    }
    if let Some(unknown) = request
        .roles
        .iter()
        .find(|name| role_of_name(name).is_none())
    {
        return Err(MintError::Role(unknown.clone()));
    }
    if request.roles.is_empty() {
        return Err(MintError::Role(String::new()));
    }
    let ttl = match &request.ttl {
        None => DEFAULT_TTL,
        Some(text) => parse_ttl(text)?,
    };
    let exp = now_s + ttl.as_secs();
    let claims = Claims {
        iss: ISSUER.into(),
        aud: ISSUER.into(),
        sub: subject.into(),
        exp: Some(exp),
        iat: now_s,
        jti: jti.to_string(),
        kid: key.kid.clone(),
        sa_id: None,
        scope: None,
        roles: request.roles.clone(),
    };
    Ok(api::auth::Minted {
        token: sign(state, key, &claims)?,
        kid: key.kid.clone(),
        jti: claims.jti,
        exp: i64::try_from(exp).unwrap_or(i64::MAX),
    })
}

/// A lifetime between a second and [`MAX_TTL`].
///
/// # Errors
/// [`MintError::Ttl`].
pub fn parse_ttl(text: &str) -> Result<Duration, MintError> {
    api::duration::parse(text)
        .ok()
        .filter(|ttl| (Duration::from_secs(1)..=MAX_TTL).contains(ttl))
        .ok_or(MintError::Ttl)
}

/// The short-lived token with which root on this node, who has none, is known to the leader.
///
/// # Errors
/// There is no key.
pub fn mint_for_control_socket(state: &State, jti: Uuid, now_s: u64) -> Result<String, MintError> {
    let request = api::auth::MintRequest {
        sub: Identity::control_socket().subject,
        roles: vec![role_name(Role::Admin).into()],
        ttl: Some("60s".into()),
        kid: None,
    };
    mint(state, &request, jti, now_s).map(|minted| minted.token)
}

/// A new signing key.
///
/// # Errors
/// The system has no randomness.
pub fn generate_key(kid: String) -> Result<SigningKey, aws_lc_rs::error::Unspecified> {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())?;
    let pair =
        Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|_| aws_lc_rs::error::Unspecified)?;
    Ok(SigningKey {
        kid,
        public: pair.public_key().as_ref().to_vec(),
        key_pkcs8: cluster::command::Secret::plain(pkcs8.as_ref()),
    })
}
