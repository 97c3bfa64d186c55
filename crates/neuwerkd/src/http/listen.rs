//! Accept loops: TLS or plain TCP in front of a router, bounded in every direction.
//!
//! Bounded are: connections, connections of one peer, the time of a handshake, the time until a
//! request's headers are there (an idle connection included), header bytes, streams. A drain stops
//! accepting, lets requests that run finish, and then closes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::certificate::Certificates;
use super::{App, Origin};

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Connections of one peer address at once; further ones are closed.
    pub connections_per_peer: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time until a request's headers are there.
    pub headers: Duration,
    /// Bytes of a request's headers.
    pub header_bytes: usize,
    /// Time that requests get to finish at a drain.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 256,
            handshake: Duration::from_secs(5),
            headers: Duration::from_secs(10),
            header_bytes: 64 * 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves the management API over TLS until `drain` is cancelled, then drains.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    certificates: Arc<Certificates>,
    drain: CancellationToken,
) {
    if let Ok(address) = listener.local_addr()
        && !address.ip().is_unspecified()
    {
        certificates.add_name(address.ip().to_string());
    }
    serve_tls(
        listener,
        certificates.server_config(),
        app.router(),
        Limits::default(),
        drain,
    )
    .await;
}

pub(super) async fn serve_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    drain: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    serve_tcp(listener, router, limits, drain, move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream).await }
    })
    .await;
}

/// Serves `router` without TLS until `drain` is cancelled, then drains.
pub(crate) async fn serve_plain(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    drain: CancellationToken,
) {
    serve_tcp(listener, router, limits, drain, |stream| async move {
        Ok(stream)
    })
    .await;
}

async fn serve_tcp<F, H, S>(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    drain: CancellationToken,
    handshake: F,
) where
    F: Fn(tokio::net::TcpStream) -> H,
    H: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let open = Arc::new(Semaphore::new(limits.connections));
    let peers = Arc::new(Peers::default());
    let connections = Connections::new(limits);
    loop {
        let room = Arc::clone(&open).acquire_owned();
        let Some(room) = drain.run_until_cancelled(room).await else {
            break;
        };
        let room = room.expect("the semaphore is never closed");
        let Some(accepted) = drain.run_until_cancelled(listener.accept()).await else {
            break;
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let Some(seat) = peers.seat(peer.ip(), limits.connections_per_peer) else {
            tracing::debug!(%peer, "a peer has too many connections");
            continue;
        };
        // Small answers must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let shaken = tokio::time::timeout(limits.handshake, handshake(stream));
        let serve = connections.clone();
        let router = router.clone();
        connections.spawn(async move {
            match shaken.await {
                Ok(Ok(stream)) => serve.run(stream, router, Origin::Network(peer)).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
            }
            drop((room, seat));
        });
    }
    drop(listener);
    connections.finish().await;
}

/// Serves `router` on a socket that only root can open until `drain` is cancelled, then drains.
/// `is_root` looks at who is on the other side.
pub(super) async fn serve_unix(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    drain: CancellationToken,
    is_root: fn(&tokio::net::UnixStream) -> bool,
) {
    let open = Arc::new(Semaphore::new(limits.connections));
    let connections = Connections::new(limits);
    loop {
        let room = Arc::clone(&open).acquire_owned();
        let Some(room) = drain.run_until_cancelled(room).await else {
            break;
        };
        let room = room.expect("the semaphore is never closed");
        let Some(accepted) = drain.run_until_cancelled(listener.accept()).await else {
            break;
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        if !is_root(&stream) {
            tracing::warn!("a process that is not root was refused at the control socket");
            continue;
        }
        let serve = connections.clone();
        let router = router.clone();
        connections.spawn(async move {
            serve.run(stream, router, Origin::ControlSocket).await;
            drop(room);
        });
    }
    drop(listener);
    connections.finish().await;
}

/// Out of descriptors is not for ever, and a loop must not spin on it.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The connections of one listener.
#[derive(Clone)]
struct Connections {
    limits: Limits,
    builder: auto::Builder<TokioExecutor>,
    running: Arc<Mutex<tokio::task::JoinSet<()>>>,
    draining: CancellationToken,
}

impl Connections {
    fn new(limits: Limits) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.headers)
            .max_buf_size(limits.header_bytes);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.headers)
            .keep_alive_timeout(limits.headers)
            .max_concurrent_streams(128)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        Self {
            limits,
            builder,
            running: Arc::default(),
            draining: CancellationToken::new(),
        }
    }

    fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(connection);
    }

    async fn run<S>(&self, stream: S, router: Router, origin: Origin)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let asked = CancellationToken::new();
        let first = asked.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            asked.cancel();
            let (mut router, mut request) = (router.clone(), request.map(Body::new));
            request.extensions_mut().insert(origin.clone());
            async move {
                let answer: Result<Response<Body>, Infallible> = router.call(request).await;
                answer
            }
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let mut connection = std::pin::pin!(connection);
        // The header time-out of HTTP/1 begins once the version is known, and HTTP/2 has none: who
        // says nothing at all is covered here.
        let silent = async {
            if tokio::time::timeout(self.limits.headers, first.cancelled())
                .await
                .is_ok()
            {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => return,
            () = self.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended early");
        }
    }

    /// Lets requests that run finish, for as long as the limits say.
    async fn finish(self) {
        self.draining.cancel();
        let mut running = {
            let mut shared = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *shared)
        };
        let all = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.drain, all).await.is_err() {
            tracing::info!(
                connections = running.len(),
                "closed while requests were running"
            );
        }
        running.shutdown().await;
    }
}

/// How many connections each peer has.
#[derive(Debug, Default)]
struct Peers(Mutex<HashMap<IpAddr, usize>>);

impl Peers {
    fn seat(self: &Arc<Self>, peer: IpAddr, limit: usize) -> Option<Seat> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seats = peers.entry(peer).or_default();
        if *seats >= limit {
            return None;
        }
        *seats += 1;
        Some(Seat {
            peers: Arc::clone(self),
            peer,
        })
    }
}

/// One connection of a peer, given back when it ends.
#[derive(Debug)]
struct Seat {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut peers = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seats) = peers.get_mut(&self.peer) {
            *seats -= 1;
            if *seats == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_its_seats_back() {
        let peers = Arc::new(Peers::default());
        let peer: std::net::SocketAddr = "192.0.2.1:1".parse().unwrap();
        let first = peers.seat(peer.ip(), 2);
        let second = peers.seat(peer.ip(), 2);
        assert!(first.is_some() && second.is_some());
        assert!(peers.seat(peer.ip(), 2).is_none());
        assert!(peers.seat("192.0.2.2".parse().unwrap(), 2).is_some());
        drop(first);
        assert!(peers.seat(peer.ip(), 2).is_some());
        drop(second);
        assert!(peers.0.lock().unwrap().is_empty());
    }
}
