//! The HTTPS server certificate: issued by the node itself from the cluster's authority, or given
//! by the operator; swapped without a restart either way.
//!
//! Before a node has joined there is no authority. It then shows the certificate of its last boot
//! or, the very first time, one that it signs itself and that nobody can verify, so that `/health`
//! and `/ready` can be asked with verification off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use cluster::ca::{Ca, CaError};
use cluster::{State, durable, pem};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How often files and dates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What the certificate is made of.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Directory for `ca.crt`, `server.crt` and `server.key`.
    pub(super) tls_dir: PathBuf,
    /// The operator's own files, which go before anything issued here.
    pub(super) operator: Option<OperatorFiles>,
}

/// Files of the operator, PEM.
#[derive(Clone, Debug)]
pub(super) struct OperatorFiles {
    /// Certificate chain, leaf first.
    pub(super) cert_path: PathBuf,
    /// Its private key.
    pub(super) key_path: PathBuf,
    /// The authority to export to clients.
    pub(super) ca_path: Option<PathBuf>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no usable certificate or key: {reason}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The authority cannot issue.
    #[error("the node's server certificate cannot be issued")]
    Issue(#[source] cluster::ca::CaError),
    /// The first, unverifiable certificate cannot be made.
    #[error("a temporary server certificate cannot be made")]
    Temporary(#[source] rcgen::Error),
}

/// The certificate that is shown now.
#[derive(Debug)]
pub struct Certificates {
    settings: Settings,
    shown: Arc<Shown>,
    kept: Mutex<Kept>,
    named: Notify,
}

/// What is known of the certificate that is shown.
#[derive(Debug, Default)]
struct Kept {
    /// Addresses and DNS names that one is to be valid for; the first becomes the subject.
    names: Vec<String>,
    /// Certificate of the authority that issued it, and for which names, once one of this boot is shown.
    issued: Option<(Vec<u8>, Vec<String>)>,
    /// When another is to be issued.
    renew_at: Option<SystemTime>,
    /// When the operator's files were last changed.
    modified: Option<(SystemTime, SystemTime)>,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificates {
    /// Loads what there is: the operator's files, else those of the last boot, else a temporary one.
    ///
    /// # Errors
    /// The operator's files cannot be used, or nothing can be made.
    pub fn new(config: &Config) -> Result<Arc<Self>, CertificateError> {
        let http = &config.http;
        let operator = match (&http.cert_path, &http.key_path) {
            (Some(cert_path), Some(key_path)) => Some(OperatorFiles {
                cert_path: cert_path.clone(),
                key_path: key_path.clone(),
                ca_path: http.ca_path.clone(),
            }),
            _ => None,
        };
        let addresses = [http.advertise, http.bind].into_iter().flatten();
        let addresses = addresses.filter(|address| !address.ip().is_unspecified());
        let names = addresses
            .map(|address| address.ip().to_string())
            .chain(http.tls_san.clone());
        let settings = Settings {
            tls_dir: http.tls_dir.clone(),
            operator,
        };
        Self::load(settings, names.collect())
    }

    pub(super) fn load(
        settings: Settings,
        names: Vec<String>,
    ) -> Result<Arc<Self>, CertificateError> {
        durable::create_directory(&settings.tls_dir)
            .map_err(|source| file(&settings.tls_dir, source))?;
        let mut kept = Kept::default();
        let first = match &settings.operator {
            Some(files) => {
                kept.modified = Some(modified(files)?);
                export_operator_ca(files, &settings.tls_dir)?;
                read_pair(&files.cert_path, &files.key_path)?
            }
            None => match read_pair(&settings.server_crt(), &settings.server_key()) {
                Ok(pair) => pair,
                Err(_) => temporary(&names)?,
            },
        };
        kept.names = names;
        Ok(Arc::new(Self {
            settings,
            shown: Arc::new(Shown(ArcSwap::from_pointee(first))),
            kept: Mutex::new(kept),
            named: Notify::new(),
        }))
    }

    /// Adds an address or DNS name that the certificate must be valid for, such as one that this
    /// node has just begun to listen on.
    pub fn add_name(&self, name: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.names.contains(&name) {
            kept.names.push(name);
            self.named.notify_one();
        }
    }

    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, with whatever certificate is shown at each handshake.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let resolver: Arc<dyn ResolvesServerCert> = self.shown.clone();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Brings the certificate up to date with the cluster's authority, the operator's files and
    /// the date. Returns whether another one is shown now.
    ///
    /// # Errors
    /// The old one goes on being shown.
    pub fn refresh(&self, state: &State, now: SystemTime) -> Result<bool, CertificateError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.settings.operator {
            let found = modified(files)?;
            if kept.modified == Some(found) {
                return Ok(false);
            }
            let pair = read_pair(&files.cert_path, &files.key_path)?;
            export_operator_ca(files, &self.settings.tls_dir)?;
            self.shown.0.store(Arc::new(pair));
            kept.modified = Some(found);
            return Ok(true);
        }
        let Some(authority) = state.https_ca() else {
            return Ok(false);
        };
        let due = kept.renew_at.is_none_or(|renew_at| now >= renew_at);
        let wanted = (authority.certificate_der.clone(), kept.names.clone());
        if kept.issued.as_ref() == Some(&wanted) && !due {
            return Ok(false);
        }
        let ca = state.open_ca(authority).map_err(CertificateError::Issue)?;
        let pair = self.issue(&ca, &kept.names, now)?;
        self.shown.0.store(Arc::new(pair));
        kept.issued = Some(wanted);
        kept.renew_at = Some(now + cluster::ca::SERVER_LIFETIME / 2);
        Ok(true)
    }

    fn issue(
        &self,
        ca: &Ca,
        names: &[String],
        now: SystemTime,
    ) -> Result<CertifiedKey, CertificateError> {
        write_if_changed(
            &self.settings.ca_crt(),
            ca.certificate_pem().as_bytes(),
            durable::PUBLIC,
        )?;
        let issued = ca
            .issue_server(names, now)
            .map_err(CertificateError::Issue)?;
        let certificate = CertificateDer::from(issued.certificate.der);
        let (crt, key) = (self.settings.server_crt(), self.settings.server_key());
        // The key first: a certificate without its key would be of no use at the next boot.
        let pem_key = pem::private_key(&issued.key_pkcs8);
        durable::replace(&key, pem_key.as_bytes(), durable::PRIVATE)
            .map_err(|source| file(&key, source))?;
        let pem_crt = pem::certificate(&certificate);
        durable::replace(&crt, pem_crt.as_bytes(), durable::PUBLIC)
            .map_err(|source| file(&crt, source))?;
        certified(vec![certificate], pkcs8(issued.key_pkcs8.to_vec()), &crt)
    }

    /// The certificate that is shown now, DER.
    #[cfg(test)]
    pub(super) fn leaf(&self) -> Vec<u8> {
        self.shown.0.load().cert[0].to_vec()
    }

    /// Refreshes until `stop`: when `states` brings another authority, when a name is added, and
    /// once a minute.
    pub async fn follow(
        self: Arc<Self>,
        mut states: watch::Receiver<Arc<State>>,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let state = states.borrow_and_update().clone();
            match self.refresh(&state, SystemTime::now()) {
                Ok(true) => tracing::info!("another HTTPS certificate is shown"),
                Ok(false) => {}
                // A new member is told the secrets a moment after it is let in.
                Err(CertificateError::Issue(CaError::Sealed(error))) => {
                    tracing::debug!(%error, "the HTTPS certificate waits for the cluster's secrets");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "the HTTPS certificate was not renewed, the old one stays"
                    );
                }
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = self.named.notified() => {}
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Whether `new` issues certificates with something else than `old`.
pub fn is_another_issuer(old: &State, new: &State) -> bool {
    old.https_ca() != new.https_ca() || old.data_key() != new.data_key()
}

impl Settings {
    /// Where the authority's certificate is exported for clients.
    fn ca_crt(&self) -> PathBuf {
        self.tls_dir.join("ca.crt")
    }

    fn server_crt(&self) -> PathBuf {
        self.tls_dir.join("server.crt")
    }

    fn server_key(&self) -> PathBuf {
        self.tls_dir.join("server.key")
    }
}

fn file(path: &Path, source: io::Error) -> CertificateError {
    CertificateError::File {
        path: path.to_owned(),
        source,
    }
}

fn content(path: &Path, reason: impl ToString) -> CertificateError {
    CertificateError::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| file(path, source))
}

fn read_pair(cert_path: &Path, key_path: &Path) -> Result<CertifiedKey, CertificateError> {
    let chain =
        pem::parse_certificates(&read(cert_path)?).map_err(|error| content(cert_path, error))?;
    // Operators bring PKCS #8, PKCS #1 and SEC 1.
    let key = PrivateKeyDer::from_pem_slice(&read(key_path)?)
        .map_err(|error| content(key_path, error))?;
    certified(chain, key, key_path)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    path: &Path,
) -> Result<CertifiedKey, CertificateError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| content(path, error))
}

fn pkcs8(der: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}

fn temporary(names: &[String]) -> Result<CertifiedKey, CertificateError> {
    let made = rcgen::generate_simple_self_signed(names).map_err(CertificateError::Temporary)?;
    let key = pkcs8(made.signing_key.serialize_der());
    certified(
        vec![made.cert.der().clone()],
        key,
        Path::new("the temporary certificate"),
    )
}

fn modified(files: &OperatorFiles) -> Result<(SystemTime, SystemTime), CertificateError> {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        metadata.map_err(|source| file(path, source))
    };
    Ok((of(&files.cert_path)?, of(&files.key_path)?))
}

fn export_operator_ca(files: &OperatorFiles, tls_dir: &Path) -> Result<(), CertificateError> {
    let Some(ca_path) = &files.ca_path else {
        return Ok(());
    };
    let pem = read(ca_path)?;
    pem::parse_certificates(&pem).map_err(|error| content(ca_path, error))?;
    write_if_changed(&tls_dir.join("ca.crt"), &pem, durable::PUBLIC)
}

fn write_if_changed(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertificateError> {
    if std::fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    durable::replace(path, bytes, mode).map_err(|source| file(path, source))
}
