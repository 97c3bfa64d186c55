//! What the proxy counts. Groups are labels; clients and names are not.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ::dns::Cache;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::service::lock;

/// Name as it is scraped, kind, labels, help.
pub const FAMILIES: [(&str, &str, &str, &str); 17] = [
    (
        "dns_queries_total",
        "counter",
        "result, reason, source_group",
        "Queries by what became of them",
    ),
    (
        "dns_upstream_rtt_seconds",
        "histogram",
        "source_group",
        "Time that upstreams took to answer",
    ),
    (
        "dns_nxdomain_total",
        "counter",
        "source",
        "Answers that a name does not exist, by who says so: policy or upstream",
    ),
    (
        "dns_upstream_mismatch_total",
        "counter",
        "reason, source_group",
        "Answers of upstreams that were not taken, by reason",
    ),
    (
        "neuwerk_dns_cache_hits_total",
        "counter",
        "state",
        "Answers from the cache, by whether they had expired",
    ),
    (
        "neuwerk_dns_cache_entries",
        "gauge",
        "",
        "Answers in the cache",
    ),
    (
        "neuwerk_dns_cache_bytes",
        "gauge",
        "",
        "Memory of the answers in the cache",
    ),
    (
        "neuwerk_dns_filtered_addresses_total",
        "counter",
        "reason",
        "Addresses that were left out of answers, by reason",
    ),
    (
        "neuwerk_dns_waiting_queries",
        "gauge",
        "",
        "Queries that wait for an upstream",
    ),
    (
        "neuwerk_dns_unsent_answers_total",
        "counter",
        "reason",
        "Answers over UDP that could not be sent: blocked, for want of room in the socket for 20 ms, or error",
    ),
    (
        "neuwerk_dns_refused_connections_total",
        "counter",
        "",
        "Connections of clients that were closed at once, since too many are open",
    ),
    (
        "neuwerk_dns_wait_seconds",
        "histogram",
        "stage",
        "How long queries that waited did so: upstream (for an answer, however many resolvers were asked), peers (until they had taken in what is granted)",
    ),
    (
        "neuwerk_dns_work_seconds",
        "histogram",
        "stage",
        "How long the proxy itself worked: cache (from a query to its answer from the cache, for one in 64), grant (on granting what an answer tells)",
    ),
    (
        "neuwerk_dns_upstream_questions_total",
        "counter",
        "upstream",
        "Questions to a resolver",
    ),
    (
        "neuwerk_dns_upstream_failures_total",
        "counter",
        "upstream, reason",
        "Questions to a resolver that brought no answer that counts: timeout, slow (another one had answered before), unreachable, local (there was no socket), question, case, malformed, chain, rcode",
    ),
    (
        "neuwerk_dns_upstream_suspect",
        "gauge",
        "upstream",
        "1 while a resolver is asked after the others only, for it failed three times in a row",
    ),
    (
        "neuwerk_dns_upstream_seconds",
        "histogram",
        "upstream",
        "Time that a resolver took to answer, over TCP and TLS with the opening of the connection",
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
    reason: &'static str,
    source_group: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Group {
    source_group: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mismatch {
    reason: &'static str,
    source_group: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upstream {
    upstream: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    upstream: Arc<str>,
    reason: &'static str,
}

/// Those of one upstream.
#[derive(Debug, Clone)]
pub(super) struct OfUpstream {
    label: Arc<str>,
    pub(super) questions: Counter,
    pub(super) suspect: Gauge,
    pub(super) rtt: Histogram,
}

/// Queries since the proxy started, over all groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Allowed.
    pub allowed: u64,
    /// Denied.
    pub denied: u64,
    /// Answered by policy that the name does not exist.
    pub nxdomain_policy: u64,
    /// Answered so by upstreams.
    pub nxdomain_upstream: u64,
}

/// The proxy's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    queries: Family<Outcome, Counter>,
    allowed: Arc<AtomicU64>,
    denied: Arc<AtomicU64>,
    rtt: Family<Group, Histogram, fn() -> Histogram>,
    nxdomain: Family<Source, Counter>,
    mismatch: Family<Mismatch, Counter>,
    hits: Family<State, Counter>,
    filtered: Family<Reason, Counter>,
    unsent: Family<Reason, Counter>,
    pub(super) refused_connections: Counter<u64, AtomicU64>,
    pub(super) waiting: Gauge<i64, std::sync::atomic::AtomicI64>,
    pub(super) hits_fresh: Counter<u64, AtomicU64>,
    pub(super) hits_stale: Counter<u64, AtomicU64>,
    pub(super) waited_upstream: Histogram,
    pub(super) waited_peers: Histogram,
    waited: Family<Stage, Histogram, fn() -> Histogram>,
    pub(super) worked_cache: Histogram,
    pub(super) worked_grant: Histogram,
    /// In the order in which they are configured.
    pub(super) upstreams: Vec<OfUpstream>,
    upstream_failures: Family<Failure, Counter>,
}

/// From what a resolver in the next rack takes to what the slowest may take, in seconds.
const BUCKETS_S: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// What the proxy takes for its own work: from a few microseconds on, in seconds.
const WORK_BUCKETS_S: [f64; 10] = [
    0.000_001, 0.000_002, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.01,
];

/// The parts of the cache.
pub(super) type Caches = Arc<[Mutex<Cache>]>;

/// The sum of something over the cache, as it is when it is asked for.
#[derive(Debug)]
struct Kept(Caches, fn(&Cache) -> usize);

impl EncodeMetric for Kept {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sum: usize = self.0.iter().map(|cache| (self.1)(&lock(cache))).sum();
        ConstGauge::new(i64::try_from(sum).unwrap_or(i64::MAX)).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl Metrics {
    /// Registers all of [`FAMILIES`], for these upstreams and parts of the cache.
    pub(super) fn register(
        registry: &mut Registry,
        upstreams: &[super::Upstream],
        caches: &Caches,
    ) -> Self {
        let hits = Family::<State, Counter>::default();
        let state = |state| hits.get_or_create(&State { state }).clone();
        let (hits_fresh, hits_stale) = (state("fresh"), state("stale"));
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS_S);
        let waited = Family::<Stage, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let stage = |stage| waited.get_or_create(&Stage { stage }).clone();
        let (waited_upstream, waited_peers) = (stage("upstream"), stage("peers"));
        let work: fn() -> Histogram = || Histogram::new(WORK_BUCKETS_S);
        let worked = Family::<Stage, Histogram, fn() -> Histogram>::new_with_constructor(work);
        let [worked_cache, worked_grant] =
            ["cache", "grant"].map(|stage| worked.get_or_create_owned(&Stage { stage }));
        let questions = Family::<Upstream, Counter>::default();
        let suspect = Family::<Upstream, Gauge>::default();
        let upstream_rtt =
            Family::<Upstream, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let of_upstream = |upstream: &super::Upstream| {
            let label: Arc<str> = upstream.address.to_string().into();
            let labels = Upstream {
                upstream: Arc::clone(&label),
            };
            OfUpstream {
                label,
                questions: questions.get_or_create_owned(&labels),
                suspect: suspect.get_or_create_owned(&labels),
                rtt: upstream_rtt.get_or_create_owned(&labels),
            }
        };
        let metrics = Self {
            upstreams: upstreams.iter().map(of_upstream).collect(),
            upstream_failures: Family::default(),
            queries: Family::default(),
            allowed: Arc::default(),
            denied: Arc::default(),
            rtt: Family::new_with_constructor(histogram),
            nxdomain: Family::default(),
            mismatch: Family::default(),
            hits,
            filtered: Family::default(),
            unsent: Family::default(),
            refused_connections: Counter::default(),
            waiting: Gauge::default(),
            hits_fresh,
            hits_stale,
            waited_upstream,
            waited_peers,
            waited,
            worked_cache,
            worked_grant,
        };
        let [
            queries,
            rtt,
            nxdomain,
            mismatch,
            hits,
            entries,
            bytes,
            filtered,
            waiting,
            unsent,
            refused_connections,
            waited,
            work,
            upstream_questions,
            upstream_failures,
            upstream_suspect,
            upstream_seconds,
        ] = FAMILIES;
        register(registry, queries, metrics.queries.clone());
        register(registry, rtt, metrics.rtt.clone());
        register(registry, nxdomain, metrics.nxdomain.clone());
        register(registry, mismatch, metrics.mismatch.clone());
        register(registry, hits, metrics.hits.clone());
        register(registry, entries, Kept(Arc::clone(caches), Cache::len));
        register(registry, bytes, Kept(Arc::clone(caches), Cache::used_bytes));
        register(registry, filtered, metrics.filtered.clone());
        register(registry, waiting, metrics.waiting.clone());
        register(registry, unsent, metrics.unsent.clone());
        let refused = metrics.refused_connections.clone();
        register(registry, refused_connections, refused);
        register(registry, waited, metrics.waited.clone());
        register(registry, work, worked);
        register(registry, upstream_questions, questions);
        let failures = metrics.upstream_failures.clone();
        register(registry, upstream_failures, failures);
        register(registry, upstream_suspect, suspect);
        register(registry, upstream_seconds, upstream_rtt);
        metrics
    }

    /// The sums that the statistics have.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let nxdomain = |source| self.nxdomain.get_or_create(&Source { source }).get();
        Totals {
            allowed: self.allowed.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            nxdomain_policy: nxdomain("policy"),
            nxdomain_upstream: nxdomain("upstream"),
        }
    }

    pub(super) fn query(&self, result: &'static str, reason: &'static str, group: &Arc<str>) {
        let total = match result {
            "allow" => Some(&self.allowed),
            "deny" => Some(&self.denied),
            _ => None,
        };
        if let Some(total) = total {
            total.fetch_add(1, Ordering::Relaxed);
        }
        let outcome = Outcome {
            result,
            reason,
            source_group: Arc::clone(group),
        };
        self.queries.get_or_create(&outcome).inc();
    }

    pub(super) fn rtt(&self, group: &Arc<str>, seconds: f64) {
        let group = Group {
            source_group: Arc::clone(group),
        };
        self.rtt.get_or_create(&group).observe(seconds);
    }

    pub(super) fn nxdomain(&self, source: &'static str) {
        self.nxdomain.get_or_create(&Source { source }).inc();
    }

    pub(super) fn mismatch(&self, reason: &'static str, group: &Arc<str>) {
        let mismatch = Mismatch {
            reason,
            source_group: Arc::clone(group),
        };
        self.mismatch.get_or_create(&mismatch).inc();
    }

    pub(super) fn upstream_failed(&self, upstream: usize, reason: &'static str) {
        let failure = Failure {
            upstream: Arc::clone(&self.upstreams[upstream].label),
            reason,
        };
        self.upstream_failures.get_or_create(&failure).inc();
    }

    pub(super) fn unsent(&self, kind: ErrorKind) {
        let reason = match kind {
            ErrorKind::WouldBlock => "blocked",
            _ => "error",
        };
        self.unsent.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn filtered(&self, reason: &'static str) {
        self.filtered.get_or_create(&Reason { reason }).inc();
    }
}

/// The encoder adds the ending of counters itself.
fn register(
    registry: &mut Registry,
    (name, _, _, help): (&str, &str, &str, &str),
    metric: impl Metric,
) {
    registry.register(name.trim_end_matches("_total"), help, metric);
}
