//! Handshakes over an in-memory pipe: who is let in, who is not, and who is thrown out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::{Ca, Csr, Purpose};
use crate::identity::NodeKey;

const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
pub(crate) const A: NodeId = NodeId(0xa);
pub(crate) const B: NodeId = NodeId(0xb);

#[tokio::test]
async fn members_let_each_other_in() {
    let world = World::new();
    let (a, b) = (world.member(A), world.member(B));
    assert_eq!(handshake(&a.trust, &b.trust, B).await, Ok((A, B)));
    assert_eq!(handshake(&b.trust, &a.trust, A).await, Ok((B, A)));
}

#[tokio::test]
async fn whoever_is_not_the_member_is_kept_out() {
    let world = World::new();
    let b = world.member(B).trust;

    // Another key under A's id, issued by the right CA.
    let trusting = |identity| Trust::new(&identity, pins(&world, &[A, B])).expect("usable");
    let wrong_key = trusting(World::new_keys(&world).identity(A));
    assert_eq!(
        handshake(&wrong_key, &b, B).await,
        Err(Failure::Server(Denied::WrongKey(A)))
    );

    // A member of another cluster that got hold of the name.
    let other = World::of(ClusterId([0xc2; 16]), Lineage(1));
    let disguised = trusting(other.identity(A));
    assert_eq!(
        handshake(&disguised, &b, B).await,
        Err(Failure::Server(Denied::ForeignCluster))
    );

    // Nobody the membership knows, and somebody it knew.
    let c = NodeId(0xc);
    let stranger = world.member(c).trust;
    assert_eq!(
        handshake(&stranger, &b, B).await,
        Err(Failure::Server(Denied::Unknown(c)))
    );
    let mut removed = pins(&world, &[A, B]);
    removed.removed.insert(c);
    b.set_pins(removed).expect("usable");
    assert_eq!(
        handshake(&stranger, &b, B).await,
        Err(Failure::Server(Denied::Revoked))
    );
    assert_eq!(b.alerts().denied.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_clone_of_this_node_is_kept_out_and_counted() {
    let world = World::new();
    let (a, clone) = (world.member(A).trust, world.member(A).trust);
    // The client looks first, so that it is the one that finds out.
    assert_eq!(
        handshake(&a, &clone, A).await,
        Err(Failure::Client(Denied::Myself))
    );
    assert_eq!(a.alerts().duplicate_identity.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_answers_to_its_own_name_only() {
    let world = World::new();
    let (a, b) = (world.member(A).trust, world.member(B).trust);
    let c = NodeId(0xc);
    assert_eq!(handshake(&a, &b, c).await, Err(Failure::Misdirected));
    let mut recovered = pins(&world, &[A, B]);
    recovered.lineage = Lineage(2);
    let later = Trust::new(&world.identity(A), recovered).expect("usable");
    assert_eq!(handshake(&later, &b, B).await, Err(Failure::Misdirected));
    assert_eq!(handshake(&b, &later, A).await, Err(Failure::Misdirected));
    assert_eq!(b.alerts().misdirected.load(Ordering::Relaxed), 2);
}

#[test]
fn the_one_who_answers_is_the_one_who_was_dialled() {
    let world = World::new();
    let judge = Judge::new(pins(&world, &[A, B])).expect("usable");
    let certificate = world.identity(B).certificate;
    let asked = |dialled| judge.judge(NodeId(1), &certificate, &[], dialled, UnixTime::now());
    assert!(asked(Dialled::Member(B)).is_ok());
    assert!(asked(Dialled::Nobody).is_ok());
    assert_eq!(
        asked(Dialled::Member(A)),
        Err(Denied::NotDialled {
            dialled: A,
            found: B
        })
    );
}

#[test]
fn dates_decide_nothing_but_are_told() {
    let world = World::new();
    let judge = Judge::new(pins(&world, &[A, B])).expect("usable");
    let certificate = world.identity(B).certificate;
    let issued = world.now.duration_since(UNIX_EPOCH).expect("after 1970");
    let day = Duration::from_secs(24 * 60 * 60);
    for (moment, dated) in [
        (Duration::ZERO, false),
        (issued - day * 2, false),
        (issued, true),
        (issued + day * 29, true),
        (issued + day * 31, false),
        (issued + day * 365 * 30, false),
    ] {
        let at = UnixTime::since_unix_epoch(moment);
        let peer = judge.judge(A, &certificate, &[], Dialled::Member(B), at);
        let found = peer.map(|peer| (peer.node_id, peer.dated));
        assert_eq!(found, Ok((B, dated)), "{moment:?}");
    }
}

#[tokio::test]
async fn a_member_that_slept_through_a_rotation_of_the_ca_is_let_in_with_an_alert() {
    let world = World::new();
    let rotated = world.with_other_ca();
    let (a, b) = (world.member(A).trust, rotated.member(B).trust);
    assert_eq!(handshake(&a, &b, B).await, Ok((A, B)));
    assert_eq!(handshake(&b, &a, A).await, Ok((B, A)));
    assert_eq!(b.alerts().out_of_date.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_member_that_joined_meanwhile_is_let_in_by_the_word_of_a_known_one() {
    let world = World::new();
    let (c, d) = (NodeId(0xc), NodeId(0xd));
    // A let C in, and C let D in, while B was off: B knows A only, and A is gone.
    let b = world.member(B).trust;
    let newcomer = world.member(d).trust;
    let shows = world.identity(d);
    let vouchers = [world.voucher(c, d), world.voucher(A, c)].concat();
    newcomer
        .set_certificate(&shows.certificate, shows.key.pkcs8(), &vouchers)
        .expect("usable");
    assert_eq!(handshake(&newcomer, &b, B).await, Ok((d, B)));
    // What was vouched for outlives news of the membership that do not name it, and open connections with it.
    let open = connect(&newcomer, &b, B).await.expect("open");
    b.set_pins(pins(&world, &[A, B])).expect("usable");
    assert_eq!(b.connections(d), 1);
    // A removal ends it, and so does that of the one in the middle of the chain for those who come later.
    let mut removed = pins(&world, &[A, B]);
    removed.removed.insert(d);
    b.set_pins(removed).expect("usable");
    assert_eq!(b.connections(d), 0);
    drop(open);
    assert_eq!(
        handshake(&newcomer, &b, B).await,
        Err(Failure::Server(Denied::Revoked))
    );
    let fresh = world.member(B).trust;
    let mut broken = pins(&world, &[A, B]);
    broken.removed.insert(c);
    fresh.set_pins(broken).expect("usable");
    assert_eq!(
        handshake(&newcomer, &fresh, B).await,
        Err(Failure::Server(Denied::Unknown(d)))
    );
}

#[tokio::test]
async fn an_expired_member_is_let_in_with_an_alert() {
    let world = World::new().aged(Duration::from_secs(60 * 24 * 60 * 60));
    let (a, b) = (world.member(A).trust, world.member(B).trust);
    assert_eq!(handshake(&a, &b, B).await, Ok((A, B)));
    assert_eq!(b.alerts().out_of_date.load(Ordering::Relaxed), 1);
    assert_eq!(a.alerts().out_of_date.load(Ordering::Relaxed), 1);
    assert_eq!(a.take_out_of_date(), [B].into());
    // It is told of once, also if it is renewed before anybody asks.
    assert_eq!(handshake(&a, &b, B).await, Ok((A, B)));
    let renewed = world.aged(Duration::ZERO).identity(A);
    a.set_certificate(&renewed.certificate, renewed.key.pkcs8(), &[])
        .expect("usable");
    assert_eq!(handshake(&a, &b, B).await, Ok((A, B)));
    assert_eq!(b.take_out_of_date(), [A].into());
    assert!(b.take_out_of_date().is_empty());
}

#[tokio::test]
async fn removal_closes_what_is_open_and_nothing_else() {
    let world = World::new();
    let b = world.member(B).trust;
    let (mut a_end, mut b_end) = connect(&world.member(A).trust, &b, B).await.expect("open");
    let c = NodeId(0xc);
    b.set_pins(pins(&world, &[A, B, c])).expect("usable");
    let (mut c_end, mut b_end_c) = connect(&world.member(c).trust, &b, B).await.expect("open");
    assert_eq!((b.connections(A), b.connections(c)), (1, 1));

    let mut byte = [0];
    let waiting = tokio::spawn(async move {
        let read = b_end.read_exact(&mut byte).await;
        (read.map_err(|error| error.kind()), b_end)
    });
    b.set_pins(pins(&world, &[B, c])).expect("usable");
    let (read, mut b_end) = waiting.await.expect("no panic");
    assert_eq!(read, Err(std::io::ErrorKind::ConnectionAborted));
    assert!(b_end.write_all(b"x").await.is_err());
    drop(b_end);
    assert_eq!((b.connections(A), b.connections(c)), (0, 1));
    assert!(a_end.read_exact(&mut byte).await.is_err());

    c_end.write_all(b"y").await.expect("still open");
    c_end.flush().await.expect("still open");
    b_end_c.read_exact(&mut byte).await.expect("still open");
    assert_eq!(&byte, b"y");
    drop(b_end_c);
    assert_eq!(b.connections(c), 0);
}

#[test]
fn a_member_removed_during_its_handshake_is_not_admitted() {
    let world = World::new();
    let b = world.member(B).trust;
    let certificate = world.identity(A).certificate;
    drop(
        b.admit(&certificate, &CancellationToken::new())
            .expect("a member"),
    );
    b.set_pins(pins(&world, &[B])).expect("usable");
    assert_eq!(
        b.admit(&certificate, &CancellationToken::new()).err(),
        Some(Denied::Unknown(A))
    );
    assert_eq!(b.connections(A), 0);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_at_once() {
    let mut world = World::new();
    world.now -= Duration::from_secs(60 * 24 * 60 * 60);
    let (a, b) = (world.member(A).trust, world.member(B).trust);
    world.now = SystemTime::now();
    let renewed = world.identity(A);
    a.set_certificate(&renewed.certificate, renewed.key.pkcs8(), &[])
        .expect("usable");
    assert_eq!(handshake(&a, &b, B).await, Ok((A, B)));
    assert_eq!(b.alerts().out_of_date.load(Ordering::Relaxed), 0);
    let other = NodeKey::create().expect("makes one");
    assert!(
        a.set_certificate(&renewed.certificate, other.pkcs8(), &[])
            .is_err(),
        "a key of something else"
    );
}

#[tokio::test]
async fn whoever_shows_no_certificate_or_speaks_no_tls_is_kept_out() {
    let world = World::new();
    let b = world.member(B).trust;
    let mut roots = RootCertStore::empty();
    roots.add(world.ca.certificate().clone()).expect("usable");
    let mut anonymous = ClientConfig::builder_with_provider(Arc::clone(&b.provider))
        .with_safe_default_protocol_versions()
        .expect("supported")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Verifier(world.member(A).trust)))
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = b.server_name(B);
    let (client, server) = tokio::join!(
        TlsConnector::from(Arc::new(anonymous)).connect(name, near),
        TlsAcceptor::from(b.server_config()).accept(far)
    );
    assert!(server.is_err());
    drop(client);

    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(garbage).await.expect("room in the pipe");
        drop(near);
        assert!(
            TlsAcceptor::from(b.server_config())
                .accept(far)
                .await
                .is_err()
        );
    }
}

#[test]
fn nothing_is_ever_resumed() {
    let world = World::new();
    let a = world.member(A).trust;
    let server = a.server_config();
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.session_storage.can_cache());
    assert!(!server.ticketer.enabled());
    assert_eq!(server.max_early_data_size, 0);
    assert!(!a.client_config().enable_early_data);
}

#[test]
fn a_key_file_is_read_as_rustls_reads_it() {
    let key = NodeKey::create().expect("makes one");
    let text = crate::pem::private_key(key.pkcs8());
    let read = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).expect("PEM");
    assert_eq!(read.secret_pkcs8_der(), key.pkcs8());
}

#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The server refused the client.
    Server(Denied),
    /// The client refused the server.
    Client(Denied),
    /// The server has nothing to show under the name that was asked for.
    Misdirected,
}

/// Both ends of a handshake in which `client` dials `dialled` and reaches `server`: who each end thinks the other is.
async fn handshake(
    client: &Arc<Trust>,
    server: &Arc<Trust>,
    dialled: NodeId,
) -> Result<(NodeId, NodeId), Failure> {
    let (client_end, server_end) = connect(client, server, dialled).await?;
    Ok((server_end.node_id(), client_end.node_id()))
}

type Client = PeerStream<tokio_rustls::client::TlsStream<DuplexStream>>;
type Server = PeerStream<tokio_rustls::server::TlsStream<DuplexStream>>;

async fn connect(
    client: &Arc<Trust>,
    server: &Arc<Trust>,
    dialled: NodeId,
) -> Result<(Client, Server), Failure> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = TlsConnector::from(client.client_config());
    let acceptor = TlsAcceptor::from(server.server_config());
    let name = client.server_name(dialled);
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    if let Some(denied) = far.as_ref().err().and_then(reason) {
        return Err(Failure::Server(denied));
    }
    if let Some(denied) = near.as_ref().err().and_then(reason) {
        return Err(Failure::Client(denied));
    }
    let (Ok(near), Ok(far)) = (near, far) else {
        return Err(Failure::Misdirected);
    };
    let shown = |chain: Option<&[CertificateDer<'static>]>| chain.expect("mutual")[0].clone();
    let server_shown = shown(near.get_ref().1.peer_certificates());
    let client_shown = shown(far.get_ref().1.peer_certificates());
    Ok((
        PeerStream::new(
            near,
            client
                .admit(&server_shown, &CancellationToken::new())
                .expect("a member"),
        ),
        PeerStream::new(
            far,
            server
                .admit(&client_shown, &CancellationToken::new())
                .expect("a member"),
        ),
    ))
}

fn reason(error: &std::io::Error) -> Option<Denied> {
    error
        .get_ref()?
        .downcast_ref::<rustls::Error>()
        .and_then(verify::denied)
        .cloned()
}

/// A CA, and a key for each of a few members.
pub(crate) struct World {
    cluster_id: ClusterId,
    lineage: Lineage,
    ca: Ca,
    keys: BTreeMap<NodeId, (Vec<u8>, Digest)>,
    now: SystemTime,
}

pub(crate) struct Member {
    pub(crate) trust: Arc<Trust>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::of(CLUSTER, Lineage(1))
    }

    fn of(cluster_id: ClusterId, lineage: Lineage) -> Self {
        let now = SystemTime::now();
        World {
            cluster_id,
            lineage,
            ca: Ca::create(Purpose::Members, cluster_id, now).expect("creates"),
            keys: (0..16).map(|id| (NodeId(id), fresh())).collect(),
            now,
        }
    }

    /// The same cluster and CA, with other keys.
    pub(crate) fn new_keys(other: &World) -> Self {
        World {
            ca: other.ca.reopened(),
            keys: (0..16).map(|id| (NodeId(id), fresh())).collect(),
            ..Self::of(other.cluster_id, other.lineage)
        }
    }

    /// The same cluster and keys, with another CA.
    pub(crate) fn with_other_ca(&self) -> Self {
        World {
            keys: self.keys.clone(),
            ..Self::of(self.cluster_id, self.lineage)
        }
    }

    /// The same world, in which certificates were issued that long ago.
    pub(crate) fn aged(mut self, by: Duration) -> Self {
        self.now = SystemTime::now() - by;
        self
    }

    /// The member `node_id`, which trusts A, B and itself.
    pub(crate) fn member(&self, node_id: NodeId) -> Member {
        let trusted = pins(self, &[A, B, node_id]);
        Member {
            trust: Trust::new(&self.identity(node_id), trusted).expect("usable"),
        }
    }

    /// What `by` shows of its word for `of`.
    fn voucher(&self, by: NodeId, of: NodeId) -> Vec<CertificateDer<'static>> {
        let (signer, other) = (self.identity(by), self.identity(of));
        let voucher = crate::voucher::vouch(
            (by, signer.key.pkcs8(), &signer.certificate),
            self.cluster_id,
            (of, &other.certificate),
        )
        .expect("vouches");
        let shown = [voucher.certificate, voucher.signer];
        shown.map(|der| der.into_vec().into()).into()
    }

    pub(crate) fn identity(&self, node_id: NodeId) -> Identity {
        let (pkcs8, _) = &self.keys[&node_id];
        let key = NodeKey::from_pkcs8(pkcs8).expect("our own");
        let csr = Csr::parse(key.request()).expect("our own");
        let issued = self
            .ca
            .issue_node(self.cluster_id, node_id, "127.0.0.1", &csr, self.now)
            .expect("issues");
        let authorities = vec![self.ca.certificate().clone()];
        Identity::issued(key, issued.der.into(), authorities).expect("fits")
    }
}

/// Pins of some members of `world`.
pub(crate) fn pins(world: &World, members: &[NodeId]) -> Pins {
    Pins {
        cluster_id: world.cluster_id,
        lineage: world.lineage,
        members: members
            .iter()
            .map(|node_id| (*node_id, world.keys[node_id].1))
            .collect(),
        removed: BTreeSet::new(),
        authorities: vec![world.ca.certificate().clone()],
    }
}

fn fresh() -> (Vec<u8>, Digest) {
    let key = NodeKey::create().expect("makes one");
    (key.pkcs8().to_vec(), key.spki())
}
