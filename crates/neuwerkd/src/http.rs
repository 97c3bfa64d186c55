//! The management API: routes, who may use them, which node answers.
//!
//! A request passes [`edge`] (request id, headers, metrics), then its row in [`route::ROUTES`],
//! then [`gate`] (body limit, credential, leader) and reaches its handler with a verified
//! [`Identity`](crate::auth::Identity) and a whole body. The control socket and requests that
//! other members forward take the same way; only what they bring along differs ([`Origin`]).

pub mod account;
pub mod backup;
pub mod ca;
pub mod certificate;
mod change;
pub mod changes;
pub mod control;
pub mod dataplane;
mod edge;
pub mod error;
mod findings;
mod gate;
pub mod health;
mod history;
pub mod joining;
pub mod key;
pub mod listen;
pub mod members;
mod names;
pub mod openapi;
pub mod policy;
mod preflight;
mod request;
mod revision;
pub mod route;
pub mod session;
pub mod stats;
pub mod sysdump;
#[cfg(test)]
mod tests;
pub mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use cluster::node::HttpHandler;
use cluster::{Node, NodeId, PolicyMark, Role};
use engine::WorkerCounters;
use http::StatusCode;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc};

use crate::auth::limiter::Limiter;
use crate::auth::minted::Minted;
use crate::auth::signatures::Signatures;
use crate::backup::Backups;
use crate::config::{Config, RecentLog};
use crate::control::rejoin::Rejoin;
use crate::dataplane::{Acquired, Dataplane, Shown};
use crate::metrics::{HttpMetrics, Links};
use crate::readiness::{Readiness, View};
use crate::sysdump::Source;
use api::error::Reason;
use error::{Answer, Refused};

/// Policies that are parsed and compiled at once; the others wait.
const POLICIES_AT_ONCE: usize = 2;

/// Support archives that are made at once; further ones are refused.
const ARCHIVES_AT_ONCE: usize = 1;

/// What the handlers work on.
pub struct App {
    node: ArcSwapOption<Node>,
    counters: ArcSwap<Vec<Arc<WorkerCounters>>>,
    dataplane: ArcSwapOption<Dataplane>,
    /// Turns at measuring flows' rates.
    rates: Semaphore,
    /// Turns at walking through the policy for one packet.
    explanations: Semaphore,
    readiness: Arc<Readiness>,
    metrics: HttpMetrics,
    logins: Mutex<Limiter>,
    signatures: Signatures,
    policies: Semaphore,
    minted: Arc<Minted>,
    archives: Semaphore,
    support: OnceLock<(Arc<Config>, RecentLog)>,
    registry: OnceLock<Weak<Registry>>,
    names: OnceLock<proxy::dns::Metrics>,
    backups: ArcSwap<Backups>,
    rejoin: ArcSwapOption<mpsc::Sender<Rejoin>>,
    links: ArcSwapOption<Links>,
    acquired: ArcSwap<Acquired>,
    /// When there was a leader last, as far as this node knows.
    leader_seen: Mutex<Option<Instant>>,
}

/// Where a request comes from. The shell that accepted it says so; no header does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The HTTPS listener.
    Network(SocketAddr),
    /// The control socket.
    ControlSocket,
    /// Root on another member, by that member's own certificate.
    MemberRoot(NodeId),
    /// Another member, which took it from `client`.
    Member {
        /// The member that forwards.
        via: NodeId,
        /// Who sent it there.
        client: Option<String>,
    },
}

impl Origin {
    /// The node at which the request entered the cluster; `own` is this one.
    pub fn entered_at(&self, own: NodeId) -> NodeId {
        match self {
            Origin::Network(_) | Origin::ControlSocket => own,
            Origin::MemberRoot(via) | Origin::Member { via, .. } => *via,
        }
    }

    /// The client's address, as far as it is known.
    fn client(&self) -> Option<String> {
        match self {
            Origin::Network(address) => Some(address.to_string()),
            Origin::Member { client, .. } => client.clone(),
            Origin::ControlSocket | Origin::MemberRoot(_) => None,
        }
    }

    /// The member that it went through.
    fn via(&self) -> Option<NodeId> {
        match self {
            Origin::Network(_) | Origin::ControlSocket => None,
            Origin::MemberRoot(via) | Origin::Member { via, .. } => Some(*via),
        }
    }

    /// Where it comes from, for the log.
    fn kind(&self) -> &'static str {
        match self {
            Origin::Network(_) => "network",
            Origin::ControlSocket => "control socket",
            Origin::MemberRoot(_) => "root of a member",
            Origin::Member { .. } => "member",
        }
    }
}

impl App {
    /// The API of a node whose control plane is not up yet. It answers health and readiness, and
    /// everything else with 503.
    pub fn new(readiness: Arc<Readiness>, metrics: HttpMetrics) -> Arc<Self> {
        Arc::new(Self {
            node: ArcSwapOption::empty(),
            counters: ArcSwap::default(),
            dataplane: ArcSwapOption::empty(),
            rates: Semaphore::new(1),
            explanations: Semaphore::new(2),
            readiness,
            metrics,
            logins: Mutex::default(),
            signatures: Signatures::default(),
            policies: Semaphore::new(POLICIES_AT_ONCE),
            minted: Arc::default(),
            archives: Semaphore::new(ARCHIVES_AT_ONCE),
            support: OnceLock::new(),
            registry: OnceLock::new(),
            names: OnceLock::new(),
            backups: ArcSwap::default(),
            rejoin: ArcSwapOption::empty(),
            links: ArcSwapOption::empty(),
            acquired: ArcSwap::default(),
            leader_seen: Mutex::default(),
        })
    }

    /// Sets the control plane, or takes it away while it restarts.
    pub fn set_node(&self, node: Option<Node>) {
        self.node.store(node.map(Arc::new));
    }

    /// Sets whose counters the dataplane's figures are.
    pub fn set_counters(&self, counters: Vec<Arc<WorkerCounters>>) {
        self.counters.store(Arc::new(counters));
    }

    /// Sets whose flows are looked at; the counters are theirs, too.
    pub fn set_dataplane(&self, dataplane: &Arc<Dataplane>) {
        self.set_counters(dataplane.counters());
        self.dataplane.store(Some(Arc::clone(dataplane)));
    }

    /// What was counted in the flow tables last, while there are any.
    pub(crate) fn surveyed(&self) -> Option<Arc<Shown>> {
        Some(self.dataplane.load_full()?.shown())
    }

    /// The packet workers, while there are any.
    pub(crate) fn running_dataplane(&self) -> Option<Arc<Dataplane>> {
        self.dataplane.load_full()
    }

    fn rates(&self) -> &Semaphore {
        &self.rates
    }

    fn explanations(&self) -> &Semaphore {
        &self.explanations
    }

    /// Sets what is known of scheduled backups.
    pub fn set_backups(&self, backups: Arc<Backups>) {
        self.backups.store(backups);
    }

    /// What is known of scheduled backups.
    pub fn backups(&self) -> Arc<Backups> {
        self.backups.load_full()
    }

    /// Sets who counts what goes on between members.
    pub fn set_links(&self, links: Links) {
        self.links.store(Some(Arc::new(links)));
    }

    /// Who counts what goes on between members, once there was a control plane.
    pub(crate) fn links(&self) -> Option<Arc<Links>> {
        self.links.load_full()
    }

    /// Sets what addresses the data ports have got by themselves.
    pub fn set_acquired(&self, acquired: Acquired) {
        self.acquired.store(Arc::new(acquired));
    }

    /// What addresses the data ports have got by themselves.
    pub(crate) fn acquired(&self) -> Arc<Acquired> {
        self.acquired.load_full()
    }

    /// Sets who is asked to join anew.
    pub fn set_rejoin(&self, asking: mpsc::Sender<Rejoin>) {
        self.rejoin.store(Some(Arc::new(asking)));
    }

    fn rejoin(&self) -> Answer<Arc<mpsc::Sender<Rejoin>>> {
        self.rejoin.load_full().ok_or_else(|| {
            Refused::unavailable(Reason::NotReady, "this node has not come that far yet")
        })
    }

    /// The checks behind `/ready`.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Sets what support archives say of this node besides what it replicates. To be called once.
    pub fn set_support(&self, config: Arc<Config>, log: RecentLog) {
        // A second call would come from a second start in one process, of which there is none.
        let _ = self.support.set((config, log));
    }

    /// What this node's support archive is made from.
    pub(crate) fn source(self: &Arc<Self>) -> Source {
        let support = self.support.get();
        Source {
            app: Some(Arc::clone(self)),
            config: support.map(|(config, _)| Arc::clone(config)),
            log: support.map(|(_, log)| log.clone()),
        }
    }

    /// Turns at making a support archive.
    pub(crate) fn archives(&self) -> &Semaphore {
        &self.archives
    }

    /// What the DNS proxy counts; without one the statistics say 0.
    pub(crate) fn set_names(&self, metrics: proxy::dns::Metrics) {
        let _ = self.names.set(metrics);
    }

    /// Sets where metrics are read. The listener owns them.
    pub(crate) fn set_registry(&self, registry: Weak<Registry>) {
        let _ = self.registry.set(registry);
    }

    /// What `GET /metrics` answers, while there is a metrics listener.
    pub(crate) fn scrape(&self) -> Option<String> {
        let registry = self.registry.get()?.upgrade()?;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).ok()?;
        Some(text)
    }

    /// The control plane, while there is one.
    pub(crate) fn member(&self) -> Option<Arc<Node>> {
        self.node.load_full()
    }

    /// The tokens minted here that the change log does not name yet.
    pub fn minted(&self) -> &Arc<Minted> {
        &self.minted
    }

    /// The counters of every packet worker.
    pub(crate) fn counters(&self) -> Arc<Vec<Arc<WorkerCounters>>> {
        self.counters.load_full()
    }

    /// The control plane's status and newest policy revision, while there is one.
    pub(crate) fn control_view(&self) -> Option<View> {
        let node = self.node().ok()?;
        let status = node.status();
        self.note_leader(&status.role);
        let state = node.state();
        Some(View {
            status,
            newest: state.policy().map(|policy| PolicyMark::of(&state, policy)),
        })
    }

    /// Keeps in mind that there is a leader, if there is one.
    fn note_leader(&self, role: &Role) {
        if !matches!(role, Role::NoLeader { .. }) {
            let mut seen = self
                .leader_seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *seen = Some(Instant::now());
        }
    }

    fn had_leader_within(&self, limit: Duration) -> bool {
        let seen = *self
            .leader_seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|at| at.elapsed() < limit)
    }

    /// Hands leadership over if this node has it, and goes on serving requests by forwarding them.
    pub(crate) async fn hand_over(&self) {
        let Ok(node) = self.node() else { return };
        if !matches!(node.role(), Role::Leader { .. }) {
            return;
        }
        match node.transfer_leader(None).await {
            Ok(leader) => tracing::info!(%leader, "leadership is handed over"),
            Err(error) => tracing::info!(%error, "leadership is not handed over"),
        }
    }

    fn node(&self) -> Answer<Arc<Node>> {
        self.node.load_full().ok_or_else(|| {
            let text = "this node's control plane is not running; GET /ready tells why";
            Refused::unavailable(Reason::NotReady, text)
        })
    }

    /// The router of every listener: HTTPS, control socket, forwarded requests. The listener must
    /// add an [`Origin`] to each request.
    pub fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new();
        for row in route::ROUTES {
            let gate = from_fn_with_state((Arc::clone(self), row), gate::pass);
            router = router.route(row.path, (row.handler)().route_layer(gate));
        }
        router
            .fallback(|| async {
                Refused::new(StatusCode::NOT_FOUND, "there is nothing at this path")
            })
            .method_not_allowed_fallback(|| async {
                Refused::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this path does not take this method",
                )
            })
            .layer(from_fn_with_state(Arc::clone(self), edge::pass))
            // The gate has its own limits, which differ by route.
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(self))
    }

    /// What answers requests that other members forward to this node; the first argument is the
    /// member that forwards.
    pub fn forward_handler(self: &Arc<Self>) -> HttpHandler {
        let router = self.router();
        Arc::new(move |via, request| {
            let client = Some(request.client_addr.clone()).filter(|client| !client.is_empty());
            let origin = Origin::Member { via, client };
            Box::pin(request::answer(router.clone(), origin, request))
        })
    }

    /// What answers requests of other members' root, who have no token; the first argument is the
    /// member whose certificate they show.
    pub fn admin_handler(self: &Arc<Self>) -> HttpHandler {
        let router = self.router();
        Arc::new(move |via, request| {
            let origin = Origin::MemberRoot(via);
            Box::pin(request::answer(router.clone(), origin, request))
        })
    }
}

/// Seconds since 1970; 0 on a clock before that.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Milliseconds since 1970; 0 on a clock before that.
fn wall_clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| {
            u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
        })
}

/// RFC 3339 of milliseconds since 1970.
pub(crate) fn rfc3339(ms: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_default()
}
