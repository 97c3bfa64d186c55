//! The one body that every refusal carries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not answered as asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence for people.
    pub error: String,
    /// A word for programs, where the status alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// All problems of a document at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Problem>,
    /// With [`Reason::FateUnknown`]: the key under which a retry is safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

impl ErrorBody {
    /// A body with a sentence only.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            ..Self::default()
        }
    }
}

/// Refusals that a program may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No leader is known right now.
    NoLeader,
    /// There is a leader, but no quorum acknowledges it.
    NoQuorum,
    /// The node's control plane is starting, restarting or not yet a member.
    NotReady,
    /// The disk is full: nothing new is accepted.
    StorageFull,
    /// The change may or may not have been made.
    FateUnknown,
    /// The record was changed by somebody else in between.
    Conflict,
    /// Too many attempts.
    RateLimited,
    /// Members of an older version would not understand it: upgrade them first.
    FeatureLevel,
}

/// One problem of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where, for example `source_groups[2].rules[0].match.dst_ports[1]`; empty: the whole document.
    pub path: String,
    /// What is wrong, as a sentence.
    pub reason: String,
    /// What was probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_error_is_the_published_shape() {
        let json = serde_json::to_string(&ErrorBody::new("no")).unwrap();
        assert_eq!(json, r#"{"error":"no"}"#);
    }

    #[test]
    fn reasons_are_words() {
        let body = ErrorBody {
            reason: Some(Reason::NoQuorum),
            ..ErrorBody::new("no")
        };
        let json = serde_json::to_string(&body).unwrap();
        assert_eq!(json, r#"{"error":"no","reason":"no_quorum"}"#);
    }
}
