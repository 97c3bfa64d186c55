//! The joiner: asks at every address it was given until somebody lets it in.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::protocol::{Application, Binding, Joiner, Outcome, Presented, ProtocolError};
use super::secret::{Held, SecretError};
use super::{ALPN_JOIN, EXPORTER_LABEL, EnrolGrant, EnrolRefusal};

/// Port of the join listener, unless an address says otherwise.
pub const DEFAULT_JOIN_PORT: u16 = 9601;

/// A connection is given up after this long.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A whole attempt is given up after this long: a little more than the listener gives it.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(12);

/// Waits between rounds double from the first to the last, less a random part of up to half.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Why one attempt at one address failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The host has no address.
    #[error("cannot resolve the name")]
    Resolve(#[source] io::Error),
    /// Nobody answers, or not with the join protocol.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection ended early: the member is busy, or does not hold this node's secret.
    #[error("the connection ended early")]
    Closed(#[source] io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The file is there and lists nothing.
    #[error("the bootstrap token file holds neither a secret nor a join token")]
    Nothing,
    /// This node's own file.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// What came was not right.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The cluster does not want this node now.
    #[error("refused")]
    Refused(#[from] EnrolRefusal),
    /// TLS or the random source failed.
    #[error("cryptography failed: {0}")]
    Cryptography(&'static str),
}

impl JoinError {
    /// Whether nobody answered at all.
    fn is_silence(&self) -> bool {
        matches!(
            self,
            JoinError::Resolve(_) | JoinError::Connect(_) | JoinError::TimedOut
        )
    }
}

/// Called with an address and why nothing came of it.
pub type OnFailure = Box<dyn Fn(&str, &JoinError) + Send + Sync>;

/// Reads what this node holds.
pub type Credentials = Arc<dyn Fn() -> Result<Held, SecretError> + Send + Sync>;

/// Where to ask and what to say.
pub struct JoinOptions {
    /// `--join`: `host`, `host:port`, `[v6]:port`. A port is the join listener's; that of a cluster listener will do
    /// too, for the one above is tried next.
    pub addresses: Vec<String>,
    /// Addresses of this node's own listeners, which are skipped.
    pub own: Vec<SocketAddr>,
    /// Reads bootstrap secrets and join tokens, anew for each attempt: the file may be placed later.
    pub held: Credentials,
    /// What this node says of itself.
    pub application: Application,
    /// Told after each failed attempt where and why; for `/ready`.
    pub on_failure: OnFailure,
}

impl fmt::Debug for JoinOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinOptions")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Asks for membership until it is granted. Never gives up; drop the future to stop.
pub async fn join(options: &JoinOptions) -> EnrolGrant {
    let connector = TlsConnector::from(Arc::new(client_config()));
    let mut log = OncePerMinute::default();
    let mut wait = FIRST_WAIT;
    loop {
        for address in &options.addresses {
            let mut telling: Option<JoinError> = None;
            for target in targets(address, &options.own).await {
                let failure = match target {
                    Ok(target) => match attempt(&connector, target, options).await {
                        Ok(grant) => return grant,
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                // One address stands for several ports: who answered tells more than where nobody listens.
                if telling.as_ref().is_none_or(JoinError::is_silence) {
                    telling = Some(failure);
                }
            }
            let Some(failure) = telling else { continue };
            if log.is_due() {
                tracing::warn!(
                    address,
                    error = &failure as &dyn std::error::Error,
                    "cannot join the cluster yet; trying on"
                );
            }
            (options.on_failure)(address, &failure);
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Every address that `address` may stand for, without this node's own.
async fn targets(address: &str, own: &[SocketAddr]) -> Vec<Result<SocketAddr, JoinError>> {
    let (host, ports) = split(address);
    let resolved = match tokio::net::lookup_host((host, 0)).await {
        Ok(resolved) => resolved,
        Err(error) => return vec![Err(JoinError::Resolve(error))],
    };
    let mut targets = Vec::new();
    for ip in resolved.map(|at| at.ip()) {
        for port in &ports {
            let target = SocketAddr::new(ip, *port);
            if !own.contains(&target) {
                targets.push(Ok(target));
            }
        }
    }
    targets
}

/// Host and ports to try. A port may be the join listener's, or the cluster listener's just below it.
fn split(address: &str) -> (&str, Vec<u16>) {
    let (host, port) = match address.rsplit_once(':') {
        // An IPv6 address without brackets has colons of its own, and no port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse::<u16>().ok())
        }
        _ => (address, None),
    };
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let ports = match port {
        Some(port) => std::iter::once(port).chain(port.checked_add(1)).collect(),
        None => vec![DEFAULT_JOIN_PORT],
    };
    (inner.unwrap_or(host), ports)
}

async fn attempt(
    connector: &TlsConnector,
    target: SocketAddr,
    options: &JoinOptions,
) -> Result<EnrolGrant, JoinError> {
    let attempt = async |presented: Presented| {
        let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(target))
            .await
            .map_err(|_| JoinError::TimedOut)?
            .map_err(JoinError::Connect)?;
        stream.set_nodelay(true).map_err(JoinError::Connect)?;
        let name = ServerName::IpAddress(target.ip().into());
        enrol(
            connector,
            stream,
            name,
            presented,
            options.application.clone(),
        )
        .await
    };
    let Held { secrets, tokens } = (options.held)()?;
    let secrets = (!secrets.is_empty()).then_some(Presented::Secrets(secrets));
    let all = tokens.into_iter().map(Presented::Token).chain(secrets);
    let mut last = Err(JoinError::Nothing);
    for presented in all {
        last = tokio::time::timeout(ATTEMPT_DEADLINE, attempt(presented))
            .await
            .unwrap_or(Err(JoinError::TimedOut));
        // Another credential helps only where this one was looked at.
        if matches!(last, Ok(_) | Err(JoinError::Connect(_))) {
            break;
        }
    }
    last
}

/// One attempt over an open connection.
pub(super) async fn enrol(
    connector: &TlsConnector,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    name: ServerName<'static>,
    presented: impl Into<Presented>,
    application: Application,
) -> Result<EnrolGrant, JoinError> {
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(JoinError::Connect)?;
    let (_, connection) = stream.get_ref();
    let mut nonce = [0; 32];
    ::aws_lc_rs::rand::fill(&mut nonce).map_err(|_| JoinError::Cryptography("random source"))?;
    let binding = Binding {
        nonce,
        exporter: connection
            .export_keying_material([0; 32], EXPORTER_LABEL, None)
            .map_err(|_| JoinError::Cryptography("TLS exporter"))?,
    };
    let mut joiner = Joiner::new(presented, application, binding);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if let Some(output) = joiner.poll_transmit() {
            stream.write_all(&output).await.map_err(JoinError::Closed)?;
            stream.flush().await.map_err(JoinError::Closed)?;
        }
        let length = stream.read(&mut buffer).await.map_err(JoinError::Closed)?;
        if length == 0 {
            let end = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(JoinError::Closed(end));
        }
        match joiner.handle_input(&buffer[..length])? {
            None => {}
            Some(Outcome::Granted(grant)) => return Ok(*grant),
            Some(Outcome::Refused(refusal)) => return Err(refusal.into()),
        }
    }
}

pub(super) fn client_config() -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Takes any certificate: who is at the other end is shown by the proof, which is bound to this connection. The
/// handshake's own signature is checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Between a half and the whole of `wait`.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness the wait is merely not spread.
    let _ = ::aws_lc_rs::rand::fill(&mut random);
    wait - wait / 2 * u32::from(u16::from_be_bytes(random)) / 65536
}

/// Lets one event a minute through.
#[derive(Debug, Default)]
struct OncePerMinute(Option<tokio::time::Instant>);

impl OncePerMinute {
    fn is_due(&mut self) -> bool {
        let now = tokio::time::Instant::now();
        let due = self
            .0
            .is_none_or(|last| now.duration_since(last) >= Duration::from_secs(60));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_every_form() {
        let check = |address: &str, host: &str, ports: &[u16]| {
            assert_eq!(split(address), (host, ports.to_vec()), "{address}");
        };
        check("fw-1.example", "fw-1.example", &[9601]);
        check("fw-1.example:9600", "fw-1.example", &[9600, 9601]);
        check("192.0.2.1", "192.0.2.1", &[9601]);
        check("192.0.2.1:65535", "192.0.2.1", &[65535]);
        check("2001:db8::1", "2001:db8::1", &[9601]);
        check("[2001:db8::1]", "2001:db8::1", &[9601]);
        check("[2001:db8::1]:7", "2001:db8::1", &[7, 8]);
        check("", "", &[9601]);
        check(":", "", &[9601]);
    }

    #[tokio::test]
    async fn ones_own_address_is_skipped() {
        let own = ["127.0.0.1:9600", "127.0.0.1:9601"].map(|at| at.parse().expect("an address"));
        assert!(targets("127.0.0.1:9600", &own).await.is_empty());
        let found = targets("127.0.0.1:9599", &own).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].as_ref().expect("no name").port(), 9599);
    }

    #[test]
    fn waits_are_spread_but_never_longer() {
        for _ in 0..100 {
            let wait = jittered(LONGEST_WAIT);
            assert!(wait > LONGEST_WAIT / 2 && wait <= LONGEST_WAIT, "{wait:?}");
        }
    }
}
