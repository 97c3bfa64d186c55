//! Reading and replacing the policy.
//!
//! A policy is validated and compiled before it is proposed, committed before anybody enforces it,
//! and answered with 200 only once those that were to be waited for enforce it.

use std::sync::Arc;
use std::time::Duration;

use ::policy::{Compiled, Document};
use api::error::Problem;
use api::policy::{DryRun, Format, Lint, Pending, PendingMember, PolicyTag, Wait};
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse as _;
use axum::{Extension, Json};
use bytes::Bytes;
use cluster::{Digest, MemberStatus, Node, NodeId, PolicyMark, ProposeError, Role};
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::change::{Change, unexpected};
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use super::request::text;
use super::{App, Origin};
const REVISION: HeaderName = HeaderName::from_static(api::headers::REVISION);
const LINT_COUNT: HeaderName = HeaderName::from_static(api::headers::LINT_COUNT);
const LINT: HeaderName = HeaderName::from_static(api::headers::LINT);

/// The feature level from which on every member knows rules by name.
const NAMES_LEVEL: u32 = 2;
/// How long a `PUT` waits if it does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(5);
/// Longest wait that may be asked for.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How often the members' reports are looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longest message that a revision keeps.
const MAX_MESSAGE_BYTES: usize = cluster::state::MESSAGE_BYTES;
/// Lints that are given as headers; all are counted.
const LINT_HEADERS: usize = 16;
/// Longest lint that is given as a header, in bytes.
const LINT_HEADER_BYTES: usize = 240;

pub(super) static READ: Doc = Doc::new("Read the policy")
    .params(&[Param {
        name: "format",
        description: "`json` or `yaml`; goes before `Accept`",
    }])
    .answers(&[
        (200, "The policy", Some(openapi::POLICY)),
        (304, "Not changed since `If-None-Match`", None),
        (404, "No policy was ever put", Some(openapi::ERROR)),
    ]);

pub(super) async fn read(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let format = answer_format(query.as_deref(), &headers)?;
    let node = app.node()?;
    let state = node.state();
    let policy = state
        .policy()
        .ok_or_else(|| Refused::not_found("policy: none was ever put"))?;
    let tag = tag(&node, policy.revision);
    if none_match(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, tag_headers(&tag)).into_response());
    }
    let bytes = state.document(policy).ok_or_else(unexpected)?;
    document_response(bytes.into(), format, &tag)
}

pub(super) static REPLACE: Doc = Doc::new("Replace the policy")
    .takes(openapi::POLICY)
    .idempotent()
    .conditional()
    .params(&[
        Param {
            name: "wait",
            description: "`committed`, `self` or `all` (the default): who must enforce it before the answer",
        },
        Param {
            name: "timeout",
            description: "how long to wait at most, for example `5s` (the default); at most `300s`",
        },
        Param {
            name: "dry_run",
            description: "`true`: validate and compile only",
        },
        Param {
            name: "format",
            description: "`json` or `yaml` of the answer; goes before `Accept`",
        },
        Param {
            name: "message",
            description: "why, for those who read the history; at most 1024 bytes",
        },
    ])
    .answers(&[
        (200, "The policy as it is kept, enforced where it was to be; with `dry_run` a `DryRun`", Some(openapi::POLICY)),
        (202, "Committed, and not yet enforced by the members named", Some(openapi::json("Pending"))),
        (400, "Every problem of the document", Some(openapi::ERROR)),
        (412, "It was changed in between", Some(openapi::ERROR)),
        (413, "Larger than 64 MiB", Some(openapi::ERROR)),
        (415, "Neither JSON nor YAML", Some(openapi::ERROR)),
    ]);

pub(super) async fn replace(
    State(app): State<Arc<App>>,
    change: Change,
    Extension(origin): Extension<Origin>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let query = PutQuery::parse(query.as_deref())?;
    let read_as = body_format(&headers)?;
    let answer_as = match query.format {
        Some(format) => format,
        None => answer_format(None, &headers)?,
    };
    let candidate = check(&app, body, read_as).await?;
    let if_match = if_match(&headers, change.node())?;
    if query.dry_run {
        return candidate.dry_run(&change, if_match);
    }
    candidate.admitted_by(change.node())?;
    let revision = commit(&change, &candidate, if_match, query.message).await?;
    let own = origin.entered_at(change.node().node_id());
    let pending = match query.wait {
        Wait::Committed => Vec::new(),
        Wait::Own => enforced(change.node(), revision, Some(own), query.timeout).await?,
        Wait::All => enforced(change.node(), revision, None, query.timeout).await?,
    };
    let tag = tag(change.node(), revision);
    let mut response = if pending.is_empty() {
        document_response(candidate.canonical, answer_as, &tag)?
    } else {
        let body = Pending {
            revision,
            pending,
            lints: candidate.lints.clone(),
        };
        (StatusCode::ACCEPTED, tag_headers(&tag), Json(body)).into_response()
    };
    add_lints(response.headers_mut(), &candidate.lints);
    Ok(response)
}

/// A valid document that compiles.
struct Candidate {
    canonical: Bytes,
    hash: Digest,
    lints: Vec<Lint>,
    has_names: bool,
}

impl Candidate {
    /// Whether every member can enforce it. Versions of feature level 1 know no rules by name.
    fn admitted_by(&self, node: &Node) -> Answer<()> {
        let features = node.features();
        if self.has_names && features.level < NAMES_LEVEL {
            let needed = NAMES_LEVEL;
            let error = ProposeError::FeatureLevel { needed, features };
            return Err(Refused::of_proposal(error, None));
        }
        Ok(())
    }

    fn dry_run(&self, change: &Change, if_match: Option<u64>) -> Answer {
        let state = change.state();
        let current = state.policy().map_or(0, |policy| policy.revision);
        if if_match.is_some_and(|expected| expected != current) {
            return Err(changed_in_between(change.node(), current));
        }
        let outcome = DryRun {
            valid: true,
            hash: self.hash.to_string(),
            changed: state.policy().is_none_or(|policy| policy.hash != self.hash),
            lints: self.lints.clone(),
        };
        Ok(Json(outcome).into_response())
    }
}

/// Parses, validates and compiles, off the threads that serve other requests.
async fn check(app: &App, body: Bytes, format: Format) -> Answer<Candidate> {
    let turn = app
        .policies
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let checked = tokio::task::spawn_blocking(move || check_now(&body, format)).await;
    drop(turn);
    checked.unwrap_or_else(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Err(Refused::new(
            status,
            "the policy could not be checked; the node's log has more",
        ))
    })
}

fn check_now(body: &[u8], format: Format) -> Answer<Candidate> {
    let parsed = match format {
        Format::Json => Document::parse_json(body),
        Format::Yaml => Document::parse_yaml(body),
    };
    let document = parsed.map_err(|invalid| {
        let problems = invalid.problems.into_iter().map(|problem| Problem {
            path: problem.path,
            reason: problem.reason,
            suggestion: problem.suggestion,
        });
        Refused::invalid("the policy is not valid", problems.collect())
    })?;
    let compiled = Compiled::compile(&document, 0).map_err(|error| {
        let problem = Problem {
            path: String::new(),
            reason: error.to_string(),
            suggestion: None,
        };
        Refused::invalid("the policy cannot be enforced", vec![problem])
    })?;
    let canonical = Bytes::from(document.to_json());
    let lints = document.lint().into_iter().map(|lint| Lint {
        path: lint.path,
        message: lint.message,
    });
    Ok(Candidate {
        hash: Digest::of(&canonical),
        lints: lints.collect(),
        has_names: compiled.name_rules().next().is_some(),
        canonical,
    })
}

/// Commits the policy and returns its revision.
async fn commit(
    change: &Change,
    candidate: &Candidate,
    if_match: Option<u64>,
    message: String,
) -> Answer<u64> {
    let applied = change
        .policy(candidate.canonical.clone(), if_match, message)
        .await?;
    match applied.response {
        cluster::Response::Policy { revision, .. } => Ok(revision),
        cluster::Response::Refused(cluster::Refusal::Conflict { current, .. }) => {
            Err(changed_in_between(change.node(), current))
        }
        other => {
            other.accepted()?;
            Err(unexpected())
        }
    }
}

fn changed_in_between(node: &Node, current: u64) -> Refused {
    let now = tag(node, current).to_string();
    Refused::precondition("the policy was changed in between", Some(now))
}

/// Waits until the members enforce `revision`, all or only one of them, and returns those that do
/// not: at the end of the time, or as soon as there is nothing left to wait for.
async fn enforced(
    node: &Node,
    revision: u64,
    only: Option<NodeId>,
    timeout: Duration,
) -> Answer<Vec<PendingMember>> {
    let state = node.state();
    // Itself, or the oldest one that is kept if it went with the history meanwhile.
    let wanted = state
        .policy_history()
        .find(|policy| policy.revision >= revision)
        .map(|policy| PolicyMark::of(&state, policy))
        .ok_or_else(unexpected)?;
    drop(state);
    let give_up = tokio::time::Instant::now() + timeout;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let leads = matches!(node.role(), Role::Leader { .. });
        let waiting = node
            .members()
            .into_iter()
            .filter(|member| only.is_none_or(|only| member.node_id == only))
            .filter_map(|member| Some((hindrance(&member, &wanted)?, member.node_id)));
        let waiting: Vec<_> = waiting.collect();
        let hopeful = waiting
            .iter()
            .any(|(hindrance, _)| *hindrance == Hindrance::Behind);
        if leads && hopeful && tokio::time::Instant::now() < give_up {
            continue;
        }
        let pending = waiting
            .into_iter()
            .map(|(hindrance, node_id)| PendingMember {
                node_id: node_id.to_string(),
                reason: hindrance.sentence(leads),
            });
        return Ok(pending.collect());
    }
}

/// Why a member does not enforce a revision.
#[derive(Debug, PartialEq, Eq)]
enum Hindrance {
    /// It is on its way.
    Behind,
    /// It does not answer.
    Unreachable { silent_ms: Option<u64> },
    /// It has tried and failed.
    Failed(String),
    /// It is in quarantine.
    Quarantined(String),
}

impl Hindrance {
    fn sentence(self, leads: bool) -> String {
        match self {
            Hindrance::Behind if !leads => {
                "the leader has changed: its state is not known here".into()
            }
            Hindrance::Behind => "it does not enforce the policy yet".into(),
            Hindrance::Unreachable { silent_ms: None } => "it is unreachable".into(),
            Hindrance::Unreachable {
                silent_ms: Some(ms),
            } => {
                format!("it is unreachable: last heard from {} s ago", ms / 1000)
            }
            Hindrance::Failed(reason) => reason,
            Hindrance::Quarantined(reason) => format!("it is in quarantine: {reason}"),
        }
    }
}

fn hindrance(member: &MemberStatus, wanted: &PolicyMark) -> Option<Hindrance> {
    let report = member.report.as_ref();
    if report.is_some_and(|report| report.enforced.reaches(wanted)) {
        return None;
    }
    if let Some(reason) = report.and_then(|report| report.quarantine.clone()) {
        return Some(Hindrance::Quarantined(reason));
    }
    if !member.live {
        return Some(Hindrance::Unreachable {
            silent_ms: member.last_contact_ms,
        });
    }
    let failure = report.filter(|report| report.applied.reaches(wanted));
    match failure.and_then(|report| report.compile_error.clone()) {
        Some(reason) => Some(Hindrance::Failed(reason)),
        None => Some(Hindrance::Behind),
    }
}

/// What a `PUT` asks for. Parameters that are not known are refused: a misspelt `dry_run` must not
/// put a policy in force.
#[derive(Debug, PartialEq, Eq)]
struct PutQuery {
    wait: Wait,
    timeout: Duration,
    dry_run: bool,
    format: Option<Format>,
    message: String,
}

impl PutQuery {
    fn parse(query: Option<&str>) -> Answer<Self> {
        let mut parsed = Self {
            wait: Wait::default(),
            timeout: DEFAULT_WAIT,
            dry_run: false,
            format: None,
            message: String::new(),
        };
        for (key, value) in pairs(query) {
            match (key, value) {
                ("wait", "committed") => parsed.wait = Wait::Committed,
                ("wait", "self") => parsed.wait = Wait::Own,
                ("wait", "all") => parsed.wait = Wait::All,
                ("wait", _) => {
                    return Err(Refused::bad_request("wait must be committed, self or all"));
                }
                ("timeout", text) => parsed.timeout = parse_timeout(text)?,
                ("dry_run", "true") => parsed.dry_run = true,
                ("dry_run", "false") => parsed.dry_run = false,
                ("dry_run", _) => {
                    return Err(Refused::bad_request("dry_run must be true or false"));
                }
                ("format", text) => parsed.format = Some(parse_format(text)?),
                ("message", text) => parsed.message = parse_message(text)?,
                ("consistency", _) => {}
                (key, _) => {
                    let known = "wait, timeout, dry_run, format, message, consistency";
                    return Err(Refused::bad_request(format!(
                        "there is no parameter {key:?}; there are {known}"
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

/// How long a request asks to wait, as far as it says so.
pub(super) fn asked_wait(query: Option<&str>) -> Duration {
    let asked = pairs(query).find(|(key, _)| *key == "timeout");
    asked
        .and_then(|(_, text)| parse_timeout(text).ok())
        .unwrap_or(DEFAULT_WAIT)
}

pub(super) fn parse_timeout(text: &str) -> Answer<Duration> {
    api::duration::parse(text)
        .ok()
        .filter(|timeout| *timeout <= MAX_WAIT)
        .ok_or_else(|| {
            Refused::bad_request("timeout must be a duration of at most 300s, for example 5s")
        })
}

/// A value of a query, decoded: one line of text.
fn parse_message(text: &str) -> Answer<String> {
    let pair = format!("message={text}");
    let (_, message) = form_urlencoded::parse(pair.as_bytes())
        .next()
        .expect("there is one pair");
    let message = message.trim();
    if message.len() > MAX_MESSAGE_BYTES || message.chars().any(char::is_control) {
        return Err(Refused::bad_request(format!(
            "message must be one line of at most {MAX_MESSAGE_BYTES} bytes"
        )));
    }
    Ok(message.to_owned())
}

fn parse_format(text: &str) -> Answer<Format> {
    match text {
        "json" => Ok(Format::Json),
        "yaml" => Ok(Format::Yaml),
        _ => Err(Refused::bad_request("format must be json or yaml")),
    }
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn body_format(headers: &HeaderMap) -> Answer<Format> {
    match headers.get(CONTENT_TYPE) {
        None => Ok(Format::Json),
        Some(value) => {
            value.to_str().ok().and_then(Format::of_media_type).ok_or_else(|| {
                let text = "the policy must be application/json or application/yaml, and Content-Type say which";
                Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
            })
        }
    }
}

/// `?format=` goes before `Accept`; of `Accept` the first media type that is known.
pub(super) fn answer_format(query: Option<&str>, headers: &HeaderMap) -> Answer<Format> {
    if let Some((_, text)) = pairs(query).find(|(key, _)| *key == "format") {
        return parse_format(text);
    }
    let accepted = text(headers, &ACCEPT).unwrap_or_default();
    Ok(accepted
        .split(',')
        .find_map(Format::of_media_type)
        .unwrap_or_default())
}

pub(super) fn tag(node: &Node, revision: u64) -> PolicyTag {
    let lineage = node.state().lineage();
    PolicyTag {
        lineage: lineage
            .map(|lineage| lineage.to_string())
            .unwrap_or_default(),
        revision,
    }
}

fn none_match(headers: &HeaderMap, tag: &PolicyTag) -> bool {
    let Some(value) = text(headers, &IF_NONE_MATCH) else {
        return false;
    };
    let tag = tag.to_string();
    // RFC 9110 §13.1.2: weak comparison.
    value
        .split(',')
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == "*" || one == tag)
}

fn if_match(headers: &HeaderMap, node: &Node) -> Answer<Option<u64>> {
    let Some(value) = text(headers, &IF_MATCH) else {
        return Ok(None);
    };
    let current: Option<u64> = node.state().policy().map(|policy| policy.revision);
    let conflict = || {
        let now = current.map(|revision| tag(node, revision).to_string());
        Refused::precondition("If-Match names no current policy of this cluster", now)
    };
    if value.trim() == "*" {
        return current.map(Some).ok_or_else(conflict);
    }
    let asked: PolicyTag = value.parse().map_err(|_| conflict())?;
    if asked.lineage != tag(node, 0).lineage {
        return Err(conflict());
    }
    Ok(Some(asked.revision))
}

fn tag_headers(tag: &PolicyTag) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let etag = HeaderValue::try_from(tag.to_string()).expect("hexadecimal digits in quotes");
    headers.insert(ETAG, etag);
    headers.insert(REVISION, tag.revision.into());
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers
}

pub(super) fn document_response(canonical: Bytes, format: Format, tag: &PolicyTag) -> Answer {
    let body = match format {
        Format::Json => canonical,
        Format::Yaml => {
            let document = Document::parse_json(&canonical).map_err(|_| unexpected())?;
            Bytes::from(document.to_yaml())
        }
    };
    let mut headers = tag_headers(tag);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    Ok((headers, body).into_response())
}

fn add_lints(headers: &mut HeaderMap, lints: &[Lint]) {
    headers.insert(LINT_COUNT, lints.len().into());
    for lint in lints.iter().take(LINT_HEADERS) {
        let text = format!("{}: {}", lint.path, lint.message);
        let text: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_graphic() || c == ' ' {
                    c
                } else {
                    '?'
                }
            })
            .take(LINT_HEADER_BYTES)
            .collect();
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(LINT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::{MemberRole, NodeReport};

    use super::*;

    fn mark(revision: u64) -> PolicyMark {
        PolicyMark {
            index: revision,
            revision,
            ..PolicyMark::default()
        }
    }

    fn member(live: bool, enforced: u64) -> MemberStatus {
        MemberStatus {
            node_id: NodeId(2),
            name: String::new(),
            address: String::new(),
            http_address: String::new(),
            role: MemberRole::Follower,
            voter: true,
            leaving: false,
            live,
            last_contact_ms: Some(2_500),
            matched_index: 0,
            applied_index: 0,
            lag: 0,
            checked_index: None,
            report: Some(NodeReport {
                applied: mark(7),
                enforced: mark(enforced),
                ..NodeReport::default()
            }),
            clock_offset_ms: None,
        }
    }

    #[test]
    fn who_enforces_hinders_nothing() {
        assert_eq!(hindrance(&member(true, 7), &mark(7)), None);
        assert_eq!(hindrance(&member(true, 8), &mark(7)), None);
        // What it reported before it fell silent still counts.
        assert_eq!(hindrance(&member(false, 7), &mark(7)), None);
    }

    #[test]
    fn hindrances() {
        assert_eq!(
            hindrance(&member(true, 6), &mark(7)),
            Some(Hindrance::Behind)
        );
        let silent = Hindrance::Unreachable {
            silent_ms: Some(2_500),
        };
        assert_eq!(hindrance(&member(false, 6), &mark(7)), Some(silent));
        let mut failed = member(true, 6);
        failed.report.as_mut().unwrap().compile_error = Some("no".into());
        assert_eq!(
            hindrance(&failed, &mark(7)),
            Some(Hindrance::Failed("no".into()))
        );
        // An older policy's failure says nothing of this one.
        failed.report.as_mut().unwrap().applied = mark(6);
        assert_eq!(hindrance(&failed, &mark(7)), Some(Hindrance::Behind));
        let mut unknown = member(true, 0);
        unknown.report = None;
        assert_eq!(hindrance(&unknown, &mark(7)), Some(Hindrance::Behind));
    }

    #[test]
    fn queries() {
        let parsed =
            PutQuery::parse(Some("wait=self&timeout=250ms&dry_run=true&format=yaml")).unwrap();
        let expected = PutQuery {
            wait: Wait::Own,
            timeout: Duration::from_millis(250),
            dry_run: true,
            format: Some(Format::Yaml),
            message: String::new(),
        };
        assert_eq!(parsed, expected);
        assert_eq!(PutQuery::parse(None).unwrap().wait, Wait::All);
        for query in [
            "wait=none",
            "timeout=5",
            "timeout=301s",
            "dry_run",
            "dryrun=true",
            "format=xml",
        ] {
            assert!(PutQuery::parse(Some(query)).is_err(), "{query}");
        }
    }

    #[test]
    fn the_answer_format_is_negotiated() {
        let mut headers = HeaderMap::new();
        assert_eq!(answer_format(None, &headers).unwrap(), Format::Json);
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("text/html, application/yaml;q=0.9, */*"),
        );
        assert_eq!(answer_format(None, &headers).unwrap(), Format::Yaml);
        assert_eq!(
            answer_format(Some("format=json"), &headers).unwrap(),
            Format::Json
        );
    }

    #[test]
    fn lints_fit_into_headers() {
        let lints = vec![
            Lint {
                path: "source_groups[0]".into(),
                message: "naïve\nname ".repeat(50),
            };
            LINT_HEADERS + 1
        ];
        let mut headers = HeaderMap::new();
        add_lints(&mut headers, &lints);
        assert_eq!(headers[LINT_COUNT], "17");
        assert_eq!(headers.get_all(LINT).iter().count(), LINT_HEADERS);
    }
}
