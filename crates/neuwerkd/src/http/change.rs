//! A change on behalf of a caller: who asks, under which key, and what the state answered.

use std::sync::Arc;

use bytes::Bytes;
use cluster::command::{Author, Command};
use cluster::{Applied, Node, ProposeError, Response, State};
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use super::error::{Answer, Refused};
use super::request::{IDEMPOTENCY_KEY, text};
use super::{App, Origin};
use crate::auth::Identity;

/// What the commands of one request have in common.
pub(super) struct Change {
    node: Arc<Node>,
    author: Author,
    idempotency_key: Option<String>,
}

impl Change {
    pub(super) fn new(
        app: &App,
        identity: &Identity,
        origin: &Origin,
        headers: &HeaderMap,
    ) -> Answer<Self> {
        let node = app.node()?;
        let entered_at = match origin {
            Origin::Member { via, .. } => *via,
            Origin::Network(_) | Origin::ControlSocket => node.node_id(),
        };
        Ok(Self {
            node,
            author: Author {
                subject: identity.subject.clone(),
                node: Some(entered_at),
            },
            idempotency_key: text(headers, &IDEMPOTENCY_KEY).map(str::to_owned),
        })
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.node.state()
    }

    /// Makes a change that creates or changes one record, and returns its id.
    pub(super) async fn record(&self, command: Command) -> Answer<Uuid> {
        match self.make(command).await?.response.accepted()? {
            Response::Record { id, .. } => Ok(id),
            _ => Err(unexpected()),
        }
    }

    /// Makes a change that has no other answer than that it was made.
    pub(super) async fn done(&self, command: Command) -> Answer<()> {
        self.make(command).await?.response.accepted()?;
        Ok(())
    }

    /// Makes a document the policy.
    pub(super) async fn policy(&self, document: Bytes, if_match: Option<u64>) -> Answer<Applied> {
        let (author, key) = (self.author.clone(), self.idempotency_key.clone());
        let proposed = self
            .node
            .put_policy(&document, if_match, String::new(), author, key)
            .await;
        self.shown(proposed).await
    }

    async fn make(&self, command: Command) -> Answer<Applied> {
        let (author, key) = (self.author.clone(), self.idempotency_key.clone());
        let proposed = self.node.propose_as(command, author, key).await;
        self.shown(proposed).await
    }

    /// Returns once this node's state shows the change, so that it can be read back.
    async fn shown(&self, proposed: Result<Applied, ProposeError>) -> Answer<Applied> {
        let key = self.idempotency_key.as_deref();
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
