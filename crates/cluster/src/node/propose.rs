//! What a node is asked to do: propose commands, confirm reads, hand over leadership, ask the leader.

use std::time::Duration;

use bytes::Bytes;
use fastcdc::v2020::FastCDC;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, ReadPolicy};
use serde_bytes::ByteBuf;

use super::Node;
use crate::command::{
    Author, CHUNK_BYTES, Command, Document, MAX_DOCUMENT_BYTES, Record, Refusal, Response, Stamped,
};
use crate::feature::Features;
use crate::forward::{ForwardError, HttpRequest, HttpResponse};
use crate::id::{Digest, NodeId};
use crate::keyring::SealError;
use crate::raft::{Proposal, Types};
use crate::status::{NoLeader, Role};
use crate::transport::{Kind, Peer, TransportError};

/// Largest encoded command: a chunk and its wrapping fit well.
const MAX_COMMAND_BYTES: usize = 2 * CHUNK_BYTES;

/// A command that was committed and applied. A refusal is an answer like any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its log index.
    pub index: u64,
    /// What applying it answered.
    pub response: Response,
}

/// What makes a retry known for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// The idempotency key, scoped by the author's subject.
    pub key: String,
    /// SHA-256 of the request as it came in, where several commands may stand for the same one.
    pub request: Option<Digest>,
}

impl From<String> for Retry {
    fn from(key: String) -> Self {
        Retry { key, request: None }
    }
}

/// The feature level from which on entries carry their request's digest: below it members compare commands.
pub const REQUEST_DIGESTS_LEVEL: u32 = 2;

/// Why a command was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads. The command was not taken.
    #[error("another node is the leader")]
    NotLeader {
        /// Which, as far as known.
        leader: Option<NodeId>,
    },
    /// No node leads, or none that a quorum acknowledges. The command was not taken.
    #[error("there is no leader: {0}")]
    NoLeader(NoLeader),
    /// The command was taken and may or may not be committed; a retry under the same idempotency key is safe.
    #[error("the command was not confirmed in time")]
    FateUnknown,
    /// There is no room for it on the leader's disk, or on too many others. The command was not taken.
    #[error("the disk is full on the leader or on a majority")]
    StorageFull,
    /// Not every member would understand it. The command was not taken.
    #[error("{}", features.waits_for(*needed))]
    FeatureLevel {
        /// The level that it needs.
        needed: u32,
        /// The level in force, and what the next one waits for.
        features: Features,
    },
    /// It holds a secret, and this leader cannot seal it yet. The command was not taken.
    #[error("the leader cannot seal the secret: {0}")]
    Sealing(SealError),
    /// The command is too large. Documents go in chunks.
    #[error("the command is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node is not the leader")]
    NotLeader,
    /// No other voter is live and caught up.
    #[error("no other voter can take over")]
    NoCandidate,
    /// It did not happen in time; this node may still lead.
    #[error("the hand-over did not happen in time")]
    Timeout,
}

/// Whether a command is one of those that the reserve is for: who is a member, and where.
fn keeps_membership(command: &Command) -> bool {
    matches!(
        command,
        Command::UpdateMember { .. } | Command::RemoveMember { .. } | Command::ReleaseMember { .. }
    )
}

/// A large document in pieces that its content delimits (FastCDC, Xia et al. 2020), so that revisions share all pieces
/// but those around an edit: what is proposed, kept and sent in snapshots is the difference.
fn pieces(document: &[u8]) -> impl Iterator<Item = &[u8]> {
    // At least, on average, at most; in bytes.
    let (min, average, max) = (CHUNK_BYTES / 8, CHUNK_BYTES / 4, CHUNK_BYTES);
    FastCDC::new(document, min, average, max)
        .map(|piece| &document[piece.offset..piece.offset + piece.length])
}

impl<R: AsyncRuntime> Node<R> {
    /// Commits a command on behalf of `author`. On the leader only.
    ///
    /// # Errors
    /// Any [`ProposeError`]; only [`ProposeError::FateUnknown`] leaves it open whether the command took effect.
    pub async fn propose_as(
        &self,
        command: Command,
        author: Author,
        retry: Option<Retry>,
    ) -> Result<Applied, ProposeError> {
        match self.role() {
            Role::Leader { .. } => {}
            Role::Follower { leader_id, .. } => {
                return Err(ProposeError::NotLeader {
                    leader: Some(leader_id),
                });
            }
            Role::NoLeader { reason } => return Err(ProposeError::NoLeader(reason)),
        }
        let needed = command.level();
        let state = self.state();
        if state.is_initialised() && needed > state.feature_level() {
            let features = self.features();
            return Err(ProposeError::FeatureLevel { needed, features });
        }
        if !keeps_membership(&command) && !self.inner.quorum_has_room() {
            return Err(ProposeError::StorageFull);
        }
        let command = self.sealed(command).map_err(ProposeError::Sealing)?;
        let mut seed = [0; 32];
        (self.inner.environment.random)(&mut seed);
        let has_digests = self.state().feature_level() >= REQUEST_DIGESTS_LEVEL;
        let (idempotency_key, request) = match retry {
            Some(retry) => (Some(retry.key), retry.request.filter(|_| has_digests)),
            None => (None, None),
        };
        let proposal = Proposal::new(&Stamped {
            command,
            time_ms: (self.inner.environment.wall_clock_ms)(),
            seed,
            author,
            idempotency_key,
            request,
        });
        if proposal.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge {
                limit_bytes: MAX_COMMAND_BYTES as u64,
            });
        }
        let writing = self.inner.raft.client_write(proposal);
        match Types::<R>::timeout(self.inner.config.propose_timeout, writing).await {
            Err(_) => Err(ProposeError::FateUnknown),
            Ok(Ok(written)) => Ok(Applied {
                index: written.log_id.index,
                response: written.data,
            }),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                match forward.leader_id.filter(|leader| *leader != self.node_id()) {
                    Some(leader) => Err(ProposeError::NotLeader {
                        leader: Some(leader),
                    }),
                    None => Err(ProposeError::NoLeader(self.no_leader())),
                }
            }
            // What was taken by a leader that then lost its place, or stopped, may still be committed.
            Ok(Err(_)) => Err(ProposeError::FateUnknown),
        }
    }

    /// [`Node::propose_as`] on behalf of the cluster itself.
    ///
    /// # Errors
    /// As [`Node::propose_as`].
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.propose_as(command, Author::system(self.node_id()), None)
            .await
    }

    /// Makes `document` the policy: puts its chunks first when it is large. On the leader only.
    ///
    /// # Errors
    /// As [`Node::propose_as`].
    pub async fn put_policy(
        &self,
        document: &[u8],
        if_match: Option<u64>,
        message: String,
        author: Author,
        retry: Option<Retry>,
    ) -> Result<Applied, ProposeError> {
        if document.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(ProposeError::TooLarge {
                limit_bytes: MAX_DOCUMENT_BYTES,
            });
        }
        let put = |document| Command::PutPolicy {
            document,
            if_match,
            message: message.clone(),
        };
        if document.len() <= CHUNK_BYTES {
            let inline = Document::Inline(ByteBuf::from(document));
            return self.propose_as(put(inline), author, retry).await;
        }
        // Nothing is sent that cannot become the policy, unless it has become it and this is the retry.
        let state = self.state();
        let current = state.policy().map_or(0, |policy| policy.revision);
        let answered = retry
            .as_ref()
            .is_some_and(|retry| state.has_answer(&author.subject, &retry.key));
        if let Some(expected) = if_match
            && expected < current
            && !answered
        {
            let response = Response::Refused(Refusal::Conflict {
                record: Record::Policy,
                current,
            });
            return Ok(Applied {
                index: self.state().index(),
                response,
            });
        }
        let chunks: Vec<(Digest, &[u8])> = pieces(document).map(|c| (Digest::of(c), c)).collect();
        let whole = Document::Chunks {
            chunks: chunks.iter().map(|(hash, _)| *hash).collect(),
            len: document.len() as u64,
            hash: Digest::of(document),
        };
        let mut attempts = 0;
        loop {
            for (hash, bytes) in &chunks {
                if !self.state().has_chunk(hash) {
                    let chunk = Command::PutChunk {
                        hash: *hash,
                        bytes: ByteBuf::from(*bytes),
                    };
                    let applied = self.propose_as(chunk, author.clone(), None).await?;
                    if matches!(applied.response, Response::Refused(_)) {
                        return Ok(applied);
                    }
                }
            }
            let applied = self
                .propose_as(put(whole.clone()), author.clone(), retry.clone())
                .await?;
            attempts += 1;
            // A chunk that was there may have gone with an old revision; a second try puts it again.
            let missing = matches!(
                applied.response,
                Response::Refused(Refusal::MissingChunks { .. })
            );
            if !missing || attempts == 3 {
                return Ok(applied);
            }
        }
    }

    /// An index such that a state at it or after holds every write that was acknowledged before this call, and waits
    /// until this node's state is there. Works on any node that has a leader.
    ///
    /// # Errors
    /// Any [`ForwardError`] but [`ForwardError::IsLeader`].
    pub async fn read_index(&self) -> Result<u64, ForwardError> {
        let index = match self.role() {
            Role::Leader { .. } => self.leader_read_index().await?,
            Role::Follower { .. } => {
                let answer = self
                    .ask_leader(Kind::ReadIndex, Bytes::new(), READ_DEADLINE)
                    .await?;
                rmp_serde::from_slice(&answer)
                    .map_err(|error| ForwardError::Lost(error.to_string()))?
            }
            Role::NoLeader { reason } => return Err(reason.into()),
        };
        let mut state = self.watch();
        // The state itself is not carried out of the wait, so that the future can move between threads.
        let arrived = async { state.wait_for(|state| state.index() >= index).await.is_ok() };
        match Types::<R>::timeout(READ_DEADLINE, arrived).await {
            Ok(true) => Ok(index),
            Ok(false) => Err(NoLeader::Stopped.into()),
            Err(_) => Err(ForwardError::Lost("this node is behind".into())),
        }
    }

    pub(crate) async fn leader_read_index(&self) -> Result<u64, ForwardError> {
        match self
            .inner
            .raft
            .get_read_linearizer(ReadPolicy::ReadIndex)
            .await
        {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(_)) => Err(NoLeader::QuorumLost.into()),
            Err(RaftError::Fatal(_)) => Err(NoLeader::Stopped.into()),
        }
    }

    /// Asks the leader, over the cluster transport.
    ///
    /// # Errors
    /// Any [`ForwardError`].
    pub async fn ask_leader(
        &self,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ForwardError> {
        if let Role::Leader { .. } = self.role() {
            return Err(ForwardError::IsLeader);
        }
        let leader = self.inner.leader_peer()?;
        self.ask(&leader, kind, body, deadline).await
    }

    /// Asks any member, over the cluster transport; no leader is needed.
    ///
    /// # Errors
    /// [`ForwardError::Unreachable`] if it certainly did not take the request, else [`ForwardError::Lost`].
    pub async fn ask_member(
        &self,
        member: NodeId,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ForwardError> {
        let address = self
            .state()
            .member(member)
            .map(|member| member.addresses.cluster.clone())
            .ok_or_else(|| ForwardError::Unreachable("it is no member".into()))?;
        let peer = Peer {
            node_id: member,
            address,
        };
        self.ask(&peer, kind, body, deadline).await
    }

    async fn ask(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ForwardError> {
        let asking = self.inner.transport.call(peer, kind, body, deadline);
        match Types::<R>::timeout(deadline, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(TransportError::Lost(what))) => Err(ForwardError::Lost(what)),
            Ok(Err(TransportError::Unreachable(what) | TransportError::Refused(what))) => {
                Err(ForwardError::Unreachable(what))
            }
            Err(_) => Err(ForwardError::Lost("the time ran out".into())),
        }
    }

    /// Hands a management request to the leader and brings back its answer.
    ///
    /// # Errors
    /// Any [`ForwardError`].
    pub async fn forward_http(
        &self,
        request: &HttpRequest,
        deadline: Duration,
    ) -> Result<HttpResponse, ForwardError> {
        let body = rmp_serde::to_vec_named(request)
            .expect("a request has no value that MessagePack lacks");
        let answer = self.ask_leader(Kind::Http, body.into(), deadline).await?;
        rmp_serde::from_slice(&answer)
            .map_err(|error| ForwardError::Lost(format!("unreadable answer: {error}")))
    }

    /// The same with any member, leader or not.
    ///
    /// # Errors
    /// As [`ask_member`](Self::ask_member).
    pub async fn forward_http_to(
        &self,
        member: NodeId,
        request: &HttpRequest,
        deadline: Duration,
    ) -> Result<HttpResponse, ForwardError> {
        let body = rmp_serde::to_vec_named(request)
            .expect("a request has no value that MessagePack lacks");
        let answer = self.ask_member(member, Kind::Http, body.into(), deadline);
        rmp_serde::from_slice(&answer.await?)
            .map_err(|error| ForwardError::Lost(format!("unreadable answer: {error}")))
    }

    /// Hands leadership to `to`, or to the voter that is furthest, and waits until that one leads.
    ///
    /// # Errors
    /// Any [`TransferError`].
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        if !matches!(self.role(), Role::Leader { .. }) {
            return Err(TransferError::NotLeader);
        }
        let to = self
            .members()
            .into_iter()
            .filter(|member| member.voter && member.live && member.node_id != self.node_id())
            .filter(|member| to.is_none_or(|to| to == member.node_id))
            .max_by_key(|member| member.matched_index)
            .map(|member| member.node_id)
            .ok_or(TransferError::NoCandidate)?;
        if self.inner.raft.trigger().transfer_leader(to).await.is_err() {
            return Err(TransferError::NotLeader);
        }
        let mut metrics = self.inner.raft.metrics();
        let arrival = async {
            while metrics.borrow_watched().current_leader != Some(to) {
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        match Types::<R>::timeout(self.inner.detection_time() * 2, arrival).await {
            Ok(true) => Ok(to),
            Ok(false) | Err(_) => Err(TransferError::Timeout),
        }
    }
}

/// How long a confirmed read may take.
const READ_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A policy as large ones are: many groups that differ in names and addresses only.
    fn groups(count: u32) -> Vec<String> {
        let group = |n: u32| {
            let [_, a, b, c] = n.to_be_bytes();
            format!(r#"{{"id":"group-{n}","sources":{{"ips":["10.{a}.{b}.{c}"]}}}},"#)
        };
        (0..count).map(group).collect()
    }

    #[test]
    fn pieces_are_the_document_and_never_too_large_for_an_entry() {
        for document in [groups(50_000).concat(), "x".repeat(3 * CHUNK_BYTES + 1)] {
            let document = document.as_bytes();
            let all: Vec<&[u8]> = pieces(document).collect();
            assert_eq!(all.concat(), document);
            assert!(all.len() > 3);
            assert!(all.iter().all(|piece| piece.len() <= CHUNK_BYTES));
        }
    }

    #[test]
    fn an_edit_makes_few_new_pieces_wherever_it_is() {
        let before = groups(50_000);
        let whole = before.concat();
        let kept: HashSet<&[u8]> = pieces(whole.as_bytes()).collect();
        for at in [0, 20_000, 49_999] {
            let mut after = before.clone();
            after.insert(at, r#"{"id":"new"},"#.into());
            after.remove(at + 1);
            let after = after.concat();
            let new: usize = pieces(after.as_bytes())
                .filter(|piece| !kept.contains(piece))
                .map(<[u8]>::len)
                .sum();
            assert!(new <= 2 * CHUNK_BYTES, "an edit at {at} needs {new} bytes");
            assert!(whole.len() > 10 * CHUNK_BYTES);
        }
    }
}
