//! A request between two nodes: what travels along, and how it enters the other node's router.

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use cluster::{HttpRequest, HttpResponse};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderName, IF_MATCH,
    IF_NONE_MATCH, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, request};
use http_body_util::BodyExt as _;
use serde_bytes::ByteBuf;
use tower::ServiceExt as _;

use super::Origin;

/// Says whether a browser sent the request from another site.
pub(super) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Names the request.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static(api::headers::REQUEST_ID);
/// Makes a retry safe.
pub(super) const IDEMPOTENCY_KEY: HeaderName =
    HeaderName::from_static(api::headers::IDEMPOTENCY_KEY);

/// Headers that go to the leader. All others stay here.
const FORWARDED: [HeaderName; 9] = [
    ACCEPT,
    AUTHORIZATION,
    CONTENT_TYPE,
    COOKIE,
    IF_MATCH,
    IF_NONE_MATCH,
    SEC_FETCH_SITE,
    REQUEST_ID,
    IDEMPOTENCY_KEY,
];

/// The headers that the leader needs.
pub(super) fn forwarded_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in FORWARDED {
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// A header's text, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a value may stand for a request id or an idempotency key: 1–128 visible ASCII.
pub(super) fn is_word(value: &str) -> bool {
    (1..=128).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A request as it goes to the leader.
pub(super) fn to_leader(
    parts: &request::Parts,
    headers: &HeaderMap,
    body: &[u8],
    client: String,
) -> HttpRequest {
    HttpRequest {
        method: parts.method.to_string(),
        path_and_query: parts
            .uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned(),
        headers: carried(headers),
        body: ByteBuf::from(body),
        client_addr: client,
    }
}

/// The leader's answer as it goes to the client; none if it is not one.
pub(super) fn from_leader(answer: HttpResponse) -> Option<Response> {
    let mut response = Response::new(Body::from(answer.body.into_vec()));
    *response.status_mut() = StatusCode::from_u16(answer.status).ok()?;
    *response.headers_mut() = received(&answer.headers)?;
    Some(response)
}

/// Answers a request that came from another member.
pub(super) async fn answer(router: Router, origin: Origin, forwarded: HttpRequest) -> HttpResponse {
    let Some(mut request) = entering(forwarded) else {
        return refused(StatusCode::BAD_REQUEST);
    };
    request.extensions_mut().insert(origin);
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (mut parts, body) = response.into_parts();
    // The first node frames the answer anew.
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(TRANSFER_ENCODING);
    match body.collect().await {
        Ok(body) => HttpResponse {
            status: parts.status.as_u16(),
            headers: carried(&parts.headers),
            body: ByteBuf::from(body.to_bytes()),
        },
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn entering(forwarded: HttpRequest) -> Option<Request<Body>> {
    let headers = received(&forwarded.headers)?;
    let mut request = Request::new(Body::from(forwarded.body.into_vec()));
    *request.method_mut() = forwarded.method.parse().ok()?;
    *request.uri_mut() = forwarded.path_and_query.parse().ok()?;
    *request.headers_mut() = forwarded_headers(&headers);
    Some(request)
}

fn carried(headers: &HeaderMap) -> Vec<(String, ByteBuf)> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| (name.to_string(), ByteBuf::from(value.as_bytes())))
        .collect()
}

fn received(headers: &[(String, ByteBuf)]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(
            HeaderName::try_from(name).ok()?,
            HeaderValue::from_bytes(value).ok()?,
        );
    }
    Some(map)
}

fn refused(status: StatusCode) -> HttpResponse {
    let body = api::ErrorBody::new("the forwarded request could not be answered");
    let content_type = (CONTENT_TYPE.to_string(), ByteBuf::from("application/json"));
    HttpResponse {
        status: status.as_u16(),
        headers: vec![content_type],
        body: ByteBuf::from(serde_json::to_vec(&body).expect("a body of strings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credential_travels_and_the_connection_does_not() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "x-request-id",
            "connection",
            "host",
            "x-forwarded-for",
            "prefer",
        ] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        let kept = forwarded_headers(&headers);
        assert_eq!(kept.len(), 2);
        assert!(kept.contains_key(AUTHORIZATION) && kept.contains_key(REQUEST_ID));
    }

    #[test]
    fn words() {
        assert!(is_word("a-1") && is_word(&"x".repeat(128)));
        for text in ["", "a b", "a\n", "é"] {
            assert!(!is_word(text), "{text:?}");
        }
        assert!(!is_word(&"x".repeat(129)));
    }
}
