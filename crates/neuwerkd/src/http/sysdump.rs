//! Support archives, of this node or of every member, streamed from a file that has no name.

use std::fs::File;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::AsyncReadExt as _;

use super::App;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc};
use crate::sysdump::member;

const MISSING_MEMBERS: HeaderName = HeaderName::from_static(api::headers::MISSING_MEMBERS);

/// Bytes that are read from the file at once.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) static NODE: Doc =
    Doc::new("Make a support archive of the node that is asked; it holds no secrets").answers(&[
        (200, "A compressed tar", Some(openapi::GZIP)),
        (409, "One is being made already", Some(openapi::ERROR)),
        (507, "There is no room for it", Some(openapi::ERROR)),
    ]);

pub(super) async fn node(State(app): State<Arc<App>>) -> Answer {
    let _turn = turn(&app)?;
    let file = member::own(app.source()).await.map_err(cannot)?;
    answer(file, "neuwerk-sysdump.tar.gz")
}

pub(super) static CLUSTER: Doc = Doc::new(
    "Make a support archive of every member that can be reached, with or without a leader; it holds no secrets",
)
.answers(&[
    (
        200,
        "A compressed tar; `Neuwerk-Missing-Members` names those that are not in it, manifest.json says why",
        Some(openapi::GZIP),
    ),
    (409, "One is being made already", Some(openapi::ERROR)),
    (507, "There is no room for it", Some(openapi::ERROR)),
]);

pub(super) async fn cluster(State(app): State<Arc<App>>) -> Answer {
    let _turn = turn(&app)?;
    let (file, members) = member::whole_cluster(&app).await.map_err(cannot)?;
    let missing: Vec<_> = members
        .iter()
        .filter(|member| !member.included)
        .map(|member| member.node_id.as_str())
        .collect();
    let mut response = answer(file, "neuwerk-sysdump-cluster.tar.gz")?;
    if let Ok(value) = HeaderValue::try_from(missing.join(","))
        && !missing.is_empty()
    {
        response.headers_mut().insert(MISSING_MEMBERS, value);
    }
    Ok(response)
}

fn turn(app: &App) -> Answer<tokio::sync::SemaphorePermit<'_>> {
    let busy = |_| Refused::new(StatusCode::CONFLICT, "an archive is being made already");
    app.archives().try_acquire().map_err(busy)
}

fn cannot(error: io::Error) -> Refused {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refused::new(status, format!("the archive cannot be made: {error}"))
}

fn answer(file: File, name: &str) -> Answer<Response> {
    let bytes = file.metadata().map_err(cannot)?.len();
    let pieces =
        futures::stream::try_unfold(tokio::fs::File::from_std(file), |mut file| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece).await?;
            piece.truncate(read);
            Ok::<_, io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
        });
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{name}\""));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/gzip")),
        (CONTENT_DISPOSITION, disposition.expect("a plain name")),
        (CONTENT_LENGTH, bytes.into()),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
