//! What becomes of packets and flows, by packet worker and by source group, as metrics. Of what is told by group or by
//! reason, only what has happened has a line: there may be ten thousand groups.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;

use engine::counters::{
    Ages, CloseReason, Completion, Direction, GroupCounters, Groups, Handshake, PortScans,
    Protocol, Volume,
};
use engine::{DropReason, WorkerCounters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::http::App;

/// Reads the counters that `app` has now.
pub(crate) struct FlowsCollector {
    app: Arc<App>,
}

impl FlowsCollector {
    /// Registers it.
    pub(crate) fn register(registry: &mut Registry, app: Arc<App>) {
        registry.register_collector(Box::new(Self { app }));
    }
}

impl std::fmt::Debug for FlowsCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlowsCollector")
    }
}

impl Collector for FlowsCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        encode(&self.app.counters(), encoder)
    }
}

/// Name, labels, help.
type Described = (&'static str, &'static str, &'static str);

const PACKETS: Described = (
    "dp_packets",
    "direction, proto, decision, source_group",
    "Packets by verdict and by the source group that it is of; `default` if none decided. What the policy refuses, or begins no flow since it comes from outside, is `deny`; neuwerk_dp_drops_total has all that is discarded",
);
const BYTES: Described = (
    "dp_bytes",
    "direction, proto, decision, source_group",
    "Bytes of the packets that dp_packets_total counts, by the same labels",
);
const ICMP: Described = (
    "dp_icmp_decisions",
    "direction, type, code, decision, source_group",
    "ICMP messages by verdict; the type of an ICMPv6 message begins with `v6:`. A packet worker tells 64 kinds of a group apart, the others are counted as type and code `other`",
);
const OPENS: Described = (
    "dp_flow_opens",
    "proto, source_group",
    "Flows opened, by the source group that allowed them; `default` if none decided",
);
const LIFECYCLE: Described = (
    "dp_flow_lifecycle_events",
    "worker, event, reason",
    "Flows opened (`new`, `picked_up` in the middle of their connection, `taken_over` from the process before this one) and closed, by reason",
);
const PROMOTIONS: Described = (
    "dp_syn_only_promotions",
    "worker, reason",
    "TCP flows of which only the first SYN had been seen, and that were answered",
);
const EVICTIONS: Described = (
    "dp_syn_only_evictions",
    "worker, reason",
    "TCP flows that ended while only their first SYN had been seen, by why they ended",
);
const HANDSHAKES: Described = (
    "dp_tcp_handshake_events",
    "worker, event",
    "Steps of TCP handshakes: syn (it opened a flow), syn_ack, ack (the connection is open), reset (it was refused)",
);
const FINAL_ACKS: Described = (
    "dp_tcp_handshake_final_ack_in",
    "worker, source_group",
    "TCP handshakes that were completed",
);
const NO_FINAL_ACK: Described = (
    "dp_tcp_handshake_synack_out_without_followup_ack",
    "worker, source_group, reason",
    "TCP flows that ended after the server had answered and before the client had answered that, by why they ended",
);
const HANDSHAKE_DROPS: Described = (
    "dp_tcp_handshake_drops",
    "worker, phase, reason",
    "Segments of TCP handshakes that were discarded: syn, syn_ack",
);

/// A gauge of one worker.
type Read = fn(&WorkerCounters) -> f64;

#[rustfmt::skip] // A table reads better in columns.
const GAUGES: [(&str, &str, &str, Read); 3] = [
    ("dp_flow_table_used_slots_ratio", "worker", "Share of the places for flows that one packet worker uses, 0 to 1",
        |w| w.flows_active.get() as f64 / (w.flow_capacity.get() as f64).max(1.0)),
    ("dp_flow_table_tombstones",       "worker", "Places of ended flows that lookups still pass over: none, since an entry goes with its flow", |_| 0.0),
    ("dp_flow_table_tombstone_ratio",  "worker", "Share of the places for flows that dp_flow_table_tombstones counts: 0", |_| 0.0),
];

const SCANS: Described = (
    "dp_nat_port_scan_steps",
    "worker, result",
    "Ports tried for one translated flow until one was `found`, or the search was given up (`exhausted`)",
);

const LIFETIMES: Described = (
    "dp_flow_lifetime_seconds",
    "source_group, reason",
    "Time from the first to the last packet of flows that have ended, in steps of 67 ms and up to 6.5 days, by why they ended",
);
const CLOSE_AGES: Described = (
    "dp_tcp_handshake_close_age_seconds",
    "worker, reason, completion",
    "Time from the first to the last packet of TCP flows that have ended, by why they ended and by how far their handshake had come: syn, syn_ack, complete, reset (by one end, after both had been heard)",
);

/// Name, labels and help of every counter.
pub(super) fn counters() -> [Described; 11] {
    [
        PACKETS,
        BYTES,
        ICMP,
        OPENS,
        LIFECYCLE,
        PROMOTIONS,
        EVICTIONS,
        HANDSHAKES,
        FINAL_ACKS,
        NO_FINAL_ACK,
        HANDSHAKE_DROPS,
    ]
}

/// Name, labels and help of every gauge.
pub(super) fn gauges() -> impl Iterator<Item = Described> {
    GAUGES
        .iter()
        .map(|(name, labels, help, _)| (*name, *labels, *help))
}

/// Name, labels and help of every histogram.
pub(super) fn histograms() -> [Described; 3] {
    [SCANS, LIFETIMES, CLOSE_AGES]
}

/// The group of what no group decides on.
const DEFAULT: &str = "default";

/// Each series once: a policy may have a group that is called [`DEFAULT`].
fn summed<L: Ord>(lines: impl Iterator<Item = (L, u64)>) -> impl Iterator<Item = (L, u64)> {
    let mut all = BTreeMap::new();
    for (labels, count) in lines {
        *all.entry(labels).or_default() += count;
    }
    all.into_iter()
}

/// A worker with its number and its source groups.
struct Worker<'a> {
    number: String,
    counters: &'a WorkerCounters,
    groups: Arc<Groups>,
}

impl Worker<'_> {
    /// Each group's name and counters; `default` for flows that no group decided about.
    fn groups(&self) -> impl Iterator<Item = (&str, &GroupCounters)> {
        let named = self.groups.iter().map(|(id, group)| (&**id, &**group));
        named.chain([(DEFAULT, &self.counters.ungrouped)])
    }
}

fn encode(workers: &[Arc<WorkerCounters>], mut encoder: DescriptorEncoder) -> Result<(), Error> {
    let workers = workers.iter().enumerate();
    let workers: Vec<Worker> = workers
        .map(|(number, counters)| Worker {
            number: number.to_string(),
            counters,
            groups: counters.groups(),
        })
        .collect();
    let encoder = &mut encoder;
    volumes(encoder, PACKETS, &workers, |volume| volume.packets.get())?;
    volumes(encoder, BYTES, &workers, |volume| volume.bytes.get())?;
    icmp(encoder, &workers)?;
    opens(encoder, &workers)?;
    lifecycle(encoder, &workers)?;
    let lines = workers.iter().map(|worker| {
        let answered = worker.counters.handshakes(Handshake::SynAck);
        (
            [("worker", &*worker.number), ("reason", "answered")],
            answered,
        )
    });
    counter(encoder, PROMOTIONS, lines)?;
    let lines = workers.iter().flat_map(|worker| {
        CloseReason::ALL.map(|reason| {
            let labels = [("worker", &*worker.number), ("reason", reason.name())];
            (labels, worker.counters.unanswered(reason))
        })
    });
    counter(encoder, EVICTIONS, lines.filter(happened))?;
    let lines = workers.iter().flat_map(|worker| {
        Handshake::ALL.map(|step| {
            let labels = [("worker", &*worker.number), ("event", step.name())];
            (labels, worker.counters.handshakes(step))
        })
    });
    counter(encoder, HANDSHAKES, lines)?;
    let lines = workers.iter().flat_map(|worker| {
        worker.groups().map(move |(id, group)| {
            let labels = [("worker", &*worker.number), ("source_group", id)];
            (labels, group.handshakes_completed.get())
        })
    });
    counter(encoder, FINAL_ACKS, summed(lines.filter(happened)))?;
    let lines = workers.iter().flat_map(|worker| {
        worker.groups().flat_map(move |(id, group)| {
            CloseReason::ALL.map(|reason| {
                let labels = [
                    ("worker", &*worker.number),
                    ("source_group", id),
                    ("reason", reason.name()),
                ];
                (labels, group.unfinished(reason))
            })
        })
    });
    counter(encoder, NO_FINAL_ACK, summed(lines.filter(happened)))?;
    let lines = workers.iter().flat_map(|worker| {
        [("syn", false), ("syn_ack", true)]
            .into_iter()
            .flat_map(move |(phase, is_answer)| {
                DropReason::ALL.iter().map(move |reason| {
                    let labels = [
                        ("worker", &*worker.number),
                        ("phase", phase),
                        ("reason", reason.name()),
                    ];
                    (labels, worker.counters.handshake_drops(is_answer, *reason))
                })
            })
    });
    counter(encoder, HANDSHAKE_DROPS, lines.filter(happened))?;
    for (name, label, help, read) in GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for worker in &workers {
            let labels = [(label, &*worker.number)];
            ConstGauge::new(read(worker.counters)).encode(family.encode_family(&labels)?)?;
        }
    }
    scans(encoder, &workers)?;
    lifetimes(encoder, &workers)?;
    close_ages(encoder, &workers)
}

fn happened<L>((_, value): &(L, u64)) -> bool {
    *value > 0
}

/// A family with these lines.
fn counter<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder,
    (name, _, help): Described,
    lines: impl Iterator<Item = (L, u64)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in lines {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// By direction, protocol, decision and source group. What no group decides on has a line before anything has happened.
fn volumes(
    encoder: &mut DescriptorEncoder,
    described: Described,
    workers: &[Worker],
    read: fn(&Volume) -> u64,
) -> Result<(), Error> {
    let mut volumes = BTreeMap::<_, u64>::new();
    for (id, group) in workers.iter().flat_map(|worker| worker.groups()) {
        for direction in Direction::ALL {
            for protocol in Protocol::ALL {
                for (decision, volume) in [
                    ("allow", group.allowed(direction, protocol)),
                    ("deny", group.denied(direction, protocol)),
                ] {
                    let value = read(volume);
                    if value > 0 || id == DEFAULT {
                        let labels = (id, direction.name(), protocol.name(), decision);
                        *volumes.entry(labels).or_default() += value;
                    }
                }
            }
        }
    }
    let lines = volumes
        .into_iter()
        .map(|((id, direction, proto, decision), value)| {
            let labels = [
                ("direction", direction),
                ("proto", proto),
                ("decision", decision),
                ("source_group", id),
            ];
            (labels, value)
        });
    counter(encoder, described, lines)
}

fn icmp(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let mut decisions = BTreeMap::<_, u64>::new();
    for (id, group) in workers.iter().flat_map(|worker| worker.groups()) {
        for counted in group.icmp() {
            let labels = (id, counted.direction.name(), counted.kind, counted.allowed);
            *decisions.entry(labels).or_default() += counted.messages;
        }
    }
    let lines = decisions
        .into_iter()
        .map(|((id, direction, kind, allowed), value)| {
            let (kind, code) = match kind {
                Some((false, kind, code)) => (kind.to_string(), code.to_string()),
                Some((true, kind, code)) => (format!("v6:{kind}"), code.to_string()),
                None => ("other".to_owned(), "other".to_owned()),
            };
            let decision = if allowed { "allow" } else { "deny" };
            let labels = [
                ("direction", direction.to_owned()),
                ("type", kind),
                ("code", code),
                ("decision", decision.to_owned()),
                ("source_group", id.to_owned()),
            ];
            (labels, value)
        });
    counter(encoder, ICMP, lines)
}

fn opens(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let mut opened = BTreeMap::<_, u64>::new();
    for (id, group) in workers.iter().flat_map(|worker| worker.groups()) {
        for protocol in Protocol::ALL {
            *opened.entry((protocol.name(), id)).or_default() += group.opened(protocol);
        }
    }
    let lines = opened.into_iter().map(|((proto, id), value)| {
        let labels = [("proto", proto), ("source_group", id)];
        (labels, value)
    });
    counter(encoder, OPENS, lines.filter(happened))
}

fn lifecycle(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let mut lines = Vec::new();
    for Worker {
        number, counters, ..
    } in workers
    {
        let (opened, picked_up) = (counters.flows_opened.get(), counters.picked_up.get());
        let mut line = |event, reason, value| {
            let labels = [("worker", &**number), ("event", event), ("reason", reason)];
            lines.push((labels, value));
        };
        line("opened", "new", opened.saturating_sub(picked_up));
        line("opened", "picked_up", picked_up);
        line("opened", "taken_over", counters.taken_over.get());
        for reason in CloseReason::ALL {
            line("closed", reason.name(), counters.closed(reason));
        }
    }
    counter(encoder, LIFECYCLE, lines.into_iter())
}

fn scans(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let (name, _, help) = SCANS;
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for worker in workers {
        for (scans, result) in worker.counters.nat_scans.iter().zip(["found", "exhausted"]) {
            let bounds = PortScans::BOUNDS.map(|bound| bound as f64);
            let flows = scans.flows();
            let buckets: Vec<(f64, u64)> = bounds
                .into_iter()
                .chain([f64::INFINITY])
                .zip(flows)
                .collect();
            let labels = [("worker", &*worker.number), ("result", result)];
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    scans.ports() as f64,
                    flows.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
    }
    Ok(())
}

fn lifetimes(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let mut lifetimes = BTreeMap::<_, Sum>::new();
    for (id, group) in workers.iter().flat_map(|worker| worker.groups()) {
        for reason in CloseReason::ALL {
            if let Some(ages) = group.lifetimes(reason) {
                let labels = [("source_group", id), ("reason", reason.name())];
                lifetimes.entry(labels).or_default().add(ages);
            }
        }
    }
    let (name, _, help) = LIFETIMES;
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, sum) in lifetimes {
        sum.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn close_ages(encoder: &mut DescriptorEncoder, workers: &[Worker]) -> Result<(), Error> {
    let (name, _, help) = CLOSE_AGES;
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for worker in workers {
        for reason in CloseReason::ALL {
            for completion in Completion::ALL {
                let mut sum = Sum::default();
                sum.add(worker.counters.ages(reason, completion));
                let labels = [
                    ("worker", &*worker.number),
                    ("reason", reason.name()),
                    ("completion", completion.name()),
                ];
                sum.encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

/// Flows of several workers by how long they lasted.
#[derive(Default)]
struct Sum {
    flows: [u64; Ages::BOUNDS.len() + 1],
    seconds: f64,
}

impl Sum {
    fn add(&mut self, ages: &Ages) {
        for (sum, flows) in self.flows.iter_mut().zip(ages.flows()) {
            *sum += flows;
        }
        self.seconds += ages.time().as_secs_f64();
    }

    /// Writes it, if there were any.
    fn encode(&self, mut metric: MetricEncoder) -> Result<(), Error> {
        let count = self.flows.iter().sum();
        if count == 0 {
            return Ok(());
        }
        let bounds = Ages::BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.flows).collect();
        metric.encode_histogram::<NoLabelSet>(self.seconds, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Collector for Two {
        fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
            super::encode(&[Arc::default(), Arc::default()], encoder)
        }
    }

    #[test]
    fn the_published_families_and_labels() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Two));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"dp_packets_total{direction="outbound",proto="tcp",decision="allow",source_group="default"} 0"#,
            r#"dp_bytes_total{direction="inbound",proto="icmp",decision="deny",source_group="default"} 0"#,
            r#"dp_flow_lifecycle_events_total{worker="1",event="opened",reason="new"} 0"#,
            r#"dp_flow_lifecycle_events_total{worker="0",event="closed",reason="idle_timeout"} 0"#,
            r#"dp_syn_only_promotions_total{worker="0",reason="answered"} 0"#,
            r#"dp_tcp_handshake_events_total{worker="1",event="syn_ack"} 0"#,
            r#"dp_flow_table_used_slots_ratio{worker="0"} 0.0"#,
            r#"dp_flow_table_tombstones{worker="0"} 0.0"#,
            r#"dp_nat_port_scan_steps_bucket{le="+Inf",worker="1",result="exhausted"} 0"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let helps = text.lines().filter(|line| line.starts_with("# HELP"));
        let described = counters().len() + gauges().count() + histograms().len();
        assert_eq!(helps.count(), described);
    }

    #[test]
    fn a_group_that_is_called_as_what_no_group_decides_on_shares_its_series() {
        let lines = [("web", 1), (DEFAULT, 2), ("web", 3), (DEFAULT, 4)];
        let all: Vec<_> = summed(lines.into_iter()).collect();
        assert_eq!(all, [(DEFAULT, 6), ("web", 4)]);
    }
}
