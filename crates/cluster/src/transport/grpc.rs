//! Members over gRPC and mutual TLS: the transport of a real cluster.
//!
//! Each peer has four connections, so that no elections wait behind appends, no appends behind snapshots, and no client's
//! answer behind any of them; heartbeats share one stream of the first, and what names stand for one of the last. They are made when first used, kept alive by HTTP/2 pings, and made again with a
//! back-off that stays low: after a failover the survivors must find one another at once. Whom they reach is decided by
//! [`Trust`].

mod beats;
mod dial;
mod search;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::tally::Tally;
use super::{Kind, Peer, Search, Service, Transport, TransportError};
use crate::command::MAX_DOCUMENT_BYTES;
use crate::id::{Digest, NodeId};
use crate::tls::Trust;
use crate::wire::cluster as wire;
use beats::Beats;
use dial::{DialError, Dialer};

/// Largest message: a forwarded request with the largest document, and room for what is around it.
pub const MAX_MESSAGE_BYTES: usize = MAX_DOCUMENT_BYTES as usize + 8 * 1024 * 1024;

/// A connection ends when what was sent is not acknowledged, or not taken, for this long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2 flow-control windows: what may be under way on a fast link with some delay.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// A snapshot is given up when the peer takes nothing for this long.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);

/// A snapshot is given up when the peer has everything and has not installed it after this long.
const SNAPSHOT_INSTALL: Duration = Duration::from_secs(300);

/// One of the connections with a peer.
#[derive(Debug, Clone, Copy)]
enum Lane {
    /// Elections and heartbeats.
    Urgent,
    /// Appends.
    Append,
    /// Snapshots and everything else.
    Bulk,
    /// What names stand for.
    Grants,
}

impl Lane {
    const ALL: [Lane; 4] = [Lane::Urgent, Lane::Append, Lane::Bulk, Lane::Grants];

    fn of(kind: Kind) -> Lane {
        match kind {
            Kind::Grants => Lane::Grants,
            kind if kind.is_urgent() => Lane::Urgent,
            _ => Lane::Bulk,
        }
    }

    fn keepalive(self) -> Keepalive {
        match self {
            // After a cut is mended, or a machine has come back, these must not wait for TCP to try again.
            Lane::Urgent | Lane::Append | Lane::Grants => Keepalive {
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(2),
            },
            Lane::Bulk => PATIENT,
        }
    }
}

/// How a silent connection is noticed.
struct Keepalive {
    /// A ping goes out when nothing came in for this long.
    interval: Duration,
    /// The connection ends when it is not answered for this long.
    timeout: Duration,
}

/// Where a ping may have to wait behind megabytes that a busy peer has yet to take.
const PATIENT: Keepalive = Keepalive {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(20),
};

type Client = wire::member_client::MemberClient<Channel>;

/// Connections with one peer.
struct Line {
    address: String,
    lanes: [Client; Lane::ALL.len()],
    beats: [Option<Beats>; Lane::ALL.len()],
}

#[derive(Default)]
struct Lines {
    by_node: BTreeMap<NodeId, Line>,
    forgotten: BTreeSet<NodeId>,
    relocated: BTreeMap<NodeId, Relocation>,
}

/// A member that is elsewhere than on record.
struct Relocation {
    recorded: String,
    address: String,
}

impl Lines {
    /// Where to dial a member that is to be dialled at `recorded`.
    fn located(&mut self, node_id: NodeId, recorded: &str) -> Option<String> {
        let relocation = self.relocated.get(&node_id)?;
        if relocation.recorded == recorded {
            return Some(relocation.address.clone());
        }
        // The record has changed since.
        self.relocated.remove(&node_id);
        None
    }
}

/// This node's connections to its peers, which end when it is dropped, and its answers to theirs.
pub struct GrpcTransport {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    trust: Arc<Trust>,
    tally: Arc<Tally>,
    lines: Mutex<Lines>,
    stop: CancellationToken,
}

impl GrpcTransport {
    /// Connects as, and with whom, `trust` says.
    pub fn new(trust: Arc<Trust>) -> Arc<Self> {
        let stop = CancellationToken::new();
        Arc::new(GrpcTransport {
            _stop: stop.clone().drop_guard(),
            shared: Arc::new(Shared {
                trust,
                tally: Arc::default(),
                lines: Mutex::default(),
                stop,
            }),
        })
    }

    /// What requests to each peer came to.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.shared.tally)
    }

    /// The server side: answers members on `listener` until `stop`; then every connection is closed.
    ///
    /// # Errors
    /// gRPC cannot go on.
    pub fn serve(
        &self,
        listener: TcpListener,
        service: Arc<dyn Service>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), tonic::transport::Error>> {
        let trust = Arc::clone(&self.shared.trust);
        Box::pin(serve::serve(listener, trust, service, stop))
    }
}

impl Shared {
    async fn ask(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let lane = Lane::of(kind);
        let mut client = self.client(peer, lane)?;
        let request = wire::CallRequest {
            kind: kind as u32,
            body,
        };
        if kind.is_ordered()
            && let Some(beats) = self.beats(peer, lane, &client)
        {
            return beats.ask(request, deadline).await;
        }
        match tokio::time::timeout(deadline, client.call(request)).await {
            Ok(Ok(answer)) => outcome(answer.into_inner()),
            Ok(Err(status)) => {
                // It may come back as a version that knows such streams.
                if let Some(line) = self.lines().by_node.get_mut(&peer.node_id) {
                    line.beats[lane as usize].take_if(|beats| beats.is_unknown());
                }
                Err(failure(&status))
            }
            Err(_) => Err(TransportError::Lost("no answer in time".into())),
        }
    }

    /// The connection for `lane`; made anew when the peer's address has changed. Needs a runtime.
    fn client(&self, peer: &Peer, lane: Lane) -> Result<Client, TransportError> {
        let mut lines = self.lines();
        if lines.forgotten.contains(&peer.node_id) {
            return Err(TransportError::Unreachable("it was removed".into()));
        }
        let located = lines.located(peer.node_id, &peer.address);
        let address = located.unwrap_or_else(|| peer.address.clone());
        if let Some(line) = lines.by_node.get(&peer.node_id)
            && line.address == address
        {
            return Ok(line.lanes[lane as usize].clone());
        }
        let peer = Peer {
            node_id: peer.node_id,
            address,
        };
        let dialer = Dialer::new(Arc::clone(&self.trust), peer.clone(), self.stop.clone());
        let line = Line {
            address: peer.address,
            lanes: Lane::ALL.map(|lane| connect_lazily(&dialer, &lane.keepalive())),
            beats: Lane::ALL.map(|_| None),
        };
        let client = line.lanes[lane as usize].clone();
        lines.by_node.insert(peer.node_id, line);
        Ok(client)
    }

    /// The stream of ordered requests to a peer over `client`; made anew after it broke, none where the peer knows none. Needs a
    /// runtime.
    fn beats(&self, peer: &Peer, lane: Lane, client: &Client) -> Option<Beats> {
        let mut lines = self.lines();
        let line = lines.by_node.get_mut(&peer.node_id)?;
        let stream = &mut line.beats[lane as usize];
        match stream {
            Some(beats) if beats.is_unknown() => None,
            Some(beats) if beats.is_open() => Some(beats.clone()),
            _ => {
                let beats = Beats::open(client.clone());
                *stream = Some(beats.clone());
                Some(beats)
            }
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing in here can panic half-way.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect_lazily(dialer: &Dialer, keepalive: &Keepalive) -> Client {
    // The name is not used: the dialer knows whom to dial.
    let channel = Endpoint::from_static("http://member")
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(dialer.clone());
    Client::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = shared.ask(&peer, kind, body, deadline).await;
            shared
                .tally
                .enter(peer.node_id, kind, begun.elapsed(), &outcome);
            outcome
        })
    }

    fn open_append(
        &self,
        peer: &Peer,
        requests: BoxStream<'static, Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>>
    {
        let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
        Box::pin(async move {
            let mut client = shared.client(&peer, Lane::Append)?;
            let requests = requests.map(|body| wire::AppendRequest { body });
            let (requests, abandoned) = Outgoing::new(requests.boxed());
            let answers = match tokio::time::timeout(deadline, client.append(requests)).await {
                Ok(Ok(answers)) => answers.into_inner(),
                Ok(Err(status)) => return Err(failure(&status)),
                Err(_) => return Err(TransportError::Lost("no answer in time".into())),
            };
            let answers = futures::stream::unfold((answers, abandoned), async |mut state| {
                let answer = match state.0.next().await? {
                    Ok(answer) => outcome(answer),
                    Err(status) => Err(failure(&status)),
                };
                Some((answer, state))
            });
            Ok(answers.boxed())
        })
    }

    fn send_snapshot(
        &self,
        peer: &Peer,
        chunks: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
        Box::pin(async move {
            let mut client = shared.client(&peer, Lane::Bulk)?;
            let (sent, progress) = watch::channel(Progress::default());
            // Given up half-way, the stream ends without its end, and the peer knows.
            let (parts, _abandoned) = Outgoing::new(snapshot_parts(chunks, sent));
            tokio::select! {
                answer = client.snapshot(parts) => match answer {
                    Ok(answer) => outcome(answer.into_inner()),
                    Err(status) => Err(failure(&status)),
                },
                stalled = stall(progress) => Err(stalled),
            }
        })
    }

    fn find(&self, search: Search) -> BoxFuture<'static, Vec<(NodeId, Bytes)>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { search::find(&shared.trust, &shared.stop, search).await })
    }

    fn relocate(&self, node_id: NodeId, recorded: &str, address: &str) {
        let relocation = Relocation {
            recorded: recorded.to_owned(),
            address: address.to_owned(),
        };
        let mut lines = self.shared.lines();
        if recorded == address {
            lines.relocated.remove(&node_id);
        } else {
            let earlier = lines.relocated.insert(node_id, relocation);
            if earlier.is_none_or(|earlier| earlier.address != address) {
                tracing::info!(node = %node_id, recorded, address, "a member was found at another address");
            }
        }
    }

    fn relocated(&self) -> Vec<(NodeId, String)> {
        let lines = self.shared.lines();
        let relocated = lines.relocated.iter();
        relocated
            .map(|(id, relocation)| (*id, relocation.address.clone()))
            .collect()
    }

    fn is_removed(&self) -> bool {
        self.shared.trust.is_removed()
    }

    fn forget(&self, node_id: NodeId) {
        let mut lines = self.shared.lines();
        lines.by_node.remove(&node_id);
        lines.forgotten.insert(node_id);
        self.shared.tally.forget(node_id);
    }
}

/// A stream to a peer, which ends when its caller loses interest: HTTP/2 would go on sending it to the last.
///
/// It has a name of its own because with a bare boxed stream the compiler cannot prove that the generated client's
/// futures may be sent between threads.
struct Outgoing<T>(BoxStream<'static, T>);

impl<T: Send + 'static> Outgoing<T> {
    fn new(stream: BoxStream<'static, T>) -> (Self, DropGuard) {
        let abandoned = CancellationToken::new();
        let stream = stream.take_until(abandoned.clone().cancelled_owned());
        (Outgoing(stream.boxed()), abandoned.drop_guard())
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_next_unpin(cx)
    }
}

/// How far the peer has taken a snapshot.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    chunks: u64,
    complete: bool,
}

/// Chunks, and then the end that says what they were.
fn snapshot_parts(
    chunks: BoxStream<'static, Bytes>,
    sent: watch::Sender<Progress>,
) -> BoxStream<'static, wire::SnapshotPart> {
    struct Sending {
        chunks: BoxStream<'static, Bytes>,
        sum: SnapshotSum,
        sent: watch::Sender<Progress>,
    }
    let sending = Sending {
        chunks,
        sum: SnapshotSum::default(),
        sent,
    };
    futures::stream::unfold(Some(sending), |sending| async {
        let mut sending = sending?;
        let chunk = sending.chunks.next().await;
        if let Some(chunk) = &chunk {
            sending.sum.add(chunk);
        }
        let chunks = sending.sum.chunks;
        sending.sent.send_replace(Progress {
            chunks,
            complete: chunk.is_none(),
        });
        Some(match chunk {
            Some(chunk) => {
                let part = wire::snapshot_part::Part::Chunk(chunk);
                (wire::SnapshotPart { part: Some(part) }, Some(sending))
            }
            None => {
                let part = wire::snapshot_part::Part::End(sending.sum.end());
                (wire::SnapshotPart { part: Some(part) }, None)
            }
        })
    })
    .boxed()
}

/// Resolves once the peer has taken nothing for too long.
async fn stall(mut progress: watch::Receiver<Progress>) -> TransportError {
    loop {
        let complete = progress.borrow_and_update().complete;
        let patience = if complete {
            SNAPSHOT_INSTALL
        } else {
            SNAPSHOT_STALL
        };
        match tokio::time::timeout(patience, progress.changed()).await {
            Ok(Ok(())) => {}
            // The sender is gone: everything was handed over, or the call has failed and will say so.
            Ok(Err(_)) => {
                tokio::time::sleep(SNAPSHOT_INSTALL).await;
                return TransportError::Lost("the snapshot was not installed in time".into());
            }
            Err(_) => {
                let chunks = progress.borrow().chunks;
                return TransportError::Lost(format!("nothing was taken after chunk {chunks}"));
            }
        }
    }
}

/// Running checksum of a snapshot's chunks.
#[derive(Default)]
struct SnapshotSum {
    chunks: u64,
    hasher: sha2::Sha256,
}

impl SnapshotSum {
    fn add(&mut self, chunk: &[u8]) {
        use sha2::Digest as _;
        self.chunks += 1;
        self.hasher.update(chunk);
    }

    fn end(self) -> wire::SnapshotEnd {
        use sha2::Digest as _;
        let sha256 = Digest(self.hasher.finalize().into());
        wire::SnapshotEnd {
            chunks: self.chunks,
            sha256: Bytes::copy_from_slice(&sha256.0),
        }
    }
}

fn outcome(answer: wire::Answer) -> Result<Bytes, TransportError> {
    match answer.outcome {
        Some(wire::answer::Outcome::Body(body)) => Ok(body),
        Some(wire::answer::Outcome::Refused(reason)) => Err(TransportError::Refused(reason)),
        None => Err(TransportError::Lost("an empty answer".into())),
    }
}

/// What a status means for the request. Only a failed dial is certain not to have delivered it.
fn failure(status: &Status) -> TransportError {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return TransportError::Unreachable(dial.to_string());
        }
        source = error.source();
    }
    TransportError::Lost(format!("{}: {}", status.code(), status.message()))
}

/// Settings of a connection between members.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let timeout_ms = u32::try_from(TCP_USER_TIMEOUT.as_millis()).expect("a few seconds");
    rustix::net::sockopt::set_tcp_user_timeout(stream, timeout_ms)?;
    Ok(())
}

#[cfg(test)]
mod tests;
