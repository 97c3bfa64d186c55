//! The cluster's CA, and its rotation.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use api::joining::{CaRotationPhase, CaRotationView, ClusterCaView};
use axum::Json;
use axum::extract::State;
use cluster::ca::{self, Ca, Purpose};
use cluster::command::{Command, TrustChange};
use cluster::state::CaPhase;
use cluster::{Digest, Node};
use http::StatusCode;

use super::change::Change;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use super::{App, now_s, rfc3339};

const VIEW: Option<openapi::Media> = Some(openapi::json("ClusterCaView"));

pub(super) static READ: Doc =
    Doc::new("Read which CA issues the members' certificates, and how far its rotation is")
        .answers(&[(200, "The CA", VIEW)]);

pub(super) async fn read(State(app): State<Arc<App>>) -> Answer<Json<ClusterCaView>> {
    let node = app.node()?;
    view(&node).map(Json)
}

pub(super) static ROTATE: Doc = Doc::new("Replace the cluster's CA, step by step")
    .idempotent()
    .answers(&[
        (202, "It has begun", VIEW),
        (409, "A rotation is under way already", Some(openapi::ERROR)),
    ]);

pub(super) async fn rotate(change: Change) -> Answer<(StatusCode, Json<ClusterCaView>)> {
    let state = change.state();
    let cluster_id = state.cluster_id().ok_or(cluster::Refusal::NotInitialised)?;
    let now = UNIX_EPOCH + Duration::from_secs(now_s().max(state.time_ms() / 1000));
    let next = Ca::create(Purpose::Members, cluster_id, now)
        .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let start = TrustChange::StartCaRotation {
        next: next.authority(),
    };
    change.done(Command::Trust(start)).await?;
    Ok((StatusCode::ACCEPTED, Json(view(change.node())?)))
}

pub(super) static ABORT: Doc = Doc::new("Go back to the CA that the rotation began with")
    .idempotent()
    .answers(&[
        (202, "It goes back, or has gone back", VIEW),
        (409, "No rotation is under way", Some(openapi::ERROR)),
    ]);

pub(super) async fn abort(change: Change) -> Answer<(StatusCode, Json<ClusterCaView>)> {
    change
        .done(Command::Trust(TrustChange::AbortCaRotation))
        .await?;
    Ok((StatusCode::ACCEPTED, Json(view(change.node())?)))
}

fn view(node: &Node) -> Answer<ClusterCaView> {
    let state = node.state();
    let authority = state.cluster_ca().ok_or(cluster::Refusal::NotInitialised)?;
    let rotation = state.ca_rotation().map(|rotation| CaRotationView {
        phase: match rotation.phase {
            CaPhase::Trusting => CaRotationPhase::Trusting,
            CaPhase::Issuing => CaRotationPhase::Issuing,
        },
        aborting: rotation.aborting,
        since: rfc3339(rotation.started_ms),
        other_sha256: Digest::of(&rotation.other.certificate_der).to_string(),
        pending: node
            .rotation_pending(&state)
            .iter()
            .map(ToString::to_string)
            .collect(),
    });
    Ok(ClusterCaView {
        sha256: Digest::of(&authority.certificate_der).to_string(),
        key_sha256: ca::spki_of(&authority.certificate_der)
            .map(|key| key.to_string())
            .unwrap_or_default(),
        rotation,
    })
}
