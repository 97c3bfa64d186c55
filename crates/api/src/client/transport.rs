//! How bytes get to a node: TLS with its CA, or its control socket.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::UnixStream;

use super::{Endpoint, Error};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One of the two ways.
#[derive(Clone, Debug)]
pub(super) enum Transport {
    Https {
        client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
        authority: Authority,
    },
    Unix {
        client: Client<UnixConnector, Full<Bytes>>,
    },
}

impl Transport {
    /// The transport, and the endpoint's name for messages.
    pub(super) fn new(endpoint: Endpoint) -> Result<(Self, String), Error> {
        match endpoint {
            Endpoint::Https { base, ca_pem } => {
                let authority = authority(&base)?;
                let client = Client::builder(TokioExecutor::new()).build(connector(&ca_pem)?);
                Ok((Self::Https { client, authority }, base))
            }
            Endpoint::Unix(path) => {
                let name = path.display().to_string();
                let client = Client::builder(TokioExecutor::new()).build(UnixConnector(path));
                Ok((Self::Unix { client }, name))
            }
        }
    }

    /// The full address of a path with its query.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, Error> {
        let path: PathAndQuery = path
            .parse()
            .map_err(|_| Error::Endpoint(format!("{path:?} is not a path")))?;
        let mut parts = http::uri::Parts::default();
        match self {
            Transport::Https { authority, .. } => {
                parts.scheme = Some(Scheme::HTTPS);
                parts.authority = Some(authority.clone());
            }
            Transport::Unix { .. } => {
                parts.scheme = Some(Scheme::HTTP);
                parts.authority = Some(Authority::from_static("localhost"));
            }
        }
        parts.path_and_query = Some(path);
        Ok(Uri::from_parts(parts).expect("scheme, authority and path are all there"))
    }

    pub(super) async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        max_bytes: usize,
    ) -> Result<(response::Parts, Bytes), Failure> {
        let (parts, body) = self.open(request).await?.into_parts();
        let body = Limited::new(body, max_bytes).collect().await?.to_bytes();
        Ok((parts, body))
    }

    /// The answer's head; its body is still to come.
    pub(super) async fn open(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        Ok(match self {
            Transport::Https { client, .. } => client.request(request).await?,
            Transport::Unix { client } => client.request(request).await?,
        })
    }
}

fn authority(base: &str) -> Result<Authority, Error> {
    let wrong = || {
        Error::Endpoint(format!(
            "{base:?} is not an address such as https://node:8443"
        ))
    };
    let uri: Uri = base.trim_end_matches('/').parse().map_err(|_| wrong())?;
    if uri.scheme() != Some(&Scheme::HTTPS)
        || uri.query().is_some()
        || !matches!(uri.path(), "" | "/")
    {
        return Err(wrong());
    }
    uri.authority().cloned().ok_or_else(wrong)
}

fn connector(ca_pem: &[u8]) -> Result<HttpsConnector<HttpConnector>, Error> {
    let wrong =
        |reason: String| Error::Endpoint(format!("the CA certificate is not usable: {reason}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate in PEM form".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_all_versions()
        .wrap_connector(http))
}

/// Connects to one socket, whatever the address says.
#[derive(Clone, Debug)]
pub(super) struct UnixConnector(PathBuf);

impl tower::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}
