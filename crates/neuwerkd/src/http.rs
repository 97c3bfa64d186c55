//! The management API: routes, who may use them, which node answers.
//!
//! A request passes [`edge`] (request id, headers, metrics), then its row in [`route::ROUTES`],
//! then [`gate`] (body limit, credential, leader) and reaches its handler with a verified
//! [`Identity`](crate::auth::Identity) and a whole body. The control socket and requests that
//! other members forward take the same way; only what they bring along differs ([`Origin`]).

pub mod account;
pub mod ca;
pub mod certificate;
mod change;
pub mod control;
mod edge;
pub mod error;
mod gate;
pub mod health;
pub mod joining;
pub mod listen;
pub mod members;
pub mod openapi;
pub mod policy;
mod request;
pub mod route;
pub mod session;
pub mod stats;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use cluster::node::HttpHandler;
use cluster::{Node, NodeId};
use engine::WorkerCounters;
use http::StatusCode;
use tokio::sync::Semaphore;

use crate::auth::limiter::Limiter;
use crate::metrics::HttpMetrics;
use crate::readiness::{Readiness, View};
use api::error::Reason;
use error::{Answer, Refused};

/// Policies that are parsed and compiled at once; the others wait.
const POLICIES_AT_ONCE: usize = 2;

/// What the handlers work on.
pub struct App {
    node: ArcSwapOption<Node>,
    counters: ArcSwap<Vec<Arc<WorkerCounters>>>,
    readiness: Arc<Readiness>,
    metrics: HttpMetrics,
    logins: Mutex<Limiter>,
    policies: Semaphore,
}

/// Where a request comes from. The shell that accepted it says so; no header does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The HTTPS listener.
    Network(SocketAddr),
    /// The control socket.
    ControlSocket,
    /// Another member, which took it from `client`.
    Member {
        /// The member that forwards.
        via: NodeId,
        /// Who sent it there.
        client: Option<String>,
    },
}

impl App {
    /// The API of a node whose control plane is not up yet. It answers health and readiness, and
    /// everything else with 503.
    pub fn new(readiness: Arc<Readiness>, metrics: HttpMetrics) -> Arc<Self> {
        Arc::new(Self {
            node: ArcSwapOption::empty(),
            counters: ArcSwap::default(),
            readiness,
            metrics,
            logins: Mutex::default(),
            policies: Semaphore::new(POLICIES_AT_ONCE),
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

    /// The checks behind `/ready`.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// The counters of every packet worker.
    pub(crate) fn counters(&self) -> Arc<Vec<Arc<WorkerCounters>>> {
        self.counters.load_full()
    }

    /// The control plane's status and newest policy revision, while there is one.
    pub(crate) fn control_view(&self) -> Option<View> {
        let node = self.node().ok()?;
        Some(View {
            status: node.status(),
            newest_revision: node.state().policy().map(|policy| policy.revision),
        })
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
        Arc::new(move |via, request| Box::pin(request::answer(router.clone(), via, request)))
    }
}

/// Seconds since 1970; 0 on a clock before that.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// RFC 3339 of milliseconds since 1970.
fn rfc3339(ms: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_default()
}
