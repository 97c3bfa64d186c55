//! What became of what the process before this one left, as metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::handover::Report;

/// Name, labels, help.
pub(super) const COUNTERS: [(&str, &str, &str); 2] = [
    (
        "neuwerk_handover_sections",
        "outcome",
        "Parts of the state of the process before this one, by outcome: taken, unknown (of a version that is not known \
         here), damaged, lost (the rest could not be read)",
    ),
    (
        "neuwerk_handover_flows",
        "outcome",
        "Flows of the process before this one, by outcome: taken, expired (idle for too long meanwhile), refused (they do \
         not fit the configuration)",
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Registers the figures, which do not change any more.
pub(crate) fn register(registry: &mut Registry, report: &Report) {
    let [sections, flows] = COUNTERS;
    add(registry, sections, &report.sections());
    add(registry, flows, &report.flows());
}

fn add(
    registry: &mut Registry,
    (name, _, help): (&str, &str, &str),
    values: &[(&'static str, u64)],
) {
    let family = Family::<Outcome, Counter>::default();
    for (outcome, value) in values {
        family.get_or_create(&Outcome { outcome }).inc_by(*value);
    }
    registry.register(name, help, family);
}
