//! Addresses that data ports get by themselves, and the health probes to them, as metrics.

use std::sync::Arc;

use engine::WorkerCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::dataplane::Acquired;
use crate::http::App;

/// Reads what `app` has now.
pub(super) struct AddressCollector {
    app: Arc<App>,
}

impl AddressCollector {
    /// Registers it.
    pub(super) fn register(registry: &mut Registry, app: Arc<App>) {
        registry.register_collector(Box::new(Self { app }));
    }
}

impl std::fmt::Debug for AddressCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AddressCollector")
    }
}

type Gauge = (&'static str, &'static str, fn(&Acquired) -> u64);

const GAUGES: [Gauge; 2] = [
    (
        "dhcp_lease_active",
        "Whether every data port that asks for a lease holds one, 1 or 0",
        |acquired| acquired.is_leased().into(),
    ),
    (
        "dhcp_lease_expiry_epoch",
        "When the first lease ends, seconds since 1970; 0 without one, or if it never ends",
        Acquired::expiry_epoch_s,
    ),
];

const CHANGES: (&str, &str) = (
    "dhcp_lease_changes",
    "Times that a lease came, went or said something else",
);

const PROBES: (&str, &str) = (
    "dpdk_health_probe_packets",
    "Connection attempts of health probes: answered, not_ready (not answered, since the node was not ready for traffic), limited (not answered, since there were too many)",
);

type Event = (&'static str, fn(&WorkerCounters) -> u64);

const EVENTS: [Event; 3] = [
    ("answered", |w| w.probes_answered.get()),
    ("not_ready", |w| w.probes_not_ready.get()),
    ("limited", |w| w.probes_limited.get()),
];

/// Name, labels and help of every counter.
pub(super) fn counters() -> [(&'static str, &'static str, &'static str); 2] {
    [(CHANGES.0, "", CHANGES.1), (PROBES.0, "event", PROBES.1)]
}

/// Name and help of every gauge.
pub(super) fn gauges() -> impl Iterator<Item = (&'static str, &'static str)> {
    GAUGES.iter().map(|(name, help, _)| (*name, *help))
}

impl Collector for AddressCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let acquired = self.app.acquired();
        for (name, help, read) in GAUGES {
            let metric = ConstGauge::new(read(&acquired));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let changes = ConstCounter::new(acquired.lease_changes);
        let kind = MetricType::Counter;
        changes.encode(encoder.encode_descriptor(CHANGES.0, CHANGES.1, None, kind)?)?;
        let mut probes =
            encoder.encode_descriptor(PROBES.0, PROBES.1, None, MetricType::Counter)?;
        let workers = self.app.counters();
        for (event, read) in EVENTS {
            let all = workers.iter().map(|worker| read(worker)).sum::<u64>();
            ConstCounter::new(all).encode(probes.encode_family(&[("event", event)])?)?;
        }
        Ok(())
    }
}
