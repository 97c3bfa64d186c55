//! The listening side: what other members ask, put to consensus and to the handlers of the node.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::AsyncRuntime;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::image::Image;
use super::machine::Taken;
use super::network::{SnapshotHead, packed};
use super::{Types, Vote};
use crate::id::NodeId;
use crate::node::guard::Ballot;
use crate::node::{Inner, locked};
use crate::transport::{Kind, Service, ServiceError, TransportError};

/// Largest snapshot that is taken: 1 GiB, far above what the state's limits allow.
const MAX_SNAPSHOT_BYTES: usize = 1 << 30;

/// Answers for one node.
pub(crate) struct RaftService<R: AsyncRuntime> {
    pub(crate) inner: Arc<Inner<R>>,
}

fn refused(error: impl std::fmt::Display) -> ServiceError {
    ServiceError(error.to_string())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    rmp_serde::from_slice(body)
        .map_err(|error| ServiceError(format!("unreadable request: {error}")))
}

/// Nobody speaks for another member: a vote names the member that asks for it.
fn check_sender(from: NodeId, vote: &Vote) -> Result<(), ServiceError> {
    if vote.leader_id.voted_for == from {
        Ok(())
    } else {
        Err(ServiceError("the request names another member".into()))
    }
}

/// What an append says about its sender, to be believed once it was accepted.
fn confirmed_commit<R: AsyncRuntime>(request: &AppendEntriesRequest<Types<R>>) -> Option<u64> {
    let commit = request.leader_commit.as_ref()?;
    // Only an entry of the leader's own term tells how far the log is really committed.
    (commit.leader_id.term == request.vote.leader_id.term).then_some(commit.index)
}

async fn answer<R: AsyncRuntime>(
    inner: &Inner<R>,
    from: NodeId,
    kind: Kind,
    body: Bytes,
) -> Result<Bytes, ServiceError> {
    fn reply(
        answer: Result<impl Serialize, impl std::fmt::Display>,
    ) -> Result<Bytes, ServiceError> {
        answer.map(|answer| packed(&answer)).map_err(refused)
    }
    match kind {
        Kind::Vote => {
            let request: VoteRequest<Types<R>> = read(&body)?;
            check_sender(from, &request.vote)?;
            match inner.admits_vote(&request)? {
                Ballot::Open => reply(inner.raft.vote(request).await),
                Ballot::Denied(answer) => reply(Ok::<_, Infallible>(answer)),
            }
        }
        Kind::PreVote => {
            let request: VoteRequest<Types<R>> = read(&body)?;
            check_sender(from, &request.vote)?;
            match inner.admits_vote(&request)? {
                Ballot::Open => reply(inner.raft.pre_vote(request).await),
                Ballot::Denied(answer) => reply(Ok::<_, Infallible>(answer)),
            }
        }
        Kind::TransferLeader => {
            let request: TransferLeaderRequest<Types<R>> = read(&body)?;
            check_sender(from, request.from_leader())?;
            inner.guard.admits_leading()?;
            reply(inner.raft.handle_transfer_leader(request).await)
        }
        Kind::Append => {
            let request: AppendEntriesRequest<Types<R>> = read(&body)?;
            check_sender(from, &request.vote)?;
            let term = request.vote.leader_id.term;
            inner.admits_append(from, term)?;
            let confirmed = confirmed_commit(&request);
            let answer = inner.raft.append_entries(request).await;
            if let Ok(answer) = &answer
                && !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_))
            {
                inner.heard(from, confirmed);
            }
            reply(answer)
        }
        Kind::Recall => reply(Ok::<_, Infallible>(inner.recollect(from, &read(&body)?)?)),
        Kind::Fingerprint => reply(Ok::<_, Infallible>(inner.fingerprint(read(&body)?).await)),
        Kind::Report => inner.answer_report(from, &body).map_err(ServiceError),
        Kind::Find => inner.answer_lost(from, &body).map_err(ServiceError),
        Kind::ReadIndex => {
            let linearizer = inner
                .raft
                .get_read_linearizer(openraft::ReadPolicy::ReadIndex)
                .await
                .map_err(refused)?;
            reply(Ok::<_, Infallible>(linearizer.read_log_id().index()))
        }
        Kind::Http
        | Kind::Enrol
        | Kind::Renew
        | Kind::Mint
        | Kind::Admin
        | Kind::Event
        | Kind::Grants
        | Kind::Sysdump => {
            let handler = inner
                .handler(kind)
                .ok_or_else(|| ServiceError("this node does not serve that yet".into()))?;
            handler(from, body).await
        }
    }
}

impl<R: AsyncRuntime> Service for RaftService<R> {
    fn handle(
        &self,
        from: NodeId,
        kind: Kind,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        let inner = self.inner.clone();
        Box::pin(async move { answer(&inner, from, kind, body).await })
    }

    fn handle_append(
        &self,
        from: NodeId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, ServiceError>> {
        let inner = self.inner.clone();
        // Answers come in the order of the requests, so a queue pairs what each request said with its outcome.
        let said: Arc<Mutex<VecDeque<Option<u64>>>> = Arc::default();
        let outcomes = said.clone();
        let refusal: Arc<Mutex<Option<ServiceError>>> = Arc::default();
        let refused_with = refusal.clone();
        let guarded = inner.clone();
        // An unreadable request ends the stream with an error, as does one that speaks for somebody else, or that comes
        // before this node may answer.
        let readable = requests
            .map(move |body| {
                read::<AppendEntriesRequest<Types<R>>>(&body)
                    .and_then(|request| check_sender(from, &request.vote).map(|()| request))
                    .inspect_err(|error| tracing::warn!(%error, member = %from, "append refused"))
                    .and_then(|request| {
                        let term = request.vote.leader_id.term;
                        guarded.admits_append(from, term).map(|()| request)
                    })
                    .inspect(|request| locked(&said).push_back(confirmed_commit(request)))
                    .map_err(|error| *locked(&refusal) = Some(error))
            })
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok()));
        inner
            .raft
            .clone()
            .stream_append(readable)
            .map(move |outcome| {
                let confirmed = locked(&outcomes).pop_front().flatten();
                let outcome = outcome.map_err(refused)?;
                if !matches!(
                    outcome,
                    Err(openraft::raft::StreamAppendError::HigherVote(_))
                ) {
                    inner.heard(from, confirmed);
                }
                Ok(packed(&outcome))
            })
            .chain(
                futures::stream::once(async move { locked(&refused_with).take() })
                    .filter_map(|refusal| std::future::ready(refusal.map(Err))),
            )
            .boxed()
    }

    fn handle_snapshot(
        &self,
        from: NodeId,
        mut chunks: BoxStream<'static, Result<Bytes, TransportError>>,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let head = chunks
                .next()
                .await
                .ok_or_else(|| refused("an empty snapshot"))?;
            let head: SnapshotHead = read(&head.map_err(refused)?)?;
            check_sender(from, &head.vote)?;
            let term = head.vote.leader_id.term;
            inner.admits_append(from, term)?;
            let mut pieces = Vec::new();
            let mut bytes = 0;
            while let Some(piece) = chunks.next().await {
                let piece = piece.map_err(refused)?;
                bytes += piece.len();
                if bytes > MAX_SNAPSHOT_BYTES {
                    return Err(refused("the snapshot is too large"));
                }
                pieces.push(piece);
            }
            let checked: Arc<[Bytes]> = pieces.into();
            let image = Image::Pieces(checked.clone());
            // Checked before it is installed, so that a damaged one does not stop this node. One that a newer version
            // has made does: nothing that it is sent from now on can be applied here.
            let covered = inner
                .io()
                .run(move || Image::decode(&checked.concat()).map(|(covered, _)| covered))
                .await
                .map_err(refused)?;
            match covered {
                Ok(covered) if covered.last != head.meta.last_log_id => {
                    return Err(refused("the snapshot covers something else than announced"));
                }
                Ok(_) => {}
                Err(error) if error.too_old().is_some() => {}
                Err(error) => {
                    return Err(refused(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
            let snapshot = Taken {
                meta: head.meta,
                snapshot: image,
            };
            let answer = inner
                .raft
                .install_full_snapshot(head.vote, snapshot)
                .await
                .map_err(refused)?;
            Ok(packed(&answer))
        })
    }
}
