//! Records that are replaced as a whole: their entity tags, and the preconditions that name them (RFC 9110 §8.8.3, §13).

use api::policy::PolicyTag;
use cluster::{Refusal, State};
use http::header::{ETAG, HeaderName, IF_MATCH};
use http::{HeaderMap, HeaderValue};

use super::error::{Answer, Refused};
use super::request::text;

/// The header that names a record's revision.
pub(super) fn etag(state: &State, revision: u64) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::try_from(tag(state, revision).to_string());
    (ETAG, value.expect("hexadecimal digits in quotes"))
}

/// The revision that a change is based on, if it says so.
///
/// # Errors
/// 412: what it names is no revision in this cluster's history.
pub(super) fn if_match(headers: &HeaderMap, state: &State) -> Answer<Option<u64>> {
    let Some(value) = text(headers, &IF_MATCH) else {
        return Ok(None);
    };
    if value.trim() == "*" {
        return Ok(None);
    }
    let asked = value.parse::<PolicyTag>().ok();
    match asked.filter(|asked| asked.lineage == tag(state, 0).lineage) {
        Some(asked) => Ok(Some(asked.revision)),
        None => Err(Refused::precondition(
            "If-Match names no revision of this record",
            None,
        )),
    }
}

/// 412 with the tag of `record` as it is now; other refusals as they are.
pub(super) fn conflict(refusal: Refusal, record: &str, state: &State) -> Refused {
    match refusal {
        Refusal::Conflict { current, .. } => Refused::precondition(
            format!("{record} was changed in between"),
            Some(tag(state, current).to_string()),
        ),
        other => other.into(),
    }
}

fn tag(state: &State, revision: u64) -> PolicyTag {
    PolicyTag {
        lineage: state
            .lineage()
            .map(|lineage| lineage.to_string())
            .unwrap_or_default(),
        revision,
    }
}
