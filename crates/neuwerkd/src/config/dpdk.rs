//! `dpdk.*`: the DPDK backend, and the published spelling of a single arm's static address.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::bootstrap::DataPlaneMode;
use super::dataplane::Port;
use super::key::{Key, Part, section};
use super::net::Mac;
use super::read::Reader;
use super::value::{Auto, choice};

section! {
    /// The DPDK backend; [its page](dpdk.md) says how to use it. The four `static_` keys are the published
    /// spelling of `dataplane.ports.inside` with one address and a gateway, in every mode. They are given all four or not at
    /// all, and not beside `addresses` or `gateway` of that port.
    Dpdk, Part::DataplaneTuning;

    /// Address of the data port.
    static_ip: Option<IpAddr> = None, part(Part::Node);
    /// Prefix length of `static_ip`.
    static_prefix_len: Option<u8> = None, range(0..=128), part(Part::Node);
    /// Default gateway of the data port.
    static_gateway: Option<IpAddr> = None, part(Part::Node);
    /// Hardware address of the data port; the device's own unless set. It has an effect in the mode `dpdk` only.
    static_mac: Option<Mac> = None, part(Part::Dpdk);
    /// Packet threads, each with a queue of every port; as `dataplane.workers` unless set.
    workers: Auto<u32> = Auto::Auto, range(1..=1024), part(Part::Dpdk);
    /// Cores of the packet threads, in order, on which they stay. Unset: as `dataplane.worker_cpus`.
    core_ids: Vec<u32> = Vec::new(), default_is("unset"), part(Part::Dpdk);
    /// More than one worker on Azure.
    allow_azure_multiworker: bool = false;
    /// Hands all received packets out from one worker.
    force_shared_rx_demux: bool = false;
    /// Keeps intercepted traffic on one worker.
    pin_https_demux_owner: bool = false;
    /// Does without the lane to the host.
    disable_service_lane: bool = false;
    /// One queue for each worker, without locks.
    lockless_queue_per_worker: bool = false;
    /// Keeps a shard of the state with its worker.
    pin_state_shard_guard: bool = false;
    /// Takes huge pages from a mounted hugetlbfs instead of anonymously.
    disable_in_memory: bool = false, part(Part::Dpdk);
    /// Takes the NetVSC driver.
    force_netvsc: bool = false;
    /// Looks for Google Cloud's network cards.
    gcp_auto_probe: bool = false;
    /// Does not load the PCI bus driver in advance.
    skip_bus_pci_preload: bool = false;
    /// Prefers PCI addresses to hardware addresses.
    prefer_pci: bool = false;
    /// More queues although the card has no redirection table.
    allow_retaless_multi_queue: bool = false;
    /// Only the owner of a shared queue reads it.
    shared_rx_owner_only: bool = true;
    /// What is done where the card has one queue.
    single_queue_mode: SingleQueueMode = SingleQueueMode::Demux;
    /// What an idle packet thread does: `standard` sleeps until the card's interrupt, or where there is none looks every
    /// millisecond; `aggressive` never sleeps, which takes a whole core.
    perf_mode: PerfMode = PerfMode::Standard, part(Part::Dpdk);
    /// Packets between two rounds of housekeeping.
    housekeeping_interval_packets: u32 = 64, range(1..=u64::from(u32::MAX));
    /// Time between two rounds of housekeeping.
    housekeeping_interval_us: u32 = 250, unit("µs"), range(1..=u64::from(u32::MAX));
    /// Packets for which a shard is kept.
    pin_state_shard_burst: u32 = 64, range(1..=u64::from(u32::MAX));
    /// Shards of the state.
    state_shards: Option<u32> = None, range(1..=65_535), default_is("workers");
    /// How the card addresses memory.
    iova_mode: Auto<IovaMode> = Auto::Auto, part(Part::Dpdk);
    /// Driver libraries to load beside those of the installation.
    driver_preload: Vec<String> = Vec::new(), part(Part::Dpdk);
    /// Number of queues, whatever the card offers.
    queue_override: Option<u32> = None, range(1..=1024);
    /// Largest packet of the ports. Unset: what the device is set to.
    port_mtu: Option<u32> = None, unit("bytes"), range(576..=65_535), part(Part::Dpdk);
    /// Room in a packet buffer. Unset: enough for the largest packet, and 2048 at least.
    mbuf_data_room: Option<u32> = None, unit("bytes"), range(1..=65_535), part(Part::Dpdk);
    /// Packet buffers of each port. Unset: as many as fill its rings and what a packet thread holds.
    mbuf_pool_size: Option<u32> = None, range(1..=u64::from(u32::MAX)), part(Part::Dpdk);
    /// Descriptors of a receive queue.
    rx_ring_size: u32 = 1024, range(1..=65_535), part(Part::Dpdk);
    /// Descriptors of a transmit queue.
    tx_ring_size: u32 = 1024, range(1..=65_535), part(Part::Dpdk);
    /// Lets the card complete checksums: `auto` where it can, `true` requires it.
    tx_checksum_offload: Auto<bool> = Auto::Auto, part(Part::Dpdk);
    /// Hardware address that the gateway must have, of either family. This and the two below hold in every mode, on the
    /// only data port or the outside one.
    gateway_mac: Option<Mac> = None, part(Part::Dhcp);
    /// Address that the DHCP server must have.
    dhcp_server_ip: Option<Ipv4Addr> = None, part(Part::Dhcp);
    /// Hardware address that the station must have through which the DHCP server is heard.
    dhcp_server_mac: Option<Mac> = None, part(Part::Dhcp);

    group service_lane: ServiceLane;
    group intercept_demux: InterceptDemux;
    group overlay: DpdkOverlay;
}

section! {
    /// The lane to the host.
    ServiceLane, Part::DataplaneTuning;

    /// Its interface.
    interface: String = "svc0".into();
    /// Address of the TLS service plane on it.
    intercept_service_ip: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 255, 1));
    /// Port of the TLS service plane on it.
    intercept_service_port: u16 = 15_443, range(1..=65_535);
    /// Several queues.
    multi_queue: bool = true;
}

section! {
    /// Which connection an intercepted packet belongs to.
    InterceptDemux, Part::DataplaneTuning;

    /// Time between two clearances.
    gc_interval_ms: u32 = 1000, unit("ms"), range(1..=u64::from(u32::MAX));
    /// Connections at a time.
    max_entries: u32 = 65_536, range(1..=u64::from(u32::MAX));
    /// Shards.
    shard_count: u32 = 64, range(1..=u64::from(u32::MAX));
    /// Frames that may wait for the host.
    host_frame_queue_max: u32 = 8192, range(1..=u64::from(u32::MAX));
    /// Frames that may wait for a hardware address.
    pending_arp_queue_max: u32 = 4096, range(1..=u64::from(u32::MAX));
}

section! {
    /// Tunnels. These keys hold in every mode.
    DpdkOverlay, Part::Overlay;

    /// Sends packets on in the other tunnel than the one that they came by, as Azure's gateway load balancer wants it;
    /// otherwise they go back in the same. For vxlan with a pair of networks.
    swap_tunnels: bool = false;
    /// Sends from the tunnel's own UDP port; otherwise from the one that the packet came from, which spreads flows over
    /// paths.
    force_tunnel_src_port: bool = false;
    /// Logs once a second how many packets came out of tunnels and went into them, and how many could not, while any do.
    /// Single packets are followed by `neuwerk trace`.
    debug: bool = false;
    /// Logs once a second how many health probes were answered, and how many were not, while any come; of all probes, in a
    /// tunnel or not.
    health_probe_debug: bool = false;
}

choice! {
    /// What is done where the card has one queue.
    SingleQueueMode {
        /// One worker hands packets out to the others.
        Demux = "demux",
        /// One worker does everything.
        Single = "single",
    }
}

choice! {
    /// What an idle packet thread does.
    PerfMode {
        /// Idle threads sleep.
        Standard = "standard",
        /// They do not.
        Aggressive = "aggressive",
    }
}

choice! {
    /// How the card addresses memory.
    IovaMode {
        /// By virtual address.
        Va = "va",
        /// By physical address.
        Pa = "pa",
    }
}

super::value::text_value!(Ipv4Addr, "an IPv4 address", "10.0.0.1", |text| text
    .parse()
    .ok());

impl Dpdk {
    /// Names what has no effect in another mode: all that differs from the defaults.
    pub(super) fn check(&self, mode: DataPlaneMode, reader: &mut Reader) {
        if mode == DataPlaneMode::Dpdk {
            return;
        }
        let differs = |key: &&Key| {
            let shown = reader.shown.get(&key.path);
            key.part == Part::Dpdk && shown.is_some_and(|shown| *shown != key.default)
        };
        let without: Vec<String> = reader
            .keys
            .iter()
            .filter(differs)
            .map(|key| key.path.clone())
            .collect();
        for path in without {
            reader.has_no_effect(&path);
        }
    }

    /// Writes the static address, where there is one, into the port that it belongs to.
    pub(super) fn fill(&self, inside: &mut Port, reader: &mut Reader) {
        let names = [
            "static_ip",
            "static_prefix_len",
            "static_gateway",
            "static_mac",
        ];
        let given = names.map(|name| reader.was_given(&format!("dpdk.{name}")));
        if given.contains(&true) {
            for (name, _) in names.iter().zip(given).filter(|(_, given)| !given) {
                let reason =
                    "is required beside the other dpdk.static_ keys; give all four or none".into();
                reader.problem(&format!("dpdk.{name}"), reason);
            }
        }
        let (Some(address), Some(length), Some(gateway)) =
            (self.static_ip, self.static_prefix_len, self.static_gateway)
        else {
            return;
        };
        if !inside.addresses.is_empty() || !inside.gateway.is_empty() {
            let reason =
                "and dataplane.ports.inside say the same thing; keep one of the two".into();
            reader.problem("dpdk.static_ip", reason);
            return;
        }
        match IpNet::new(address, length) {
            Ok(network) => {
                inside.addresses.push(network);
                inside.gateway.push(gateway);
            }
            Err(_) => reader.problem(
                "dpdk.static_prefix_len",
                format!("{length} is too long for {address}; at most 32"),
            ),
        }
    }
}
