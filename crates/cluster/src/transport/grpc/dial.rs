//! Dialling a peer: TCP, mutual TLS, and the proof that it has let this node in.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Peer, tune};
use crate::tls::{self, Denied, PeerStream, Trust};

/// Resolving and connecting, each address together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// TLS, and the first word of the peer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits after failures: doubled from the first to the longest, which is short so that failover is.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// A peer that stays down is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("it did not answer a moment ago")]
    BackingOff,
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("no TLS handshake in time")]
    HandshakeTimeout,
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("not let in by this node: {0}")]
    Denied(Denied),
    #[error("somebody answers there, but not as this member of this cluster and lineage")]
    Misdirected,
    #[error(
        "it goes on under another lineage: the cluster was recovered without this node, which becomes a member again \
         with: neuwerk cluster rejoin"
    )]
    OtherLineage,
    #[error("it does not let this node in: {0}")]
    NotLetIn(io::Error),
    #[error("it says that this node was removed from the cluster")]
    Removed,
}

/// Makes connections to one peer. Clones share what is known of its health.
#[derive(Clone)]
pub(super) struct Dialer {
    trust: Arc<Trust>,
    config: Arc<ClientConfig>,
    peer: Peer,
    stop: CancellationToken,
    health: Arc<Mutex<Health>>,
}

/// What became of the last attempts.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    not_before: Option<Instant>,
    logged: Option<Instant>,
}

impl Health {
    fn failed(&mut self, now: Instant) -> bool {
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        self.not_before = Some(now + wait);
        let due = self
            .logged
            .is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL);
        if due {
            self.logged = Some(now);
        }
        due
    }

    /// True when it was known to be down.
    fn succeeded(&mut self) -> bool {
        std::mem::take(self).logged.is_some()
    }
}

pub(super) type Connection = PeerStream<TlsStream<TcpStream>>;

impl Dialer {
    pub(super) fn new(trust: Arc<Trust>, peer: Peer, stop: CancellationToken) -> Self {
        Dialer {
            config: trust.client_config(),
            trust,
            peer,
            stop,
            health: Arc::default(),
        }
    }

    async fn dial(self) -> Result<Connection, DialError> {
        if self
            .health()
            .not_before
            .is_some_and(|at| Instant::now() < at)
        {
            return Err(DialError::BackingOff);
        }
        let dialled = self.connect().await;
        let (node, address) = (self.peer.node_id, self.peer.address.as_str());
        match &dialled {
            Ok(_) => {
                if self.health().succeeded() {
                    tracing::info!(%node, address, "a member can be reached again");
                }
            }
            Err(error) => {
                if matches!(error, DialError::Misdirected) {
                    self.trust.note_stranger(node, address);
                }
                if self.health().failed(Instant::now()) {
                    tracing::warn!(%node, address, %error, "a member cannot be reached; trying on");
                }
            }
        }
        dialled
    }

    async fn connect(&self) -> Result<Connection, DialError> {
        let stream = tokio::time::timeout(
            CONNECT_TIMEOUT,
            TcpStream::connect(self.peer.address.as_str()),
        )
        .await
        .map_err(|_| DialError::ConnectTimeout)?
        .map_err(DialError::Connect)?;
        tune(&stream).map_err(DialError::Connect)?;
        tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream))
            .await
            .map_err(|_| DialError::HandshakeTimeout)?
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Connection, DialError> {
        let name = self.trust.server_name(self.peer.node_id);
        match handshake(&self.trust, &self.config, name, stream, &self.stop).await {
            Err(DialError::Misdirected) if self.is_there().await => {
                self.trust.note_other_lineage();
                Err(DialError::OtherLineage)
            }
            connected => connected,
        }
    }

    /// Whether the member that was dialled answers there, by its own key, under whatever lineage.
    async fn is_there(&self) -> bool {
        let name = self.trust.any_lineage_name(self.peer.node_id);
        let Ok(stream) = TcpStream::connect(self.peer.address.as_str()).await else {
            return false;
        };
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
            .is_ok()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Nothing in here can panic half-way.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mutual TLS with the member that `name` asks for.
pub(super) async fn handshake(
    trust: &Trust,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
    stop: &CancellationToken,
) -> Result<Connection, DialError> {
    let mut stream = TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(tls_error)?;
    // In TLS 1.3 the client is done before the server has looked at its certificate. The server speaks first in
    // HTTP/2: with its first byte it has let this node in.
    let first = stream.fill_buf().await.map_err(|error| {
        if is_alert(&error, AlertDescription::CertificateRevoked) {
            // The member has proved its key by now.
            trust.note_removed(true);
            return DialError::Removed;
        }
        DialError::NotLetIn(error)
    })?;
    if first.is_empty() {
        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(DialError::NotLetIn(end));
    }
    let (_, session) = stream.get_ref();
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or(DialError::Denied(Denied::Unreadable))?;
    let admission = trust.admit(certificate, stop).map_err(DialError::Denied)?;
    trust.note_removed(false);
    Ok(PeerStream::new(stream, admission))
}

fn is_alert(error: &io::Error, alert: AlertDescription) -> bool {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::AlertReceived(received)) if *received == alert)
}

fn tls_error(error: io::Error) -> DialError {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => {
            DialError::Misdirected
        }
        Some(cause) => match tls::denied(cause) {
            Some(denied) => DialError::Denied(denied.clone()),
            None => DialError::Tls(error),
        },
        None => DialError::Tls(error),
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Connection>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_short_and_logs_are_rare() {
        let start = Instant::now();
        let mut health = Health::default();
        let mut waits = Vec::new();
        let mut logged = Vec::new();
        let mut now = start;
        for _ in 0..1000 {
            logged.push(health.failed(now));
            let wait = health.not_before.expect("it failed") - now;
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(waits[..5], [50, 100, 200, 400, 500]);
        assert!(waits[5..].iter().all(|wait| *wait == 500));
        let minutes = (now - start).as_secs() / 60;
        let lines = logged.iter().filter(|line| **line).count();
        assert!(lines as u64 <= minutes + 1, "{lines} in {minutes} minutes");
        assert!(health.succeeded());
        assert!(!health.succeeded(), "it was not down since");
        assert_eq!(health.not_before, None);
    }
}
