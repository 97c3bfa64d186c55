//! The policy's history: its revisions that are kept, and each as it was.

use std::sync::Arc;

use api::policy::{PolicyHistory, PolicyRevision};
use axum::Json;
use axum::extract::{Path, RawQuery, State};
use http::HeaderMap;

use super::change::unexpected;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use super::policy::{answer_format, document_response, tag};
use super::{App, rfc3339};

pub(super) static LIST: Doc =
    Doc::new("List the revisions of the policy that are kept").answers(&[(
        200,
        "The last 100 at most, oldest first; fewer if they are large",
        Some(openapi::json("PolicyHistory")),
    )]);

pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Json<PolicyHistory>> {
    let state = app.node()?.state();
    let revisions = state.policy_history().map(|kept| PolicyRevision {
        revision: kept.revision,
        hash: kept.hash.to_string(),
        bytes: kept.len,
        time: rfc3339(kept.time_ms),
        author: kept.author.subject.clone(),
        message: kept.message.clone(),
    });
    Ok(Json(PolicyHistory {
        revisions: revisions.collect(),
    }))
}

pub(super) static READ: Doc = Doc::new("Read the policy as it was at a revision")
    .params(&[Param {
        name: "format",
        description: "`json` or `yaml`; goes before `Accept`",
    }])
    .answers(&[
        (200, "The policy of that revision", Some(openapi::POLICY)),
        (
            404,
            "There is none, or it is not kept any more",
            Some(openapi::ERROR),
        ),
    ]);

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Path(revision): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let format = answer_format(query.as_deref(), &headers)?;
    let node = app.node()?;
    let state = node.state();
    let revision: u64 = revision.parse().map_err(|_| {
        Refused::bad_request(format!("{revision} is not a revision: give a number"))
    })?;
    let kept = state
        .policy_history()
        .find(|kept| kept.revision == revision)
        .ok_or_else(|| Refused::not_found(&format!("policy revision: {revision} is not kept")))?;
    let bytes = state.document(kept).ok_or_else(unexpected)?;
    document_response(bytes.into(), format, &tag(&node, revision))
}
