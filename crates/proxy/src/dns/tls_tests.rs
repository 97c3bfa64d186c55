//! Upstreams over TLS: a real server on the loopback interface.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::tests::{Scene, Server, answer, answers, query, rcode};
use super::*;

const NAME: &str = "dns.example.net";

/// Signs for servers.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// For a server with this name or address, whose certificate ends in this year.
    fn server(&self, name: &str, until: i32) -> ServerConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap()
    }

    /// Who trusts this authority alone, and wants a certificate for this name.
    fn trusted_for(&self, name: &'static str) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Tls {
            config: Arc::new(config),
            name: name.try_into().unwrap(),
        }
    }
}

/// What a server does with the so manieth query of a connection.
type Does = fn(usize) -> Deed;

enum Deed {
    Answer,
    /// Answers this one and the next two, the last one first.
    LastFirst,
    CloseInMidAnswer,
}

struct Resolver {
    upstream: Upstream,
    connections: Arc<AtomicUsize>,
}

impl Resolver {
    async fn start(config: ServerConfig, tls: Tls, does: Does) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut came = 0;
                    while let Ok(query) = pool::read(&mut stream, 65_535).await {
                        let mut queries = vec![query];
                        match does(came) {
                            Deed::Answer => {}
                            Deed::LastFirst => {
                                for _ in 0..2 {
                                    queries.push(pool::read(&mut stream, 65_535).await.unwrap());
                                }
                                queries.reverse();
                            }
                            Deed::CloseInMidAnswer => {
                                stream.write_all(&[0, 60, 1, 2, 3]).await.unwrap();
                                stream.shutdown().await.unwrap();
                                return;
                            }
                        }
                        for query in queries {
                            came += 1;
                            let answer = answer(&query, [192, 0, 2, 1], 1);
                            pool::write(&mut stream, &answer).await.unwrap();
                        }
                    }
                });
            }
        });
        Self {
            upstream: Upstream {
                address,
                tls: Some(tls),
            },
            connections,
        }
    }

    fn scene(&self) -> Scene {
        let upstreams = vec![self.upstream.clone()];
        Scene::start(&[], |settings| {
            settings.upstreams = upstreams;
            settings.upstream_timeout = Duration::from_secs(20);
        })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn ask(scene: &Scene, name: &str) -> (u8, u8) {
    let got = scene.udp(&query(name, 1)).await.unwrap();
    (rcode(&got), answers(&got))
}

#[tokio::test]
async fn many_questions_share_a_connection() {
    let authority = Authority::new();
    let config = authority.server(NAME, 2100);
    let upstream = Resolver::start(config, authority.trusted_for(NAME), |_| Deed::Answer).await;
    let scene = upstream.scene();
    for i in 0..5 {
        assert_eq!(ask(&scene, &format!("a{i}.example.com")).await, (0, 1));
    }
    let names: Vec<String> = (0..100).map(|i| format!("b{i}.example.com")).collect();
    let all = names.iter().map(|name| ask(&scene, name));
    for got in futures::future::join_all(all).await {
        assert_eq!(got, (0, 1));
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn answers_come_in_any_order() {
    let authority = Authority::new();
    let config = authority.server(NAME, 2100);
    let does: Does = |came| match came {
        0 => Deed::Answer,
        _ => Deed::LastFirst,
    };
    let upstream = Resolver::start(config, authority.trusted_for(NAME), does).await;
    let scene = upstream.scene();
    assert_eq!(ask(&scene, "a.example.com").await, (0, 1));
    let (b, c, d) = tokio::join!(
        ask(&scene, "b.example.com"),
        ask(&scene, "c.example.com"),
        ask(&scene, "d.example.com")
    );
    assert_eq!([b, c, d], [(0, 1); 3]);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_certificate_may_be_for_the_address() {
    let authority = Authority::new();
    let config = authority.server("127.0.0.1", 2100);
    let tls = authority.trusted_for("127.0.0.1");
    let upstream = Resolver::start(config, tls, |_| Deed::Answer).await;
    assert_eq!(ask(&upstream.scene(), "a.example.com").await, (0, 1));
}

#[tokio::test]
async fn who_cannot_prove_itself_is_not_asked() {
    let (authority, other) = (Authority::new(), Authority::new());
    let right = authority.trusted_for(NAME);
    for (what, config) in [
        ("wrong name", authority.server("dns.example.org", 2100)),
        ("expired", authority.server(NAME, 2020)),
        ("wrong authority", other.server(NAME, 2100)),
    ] {
        let upstream = Resolver::start(config, right.clone(), |_| Deed::Answer).await;
        let scene = upstream.scene();
        assert_eq!(ask(&scene, "a.example.com").await, (2, 0), "{what}");
        assert_eq!(upstream.connections(), 0, "{what}");
        scene.counted(r#"dns_upstream_mismatch_total{reason="unreachable",source_group="web"} 1"#);
        // The next one is asked in its place.
        let sound = Server::sound(Duration::ZERO).await;
        let mut upstreams = vec![upstream.upstream.clone()];
        let scene = Scene::start(&[&sound], |settings| {
            upstreams.append(&mut settings.upstreams);
            settings.upstreams = upstreams;
        });
        assert_eq!(ask(&scene, "a.example.com").await, (0, 1), "{what}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_in_mid_answer_is_replaced() {
    let authority = Authority::new();
    let config = authority.server(NAME, 2100);
    let does: Does = |came| match came {
        0 | 1 => Deed::Answer,
        _ => Deed::CloseInMidAnswer,
    };
    let upstream = Resolver::start(config, authority.trusted_for(NAME), does).await;
    let scene = upstream.scene();
    for i in 0..7 {
        assert_eq!(ask(&scene, &format!("a{i}.example.com")).await, (0, 1));
    }
    assert_eq!(upstream.connections(), 4);
    // One that answers nothing whole is given up.
    let config = authority.server(NAME, 2100);
    let tls = authority.trusted_for(NAME);
    let broken = Resolver::start(config, tls, |_| Deed::CloseInMidAnswer).await;
    assert_eq!(ask(&broken.scene(), "a.example.com").await, (2, 0));
}
