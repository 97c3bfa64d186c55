//! The reference page of all metrics and all reasons for which a frame is discarded, from the tables that they come from.

use std::fmt::Write as _;

use engine::DropReason;

use super::{HTTP, addresses, consensus, dataplane, dpdk, flows, handover, links};

const PREFACE: &str = "\
<!-- Generated: cargo run -p neuwerk -- reference metrics > docs/metrics.md -->

# Metrics

`GET /metrics` at `metrics.bind` (port 8080 of the management address unless configured) answers in the OpenMetrics text
format, without TLS and login. Counters end in `_total` there. No label holds the address, the name or an id of a client, or
of a server that clients reach. Values that a node does not have are left out: those of consensus while there is no control
plane, for example, or those of DPDK in another mode.

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
const LEFT_OUT: [(&str, &str); 24] = [
    ("dp_state_lock_*", "Packet workers share no table of flows and take no lock for a packet. What limits by source and by group and the grants of names count for the node is written without a lock, and not for each packet."),
    ("dp_flow_table_resize_events_total", "A flow table has its whole capacity from the start, and never grows or moves."),
    ("dp_table_probe_steps", "A lookup reads one cache line of the table, or a second one that the first names: there is no chain of probes to be long."),
    ("dp_syn_only_lookup_total", "Flows of which only the first SYN has been seen are in the same table as all others; dp_syn_only_active_flows, _promotions and _evictions tell of them."),
    ("dp_handshake_stage_seconds", "The stages of a packet are gone through in bursts and not timed: a clock read for each would cost more than most stages."),
    ("dp_tcp_handshake_*_by_target_total", "The target would be the name or the address of a server that clients reach, which no label holds; `neuwerk flows top` shows them."),
    ("dp_tls_decisions_total", "TLS is not looked into."),
    ("dp_pending_tls_flow_count", "TLS is not looked into."),
    ("dp_pending_tls_cap_rejections_total", "TLS is not looked into."),
    ("dpdk_shared_io_lock_*", "Each packet worker has a queue of every port to itself: there is no lock to wait for."),
    ("dpdk_init_failures_total", "A node on which DPDK does not start does not run."),
    ("dpdk_flow_steer_*", "neuwerk_dp_handed_over_total counts what goes from one packet worker to another, and the reason `worker_queue_full` of neuwerk_dp_drops_total what there was no room for."),
    ("dpdk_tx_stage_*", "A frame is counted once, when it is sent: dpdk_tx_packets_total and dpdk_tx_bytes_total."),
    ("dpdk_tx_packet_class_queue_total", "Queues do not tell packets apart; dp_packets_total does, by direction, protocol and verdict."),
    ("dpdk_service_lane_forward_queue_*", "A packet worker writes frames for the host to its device itself: they wait in no queue of the node's."),
    ("dpdk_host_frame_queue_depth", "Frames for the host wait in no queue of the node's; dpdk_host_frame_dropped_total counts those that the device did not take."),
    ("dpdk_pending_arp_queue_depth", "How many frames wait for a next hop is not told; dpdk_pending_arp_frame_dropped_total counts those that did so in vain."),
    ("dpdk_intercept_demux_*", "TLS is not looked into."),
    ("http_auth_sso_*", "There is no sign-on through other identity providers."),
    ("integration_*", "Nothing is changed in a cloud: neither routes nor instances."),
    ("neuwerk_threat_*", "There are no feeds of threats."),
    ("rocksdb_*", "The store is another one; neuwerk_cluster_storage_full tells when the disk is full."),
    ("svc_dns_*", "They repeat the `dns_*` of the same ending, which are there."),
    ("svc_*", "All beside `svc_dns_*` are of the service that decrypts TLS, which there is not. neuwerk_dp_resets_sent_total counts the resets of the engine."),
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

    /// All others.
    const PUBLISHED_BESIDE: &str = "
    http_requests_total http_request_duration_seconds http_auth_total http_auth_sso_total
    http_auth_sso_latency_seconds dns_queries_total dns_upstream_rtt_seconds dns_nxdomain_total
    dns_upstream_mismatch_total svc_dns_queries_total svc_dns_upstream_rtt_seconds svc_dns_nxdomain_total
    svc_tls_intercept_flows_total svc_http_requests_total svc_http_denies_total svc_policy_rst_total
    svc_fail_closed_total svc_tls_intercept_errors_total svc_tls_intercept_phase_seconds svc_tls_intercept_inflight
    svc_tls_intercept_upstream_h2_pool_total svc_tls_intercept_upstream_h2_shard_select_total
    svc_tls_intercept_upstream_h2_send_wait_seconds svc_tls_intercept_upstream_h2_selected_inflight
    svc_tls_intercept_upstream_h2_pool_width svc_tls_intercept_upstream_h2_ready_errors_total
    svc_tls_intercept_upstream_response_errors_total svc_tls_intercept_upstream_h2_conn_closed_total
    svc_tls_intercept_upstream_h2_conn_termination_total svc_tls_intercept_upstream_h2_retry_total
    svc_tls_intercept_upstream_h2_selected_inflight_peak neuwerk_threat_matches_total
    neuwerk_threat_alertable_matches_total neuwerk_threat_feed_refresh_total
    neuwerk_threat_feed_snapshot_age_seconds neuwerk_threat_feed_indicators neuwerk_threat_backfill_runs_total
    neuwerk_threat_backfill_duration_seconds neuwerk_threat_enrichment_requests_total
    neuwerk_threat_enrichment_queue_depth neuwerk_threat_observation_enqueue_failures_total
    neuwerk_threat_findings_active neuwerk_threat_cluster_snapshot_version raft_is_leader raft_leader_changes_total
    raft_current_term raft_last_log_index raft_last_applied raft_peer_rtt_seconds raft_peer_errors_total
    rocksdb_estimated_num_keys rocksdb_live_sst_files_size_bytes rocksdb_total_sst_files_size_bytes
    rocksdb_memtable_bytes rocksdb_num_running_compactions rocksdb_num_immutable_memtables
    dpdk_shared_io_lock_wait_seconds dpdk_shared_io_lock_contended_total dpdk_shared_io_lock_wait_seconds_worker
    dpdk_shared_io_lock_hold_seconds_worker dpdk_shared_io_lock_contended_worker_total dpdk_init_ok
    dpdk_init_failures_total dpdk_rx_packets_total dpdk_rx_bytes_total dpdk_rx_dropped_total dpdk_tx_packets_total
    dpdk_tx_bytes_total dpdk_tx_dropped_total dpdk_rx_packets_queue_total dpdk_rx_bytes_queue_total
    dpdk_rx_dropped_queue_total dpdk_tx_packets_queue_total dpdk_tx_bytes_queue_total dpdk_tx_dropped_queue_total
    dpdk_tx_packet_class_queue_total dpdk_tx_stage_packets_total dpdk_tx_stage_bytes_total
    dpdk_tx_stage_packet_class_total dpdk_flow_steer_dispatch_packets_total dpdk_flow_steer_dispatch_bytes_total
    dpdk_flow_steer_fail_open_events_total dpdk_flow_steer_queue_wait_seconds dpdk_flow_steer_queue_depth
    dpdk_flow_steer_queue_utilization_ratio dpdk_service_lane_forward_packets_total
    dpdk_service_lane_forward_bytes_total dpdk_service_lane_forward_queue_wait_seconds
    dpdk_service_lane_forward_queue_depth dpdk_service_lane_forward_queue_utilization_ratio
    dpdk_intercept_demux_size dpdk_host_frame_queue_depth dpdk_pending_arp_queue_depth
    dpdk_gateway_arp_rejected_total dpdk_dhcp_server_hint_rejected_total dpdk_intercept_demux_insert_dropped_total
    dpdk_host_frame_dropped_total dpdk_pending_arp_frame_dropped_total dpdk_health_probe_packets_total dpdk_xstat
    overlay_decap_errors_total overlay_encap_errors_total overlay_packets_total overlay_mtu_drops_total
    dhcp_lease_active dhcp_lease_expiry_epoch dhcp_lease_changes_total integration_route_changes_total
    integration_assignment_changes_total integration_termination_events_total integration_termination_complete_total
    integration_protection_errors_total integration_termination_poll_errors_total
    integration_termination_publish_errors_total integration_termination_complete_errors_total
    integration_drain_duration_seconds integration_termination_drain_start_seconds";

    #[test]
    fn each_published_metric_is_there_or_left_out_with_a_reason() {
        let page = reference();
        let of_dataplane = PUBLISHED
            .split_whitespace()
            .map(|name| format!("dp_{name}"));
        let beside = PUBLISHED_BESIDE.split_whitespace().map(str::to_owned);
        for name in of_dataplane.chain(beside) {
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
