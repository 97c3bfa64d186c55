//! Refusals: what went wrong, as a status and the one error body.

use std::time::Duration;

use api::error::{ErrorBody, Problem, Reason};
use axum::response::{IntoResponse, Response};
use cluster::{ForwardError, NoLeader, ProposeError, Refusal};
use http::header::{ETAG, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};

/// A refusal on its way to the client.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    // Boxed, because every handler's result is as large as its refusal.
    body: Box<ErrorBody>,
    headers: Box<HeaderMap>,
}

/// What a handler returns.
pub type Answer<T = Response> = Result<T, Refused>;

impl Refused {
    /// A refusal with a sentence.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            body: Box::new(ErrorBody::new(error)),
            headers: Box::default(),
        }
    }

    /// 400 with a sentence.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 400 with every problem of a document.
    pub fn invalid(error: impl Into<String>, errors: Vec<Problem>) -> Self {
        let mut refused = Self::bad_request(error);
        refused.body.errors = errors;
        refused
    }

    /// 401, with the scheme that would do.
    pub fn unauthorized(error: impl Into<String>) -> Self {
        let mut refused = Self::new(StatusCode::UNAUTHORIZED, error);
        let scheme = HeaderValue::from_static("Bearer");
        refused
            .headers
            .insert(http::header::WWW_AUTHENTICATE, scheme);
        refused
    }

    /// 404 for a record.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    /// 412 with the tag as it is now.
    pub fn precondition(error: impl Into<String>, etag: Option<String>) -> Self {
        let mut refused = Self::new(StatusCode::PRECONDITION_FAILED, error);
        refused.body.reason = Some(Reason::Conflict);
        if let Some(value) = etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
            refused.headers.insert(ETAG, value);
        }
        refused
    }

    /// 429 with the time to wait.
    pub fn rate_limited(pause: Duration) -> Self {
        let mut refused = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many failed attempts from this address",
        );
        refused.body.reason = Some(Reason::RateLimited);
        refused.retry_after(pause)
    }

    /// 503 with a reason, to be tried again in a second.
    pub fn unavailable(reason: Reason, error: impl Into<String>) -> Self {
        let mut refused = Self::new(StatusCode::SERVICE_UNAVAILABLE, error);
        refused.body.reason = Some(reason);
        refused.retry_after(Duration::from_secs(1))
    }

    /// 503 because there is nobody to decide.
    pub fn no_leader(why: NoLeader) -> Self {
        let reason = match why {
            NoLeader::QuorumLost => Reason::NoQuorum,
            NoLeader::LeaderSilent | NoLeader::Electing => Reason::NoLeader,
            NoLeader::Starting | NoLeader::NotMember | NoLeader::Removed | NoLeader::Stopped => {
                Reason::NotReady
            }
        };
        Self::unavailable(reason, format!("no change can be made now: {why}"))
    }

    /// 504 that names the key under which a retry is safe.
    pub fn fate_unknown(idempotency_key: Option<String>) -> Self {
        let mut refused = Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the change may or may not have been made; a retry with this Idempotency-Key makes it at most once",
        );
        refused.body.reason = Some(Reason::FateUnknown);
        refused.body.idempotency_key = idempotency_key;
        refused
    }

    /// 500 because the system gave no random bytes.
    pub fn no_randomness() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "the system gave no random bytes")
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The word for programs.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.body.reason
    }

    fn retry_after(mut self, pause: Duration) -> Self {
        let seconds = pause.as_millis().div_ceil(1000).max(1);
        let value = HeaderValue::try_from(seconds.to_string()).expect("digits");
        self.headers.insert(RETRY_AFTER, value);
        self
    }

    /// What became of a proposal that has no answer.
    pub fn of_proposal(error: ProposeError, idempotency_key: Option<&str>) -> Self {
        match error {
            ProposeError::NoLeader(why) => Self::no_leader(why),
            ProposeError::NotLeader { .. } => Self::unavailable(
                Reason::NoLeader,
                "the leader has just changed: nothing was done",
            ),
            ProposeError::Sealing(_) => Self::unavailable(Reason::NotReady, error.to_string()),
            ProposeError::StorageFull => {
                let mut refused = Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string());
                refused.body.reason = Some(Reason::StorageFull);
                refused
            }
            ProposeError::FeatureLevel { .. } => {
                let mut refused = Self::new(StatusCode::CONFLICT, error.to_string());
                refused.body.reason = Some(Reason::FeatureLevel);
                refused
            }
            ProposeError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            ProposeError::FateUnknown => Self::fate_unknown(idempotency_key.map(str::to_owned)),
        }
    }

    /// What became of a request that was forwarded and has no answer. A key is given for changes
    /// only: a read that got lost changed nothing.
    pub fn of_forward(error: ForwardError, idempotency_key: Option<&str>) -> Self {
        match (error, idempotency_key) {
            (ForwardError::NoLeader(why), _) => Self::no_leader(why),
            (ForwardError::Lost(_), Some(key)) => Self::fate_unknown(Some(key.to_owned())),
            (error, _) => Self::unavailable(Reason::NoLeader, error.to_string()),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::NotInitialised => {
                return Self::unavailable(Reason::NotReady, refusal.to_string());
            }
            Refusal::Conflict { .. } => return Self::precondition(refusal.to_string(), None),
            Refusal::NotFound { .. } | Refusal::MemberRemoved => StatusCode::NOT_FOUND,
            Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Corrupt => StatusCode::BAD_REQUEST,
            Refusal::RoleExceeded | Refusal::Credential(_) => StatusCode::FORBIDDEN,
            Refusal::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            // Chunks that went missing between two entries: nothing was changed, a retry puts them.
            Refusal::MissingChunks { .. } => {
                return Self::unavailable(Reason::NotReady, refusal.to_string());
            }
            Refusal::AlreadyInitialised { .. }
            | Refusal::Exists { .. }
            | Refusal::Full { .. }
            | Refusal::ActiveKey
            | Refusal::AccountDisabled
            | Refusal::NotLeaving
            | Refusal::LastMember
            | Refusal::Trust(_)
            | Refusal::NoVoter
            | Refusal::FeatureLevel { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, *self.headers, axum::Json(*self.body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_leader_it_is_503_with_the_time_to_retry() {
        for (why, expected) in [
            (NoLeader::QuorumLost, Reason::NoQuorum),
            (NoLeader::LeaderSilent, Reason::NoLeader),
            (NoLeader::NotMember, Reason::NotReady),
        ] {
            let refused = Refused::no_leader(why);
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(refused.headers[RETRY_AFTER], "1");
            assert_eq!(refused.reason(), Some(expected));
        }
    }

    #[test]
    fn a_lost_answer_is_504_for_changes_only() {
        let lost = || ForwardError::Lost("reset".into());
        let change = Refused::of_forward(lost(), Some("k"));
        assert_eq!(change.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(change.body.idempotency_key.as_deref(), Some("k"));
        let read = Refused::of_forward(lost(), None);
        assert_eq!(read.status, StatusCode::SERVICE_UNAVAILABLE);
        let undelivered = Refused::of_forward(ForwardError::Unreachable("down".into()), Some("k"));
        assert_eq!(undelivered.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_pause_is_rounded_up() {
        let refused = Refused::rate_limited(Duration::from_millis(1_200));
        assert_eq!(refused.headers[RETRY_AFTER], "2");
    }
}
