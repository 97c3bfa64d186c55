//! HTTP/3 by quinn and h3, on both ends of a node: another QUIC than that of the programs in `peers.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes};
use http::{Request, Response, StatusCode};
use lab::address::{self, FAMILIES};
use lab::client::PATIENCE;
use lab::cluster::{Cluster, policy_allowing};
use lab::management;
use lab::netns::Netns;
use lab::server::pattern;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig, VarInt};
use rcgen::CertifiedKey;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 443;
const NAME: &str = "server.test";
const ALPN: &[u8] = b"h3";
/// How HTTP/3 says that all is well (RFC 9114, 8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// The header in which a server says who has asked.
const SEEN: &str = "seen";
/// What is carried each way.
const SIZE: usize = 4 << 20;

#[test]
#[ignore = "needs root; make test runs it"]
fn http_3_by_quinn_carries_files_where_the_policy_lets_it() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let client = trusting(&certified).unwrap();
    let sent = Bytes::from(pattern(4, SIZE));
    for family in FAMILIES {
        let allowed = address::allowed_server(family);
        let denied = address::denied_server(family);
        let internet = &cluster.topology.internet;
        let _servers = [allowed, denied].map(|at| Server::start(internet, at, &certified).unwrap());
        let api = cluster.api(1).unwrap();
        api.put_policy(&policy_for(allowed)).unwrap();
        let before = carried(&cluster);
        let ask = |cluster: &Cluster, server: IpAddr, limit: Duration| -> Result<Answer> {
            let netns = &cluster.topology.client;
            let local = SocketAddr::new(address::client(1, family), 0);
            let server = SocketAddr::new(server, PORT);
            let asking = || quic()?.block_on(post(local, server, limit, &client, &sent));
            netns.enter(asking)
        };

        let answer = ask(&cluster, allowed, SOON).unwrap();
        assert!(answer.body == sent, "{allowed}: differs");
        let node = address::outside(1, family).to_string();
        assert_eq!(answer.seen, node, "{allowed} sees the node");
        let after = carried(&cluster);
        for (way, before, after) in [
            ("out", before.outbound, after.outbound),
            ("in", before.inbound, after.inbound),
        ] {
            let bytes = after - before;
            assert!(bytes > SIZE as u64, "{allowed}: {bytes} bytes went {way}");
        }
        let flows = flows_to(&mut cluster, allowed);
        assert!(flows.iter().any(|flow| flow["nat_ip"] == node), "{flows:?}");

        let answer = ask(&cluster, denied, PATIENCE);
        let error = answer.map(|answer| answer.seen).unwrap_err();
        assert_eq!(error.to_string(), NO_CONNECTION, "{denied}: {error:#}");
        // It was the policy, not the server.
        cluster
            .api(1)
            .unwrap()
            .put_policy(&policy_for(denied))
            .unwrap();
        assert_eq!(ask(&cluster, denied, SOON).unwrap().seen, node);
    }
}

/// QUIC to one server, and nothing else.
fn policy_for(server: IpAddr) -> Value {
    let mut policy = policy_allowing(&[]);
    policy["source_groups"][0]["rules"] = json!([{
        "id": "quic",
        "action": "allow",
        "match": {"dst_ips": [server], "proto": "udp", "dst_ports": [PORT]},
    }]);
    policy
}

/// Bytes of UDP that the node has forwarded.
struct Carried {
    outbound: u64,
    inbound: u64,
}

fn carried(cluster: &Cluster) -> Carried {
    let page = management::metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
    Carried {
        outbound: management::sum(&page, r#"dp_bytes_total{direction="outbound",proto="udp""#),
        inbound: management::sum(&page, r#"dp_bytes_total{direction="inbound",proto="udp""#),
    }
}

/// The flows of the node to a server.
fn flows_to(cluster: &mut Cluster, server: IpAddr) -> Vec<Value> {
    let server = server.to_string();
    let words = ["flows", "list", "--to", &server, "--json"];
    let list = cluster.node(1).control(&words).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    list["flows"].as_array().unwrap().clone()
}

/// A runtime whose sockets are made in the namespace of the thread that drives it.
fn quic() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// What a server has answered.
struct Answer {
    body: Vec<u8>,
    seen: String,
}

const NO_CONNECTION: &str = "no connection";

/// Connects within `limit`, sends a file and reads the answer.
async fn post(
    local: SocketAddr,
    server: SocketAddr,
    limit: Duration,
    config: &ClientConfig,
    file: &Bytes,
) -> Result<Answer> {
    let endpoint = Endpoint::client(local)?;
    let connecting = endpoint.connect_with(config.clone(), server, NAME)?;
    let connection = timeout(limit, connecting).await.context(NO_CONNECTION)??;
    let carrier = h3_quinn::Connection::new(connection.clone());
    let (mut driver, mut requests) = h3::client::new(carrier).await?;
    let exchange = async {
        let request = Request::post(format!("https://{NAME}/")).body(())?;
        let (mut up, mut down) = requests.send_request(request).await?.split();
        let sending = async {
            up.send_data(file.clone()).await?;
            up.finish().await
        };
        let receiving = async {
            let response = down.recv_response().await?;
            let mut body = Vec::new();
            while let Some(piece) = down.recv_data().await? {
                body.put(piece);
            }
            Ok((response, body))
        };
        let ((), (response, body)) = tokio::try_join!(sending, receiving)?;
        ensure!(response.status() == StatusCode::OK, "{}", response.status());
        let seen = response.headers()[SEEN].to_str()?.to_owned();
        Ok(Answer { body, seen })
    };
    // The connection moves only while its driver is polled.
    let answer = tokio::select! {
        answer = exchange => answer?,
        ended = driver.wait_idle() => return Err(ended.into()),
    };
    connection.close(NO_ERROR, b"");
    endpoint.wait_idle().await;
    Ok(answer)
}

/// A client's settings that trust this certificate.
fn trusting(certified: &CertifiedKey<rcgen::KeyPair>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(
        tls,
    )?)))
}

/// A server that sends back what it is sent, until dropped.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(
        netns: &Netns,
        address: IpAddr,
        certified: &CertifiedKey<rcgen::KeyPair>,
    ) -> Result<Server> {
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        let (stop, mut stopped) = oneshot::channel();
        let (listens, listening) = oneshot::channel();
        let thread = netns.spawn("lab-http3", move || {
            let runtime = quic().unwrap();
            runtime.block_on(async {
                let endpoint = Endpoint::server(config, SocketAddr::new(address, PORT)).unwrap();
                let _ = listens.send(());
                loop {
                    tokio::select! {
                        Some(incoming) = endpoint.accept() => drop(tokio::spawn(serve(incoming))),
                        _ = &mut stopped => break,
                    }
                }
            });
        })?;
        let server = Server {
            stop: Some(stop),
            thread: Some(thread),
        };
        listening.blocking_recv().context("the server has ended")?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers the requests of one connection, one after the other.
async fn serve(incoming: Incoming) -> Result<()> {
    let connection: Connection = incoming.await?;
    let seen = connection.remote_address().ip().to_string();
    let mut requests = h3::server::Connection::new(h3_quinn::Connection::new(connection)).await?;
    while let Some(request) = requests.accept().await? {
        let (_, mut stream) = request.resolve_request().await?;
        let mut body = Vec::new();
        while let Some(piece) = stream.recv_data().await? {
            body.put(piece);
        }
        let head = Response::builder().header(SEEN, &seen).body(())?;
        stream.send_response(head).await?;
        stream.send_data(Bytes::from(body)).await?;
        stream.finish().await?;
    }
    Ok(())
}
