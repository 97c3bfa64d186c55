//! The API in front of real cluster nodes, in one process: no root, no network beyond loopback.

mod access;
mod accounts;
mod archives;
mod certificates;
mod dataplane;
mod joining;
mod keys;
mod leader;
mod listeners;
mod members;
mod policies;
mod retries;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use cluster::ca::{Ca, Purpose};
use cluster::command::{
    Addresses, Certificate, Credential, FirstMember, Init, Reservation, Settings,
};
use cluster::store::files::MemoryDirectory;
use cluster::store::{Io, Store};
use cluster::transport::memory::Switchboard;
use cluster::{
    ClusterId, Command, Digest, Environment, Lineage, Node, NodeConfig, NodeId, NodeReport,
    PolicyMark, Response, Timing,
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;
use uuid::Uuid;

use super::{App, Origin, now_s};
use crate::auth::token;
use crate::metrics::Metrics;
use crate::readiness::{Part, Readiness};

/// How long a condition may take. Only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A valid policy that allows nothing.
const POLICY: &str = r#"{"default_policy":"deny","source_groups":[]}"#;
/// Another one.
const OTHER_POLICY: &str = r#"{"default_policy":"allow","source_groups":[]}"#;

/// Members with their management APIs.
struct Cluster {
    board: Switchboard,
    /// What every node takes for the free space on its disk.
    free_bytes: Arc<AtomicU64>,
    members: Vec<Member>,
}

/// One member.
struct Member {
    node: Node,
    app: Arc<App>,
    /// Whether it "enforces" what it applies.
    enforces: watch::Sender<bool>,
    _disk: tempfile::TempDir,
}

impl Cluster {
    /// A founded cluster of one.
    async fn one() -> Self {
        Self::one_at(cluster::node::FEATURE_LEVEL).await
    }

    /// A member alone, of a cluster that is at this feature level.
    async fn one_at(feature_level: u32) -> Self {
        let mut cluster = Self {
            board: Switchboard::new(),
            free_bytes: Arc::new(AtomicU64::new(u64::MAX)),
            members: Vec::new(),
        };
        let node_id = NodeId(1);
        cluster.start(node_id).await;
        let node = cluster.node(0);
        let init = Init {
            feature_level,
            ..init(node_id)
        };
        node.found(init).await.unwrap();
        cluster
    }

    /// A cluster of three that all vote.
    async fn three() -> Self {
        let mut cluster = Self::one().await;
        for n in 1..3_u8 {
            let reservation = Reservation {
                name: format!("node-{n}"),
                addresses: addresses(NodeId(n.into())),
                spki: Digest::of(&[n]),
                csr: Digest::of(&[n, 0]),
                credential: Credential::Bootstrap { kid: String::new() },
            };
            let reserved = cluster.commit(Command::ReserveMember(reservation)).await;
            let Response::Reserved { node_id } = reserved else {
                panic!("{reserved:?}")
            };
            cluster.start(node_id).await;
            let confirm = Command::ConfirmMember {
                node_id,
                certificate: certificate(),
            };
            cluster.commit(confirm).await;
        }
        cluster
            .wait("all vote and follow node 0", |cluster| {
                let members = cluster.node(0).members();
                let settled = members.len() == 3 && members.iter().all(|m| m.voter && m.live);
                // One failure is survived only once the change that let them vote is whole.
                settled
                    && cluster.node(0).status().failure_tolerance == Some(1)
                    && (1..3)
                        .all(|n| matches!(cluster.node(n).role(), cluster::Role::Follower { .. }))
            })
            .await;
        cluster
    }

    async fn start(&mut self, node_id: NodeId) {
        let disk = tempfile::tempdir().unwrap();
        let store = Store::open(&disk.path().join("raft.redb"), Io::Threaded).unwrap();
        let config = NodeConfig {
            addresses: addresses(node_id),
            timing: Timing {
                // Slow enough that a busy machine does not lose its leader.
                heartbeat_ms: 100,
                election_min_ms: 800,
                election_max_ms: 1600,
            },
            promote_after: Duration::ZERO,
            // As many elections long as it is by default: one whose votes are split is followed by another.
            propose_timeout: Duration::from_secs(20),
            ..NodeConfig::new(node_id)
        };
        let free_bytes = Arc::clone(&self.free_bytes);
        let environment = Environment {
            free_bytes: Arc::new(move || Some(free_bytes.load(Ordering::SeqCst))),
            ..Environment::system(disk.path())
        };
        let snapshots = Arc::new(MemoryDirectory::default());
        let transport = self.board.transport(node_id);
        let node = Node::start(config, environment, store, snapshots, transport)
            .await
            .unwrap();
        self.board.connect(node_id, node.service());

        let app = App::new(Arc::new(Readiness::default()), Metrics::default().http());
        for part in [
            Part::DataplaneRunning,
            Part::DataplaneConfig,
            Part::PolicyReady,
        ] {
            app.readiness().set_ok(part, "");
        }
        node.answer_events();
        node.set_http_handler(app.forward_handler());
        node.set_admin_handler(app.admin_handler());
        crate::sysdump::member::answer(&node, &app);
        let (telling, minted) = (node.clone(), Arc::clone(app.minted()));
        tokio::spawn(async move { minted.tell(&telling).await });
        app.set_node(Some(node.clone()));
        let enforces = watch::Sender::new(true);
        tokio::spawn(enforce(
            node.clone(),
            Arc::clone(&app),
            enforces.subscribe(),
        ));
        self.members.push(Member {
            node,
            app,
            enforces,
            _disk: disk,
        });
    }

    fn node(&self, n: usize) -> &Node {
        &self.members[n].node
    }

    fn app(&self, n: usize) -> &Arc<App> {
        &self.members[n].app
    }

    /// Cuts a member off from all others.
    fn cut_off(&self, n: usize) {
        let id = self.node(n).node_id();
        let others: Vec<_> = self
            .members
            .iter()
            .map(|m| m.node.node_id())
            .filter(|o| *o != id)
            .collect();
        self.board.cut(&[id], &others);
    }

    async fn commit(&self, command: Command) -> Response {
        self.node(0).propose(command).await.unwrap().response
    }

    async fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "never: {what}");
    }

    /// A minted token with these roles.
    fn token(&self, roles: &[&str]) -> String {
        self.token_ending(roles, now_s() + 3600)
    }

    fn token_ending(&self, roles: &[&str], exp: u64) -> String {
        let state = self.node(0).state();
        let key = &state.active_signing_key().unwrap().key;
        token::sign(&state, key, &self.claims(roles, exp)).unwrap()
    }

    /// What a minted token of these roles says, signed with the active key.
    fn claims(&self, roles: &[&str], exp: u64) -> token::Claims {
        let state = self.node(0).state();
        token::Claims {
            iss: token::ISSUER.into(),
            aud: token::ISSUER.into(),
            sub: "tester".into(),
            exp: Some(exp),
            iat: exp.min(now_s()).saturating_sub(7200),
            jti: Uuid::new_v4().to_string(),
            kid: state.active_signing_key().unwrap().key.kid.clone(),
            sa_id: None,
            scope: None,
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        }
    }

    fn ask(&self, n: usize, method: Method, path: &str) -> Ask {
        Ask {
            app: Arc::clone(self.app(n)),
            origin: Origin::Network("192.0.2.7:1234".parse().unwrap()),
            request: Request::builder().method(method).uri(path),
            body: Body::empty(),
        }
    }

    fn get(&self, n: usize, path: &str) -> Ask {
        self.ask(n, Method::GET, path)
            .token(&self.token(&["readonly"]))
    }

    fn put_policy(&self, n: usize, query: &str, document: &str) -> Ask {
        let path = format!("{}{query}", api::paths::POLICY);
        let ask = self
            .ask(n, Method::PUT, &path)
            .token(&self.token(&["admin"]));
        ask.json(document)
    }
}

/// Reports every applied policy as enforced, while it may.
async fn enforce(node: Node, app: Arc<App>, mut enforces: watch::Receiver<bool>) {
    let mut states = node.watch();
    let mut enforced = PolicyMark::default();
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        let applied = state.policy().map(|policy| PolicyMark::of(&state, policy));
        let applied = applied.unwrap_or_default();
        if *enforces.borrow_and_update() {
            enforced = applied;
        }
        app.readiness().set_enforced(enforced, None);
        node.report(NodeReport {
            version: "test".into(),
            http_address: format!("{}:8443", node.node_id()),
            applied,
            compiled: applied,
            enforced,
            ..NodeReport::default()
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = enforces.changed() => if changed.is_err() { return },
        }
    }
}

fn addresses(node_id: NodeId) -> Addresses {
    Addresses {
        cluster: format!("{node_id}:9600"),
        join: format!("{node_id}:9601"),
        http: String::new(),
    }
}

fn certificate() -> Certificate {
    Certificate {
        der: vec![1],
        serial: vec![2],
        not_before_ms: 0,
        not_after_ms: 4_000_000_000_000,
    }
}

fn init(node_id: NodeId) -> Init {
    let cluster_id = ClusterId([7; 16]);
    let now = SystemTime::now();
    let authority = |purpose| Ca::create(purpose, cluster_id, now).unwrap().authority();
    Init {
        cluster_id,
        lineage: Lineage(9),
        settings: Settings::default(),
        cluster_ca: authority(Purpose::Members),
        https_ca: authority(Purpose::Https),
        signing_key: token::generate_key("k1".into()).unwrap(),
        seed: FirstMember {
            node_id,
            name: "node".into(),
            addresses: addresses(node_id),
            spki: Digest::of(b"seed"),
            certificate: certificate(),
        },
        policy: None,
        feature_level: cluster::node::FEATURE_LEVEL,
        version: String::new(),
        first_key: None,
    }
}

/// A request on its way.
struct Ask {
    app: Arc<App>,
    origin: Origin,
    request: http::request::Builder,
    body: Body,
}

impl Ask {
    fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    fn json(self, body: &str) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_owned())
    }

    fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    fn by_root(mut self) -> Self {
        self.origin = Origin::ControlSocket;
        self
    }

    async fn send(self) -> Answered {
        let mut request = self.request.body(self.body).unwrap();
        request.extensions_mut().insert(self.origin);
        let response = self.app.router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&body).into_owned(),
            bytes: body,
        }
    }

    /// Sends it and checks the status.
    async fn expect(self, status: StatusCode) -> Answered {
        let answered = self.send().await;
        assert_eq!(answered.status, status, "{}", answered.text);
        answered
    }
}

/// An answer.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
    bytes: bytes::Bytes,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {:?}", self.headers));
        value.to_str().unwrap()
    }
}
