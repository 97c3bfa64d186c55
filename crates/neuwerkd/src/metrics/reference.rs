//! The reference page of all metrics and all reasons for which a frame is discarded, from the tables that they come from.

use std::fmt::Write as _;

use engine::DropReason;

use super::{HTTP, addresses, consensus, dataplane, dpdk, flows, handover, links};

const PREFACE: &str = "\
<!-- Generated: cargo run -p neuwerk -- reference metrics > docs/metrics.md -->

# Metrics

`GET /metrics` at `metrics.bind` (port 8080 of the management address unless configured) answers in the OpenMetrics text
format, without TLS and login. Counters end in `_total` there. No label holds an address, a name or the id of a client.
Values that a node does not have are left out: those of consensus while there is no control plane, for example, or those
of DPDK in another mode.

| Metric | Kind | Labels | Meaning |
| --- | --- | --- | --- |
";

const DROPS: &str = "
## Why frames are discarded

The values of the label `reason` of `neuwerk_dp_drops_total`:

| Reason | Meaning |
| --- | --- |
";

/// The page.
pub fn reference() -> String {
    let mut rows: Vec<(String, &str, &str, &str)> = Vec::new();
    let total = |name: &str| format!("{name}_total");
    for (name, kind, labels, help) in HTTP {
        rows.push((name.into(), kind, labels, help));
    }
    for (name, kind, labels, help) in proxy::dns::FAMILIES {
        rows.push((name.into(), kind, labels, help));
    }
    for (name, kind, labels, help) in crate::grants::FAMILIES {
        let name = if kind == "counter" {
            total(name)
        } else {
            name.into()
        };
        rows.push((name, kind, labels, help));
    }
    rows.extend(consensus::gauges().map(|(name, help)| (name.into(), "gauge", "", help)));
    rows.extend(consensus::counters().map(|(name, help)| (total(name), "counter", "", help)));
    let counters = links::counters()
        .chain(dataplane::counters())
        .chain(flows::counters())
        .chain(dpdk::counters())
        .chain(handover::COUNTERS)
        .chain(addresses::counters());
    rows.extend(counters.map(|(name, labels, help)| (total(name), "counter", labels, help)));
    let histograms = links::histograms().into_iter().chain(flows::histograms());
    rows.extend(histograms.map(|(name, labels, help)| (name.into(), "histogram", labels, help)));
    let gauges = dataplane::gauges()
        .chain(flows::gauges())
        .chain(dpdk::GAUGES);
    rows.extend(gauges.map(|(name, labels, help)| (name.into(), "gauge", labels, help)));
    rows.extend(addresses::gauges().map(|(name, help)| (name.into(), "gauge", "", help)));
    rows.sort();
    let mut page = PREFACE.to_owned();
    for (name, kind, labels, help) in rows {
        let labels: Vec<String> = labels
            .split(", ")
            .filter(|label| !label.is_empty())
            .map(|label| format!("`{label}`"))
            .collect();
        let _ = writeln!(
            page,
            "| `{name}` | {kind} | {} | {help}. |",
            labels.join(", ")
        );
    }
    page.push_str(DROPS);
    for reason in DropReason::ALL {
        let _ = writeln!(
            page,
            "| `{}` | {} |",
            reason.name(),
            reason.description().trim()
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == reference(),
            "docs/metrics.md is stale; run: cargo run -p neuwerk -- reference metrics > docs/metrics.md"
        );
    }
}
