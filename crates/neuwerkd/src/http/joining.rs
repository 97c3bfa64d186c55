//! How nodes are let in: join tokens, the bootstrap secret, approval.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::error::Reason;
use api::joining::{
    BootstrapSecretResponse, JoinApprovalMode, JoinSettings, JoinSettingsRequest,
    JoinTokenCreateRequest, JoinTokenMeta, JoinTokenResponse, JoinTokenStatus,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use cluster::command::{Command, JoinApproval, Secret, Settings, TrustChange};
use cluster::join::secret;
use cluster::join::token::Token;
use cluster::state::{JoinToken, Standing};
use cluster::{NodeId, ca};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use super::change::Change;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::revision::{conflict, etag, if_match};
use super::{App, rfc3339};

/// What ids and secrets are made for.
const TOKEN: &str = "join token";
const BOOTSTRAP: &str = "bootstrap secret";

/// The answer of a retry that comes too late.
const REPLACED: (u16, &str, Option<openapi::Media>) = (
    409,
    "A retry, and what the first attempt made was replaced or removed since",
    Some(openapi::ERROR),
);

/// Lifetime of a join token for which none was asked.
const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);
/// Longest lifetime of a join token.
const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Most members that one join token admits.
const MAX_USES: u32 = 1000;
/// From that many members on, new ones should come by join tokens.
const ENOUGH_MEMBERS: usize = 3;

pub(super) static LIST_TOKENS: Doc = Doc::new("List the join tokens").answers(&[(
    200,
    "The join tokens, without their secrets",
    Some(openapi::list("JoinTokenMeta")),
)]);

pub(super) async fn list_tokens(State(app): State<Arc<App>>) -> Answer<Json<Vec<JoinTokenMeta>>> {
    let state = app.node()?.state();
    let now_ms = now_ms(&state);
    let mut tokens: Vec<_> = state.join_tokens().collect();
    tokens.sort_by_key(|token| (token.expires_ms, token.id));
    let tokens = tokens.into_iter().map(|token| meta(token, now_ms));
    Ok(Json(tokens.collect()))
}

pub(super) static CREATE_TOKEN: Doc = Doc::new("Create a join token")
    .takes(openapi::json("JoinTokenCreateRequest"))
    .idempotent()
    .answers(&[
        (
            201,
            "The token, shown only now",
            Some(openapi::json("JoinTokenResponse")),
        ),
        REPLACED,
    ]);

pub(super) async fn create_token(change: Change, body: Bytes) -> Answer {
    let request: JoinTokenCreateRequest = if body.is_empty() {
        JoinTokenCreateRequest::default()
    } else {
        openapi::parse(&body)?
    };
    let ttl = match &request.ttl {
        None => DEFAULT_TTL,
        Some(text) => api::duration::parse(text)
            .ok()
            .filter(|ttl| (Duration::from_secs(1)..=MAX_TTL).contains(ttl))
            .ok_or_else(|| {
                Refused::bad_request("ttl must be between 1s and 30d, for example 1h")
            })?,
    };
    let uses = request.uses.unwrap_or(1);
    if !(1..=MAX_USES).contains(&uses) {
        return Err(Refused::bad_request("uses must be between 1 and 1000"));
    }
    let state = change.state();
    let authority = state
        .cluster_ca()
        .and_then(|ca| ca::spki_of(&ca.certificate_der));
    let (Some(cluster_id), Some(authority)) = (state.cluster_id(), authority) else {
        return Err(cluster::Refusal::NotInitialised.into());
    };
    let new = |id| {
        Ok::<_, Refused>(Token::new(
            cluster_id,
            id,
            authority,
            *change.secret_of(TOKEN, id)?,
        ))
    };
    let token = new(change.new_id(TOKEN)?)?;
    let ttl_ms = u64::try_from(ttl.as_millis()).expect("at most 30 days");
    let expires_ms = now_ms(&state).saturating_add(ttl_ms);
    change
        .done(Command::CreateJoinToken {
            id: token.id,
            public: token.public(),
            expires_ms,
            uses,
        })
        .await?;
    // That of the first attempt, if this is a retry.
    let state = change.state();
    let kept = state.join_token(token.id).or_else(|| {
        let made = state
            .join_tokens()
            .filter(|kept| change.made(TOKEN, kept.id));
        made.max_by_key(|kept| kept.expires_ms)
    });
    let kept = kept.ok_or_else(gone)?;
    let token = new(kept.id)?;
    if token.public() != kept.public {
        return Err(gone());
    }
    let answer = JoinTokenResponse {
        id: token.id.to_string(),
        token: token.text().to_string(),
        expires_at: rfc3339(kept.expires_ms),
        uses,
    };
    Ok((
        StatusCode::CREATED,
        [(CACHE_CONTROL, "no-store")],
        Json(answer),
    )
        .into_response())
}

pub(super) static REVOKE_TOKEN: Doc = Doc::new("Revoke a join token").idempotent().answers(&[
    (204, "It admits nobody any more", None),
    (404, "No such join token", Some(openapi::ERROR)),
]);

pub(super) async fn revoke_token(change: Change, Path(id): Path<String>) -> Answer<StatusCode> {
    let id = Uuid::try_parse(&id).map_err(|_| Refused::not_found("join token"))?;
    change.done(Command::RevokeJoinToken { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) static READ: Doc = Doc::new("Read how new members are let in").answers(&[(
    200,
    "How new members are let in",
    Some(openapi::json("JoinSettings")),
)]);

pub(super) async fn read(State(app): State<Arc<App>>) -> Answer {
    settings(&app.node()?.state())
}

pub(super) static CHANGE: Doc = Doc::new("Change how new members are let in")
    .takes(openapi::json("JoinSettingsRequest"))
    .idempotent()
    .conditional()
    .answers(&[
        (
            200,
            "How new members are let in",
            Some(openapi::json("JoinSettings")),
        ),
        (
            412,
            "The settings were changed in between",
            Some(openapi::ERROR),
        ),
    ]);

pub(super) async fn change(change: Change, headers: HeaderMap, body: Bytes) -> Answer {
    let request: JoinSettingsRequest = openapi::parse(&body)?;
    let state = change.state();
    let asked = if_match(&headers, &state)?;
    let (now, revision) = state.settings().ok_or(cluster::Refusal::NotInitialised)?;
    let wanted = Settings {
        bootstrap_join: request.bootstrap.unwrap_or(now.bootstrap_join),
        join_approval: match request.approval {
            None => now.join_approval,
            Some(JoinApprovalMode::Auto) => JoinApproval::Auto,
            Some(JoinApprovalMode::Manual) => JoinApproval::Manual,
        },
        ..now.clone()
    };
    let command = Command::PutSettings {
        settings: wanted,
        if_match: asked.or(Some(revision)),
    };
    match change.answered(command).await?.accepted() {
        Ok(_) => settings(&change.state()),
        Err(refusal) => Err(conflict(refusal, "the setting", &change.state())),
    }
}

/// How new members are let in, and its tag.
fn settings(state: &cluster::State) -> Answer {
    let (_, revision) = state.settings().ok_or(cluster::Refusal::NotInitialised)?;
    Ok(([etag(state, revision)], Json(view(state)?)).into_response())
}

pub(super) static ROTATE: Doc = Doc::new("Replace the bootstrap secret of the whole cluster")
    .idempotent()
    .answers(&[
        (
            200,
            "The new secret, shown only now",
            Some(openapi::json("BootstrapSecretResponse")),
        ),
        REPLACED,
    ]);

pub(super) async fn rotate(change: Change) -> Answer {
    let text = secret::generate().map_err(|_| Refused::no_randomness())?;
    let put = TrustChange::PutBootstrapSecret {
        kid: change.new_id(BOOTSTRAP)?.to_string(),
        secret: Secret::plain(text.as_bytes()),
    };
    change.done(Command::Trust(put)).await?;
    // That of the first attempt, if this is a retry.
    let state = change.state();
    let kept = state
        .bootstrap_secret()
        .filter(|kept| Uuid::try_parse(&kept.kid).is_ok_and(|kid| change.made(BOOTSTRAP, kid)));
    let kept = kept.ok_or_else(gone)?;
    let opened = state
        .open(&kept.secret)
        .map_err(|error| Refused::unavailable(Reason::NotReady, error.to_string()))?;
    let answer = BootstrapSecretResponse {
        kid: kept.kid.clone(),
        secret: String::from_utf8_lossy(&opened).into_owned(),
    };
    Ok(([(CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

pub(super) static APPROVE: Doc = Doc::new("Let a node in that waits for approval")
    .idempotent()
    .answers(&[
        (204, "It is let in when it asks again, within seconds", None),
        (404, "No such member", Some(openapi::ERROR)),
    ]);

pub(super) async fn approve(change: Change, Path(node_id): Path<String>) -> Answer<StatusCode> {
    let node_id: NodeId = node_id.parse().map_err(|_| Refused::not_found("member"))?;
    change
        .done(Command::Trust(TrustChange::Approve { node_id }))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn view(state: &cluster::State) -> Answer<JoinSettings> {
    let (settings, _) = state.settings().ok_or(cluster::Refusal::NotInitialised)?;
    let members = state
        .members()
        .filter(|member| member.standing == Standing::Member)
        .count();
    let recommendation = (settings.bootstrap_join && members >= ENOUGH_MEMBERS).then(|| {
        "the bootstrap secret still admits new members: neuwerk cluster token bootstrap off"
            .to_owned()
    });
    let bootstrap = state.bootstrap_secret();
    Ok(JoinSettings {
        bootstrap: settings.bootstrap_join,
        bootstrap_kid: bootstrap.map(|secret| secret.kid.clone()),
        bootstrap_rotated_at: bootstrap.map(|secret| rfc3339(secret.since_ms)),
        approval: match settings.join_approval {
            JoinApproval::Auto => JoinApprovalMode::Auto,
            JoinApproval::Manual => JoinApprovalMode::Manual,
        },
        waiting: state
            .members()
            .filter(|member| state.waits_for_approval(member.node_id))
            .map(|member| member.node_id.to_string())
            .collect(),
        recommendation,
    })
}

fn meta(token: &JoinToken, now_ms: u64) -> JoinTokenMeta {
    let status = match () {
        () if token.revoked_ms.is_some() => JoinTokenStatus::Revoked,
        () if token.uses_left == 0 => JoinTokenStatus::UsedUp,
        () if token.expires_ms <= now_ms => JoinTokenStatus::Expired,
        () => JoinTokenStatus::Active,
    };
    JoinTokenMeta {
        id: token.id.to_string(),
        status,
        uses_left: token.uses_left,
        expires_at: rfc3339(token.expires_ms),
        created_by: token.created_by.subject.clone(),
        revoked_at: token.revoked_ms.map(rfc3339),
    }
}

/// The time that tokens go by: log time, which stands still while nothing is written.
fn now_ms(state: &cluster::State) -> u64 {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    state
        .time_ms()
        .max(u64::try_from(clock.as_millis()).unwrap_or(u64::MAX))
}

/// The answer of a retry whose first attempt made what is not there any more.
fn gone() -> Refused {
    Refused::new(
        StatusCode::CONFLICT,
        "what this request made has been replaced or removed since: ask again under a fresh Idempotency-Key",
    )
}
