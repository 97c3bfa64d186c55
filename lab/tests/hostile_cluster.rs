//! Strangers, former friends and broken peers at the ports of a node: nobody gets in, nothing stops, memory stays bounded.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::address;
use lab::client::connect_from;
use lab::cluster::Cluster;
use lab::management::{Management, unverified_body};
use lab::node::Node;
use lab::server::pattern;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};
use serde_json::json;

const SHORT: Duration = Duration::from_secs(2);
/// Connections that a port is offered at once.
const FLOOD: usize = 1000;
/// What a node may need for it all, beyond what it needs anyway.
const GROWTH_MIB: u64 = 96;

const CLUSTER_ALPN: &[u8] = b"neuwerk/1";
const JOIN_ALPN: &[u8] = b"neuwerk-join/1";

#[test]
#[ignore = "needs root; make test runs it"]
fn a_thousand_connections_that_say_little_stop_nobody_else() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let mut cluster = ready(2);
    let before = resident_mib(&mut cluster);
    let operator = Arc::clone(&cluster.topology.operator);
    for target in ports() {
        // Half of them say nothing, half of them begin what the port expects and stop.
        let flood: Vec<TcpStream> = operator.enter(|| {
            (0..FLOOD)
                .filter_map(|number| {
                    let mut stream = connect_from(None, target, SHORT).ok()?;
                    if number % 2 == 0 {
                        let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
                    }
                    Some(stream)
                })
                .collect()
        });
        assert!(flood.len() > FLOOD / 2, "{target} took {}", flood.len());
        // Another client's write goes through the flooded node, and a member finds its way back to it.
        let api = elsewhere(&mut cluster);
        let begin = Instant::now();
        let name = format!("during-{}", target.port());
        let made = api.send_json("POST", ACCOUNTS, &json!({"name": name, "role": "readonly"}));
        assert_eq!(made.unwrap().status, 201, "{target}");
        assert!(begin.elapsed() < SHORT, "{target}: {:?}", begin.elapsed());
        cluster.node(2).terminate().unwrap();
        cluster.node(2).start().unwrap();
        cluster.wait_node_ready(2).unwrap();
        drop(flood);
    }
    cluster.node(1).ensure_running().unwrap();
    let after = resident_mib(&mut cluster);
    assert!(
        after < before + GROWTH_MIB,
        "{before} MiB, then {after} MiB"
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn only_a_members_own_certificate_opens_the_cluster_port() {
    let mut cluster = ready(2);
    // Somebody else's cluster, on the third machine.
    let other = "ab".repeat(32);
    let mut foreign = Node::prepare(&cluster.topology, 3, &[], &other).unwrap();
    foreign.start().unwrap();
    lab::wait::until_true("a foreign cluster", Duration::from_secs(30), || {
        let response = foreign.management()?.get("/ready/traffic")?;
        Ok(response.status == 200 && foreign.dir().join("cluster/tls/node.crt").exists())
    })
    .unwrap();

    let stats = cluster.api(1).unwrap().get_json("/api/v1/stats").unwrap();
    let word = |name: &str| stats["cluster"][name].as_str().unwrap().to_owned();
    let (node, lineage, id) = (word("node_id"), word("lineage"), word("cluster_id"));
    let right = format!("{node}.{lineage}.{id}.neuwerk");
    let own = cluster.node(2).dir().join("cluster/tls");
    let theirs = foreign.dir().join("cluster/tls");
    let netns = Arc::clone(cluster.topology.node(2));
    let knock = |tls: Option<&Path>, name: &str| {
        netns.enter(|| is_let_in(address::cluster(1), tls, name, CLUSTER_ALPN))
    };
    assert!(knock(Some(&own), &right), "a member is let in");
    assert!(!knock(Some(&theirs), &right), "another cluster's member");
    assert!(!knock(None, &right), "without a certificate");
    let elsewhere = format!("{node}.{lineage}.{}.neuwerk", "0".repeat(id.len()));
    assert!(
        !knock(Some(&own), &elsewhere),
        "dialled as another cluster's"
    );
    let earlier = format!("{node}.{}.{id}.neuwerk", "0".repeat(lineage.len()));
    assert!(!knock(Some(&own), &earlier), "dialled by an old lineage");

    // A certificate that names a member, made by nobody that the cluster knows.
    let forged = cluster.topology.operator.run().dir().join("forged");
    fs::create_dir_all(&forged).unwrap();
    let names = vec![format!("neuwerk://{id}/node/{node}")];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(forged.join("node.crt"), made.cert.pem()).unwrap();
    fs::write(forged.join("node.key"), made.signing_key.serialize_pem()).unwrap();
    assert!(!knock(Some(&forged), &right), "a forged certificate");

    // Its certificate is as valid as before.
    let removed = cluster.node_id(1, 2).unwrap();
    let remove = [
        "cluster",
        "members",
        "remove",
        &removed,
        "--confirm",
        "neuwerk",
    ];
    cluster.node(1).control(&remove).unwrap();
    lab::wait::until_true("a refusal", Duration::from_secs(10), || {
        Ok(!knock(Some(&own), &right))
    })
    .unwrap();
    cluster.node(1).ensure_running().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn plaintext_and_broken_frames_on_the_cluster_ports_change_nothing() {
    let mut cluster = ready(2);
    let before = resident_mib(&mut cluster);
    let operator = Arc::clone(&cluster.topology.operator);
    for target in [address::cluster(1), address::join(1), address::https(1)] {
        for request in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        ] {
            let answer = operator.enter(|| {
                let mut stream = connect_from(None, target, SHORT).unwrap();
                stream.write_all(request).unwrap();
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                answer
            });
            let is_tls_alert = answer.first().is_none_or(|byte| *byte == 0x15);
            assert!(is_tls_alert, "{target} answered {answer:?}");
        }
    }

    // A member whose software is broken, after a handshake that is in order.
    let stats = cluster.api(1).unwrap().get_json("/api/v1/stats").unwrap();
    let word = |name: &str| stats["cluster"][name].as_str().unwrap();
    let name = format!(
        "{}.{}.{}.neuwerk",
        word("node_id"),
        word("lineage"),
        word("cluster_id")
    );
    let own = cluster.node(2).dir().join("cluster/tls");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let open_stream = b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\x83\x86\x84\x41\x00";
    let oversized = b"\xff\xff\xff\x00\x00\x00\x00\x00\x01";
    // A gRPC message that claims four gigabytes.
    let claim = b"\x00\x00\x05\x00\x00\x00\x00\x00\x01\x00\xff\xff\xff\xff";
    let broken: [Vec<u8>; 5] = [
        pattern(1, 100_000),
        [&preface[..], oversized].concat(),
        [&preface[..], open_stream, oversized].concat(),
        [&preface[..], open_stream, claim].concat(),
        [&preface[..], &pattern(2, 50_000)].concat(),
    ];
    for bytes in &broken {
        let netns = Arc::clone(cluster.topology.node(2));
        netns.enter(|| {
            let mut stream = open(address::cluster(1), Some(&own), &name, CLUSTER_ALPN).unwrap();
            let _ = stream.write_all(bytes);
            let _ = stream.flush();
            let mut answer = [0; 1024];
            while matches!(stream.read(&mut answer), Ok(1..)) {}
        });
    }

    // A joiner that claims more than there is, less than there is, or nothing that can be read.
    let joins: [Vec<u8>; 5] = [
        b"\xff\xff\xff\xff".to_vec(),
        [&b"\x00\x00\x40\x01"[..], &pattern(3, 20_000)].concat(),
        b"\x00\x00\x10\x00truncated".to_vec(),
        [&b"\x00\x00\x03\xe8"[..], &pattern(4, 1000)].concat(),
        pattern(5, 100_000),
    ];
    for bytes in &joins {
        operator.enter(|| {
            let Ok(mut stream) = open(address::join(1), None, "join.neuwerk", JOIN_ALPN) else {
                return; // Its patience with this source has an end.
            };
            let _ = stream.write_all(bytes);
            let _ = stream.flush();
            let mut answer = [0; 1024];
            while matches!(stream.read(&mut answer), Ok(1..)) {}
        });
    }

    let made = cluster.api(2).unwrap().send_json(
        "POST",
        ACCOUNTS,
        &json!({"name": "afterwards", "role": "readonly"}),
    );
    assert_eq!(made.unwrap().status, 201);
    for node in 1..=2 {
        cluster.wait_node_ready(node).unwrap();
    }
    let after = resident_mib(&mut cluster);
    assert!(
        after < before + GROWTH_MIB,
        "{before} MiB, then {after} MiB"
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn whoever_relays_a_join_lets_nobody_in() {
    let mut cluster = ready(1);
    let (between, joiner) = (2, 3);
    let netns = Arc::clone(cluster.topology.node(between));
    let operator = Arc::clone(&cluster.topology.operator);
    let through = address::join(between).to_string();
    cluster.node(joiner).set_join(&[through]).unwrap();
    let (stop, relayed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (attempts, ready) = thread::scope(|scope| {
        scope.spawn(|| netns.enter(|| relay_joins(address::join(between), &stop, &relayed)));
        let attempts = cluster.node(joiner).start().and_then(|()| {
            lab::wait::until_true("relayed attempts", Duration::from_secs(30), || {
                Ok(relayed.load(Ordering::Relaxed) >= 2)
            })
        });
        let ready = unverified_body(&operator, address::https(joiner), "/ready");
        stop.store(true, Ordering::Relaxed);
        (attempts, ready)
    });
    attempts.unwrap();
    let ready = ready.unwrap();
    assert!(ready.contains("stands between"), "{ready}");
    let api = cluster.api(1).unwrap();
    let members = api.get_json("/api/v1/cluster/members").unwrap();
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1));

    // The way itself was not the reason.
    cluster.node(joiner).terminate().unwrap();
    let straight = address::join(1).to_string();
    cluster.node(joiner).set_join(&[straight]).unwrap();
    cluster.node(joiner).start().unwrap();
    cluster.wait_node_ready(joiner).unwrap();
}

/// Passes on what joiners say at `listen` to node 1, and its answers, over a TLS connection to either. Counts the joiners
/// that were passed the cluster's proof.
fn relay_joins(listen: SocketAddr, stop: &AtomicBool, relayed: &AtomicUsize) {
    let made = rcgen::generate_simple_self_signed(vec!["join.neuwerk".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind(listen).unwrap();
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let passed = pass_on(stream, Arc::clone(&config));
                relayed.fetch_add(usize::from(passed.is_ok()), Ordering::Relaxed);
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn pass_on(stream: TcpStream, config: Arc<ServerConfig>) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SHORT))?;
    let mut joiner = StreamOwned::new(ServerConnection::new(config)?, stream);
    let mut cluster = open(address::join(1), None, "join.neuwerk", JOIN_ALPN)?;
    let mut bytes = [0; 16 * 1024];
    let mut turn = || -> anyhow::Result<()> {
        let said = joiner.read(&mut bytes)?;
        ensure!(said > 0, "the joiner has nothing more to say");
        cluster.write_all(&bytes[..said])?;
        cluster.flush()?;
        let said = cluster.read(&mut bytes)?;
        ensure!(said > 0, "the cluster has nothing more to say");
        joiner.write_all(&bytes[..said])?;
        Ok(joiner.flush()?)
    };
    turn()?;
    while turn().is_ok() {}
    Ok(())
}

/// After a recovery the certificates of the old lineage are as valid as before, and belong to nobody.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_certificate_of_an_old_lineage_opens_nothing() {
    let mut cluster = ready(2);
    let name = |cluster: &mut Cluster| {
        let stats = cluster.api(1).unwrap().get_json("/api/v1/stats").unwrap();
        let word = |name: &str| stats["cluster"][name].as_str().unwrap().to_owned();
        format!(
            "{}.{}.{}.neuwerk",
            word("node_id"),
            word("lineage"),
            word("cluster_id")
        )
    };
    let old = cluster.node(2).dir().join("cluster/tls");
    let netns = Arc::clone(cluster.topology.node(2));
    let knock =
        |name: &str| netns.enter(|| is_let_in(address::cluster(1), Some(&old), name, CLUSTER_ALPN));
    let before = name(&mut cluster);
    assert!(knock(&before), "a member is let in");

    cluster.node(2).kill().unwrap();
    let here = cluster.topology.operator.run().dir().join("operator");
    fs::create_dir_all(&here).unwrap();
    for step in lab::runbook::steps("The quorum is lost for good").unwrap() {
        step.run(&mut cluster, 1, &here, &[("NAME", "neuwerk")])
            .unwrap();
    }
    cluster.wait_node_ready(1).unwrap();
    let after = name(&mut cluster);
    assert_ne!(after, before);
    assert!(!knock(&after), "as a member of the new lineage");
    assert!(!knock(&before), "as a member of the old one");
    cluster.node(1).ensure_running().unwrap();
}

const ACCOUNTS: &str = "/api/v1/service-accounts";

/// The first nodes of three, running and ready.
fn ready(nodes: u8) -> Cluster {
    let mut cluster = Cluster::lay_out(3).unwrap();
    for number in 1..=nodes {
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    cluster
}

/// All ports of node 1.
fn ports() -> [SocketAddr; 4] {
    [
        address::https(1),
        address::metrics(1),
        address::cluster(1),
        address::join(1),
    ]
}

/// A client of node 1's API on another machine than the one that misbehaves.
fn elsewhere(cluster: &mut Cluster) -> Management {
    cluster.api(1).unwrap();
    let token = cluster.token().unwrap().to_owned();
    let ca = cluster.node(1).ca_path();
    let machine = cluster.topology.node(3);
    Management::new(machine, address::https(1), &ca)
        .unwrap()
        .with_token(&token)
}

fn resident_mib(cluster: &mut Cluster) -> u64 {
    let pid = cluster.node(1).process_id().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// Whether the listener speaks first after the handshake, as HTTP/2 does with those whom it has let in.
fn is_let_in(target: SocketAddr, tls: Option<&Path>, name: &str, alpn: &[u8]) -> bool {
    let Ok(mut stream) = open(target, tls, name, alpn) else {
        return false;
    };
    let mut first = [0; 9];
    stream.read_exact(&mut first).is_ok()
}

/// A TLS connection that shows what `tls` holds and accepts whatever it is shown.
fn open(
    target: SocketAddr,
    tls: Option<&Path>,
    name: &str,
    alpn: &[u8],
) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match tls {
        Some(dir) => builder.with_client_auth_cert(
            CertificateDer::pem_file_iter(dir.join("node.crt"))?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(dir.join("node.key"))?,
        )?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(name.to_owned())?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = connect_from(None, target, SHORT)?;
    connection.complete_io(&mut stream)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Believes everybody: it is the listener that is tested.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
