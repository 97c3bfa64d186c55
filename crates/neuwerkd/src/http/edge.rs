//! What every request gets, whether its path exists or not: a request id, security headers, a
//! count, a line in the log, and an answer even if a handler panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::error::Refused;
use super::request::{REQUEST_ID, is_word, text};
use super::{App, Origin};

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// The outermost layer.
pub(super) async fn pass(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let origin = request.extensions().get::<Origin>().cloned();
    let is_auth = request.uri().path().starts_with("/api/v1/auth");

    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        tracing::error!(request_id = ?id, "a request handler panicked");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Refused::new(
            status,
            "the request failed inside the node; its log has more",
        )
        .into_response()
    });

    let status = response.status();
    let path = matched.as_ref().map_or("other", MatchedPath::as_str);
    let elapsed = started.elapsed();
    app.metrics.request(path, &method, status, elapsed);
    // One line on each node that a request goes through, all with its id.
    tracing::debug!(
        request_id = id.to_str().unwrap_or_default(),
        %method,
        path,
        status = status.as_u16(),
        elapsed_ms = elapsed.as_millis(),
        from = origin.as_ref().map_or("", Origin::kind),
        client = origin.as_ref().and_then(Origin::client),
        via = origin.as_ref().and_then(Origin::via).map(tracing::field::display),
        "request"
    );
    add_headers(response.headers_mut(), is_auth);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's own id if it is usable, else a fresh one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(id) = text(headers, &REQUEST_ID).filter(|id| is_word(id))
        && let Ok(value) = HeaderValue::from_str(id)
    {
        return value;
    }
    let id = uuid::Uuid::new_v4().to_string();
    HeaderValue::from_str(&id).expect("a UUID is ASCII")
}

fn add_headers(headers: &mut HeaderMap, is_auth: bool) {
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (
            PERMISSIONS_POLICY,
            "camera=(), geolocation=(), microphone=()",
        ),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
        ),
        (
            STRICT_TRANSPORT_SECURITY,
            "max-age=31536000; includeSubDomains",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_auth {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
