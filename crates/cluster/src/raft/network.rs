//! openraft's calls, put onto a [`Transport`].
//!
//! Heartbeats are single requests of their own kind, so that a transport can give them a connection which bulk traffic
//! cannot delay; everything else that is appended goes through one ordered stream per member.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, OptionalSend, StorageError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::image::Image;
use super::machine::{Meta, Taken};
use super::{Address, Types, Vote};
use crate::id::NodeId;
use crate::state::State;
use crate::store::Io;
use crate::transport::{Kind, Peer, Transport, TransportError};

/// How long an append may go unanswered before its stream is given up.
const APPEND_STALL: Duration = Duration::from_secs(2);

/// How long opening a stream may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);

pub(crate) fn packed(value: &impl Serialize) -> Bytes {
    Bytes::from(
        rmp_serde::to_vec_named(value)
            .expect("Raft's messages have no value that MessagePack lacks"),
    )
}

pub(super) fn unpacked<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TransportError> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| TransportError::Lost(format!("unreadable answer: {error}")))
}

/// The first item of a snapshot stream; the image's pieces follow.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: Meta,
}

/// Makes the connections that openraft asks for.
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn Transport>,
    /// A member's address of record may be newer than the one in Raft's membership.
    pub(crate) state: watch::Receiver<Arc<State>>,
    /// Who reads snapshots from disk.
    pub(crate) io: Io,
}

impl Network {
    fn client<R>(&self, target: NodeId, node: &Address, heartbeat: bool) -> Client<R> {
        Client {
            transport: self.transport.clone(),
            state: self.state.clone(),
            target,
            fallback: node.cluster.clone(),
            heartbeat,
            io: self.io,
            runtime: std::marker::PhantomData,
        }
    }
}

/// How to reach a member: at its address of record, else at `fallback`.
pub(crate) fn peer(state: &State, node_id: NodeId, fallback: &str) -> Peer {
    let recorded = state
        .member(node_id)
        .map(|member| member.addresses.cluster.as_str());
    Peer {
        node_id,
        address: recorded
            .filter(|address| !address.is_empty())
            .unwrap_or(fallback)
            .into(),
    }
}

impl<R: AsyncRuntime> RaftNetworkFactory<Types<R>> for Network {
    type Network = Client<R>;

    async fn new_client(&mut self, target: NodeId, node: &Address) -> Client<R> {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Address) -> Client<R> {
        self.client(target, node, true)
    }
}

/// The way to one member.
pub(crate) struct Client<R> {
    transport: Arc<dyn Transport>,
    state: watch::Receiver<Arc<State>>,
    target: NodeId,
    fallback: String,
    heartbeat: bool,
    io: Io,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime> Client<R> {
    /// Asked anew for each request: a member may move while this leader leads.
    fn peer(&self) -> Peer {
        peer(&self.state.borrow(), self.target, &self.fallback)
    }

    async fn call<A: DeserializeOwned>(
        &self,
        kind: Kind,
        request: &impl Serialize,
        option: RPCOption,
    ) -> Result<A, RPCError<Types<R>>> {
        let answer = self
            .transport
            .call(&self.peer(), kind, packed(request), option.hard_ttl())
            .await
            .map_err(rpc_error)?;
        unpacked(&answer).map_err(rpc_error)
    }

    async fn open(
        &self,
        mut requests: BoxStream<'static, AppendEntriesRequest<Types<R>>>,
    ) -> Result<
        BoxStream<'static, Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>>,
        RPCError<Types<R>>,
    > {
        // openraft waits out its back-off while it makes a request, so the first one is asked for before anything is
        // opened: a peer that refuses connections would otherwise be tried again without a pause.
        let Some(first) = requests.next().await else {
            return Ok(futures::stream::empty().boxed());
        };
        let requests = futures::stream::iter([first]).chain(requests);
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let requests = requests.map(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            packed(&request)
        });
        let answers = self
            .transport
            .open_append(&self.peer(), requests.boxed(), OPEN_DEADLINE)
            .await
            .map_err(rpc_error)?;
        Ok(futures::stream::unfold((answers, 0_u64, sent, false), next_answer::<R>).boxed())
    }
}

type Answers = BoxStream<'static, Result<Bytes, TransportError>>;

/// The next answer of an append stream; an error if one is due and none comes, for the network may swallow either.
async fn next_answer<R: AsyncRuntime>(
    (mut answers, received, sent, ended): (Answers, u64, Arc<AtomicU64>, bool),
) -> Option<(
    Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>,
    (Answers, u64, Arc<AtomicU64>, bool),
)> {
    if ended {
        return None;
    }
    let mut due = sent.load(Ordering::Relaxed) > received;
    loop {
        match Types::<R>::timeout(APPEND_STALL, answers.next()).await {
            Ok(answer) => {
                let result = answer?
                    .and_then(|bytes| unpacked(&bytes))
                    .map_err(rpc_error);
                let ended = result.is_err();
                return Some((result, (answers, received + 1, sent, ended)));
            }
            Err(_) if due => {
                let error = TransportError::Lost("no answer to an append".into());
                return Some((Err(rpc_error(error)), (answers, received, sent, true)));
            }
            Err(_) => due = sent.load(Ordering::Relaxed) > received,
        }
    }
}

fn rpc_error<R: AsyncRuntime>(error: TransportError) -> RPCError<Types<R>> {
    match error {
        TransportError::Lost(_) => RPCError::Network(NetworkError::new(&error)),
        TransportError::Unreachable(_) | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
    }
}

impl<R: AsyncRuntime> RaftNetworkV2<Types<R>> for Client<R> {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Kind::Append, &request, option).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>>,
            RPCError<Types<R>>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move { Ok(self.open(input.boxed()).await? as BoxStream<'s, _>) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Kind::Vote, &request, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Kind::PreVote, &request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Taken,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let head = packed(&SnapshotHead {
            vote,
            meta: snapshot.meta,
        });
        let image = snapshot.snapshot;
        let pieces =
            self.io
                .run(move || image.pieces())
                .await
                .and_then(|read| read)
                .map_err(|error| -> StreamingError<Types<R>> {
                    match error.kind() {
                        // A newer one was taken meanwhile.
                        std::io::ErrorKind::NotFound => {
                            StreamingError::Unreachable(Unreachable::new(&error))
                        }
                        _ => StorageError::read_snapshot(None, Types::<R>::err_from_error(&error))
                            .into(),
                    }
                })?
                .to_vec();
        let chunks = futures::stream::iter(std::iter::once(head).chain(pieces)).boxed();
        let sending = self.transport.send_snapshot(&self.peer(), chunks);
        match Types::<R>::select2(Box::pin(cancel), sending).await {
            openraft::async_runtime::Select2::First(closed) => Err(closed.into()),
            openraft::async_runtime::Select2::Second(answer) => answer
                .and_then(|answer| unpacked(&answer))
                .map_err(|error| StreamingError::from(rpc_error(error))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Kind::TransferLeader, &request, option).await
    }
}
