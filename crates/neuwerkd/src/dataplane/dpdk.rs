//! Opening the data ports under DPDK.

use std::sync::Arc;

use anyhow::Context;
use io::dpdk::{
    DeviceConfig, DpdkPort, Eal, EalConfig, Iova, Located, Meter, OpenError, Queue, Selector,
};
use io::tun::Segments;

use super::Judging;
use super::addresses;
use super::devices::{Device, Figures};
use super::ports::{HeldDataplane, hold, launch};
use crate::config::{Auto, Config, DataInterface, Dpdk, IovaMode, PerfMode};
use crate::handover::Received;

/// Starts DPDK, opens the data ports and starts the packet workers on them, under what is judged by from the first packet on, with
/// the flows that were `received` from the process before.
///
/// # Errors
/// A device is missing, in use or refuses a setting, or settings contradict each other.
pub(super) fn start(
    config: &Config,
    judging: Judging,
    received: &Arc<Received>,
) -> anyhow::Result<HeldDataplane> {
    let bootstrap = &config.bootstrap;
    let outside = bootstrap.outside_interface.as_ref();
    // Each with the key that an error is to name.
    let ports = [
        ("bootstrap.data_interface", Some(&bootstrap.data_interface)),
        ("bootstrap.outside_interface", outside),
    ];
    let mut located = Vec::new();
    for (key, port) in ports {
        if let Some(port) = port {
            located.push((key, selector(port).locate().context(key)?));
        }
    }
    let named = ports.iter().filter_map(|(_, port)| *port);
    let named = named.map(DataInterface::to_string).collect();
    let (acquire, addresses) = addresses::prepare(config, named, &received.addresses()).unzip();
    let kernels = |(key, located): &(_, Located)| Some((*key, located.interface()?.to_owned()));
    let holds = hold(config, located.iter().filter_map(kernels))?;

    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (workers, exactly) = match (config.dpdk.workers, config.dataplane.workers) {
        (Auto::Fixed(workers), _) => (workers as usize, true),
        (Auto::Auto, wanted) => (config.dataplane.workers(processors), wanted != Auto::Auto),
    };
    let devices = |workers: usize| -> Vec<DeviceConfig> {
        let device = |index| device(&config.dpdk, index, workers);
        (0..located.len()).map(device).collect()
    };
    let mut pci: Vec<String> = Vec::new();
    for address in located.iter().flat_map(|(_, located)| located.pci()) {
        if !pci.contains(address) {
            pci.push(address.clone());
        }
    }
    let eal = Eal::start(&EalConfig {
        pci,
        memory_mib: devices(workers).iter().map(DeviceConfig::memory_mib).sum(),
        without_in_memory: config.dpdk.disable_in_memory,
        iova: match config.dpdk.iova_mode {
            Auto::Auto => None,
            Auto::Fixed(IovaMode::Va) => Some(Iova::Virtual),
            Auto::Fixed(IovaMode::Pa) => Some(Iova::Physical),
        },
        drivers: config.dpdk.driver_preload.clone(),
    })
    .context("bootstrap.data_plane_mode")?;
    let open = |workers| open(eal, &located, &devices(workers));
    let queues = match open(workers) {
        // As many as there are queues, if the number is left to us.
        Err((_, OpenError::TooFewQueues { queues, .. })) if queues > 0 && !exactly => {
            open(usize::from(queues))
        }
        opened => opened,
    };
    let (queues, meters) =
        queues.map_err(|(key, error)| anyhow::Error::from(error).context(key))?;
    // UDP in super-packets is cut by none of DPDK's devices.
    let mut offered = queues.iter().flatten().map(Queue::capabilities);
    let from_host = if offered.all(|capabilities| capabilities.tx_gso_tcp) {
        Segments::Tcp
    } else {
        Segments::Plain
    };
    let stays_awake = config.dpdk.perf_mode == PerfMode::Aggressive;
    let make = |queues: Vec<Queue>| {
        move || {
            let mut ports: Vec<DpdkPort> = queues.into_iter().map(DpdkPort::new).collect();
            if stays_awake {
                for port in &mut ports {
                    port.stay_awake()?;
                }
            }
            Ok(ports)
        }
    };
    let makes = queues.into_iter().map(make).collect();
    let mut dataplane = launch(config, judging, acquire, from_host, makes, received)?;
    dataplane.devices = meters.into_iter().map(shown).collect();
    let ports = received.ports.clone();
    HeldDataplane::new(dataplane, addresses, ports, holds)
}

/// A device as metrics see it.
fn shown(meter: Meter) -> Device {
    Device::new(move || {
        let figures = meter.read()?;
        Some(Figures {
            rx_dropped: figures.rx_dropped,
            buffers: figures.buffers,
            buffers_in_use: figures.buffers_in_use,
            xstats: figures.xstats,
        })
    })
}

/// By worker, its queue of each device; and by port, what tells of its device.
type Opened = (Vec<Vec<Queue>>, Vec<Meter>);

/// Opens all devices. An error comes with the key of its port.
fn open(
    eal: Eal,
    located: &[(&'static str, Located)],
    devices: &[DeviceConfig],
) -> Result<Opened, (&'static str, OpenError)> {
    let mut by_worker: Vec<Vec<Queue>> = Vec::new();
    let mut meters = Vec::new();
    for ((key, located), device) in located.iter().zip(devices) {
        let opened = Queue::open(eal, located, device).map_err(|error| (*key, error))?;
        if let Some(queue) = opened.first() {
            let (driver, offloads) = (queue.driver(), queue.offloads());
            tracing::info!(
                port = *key,
                driver,
                offloads,
                queues = opened.len(),
                "the data port is open"
            );
        }
        meters.extend(Meter::of(&opened));
        by_worker.resize_with(opened.len(), Vec::new);
        for (queues, queue) in by_worker.iter_mut().zip(opened) {
            queues.push(queue);
        }
    }
    Ok((by_worker, meters))
}

fn selector(port: &DataInterface) -> Selector {
    match port {
        DataInterface::Name(name) => Selector::Interface(name.as_str().to_owned()),
        DataInterface::Pci(address) => Selector::Pci(address.clone()),
        DataInterface::Mac(mac) => Selector::Mac(mac.0),
        DataInterface::Vdev(arguments) => Selector::Vdev(arguments.clone()),
    }
}

/// How the port with this index is opened, inside first, for so many workers.
fn device(dpdk: &Dpdk, index: usize, workers: usize) -> DeviceConfig {
    // Their ranges are those of the keys.
    let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    DeviceConfig {
        queues: u16::try_from(workers).unwrap_or(u16::MAX),
        rx_ring: narrow(dpdk.rx_ring_size),
        tx_ring: narrow(dpdk.tx_ring_size),
        mtu: dpdk.port_mtu.map(narrow),
        mac: dpdk.static_mac.filter(|_| index == 0).map(|mac| mac.0),
        buffers: dpdk.mbuf_pool_size,
        data_room: dpdk.mbuf_data_room.map(narrow),
        tx_checksum: match dpdk.tx_checksum_offload {
            Auto::Auto => None,
            Auto::Fixed(wanted) => Some(wanted),
        },
        interrupts: dpdk.perf_mode == PerfMode::Standard,
    }
}
