//! The steward's work on trust, on whole nodes with real keys: sealing, renewal by a clock that the test moves, rotation
//! of the CA, vouching.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::ca::{Ca, Csr, Purpose};
use crate::command::{Addresses, Credential, FirstMember, Init, Refusal, Reservation, SigningKey};
use crate::id::{ClusterId, Lineage};
use crate::identity::NodeKey;
use crate::keyring::{Keyring, SealingKey};
use crate::node::{Environment, NodeConfig, NodeReport, Timing, Tokio};
use crate::store::files::DiskDirectory;
use crate::store::{Io, Store};
use crate::transport::memory::Switchboard;

const CLUSTER: ClusterId = ClusterId([0xcc; 16]);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const START_MS: u64 = 20_000 * DAY_MS;

/// How long a condition may take. Only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is looked for on disk: it cannot be there by chance.
const PLANTED: &[u8] = b"planted-secret-0123456789";

struct Place {
    node: Node<Tokio>,
    keyring: Arc<Keyring>,
    mirror: tokio::task::JoinHandle<()>,
}

/// Nodes on one switchboard, with their data in one directory and one clock for all.
struct Scene {
    directory: tempfile::TempDir,
    board: Switchboard,
    clock_ms: Arc<AtomicU64>,
    places: BTreeMap<NodeId, Place>,
}

impl Scene {
    fn new() -> Self {
        Scene {
            directory: tempfile::tempdir().expect("a directory"),
            board: Switchboard::new(),
            clock_ms: Arc::new(AtomicU64::new(START_MS)),
            places: BTreeMap::new(),
        }
    }

    fn data(&self, node_id: NodeId) -> std::path::PathBuf {
        self.directory.path().join(node_id.to_string())
    }

    fn node(&self, node_id: NodeId) -> &Node<Tokio> {
        &self.places[&node_id].node
    }

    fn state(&self, node_id: NodeId) -> Arc<State> {
        self.node(node_id).state()
    }

    async fn start(&mut self, node_id: NodeId, key: &NodeKey, sealing: SealingKey) {
        let data = self.data(node_id);
        std::fs::create_dir_all(&data).expect("creates");
        let store = Store::open(&data.join("raft.redb"), Io::Threaded).expect("opens");
        let snapshots = DiskDirectory::open(data.join("snapshots")).expect("opens");
        let clock = Arc::clone(&self.clock_ms);
        let environment = Environment {
            wall_clock_ms: Arc::new(move || clock.load(Ordering::SeqCst)),
            ..Environment::system(&data)
        };
        let keyring = Keyring::new(node_id, key.pkcs8(), sealing);
        let config = NodeConfig {
            addresses: Addresses {
                cluster: format!("192.0.2.{}:9600", node_id.0 % 200),
                ..Addresses::default()
            },
            timing: Timing {
                heartbeat_ms: 50,
                election_min_ms: 300,
                election_max_ms: 600,
            },
            promote_after: Duration::ZERO,
            raise_after: Duration::ZERO,
            propose_timeout: Duration::from_secs(20),
            keyring: Arc::clone(&keyring),
            ..NodeConfig::new(node_id)
        };
        let transport = self.board.transport(node_id);
        let node = Node::start(config, environment, store, Arc::new(snapshots), transport)
            .await
            .expect("starts");
        self.board.connect(node_id, node.service());
        let mirror = tokio::spawn(mirror(node.clone(), Arc::clone(&keyring)));
        let place = Place {
            node,
            keyring,
            mirror,
        };
        self.places.insert(node_id, place);
    }

    async fn stop(&mut self, node_id: NodeId) {
        let place = self.places.remove(&node_id).expect("it runs");
        self.board.disconnect(node_id);
        place.mirror.abort();
        place.node.shutdown().await;
    }

    /// Founds a cluster as version 1 did, with secrets in clear.
    async fn found(&mut self) -> NodeId {
        let node_id = NodeId(1);
        let now = UNIX_EPOCH + Duration::from_millis(START_MS);
        let key = NodeKey::create().expect("makes one");
        let ca = Ca::create(Purpose::Members, CLUSTER, now).expect("creates");
        let https = Ca::create(Purpose::Https, CLUSTER, now).expect("creates");
        let csr = Csr::parse(key.request()).expect("our own");
        let certificate = ca.issue_node(CLUSTER, node_id, "", &csr, now);
        let sealing = SealingKey::generate().expect("makes one");
        self.start(node_id, &key, sealing).await;
        self.node(node_id)
            .found(Init {
                cluster_id: CLUSTER,
                lineage: Lineage(1),
                settings: Settings::default(),
                cluster_ca: ca.authority(),
                https_ca: https.authority(),
                signing_key: SigningKey {
                    kid: "k1".into(),
                    public: vec![0; 32],
                    key_pkcs8: Secret::plain(PLANTED),
                },
                seed: FirstMember {
                    node_id,
                    name: "seed".into(),
                    addresses: Addresses::default(),
                    spki: key.spki(),
                    certificate: certificate.expect("issues"),
                },
                policy: None,
                feature_level: 1,
                version: String::new(),
                first_key: None,
            })
            .await
            .expect("founds");
        node_id
    }

    /// Lets one more node in through `leader`.
    async fn join(&mut self, leader: NodeId) -> NodeId {
        let key = NodeKey::create().expect("makes one");
        let csr = Csr::parse(key.request()).expect("our own");
        let reservation = Reservation {
            name: String::new(),
            addresses: Addresses::default(),
            spki: csr.spki(),
            csr: csr.digest(),
            credential: Credential::Bootstrap { kid: String::new() },
        };
        let reserved = self
            .propose(leader, Command::ReserveMember(reservation))
            .await;
        let Response::Reserved { node_id } = reserved else {
            panic!("{reserved:?}")
        };
        self.start(node_id, &key, SealingKey::generate().expect("makes one"))
            .await;
        let state = self.state(leader);
        let ca = state
            .open_ca(state.cluster_ca().expect("there is one"))
            .expect("opens");
        let now = UNIX_EPOCH + Duration::from_millis(state.time_ms());
        let certificate = ca
            .issue_node(CLUSTER, node_id, "", &csr, now)
            .expect("issues");
        let confirm = Command::ConfirmMember {
            node_id,
            certificate,
        };
        assert_eq!(self.propose(leader, confirm).await, Response::Done);
        node_id
    }

    async fn propose(&self, node_id: NodeId, command: Command) -> Response {
        let applied = self.node(node_id).propose(command).await;
        applied.expect("commits").response
    }

    /// Waits until every running node's state is as `wanted`.
    async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let all = async {
            for place in self.places.values() {
                let mut states = place.node.watch();
                states
                    .wait_for(|state| wanted(state))
                    .await
                    .expect("it runs");
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("in time");
    }

    async fn sealed(&self, epoch: u64) {
        self.until(|state| state.data_key().is_some_and(|key| key.epoch == epoch))
            .await;
    }

    /// What every running node reads of its first signing key.
    fn read_by_all(&self) -> bool {
        self.places.values().all(|place| {
            let state = place.node.state();
            let secret = &state.signing_key("k1").expect("is there").key.key_pkcs8;
            state
                .open(secret)
                .is_ok_and(|read| read.as_slice() == PLANTED)
        })
    }

    /// Whether any file of a node holds these bytes.
    fn is_on_disk(&self, node_id: NodeId, bytes: &[u8]) -> bool {
        fn look(directory: &Path, bytes: &[u8]) -> bool {
            let entries = std::fs::read_dir(directory).expect("reads");
            entries
                .map(|entry| entry.expect("reads").path())
                .any(|path| {
                    if path.is_dir() {
                        return look(&path, bytes);
                    }
                    let content = std::fs::read(&path).expect("reads");
                    content.windows(bytes.len()).any(|part| part == bytes)
                })
        }
        look(&self.data(node_id), bytes)
    }
}

/// Reports what the daemon reports: the keys, and whatever authorities and certificate the state has for this node.
async fn mirror(node: Node<Tokio>, keyring: Arc<Keyring>) {
    let mut states = node.watch();
    loop {
        let trust = {
            let state = states.borrow_and_update();
            let own = state.member(node.node_id());
            let certificate = own.and_then(|own| own.certificate.as_ref());
            TrustReport {
                sealing_key: keyring.sealing_key().map(Vec::from).unwrap_or_default(),
                authorities: state
                    .cluster_cas()
                    .map(|ca| Digest::of(&ca.certificate_der))
                    .collect(),
                certificate: certificate.map(|certificate| Digest::of(&certificate.der)),
            }
        };
        node.report(NodeReport {
            trust,
            ..NodeReport::default()
        });
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn certificate(state: &State, node_id: NodeId) -> Certificate {
    let member = state.member(node_id).expect("a member");
    member.certificate.clone().expect("it has one")
}

fn issuer(state: &State) -> Vec<u8> {
    state
        .cluster_ca()
        .expect("there is one")
        .certificate_der
        .clone()
}

#[tokio::test]
async fn secrets_are_sealed_when_the_level_rises_and_nothing_in_clear_is_left_on_disk() {
    let mut scene = Scene::new();
    let a = scene.found().await;
    assert!(scene.is_on_disk(a, PLANTED), "or this test tells nothing");
    scene.sealed(1).await;
    assert!(scene.read_by_all());
    let scrubbed = async {
        while *locked(&scene.node(a).inner.scrub) != crate::node::scrub::Scrub::Done {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, scrubbed)
        .await
        .expect("in time");
    assert!(!scene.is_on_disk(a, PLANTED));
    // A secret that comes later is sealed before it is written.
    let later = b"later-secret-9876543210";
    let added = Command::AddSigningKey(SigningKey {
        kid: "k2".into(),
        public: vec![0; 32],
        key_pkcs8: Secret::plain(later),
    });
    assert_eq!(scene.propose(a, added).await, Response::Done);
    let state = scene.state(a);
    let kept = &state.signing_key("k2").expect("is there").key.key_pkcs8;
    assert_eq!(kept.epoch(), Some(1));
    assert_eq!(state.open(kept).expect("opens").as_slice(), later);
    assert!(!scene.is_on_disk(a, later));
    scene.stop(a).await;
}

#[tokio::test]
async fn a_newcomer_reads_secrets_and_a_leaver_does_not_read_those_after_it() {
    let mut scene = Scene::new();
    let a = scene.found().await;
    scene.sealed(1).await;
    let b = scene.join(a).await;
    scene
        .until(|state| {
            state
                .data_key()
                .is_some_and(|key| key.wraps.contains_key(&b))
        })
        .await;
    assert!(scene.read_by_all());
    assert_eq!(
        scene.propose(a, Command::RemoveMember { node_id: b }).await,
        Response::Done
    );
    let a_state = async {
        let mut states = scene.node(a).watch();
        let resealed = |state: &Arc<State>| state.data_key().is_some_and(|key| key.epoch == 2);
        states.wait_for(resealed).await.expect("it runs").clone()
    };
    let state = tokio::time::timeout(PATIENCE, a_state)
        .await
        .expect("in time");
    let key = state.data_key().expect("just seen");
    assert!(!key.wraps.contains_key(&b));
    let leaver = &scene.places[&b].keyring;
    let secret = &state.signing_key("k1").expect("is there").key.key_pkcs8;
    assert_eq!(leaver.open(secret, Some(key)), Err(SealError::NotShared));
    assert_eq!(state.open(secret).expect("opens").as_slice(), PLANTED);
    scene.stop(b).await;
    scene.stop(a).await;
}

#[tokio::test]
async fn certificates_are_renewed_in_time_and_whatever_the_clock_says() {
    let mut scene = Scene::new();
    let a = scene.found().await;
    let b = scene.join(a).await;
    let first = [a, b].map(|id| certificate(&scene.state(a), id));
    // In the first half of their life nothing is due.
    let due = |days| {
        first
            .iter()
            .any(|certificate| is_due(certificate, START_MS + days * DAY_MS))
    };
    assert!(!due(14) && due(24));
    // Also after all were down for long.
    for days in [25, 25 + 60, 25 + 60 + 40] {
        let before = [a, b].map(|id| certificate(&scene.state(a), id));
        scene
            .clock_ms
            .store(START_MS + days * DAY_MS, Ordering::SeqCst);
        scene
            .until(|state| {
                [a, b].iter().zip(&before).all(|(id, before)| {
                    let now = certificate(state, *id);
                    now.not_after_ms > before.not_after_ms
                        && now.not_after_ms >= START_MS + (days + 29) * DAY_MS
                })
            })
            .await;
        let state = scene.state(a);
        for (id, before) in [a, b].iter().zip(&before) {
            let renewed = certificate(&state, *id);
            assert_eq!(ca::spki_of(&renewed.der), ca::spki_of(&before.der));
            assert_eq!(ca::member_of(&renewed.der), Some((CLUSTER, *id)));
            assert!(ca::is_issued_by(&renewed.der, &issuer(&state)));
        }
    }
    // A clock in 1970: log time goes on from where it was, and nothing is renewed for nothing.
    scene.clock_ms.store(0, Ordering::SeqCst);
    assert!(
        scene
            .node(a)
            .renewal(&scene.state(a))
            .expect("looks")
            .is_none()
    );
    scene.stop(b).await;
    scene.stop(a).await;
}

#[tokio::test]
async fn a_rotation_of_the_ca_reaches_every_member_and_can_be_taken_back() {
    let mut scene = Scene::new();
    let a = scene.found().await;
    let b = scene.join(a).await;
    scene.sealed(1).await;
    scene
        .until(|state| {
            state
                .data_key()
                .is_some_and(|key| key.wraps.contains_key(&b))
        })
        .await;
    let old = issuer(&scene.state(a));
    let next = || {
        let now = UNIX_EPOCH + Duration::from_millis(START_MS);
        Ca::create(Purpose::Members, CLUSTER, now)
            .expect("creates")
            .authority()
    };
    let start = |next| Command::Trust(TrustChange::StartCaRotation { next });
    assert_eq!(scene.propose(a, start(next())).await, Response::Done);
    let all_have = |ca: Vec<u8>| {
        move |state: &State| {
            state.ca_rotation().is_none()
                && issuer(state) == ca
                && [a, b]
                    .iter()
                    .all(|id| ca::is_issued_by(&certificate(state, *id).der, &ca))
        }
    };
    scene
        .until(|state| state.ca_rotation().is_none() && issuer(state) != old)
        .await;
    let new = issuer(&scene.state(a));
    scene.until(all_have(new.clone())).await;

    // b says nothing any more, so that the rotation waits for it, and is taken back.
    scene.places[&b].mirror.abort();
    assert_eq!(scene.propose(a, start(next())).await, Response::Done);
    assert!(scene.node(a).rotation_pending(&scene.state(a)).contains(&b));
    let abort = Command::Trust(TrustChange::AbortCaRotation);
    assert_eq!(scene.propose(a, abort.clone()).await, Response::Done);
    scene.until(all_have(new.clone())).await;
    assert!(matches!(
        scene.propose(a, abort).await,
        Response::Refused(Refusal::Trust(_))
    ));
    scene.stop(b).await;
    scene.stop(a).await;
}

#[tokio::test]
async fn whoever_joins_is_vouched_for() {
    let mut scene = Scene::new();
    let a = scene.found().await;
    scene.sealed(1).await;
    let b = scene.join(a).await;
    scene.until(|state| state.voucher(b).is_some()).await;
    let state = scene.state(a);
    let pins = crate::tls::Pins {
        cluster_id: CLUSTER,
        lineage: Lineage(1),
        members: [(a, state.member(a).expect("a member").spki)].into(),
        removed: BTreeSet::new(),
        authorities: Vec::new(),
    };
    let spki = state.member(b).expect("a member").spki;
    let shown = state.vouchers_of(b);
    assert_eq!(voucher::vouched_for(&pins, b, spki, &shown), Some(a));
    scene.stop(b).await;
    scene.stop(a).await;
}
