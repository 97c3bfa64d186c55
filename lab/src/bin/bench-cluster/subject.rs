//! The two that are compared, as one client program sees them: a small write to Neuwerk over HTTPS, or a put to etcd over
//! gRPC, both through the same TLS connector, on the same async runtime.
//!
//! etcd's few messages are written down here by hand, from its published `rpc.proto` and `kv.proto`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lab::address;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A connection that does not come about within this time is tried again.
const CONNECT: Duration = Duration::from_millis(300);

/// One of the two.
#[derive(Clone)]
pub(crate) enum Subject {
    Neuwerk(Arc<Neuwerk>),
    Etcd(Arc<EtcdSide>),
}

pub(crate) struct Neuwerk {
    tls: ClientConfig,
    bearer: HeaderValue,
    /// The records that clients write, by client.
    pub(crate) accounts: Vec<String>,
}

pub(crate) struct EtcdSide {
    tls: ClientConfig,
}

/// A client's connection to one node, made when first used and again when it is lost.
#[derive(Clone)]
pub(crate) enum Connection {
    Neuwerk {
        side: Arc<Neuwerk>,
        client: Box<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
        address: SocketAddr,
    },
    Etcd(Grpc<Channel>),
}

impl Subject {
    pub(crate) fn neuwerk(ca_pem: &[u8], token: &str, accounts: Vec<String>) -> Result<Self> {
        Ok(Self::Neuwerk(Arc::new(Neuwerk {
            tls: trusting(ca_pem)?,
            bearer: HeaderValue::try_from(format!("Bearer {token}"))?,
            accounts,
        })))
    }

    pub(crate) fn etcd(ca_pem: &[u8]) -> Result<Self> {
        let tls = trusting(ca_pem)?;
        Ok(Self::Etcd(Arc::new(EtcdSide { tls })))
    }

    /// A connection of its own to node `number`; with `multiplexed`, requests do not wait for one another.
    pub(crate) fn connect(&self, number: u8, multiplexed: bool) -> Result<Connection> {
        match self {
            Self::Neuwerk(side) => {
                let mut builder = Client::builder(TokioExecutor::new());
                builder.http2_only(multiplexed);
                Ok(Connection::Neuwerk {
                    client: Box::new(builder.build(connector(&side.tls, multiplexed))),
                    side: Arc::clone(side),
                    address: address::https(number),
                })
            }
            Self::Etcd(side) => {
                let address = address::management(number);
                let endpoint = Endpoint::try_from(format!("https://{address}:2379"))?;
                let channel = endpoint.connect_with_connector_lazy(connector(&side.tls, true));
                Ok(Connection::Etcd(Grpc::new(channel)))
            }
        }
    }
}

impl Connection {
    /// Writes `value` to the record of `client`; ends once it is acknowledged.
    pub(crate) async fn write(
        &mut self,
        client: usize,
        value: u64,
        key: Option<&str>,
    ) -> Result<()> {
        match self {
            Self::Neuwerk { side, .. } => {
                let account = &side.accounts[client];
                let body = record(client, value).to_string();
                let path = format!("/api/v1/service-accounts/{account}");
                let (status, answer) = self.exchange(Method::PUT, &path, body, key).await?;
                ensure!(status == 200, "{status} {answer}");
                Ok(())
            }
            Self::Etcd(grpc) => {
                let put = PutRequest {
                    key: record_key(client),
                    value: record(client, value).to_string().into_bytes(),
                };
                let _: PutResponse = call(grpc, "/etcdserverpb.KV/Put", put).await?;
                Ok(())
            }
        }
    }

    /// What the record of `client` holds, and how often it was written.
    pub(crate) async fn read(&mut self, client: usize) -> Result<(Value, u64)> {
        match self {
            Self::Neuwerk { side, .. } => {
                let id = side.accounts[client].clone();
                let path = "/api/v1/service-accounts?consistency=linearizable";
                let (status, answer) = self
                    .exchange(Method::GET, path, String::new(), None)
                    .await?;
                ensure!(status == 200, "{status} {answer}");
                let accounts: Vec<Value> = serde_json::from_str(&answer)?;
                let account = accounts.into_iter().find(|account| account["id"] == id);
                let account = account.context("the account is there")?;
                let revision = account["revision"].as_u64().context("it has a revision")?;
                let fields = ["name", "role", "description"].map(|name| (name, &account[name]));
                Ok((
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value.clone()))
                        .collect(),
                    revision,
                ))
            }
            Self::Etcd(grpc) => {
                let range = RangeRequest {
                    key: record_key(client),
                };
                let found: RangeResponse = call(grpc, "/etcdserverpb.KV/Range", range).await?;
                let Some(kv) = found.kvs.first() else {
                    return Ok((Value::Null, 0));
                };
                Ok((
                    serde_json::from_slice(&kv.value)?,
                    u64::try_from(kv.version)?,
                ))
            }
        }
    }

    /// Whether this etcd member leads.
    pub(crate) async fn leads(&mut self) -> Result<bool> {
        let Self::Etcd(grpc) = self else {
            bail!("only etcd is asked this way")
        };
        let status: StatusResponse =
            call(grpc, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        let own = status.header.context("a header")?.member_id;
        Ok(status.leader == own && own != 0)
    }

    /// One request to Neuwerk, to the end of its answer.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
        key: Option<&str>,
    ) -> Result<(u16, String)> {
        let Self::Neuwerk {
            side,
            client,
            address,
        } = self
        else {
            bail!("etcd speaks gRPC")
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{address}{path}"))
            .header(AUTHORIZATION, &side.bearer);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let response = client.request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// The small record that both are given, about 80 bytes.
pub(crate) fn record(client: usize, value: u64) -> Value {
    json!({"name": name(client), "role": "readonly", "description": format!("written {value:020}")})
}

/// The name of a client's account.
pub(crate) fn name(client: usize) -> String {
    format!("bench-{client:02}")
}

fn record_key(client: usize) -> Vec<u8> {
    format!("/bench/{}", name(client)).into_bytes()
}

fn trusting(ca_pem: &[u8]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn connector(tls: &ClientConfig, multiplexed: bool) -> HttpsConnector<HttpConnector> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_only();
    if multiplexed {
        builder.enable_http2().wrap_connector(tcp)
    } else {
        builder.enable_http1().wrap_connector(tcp)
    }
}

async fn call<Q, A>(grpc: &mut Grpc<Channel>, path: &'static str, request: Q) -> Result<A>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    grpc.ready().await.map_err(|error| anyhow!("{error}"))?;
    let path = PathAndQuery::from_static(path);
    let answer = grpc
        .unary(tonic::Request::new(request), path, ProstCodec::default())
        .await?;
    Ok(answer.into_inner())
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}
