//! A backup of the replicated state, made on the node that is asked; and the request to join anew.

use std::sync::Arc;

use api::recovery::{BackupRequest, RejoinRequest, Rejoining};
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use cluster::Role;
use cluster::backup::{BackupError, Recipient};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::App;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use crate::backup;
use crate::control::rejoin::Rejoin;
use api::error::Reason;

const CONSISTENCY: HeaderName = HeaderName::from_static(api::headers::CONSISTENCY);

pub(super) static MAKE: Doc =
    Doc::new("Make a backup of the replicated state, sealed for a key that the operator holds")
        .takes(openapi::json("BackupRequest"))
        .answers(&[
            (
                200,
                "The backup; the header Neuwerk-Consistency says whether it holds every acknowledged change",
                Some(openapi::BINARY),
            ),
            (400, "No key to seal it for, or none that is one", Some(openapi::ERROR)),
        ]);

pub(super) async fn make(State(app): State<Arc<App>>, body: Bytes) -> Answer {
    let request: BackupRequest = openapi::parse(&body)?;
    let recipient = recipient(&app, &request)?;
    let node = app.node()?;
    // Without a leader this node's own state is still worth keeping: it says how far it goes.
    let consistency = match node.read_index().await {
        Ok(_) => "linearizable",
        Err(_) => "local",
    };
    let made = backup::make(&node, recipient).await.map_err(failed)?;
    let name = format!(
        "attachment; filename=\"{}\"",
        backup::file_name(&made.description)
    );
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(CONSISTENCY, HeaderValue::from_static(consistency));
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    tracing::info!(
        index = made.description.index,
        consistency,
        "a backup was made"
    );
    Ok((headers, made.file).into_response())
}

fn recipient(app: &App, request: &BackupRequest) -> Answer<Recipient> {
    let own = app.backups().recipient();
    match (&request.recipient, &request.passphrase, own) {
        (Some(_), Some(_), _) => Err(Refused::bad_request(
            "a backup is sealed for a recipient or with a passphrase, not both",
        )),
        (Some(key), None, _) => Recipient::key(key).map_err(failed),
        (None, Some(text), _) => Recipient::passphrase(text).map_err(failed),
        (None, None, Some(own)) => Ok(own),
        (None, None, None) => Err(Refused::bad_request(
            "give a recipient or a passphrase to seal the backup for, or set cluster.backup.recipient",
        )),
    }
}

fn failed(error: BackupError) -> Refused {
    match error {
        BackupError::Seal(_) => Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        BackupError::NotReady(why) => Refused::unavailable(
            Reason::NotReady,
            format!("no backup can be made here now: {why}"),
        ),
        _ => Refused::bad_request(error.to_string()),
    }
}

pub(super) static REJOIN: Doc = Doc::new(
    "Put this node's data aside and join as a new member; over the node's control socket only",
)
.takes(openapi::json("RejoinRequest"))
.answers(&[
    (
        200,
        "The data is aside, the node knocks",
        Some(openapi::json("Rejoining")),
    ),
    (
        400,
        "There is nowhere to join, or the name is wrong",
        Some(openapi::ERROR),
    ),
    (
        409,
        "The node is a member in good standing",
        Some(openapi::ERROR),
    ),
]);

pub(super) async fn rejoin(State(app): State<Arc<App>>, body: Bytes) -> Answer<Json<Rejoining>> {
    let request: RejoinRequest = openapi::parse(&body)?;
    if let Ok(node) = app.node()
        && !matches!(node.role(), Role::NoLeader { .. })
    {
        let state = node.state();
        let name = state
            .settings()
            .map(|(settings, _)| settings.cluster_name.as_str());
        match (&request.confirm, name) {
            (Some(typed), Some(name)) if typed == name => {}
            (Some(_), Some(name)) => {
                let text = format!("the cluster is called {name}");
                return Err(Refused::bad_request(text));
            }
            _ => {
                return Err(Refused::new(
                    StatusCode::CONFLICT,
                    "this node is a member in good standing, whose copy of the data would be put aside: confirm with \
                     the cluster's name (--confirm)",
                ));
            }
        }
    }
    let (answer, answered) = tokio::sync::oneshot::channel();
    let asking = app.rejoin()?;
    let asked = asking.send(Rejoin {
        join: request.join,
        answer,
    });
    let gone = || Refused::unavailable(Reason::NotReady, "this node is stopping");
    asked.await.map_err(|_| gone())?;
    answered
        .await
        .map_err(|_| gone())?
        .map(Json)
        .map_err(Refused::bad_request)
}
