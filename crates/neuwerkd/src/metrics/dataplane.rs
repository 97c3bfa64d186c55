//! The packet workers' counters as metrics, summed over the workers at every scrape.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::counters::{CloseReason, PortCounters};
use engine::port::Link;
use engine::{DropReason, WorkerCounters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::dataplane::{PORT_NAMES, Shown};
use crate::http::App;

/// Reads the counters that `app` has now.
pub(super) struct DataplaneCollector {
    app: Arc<App>,
}

impl DataplaneCollector {
    /// Registers it.
    pub(super) fn register(registry: &mut Registry, app: Arc<App>) {
        registry.register_collector(Box::new(Self { app }));
    }
}

impl std::fmt::Debug for DataplaneCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataplaneCollector")
    }
}

impl Collector for DataplaneCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let surveyed = self.app.surveyed().unwrap_or_default();
        encode(&self.app.counters(), &surveyed, encoder)
    }
}

/// A value of one worker.
type Read = fn(&WorkerCounters) -> u64;

#[rustfmt::skip] // A table reads better in columns.
const COUNTERS: &[(&str, &str, Read)] = &[
    ("dp_arp_handled",                   "ARP packets handled",                                   |w| w.arp_handled.get()),
    ("dp_ipv4_fragments_dropped",        "Fragments dropped",                                     |w| w.fragments.get()),
    ("dp_ipv4_ttl_exceeded",             "Packets whose time to live ended here",                 |w| w.dropped(DropReason::TtlExceeded).packets.get()),
    ("dp_flow_cap_rejections",           "Flows refused because the table was full",              |w| w.dropped(DropReason::FlowTableFull).packets.get()),
    ("dp_nat_cap_rejections",            "Flows refused because there was no binding or port left", |w| w.dropped(DropReason::NatTableFull).packets.get() + w.dropped(DropReason::NatPortsExhausted).packets.get()),
    ("dp_source_group_flow_cap_rejections", "Flows refused because their source group had as many as it may have", |w| w.dropped(DropReason::SourceGroupFull).packets.get()),
    ("dpdk_gateway_arp_rejected",        "ARP, neighbour and router messages refused because the gateway is another station than dpdk.gateway_mac", |w| w.gateway_untrusted.get()),
    ("dpdk_dhcp_server_hint_rejected",   "DHCP messages refused because they are from another server than dpdk.dhcp_server_ip and dhcp_server_mac", |w| w.dhcp_untrusted.get()),
    ("neuwerk_dp_address_conflicts",     "ARP and neighbour discovery messages of other stations that claim an address of this node, of a service or of a translation", |w| w.address_conflicts.get()),
    ("overlay_decap_errors",             "Packets that came in no tunnel, or in a wrong or unreadable one", |w| w.dropped(DropReason::OverlayDecap).packets.get()),
    ("overlay_encap_errors",             "Packets that could not be put into a tunnel",           |w| w.dropped(DropReason::OverlayEncap).packets.get()),
    ("overlay_mtu_drops",                "Packets larger than the tunnel carries",                |w| w.dropped(DropReason::OverlayMtu).packets.get()),
    ("neuwerk_dp_flow_opens",            "Flows opened",                                          |w| w.flows_opened.get()),
    ("neuwerk_dp_nd_handled",            "Neighbour discovery messages handled",                  |w| w.nd_handled.get()),
    ("neuwerk_dp_local_packets",         "Frames handed to the host",                             |w| w.local.packets.get()),
    ("neuwerk_dp_handed_over",           "Frames handed over to the workers that own their flows", |w| w.handed_over.packets.get()),
    ("neuwerk_dp_replies",               "Frames answered by the engine itself",                  |w| w.replied.get()),
    ("neuwerk_dp_consumed",              "Frames for the engine itself that it took in without an answer", |w| w.consumed.get()),
    ("neuwerk_dp_replies_limited",       "ICMP errors and resets withheld by the rate limit",     |w| w.replies_limited.get()),
    ("neuwerk_dp_resets_sent",           "TCP resets originated",                                 |w| w.resets_sent.get()),
    ("neuwerk_dp_icmp_errors_sent",      "ICMP errors originated",                                |w| w.icmp_errors_sent.get()),
    ("neuwerk_dp_icmp_errors_translated","ICMP errors translated and passed on",                  |w| w.icmp_errors_translated.get()),
    ("neuwerk_dp_flows_rejudged",        "Flows judged again because the policy or a translation address changed", |w| w.rejudged.get()),
    ("neuwerk_dp_flows_picked_up",       "TCP connections picked up in the middle",               |w| w.picked_up.get()),
    ("neuwerk_dp_flows_taken_over",      "Flows taken over from the process before this one",     |w| w.taken_over.get()),
    ("neuwerk_dp_would_deny",            "Flows that a policy in audit mode would have denied, and ICMP queries of another type within a flow",   |w| w.would_deny.get()),
    ("neuwerk_dp_reassembled",           "Datagrams made whole of their fragments",               |w| w.reassembled.get()),
    ("neuwerk_dp_fragmented",            "Packets cut into fragments for a link that carries less", |w| w.fragmented.get()),
    ("neuwerk_dp_nat_port_probes",       "Ports tried while free ones were looked for",           |w| w.nat_port_probes.get()),
    ("neuwerk_dp_nat_ports_kept",        "Flows that kept their source port through translation", |w| w.nat_ports_kept.get()),
    ("neuwerk_dp_events_lost",           "Denials that are in no finding, since there were more than are taken in", |w| w.events_lost.get()),
    ("neuwerk_dp_no_buffer",             "Frames that the engine wanted to originate but had no buffer for, or no next hop that answers", |w| w.no_buffer.get()),
];

#[rustfmt::skip] // A table reads better in columns.
const GAUGES: &[(&str, &str, Read)] = &[
    ("dp_active_flows",                  "Flows that are tracked now",                            |w| w.flows_active.get()),
    ("dp_active_nat_entries",            "Translations that are held now",                        |w| w.nat_active.get()),
    ("neuwerk_dp_flow_capacity",         "Flows that fit into the tables",                        |w| w.flow_capacity.get()),
    ("neuwerk_dp_nat_capacity",          "Translations that may be held at once",                 |w| w.nat_capacity.get()),
    ("neuwerk_dp_neighbors",             "Next hops known",                                       |w| w.neighbors.get()),
];

#[rustfmt::skip] // A table reads better in columns.
const RATIOS: &[(&str, &str, Read, Read)] = &[
    ("dp_flow_table_utilization_ratio",  "Share of the flow tables in use, 0 to 1",               |w| w.flows_active.get(), |w| w.flow_capacity.get()),
    ("dp_nat_table_utilization_ratio",   "Share of the translations in use, 0 to 1",              |w| w.nat_active.get(),   |w| w.nat_capacity.get()),
];

/// Counters with labels: name, labels, help.
const FAMILIES: [(&str, &str, &str); 4] = [
    (
        "dp_flow_closes",
        "reason",
        "Flows closed, by reason: idle_timeout, finished (closed or reset, and waited out), policy (a newer one denies it), \
         evicted (it gave way in a full table, or its binding or port did), reused (it was over, and another took its place \
         or port), address_lost, path_changed, killed (by neuwerk flows kill)",
    ),
    ("neuwerk_dp_drops", "reason", "Frames discarded, by reason"),
    (
        "neuwerk_dp_port_lost",
        "port, direction, cause",
        "Frames lost between a port (inside and outside, data on a node with one arm, lane for the host lane) and the \
         engine. rx: full, no room to wait, since the worker was too slow; error, it came and could not be taken over. tx: \
         full, the device had no room; error, it refused the frame",
    ),
    (
        "overlay_packets",
        "mode, direction",
        "Packets taken out of a tunnel (`in`) and put into one (`out`)",
    ),
];

const PORT_UTILIZATION: (&str, &str, &str) = (
    "dp_nat_port_utilization_ratio",
    "",
    "Share of the ports of all translation addresses of a family that one protocol uses, 0 to 1; of families and protocols, the largest. Up to 10 s old",
);
const SYN_ONLY: (&str, &str, &str) = (
    "dp_syn_only_active_flows",
    "worker",
    "TCP flows of which only the first SYN has been seen. Up to 10 s old",
);
const BY_GROUP: (&str, &str, &str) = (
    "dp_active_flows_by_source_group",
    "source_group",
    "Flows by the source group that allows them; `default` if none decided. Up to 10 s old",
);

/// A gauge of one worker, which may be a share.
type ReadGauge = fn(&WorkerCounters) -> f64;

#[rustfmt::skip] // A table reads better in columns.
const BY_WORKER: &[(&str, &str, &str, ReadGauge)] = &[
    ("neuwerk_dp_worker_cpu",                "worker", "Processor that a packet worker stays on, or -1 if on none", |w| w.cpu().map_or(-1.0, |cpu| cpu as f64)),
    ("dp_active_flows_shard",                "shard",  "Flows of one packet worker",                           |w| w.flows_active.get() as f64),
    ("dp_active_nat_entries_shard",          "shard",  "Translations of one packet worker",                    |w| w.nat_active.get() as f64),
    ("dp_flow_table_capacity",               "worker", "Flows that fit into the table of one packet worker",   |w| w.flow_capacity.get() as f64),
    ("dp_flow_table_utilization_ratio_shard","shard",  "Share of the flow table of one packet worker in use, 0 to 1", |w| share(w.flows_active.get(), w.flow_capacity.get())),
    ("dp_nat_table_utilization_ratio_shard", "shard",  "Share of the translations of one packet worker in use, 0 to 1", |w| share(w.nat_active.get(), w.nat_capacity.get())),
];

const PORT_UP: (&str, &str, &str) = (
    "neuwerk_dp_port_up",
    "port",
    "Whether a data port has a link, 1 or 0; port is inside or outside, or data on a node with one arm",
);

const NAT_BINDINGS: (&str, &str, &str) = (
    "neuwerk_dp_nat_bindings",
    "address",
    "Translations that a NAT address holds now; a port counts once for each server that it is used for",
);

/// Name, labels and help of every counter.
pub(super) fn counters() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let plain = COUNTERS.iter().map(|(name, help, _)| (*name, "", *help));
    plain.chain(FAMILIES)
}

/// Name, labels and help of every gauge.
pub(super) fn gauges() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let plain = GAUGES.iter().map(|(name, help, _)| (*name, "", *help));
    let ratios = RATIOS.iter().map(|(name, help, ..)| (*name, "", *help));
    let by_worker = BY_WORKER
        .iter()
        .map(|(name, label, help, _)| (*name, *label, *help));
    plain.chain(ratios).chain(by_worker).chain([
        PORT_UTILIZATION,
        SYN_ONLY,
        BY_GROUP,
        PORT_UP,
        NAT_BINDINGS,
    ])
}

fn encode(
    workers: &[Arc<WorkerCounters>],
    surveyed: &Shown,
    mut encoder: DescriptorEncoder,
) -> Result<(), std::fmt::Error> {
    let sum = |read: &dyn Fn(&WorkerCounters) -> u64| -> u64 {
        workers.iter().map(|worker| read(worker)).sum()
    };
    for (name, help, read) in COUNTERS {
        let metric = ConstCounter::new(sum(read));
        metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
    }
    for (name, help, read) in GAUGES {
        gauge(&mut encoder, name, help, sum(read) as f64)?;
    }
    for (name, help, active, capacity) in RATIOS {
        let (active, capacity) = (sum(active), sum(capacity));
        let share = if capacity == 0 {
            0.0
        } else {
            active as f64 / capacity as f64
        };
        gauge(&mut encoder, name, help, share)?;
    }
    gauge(
        &mut encoder,
        PORT_UTILIZATION.0,
        PORT_UTILIZATION.2,
        surveyed.port_utilization,
    )?;
    let (name, _, help) = SYN_ONLY;
    let mut syn_only = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (index, flows) in surveyed.syn_only.iter().enumerate() {
        let labels = [("worker", index.to_string())];
        ConstGauge::new(*flows).encode(syn_only.encode_family(&labels)?)?;
    }
    let (name, _, help) = BY_GROUP;
    let mut groups = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (group, flows) in &surveyed.groups {
        let labels = [("source_group", group.as_str())];
        ConstGauge::new(*flows).encode(groups.encode_family(&labels)?)?;
    }
    by_worker(&mut encoder, workers)?;
    let [closes, drops, lost, overlay] = FAMILIES;
    let mut closes = encoder.encode_descriptor(closes.0, closes.2, None, MetricType::Counter)?;
    for reason in CloseReason::ALL {
        let labels = [("reason", reason.name())];
        let value = sum(&|w| w.closed(reason));
        ConstCounter::new(value).encode(closes.encode_family(&labels)?)?;
    }
    let mut drops = encoder.encode_descriptor(drops.0, drops.2, None, MetricType::Counter)?;
    for reason in DropReason::ALL {
        let labels = [("reason", reason.name())];
        let value = sum(&|w| w.dropped(*reason).packets.get());
        ConstCounter::new(value).encode(drops.encode_family(&labels)?)?;
    }
    let (packets, _, help) = overlay;
    let mut packets = encoder.encode_descriptor(packets, help, None, MetricType::Counter)?;
    for (kind, mode) in ["vxlan", "geneve"].into_iter().enumerate() {
        let taken_out = sum(&|w| w.overlay[kind].taken_out.get());
        let put_in = sum(&|w| w.overlay[kind].put_in.get());
        for (direction, value) in [("in", taken_out), ("out", put_in)] {
            let labels = [("mode", mode), ("direction", direction)];
            ConstCounter::new(value).encode(packets.encode_family(&labels)?)?;
        }
    }
    nat_bindings(&mut encoder, workers)?;
    ports(&mut encoder, lost, workers)
}

/// How many translations each NAT address holds.
fn nat_bindings(
    encoder: &mut DescriptorEncoder,
    workers: &[Arc<WorkerCounters>],
) -> Result<(), std::fmt::Error> {
    let mut bindings = BTreeMap::new();
    for (address, count) in workers.iter().flat_map(|w| w.nat_use.addresses()) {
        *bindings.entry(address).or_insert(0) += count;
    }
    let (name, _, help) = NAT_BINDINGS;
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (address, count) in bindings {
        let labels = [("address", address.to_string())];
        ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Gauges of each worker.
fn by_worker(
    encoder: &mut DescriptorEncoder,
    workers: &[Arc<WorkerCounters>],
) -> Result<(), std::fmt::Error> {
    for (name, label, help, read) in BY_WORKER {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (index, worker) in workers.iter().enumerate() {
            let labels = [(*label, index.to_string())];
            ConstGauge::new(read(worker)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn share(used: u64, of: u64) -> f64 {
    if of == 0 {
        0.0
    } else {
        used as f64 / of as f64
    }
}

/// Whether the data ports are up, and what they have lost outside the engine.
fn ports(
    encoder: &mut DescriptorEncoder,
    (lost, _, lost_help): (&str, &str, &str),
    workers: &[Arc<WorkerCounters>],
) -> Result<(), std::fmt::Error> {
    let count = workers.first().map_or(0, |worker| worker.ports().len());
    let names = PORT_NAMES[count.saturating_sub(1).min(1)];
    let ports = |index: usize| workers.iter().filter_map(move |w| w.ports().get(index));

    let (up, _, help) = PORT_UP;
    let mut up = encoder.encode_descriptor(up, help, None, MetricType::Gauge)?;
    for (index, name) in names.iter().enumerate().take(count) {
        let all = ports(index).all(|port| port.link() == Link::Up);
        ConstGauge::new(u64::from(all)).encode(up.encode_family(&[("port", *name)])?)?;
    }
    let mut lost = encoder.encode_descriptor(lost, lost_help, None, MetricType::Counter)?;
    type Lost = fn(&PortCounters) -> u64;
    let causes: [(&str, &str, Lost); 4] = [
        ("rx", "full", |port| port.rx_dropped.get()),
        ("rx", "error", |port| port.rx_errors.get()),
        ("tx", "full", |port| port.tx_dropped.get()),
        ("tx", "error", |port| port.tx_errors.get()),
    ];
    for (index, name) in names.iter().enumerate().take(count) {
        for (direction, cause, read) in causes {
            let labels = [("port", *name), ("direction", direction), ("cause", cause)];
            let value = ports(index).map(read).sum::<u64>();
            ConstCounter::new(value).encode(lost.encode_family(&labels)?)?;
        }
    }
    let labels = [("port", "lane"), ("direction", "tx"), ("cause", "full")];
    let value = workers
        .iter()
        .map(|worker| worker.lane_lost.get())
        .sum::<u64>();
    ConstCounter::new(value).encode(lost.encode_family(&labels)?)?;
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Collector for Two {
        fn encode(&self, encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            super::encode(
                &[Arc::default(), Arc::default()],
                &Shown::default(),
                encoder,
            )
        }
    }

    fn text() -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Two));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn no_family_is_described_twice_and_each_has_help() {
        let text = text();
        let helps: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("# HELP"))
            .collect();
        let names: BTreeSet<_> = helps.iter().map(|line| line.split(' ').nth(2)).collect();
        assert_eq!(names.len(), helps.len());
        assert!(helps.len() >= COUNTERS.len() + GAUGES.len());
    }

    #[test]
    fn every_verdict_and_reason_has_its_line() {
        let text = text();
        for line in [
            r#"dp_flow_closes_total{reason="policy"} 0"#,
            r#"neuwerk_dp_drops_total{reason="policy_denied"} 0"#,
            r#"overlay_packets_total{mode="geneve",direction="out"} 0"#,
            "overlay_decap_errors_total 0",
            "overlay_encap_errors_total 0",
            "overlay_mtu_drops_total 0",
            "dp_active_flows 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
