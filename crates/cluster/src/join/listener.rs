//! The join listener: takes joiners in, a few at a time, and passes them to the leader.
//!
//! Strangers reach this port, so that everything is bounded: attempts at a time, bytes and seconds for each, attempts
//! per source, failures per source. A stranger learns nothing, not even why it was turned away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::protocol::{Acceptor, Binding, ProtocolError, Tokens};
use super::secret::{Secret, SecretError};
use super::{ALPN_JOIN, EXPORTER_LABEL, EnrolGrant, EnrolRefusal, EnrolRequest};
use crate::throttle::Throttle;

/// Enrolments at a time.
pub const MAX_ENROLMENTS: usize = 4;

/// Enrolments at a time from one source.
const MAX_PER_SOURCE: usize = 2;

/// From the connection to the answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The secrets that admit members, read anew for every attempt so that a rotation needs no restart.
pub type Secrets = Arc<dyn Fn() -> Result<Vec<Secret>, SecretError> + Send + Sync>;

/// What makes a member of a joiner that has proved its secret: the leader, here or elsewhere.
pub type Enrol =
    Arc<dyn Fn(EnrolRequest) -> BoxFuture<'static, Result<EnrolGrant, EnrolRefusal>> + Send + Sync>;

/// Told of an attempt that came to nothing, for the change log: from where, and why.
pub type OnRefusal = Box<dyn Fn(SocketAddr, String) + Send + Sync>;

/// Attempts since start.
#[derive(Debug, Default)]
pub struct JoinCounters {
    /// Made a member, or told again that it is one.
    pub granted: AtomicU64,
    /// Proved its secret and was turned away.
    pub refused: AtomicU64,
    /// Did not prove a secret: wrong, malformed, too slow.
    pub failed: AtomicU64,
    /// Turned away unheard: too many at a time, or too many failures of its source.
    pub throttled: AtomicU64,
}

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// No certificate for the listener could be made up.
    #[error("no certificate for the join listener could be made")]
    Certificate(#[source] rcgen::Error),
    /// rustls does not take it.
    #[error("the join listener's TLS configuration cannot be used")]
    Tls(#[source] rustls::Error),
}

/// Why an attempt failed. For the log.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("it took too long")]
    TimedOut,
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(
        "the joiner left after the cluster's proof: it probably holds another bootstrap secret"
    )]
    LeftAfterProof,
    #[error("it does not speak the join protocol")]
    OtherProtocol,
    #[error("TLS exporter")]
    Exporter(#[source] rustls::Error),
    #[error("the random source failed")]
    Random,
    #[error(transparent)]
    Secrets(#[from] SecretError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Takes joiners in.
pub struct JoinListener {
    acceptor: TlsAcceptor,
    secrets: Secrets,
    tokens: Option<Tokens>,
    enrol: Enrol,
    on_refusal: Option<OnRefusal>,
    journal: Mutex<Journal>,
    slots: Arc<Semaphore>,
    throttle: Mutex<Throttle>,
    counters: Arc<JoinCounters>,
}

impl JoinListener {
    /// A listener that admits by `secrets` and passes joiners to `enrol`.
    ///
    /// # Errors
    /// [`ListenerError`].
    pub fn new(secrets: Secrets, enrol: Enrol) -> Result<Arc<Self>, ListenerError> {
        Self::with(secrets, None, enrol, None)
    }

    /// A listener that admits by `secrets` and `tokens`, passes joiners to `enrol`, and tells `on_refusal` of attempts
    /// that came to nothing.
    ///
    /// # Errors
    /// [`ListenerError`].
    pub fn with(
        secrets: Secrets,
        tokens: Option<Tokens>,
        enrol: Enrol,
        on_refusal: Option<OnRefusal>,
    ) -> Result<Arc<Self>, ListenerError> {
        Ok(Arc::new(JoinListener {
            acceptor: TlsAcceptor::from(Arc::new(server_config()?)),
            secrets,
            tokens,
            enrol,
            on_refusal,
            journal: Mutex::default(),
            slots: Arc::new(Semaphore::new(MAX_ENROLMENTS)),
            throttle: Mutex::default(),
            counters: Arc::default(),
        }))
    }

    /// Attempts since start.
    pub fn counters(&self) -> Arc<JoinCounters> {
        Arc::clone(&self.counters)
    }

    /// Accepts until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, source)) => {
                    let this = Arc::clone(&self);
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = this.attend(stream, source) => {}
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: give others time to close theirs.
                    tracing::warn!(%error, "the join listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// One attempt, from the first byte to the last.
    async fn attend(&self, stream: impl AsyncRead + AsyncWrite + Unpin, source: SocketAddr) {
        let Some(_open) = self.open(source.ip()) else {
            self.counters.throttled.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%source, "turned a joiner away: too many attempts");
            return;
        };
        let ended = tokio::time::timeout(DEADLINE, self.attempt(stream, source))
            .await
            .unwrap_or(Err(AttemptError::TimedOut));
        // A node that was told to come back later has done nothing wrong.
        let well = ended.is_ok();
        self.throttle().close(source.ip(), well, Instant::now());
        if let Err(error) = ended {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                error = &error as &dyn std::error::Error,
                "a join attempt failed"
            );
            tracing::debug!(%source, "it came from");
            self.tell(source, &error.to_string());
        }
    }

    /// Puts a refusal into the change log, if it is news.
    fn tell(&self, source: SocketAddr, reason: &str) {
        let Some(on_refusal) = &self.on_refusal else {
            return;
        };
        let news = self
            .journal
            .lock()
            // Nothing in there can panic half-way.
            .unwrap_or_else(PoisonError::into_inner)
            .tell(source.ip(), reason, Instant::now());
        match news {
            None => {}
            Some(0) => on_refusal(source, reason.to_owned()),
            Some(left_out) => on_refusal(
                source,
                format!("{reason} ({left_out} other refusals were left out before)"),
            ),
        }
    }

    async fn attempt(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        source: SocketAddr,
    ) -> Result<(), AttemptError> {
        let mut stream = self.acceptor.accept(stream).await?;
        let (_, connection) = stream.get_ref();
        // A client that offers no protocol at all gets this far.
        if connection.alpn_protocol() != Some(ALPN_JOIN) {
            return Err(AttemptError::OtherProtocol);
        }
        let binding = Binding {
            nonce: random()?,
            exporter: connection
                .export_keying_material([0; 32], EXPORTER_LABEL, None)
                .map_err(AttemptError::Exporter)?,
        };
        let now = SystemTime::now();
        let mut secrets = (self.secrets)()?;
        secrets.retain(|secret| secret.is_valid(now));
        let mut acceptor = Acceptor::new(secrets, binding);
        if let Some(tokens) = &self.tokens {
            acceptor = acceptor.with_tokens(Arc::clone(tokens));
        }

        let mut buffer = [0; 4096];
        let request = loop {
            let length = match stream.read(&mut buffer).await {
                Ok(length) => length,
                // A joiner that does not like the cluster's proof just drops the connection.
                Err(_) if acceptor.has_proved() => 0,
                Err(error) => return Err(error.into()),
            };
            if length == 0 {
                return Err(if acceptor.has_proved() {
                    AttemptError::LeftAfterProof
                } else {
                    io::Error::from(io::ErrorKind::UnexpectedEof).into()
                });
            }
            let handled = acceptor.handle_input(&buffer[..length]);
            if let Some(output) = acceptor.poll_transmit() {
                stream.write_all(&output).await?;
                stream.flush().await?;
            }
            match handled {
                Ok(None) => {}
                Ok(Some(request)) => break request,
                Err(error) => {
                    // What the joiner is told of it must not be cut off by a reset.
                    let _ = stream.shutdown().await;
                    return Err(error.into());
                }
            }
        };

        let (name, address) = (request.name.clone(), request.addresses.cluster.clone());
        let outcome = (self.enrol)(request).await;
        match &outcome {
            Ok(grant) => {
                self.counters.granted.fetch_add(1, Ordering::Relaxed);
                tracing::info!(node = %grant.node_id, name, address, "admitted a node to the cluster");
            }
            Err(refusal) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    name,
                    address,
                    reason = refusal.reason,
                    retry = refusal.retry,
                    "did not admit a node that has proved its credential"
                );
                self.tell(source, &format!("{name}: {}", refusal.reason));
            }
        }
        tracing::debug!(%source, "answered a joiner");
        acceptor.answer(outcome);
        if let Some(output) = acceptor.poll_transmit() {
            stream.write_all(&output).await?;
        }
        stream.shutdown().await?;
        Ok(())
    }

    /// A place for an attempt of `source`, given back when dropped.
    fn open(&self, source: IpAddr) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        self.throttle()
            .open(source, MAX_PER_SOURCE, Instant::now())
            .then_some(slot)
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        // Nothing in there can panic half-way.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A certificate made up on the spot: what binds the connection is the proof.
fn server_config() -> Result<ServerConfig, ListenerError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ListenerError::Certificate)?;
    let certificate = CertificateParams::default()
        .self_signed(&key)
        .map_err(ListenerError::Certificate)?;
    let key = PrivatePkcs8KeyDer::from(key.serialized_der().to_vec());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![certificate.into()], key.into())
        })
        .map_err(ListenerError::Tls)?;
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn random() -> Result<[u8; 32], AttemptError> {
    let mut bytes = [0; 32];
    ::aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AttemptError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
