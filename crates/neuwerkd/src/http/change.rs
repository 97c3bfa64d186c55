//! A change on behalf of a caller: who asks, under which key, and what the state answered.

use std::sync::Arc;

use api::error::Reason;
use aws_lc_rs::hmac;
use axum::extract::FromRequestParts;
use bytes::Bytes;
use cluster::command::{Author, Command};
use cluster::{Applied, Digest, Node, ProposeError, Response, Retry, State};
use http::{StatusCode, request};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::{Answer, Refused};
use super::request::{IDEMPOTENCY_KEY, text};
use super::{App, Origin};
use crate::auth::Identity;

/// In an id: from this byte on it is marked with who asked under which key; before, it is random. The version and the
/// variant of a UUID (RFC 9562) are before.
const MARKED: usize = 9;

/// SHA-256 of what a request asks for, without how it wants to be answered. The gate adds it to every change: the same
/// key under the same fingerprint is a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) Digest);

/// What the commands of one request have in common.
pub(super) struct Change {
    node: Arc<Node>,
    author: Author,
    idempotency_key: String,
    fingerprint: Option<Fingerprint>,
}

impl FromRequestParts<Arc<App>> for Change {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &Arc<App>) -> Answer<Self> {
        let extensions = &parts.extensions;
        let (Some(identity), Some(origin)) =
            (extensions.get::<Identity>(), extensions.get::<Origin>())
        else {
            return Err(Refused::unauthorized("a bearer token is needed"));
        };
        let node = app.node()?;
        let author = Author {
            subject: identity.subject.clone(),
            node: Some(origin.entered_at(node.node_id())),
        };
        let key = text(&parts.headers, &IDEMPOTENCY_KEY).map(str::to_owned);
        Ok(Self {
            node,
            author,
            // The gate gives every change a key; what is no change of the cluster's has none to retry under.
            idempotency_key: key.unwrap_or_else(|| Uuid::new_v4().to_string()),
            fingerprint: extensions.get().copied(),
        })
    }
}

impl Change {
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.node.state()
    }

    /// Makes a change that creates or changes one record, and returns its id and its revision after it.
    pub(super) async fn record(&self, command: Command) -> Answer<(Uuid, u64)> {
        match self.answered(command).await?.accepted()? {
            Response::Record { id, revision } => Ok((id, revision)),
            _ => Err(unexpected()),
        }
    }

    /// Makes a change that has no other answer than that it was made.
    pub(super) async fn done(&self, command: Command) -> Answer<()> {
        self.answered(command).await?.accepted()?;
        Ok(())
    }

    /// Makes a change, and returns what the state answered, a refusal as well.
    pub(super) async fn answered(&self, command: Command) -> Answer<Response> {
        let proposed = self
            .node
            .propose_as(command, self.author.clone(), self.retry())
            .await;
        Ok(self.shown(proposed).await?.response)
    }

    /// Makes a document the policy.
    pub(super) async fn policy(
        &self,
        document: Bytes,
        if_match: Option<u64>,
        message: String,
    ) -> Answer<Applied> {
        let (author, retry) = (self.author.clone(), self.retry());
        let proposed = self
            .node
            .put_policy(&document, if_match, message, author, retry)
            .await;
        self.shown(proposed).await
    }

    /// A name that is the same whenever this caller retries, and that no other request gets.
    pub(super) fn derived(&self, purpose: &str) -> String {
        let digest = self.mark(purpose);
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// An id that nobody has had, by which a retry of this caller [knows](Self::made) what the first attempt made.
    pub(super) fn new_id(&self, purpose: &str) -> Answer<Uuid> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Refused::no_randomness())?;
        bytes[MARKED..].copy_from_slice(&self.mark(purpose)[..16 - MARKED]);
        Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Whether this request, or an earlier attempt at it, made what has this id.
    pub(super) fn made(&self, purpose: &str, id: Uuid) -> bool {
        id.as_bytes()[MARKED..] == self.mark(purpose)[..16 - MARKED]
    }

    fn mark(&self, purpose: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in [
            purpose,
            "\0",
            &self.author.subject,
            "\0",
            &self.idempotency_key,
        ] {
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    /// The secret bytes of what has this id, which are not kept: the cluster's keys and the id make them again.
    pub(super) fn secret_of(&self, purpose: &str, id: Uuid) -> Answer<Zeroizing<[u8; 32]>> {
        let state = self.state();
        let authority = state.https_ca().ok_or(cluster::Refusal::NotInitialised)?;
        let key = state
            .open(&authority.key_pkcs8)
            .map_err(|error| Refused::unavailable(Reason::NotReady, error.to_string()))?;
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
        for part in [
            b"neuwerk secret\0",
            purpose.as_bytes(),
            b"\0",
            id.as_bytes(),
        ] {
            context.update(part);
        }
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(context.sign().as_ref());
        Ok(secret)
    }

    fn retry(&self) -> Option<Retry> {
        Some(Retry {
            key: self.idempotency_key.clone(),
            request: self.fingerprint.map(|fingerprint| fingerprint.0),
        })
    }

    /// Returns once this node's state shows the change, so that it can be read back.
    async fn shown(&self, proposed: Result<Applied, ProposeError>) -> Answer<Applied> {
        let key = Some(self.idempotency_key.as_str());
        let applied = proposed.map_err(|error| Refused::of_proposal(error, key))?;
        let mut states = self.node.watch();
        let shown = states
            .wait_for(|state| state.index() >= applied.index)
            .await;
        match shown {
            Ok(_) => Ok(applied),
            Err(_) => Err(Refused::of_proposal(ProposeError::FateUnknown, key)),
        }
    }
}

/// The state answered something that the command cannot have as its answer.
pub(super) fn unexpected() -> Refused {
    Refused::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the cluster gave an answer of another kind",
    )
}
