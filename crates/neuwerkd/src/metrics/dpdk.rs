//! The mode `dpdk`: what its queues, devices and buffers have counted, read at every scrape.

use std::sync::Arc;

use engine::counters::PortCounters;
use engine::{DropReason, WorkerCounters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::dataplane::{Figures, PORT_NAMES};
use crate::http::App;

/// Reads what `app` has now.
pub(super) struct DpdkCollector {
    app: Arc<App>,
}

impl DpdkCollector {
    /// Registers it.
    pub(super) fn register(registry: &mut Registry, app: Arc<App>) {
        registry.register_collector(Box::new(Self { app }));
    }
}

impl std::fmt::Debug for DpdkCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DpdkCollector")
    }
}

impl Collector for DpdkCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(dataplane) = self.app.running_dataplane() else {
            return Ok(());
        };
        let devices: Vec<_> = dataplane.devices().iter().map(|d| d.read()).collect();
        if devices.is_empty() {
            return Ok(());
        }
        encode(&dataplane.counters(), &devices, encoder)
    }
}

/// A value of one queue of one port.
type ReadPort = fn(&PortCounters) -> u64;

/// What is counted for all queues under the first name, and for each under the second; a queue is that of one packet
/// worker, at both ports.
#[rustfmt::skip] // A table reads better in columns.
const QUEUES: [(&str, &str, &str, ReadPort); 5] = [
    ("dpdk_rx_packets", "dpdk_rx_packets_queue", "Frames received",                        |p| p.received.packets.get()),
    ("dpdk_rx_bytes",   "dpdk_rx_bytes_queue",   "Bytes received",                         |p| p.received.bytes.get()),
    ("dpdk_tx_packets", "dpdk_tx_packets_queue", "Frames sent",                            |p| p.sent.packets.get()),
    ("dpdk_tx_bytes",   "dpdk_tx_bytes_queue",   "Bytes sent",                             |p| p.sent.bytes.get()),
    ("dpdk_tx_dropped", "dpdk_tx_dropped_queue", "Frames that the transmit ring had no room for, or that the driver refused", |p| p.tx_dropped.get() + p.tx_errors.get()),
];

const RX_DROPPED: (&str, &str) = (
    "dpdk_rx_dropped",
    "Frames lost before they were received, since no descriptor or no buffer was free",
);
const RX_DROPPED_QUEUE: (&str, &str) = (
    "dpdk_rx_dropped_queue",
    "Frames lost before they were received, by queue; 0 where the driver does not tell queues apart",
);

/// A value of one worker.
type Read = fn(&WorkerCounters) -> u64;

#[rustfmt::skip] // A table reads better in columns.
const WORKERS: [(&str, &str, Read); 2] = [
    ("dpdk_host_frame_dropped",        "Frames for the host that it could not be handed", |w| w.dropped(DropReason::LaneUnavailable).packets.get()),
    ("dpdk_pending_arp_frame_dropped", "Frames that waited for a next hop in vain, or for which there was no room to wait", |w| w.dropped(DropReason::NeighborUnreachable).packets.get() + w.dropped(DropReason::NeighborQueueFull).packets.get()),
];

#[rustfmt::skip] // A table reads better in columns.
const BY_WORKER: [(&str, &str, Read); 2] = [
    ("dpdk_service_lane_forward_packets", "Frames handed to the host, by the packet worker that did it", |w| w.local.packets.get()),
    ("dpdk_service_lane_forward_bytes",   "Bytes handed to the host, by the packet worker that did it",  |w| w.local.bytes.get()),
];

const INIT_OK: (&str, &str, &str) = (
    "dpdk_init_ok",
    "",
    "Whether DPDK runs and all data ports are open, 1 or 0",
);
const BUFFERS: (&str, &str, &str) = ("neuwerk_dpdk_buffers", "port", "Buffers of a data port");
const BUFFERS_IN_USE: (&str, &str, &str) = (
    "neuwerk_dpdk_buffers_in_use",
    "port",
    "Buffers of a data port that hold a frame or wait for one in a ring",
);
const XSTAT: (&str, &str, &str) = (
    "dpdk_xstat",
    "port, name",
    "What the driver of a data port counts, by its own names (DPDK's extended statistics)",
);

/// Name, labels and help of every counter.
pub(super) fn counters() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let all = QUEUES.iter().map(|(all, _, help, _)| (*all, "", *help));
    let each = QUEUES
        .iter()
        .map(|(_, each, help, _)| (*each, "queue", *help));
    let workers = WORKERS.iter().map(|(name, help, _)| (*name, "", *help));
    let by_worker = BY_WORKER
        .iter()
        .map(|(name, help, _)| (*name, "from_worker", *help));
    all.chain(each).chain(workers).chain(by_worker).chain([
        (RX_DROPPED.0, "", RX_DROPPED.1),
        (RX_DROPPED_QUEUE.0, "queue", RX_DROPPED_QUEUE.1),
    ])
}

/// Name, labels and help of every gauge.
pub(super) const GAUGES: [(&str, &str, &str); 4] = [INIT_OK, BUFFERS, BUFFERS_IN_USE, XSTAT];

/// Of these workers, and of the devices in the order of the ports; none stands for one that is closed.
fn encode(
    workers: &[Arc<WorkerCounters>],
    devices: &[Option<Figures>],
    mut encoder: DescriptorEncoder,
) -> Result<(), std::fmt::Error> {
    let of_ports =
        |worker: &WorkerCounters, read: ReadPort| -> u64 { worker.ports().iter().map(read).sum() };
    for (all, each, help, read) in QUEUES {
        let values: Vec<u64> = workers.iter().map(|w| of_ports(w, read)).collect();
        counter(&mut encoder, all, help, values.iter().sum())?;
        family(&mut encoder, each, help, "queue", &values)?;
    }
    // A device counts for all its queues, and that may be all that it does.
    let lost = workers.iter().map(|w| of_ports(w, |p| p.rx_dropped.get()));
    counter(&mut encoder, RX_DROPPED.0, RX_DROPPED.1, lost.sum())?;
    let of_queue = |queue: usize| -> u64 {
        let figures = devices.iter().flatten();
        figures.filter_map(|f| f.rx_dropped.get(queue)).sum()
    };
    let lost: Vec<u64> = (0..workers.len()).map(of_queue).collect();
    let (name, help) = RX_DROPPED_QUEUE;
    family(&mut encoder, name, help, "queue", &lost)?;
    for (name, help, read) in WORKERS {
        counter(
            &mut encoder,
            name,
            help,
            workers.iter().map(|w| read(w)).sum(),
        )?;
    }
    for (name, help, read) in BY_WORKER {
        let values: Vec<u64> = workers.iter().map(|w| read(w)).collect();
        family(&mut encoder, name, help, "from_worker", &values)?;
    }

    let (name, _, help) = INIT_OK;
    let open = ConstGauge::new(u64::from(devices.iter().all(Option::is_some)));
    open.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
    let names = PORT_NAMES[devices.len().saturating_sub(1).min(1)];
    let ports = || {
        names
            .iter()
            .zip(devices)
            .filter_map(|(name, d)| Some((*name, d.as_ref()?)))
    };
    type Read = fn(&Figures) -> u32;
    let buffers: [(_, Read); 2] = [
        (BUFFERS, |figures| figures.buffers),
        (BUFFERS_IN_USE, |figures| figures.buffers_in_use),
    ];
    for ((name, _, help), read) in buffers {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (port, figures) in ports() {
            let gauge = ConstGauge::new(read(figures));
            gauge.encode(family.encode_family(&[("port", port)])?)?;
        }
    }
    let (name, _, help) = XSTAT;
    let mut xstats = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (port, figures) in ports() {
        for (name, value) in &figures.xstats {
            let labels = [("port", port), ("name", name.as_str())];
            ConstGauge::new(*value).encode(xstats.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn counter(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// A counter of each queue or worker, from 0.
fn family(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    label: &str,
    values: &[u64],
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (index, value) in values.iter().enumerate() {
        let labels = [(label, index.to_string())];
        ConstCounter::new(*value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two(Vec<Option<Figures>>);

    impl Collector for Two {
        fn encode(&self, encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            super::encode(&[Arc::default(), Arc::default()], &self.0, encoder)
        }
    }

    fn text(devices: Vec<Option<Figures>>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Two(devices)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn devices_queues_and_buffers_are_told_apart() {
        let inside = Figures {
            rx_dropped: vec![3, 4],
            buffers: 4095,
            buffers_in_use: 1100,
            xstats: vec![("rx_missed_errors".into(), 7)],
        };
        let outside = Figures {
            rx_dropped: vec![0, 1],
            ..Figures::default()
        };
        let text = text(vec![Some(inside), Some(outside)]);
        for line in [
            "dpdk_init_ok 1",
            "dpdk_rx_packets_total 0",
            r#"dpdk_tx_bytes_queue_total{queue="1"} 0"#,
            r#"dpdk_rx_dropped_queue_total{queue="0"} 3"#,
            r#"dpdk_rx_dropped_queue_total{queue="1"} 5"#,
            r#"dpdk_service_lane_forward_packets_total{from_worker="0"} 0"#,
            r#"neuwerk_dpdk_buffers{port="inside"} 4095"#,
            r#"neuwerk_dpdk_buffers_in_use{port="inside"} 1100"#,
            r#"dpdk_xstat{port="inside",name="rx_missed_errors"} 7"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let described = text.lines().filter(|line| line.starts_with("# HELP"));
        assert_eq!(described.count(), counters().count() + GAUGES.len());
    }

    #[test]
    fn a_device_that_is_closed_tells_nothing() {
        let text = text(vec![None]);
        assert!(text.contains("dpdk_init_ok 0"), "{text}");
        assert!(!text.contains("neuwerk_dpdk_buffers{"), "{text}");
    }
}
