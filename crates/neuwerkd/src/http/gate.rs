//! The way from a matched route to its handler: credential, leader, body.
//!
//! 1. The credential is verified here, on whichever node was asked, and again on the leader.
//! 2. The role is compared with the row; only then is a body read at all.
//! 3. [`plan`] decides who answers: this node, the leader by one hop, or nobody now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::error::Reason;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cluster::command::Role as Grade;
use cluster::{Digest, ForwardError, NoLeader, Node, NodeId, Role};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, EXPECT, IF_MATCH, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, request};
use http_body_util::{BodyExt as _, Limited};

use super::change::Fingerprint;
use super::error::{Answer, Refused};
use super::request::{
    IDEMPOTENCY_KEY, SEC_FETCH_SITE, forwarded_headers, from_leader, is_word, text, to_leader,
};
use super::route::{Access, Answered, Row};
use super::{App, Origin, now_s, session};
use crate::auth::token::{self, Invalid};
use crate::auth::{Identity, Proof};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const APPLIED_INDEX: HeaderName = HeaderName::from_static(api::headers::APPLIED_INDEX);
const LEADER_CONTACT_MS: HeaderName = HeaderName::from_static(api::headers::LEADER_CONTACT_MS);

/// How long a body may take to arrive: so long for its first 2 MiB, and as long again for each further.
const BODY_LIMIT_PER_2_MIB: Duration = Duration::from_secs(10);

/// How much of a refused request's body is still taken in, and for how long.
const DISCARD_BYTES: usize = 256 * 1024;
const DISCARD_LIMIT: Duration = Duration::from_secs(1);

/// How long a token of an unknown key waits for that key to arrive.
const NEW_KEY_LIMIT: Duration = Duration::from_millis(300);

/// How long the leader may take beyond what the client asked it to wait.
const FORWARD_LIMIT: Duration = Duration::from_secs(10);

/// How long a request waits for the next leader, when there was one a moment ago, and how often it looks.
const HANDOVER_LIMIT: Duration = Duration::from_secs(2);
const HANDOVER_LOOK: Duration = Duration::from_millis(10);

/// The innermost layer, with the row that matched.
pub(super) async fn pass(
    State((app, row)): State<(Arc<App>, &'static Row)>,
    request: Request,
    next: Next,
) -> Response {
    admit(&app, row, request, next)
        .await
        .unwrap_or_else(Refused::into_response)
}

async fn admit(app: &App, row: &Row, request: Request, next: Next) -> Answer {
    let (mut parts, body) = request.into_parts();
    let origin = parts.extensions.get::<Origin>().cloned();
    let origin = origin.expect("every listener says where a request comes from");

    let identity = match identify(app, row, &parts, &origin).await {
        Ok(identity) => identity,
        Err(refused) => {
            // Who asks first whether to send a body has not sent any.
            if !parts.headers.contains_key(EXPECT) {
                discard(body).await;
            }
            return Err(refused);
        }
    };
    let body = read_body(&parts.headers, body, row.body.limit_bytes()).await?;
    if row.answered == Answered::Write {
        ensure_idempotency_key(&mut parts.headers)?;
        let fingerprint = fingerprint(&parts, &body);
        parts.extensions.insert(fingerprint);
    }
    if let Some(identity) = identity {
        parts.extensions.insert(identity);
    }
    let elsewhere = match row.answered {
        Answered::Named => named(app, parts.uri.query())?,
        _ => None,
    };
    if let Some((node, member)) = elsewhere {
        if matches!(origin, Origin::Member { .. }) {
            return Err(Refused::bad_request(
                "node names another member than the one that is asked",
            ));
        }
        return forward(&node, row, Some(member), parts, body, &origin).await;
    }
    if matches!(row.answered, Answered::Here | Answered::Named) {
        return Ok(next.run(Request::from_parts(parts, Body::from(body))).await);
    }

    let node = app.node()?;
    let consistency = consistency(parts.uri.query())?;
    let forwarded = matches!(origin, Origin::Member { .. });
    let redirect = text(&parts.headers, &PREFER).is_some_and(prefers_redirect);
    let mut give_up = None;
    let mut unknown = None;
    loop {
        let role = node.role();
        app.note_leader(&role);
        let plan = plan(row.answered, consistency, &role, forwarded, redirect);
        let local = plan == Plan::Local;
        let request = (parts.clone(), body.clone());
        let answer = carry_out(plan, &node, row, request, next.clone(), &origin).await;
        let lost = status(&answer) == StatusCode::GATEWAY_TIMEOUT && row.doc.is_idempotent();
        let nothing_done = status(&answer) == StatusCode::SERVICE_UNAVAILABLE;
        // A leader was there a moment ago: the next one is about to be. What the last one may have done is done once,
        // whichever attempt did it. A member that forwards does this waiting itself.
        let promising = match unknown {
            Some(_) => lost || nothing_done,
            None => lost || found_no_leader(&answer) && app.had_leader_within(HANDOVER_LIMIT),
        };
        let waits = !local
            && !forwarded
            && promising
            && Instant::now() < *give_up.get_or_insert_with(|| Instant::now() + HANDOVER_LIMIT);
        if !waits {
            // That the last attempt did nothing says nothing of those before it.
            return unknown.filter(|_| nothing_done).unwrap_or(answer);
        }
        if lost {
            unknown = Some(answer);
        }
        tokio::time::sleep(HANDOVER_LOOK).await;
    }
}

/// Whether nothing was done because the leader was not there, or is not one any more.
fn found_no_leader(answer: &Answer) -> bool {
    match answer {
        // A leader that has just handed over has heard of no other yet: it is not ready for a moment.
        Err(refused) => matches!(refused.reason(), Some(Reason::NoLeader | Reason::NotReady)),
        Ok(response) => response.status() == StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn status(answer: &Answer) -> StatusCode {
    match answer {
        Err(refused) => refused.status(),
        Ok(response) => response.status(),
    }
}

async fn carry_out(
    plan: Plan,
    node: &Node,
    row: &Row,
    (parts, body): (request::Parts, Bytes),
    next: Next,
    origin: &Origin,
) -> Answer {
    match plan {
        Plan::Local => {
            let mut response = next.run(Request::from_parts(parts, Body::from(body))).await;
            tell_freshness(node, response.headers_mut());
            Ok(response)
        }
        Plan::Barrier => {
            let barrier = node.read_index().await;
            barrier.map_err(|error| Refused::of_forward(error, None))?;
            Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
        }
        Plan::Lead => Ok(next.run(Request::from_parts(parts, Body::from(body))).await),
        Plan::Forward => forward(node, row, None, parts, body, origin).await,
        Plan::Redirect(leader) => redirect_to(&leader, &parts),
        Plan::Nobody(why) => Err(Refused::no_leader(why)),
        Plan::Moved => Err(Refused::unavailable(
            Reason::NoLeader,
            "the leader has just changed: nothing was done",
        )),
    }
}

/// Who answers.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// This node, from what it has applied.
    Local,
    /// This node, once it has applied everything acknowledged so far.
    Barrier,
    /// This node, which leads; the proposal itself finds out if it does not.
    Lead,
    /// The leader, through this node.
    Forward,
    /// The leader, asked by the client itself.
    Redirect(String),
    /// Nobody now.
    Nobody(NoLeader),
    /// Nobody: it was forwarded here, and this node does not lead any more. Never a second hop.
    Moved,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    Local,
    Linearizable,
}

fn plan(
    answered: Answered,
    consistency: Option<Consistency>,
    role: &Role,
    forwarded: bool,
    redirect: bool,
) -> Plan {
    let local = match (answered, consistency) {
        (Answered::Here | Answered::Named, _) => true,
        (Answered::Write, _) => false,
        (_, Some(consistency)) => consistency == Consistency::Local,
        (Answered::LocalRead, None) => true,
        (Answered::LinearizableRead, None) => false,
    };
    match role {
        _ if local => Plan::Local,
        Role::Leader { .. } if answered == Answered::Write => Plan::Lead,
        Role::Leader { .. } => Plan::Barrier,
        Role::NoLeader { reason } => Plan::Nobody(*reason),
        Role::Follower { .. } if forwarded => Plan::Moved,
        Role::Follower { leader_http, .. } if redirect && !leader_http.is_empty() => {
            Plan::Redirect(leader_http.clone())
        }
        Role::Follower { .. } => Plan::Forward,
    }
}

fn consistency(query: Option<&str>) -> Answer<Option<Consistency>> {
    let mut found = None;
    for (key, value) in query_pairs(query) {
        if key == "consistency" {
            found = Some(match value {
                "local" => Consistency::Local,
                "linearizable" => Consistency::Linearizable,
                _ => {
                    return Err(Refused::bad_request(
                        "consistency must be local or linearizable",
                    ));
                }
            });
        }
    }
    Ok(found)
}

/// What a change asks for: method, path, precondition and body, and of the query whatever is not about the answer. So
/// a retry may wait longer than the first attempt did, and is still the same request.
fn fingerprint(parts: &request::Parts, body: &[u8]) -> Fingerprint {
    const ABOUT_THE_ANSWER: [&str; 4] = ["wait", "timeout", "format", "consistency"];
    let method = parts.method.as_str();
    let if_match = text(&parts.headers, &IF_MATCH).unwrap_or_default();
    // None of these can hold a zero byte, and the body comes last.
    let mut head = format!("{method}\0{}\0{if_match}\0", parts.uri.path());
    for (key, value) in query_pairs(parts.uri.query()) {
        if !key.is_empty() && !ABOUT_THE_ANSWER.contains(&key) {
            head.push_str(&format!("{key}={value}&"));
        }
    }
    head.push('\0');
    Fingerprint(Digest::of_parts([head.as_bytes(), body]))
}

/// Keys and values of a query, as they stand there.
pub(super) fn query_pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&');
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// RFC 7240: preferences are separated by commas, parameters by semicolons.
fn prefers_redirect(value: &str) -> bool {
    value
        .split(',')
        .filter_map(|preference| preference.split(';').next())
        .any(|preference| preference.trim().eq_ignore_ascii_case("redirect"))
}

/// Who asks, where that matters, once it is certain that they may.
async fn identify(
    app: &App,
    row: &Row,
    parts: &request::Parts,
    origin: &Origin,
) -> Answer<Option<Identity>> {
    let identity = match row.access {
        Access::Public => None,
        _ => Some(authenticate(app, parts, origin).await?),
    };
    authorise(row, identity.as_ref())?;
    Ok(identity)
}

async fn authenticate(app: &App, parts: &request::Parts, origin: &Origin) -> Answer<Identity> {
    match origin {
        Origin::ControlSocket => return Ok(Identity::control_socket()),
        Origin::MemberRoot(_) => return Ok(Identity::member_root()),
        Origin::Network(_) | Origin::Member { .. } => {}
    }
    let (token, proof) = credential(&parts.headers).ok_or_else(|| {
        app.metrics.auth(false, "missing");
        Refused::unauthorized("a bearer token is needed")
    })?;
    if proof == Proof::Cookie && is_cross_site_change(parts) {
        app.metrics.auth(false, "cross_site");
        return Err(Refused::new(
            StatusCode::FORBIDDEN,
            "a change must come from this node's own pages",
        ));
    }
    let node = app.node()?;
    match verify(app, &node, token, proof).await {
        Ok(identity) => {
            app.metrics.auth(true, "ok");
            Ok(identity)
        }
        Err(invalid) => {
            app.metrics.auth(false, invalid.as_str());
            Err(Refused::unauthorized(invalid.to_string()))
        }
    }
}

/// Verifies against what this node has; where that may be behind, once more after catching up.
///
/// Only a token with a good signature makes this node ask the leader. One of an unknown key, which anybody can make up,
/// is answered a little later instead: a new key is in use as soon as a majority has it, and is on its way to the others.
pub(super) async fn verify(
    app: &App,
    node: &Node,
    token: &str,
    proof: Proof,
) -> Result<Identity, Invalid> {
    let now = || app.signatures.verify(&node.state(), token, now_s(), proof);
    let first = now();
    let caught_up = match first {
        Err(Invalid::UnknownRecord) => node.read_index().await.is_ok(),
        Err(Invalid::UnknownKey) => {
            let kid = token::key_id(token)?;
            let mut state = node.watch();
            let arrived = async {
                state
                    .wait_for(|state| state.signing_key(&kid).is_some())
                    .await
                    .is_ok()
            };
            tokio::time::timeout(NEW_KEY_LIMIT, arrived).await == Ok(true)
        }
        _ => false,
    };
    if caught_up { now() } else { first }
}

/// The token that a request carries: the header goes before the cookie.
fn credential(headers: &HeaderMap) -> Option<(&str, Proof)> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        // A header that is there but is none of ours must not fall back to the cookie.
        let token = value
            .to_str()
            .ok()
            .and_then(token::strip_scheme)
            .unwrap_or_default();
        return Some((token, Proof::Bearer));
    }
    let cookies = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == session::COOKIE_NAME)
        .map(|(_, token)| (token, Proof::Cookie))
}

/// Browsers say where a request comes from; `SameSite=Strict` is the other half of this.
fn is_cross_site_change(parts: &request::Parts) -> bool {
    !matches!(parts.method, Method::GET | Method::HEAD)
        && text(&parts.headers, &SEC_FETCH_SITE)
            .is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn authorise(row: &Row, identity: Option<&Identity>) -> Answer<()> {
    let forbidden = |error: &str| Err(Refused::new(StatusCode::FORBIDDEN, error));
    match (row.access, identity) {
        (Access::Public, _) => Ok(()),
        (_, None) => Err(Refused::unauthorized("a bearer token is needed")),
        (Access::Any, Some(_)) => Ok(()),
        (Access::Admin, Some(identity)) if identity.role == Grade::Admin => Ok(()),
        (Access::Admin, Some(_)) => forbidden("this needs the role admin"),
        (Access::Node, Some(identity)) if identity.proof == Proof::ControlSocket => Ok(()),
        (Access::Node, Some(_)) => {
            forbidden("this can only be asked over the node's control socket")
        }
    }
}

async fn read_body(headers: &HeaderMap, body: Body, limit_bytes: usize) -> Answer<Bytes> {
    let too_large = || {
        let text = format!("the body is larger than {} MiB", limit_bytes >> 20);
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let announced = text(headers, &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit_bytes as u64) {
        return Err(too_large());
    }
    let steps = u32::try_from(limit_bytes >> 21).unwrap_or(u32::MAX).max(1);
    let whole = Limited::new(body, limit_bytes).collect();
    match tokio::time::timeout(BODY_LIMIT_PER_2_MIB * steps, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refused::bad_request("the body ended before its end")),
        Err(_) => Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        )),
    }
}

/// Takes in what is left of a small body, and forgets it: an answer that overtakes its request is followed by a reset of
/// the HTTP/2 stream, which curl 7.88 (Debian 12) reports in place of the answer.
async fn discard(mut body: Body) {
    let mut left = DISCARD_BYTES;
    let whole = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(still) => left = still,
                None => return,
            }
        }
    };
    // Whoever is slower hears of it some other way.
    let _ = tokio::time::timeout(DISCARD_LIMIT, whole).await;
}

/// Every change has a key, so that a 504 can name it; the client's own goes first.
fn ensure_idempotency_key(headers: &mut HeaderMap) -> Answer<()> {
    match headers.get(IDEMPOTENCY_KEY) {
        None => {
            let key = uuid::Uuid::new_v4().to_string();
            headers.insert(
                IDEMPOTENCY_KEY,
                HeaderValue::from_str(&key).expect("a UUID is ASCII"),
            );
            Ok(())
        }
        Some(value) if value.to_str().is_ok_and(is_word) => Ok(()),
        Some(_) => Err(Refused::bad_request(
            "Idempotency-Key must be 1 to 128 visible ASCII characters",
        )),
    }
}

/// The member that a query names, if it is not this node.
fn named(app: &App, query: Option<&str>) -> Answer<Option<(Arc<Node>, NodeId)>> {
    let Some((_, id)) = query_pairs(query).find(|(key, _)| *key == "node") else {
        return Ok(None);
    };
    let node = app.node()?;
    let member = super::members::parse_id(id)?;
    if member == node.node_id() {
        return Ok(None);
    }
    match node.state().member(member) {
        Some(_) => Ok(Some((node, member))),
        None => Err(Refused::not_found(&format!("member {member}"))),
    }
}

/// Has the leader answer, or `member`.
async fn forward(
    node: &Node,
    row: &Row,
    member: Option<NodeId>,
    parts: request::Parts,
    body: Bytes,
    origin: &Origin,
) -> Answer {
    let mut headers = forwarded_headers(&parts.headers);
    let client = match origin {
        Origin::Network(address) => address.to_string(),
        Origin::Member { client, .. } => client.clone().unwrap_or_default(),
        Origin::ControlSocket | Origin::MemberRoot(_) => {
            // Root has no token to send along: a short-lived one stands for it.
            let jti = uuid::Uuid::new_v4();
            let token = token::mint_for_control_socket(&node.state(), jti, now_s())
                .map_err(|error| Refused::unavailable(Reason::NotReady, error.to_string()))?;
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            headers.insert(AUTHORIZATION, value.expect("a token is ASCII"));
            String::new()
        }
    };
    let limit = FORWARD_LIMIT + super::policy::asked_wait(parts.uri.query());
    let request = to_leader(&parts, &headers, &body, client);
    if let Some(member) = member {
        let answer = node.forward_http_to(member, &request, limit).await;
        return answer.ok().and_then(from_leader).ok_or_else(|| {
            Refused::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!("member {member} does not answer"),
            )
        });
    }
    let answer = node.forward_http(&request, limit).await;
    let changes = row.answered == Answered::Write;
    let key = text(&headers, &IDEMPOTENCY_KEY).filter(|_| changes);
    let answer = answer.map_err(|error| Refused::of_forward(error, key))?;
    from_leader(answer)
        .ok_or_else(|| Refused::of_forward(ForwardError::Lost("unreadable".into()), key))
}

fn redirect_to(leader: &str, parts: &request::Parts) -> Answer {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::try_from(format!("https://{leader}{path}")).map_err(|_| {
        Refused::unavailable(Reason::NoLeader, "the leader's address is not usable")
    })?;
    Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]).into_response())
}

fn tell_freshness(node: &Node, headers: &mut HeaderMap) {
    headers.insert(APPLIED_INDEX, node.state().index().into());
    if let Some(elapsed_ms) = node.status().leader_contact_ms {
        headers.insert(LEADER_CONTACT_MS, elapsed_ms.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: Role = Role::Leader { term: 1 };
    const NOBODY: Role = Role::NoLeader {
        reason: NoLeader::QuorumLost,
    };

    fn follower() -> Role {
        Role::Follower {
            leader_id: NodeId(1),
            leader_address: "192.0.2.1:9600".into(),
            leader_http: "192.0.2.1:8443".into(),
        }
    }

    fn check(answered: Answered, consistency: Option<Consistency>, role: Role, expected: Plan) {
        assert_eq!(plan(answered, consistency, &role, false, false), expected);
    }

    #[test]
    fn writes_go_to_the_leader() {
        check(Answered::Write, None, LEADER, Plan::Lead);
        check(Answered::Write, None, follower(), Plan::Forward);
        check(
            Answered::Write,
            None,
            NOBODY,
            Plan::Nobody(NoLeader::QuorumLost),
        );
        // Asking for less does not make a write local.
        check(
            Answered::Write,
            Some(Consistency::Local),
            follower(),
            Plan::Forward,
        );
    }

    #[test]
    fn local_reads_are_answered_with_no_leader_at_all() {
        for role in [LEADER, follower(), NOBODY] {
            check(Answered::LocalRead, None, role.clone(), Plan::Local);
            check(
                Answered::LinearizableRead,
                Some(Consistency::Local),
                role,
                Plan::Local,
            );
        }
    }

    #[test]
    fn linearizable_reads_need_a_leader() {
        for (answered, asked) in [
            (Answered::LinearizableRead, None),
            (Answered::LocalRead, Some(Consistency::Linearizable)),
        ] {
            check(answered, asked, LEADER, Plan::Barrier);
            check(answered, asked, follower(), Plan::Forward);
            check(answered, asked, NOBODY, Plan::Nobody(NoLeader::QuorumLost));
        }
    }

    #[test]
    fn there_is_never_a_second_hop() {
        let plan = plan(Answered::Write, None, &follower(), true, false);
        assert_eq!(plan, Plan::Moved);
    }

    #[test]
    fn a_redirect_is_given_to_those_who_prefer_it() {
        let redirected = plan(Answered::Write, None, &follower(), false, true);
        assert_eq!(redirected, Plan::Redirect("192.0.2.1:8443".into()));
        assert!(prefers_redirect("respond-async, Redirect; x=1"));
        assert!(!prefers_redirect("redirected"));
    }

    #[test]
    fn a_retry_is_known_by_what_it_asks_for() {
        let of = |uri: &str, if_match: Option<&str>, body: &str| {
            let mut request = Request::put(uri);
            if let Some(tag) = if_match {
                request = request.header(IF_MATCH, tag);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            fingerprint(&parts, body.as_bytes())
        };
        let first = of("/p?wait=all&timeout=1s", None, "a");
        assert_eq!(first, of("/p?timeout=30s", None, "a"));
        assert_eq!(first, of("/p", None, "a"));
        for other in [
            of("/q", None, "a"),
            of("/p?force=true", None, "a"),
            of("/p", Some("\"1-1\""), "a"),
            of("/p", None, "b"),
            of("/p", None, ""),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn consistency_is_read_from_the_query() {
        assert_eq!(
            consistency(Some("a=b&consistency=local")).unwrap(),
            Some(Consistency::Local)
        );
        assert_eq!(consistency(None).unwrap(), None);
        assert!(consistency(Some("consistency=eventual")).is_err());
    }

    #[test]
    fn the_header_goes_before_the_cookie() {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_static("a=b; neuwerk_auth=cookie"));
        assert_eq!(credential(&headers), Some(("cookie", Proof::Cookie)));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer header"));
        assert_eq!(credential(&headers), Some(("header", Proof::Bearer)));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic x"));
        assert_eq!(credential(&headers), Some(("", Proof::Bearer)));
    }
}
