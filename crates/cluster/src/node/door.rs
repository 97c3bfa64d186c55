//! What the join listener asks of a member, and how events reach the change log from whichever member saw them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::type_config::TypeConfigExt as _;
use serde::{Deserialize, Serialize};

use super::boots::Verdict;
use super::report::Report;
use super::{Inner, Node, locked};
use crate::command::{Author, Command, EventKind};
use crate::id::NodeId;
use crate::join::client::Credentials;
use crate::join::listener::Secrets;
use crate::join::protocol::{TokenOffer, Tokens};
use crate::join::secret::{Secret, SecretError};
use crate::raft::Types;
use crate::status::Role;
use crate::transport::{Kind, ServiceError};

/// How long the leader may take to record what another member saw.
const NOTE_DEADLINE: Duration = Duration::from_secs(5);

/// An identity that is seen in two places is told of this often.
const TELL_AGAIN: Duration = Duration::from_secs(60 * 60);

/// What a member saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) kind: EventKind,
    pub(crate) subject: String,
    pub(crate) detail: String,
}

impl<R: AsyncRuntime> Node<R> {
    /// Finds join tokens in the state, and the CAs to prove this cluster with to their holders.
    pub fn token_offers(&self) -> Tokens {
        let states = self.watch();
        Arc::new(move |id| {
            let state = states.borrow().clone();
            let token = state.join_token(id).ok_or(
                "this cluster knows no such join token: it is of another cluster, or ended long ago",
            )?;
            let authorities = state
                .cluster_cas()
                .map(|ca| state.open_ca(ca).map(Arc::new));
            Ok(TokenOffer {
                public: token.public,
                authorities: authorities
                    .collect::<Result<_, _>>()
                    .map_err(|error| error.to_string())?,
            })
        })
    }

    /// The bootstrap secrets that admit members: the cluster's, once it was rotated, otherwise those of the file.
    pub fn bootstrap_secrets(&self, file: Credentials) -> Secrets {
        let states = self.watch();
        Arc::new(move || {
            let state = states.borrow().clone();
            let Some(replicated) = state.bootstrap_secret() else {
                return Ok(file()?.secrets);
            };
            let text = state.open(&replicated.secret)?;
            let text = std::str::from_utf8(&text).map_err(|_| SecretError::Random)?;
            Ok(Secret::new(replicated.kid.clone(), text)
                .into_iter()
                .collect())
        })
    }

    /// Puts into the change log what this member saw, through the leader if that is another one. Best effort: without a
    /// leader there is nothing to write it to.
    pub async fn note(&self, kind: EventKind, subject: String, detail: String) {
        let note = Note {
            kind,
            subject,
            detail,
        };
        let noted = match self.role() {
            Role::Follower { .. } => {
                let body = rmp_serde::to_vec_named(&note).expect("plain data");
                let asked = self
                    .ask_leader(Kind::Event, body.into(), NOTE_DEADLINE)
                    .await;
                asked.map(drop).map_err(|error| error.to_string())
            }
            Role::Leader { .. } | Role::NoLeader { .. } => {
                self.record_note(note, Author::system(self.node_id())).await
            }
        };
        if let Err(error) = noted {
            tracing::debug!(error, "an event could not be put into the change log");
        }
    }

    /// Records what this leader noticed while it answered others.
    pub(super) async fn record_notes(&self) {
        let notes = std::mem::take(&mut *locked(&self.inner.notes));
        for note in notes {
            let author = Author::system(self.node_id());
            if let Err(error) = self.record_note(note, author).await {
                tracing::debug!(error, "an event could not be put into the change log");
            }
        }
    }

    async fn record_note(&self, note: Note, author: Author) -> Result<(), String> {
        let Note {
            kind,
            subject,
            detail,
        } = note;
        let command = Command::RecordEvent {
            kind,
            subject,
            detail,
        };
        let proposed = self.propose_as(command, author, None).await;
        proposed.map(drop).map_err(|error| error.to_string())
    }

    /// Records what other members saw, for as long as this node leads.
    pub fn answer_notes(&self) {
        let node = self.clone();
        self.set_handler(
            Kind::Event,
            Arc::new(move |from, body| {
                let node = node.clone();
                Box::pin(async move {
                    let note: Note = rmp_serde::from_slice(&body)
                        .map_err(|error| ServiceError(format!("unreadable request: {error}")))?;
                    node.record_note(note, Author::system(from))
                        .await
                        .map(|()| Bytes::new())
                        .map_err(ServiceError)
                })
            }),
        );
    }
}

impl<R: AsyncRuntime> Inner<R> {
    /// Where the first machine is, if the report comes from the second one under the same identity.
    pub(super) fn second_of_two(&self, from: NodeId, report: &Report) -> Option<String> {
        let now = Types::<R>::now();
        let address = &report.addresses.cluster;
        let verdict = locked(&self.boots).see(from, report.incarnation, address, now);
        let Verdict::Second { first } = verdict else {
            return None;
        };
        let mut told = locked(&self.told);
        if told.get(&from).is_none_or(|at| now >= *at + TELL_AGAIN) {
            told.insert(from, now);
            tracing::error!(
                node = %from, first, second = address,
                "two machines run under one identity: a cloned machine, or a copied disk; the second one is turned away"
            );
            locked(&self.notes).push(Note {
                kind: EventKind::DuplicateIdentity,
                subject: from.to_string(),
                detail: format!("at {first} and at {address} ({})", report.name),
            });
        }
        Some(first)
    }
}
