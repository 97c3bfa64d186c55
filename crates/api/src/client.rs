//! A typed client: over HTTPS with a token, or over a node's control socket.
//!
//! One request, one answer; nothing is retried here. What a caller may want to act on is told
//! apart by [`Error`].

mod dataplane;
mod joining;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::{
    ServiceAccount, ServiceAccountCreateRequest, ServiceAccountTokenCreateRequest,
    ServiceAccountTokenResponse, ServiceAccountUpdateRequest,
};
use crate::auth::{AuthUser, MintRequest, Minted, SigningKeyView};
use crate::changes::ChangeLog;
use crate::cluster::{
    ClusterMembersResponse, ClusterVotersResponse, PreflightRequest, PreflightResponse,
    PromoteClusterMemberRequest, RemoveClusterMemberRequest, ReplaceClusterVotersRequest,
    TransferRequest, TransferResponse,
};
use crate::error::{ErrorBody, Reason};
use crate::health::{Health, Ready};
use crate::policy::{DryRun, Format, Lint, Pending, PolicyHistory, Wait};
use crate::recovery::{BackupRequest, RejoinRequest, Rejoining};
use crate::stats::StatsSnapshot;
use crate::{duration, headers, paths};
pub use dataplane::Watch;
use transport::Transport;

/// Where a node is reached.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Its HTTPS listener.
    Https {
        /// `https://host:port`, without a path.
        base: String,
        /// Certificates of the CAs to trust, PEM. There are no others.
        ca_pem: Vec<u8>,
    },
    /// Its control socket, which needs no token.
    Unix(PathBuf),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint or the token cannot be used at all.
    #[error("{0}")]
    Endpoint(String),
    /// The node was not reached, or the connection broke.
    #[error("{endpoint} is not reachable")]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time. A change may have been made.
    #[error("no answer from {endpoint} within {limit_s} s")]
    Timeout {
        /// Who was asked.
        endpoint: String,
        /// How long was waited, seconds.
        limit_s: u64,
    },
    /// The answer came and could not be kept.
    #[error("the answer cannot be written")]
    Sink(#[source] std::io::Error),
    /// The node refused.
    #[error("{}", .0.body.error)]
    Refused(Box<Refused>),
    /// The answer is not what the API says.
    #[error("{endpoint} gave an answer that cannot be read: {reason}")]
    Unreadable {
        /// Who was asked.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether a change may have been made all the same.
    pub fn leaves_open(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Timeout { .. } | Error::Unreadable { .. } => true,
            Error::Refused(refused) => refused.body.reason == Some(Reason::FateUnknown),
            Error::Endpoint(_) | Error::Sink(_) => false,
        }
    }
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its status.
    pub status: StatusCode,
    /// What the node said.
    pub body: ErrorBody,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// The policy's tag now, where a precondition failed.
    pub etag: Option<String>,
    /// Names the request in the nodes' logs.
    pub request_id: Option<String>,
}

/// A support archive that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Its length.
    pub bytes: u64,
    /// Members that it has nothing of.
    pub missing: Vec<String>,
}

/// A policy as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDocument {
    /// The document, in the format asked for.
    pub body: Bytes,
    /// Its tag, for [`PutPolicy::if_match`].
    pub etag: Option<String>,
    /// Its revision.
    pub revision: Option<u64>,
}

/// A policy to be put.
#[derive(Clone, Debug, Default)]
pub struct PutPolicy {
    /// The document.
    pub body: Bytes,
    /// How it is written.
    pub format: Format,
    /// What to wait for.
    pub wait: Wait,
    /// For how long; the server's 5 s if none.
    pub timeout: Option<Duration>,
    /// Only if this is the tag now.
    pub if_match: Option<String>,
    /// Makes a retry safe.
    pub idempotency_key: Option<String>,
    /// Why, for those who read the history.
    pub message: Option<String>,
}

/// What became of a policy that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// What was waited for has happened.
    Enforced {
        /// The document as it is kept, in the format that it was put in.
        document: PolicyDocument,
        /// The first lints.
        lints: Vec<Lint>,
    },
    /// Committed, and not yet enforced everywhere.
    Pending(Pending),
}

/// A backup as it arrived.
#[derive(Clone, Debug)]
pub struct MadeBackup {
    /// The file.
    pub file: Bytes,
    /// Whether a leader has confirmed that every acknowledged change is in it.
    pub linearizable: bool,
}

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    endpoint: String,
    authorization: Option<HeaderValue>,
    limit: Duration,
}

impl Client {
    /// Answers larger than this are not read.
    const MAX_ANSWER_BYTES: usize = 128 * 1024 * 1024;

    /// A backup may be larger.
    const MAX_BACKUP_BYTES: usize = 1024 * 1024 * 1024;

    /// How long a backup may take at least.
    const BACKUP_LIMIT: Duration = Duration::from_secs(300);

    /// A client that presents `token`, if any. Connects on first use.
    pub fn new(endpoint: Endpoint, token: Option<&str>) -> Result<Self, Error> {
        let authorization = match token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                    .map_err(|_| Error::Endpoint("the token is not one".into()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let (transport, endpoint) = Transport::new(endpoint)?;
        Ok(Self {
            transport,
            endpoint,
            authorization,
            limit: Duration::from_secs(30),
        })
    }

    /// Waits at most this long for an answer (30 s if not said), beyond what the server is asked to wait.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Liveness.
    pub async fn health(&self) -> Result<Health, Error> {
        self.get(paths::HEALTH).await
    }

    /// Readiness. Not being ready is an answer, no error.
    pub async fn ready(&self) -> Result<Ready, Error> {
        self.readiness(paths::READY).await
    }

    /// Readiness for traffic. Not being ready is an answer, no error.
    pub async fn ready_traffic(&self) -> Result<Ready, Error> {
        self.readiness(paths::READY_TRAFFIC).await
    }

    async fn readiness(&self, path: &str) -> Result<Ready, Error> {
        let answer = self
            .send(
                Method::GET,
                path,
                HeaderMap::new(),
                Bytes::new(),
                self.limit,
            )
            .await?;
        match answer.status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => self.decode(&answer.body),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Who the token says we are.
    pub async fn whoami(&self) -> Result<AuthUser, Error> {
        self.get(paths::WHOAMI).await
    }

    /// Counters and the state of the cluster.
    pub async fn stats(&self) -> Result<StatsSnapshot, Error> {
        self.get(paths::STATS).await
    }

    /// The members.
    pub async fn members(&self) -> Result<ClusterMembersResponse, Error> {
        self.get(paths::MEMBERS).await
    }

    /// Sets who votes.
    pub async fn voters_set(
        &self,
        request: &ReplaceClusterVotersRequest,
    ) -> Result<ClusterVotersResponse, Error> {
        self.change(Method::PUT, paths::VOTERS, request, None).await
    }

    /// Takes a member out of the cluster.
    pub async fn member_remove(
        &self,
        id: &str,
        force: bool,
    ) -> Result<ClusterVotersResponse, Error> {
        self.change_member(
            paths::MEMBER_REMOVE,
            id,
            &RemoveClusterMemberRequest { force },
        )
        .await
    }

    /// Has a member vote.
    pub async fn member_promote(
        &self,
        id: &str,
        request: &PromoteClusterMemberRequest,
    ) -> Result<ClusterVotersResponse, Error> {
        self.change_member(paths::MEMBER_PROMOTE, id, request).await
    }

    /// Has a member vote no more.
    pub async fn member_demote(
        &self,
        id: &str,
        force: bool,
    ) -> Result<ClusterVotersResponse, Error> {
        self.change_member(
            paths::MEMBER_DEMOTE,
            id,
            &RemoveClusterMemberRequest { force },
        )
        .await
    }

    /// Has a member refuse new flows.
    pub async fn member_drain(
        &self,
        id: &str,
        force: bool,
    ) -> Result<ClusterMembersResponse, Error> {
        self.change_member(
            paths::MEMBER_DRAIN,
            id,
            &RemoveClusterMemberRequest { force },
        )
        .await
    }

    /// Has a member take new flows again.
    pub async fn member_undrain(&self, id: &str) -> Result<ClusterMembersResponse, Error> {
        self.change_member(paths::MEMBER_UNDRAIN, id, &serde_json::json!({}))
            .await
    }

    /// Hands leadership over.
    pub async fn transfer(&self, request: &TransferRequest) -> Result<TransferResponse, Error> {
        self.change(Method::POST, paths::TRANSFER, request, None)
            .await
    }

    /// Has the node connect to addresses.
    pub async fn preflight(&self, request: &PreflightRequest) -> Result<PreflightResponse, Error> {
        self.change(Method::POST, paths::PREFLIGHT, request, None)
            .await
    }

    async fn change_member<T: DeserializeOwned>(
        &self,
        path: &str,
        id: &str,
        request: &impl Serialize,
    ) -> Result<T, Error> {
        let path = path.replace("{node_id}", id);
        self.change(Method::POST, &path, request, None).await
    }

    /// Mints a token; over the control socket only.
    pub async fn mint_token(&self, request: &MintRequest) -> Result<Minted, Error> {
        self.change(Method::POST, paths::MINT, request, None).await
    }

    /// The keys that sign API tokens.
    pub async fn keys(&self) -> Result<Vec<SigningKeyView>, Error> {
        self.get(paths::KEYS).await
    }

    /// Signs API tokens with a new key from now on.
    pub async fn key_rotate(&self, idempotency_key: Option<&str>) -> Result<SigningKeyView, Error> {
        let answer = self
            .bare(Method::POST, paths::KEYS, idempotency_key)
            .await?;
        self.expect(answer)
    }

    /// Ends a key and all tokens that it signed.
    pub async fn key_retire(&self, kid: &str, idempotency_key: Option<&str>) -> Result<(), Error> {
        let path = paths::KEY.replace("{kid}", kid);
        let answer = self.bare(Method::DELETE, &path, idempotency_key).await?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(self.refusal(answer))
        }
    }

    /// The change log's newest entries after log index `since`, oldest first.
    pub async fn changes(&self, since: u64, limit: usize) -> Result<ChangeLog, Error> {
        let path = format!("{}?since={since}&limit={limit}", paths::CHANGES);
        self.get(&path).await
    }

    /// A support archive of the node, or of every member that it reaches, given to `sink` as it arrives.
    pub async fn sysdump(
        &self,
        cluster: bool,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<Collected, Error> {
        let path = if cluster {
            paths::SYSDUMP_CLUSTER
        } else {
            paths::SYSDUMP_NODE
        };
        let receiving = async {
            let (headers, mut body) = self.open(Method::POST, path).await?;
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|source| self.unreachable(source.into()))?;
                if let Some(data) = frame.data_ref() {
                    bytes += data.len() as u64;
                    sink(data).map_err(Error::Sink)?;
                }
            }
            let missing = headers.get(crate::headers::MISSING_MEMBERS);
            let missing = missing
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            Ok(Collected {
                bytes,
                missing: missing
                    .split(',')
                    .filter(|id| !id.is_empty())
                    .map(str::to_owned)
                    .collect(),
            })
        };
        match tokio::time::timeout(self.limit, receiving).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out(self.limit)),
        }
    }

    /// Makes a backup on the node that is asked, which may take minutes.
    pub async fn backup(&self, request: &BackupRequest) -> Result<MadeBackup, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = serde_json::to_vec(request).expect("request types have string keys only");
        let limit = self.limit.max(Self::BACKUP_LIMIT);
        let answer = self
            .send(Method::POST, paths::BACKUP, headers, body.into(), limit)
            .await?;
        match answer.status {
            StatusCode::OK => Ok(MadeBackup {
                linearizable: answer.text(headers::CONSISTENCY).as_deref() == Some("linearizable"),
                file: answer.body,
            }),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Has this node put its data aside and join anew; over the control socket only.
    pub async fn rejoin(&self, request: &RejoinRequest) -> Result<Rejoining, Error> {
        self.change(Method::POST, paths::REJOIN, request, None)
            .await
    }

    /// The policy.
    pub async fn policy_get(&self, format: Format) -> Result<PolicyDocument, Error> {
        match self.policy_get_unless(format, None).await? {
            Some(document) => Ok(document),
            None => Err(self.unreadable("304 without a precondition")),
        }
    }

    /// The revisions of the policy that are kept.
    pub async fn policy_history(&self) -> Result<PolicyHistory, Error> {
        self.get(paths::POLICY_REVISIONS).await
    }

    /// The policy as it was at a revision.
    pub async fn policy_revision(
        &self,
        revision: u64,
        format: Format,
    ) -> Result<PolicyDocument, Error> {
        let path = paths::POLICY_REVISION.replace("{revision}", &revision.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(format.media_type()));
        let answer = self
            .send(Method::GET, &path, headers, Bytes::new(), self.limit)
            .await?;
        match answer.status {
            StatusCode::OK => Ok(answer.document()),
            _ => Err(self.refusal(answer)),
        }
    }

    /// The policy, or nothing if `etag` is still its tag.
    pub async fn policy_get_unless(
        &self,
        format: Format,
        etag: Option<&str>,
    ) -> Result<Option<PolicyDocument>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(format.media_type()));
        if let Some(etag) = etag {
            headers.insert(IF_NONE_MATCH, header(etag)?);
        }
        let answer = self
            .send(
                Method::GET,
                paths::POLICY,
                headers,
                Bytes::new(),
                self.limit,
            )
            .await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.document())),
            StatusCode::NOT_MODIFIED => Ok(None),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Replaces the policy.
    pub async fn policy_put(&self, put: PutPolicy) -> Result<PutOutcome, Error> {
        let mut path = format!("{}?wait={}", paths::POLICY, put.wait.as_str());
        if let Some(timeout) = put.timeout {
            path.push_str("&timeout=");
            path.push_str(&duration::format(timeout));
        }
        if let Some(message) = &put.message {
            path.push_str("&message=");
            path.extend(form_urlencoded::byte_serialize(message.as_bytes()));
        }
        let mut headers = policy_headers(put.format);
        if let Some(etag) = &put.if_match {
            headers.insert(IF_MATCH, header(etag)?);
        }
        if let Some(key) = &put.idempotency_key {
            headers.insert(crate::headers::IDEMPOTENCY_KEY, header(key)?);
        }
        let limit = self.limit + put.timeout.unwrap_or(Duration::from_secs(5));
        let answer = self
            .send(Method::PUT, &path, headers, put.body, limit)
            .await?;
        match answer.status {
            StatusCode::OK => Ok(PutOutcome::Enforced {
                lints: answer.lints(),
                document: answer.document(),
            }),
            StatusCode::ACCEPTED => Ok(PutOutcome::Pending(self.decode(&answer.body)?)),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Validates a policy on the server without changing anything.
    pub async fn policy_check(&self, body: Bytes, format: Format) -> Result<DryRun, Error> {
        let path = format!("{}?dry_run=true", paths::POLICY);
        let answer = self
            .send(Method::PUT, &path, policy_headers(format), body, self.limit)
            .await?;
        match answer.status {
            StatusCode::OK => self.decode(&answer.body),
            _ => Err(self.refusal(answer)),
        }
    }

    /// The service accounts.
    pub async fn accounts(&self) -> Result<Vec<ServiceAccount>, Error> {
        self.get(paths::SERVICE_ACCOUNTS).await
    }

    /// Creates a service account.
    pub async fn account_create(
        &self,
        request: &ServiceAccountCreateRequest,
        idempotency_key: Option<&str>,
    ) -> Result<ServiceAccount, Error> {
        self.change(
            Method::POST,
            paths::SERVICE_ACCOUNTS,
            request,
            idempotency_key,
        )
        .await
    }

    /// Replaces a service account's fields.
    pub async fn account_update(
        &self,
        id: &str,
        request: &ServiceAccountUpdateRequest,
        idempotency_key: Option<&str>,
    ) -> Result<ServiceAccount, Error> {
        let path = paths::SERVICE_ACCOUNT.replace("{id}", id);
        self.change(Method::PUT, &path, request, idempotency_key)
            .await
    }

    /// Creates a token of a service account.
    pub async fn account_token_create(
        &self,
        id: &str,
        request: &ServiceAccountTokenCreateRequest,
        idempotency_key: Option<&str>,
    ) -> Result<ServiceAccountTokenResponse, Error> {
        let path = paths::SERVICE_ACCOUNT_TOKENS.replace("{id}", id);
        self.change(Method::POST, &path, request, idempotency_key)
            .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = self
            .send(
                Method::GET,
                path,
                HeaderMap::new(),
                Bytes::new(),
                self.limit,
            )
            .await?;
        self.expect(answer)
    }

    async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        idempotency_key: Option<&str>,
    ) -> Result<T, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = idempotency_key {
            headers.insert(crate::headers::IDEMPOTENCY_KEY, header(key)?);
        }
        let body = serde_json::to_vec(body).expect("request types have string keys only");
        let answer = self
            .send(method, path, headers, body.into(), self.limit)
            .await?;
        self.expect(answer)
    }

    /// A change without a body.
    async fn bare(
        &self,
        method: Method,
        path: &str,
        idempotency_key: Option<&str>,
    ) -> Result<Answer, Error> {
        let mut headers = HeaderMap::new();
        if let Some(key) = idempotency_key {
            headers.insert(crate::headers::IDEMPOTENCY_KEY, header(key)?);
        }
        self.send(method, path, headers, Bytes::new(), self.limit)
            .await
    }

    fn expect<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, Error> {
        if answer.status.is_success() {
            self.decode(&answer.body)
        } else {
            Err(self.refusal(answer))
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let request = self.request(method, path, headers, body)?;
        let max_bytes = match path {
            paths::BACKUP => Self::MAX_BACKUP_BYTES,
            _ => Self::MAX_ANSWER_BYTES,
        };
        let exchange = self.transport.exchange(request, max_bytes);
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok((parts, body))) => Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }),
            Ok(Err(source)) => Err(self.unreachable(source)),
            Err(_) => Err(self.timed_out(limit)),
        }
    }

    /// The headers of an answer that is no refusal, and its body, which is still to come.
    async fn open(&self, method: Method, path: &str) -> Result<(HeaderMap, Incoming), Error> {
        let request = self.request(method, path, HeaderMap::new(), Bytes::new())?;
        let opened = self.transport.open(request).await;
        let (parts, body) = opened
            .map_err(|source| self.unreachable(source))?
            .into_parts();
        if parts.status.is_success() {
            return Ok((parts.headers, body));
        }
        let body = Limited::new(body, Self::MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|source| self.unreachable(source))?.to_bytes();
        Err(self.refusal(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.transport.uri(path)?;
        *request.headers_mut() = headers;
        if let Some(authorization) = &self.authorization {
            request
                .headers_mut()
                .insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Unreachable {
            endpoint: self.endpoint.clone(),
            source,
        }
    }

    fn timed_out(&self, limit: Duration) -> Error {
        Error::Timeout {
            endpoint: self.endpoint.clone(),
            limit_s: limit.as_secs(),
        }
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|error| self.unreadable(&error.to_string()))
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::Unreadable {
            endpoint: self.endpoint.clone(),
            reason: reason.to_owned(),
        }
    }

    fn refusal(&self, answer: Answer) -> Error {
        // A proxy in between answers in its own words.
        let body = serde_json::from_slice(&answer.body).unwrap_or_else(|_| {
            ErrorBody::new(format!("{} answered {}", self.endpoint, answer.status))
        });
        Error::Refused(Box::new(Refused {
            status: answer.status,
            body,
            retry_after: answer
                .text(RETRY_AFTER.as_str())
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            etag: answer.text(ETAG.as_str()),
            request_id: answer.text(headers::REQUEST_ID),
        }))
    }
}

fn policy_headers(format: Format) -> HeaderMap {
    let media_type = HeaderValue::from_static(format.media_type());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, media_type.clone());
    headers.insert(ACCEPT, media_type);
    headers
}

fn header(value: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(value)
        .map_err(|_| Error::Endpoint(format!("{value:?} cannot be sent in a header")))
}

/// Status, headers and body.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(str::to_owned)
    }

    fn document(self) -> PolicyDocument {
        PolicyDocument {
            etag: self.text(ETAG.as_str()),
            revision: self
                .text(headers::REVISION)
                .and_then(|text| text.parse().ok()),
            body: self.body,
        }
    }

    fn lints(&self) -> Vec<Lint> {
        self.headers
            .get_all(headers::LINT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(|text| {
                let (path, message) = text.split_once(": ").unwrap_or(("", text));
                Lint {
                    path: path.to_owned(),
                    message: message.to_owned(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn https(base: &str) -> Result<Client, Error> {
        let endpoint = Endpoint::Https {
            base: base.into(),
            ca_pem: Vec::new(),
        };
        Client::new(endpoint, Some("t"))
    }

    #[test]
    fn endpoints_that_cannot_be_used_are_refused_at_once() {
        for base in [
            "",
            "node",
            "http://node:8443",
            "https://",
            "https://node:8443/api",
            "https://node:8443?x",
        ] {
            assert!(matches!(https(base), Err(Error::Endpoint(_))), "{base}");
        }
        // No CA at all would mean that nothing can ever be trusted.
        assert!(matches!(
            https("https://node:8443"),
            Err(Error::Endpoint(_))
        ));
    }

    #[tokio::test]
    async fn a_missing_socket_is_unreachable() {
        let client = Client::new(Endpoint::Unix("/nonexistent/admin.sock".into()), None).unwrap();
        assert!(matches!(
            client.health().await,
            Err(Error::Unreachable { .. })
        ));
    }

    #[test]
    fn the_token_is_not_printed() {
        let client = Client::new(Endpoint::Unix("/x".into()), Some("s3cret")).unwrap();
        assert!(!format!("{client:?}").contains("s3cret"));
    }
}
