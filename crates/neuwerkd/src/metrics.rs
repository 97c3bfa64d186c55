//! Metrics: what is counted, and how it is read.
//!
//! Each component owns its metrics and registers them, with their descriptions, on a [`Registry`];
//! this file has those of the management API, the encoder, and nothing that knows them all. Label
//! values come from fixed sets: no address, no name, no id of a client.

mod addresses;
mod consensus;
mod dataplane;
mod dpdk;
pub(crate) mod flows;
pub(crate) mod handover;
mod links;
mod reference;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::App;
use crate::http::listen::{Limits, serve_plain};
use addresses::AddressCollector;
use consensus::ConsensusCollector;
use dataplane::DataplaneCollector;
use dpdk::DpdkCollector;
use flows::FlowsCollector;
pub use links::Links;
use links::LinksCollector;
pub use reference::reference;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From what a local read takes to what waiting for every member may take, in seconds.
const BUCKETS_S: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of this node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    http: HttpMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let http = HttpMetrics::register(&mut registry);
        Self { registry, http }
    }
}

impl Metrics {
    /// Those of the management API.
    pub fn http(&self) -> HttpMetrics {
        self.http.clone()
    }

    /// Where further components register theirs.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// `GET /metrics`, and nothing else. What `app` knows of consensus and dataplane is read at
    /// every scrape.
    fn router(mut self, app: &Arc<App>) -> Router {
        ConsensusCollector::register(&mut self.registry, Arc::clone(app));
        DataplaneCollector::register(&mut self.registry, Arc::clone(app));
        FlowsCollector::register(&mut self.registry, Arc::clone(app));
        DpdkCollector::register(&mut self.registry, Arc::clone(app));
        AddressCollector::register(&mut self.registry, Arc::clone(app));
        LinksCollector::register(&mut self.registry, Arc::clone(app));
        let registry = Arc::new(self.registry);
        app.set_registry(Arc::downgrade(&registry));
        Router::new()
            .route(api::paths::METRICS, get(scrape))
            .with_state(registry)
    }
}

/// Serves the metrics, without TLS and login, until `drain` is cancelled.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    app: Arc<App>,
    drain: CancellationToken,
) {
    let router = metrics.router(&app);
    serve_plain(listener, router, Limits::default(), drain).await;
}

async fn scrape(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    (
        [(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS))],
        text,
    )
        .into_response()
}

/// Metrics of the management API: name, kind, labels, help.
const HTTP: [(&str, &str, &str, &str); 3] = [
    (
        "http_requests_total",
        "counter",
        "path, method, status",
        "Requests to the management API, by route",
    ),
    (
        "http_request_duration_seconds",
        "histogram",
        "path, method, status",
        "Time from a request's headers to its answer, by route",
    ),
    (
        "http_auth_total",
        "counter",
        "outcome, reason",
        "Credentials presented to the management API, by outcome",
    ),
];

/// Metrics of the management API.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram>,
    auth: Family<AuthLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// The route's pattern, or `other`.
    path: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthLabels {
    outcome: &'static str,
    reason: &'static str,
}

impl HttpMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS_S)),
            auth: Family::default(),
        };
        let name = |shown: &'static str| shown.trim_end_matches("_total");
        let [requests, durations, auth] = HTTP;
        registry.register(name(requests.0), requests.3, metrics.requests.clone());
        registry.register(name(durations.0), durations.3, metrics.durations.clone());
        registry.register(name(auth.0), auth.3, metrics.auth.clone());
        metrics
    }

    /// A request was answered. `path` is a route's pattern or `other`.
    pub(crate) fn request(
        &self,
        path: &str,
        method: &Method,
        status: StatusCode,
        elapsed: Duration,
    ) {
        let labels = RequestLabels {
            path: path.to_owned(),
            method: method_label(method),
            status: status.as_u16(),
        };
        self.durations
            .get_or_create(&labels)
            .observe(elapsed.as_secs_f64());
        self.requests.get_or_create(&labels).inc();
    }

    /// A credential was looked at.
    pub(crate) fn auth(&self, accepted: bool, reason: &'static str) {
        let outcome = if accepted { "success" } else { "failure" };
        self.auth
            .get_or_create(&AuthLabels { outcome, reason })
            .inc();
    }
}

/// Methods come from clients: what no route takes is one label.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn the_published_families_and_labels() {
        let mut registry = Registry::default();
        let metrics = HttpMetrics::register(&mut registry);
        metrics.request(
            "/health",
            &Method::GET,
            StatusCode::OK,
            Duration::from_millis(3),
        );
        metrics.auth(false, "expired");
        let text = text(&registry);
        for line in [
            r#"http_requests_total{path="/health",method="GET",status="200"} 1"#,
            r#"http_request_duration_seconds_bucket{le="0.005",path="/health",method="GET",status="200"} 1"#,
            r#"http_auth_total{outcome="failure",reason="expired"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn invented_methods_are_one_label() {
        let mut registry = Registry::default();
        let metrics = HttpMetrics::register(&mut registry);
        for name in ["BREW", "PROPFIND"] {
            let method = Method::from_bytes(name.as_bytes()).unwrap();
            metrics.request("other", &method, StatusCode::NOT_FOUND, Duration::ZERO);
        }
        assert!(text(&registry).contains(r#"method="other",status="404"} 2"#));
    }
}
