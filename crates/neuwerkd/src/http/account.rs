//! Service accounts and their tokens.

use std::sync::Arc;

use api::account::{
    ServiceAccount, ServiceAccountCreateRequest, ServiceAccountRole, ServiceAccountStatus,
    ServiceAccountTokenCreateRequest, ServiceAccountTokenResponse, ServiceAccountUpdateRequest,
    TokenMeta, TokenStatus,
};
use api::error::Reason;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use cluster::command::{AccountSpec, AccountStatus, Command, Role, TokenSpec};
use cluster::node::REQUEST_DIGESTS_LEVEL;
use cluster::state::{Account, TokenRecord};
use cluster::{Refusal, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;

use super::change::{Change, unexpected};
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::revision::{conflict, etag, if_match};
use super::{App, now_s, rfc3339};
use crate::auth::{role_name, token};

/// How often an update without a precondition is tried against others that change the same account.
const UPDATE_ATTEMPTS: usize = 5;

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

pub(super) async fn create(change: Change, body: Bytes) -> Answer {
    let request: ServiceAccountCreateRequest = openapi::parse(&body)?;
    let spec = AccountSpec {
        name: named(request.name)?,
        description: described(request.description)?,
        role: role(request.role),
        status: AccountStatus::Active,
    };
    let made = change.record(Command::CreateAccount(spec.clone())).await?;
    answer(&change.state(), made, spec, StatusCode::CREATED)
}

pub(super) static READ: Doc = Doc::new("Read a service account").answers(&[
    (
        200,
        "The service account",
        Some(openapi::json("ServiceAccount")),
    ),
    (404, "No such service account", Some(openapi::ERROR)),
]);

pub(super) async fn read(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    let state = app.node()?.state();
    let account = find(&state, parse_id(&id, "service account")?)?;
    let made = (account.id, account.revision);
    answer(&state, made, account.spec.clone(), StatusCode::OK)
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
    change: Change,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let id = parse_id(&id, "service account")?;
    let request: ServiceAccountUpdateRequest = openapi::parse(&body)?;
    let (name, description) = (named(request.name)?, described(request.description)?);
    let asked = if_match(&headers, &change.state())?;
    for _attempt in 0..UPDATE_ATTEMPTS {
        let state = change.state();
        let account = find(&state, id)?;
        let spec = AccountSpec {
            name: name.clone(),
            description: description.clone(),
            role: role(request.role),
            // Replacing fields does not revive an account whose tokens were revoked, nor may it where
            // the account is disabled at the same time: the revision is compared even if nobody asked.
            status: account.spec.status,
        };
        // Below that level a retry is known by its command, which must not change with the revision.
        let pinned = (state.feature_level() >= REQUEST_DIGESTS_LEVEL).then_some(account.revision);
        let command = Command::UpdateAccount {
            id,
            if_match: asked.or(pinned),
            spec: spec.clone(),
        };
        match change.answered(command).await?.accepted() {
            Ok(Response::Record { id, revision }) => {
                return answer(&change.state(), (id, revision), spec, StatusCode::OK);
            }
            Ok(_) => return Err(unexpected()),
            Err(Refusal::Conflict { .. }) if asked.is_none() => {}
            Err(refusal) => return Err(conflict(refusal, RECORD, &change.state())),
        }
    }
    Err(Refused::new(
        StatusCode::CONFLICT,
        "the service account is being changed by others at the same time",
    ))
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
    change: Change,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    let id = parse_id(&id, "service account")?;
    let if_match = if_match(&headers, &change.state())?;
    let command = Command::DisableAccount { id, if_match };
    match change.answered(command).await?.accepted() {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(refusal) => Err(conflict(refusal, RECORD, &change.state())),
    }
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
    find(&state, id)?;
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

pub(super) async fn create_token(change: Change, Path(id): Path<String>, body: Bytes) -> Answer {
    let account = parse_id(&id, "service account")?;
    let request: ServiceAccountTokenCreateRequest = if body.is_empty() {
        ServiceAccountTokenCreateRequest::default()
    } else {
        openapi::parse(&body)?
    };
    let state = change.state();
    let owner = find(&state, account)?;
    let key = state
        .active_signing_key()
        .ok_or_else(|| Refused::not_found("signing key"))?;
    let spec = TokenSpec {
        name: request.name,
        role: request.role.map_or(owner.spec.role, role),
        kid: key.key.kid.clone(),
        ttl_ms: ttl_ms(request.ttl.as_deref(), request.eternal.unwrap_or(false))?,
    };
    let (id, _) = change
        .record(Command::CreateToken { account, spec })
        .await?;

    let state = change.state();
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
    change: Change,
    Path((account, token)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let account = parse_id(&account, "service account")?;
    let token = parse_id(&token, "token")?;
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

fn find(state: &cluster::State, id: Uuid) -> Answer<&Arc<Account>> {
    state
        .account(id)
        .ok_or_else(|| Refused::not_found("service account"))
}

/// What a refused change is about.
const RECORD: &str = "the service account";

/// The account as the change made it: a retry, however late, is answered with that and its tag, not with what others
/// have made of it since.
fn answer(
    state: &cluster::State,
    (id, revision): (Uuid, u64),
    spec: AccountSpec,
    status: StatusCode,
) -> Answer {
    let made = Account {
        revision,
        spec,
        ..Account::clone(find(state, id)?)
    };
    Ok((status, [etag(state, revision)], Json(view(&made))).into_response())
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
