//! The keys that sign API tokens: list, rotate, retire.
//!
//! Rotation adds a key that signs from then on, while tokens of older keys stay good; retiring a key ends all tokens
//! that it signed, which is the only end that a minted token has before its time.

use std::sync::Arc;

use api::auth::{SigningKeyStatus, SigningKeyView};
use axum::Json;
use axum::extract::{Path, State};
use cluster::Command;
use cluster::state::SigningKeyRecord;
use http::StatusCode;
use sha2::{Digest as _, Sha256};

use super::change::Change;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::{App, rfc3339};
use crate::auth::token;

pub(super) static LIST: Doc = Doc::new("List the keys that sign API tokens").answers(&[(
    200,
    "The keys, without their private halves",
    Some(openapi::list("SigningKeyView")),
)]);

pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Json<Vec<SigningKeyView>>> {
    let state = app.node()?.state();
    let mut records: Vec<_> = state.signing_keys().cloned().collect();
    records.sort_by_key(|record| record.created_ms);
    let active = active_kid(&state);
    let views = records.iter().map(|record| view(record, &active));
    Ok(Json(views.collect()))
}

pub(super) static ROTATE: Doc =
    Doc::new("Sign API tokens with a new key; those of older keys stay good")
        .idempotent()
        .answers(&[
            (201, "The new key", Some(openapi::json("SigningKeyView"))),
            (
                409,
                "There are as many keys as may be",
                Some(openapi::ERROR),
            ),
        ]);

pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    change: Change,
) -> Answer<(StatusCode, Json<SigningKeyView>)> {
    // The same request makes the key of the same name, so that its retry is answered with it.
    let kid = change.derived("signing key");
    let state = change.state();
    if state.signing_key(&kid).is_none() {
        let key = token::generate_key(kid.clone()).map_err(|_| Refused::no_randomness())?;
        change.done(Command::AddSigningKey(key)).await?;
    }
    let state = app.node()?.state();
    let record = state
        .signing_key(&kid)
        .ok_or_else(super::change::unexpected)?;
    Ok((StatusCode::CREATED, Json(view(record, &active_kid(&state)))))
}

pub(super) static RETIRE: Doc = Doc::new("Retire a key: every token that it signed stops working")
    .idempotent()
    .answers(&[
        (204, "It is retired", None),
        (404, "No such key", Some(openapi::ERROR)),
        (
            409,
            "It is the one that signs: rotate first",
            Some(openapi::ERROR),
        ),
    ]);

pub(super) async fn retire(Path(kid): Path<String>, change: Change) -> Answer<StatusCode> {
    change.done(Command::RetireSigningKey { kid }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn active_kid(state: &cluster::State) -> String {
    state
        .active_signing_key()
        .map(|record| record.key.kid.clone())
        .unwrap_or_default()
}

/// A key as it is shown.
pub(crate) fn view(record: &SigningKeyRecord, active_kid: &str) -> SigningKeyView {
    SigningKeyView {
        kid: record.key.kid.clone(),
        status: match record.retired_ms {
            None => SigningKeyStatus::Active,
            Some(_) => SigningKeyStatus::Retired,
        },
        signs: record.key.kid == active_kid,
        created_at: rfc3339(record.created_ms),
        retired_at: record.retired_ms.map(rfc3339),
        public_key_sha256: Sha256::digest(&record.key.public)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}
