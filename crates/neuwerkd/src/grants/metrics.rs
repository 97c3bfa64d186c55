//! Grants as metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Grants, lock};

/// Name without `_total`, kind, labels, help.
type Family = (&'static str, &'static str, &'static str, &'static str);

const GRANTS: Family = (
    "neuwerk_dns_grants",
    "gauge",
    "state",
    "Addresses of names that are granted: used (by live flows of this node), idle, inert (the policy in force has no rule for the name)",
);
const WITHOUT_ROOM: Family = (
    "neuwerk_dns_grants_without_room",
    "counter",
    "outcome",
    "Grants that there was no room for: evicted (ended before their time, for others), refused",
);
const LATE: Family = (
    "neuwerk_dns_late_answers",
    "counter",
    "",
    "Answers that left before every peer that is waited for had taken their addresses in",
);
const MISSES: Family = (
    "neuwerk_dns_program_misses",
    "counter",
    "peer_id",
    "Answers that did not wait for a peer any longer",
);
const BEHIND: Family = (
    "neuwerk_dns_grants_behind",
    "gauge",
    "peer_id",
    "Whether this node lacks what a peer has granted, 1 or 0",
);

/// All of them, as they are listed.
pub(crate) const FAMILIES: [Family; 5] = [GRANTS, WITHOUT_ROOM, LATE, MISSES, BEHIND];

/// Reads them when they are asked for.
struct GrantsCollector(Arc<Grants>);

impl std::fmt::Debug for GrantsCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrantsCollector")
    }
}

impl Grants {
    /// Has them read from now on.
    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(GrantsCollector(Arc::clone(self))));
    }
}

impl Collector for GrantsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let peers: Vec<_> = lock(&self.0.peers)
            .iter()
            .map(|(id, peer)| (*id, peer.misses))
            .collect();
        let (tally, behind) = self.0.read(|store, _now_ms| {
            let behind = peers
                .iter()
                .map(|(id, _)| (*id, u64::from(store.is_behind(*id))));
            (store.tally(), behind.collect::<Vec<_>>())
        });
        let states = [
            ("used", tally.used),
            ("idle", tally.idle),
            ("inert", tally.inert),
        ];
        let states = states.map(|(state, count)| ("state", state.to_owned(), count as u64));
        family(&mut encoder, GRANTS, &states)?;
        let outcomes = [("evicted", tally.evicted), ("refused", tally.refused)];
        let outcomes = outcomes.map(|(outcome, count)| ("outcome", outcome.to_owned(), count));
        family(&mut encoder, WITHOUT_ROOM, &outcomes)?;
        let late = self.0.late_answers.load(Ordering::Relaxed);
        let (name, _, _, help) = LATE;
        ConstCounter::new(late).encode(encoder.encode_descriptor(
            name,
            help,
            None,
            MetricType::Counter,
        )?)?;
        let of_peer =
            |(id, figure): &(u64, u64)| ("peer_id", cluster::NodeId(*id).to_string(), *figure);
        let misses: Vec<Value> = peers.iter().map(of_peer).collect();
        let behind: Vec<Value> = behind.iter().map(of_peer).collect();
        // Without peers there is nothing to say of them.
        if peers.is_empty() {
            return Ok(());
        }
        family(&mut encoder, MISSES, &misses)?;
        family(&mut encoder, BEHIND, &behind)
    }
}

/// A label with its value, and the figure.
type Value = (&'static str, String, u64);

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    (name, kind, _, help): Family,
    values: &[Value],
) -> Result<(), std::fmt::Error> {
    let is_gauge = kind == "gauge";
    let kind = match is_gauge {
        true => MetricType::Gauge,
        false => MetricType::Counter,
    };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (label, value, figure) in values {
        let labels = [(*label, value.as_str())];
        let encoder = family.encode_family(&labels)?;
        match is_gauge {
            true => ConstGauge::new(*figure).encode(encoder)?,
            false => ConstCounter::new(*figure).encode(encoder)?,
        }
    }
    Ok(())
}
