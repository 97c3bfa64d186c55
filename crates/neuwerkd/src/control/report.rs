//! What this node tells the leader about itself, whenever it changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::replay::Progress;
use cluster::{Node, NodeReport, PolicyMark, TrustReport};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::enforce::is_another_policy;
use crate::drain::Drain;
use crate::http;

/// How often readiness is looked at; everything else is reported when it changes.
const REFRESH: Duration = Duration::from_millis(500);

/// Where the parts of a report come from.
pub(super) struct Reporter {
    pub(super) node: Node,
    pub(super) http: Arc<http::App>,
    pub(super) http_address: watch::Receiver<Option<SocketAddr>>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) trusts: watch::Receiver<TrustReport>,
    pub(super) drain: Arc<Drain>,
    /// What does not change while the control plane lives.
    pub(super) fixed: NodeReport,
}

/// Reports until `life` ends.
pub(super) async fn run(mut reporter: Reporter, life: CancellationToken) {
    // Of the state little else than the policy is in a report, and it is the rarest of changes.
    let mut state = reporter.node.watch_changes(is_another_policy);
    loop {
        state.mark_unchanged();
        let report = reporter.compose();
        reporter.node.report(report);
        tokio::select! {
            () = life.cancelled() => return,
            Ok(()) = reporter.progress.changed() => {}
            Ok(()) = reporter.http_address.changed() => {}
            Ok(()) = reporter.trusts.changed() => {}
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REFRESH) => {}
        }
    }
}

impl Reporter {
    fn compose(&mut self) -> NodeReport {
        let progress = self.progress.borrow_and_update().clone();
        let state = self.node.state();
        let applied = state.policy().map(|policy| PolicyMark::of(&state, policy));
        let enforced = PolicyMark::from(progress.enforced);
        self.http
            .readiness()
            .set_enforced(enforced, progress.failure.clone());
        let view = self.http.control_view();
        let ready = self.http.readiness().ready(view.as_ref());
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let address = *self.http_address.borrow_and_update();
        NodeReport {
            http_address: address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            applied: applied.unwrap_or_default(),
            compiled: progress.compiled.into(),
            enforced,
            compile_error: progress.failure,
            ready: ready.ready,
            ready_traffic: self.http.readiness().ready_traffic().ready,
            failing_checks: ready.failing().map(|check| check.name.clone()).collect(),
            certificate_expires_ms: self
                .node
                .state()
                .member(self.node.node_id())
                .and_then(|own| {
                    own.certificate
                        .as_ref()
                        .map(|certificate| certificate.not_after_ms)
                }),
            trust: self.trusts.borrow_and_update().clone(),
            drained: self.drain.is_drained(),
            wall_clock_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
            ..self.fixed.clone()
        }
    }
}
