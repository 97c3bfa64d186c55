//! `dataplane.*`: addresses of the data ports, flow tracking, translation, limits.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::cpus::Cpus;
use super::key::{Part, section};
use super::net::{Route, SourceNat};
use super::read::Reader;
use super::value::{Auto, Value, choice};
use super::xdp::Xdp;

/// Addresses that the sources of one family may be translated to at most: their ports in use are counted by address.
const MAX_POOL: usize = 64;

/// Flows that a node tracks, and bindings that it translates, unless told otherwise.
const TABLE_CAPACITY: u32 = 1 << 20;

section! {
    /// Addresses of the data ports, flow tracking, translation, limits.
    Dataplane, Part::Node;

    /// Idle time after which a flow of any protocol ends. Half-open, reset and TIME_WAIT connections of TCP end no later
    /// than by default. Unset: by protocol and state, after RFC 5382 (TCP), RFC 4787 (UDP) and RFC 5508 (ICMP), as
    /// [translation.md](translation.md#how-long-flows-live) lists.
    idle_timeout_secs: Option<u32> = None, flag("idle-timeout-secs"), unit("s"), range(1..=31_536_000);
    /// How long an address learned from DNS outlives its TTL.
    dns_allowlist_idle_secs: Option<u32> = None, flag("dns-allowlist-idle-secs"), unit("s"), range(1..=31_536_000),
        part(Part::Grants), default_is("idle_timeout_secs + 120; 420 while that is unset");
    /// How often ended grants are cleared away.
    dns_allowlist_gc_interval_secs: u32 = 30, flag("dns-allowlist-gc-interval-secs"), unit("s"), range(1..=31_536_000),
        part(Part::Grants);
    /// How long a DHCP server may take to answer before it is asked again; doubled with each repetition.
    dhcp_timeout_secs: u32 = 5, flag("dhcp-timeout-secs"), unit("s"), range(1..=31_536_000), part(Part::Dhcp);
    /// How often a DHCP message is repeated before the client begins anew.
    dhcp_retry_max: u32 = 5, flag("dhcp-retry-max"), range(1..=u64::from(u32::MAX)), part(Part::Dhcp);
    /// A lease is given up no sooner than this after the DHCP server's last word, however short it is. It is renewed in
    /// its own time.
    dhcp_lease_min_secs: u32 = 60, flag("dhcp-lease-min-secs"), unit("s"), range(1..=31_536_000), part(Part::Dhcp);
    /// Translation of IPv4 sources on the way out: none, the port's own address, a given one, or a pool of up to 64, as
    /// addresses and prefixes (all of a prefix but its first and last address). A client keeps to one address of a pool as
    /// long as that has ports left. In the file also as a list, `{mode: static, ip: ADDRESS}` or
    /// `{mode: pool, addresses: LIST}`.
    snat: SourceNat = SourceNat::Auto, flag("snat"), default_is("auto; none with an encap_mode");
    /// Translation of IPv6 sources on the way out, likewise; the first and last address of a prefix count as well.
    nat66: SourceNat = SourceNat::None;
    /// Which port a translated flow shows: one that flows to other servers may show too, or the same one to every
    /// server as long as the client's port is in use (RFC 4787), which suits programs that tell others their address
    /// and needs more ports. What may come back is decided by server and port either way.
    nat_mapping: NatMapping = NatMapping::AddressAndPortDependent;
    /// Tunnel in which traffic arrives and leaves.
    encap_mode: EncapMode = EncapMode::None, flag("encap"), part(Part::Overlay);
    /// VXLAN network, of both directions.
    encap_vni: Option<u32> = None, flag("encap-vni"), range(0..=16_777_215), part(Part::Overlay);
    /// VXLAN network towards the inside.
    encap_vni_internal: Option<u32> = None, flag("encap-vni-internal"), range(0..=16_777_215), part(Part::Overlay);
    /// VXLAN network towards the outside.
    encap_vni_external: Option<u32> = None, flag("encap-vni-external"), range(0..=16_777_215), part(Part::Overlay);
    /// UDP port of the tunnel.
    encap_udp_port: Option<u16> = None, flag("encap-udp-port"), range(1..=65_535), part(Part::Overlay),
        default_is("10800 for vxlan, 6081 for geneve");
    /// UDP port of the tunnel towards the inside.
    encap_udp_port_internal: u16 = 10_800, flag("encap-udp-port-internal"), range(1..=65_535),
        part(Part::Overlay);
    /// UDP port of the tunnel towards the outside.
    encap_udp_port_external: u16 = 10_801, flag("encap-udp-port-external"), range(1..=65_535),
        part(Part::Overlay);
    /// Largest packet in the tunnel; less where the link carries less. TCP connections are told so (MSS), other
    /// senders by ICMP.
    encap_mtu: u32 = 1500, flag("encap-mtu"), unit("bytes"), range(1..=65_535), part(Part::Overlay);
    /// Flows that can be tracked; held between 1,024 and 67,108,864.
    flow_table_capacity: u32 = TABLE_CAPACITY, range(1..=u64::from(u32::MAX));
    /// Bindings that can be translated; held between 1,024 and 67,108,864.
    nat_table_capacity: u32 = TABLE_CAPACITY, range(1..=u64::from(u32::MAX));
    /// Idle time of a TCP connection whose handshake is not complete. Unset: 30 s while only its first segment was seen,
    /// 60 s once that is answered, and `idle_timeout_secs` where that is less.
    flow_incomplete_tcp_idle_timeout_secs: Option<u32> = None, unit("s"), range(1..=31_536_000);
    /// Idle time of a TCP connection of which only the first segment was seen. Unset: as
    /// `flow_incomplete_tcp_idle_timeout_secs` says.
    flow_incomplete_tcp_syn_sent_idle_timeout_secs: Option<u32> = None, unit("s"), range(1..=31_536_000);
    /// Packet workers, each with a thread, a flow table and a queue of every data port of its own. auto: one for each of
    /// `worker_cpus`, or else for each processor but the first, eight at most.
    workers: Auto<u32> = Auto::Auto, range(1..=64);
    /// Processors of the packet workers, in order, one for each, on which their threads stay. Unset: where there are several
    /// workers, or one of DPDK, each stays on one of its own among those that the process may use, not on the first if there
    /// are enough without it; on none if there are more workers than processors.
    worker_cpus: Vec<Cpus> = Vec::new(), default_is("unset");
    /// How long after a frame that has woken a packet worker all processors are kept out of idle states that take more
    /// than 2 µs to leave, and in virtual machines (cpuidle's haltpoll) out of all, through `/dev/cpu_dma_latency`, so that
    /// the next frame and the answer to this one are not delayed by waking one up: a third to a half of a quiet round trip
    /// in virtual machines. While frames keep coming in between, idle processors halt or poll all the time, which costs
    /// power or the host's time; not while there are none, nor while a worker does not sleep. Zero: never.
    cpu_latency_hold_ms: u32 = 20, unit("ms"), range(0..=10_000);
    /// Drops TCP segments that lie outside what the ends of their connection have shown each other.
    tcp_window_check: bool = true;
    /// How long after its start a node takes TCP connections over in their midst, as far as they begin inside and the
    /// policy allows them, so that a restart does not end them. Otherwise such a segment is answered with a reset.
    tcp_pick_up_secs: u32 = 120, unit("s"), range(0..=86_400);
    /// Largest segment that a TCP connection may use; larger offers in its handshake are lowered, for links beyond this node
    /// that carry less and do not say so. Unset: offers stay as they are.
    tcp_mss_max: Option<u16> = None, unit("bytes"), range(536..=65_495);
    /// How long fragments wait for the others of their datagram, which is judged and sent on when it is whole. Zero: all
    /// fragments are dropped.
    fragment_timeout_secs: u32 = 10, unit("s"), range(0..=120);
    /// Answers TCP health probes to the data ports' own addresses while the node is ready for traffic: on port 8080
    /// anybody's, on port 80 those of Google Cloud's checkers. `auto`: with a `bootstrap.cloud_provider`.
    health_probe: Auto<bool> = Auto::Auto;
    /// A table of its own for connections of which only the first segment was seen.
    syn_only_enabled: bool = false, part(Part::DataplaneTuning);
    /// More metrics, at a cost.
    detailed_observability: bool = false, part(Part::DataplaneTuning);

    group nptv6: Nptv6;
    group admission: Admission;
    group ports: Ports;
    group xdp: Xdp;
}

section! {
    /// Translation of IPv6 prefixes (NPTv6, RFC 6296): a client keeps its host part and appears under another prefix.
    /// Goes before `nat66`. The outside prefix must be routed to this node, and both directions of a flow must pass it.
    Nptv6, Part::Node;

    /// Prefix that the clients have, at most 64 bits long.
    inside: Option<IpNet> = None;
    /// Prefix that servers see, at most 64 bits long.
    outside: Option<IpNet> = None;
}

section! {
    /// Limits above which new flows are refused. A limit that is left out keeps its default. Those by source and by source
    /// group hold for the node, however many packet workers it has and whichever of them a flow belongs to; each worker has
    /// the same share of those in all, and of the tables.
    Admission, Part::Node;

    /// Flows in all. When there are as many, those that nobody has answered give way to new ones, then idle ones that are
    /// not TCP; connections stay. The last sixteenth is for sources with less than a sixteenth.
    max_active_flows: Option<u32> = None, range(1..=u64::from(u32::MAX)), default_is("flow_table_capacity");
    /// Translated flows in all; give way as flows do.
    max_active_nat_entries: Option<u32> = None, range(1..=u64::from(u32::MAX)), default_is("nat_table_capacity");
    /// Flows whose TLS greeting is still awaited.
    max_pending_tls_flows: u32 = 2048, range(1..=u64::from(u32::MAX)), part(Part::Tls);
    /// Flows of one source group. Unset: as many as there are in all.
    max_active_flows_per_source_group: Option<u32> = None, range(1..=u64::from(u32::MAX));
    /// Flows of one source, which is a host or, in IPv6, a /64. Unset: as many as there are in all, but for the last
    /// sixteenth, which is for sources with less than a sixteenth.
    max_active_flows_per_source: Option<u32> = None, range(1..=u64::from(u32::MAX));
    /// Flows that one source may open per second, and as many at once. Unset: any number.
    max_new_flows_per_source_per_sec: Option<u32> = None, unit("1/s"), range(1..=u64::from(u32::MAX));
}

/// The data ports' addresses. A node with one arm has `inside` only.
#[derive(Debug, Clone, PartialEq)]
pub struct Ports {
    /// The only port, or the one towards the clients.
    pub inside: Port,
    /// The port towards the internet.
    pub outside: Port,
}

impl super::read::Section for Ports {
    const DOC: &'static str = "Addresses of the data ports.";

    fn read(reader: &mut Reader, prefix: &str) -> Self {
        Ports {
            inside: reader.section(prefix, "inside"),
            outside: reader.section(prefix, "outside"),
        }
    }
}

section! {
    /// One data port. On a node with one arm, `inside` is that arm.
    Port, Part::Node;

    /// The port's addresses with their prefix lengths, of both families. A port without any asks DHCP servers and
    /// routers for them, in every mode but `tun`.
    addresses: Vec<IpNet> = Vec::new();
    /// Default gateway; at most one of each family.
    gateway: Vec<IpAddr> = Vec::new();
    /// Further routes through this port. In the file also as a mapping of `to` and `via`.
    routes: Vec<Route> = Vec::new();
}

choice! {
    /// Which flows of a client show the same port.
    NatMapping {
        /// Those to one server and port.
        AddressAndPortDependent = "address-and-port-dependent",
        /// All.
        EndpointIndependent = "endpoint-independent",
    }
}

choice! {
    /// A tunnel.
    EncapMode {
        /// None.
        None = "none",
        /// VXLAN, RFC 7348.
        Vxlan = "vxlan",
        /// GENEVE, RFC 8926.
        Geneve = "geneve",
    }
}

impl Dataplane {
    /// How long a grant outlives the time to live of the answer, and the last flow that used it.
    pub fn dns_allowlist_idle(&self) -> Duration {
        let idle_s = self.idle_timeout_secs.unwrap_or(300).saturating_add(120);
        Duration::from_secs(self.dns_allowlist_idle_secs.unwrap_or(idle_s).into())
    }

    /// Fills in what follows from other keys.
    pub(super) fn normalise(&mut self, reader: &Reader) {
        let held = |capacity: u32| capacity.clamp(1024, 1 << 26);
        self.flow_table_capacity = held(self.flow_table_capacity);
        self.nat_table_capacity = held(self.nat_table_capacity);
        if self.encap_mode != EncapMode::None && !reader.was_given("dataplane.snat") {
            self.snat = SourceNat::None;
        }
    }

    /// How many packet workers there are, on a machine with so many processors.
    pub fn workers(&self, processors: usize) -> usize {
        match self.workers {
            Auto::Auto if !self.worker_cpus.is_empty() => self.worker_cpus().len(),
            Auto::Auto => processors.saturating_sub(1).clamp(1, 8),
            Auto::Fixed(workers) => workers as usize,
        }
    }

    /// The processors that the packet workers stay on, in order; none if that is left to the node.
    pub fn worker_cpus(&self) -> Vec<u32> {
        let cpus = self.worker_cpus.iter();
        cpus.flat_map(|cpus| cpus.numbers()).collect()
    }

    fn check_worker_cpus(&self, reader: &mut Reader) {
        let path = "dataplane.worker_cpus";
        let mut cpus = self.worker_cpus();
        match self.workers {
            Auto::Fixed(workers) if !cpus.is_empty() && cpus.len() != workers as usize => {
                let count = cpus.len();
                let reason = format!(
                    "names {count} processors for the {workers} of dataplane.workers; name one for each, or leave that key out"
                );
                reader.problem(path, reason);
            }
            Auto::Auto if cpus.len() > 64 => {
                let reason = format!("names {} processors; at most 64", cpus.len());
                reader.problem(path, reason);
            }
            _ => {}
        }
        cpus.sort_unstable();
        let mut twice: Vec<u32> = cpus
            .windows(2)
            .filter(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
            .collect();
        twice.dedup();
        for cpu in twice {
            reader.problem(path, format!("names processor {cpu} more than once"));
        }
    }

    /// Flows that may be open at a time.
    pub fn max_active_flows(&self) -> u32 {
        self.admission
            .max_active_flows
            .unwrap_or(self.flow_table_capacity)
            .min(self.flow_table_capacity)
    }

    /// Translated flows that may be open at a time.
    pub fn max_active_nat_entries(&self) -> u32 {
        self.admission
            .max_active_nat_entries
            .unwrap_or(self.nat_table_capacity)
            .min(self.nat_table_capacity)
    }

    /// Keys of the ports that have no address.
    pub(super) fn unaddressed(&self, two_arms: bool) -> Vec<&'static str> {
        let inside = ("dataplane.ports.inside.addresses", &self.ports.inside);
        let outside = ("dataplane.ports.outside.addresses", &self.ports.outside);
        [Some(inside), two_arms.then_some(outside)]
            .into_iter()
            .flatten()
            .filter(|(_, port)| port.addresses.is_empty())
            .map(|(key, _)| key)
            .collect()
    }

    pub(super) fn check(&self, two_arms: bool, reader: &mut Reader) {
        for (path, nat, wants_v4) in [
            ("dataplane.snat", &self.snat, true),
            ("dataplane.nat66", &self.nat66, false),
        ] {
            self.check_translation(path, nat, wants_v4, reader);
        }
        self.nptv6.check(reader);
        self.check_worker_cpus(reader);
        self.check_overlay(two_arms, reader);
        self.ports.inside.check("dataplane.ports.inside", reader);
        self.ports.outside.check("dataplane.ports.outside", reader);
        if !two_arms {
            for key in ["addresses", "gateway", "routes"] {
                let path = format!("dataplane.ports.outside.{key}");
                if reader.was_given(&path) {
                    reader.problem(
                        &path,
                        "there is no outside port; set bootstrap.outside_interface".into(),
                    );
                }
            }
        }
        for (network, others) in [(&self.ports.inside, &self.ports.outside)] {
            for address in &network.addresses {
                if let Some(other) = others
                    .addresses
                    .iter()
                    .find(|other| other.trunc() == address.trunc())
                {
                    let reason = format!(
                        "{other} and the inside's {address} are of one network; ports need one each"
                    );
                    reader.problem("dataplane.ports.outside.addresses", reason);
                }
            }
        }
    }

    fn check_translation(&self, path: &str, nat: &SourceNat, wants_v4: bool, reader: &mut Reader) {
        let addresses = nat.addresses();
        if addresses.len() > MAX_POOL {
            let reason = format!(
                "{} is more than {MAX_POOL} addresses; write fewer, or a longer prefix",
                nat.show()
            );
            return reader.problem(path, reason);
        }
        let ports = [&self.ports.inside, &self.ports.outside];
        for address in addresses {
            if address.is_ipv4() != wants_v4 || !is_host(address) {
                let family = if wants_v4 { "IPv4" } else { "IPv6" };
                let reason = format!("{address} is not an {family} host address; write one");
                return reader.problem(path, reason);
            }
            if ports.iter().any(|port| port.gateway.contains(&address)) {
                let reason = format!("{address} is a gateway; leave it out");
                return reader.problem(path, reason);
            }
        }
    }

    fn check_overlay(&self, two_arms: bool, reader: &mut Reader) {
        if self.encap_mode != EncapMode::None && two_arms {
            reader.problem(
                "dataplane.encap_mode",
                "needs one data port, since packets go back to where they came from; leave out \
                 bootstrap.outside_interface"
                    .into(),
            );
        }
        let pair = [
            ("internal", self.encap_vni_internal),
            ("external", self.encap_vni_external),
        ];
        let any_of_pair = pair.iter().any(|(_, vni)| vni.is_some());
        let any = any_of_pair || self.encap_vni.is_some();
        let path = if self.encap_vni.is_some() {
            "dataplane.encap_vni"
        } else {
            "dataplane.encap_vni_internal"
        };
        match self.encap_mode {
            EncapMode::Geneve if any => {
                reader.problem(
                    path,
                    "is for vxlan; a GENEVE network is taken from the packets, leave it out".into(),
                );
            }
            EncapMode::Vxlan if self.encap_vni.is_some() && any_of_pair => {
                reader.problem(
                    path,
                    "excludes encap_vni_internal and encap_vni_external; give one or the pair"
                        .into(),
                );
            }
            EncapMode::Vxlan if self.encap_vni.is_none() => {
                for (side, vni) in pair {
                    if vni.is_none() {
                        let path = format!("dataplane.encap_vni_{side}");
                        reader.problem(
                            &path,
                            "is required by encap_mode vxlan; give the pair, or encap_vni".into(),
                        );
                    }
                }
                let same_port = self.encap_udp_port_internal == self.encap_udp_port_external;
                if any_of_pair && same_port && self.encap_vni_internal == self.encap_vni_external {
                    reader.problem(
                        "dataplane.encap_vni_external",
                        "and its port are those of the internal tunnel; give the two another network or port".into(),
                    );
                }
            }
            _ => {}
        }
    }
}

impl Nptv6 {
    /// Both prefixes, if there are any.
    pub fn prefixes(&self) -> Option<(Ipv6Net, Ipv6Net)> {
        match (self.inside, self.outside) {
            (Some(IpNet::V6(inside)), Some(IpNet::V6(outside))) => Some((inside, outside)),
            _ => None,
        }
    }

    fn check(&self, reader: &mut Reader) {
        let sides = [("inside", self.inside), ("outside", self.outside)];
        for (key, prefix) in sides {
            let path = format!("dataplane.nptv6.{key}");
            match prefix {
                None if sides.iter().any(|(_, other)| other.is_some()) => reader.problem(
                    &path,
                    "is required beside the other dataplane.nptv6 key; give both or none".into(),
                ),
                Some(net) if net.addr().is_ipv4() => {
                    reader.problem(&path, format!("{net} is not an IPv6 prefix; write one"));
                }
                _ => {}
            }
        }
    }
}

impl Port {
    fn check(&self, prefix: &str, reader: &mut Reader) {
        let path = |key: &str| format!("{prefix}.{key}");
        for address in &self.addresses {
            let bits = if address.addr().is_ipv4() { 32 } else { 128 };
            // A prefix that is one or two addresses long has no address set apart for the network (RFC 3021, RFC 6164).
            let is_network = address.addr() == address.network() && address.prefix_len() + 1 < bits;
            if !is_host(address.addr()) || (is_network && address.addr().is_ipv4()) {
                let reason = format!(
                    "{address} is not an address of a host; write the port's own, as 10.1.0.5/24"
                );
                reader.problem(&path("addresses"), reason);
            }
        }
        // What a port without addresses will reach is not known yet.
        let on_link = |hop: IpAddr| {
            self.addresses.is_empty()
                || self.addresses.iter().any(|address| address.contains(&hop))
                || is_link_local(hop)
        };
        for (index, gateway) in self.gateway.iter().enumerate() {
            if self.gateway[..index]
                .iter()
                .any(|earlier| earlier.is_ipv4() == gateway.is_ipv4())
            {
                reader.problem(
                    &path("gateway"),
                    format!("{gateway} is the second of its family; keep one of each"),
                );
            }
            if !on_link(*gateway) {
                let reason = format!(
                    "{gateway} is in none of the networks of {prefix}.addresses; give the port one"
                );
                reader.problem(&path("gateway"), reason);
            }
            if self
                .addresses
                .iter()
                .any(|address| address.addr() == *gateway)
            {
                reader.problem(
                    &path("gateway"),
                    format!("{gateway} is the port's own address; name the router's"),
                );
            }
        }
        for route in &self.routes {
            if !on_link(route.via) {
                let reason = format!(
                    "{} is in none of the networks of {prefix}.addresses; give the port one",
                    route.via
                );
                reader.problem(&path("routes"), reason);
            }
        }
    }
}

/// Whether a host can have this address.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// Whether the address is one that every IPv6 link has (RFC 4291, 2.5.6).
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
