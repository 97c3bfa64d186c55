//! Service accounts and their tokens.

use std::sync::Arc;

use api::account::{
    ServiceAccount, ServiceAccountCreateRequest, ServiceAccountRole, ServiceAccountStatus,
    ServiceAccountTokenCreateRequest, ServiceAccountTokenResponse, ServiceAccountUpdateRequest,
    TokenMeta, TokenStatus,
};
use api::error::Reason;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use axum::{Extension, Json};
use bytes::Bytes;
use cluster::command::{AccountSpec, AccountStatus, Command, Role, TokenSpec};
use cluster::state::{Account, TokenRecord};
use http::header::{CACHE_CONTROL, ETAG, IF_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;

use super::change::Change;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::request::text;
use super::{App, Origin, now_s, rfc3339};
use crate::auth::{Identity, role_name, token};

pub(super) static LIST: Doc = Doc::new("List the service accounts").answers(&[(
    200,
    "The service accounts",
    Some(openapi::list("ServiceAccount")),
)]);

pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Json<Vec<ServiceAccount>>> {
    let state = app.node()?.state();
    let mut accounts: Vec<_> = state.accounts().map(|account| view(account)).collect();
    accounts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(accounts))
}

pub(super) static CREATE: Doc = Doc::new("Create a service account")
    .takes(openapi::json("ServiceAccountCreateRequest"))
    .idempotent()
    .answers(&[
        (
            201,
            "The service account",
            Some(openapi::json("ServiceAccount")),
        ),
        (409, "The name is taken", Some(openapi::ERROR)),
    ]);

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let request: ServiceAccountCreateRequest = openapi::parse(&body)?;
    let spec = AccountSpec {
        name: named(request.name)?,
        description: described(request.description)?,
        role: role(request.role),
        status: AccountStatus::Active,
    };
    let change = Change::new(&app, &identity, &origin, &headers)?;
    let id = change.record(Command::CreateAccount(spec)).await?;
    answer(&app, id, StatusCode::CREATED)
}

pub(super) static UPDATE: Doc = Doc::new("Replace a service account's fields")
    .takes(openapi::json("ServiceAccountUpdateRequest"))
    .idempotent()
    .conditional()
    .answers(&[
        (
            200,
            "The service account",
            Some(openapi::json("ServiceAccount")),
        ),
        (404, "No such service account", Some(openapi::ERROR)),
        (409, "The name is taken", Some(openapi::ERROR)),
        (412, "It was changed in between", Some(openapi::ERROR)),
    ]);

pub(super) async fn update(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let id = parse_id(&id, "service account")?;
    let request: ServiceAccountUpdateRequest = openapi::parse(&body)?;
    let change = Change::new(&app, &identity, &origin, &headers)?;
    let state = change.state();
    let account = state
        .account(id)
        .ok_or_else(|| Refused::not_found("service account"))?;
    let spec = AccountSpec {
        name: named(request.name)?,
        description: described(request.description)?,
        role: role(request.role),
        // Replacing fields does not revive an account whose tokens were revoked.
        status: account.spec.status,
    };
    let if_match = if_match(&headers)?;
    let id = change
        .record(Command::UpdateAccount { id, if_match, spec })
        .await?;
    answer(&app, id, StatusCode::OK)
}

pub(super) static DISABLE: Doc = Doc::new("Disable a service account and revoke its tokens")
    .idempotent()
    .conditional()
    .answers(&[
        (204, "It is disabled", None),
        (404, "No such service account", Some(openapi::ERROR)),
        (412, "It was changed in between", Some(openapi::ERROR)),
    ]);

pub(super) async fn disable(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    let id = parse_id(&id, "service account")?;
    let if_match = if_match(&headers)?;
    let change = Change::new(&app, &identity, &origin, &headers)?;
    change
        .done(Command::DisableAccount { id, if_match })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) static LIST_TOKENS: Doc = Doc::new("List a service account's tokens").answers(&[
    (
        200,
        "The tokens, without their secrets",
        Some(openapi::list("TokenMeta")),
    ),
    (404, "No such service account", Some(openapi::ERROR)),
]);

pub(super) async fn list_tokens(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Answer<Json<Vec<TokenMeta>>> {
    let id = parse_id(&id, "service account")?;
    let state = app.node()?.state();
    state
        .account(id)
        .ok_or_else(|| Refused::not_found("service account"))?;
    let mut tokens: Vec<_> = state.tokens(id).collect();
    tokens.sort_by_key(|token| (token.created_ms, token.id));
    Ok(Json(tokens.into_iter().map(|token| meta(token)).collect()))
}

pub(super) static CREATE_TOKEN: Doc = Doc::new("Create a token of a service account")
    .takes(openapi::json("ServiceAccountTokenCreateRequest"))
    .idempotent()
    .answers(&[
        (
            201,
            "The token, shown only now",
            Some(openapi::json("ServiceAccountTokenResponse")),
        ),
        (403, "The role exceeds the account's", Some(openapi::ERROR)),
        (404, "No such service account", Some(openapi::ERROR)),
        (409, "The account is disabled", Some(openapi::ERROR)),
    ]);

pub(super) async fn create_token(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let account = parse_id(&id, "service account")?;
    let request: ServiceAccountTokenCreateRequest = if body.is_empty() {
        ServiceAccountTokenCreateRequest::default()
    } else {
        openapi::parse(&body)?
    };
    let change = Change::new(&app, &identity, &origin, &headers)?;
    let state = change.state();
    let owner = state
        .account(account)
        .ok_or_else(|| Refused::not_found("service account"))?;
    let key = state
        .active_signing_key()
        .ok_or_else(|| Refused::not_found("signing key"))?;
    let spec = TokenSpec {
        name: request.name,
        role: request.role.map_or(owner.spec.role, role),
        kid: key.key.kid.clone(),
        ttl_ms: ttl_ms(request.ttl.as_deref(), request.eternal.unwrap_or(false))?,
    };
    let id = change
        .record(Command::CreateToken { account, spec })
        .await?;

    let state = app.node()?.state();
    let record = state
        .token(account, id)
        .ok_or_else(|| Refused::not_found("token"))?;
    let response = ServiceAccountTokenResponse {
        token: sign(&state, record)?,
        token_meta: meta(record),
    };
    let no_store = HeaderValue::from_static("no-store");
    Ok((
        StatusCode::CREATED,
        [(CACHE_CONTROL, no_store)],
        Json(response),
    )
        .into_response())
}

pub(super) static REVOKE_TOKEN: Doc = Doc::new("Revoke a token").idempotent().answers(&[
    (204, "It is revoked", None),
    (404, "No such token", Some(openapi::ERROR)),
]);

pub(super) async fn revoke_token(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Extension(origin): Extension<Origin>,
    Path((account, token)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    let account = parse_id(&account, "service account")?;
    let token = parse_id(&token, "token")?;
    let change = Change::new(&app, &identity, &origin, &headers)?;
    change.done(Command::RevokeToken { account, token }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The token of a record. The same record always gives a token with the same id, which is what
/// makes the retry of its creation safe.
fn sign(state: &cluster::State, record: &TokenRecord) -> Answer<String> {
    let key = &state
        .signing_key(&record.spec.kid)
        .ok_or_else(|| Refused::not_found("signing key"))?
        .key;
    let claims = token::Claims {
        iss: token::ISSUER.into(),
        aud: token::ISSUER.into(),
        sub: record.account.to_string(),
        exp: record.expires_ms().map(|ms| ms / 1000),
        // Log time never runs backwards and may be ahead of a clock that was set back.
        iat: (record.created_ms / 1000).min(now_s()),
        jti: record.id.to_string(),
        kid: key.kid.clone(),
        sa_id: Some(record.account),
        scope: None,
        roles: vec![role_name(record.spec.role).into()],
    };
    token::sign(state, key, &claims).map_err(|error| match error {
        token::MintError::Sealed(_) => Refused::unavailable(Reason::NotReady, error.to_string()),
        _ => Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    })
}

fn ttl_ms(ttl: Option<&str>, eternal: bool) -> Answer<Option<u64>> {
    let ttl = match (ttl, eternal) {
        (Some(_), true) => return Err(Refused::bad_request("ttl and eternal exclude one another")),
        (None, true) => return Ok(None),
        (None, false) => token::DEFAULT_TTL,
        (Some(text), false) => {
            token::parse_ttl(text).map_err(|error| Refused::bad_request(error.to_string()))?
        }
    };
    Ok(Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)))
}

fn answer(app: &App, id: Uuid, status: StatusCode) -> Answer {
    let state = app.node()?.state();
    let account = state
        .account(id)
        .ok_or_else(|| Refused::not_found("service account"))?;
    let etag = HeaderValue::try_from(format!("\"{}\"", account.revision)).expect("digits");
    Ok((status, [(ETAG, etag)], Json(view(account))).into_response())
}

fn if_match(headers: &HeaderMap) -> Answer<Option<u64>> {
    let Some(value) = text(headers, &IF_MATCH) else {
        return Ok(None);
    };
    if value.trim() == "*" {
        return Ok(None);
    }
    let revision = value
        .trim()
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    match revision.and_then(|revision| revision.parse().ok()) {
        Some(revision) => Ok(Some(revision)),
        None => Err(Refused::precondition(
            "If-Match names no revision of this record",
            None,
        )),
    }
}

fn parse_id(text: &str, what: &str) -> Answer<Uuid> {
    Uuid::try_parse(text).map_err(|_| Refused::not_found(what))
}

fn named(name: String) -> Answer<String> {
    let name = name.trim();
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(Refused::bad_request(
            "name must have 1 to 128 bytes and no control characters",
        ));
    }
    Ok(name.to_owned())
}

fn described(description: Option<String>) -> Answer<String> {
    let description = description.unwrap_or_default();
    if description.len() > 1024 {
        return Err(Refused::bad_request(
            "description must have at most 1024 bytes",
        ));
    }
    Ok(description)
}

fn role(role: ServiceAccountRole) -> Role {
    match role {
        ServiceAccountRole::Readonly => Role::Readonly,
        ServiceAccountRole::Admin => Role::Admin,
    }
}

fn role_view(role: Role) -> ServiceAccountRole {
    match role {
        Role::Readonly => ServiceAccountRole::Readonly,
        Role::Admin => ServiceAccountRole::Admin,
    }
}

fn view(account: &Account) -> ServiceAccount {
    ServiceAccount {
        id: account.id.to_string(),
        name: account.spec.name.clone(),
        description: Some(account.spec.description.clone()).filter(|text| !text.is_empty()),
        role: role_view(account.spec.role),
        status: match account.spec.status {
            AccountStatus::Active => ServiceAccountStatus::Active,
            AccountStatus::Disabled => ServiceAccountStatus::Disabled,
        },
        created_at: rfc3339(account.created_ms),
        created_by: account.created_by.subject.clone(),
        revision: account.revision,
    }
}

fn meta(token: &TokenRecord) -> TokenMeta {
    TokenMeta {
        id: token.id.to_string(),
        service_account_id: token.account.to_string(),
        name: token.spec.name.clone(),
        role: role_view(token.spec.role),
        status: match token.revoked_ms {
            None => TokenStatus::Active,
            Some(_) => TokenStatus::Revoked,
        },
        kid: token.spec.kid.clone(),
        created_at: rfc3339(token.created_ms),
        created_by: token.created_by.subject.clone(),
        expires_at: token.expires_ms().map(rfc3339),
        revoked_at: token.revoked_ms.map(rfc3339),
        last_used_at: None,
    }
}
