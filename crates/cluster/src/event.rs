//! Events for the change log from any member: the leader writes them down, whoever saw them.
//!
//! What happens on one node, such as a token minted by its root, belongs into the log that all share. The node that saw
//! it keeps it until the leader has it; the key makes the retry of a lost answer harmless.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use serde::{Deserialize, Serialize};

use crate::command::{Author, Command, EventKind, Refusal};
use crate::forward::ForwardError;
use crate::node::{Node, ProposeError};
use crate::status::Role;
use crate::transport::{Kind, ServiceError};

/// How long the leader may take.
const LEADER_DEADLINE: Duration = Duration::from_secs(8);

/// Something that happened on a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Who did it there, for example `root`; empty: the cluster itself.
    #[serde(default)]
    pub actor: String,
    /// To whom, at most 256 bytes.
    pub subject: String,
    /// More, at most 1024 bytes.
    #[serde(default)]
    pub detail: String,
    /// Unique to this event: however often it is told, it is written down once. Empty: it is told once.
    #[serde(default)]
    pub key: String,
}

/// Why an event is not in the change log yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The leader was not reached, or its answer was not.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// This node leads and could not commit it.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The cluster does not take it, now or ever.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl<R: AsyncRuntime> Node<R> {
    /// Lets other members have events written down, for as long as this node leads.
    pub fn answer_events(&self) {
        let node = self.clone();
        self.set_handler(
            Kind::Event,
            Arc::new(move |from, body| {
                let node = node.clone();
                Box::pin(async move {
                    let event: Event = rmp_serde::from_slice(&body)
                        .map_err(|error| ServiceError(format!("unreadable event: {error}")))?;
                    let written = node.write_event(event, from).await;
                    written.map_err(|error| ServiceError(error.to_string()))?;
                    Ok(Bytes::new())
                })
            }),
        );
    }

    /// Puts an event into the change log, here or through the leader.
    ///
    /// # Errors
    /// Any [`EventError`]; the event may be told again under its key.
    pub async fn record_event(&self, event: Event) -> Result<(), EventError> {
        if let Role::Leader { .. } = self.role() {
            return self.write_event(event, self.node_id()).await;
        }
        let body = rmp_serde::to_vec_named(&event).expect("plain data");
        self.ask_leader(Kind::Event, body.into(), LEADER_DEADLINE)
            .await?;
        Ok(())
    }

    async fn write_event(&self, event: Event, at: crate::NodeId) -> Result<(), EventError> {
        let author = match event.actor.is_empty() {
            true => Author::system(at),
            false => Author {
                subject: event.actor,
                node: Some(at),
            },
        };
        let command = Command::RecordEvent {
            kind: event.kind,
            subject: event.subject,
            detail: event.detail,
        };
        let retry = Some(event.key).filter(|key| !key.is_empty());
        let retry = retry.map(|key| format!("event {key}").into());
        let applied = self.propose_as(command, author, retry).await?;
        applied.response.accepted()?;
        Ok(())
    }
}
