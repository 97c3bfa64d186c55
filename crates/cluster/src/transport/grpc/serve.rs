//! The server side: lets members in and hands their requests to a [`Service`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::{
    CONNECTION_WINDOW_BYTES, MAX_MESSAGE_BYTES, PATIENT, STREAM_WINDOW_BYTES, SnapshotSum, tune,
};
use crate::id::NodeId;
use crate::throttle::Throttle;
use crate::tls::{self, Denied, PeerStream, Trust};
use crate::transport::{Kind, Service, ServiceError, TransportError};
use crate::wire::cluster as wire;
use wire::member_server::{Member, MemberServer};

/// Handshakes at a time, from everywhere and from one source.
const MAX_HANDSHAKES: usize = 128;
const MAX_HANDSHAKES_PER_SOURCE: usize = 16;

/// A handshake is given up after this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A reason to keep somebody out is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Most reasons that are told apart within that time.
const MAX_REASONS: usize = 64;

/// See [`GrpcTransport::serve`](super::GrpcTransport::serve).
pub(super) async fn serve(
    listener: TcpListener,
    trust: Arc<Trust>,
    service: Arc<dyn Service>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    // Ends the accepting too when this future is dropped.
    let stop = stop.child_token();
    let _guard = stop.clone().drop_guard();
    let (admitted, connections) = mpsc::channel(MAX_HANDSHAKES);
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(trust.server_config()),
        trust,
        admitted,
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        watch: Mutex::default(),
        stop: stop.clone(),
    });
    tokio::spawn(accept(listener, door));
    let member = MemberServer::new(Handler { service })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(PATIENT.interval))
        .http2_keepalive_timeout(Some(PATIENT.timeout))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(member)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled())
        .await
}

/// Where everybody knocks.
struct Door {
    acceptor: TlsAcceptor,
    trust: Arc<Trust>,
    admitted: mpsc::Sender<io::Result<Connection>>,
    handshakes: Arc<Semaphore>,
    watch: Mutex<Watch>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Watch {
    throttle: Throttle,
    logged: HashMap<String, Instant>,
}

type Connection = PeerStream<TlsStream<TcpStream>>;

async fn accept(listener: TcpListener, door: Arc<Door>) {
    loop {
        let accepted = tokio::select! {
            () = door.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, source)) => {
                let door = Arc::clone(&door);
                tokio::spawn(async move {
                    tokio::select! {
                        () = door.stop.cancelled() => {}
                        () = door.attend(stream, source) => {}
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: give others time to close theirs.
                tracing::warn!(%error, "the cluster listener cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Door {
    async fn attend(&self, stream: TcpStream, source: SocketAddr) {
        let Ok(_place) = self.handshakes.try_acquire() else {
            return;
        };
        let opened =
            self.watch()
                .throttle
                .open(source.ip(), MAX_HANDSHAKES_PER_SOURCE, Instant::now());
        if !opened {
            return;
        }
        let admitted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.admit(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        // A peer that this node does not know yet may try again at once: only places are limited here.
        self.watch()
            .throttle
            .close(source.ip(), true, Instant::now());
        match admitted {
            Ok(connection) => {
                // Closed when the server has ended.
                let _ = self.admitted.send(Ok(connection)).await;
            }
            Err(error) => self.log(&error, source),
        }
    }

    async fn admit(&self, stream: TcpStream) -> io::Result<Connection> {
        tune(&stream)?;
        let stream = self.acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        if !self.trust.is_meant(session.server_name()) {
            return Err(io::Error::other("it only asked whether this node is there"));
        }
        // A client that offers no protocol at all gets this far.
        if session.alpn_protocol() != Some(tls::ALPN_CLUSTER) {
            return Err(io::Error::other("it does not speak the cluster's protocol"));
        }
        let certificate = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| io::Error::other(Denied::Unreadable))?;
        let admission = self
            .trust
            .admit(certificate, &self.stop)
            .map_err(io::Error::other)?;
        Ok(PeerStream::new(stream, admission))
    }

    /// Whoever shows a certificate is an operator's business; noise of strangers is not.
    fn log(&self, error: &io::Error, source: SocketAddr) {
        let inner = error.get_ref();
        let denied = inner
            .and_then(|inner| inner.downcast_ref::<Denied>())
            .or_else(|| {
                inner
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                    .and_then(tls::denied)
            });
        let Some(denied) = denied else {
            tracing::debug!(%source, %error, "a handshake on the cluster listener failed");
            return;
        };
        let now = Instant::now();
        let reason = denied.to_string();
        let mut watch = self.watch();
        watch
            .logged
            .retain(|_, at| now.saturating_duration_since(*at) < LOG_INTERVAL);
        if watch.logged.len() < MAX_REASONS && !watch.logged.contains_key(&reason) {
            tracing::warn!(reason, "kept a node out of the cluster");
            watch.logged.insert(reason, now);
        }
        tracing::debug!(%source, "it came from");
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // Nothing in there can panic half-way.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Caller(NodeId);

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller(self.node_id())
    }
}

/// The gRPC service, around ours.
struct Handler {
    service: Arc<dyn Service>,
}

/// The peer that a request comes from.
fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let Caller(node_id) = request
        .extensions()
        .get::<Caller>()
        .ok_or_else(|| Status::internal("a connection without a peer"))?;
    Ok(*node_id)
}

async fn handle(
    service: &dyn Service,
    from: NodeId,
    request: wire::CallRequest,
) -> Result<Bytes, ServiceError> {
    let wire::CallRequest { kind, body } = request;
    match u8::try_from(kind).ok().and_then(Kind::from_u8) {
        Some(kind) => service.handle(from, kind, body).await,
        None => Err(ServiceError(format!(
            "this version knows no request of kind {kind}"
        ))),
    }
}

fn answer(outcome: Result<Bytes, ServiceError>) -> wire::Answer {
    wire::Answer {
        outcome: Some(match outcome {
            Ok(body) => wire::answer::Outcome::Body(body),
            Err(error) => wire::answer::Outcome::Refused(error.0),
        }),
    }
}

#[tonic::async_trait]
impl Member for Handler {
    async fn call(
        &self,
        request: Request<wire::CallRequest>,
    ) -> Result<Response<wire::Answer>, Status> {
        let from = caller(&request)?;
        let outcome = handle(&*self.service, from, request.into_inner()).await;
        Ok(Response::new(answer(outcome)))
    }

    type CallsStream = BoxStream<'static, Result<wire::Answer, Status>>;

    async fn calls(
        &self,
        request: Request<Streaming<wire::CallRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let from = caller(&request)?;
        let service = Arc::clone(&self.service);
        let requests = request.into_inner();
        let answers = futures::stream::unfold((requests, service), move |mut state| async move {
            // The stream ends with the connection; a sender that is cut off is no error of ours.
            let request = state.0.next().await?.ok()?;
            let outcome = handle(&*state.1, from, request).await;
            Some((Ok(answer(outcome)), state))
        });
        Ok(Response::new(answers.boxed()))
    }

    type AppendStream = BoxStream<'static, Result<wire::Answer, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = caller(&request)?;
        // The stream ends with the connection; a sender that is cut off is no error of ours.
        let requests = request
            .into_inner()
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok().map(|request| request.body)));
        let answers = self.service.handle_append(from, requests.boxed());
        let answers = answers.map(|outcome| Ok(answer(outcome)));
        Ok(Response::new(answers.boxed()))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<wire::Answer>, Status> {
        let from = caller(&request)?;
        let chunks = snapshot_chunks(request.into_inner().boxed());
        let outcome = self.service.handle_snapshot(from, chunks).await;
        Ok(Response::new(answer(outcome)))
    }
}

/// The chunks of a snapshot. Ends well only after an end that fits what came before it.
pub(super) fn snapshot_chunks(
    parts: BoxStream<'static, Result<wire::SnapshotPart, Status>>,
) -> BoxStream<'static, Result<Bytes, TransportError>> {
    futures::stream::unfold(Some((parts, SnapshotSum::default())), |state| async {
        let (mut parts, mut sum) = state?;
        let lost = |why: &str| Some((Err(TransportError::Lost(why.into())), None));
        let part = match parts.next().await {
            Some(Ok(part)) => part.part,
            Some(Err(status)) => return lost(status.message()),
            None => return lost("the snapshot has no end"),
        };
        match part {
            Some(wire::snapshot_part::Part::Chunk(chunk)) => {
                sum.add(&chunk);
                Some((Ok(chunk), Some((parts, sum))))
            }
            Some(wire::snapshot_part::Part::End(end)) if end == sum.end() => None,
            Some(wire::snapshot_part::Part::End(_)) => {
                lost("the snapshot does not match its checksum")
            }
            None => lost("a part of the snapshot is of no known kind"),
        }
    })
    .boxed()
}
