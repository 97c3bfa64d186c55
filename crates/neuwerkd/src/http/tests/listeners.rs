//! Sockets: TLS, the control socket, metrics, drains, and what strangers send.

use std::net::SocketAddr;
use std::path::PathBuf;

use api::{Client, Endpoint};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::certificate::{Certificates, Settings as CertificateSettings};
use crate::http::listen::{self, Limits};

/// A node's listeners on loopback.
struct Listening {
    cluster: Cluster,
    address: SocketAddr,
    ca_pem: Vec<u8>,
    drain: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Listening {
    async fn with(limits: Limits) -> Self {
        let cluster = Cluster::one().await;
        let dir = tempfile::tempdir().unwrap();
        let settings = CertificateSettings {
            tls_dir: dir.path().to_owned(),
            operator: None,
        };
        let certificates = Certificates::load(settings, vec!["127.0.0.1".into()]).unwrap();
        certificates
            .refresh(&cluster.node(0).state(), SystemTime::now())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = CancellationToken::new();
        let router = cluster.app(0).router();
        let config = certificates.server_config();
        let served = tokio::spawn(listen::serve_tls(
            listener,
            config,
            router,
            limits,
            drain.clone(),
        ));
        Self {
            cluster,
            address,
            ca_pem: std::fs::read(dir.path().join("ca.crt")).unwrap(),
            drain,
            served,
            _dir: dir,
        }
    }

    fn client(&self, token: Option<&str>) -> Client {
        let endpoint = Endpoint::Https {
            base: format!("https://{}", self.address),
            ca_pem: self.ca_pem.clone(),
        };
        Client::new(endpoint, token).unwrap()
    }

    async fn tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        use rustls_pki_types::pem::PemObject as _;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls_pki_types::CertificateDer::from_pem_slice(&self.ca_pem).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = rustls_pki_types::ServerName::from(self.address.ip());
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

/// Everything until the other side closes; a reset counts as closing.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    read.expect("the other side never closed").ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typed_client_over_tls() {
    let listening = Listening::with(Limits::default()).await;
    let admin = listening.cluster.token(&["admin"]);
    let client = listening.client(Some(&admin));
    assert_eq!(client.health().await.unwrap().status, "ok");
    assert_eq!(client.whoami().await.unwrap().sub, "tester");
    let put = api::client::PutPolicy {
        body: POLICY.into(),
        timeout: Some(PATIENCE),
        ..Default::default()
    };
    let outcome = client.policy_put(put.clone()).await.unwrap();
    let api::client::PutOutcome::Enforced { document, .. } = outcome else {
        panic!("{outcome:?}")
    };
    let read = client.policy_get(api::policy::Format::Json).await.unwrap();
    assert_eq!(read, document);
    let same = client
        .policy_get_unless(api::policy::Format::Json, read.etag.as_deref())
        .await
        .unwrap();
    assert_eq!(same, None);
    let stale = api::client::PutPolicy {
        if_match: Some("\"0000000000000009-99\"".into()),
        ..put
    };
    let refused = client.policy_put(stale).await.unwrap_err();
    let api::client::Error::Refused(refused) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(refused.etag, read.etag);
    assert!(
        client
            .policy_check(OTHER_POLICY.into(), api::policy::Format::Json)
            .await
            .unwrap()
            .changed
    );
    assert_eq!(client.members().await.unwrap().members.len(), 1);
    assert_eq!(client.stats().await.unwrap().cluster.node_count, 1);
    assert!(client.ready().await.unwrap().ready);

    let anonymous = listening.client(None).whoami().await.unwrap_err();
    let api::client::Error::Refused(refused) = anonymous else {
        panic!("{anonymous:?}")
    };
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trusts_another_authority_says_nothing() {
    let listening = Listening::with(Limits::default()).await;
    let other = Ca::create(Purpose::Https, ClusterId([8; 16]), SystemTime::now()).unwrap();
    let endpoint = Endpoint::Https {
        base: format!("https://{}", listening.address),
        ca_pem: other.certificate_pem().into_bytes(),
    };
    let client = Client::new(endpoint, Some("secret")).unwrap();
    let error = client.health().await.unwrap_err();
    assert!(
        matches!(error, api::client::Error::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_closed_and_the_listener_goes_on() {
    let limits = Limits {
        handshake: Duration::from_millis(100),
        headers: Duration::from_millis(100),
        ..Limits::default()
    };
    let listening = Listening::with(limits).await;
    // Silence, and garbage, instead of a handshake.
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096]] {
        let mut stream = TcpStream::connect(listening.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        until_closed(&mut stream).await;
    }
    // Headers that never end, and a connection that asks nothing.
    for bytes in [&b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: "[..], b""] {
        let mut stream = listening.tls().await;
        stream.write_all(bytes).await.unwrap();
        let answer = until_closed(&mut stream).await;
        assert!(!answer.contains("200"), "{answer}");
    }
    // Garbage instead of HTTP.
    let mut stream = listening.tls().await;
    stream.write_all(b"\0\0\0\0\r\n\r\n").await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(listening.client(None).health().await.unwrap().status, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_headers_and_truncated_bodies() {
    let listening = Listening::with(Limits::default()).await;
    let mut stream = listening.tls().await;
    let head = format!(
        "GET /health HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    // The server may answer and close before all of it is taken.
    let _ = stream.write_all(head.as_bytes()).await;
    let answer = until_closed(&mut stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );

    let mut stream = listening.tls().await;
    let token = listening.cluster.token(&["admin"]);
    let head = format!(
        "PUT /api/v1/policy HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert!(listening.cluster.node(0).state().policy().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_cannot_take_every_connection() {
    let limits = Limits {
        connections_per_peer: 2,
        ..Limits::default()
    };
    let listening = Listening::with(limits).await;
    let first = listening.tls().await;
    let second = listening.tls().await;
    let mut third = TcpStream::connect(listening.address).await.unwrap();
    until_closed(&mut third).await;
    drop(first);
    // The seat comes back with the connection's end, at some moment after.
    let patience = tokio::time::timeout(PATIENCE, async {
        while listening.client(None).health().await.is_err() {}
    });
    patience.await.unwrap();
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_closes_idle_connections_and_the_listener() {
    let listening = Listening::with(Limits::default()).await;
    let mut idle = listening.tls().await;
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    listening.drain.cancel();
    until_closed(&mut idle).await;
    tokio::time::timeout(PATIENCE, listening.served)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(listening.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn root_mints_and_reads_over_the_control_socket() {
    use std::os::unix::fs::PermissionsExt as _;

    let cluster = Cluster::one().await;
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("run/admin.sock");
    let drain = CancellationToken::new();
    let app = Arc::clone(cluster.app(0));
    let served = tokio::spawn(crate::http::control::serve(
        path.clone(),
        app,
        drain.clone(),
    ));
    cluster.wait("the socket is there", |_| path.exists()).await;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let client = Client::new(Endpoint::Unix(path.clone()), None).unwrap();
    assert_eq!(client.whoami().await.unwrap().sub, "root");
    let request = api::auth::MintRequest {
        sub: "ops".into(),
        roles: vec!["readonly".into()],
        ttl: Some("1h".into()),
        kid: None,
    };
    let minted = client.mint_token(&request).await.unwrap();
    let whoami = cluster
        .ask(0, Method::GET, api::paths::WHOAMI)
        .token(&minted.token);
    assert_eq!(
        whoami.expect(StatusCode::OK).await.json()["roles"][0],
        "readonly"
    );
    let recorded = |cluster: &Cluster| {
        let state = cluster.node(0).state();
        state
            .changes()
            .any(|change| change.detail.contains(&minted.jti))
    };
    cluster.wait("the change log names it", recorded).await;
    for bad in [
        api::auth::MintRequest {
            sub: " ".into(),
            ..request.clone()
        },
        api::auth::MintRequest {
            roles: vec![],
            ..request.clone()
        },
        api::auth::MintRequest {
            roles: vec!["owner".into()],
            ..request.clone()
        },
        api::auth::MintRequest {
            ttl: Some("4000d".into()),
            ..request.clone()
        },
        api::auth::MintRequest {
            kid: Some("k9".into()),
            ..request.clone()
        },
    ] {
        let refused = client.mint_token(&bad).await.unwrap_err();
        assert!(
            matches!(refused, api::client::Error::Refused(_)),
            "{refused:?}"
        );
    }
    drain.cancel();
    tokio::time::timeout(PATIENCE, served)
        .await
        .unwrap()
        .unwrap();
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_mint_for_one_another() {
    use cluster::transport::{Kind, Peer};

    let cluster = Cluster::three().await;
    crate::auth::answer_mint(cluster.node(1), Arc::clone(cluster.app(1).minted()));
    let transport = cluster.board.transport(cluster.node(2).node_id());
    let peer = Peer {
        node_id: cluster.node(1).node_id(),
        address: String::new(),
    };
    let ask = |body: &'static [u8]| transport.call(&peer, Kind::Mint, body.into(), PATIENCE);
    let minted = ask(br#"{"sub":"ops","roles":["admin"]}"#).await.unwrap();
    let minted: api::auth::Minted = serde_json::from_slice(&minted).unwrap();
    let whoami = cluster
        .ask(0, Method::GET, api::paths::WHOAMI)
        .token(&minted.token);
    assert_eq!(whoami.expect(StatusCode::OK).await.json()["sub"], "ops");
    assert!(ask(b"nonsense").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_read_without_tls_and_login() {
    let cluster = Cluster::one().await;
    cluster.app(0).set_counters(vec![Arc::default()]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = CancellationToken::new();
    let app = Arc::clone(cluster.app(0));
    tokio::spawn(crate::metrics::serve(
        listener,
        Metrics::default(),
        app,
        drain.clone(),
    ));
    for (path, status) in [
        ("/metrics", "200"),
        ("/health", "404"),
        ("/api/v1/stats", "404"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = until_closed(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        if path == "/metrics" {
            for line in [
                "raft_is_leader 1",
                "dp_active_flows 0",
                "neuwerk_ready 1",
                "# EOF",
            ] {
                assert!(answer.contains(line), "{line}\n{answer}");
            }
        }
    }
    drain.cancel();
}
