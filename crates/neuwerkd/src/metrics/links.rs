//! What goes on between members, and between them and joiners, as metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::join::listener::JoinCounters;
use cluster::tls::{Alerts, Trust};
use cluster::transport::tally::{BOUNDS_S, Requests, Tally};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::http::App;

/// Who counts, in this life of the control plane.
pub struct Links {
    /// Handshakes.
    pub trust: Arc<Trust>,
    /// Requests to peers.
    pub tally: Arc<Tally>,
    /// Joiners; none on a node that stands alone.
    pub join: Option<Arc<JoinCounters>>,
}

/// Reads what `app` has now.
pub(super) struct LinksCollector {
    app: Arc<App>,
}

impl LinksCollector {
    /// Registers it.
    pub(super) fn register(registry: &mut Registry, app: Arc<App>) {
        registry.register_collector(Box::new(Self { app }));
    }
}

impl std::fmt::Debug for LinksCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinksCollector")
    }
}

/// A count of one kind.
type Count<T> = fn(&T) -> &AtomicU64;

#[rustfmt::skip] // A table reads better in columns.
const ALERTS: &[(&str, &str, Count<Alerts>)] = &[
    ("neuwerk_cluster_handshakes_denied",   "Handshakes between members that were refused, both ways",                |a| &a.denied),
    ("neuwerk_cluster_certificates_out_of_date", "Handshakes with a member whose certificate has expired, is not valid yet, or is of a CA that is no longer trusted", |a| &a.out_of_date),
    ("neuwerk_cluster_identity_duplicates", "Handshakes with a machine that shows this node's own identity: a copy of it", |a| &a.duplicate_identity),
    ("neuwerk_cluster_misdirected",         "Handshakes at an address where another node, cluster or lineage answered", |a| &a.misdirected),
    ("neuwerk_cluster_other_lineage",       "Handshakes with a member that goes on under another lineage: the cluster was recovered without this node", |a| &a.other_lineage),
];

const JOINS: (&str, &str) = (
    "neuwerk_join_attempts",
    "Connections to the join listener, by outcome: granted, refused (proved its secret and was turned away), failed (proved none), throttled (turned away unheard)",
);

const JOIN_OUTCOMES: [(&str, Count<JoinCounters>); 4] = [
    ("granted", |join| &join.granted),
    ("refused", |join| &join.refused),
    ("failed", |join| &join.failed),
    ("throttled", |join| &join.throttled),
];

const RTT: (&str, &str) = (
    "raft_peer_rtt_seconds",
    "Time from a request to a member to its answer, by member and kind; heartbeats are of kind append",
);

const ERRORS: (&str, &str) = (
    "raft_peer_errors",
    "Requests to a member that came to nothing, by member, kind of request and of failure",
);

/// Name, labels and help of every counter.
pub(super) fn counters() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let alerts = ALERTS.iter().map(|(name, help, _)| (*name, "", *help));
    alerts.chain([
        (JOINS.0, "outcome", JOINS.1),
        (ERRORS.0, "peer_id, rpc, kind", ERRORS.1),
    ])
}

/// Name, labels and help of every histogram.
pub(super) fn histograms() -> [(&'static str, &'static str, &'static str); 1] {
    [(RTT.0, "peer_id, rpc", RTT.1)]
}

impl Collector for LinksCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(links) = self.app.links() else {
            return Ok(());
        };
        for (name, help, read) in ALERTS {
            let metric = ConstCounter::new(read(links.trust.alerts()).load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        if let Some(join) = &links.join {
            let mut family =
                encoder.encode_descriptor(JOINS.0, JOINS.1, None, MetricType::Counter)?;
            for (outcome, read) in JOIN_OUTCOMES {
                let value = read(join).load(Ordering::Relaxed);
                let labels = [("outcome", outcome)];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        peers(&mut encoder, &links.tally)
    }
}

fn peers(encoder: &mut DescriptorEncoder, tally: &Tally) -> Result<(), std::fmt::Error> {
    let counted = tally.read();
    if counted.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(RTT.0, RTT.1, None, MetricType::Histogram)?;
    for ((peer, kind), requests) in &counted {
        let peer = peer.to_string();
        let labels = [("peer_id", peer.as_str()), ("rpc", kind)];
        let mut of = family.encode_family(&labels)?;
        let (buckets, count) = buckets(requests);
        of.encode_histogram::<NoLabelSet>(requests.took.as_secs_f64(), count, &buckets, None)?;
    }
    let mut family = encoder.encode_descriptor(ERRORS.0, ERRORS.1, None, MetricType::Counter)?;
    for ((peer, kind), requests) in &counted {
        let peer = peer.to_string();
        for (failure, count) in &requests.failed {
            let labels = [("peer_id", peer.as_str()), ("rpc", kind), ("kind", failure)];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Each bucket's upper bound and content, the encoder's way, and the sum of the contents.
fn buckets(requests: &Requests) -> (Vec<(f64, u64)>, u64) {
    let bounds = BOUNDS_S.into_iter().chain([f64::INFINITY]);
    let count = requests.answered.iter().sum();
    (bounds.zip(requests.answered).collect(), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_in_one_bucket_and_the_last_has_no_bound() {
        let mut requests = Requests::default();
        requests.answered[0] = 3;
        requests.answered[BOUNDS_S.len()] = 2;
        let (buckets, count) = buckets(&requests);
        assert_eq!((buckets.len(), count), (BOUNDS_S.len() + 1, 5));
        assert_eq!(buckets[0], (0.000_5, 3));
        assert_eq!(buckets[BOUNDS_S.len()], (f64::INFINITY, 2));
    }
}
