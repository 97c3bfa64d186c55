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

const LEFT_OUT_PREFACE: &str = "
## Published metrics that are left out

| Metric | Why |
| --- | --- |
";

#[rustfmt::skip] // A table reads better in columns.
const LEFT_OUT: [(&str, &str); 9] = [
    ("dp_state_lock_*", "Packet workers share no table and take no lock for a packet."),
    ("dp_flow_table_resize_events_total", "A flow table has its whole capacity from the start, and never grows or moves."),
    ("dp_table_probe_steps", "A lookup reads one cache line of the table, or a second one that the first names: there is no chain of probes to be long."),
    ("dp_syn_only_lookup_total", "Flows of which only the first SYN has been seen are in the same table as all others; dp_syn_only_active_flows, _promotions and _evictions tell of them."),
    ("dp_handshake_stage_seconds", "The stages of a packet are gone through in bursts and not timed: a clock read for each would cost more than most stages."),
    ("dp_tcp_handshake_*_by_target_total", "The target would be a name or an address, which no label holds; `neuwerk flows top` shows them."),
    ("dp_tls_decisions_total", "TLS is not looked into."),
    ("dp_pending_tls_flow_count", "The same."),
    ("dp_pending_tls_cap_rejections_total", "The same."),
];

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
    page.push_str(LEFT_OUT_PREFACE);
    for (name, why) in LEFT_OUT {
        let _ = writeln!(page, "| `{name}` | {why} |");
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

    /// The published metrics of the dataplane, without the `dp_` in front.
    const PUBLISHED: &str = "
    packets_total bytes_total flow_opens_total flow_closes_total flow_lifecycle_events_total active_flows active_flows_shard
    active_flows_by_source_group flow_lifetime_seconds active_nat_entries active_nat_entries_shard nat_port_utilization_ratio
    flow_table_utilization_ratio flow_table_utilization_ratio_shard flow_table_capacity flow_table_tombstones
    flow_table_used_slots_ratio flow_table_tombstone_ratio flow_table_resize_events_total syn_only_active_flows
    syn_only_lookup_total syn_only_promotions_total syn_only_evictions_total nat_table_utilization_ratio
    nat_table_utilization_ratio_shard state_lock_wait_seconds state_lock_contended_total state_lock_wait_seconds_worker
    state_lock_wait_seconds_shard state_lock_hold_seconds_worker state_lock_hold_seconds_shard
    state_lock_contended_worker_total state_lock_contended_shard_total tls_decisions_total pending_tls_flow_count
    flow_cap_rejections_total nat_cap_rejections_total pending_tls_cap_rejections_total
    source_group_flow_cap_rejections_total icmp_decisions_total ipv4_fragments_dropped_total ipv4_ttl_exceeded_total
    arp_handled_total tcp_handshake_events_total tcp_handshake_events_by_target_total tcp_handshake_final_ack_in_total
    tcp_handshake_final_ack_in_by_target_total tcp_handshake_synack_out_without_followup_ack_total
    tcp_handshake_synack_out_without_followup_ack_by_target_total tcp_handshake_drops_total
    tcp_handshake_close_age_seconds handshake_stage_seconds table_probe_steps nat_port_scan_steps";

    #[test]
    fn each_published_metric_of_the_dataplane_is_there_or_left_out_with_a_reason() {
        let page = reference();
        for name in PUBLISHED.split_whitespace() {
            let name = format!("dp_{name}");
            let is_left_out = LEFT_OUT.iter().any(|(left_out, _)| {
                let (front, back) = left_out.split_once('*').unwrap_or((left_out, ""));
                name.starts_with(front)
                    && name.ends_with(back)
                    && (left_out.contains('*') || name == *left_out)
            });
            let is_there = page.contains(&format!("\n| `{name}` | gauge"))
                || page.contains(&format!("\n| `{name}` | counter"))
                || page.contains(&format!("\n| `{name}` | histogram"));
            assert!(is_there || is_left_out, "{name}");
        }
    }

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
