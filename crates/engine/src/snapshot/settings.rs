//! What the operator configures, apart from the policy, and what is wrong with it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use crate::clock::Now;
use crate::overlay::Overlay;
use crate::port::PortId;

/// Addresses and routes of one data port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// Our addresses on it, with the length of the on-link prefix. Without any, nothing leads to
    /// the port, and it answers nothing.
    pub addresses: Vec<IpNet>,
    /// Default routers, at most one of each family. With two arms the outside port's are used
    /// before the inside port's.
    pub gateways: Vec<IpAddr>,
    /// Static routes.
    pub routes: Vec<Route>,
    /// Prefixes on the link besides those of `addresses`.
    pub on_link: Vec<IpNet>,
    /// What the link carries, bytes, where that is less than the interface says.
    pub mtu: Option<u16>,
    /// The station that the gateways must be; none: any.
    pub gateway_mac: Option<[u8; 6]>,
    /// Addresses come and go while the node runs: it is no mistake if there is none at the moment.
    pub acquires: bool,
}

/// A static route through a router on the port's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The router.
    pub via: IpAddr,
}

/// Source NAT for IPv4 flows from inside to outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Snat {
    /// Addresses stay as they are.
    None,
    /// The first IPv4 address of the outside port (of the only port with one arm).
    #[default]
    Auto,
    /// This address.
    Static(IpAddr),
    /// One of these; a client keeps to one of them as long as it has ports left (RFC 4787 REQ-2).
    Pool(Vec<IpAddr>),
}

/// What decides which port of a NAT address a flow gets (RFC 4787 §4.1). What may come back is
/// address- and port-dependent either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NatMapping {
    /// A port is shared by flows to different servers.
    #[default]
    AddressAndPortDependent,
    /// A client's port shows the same port to every server, and no other client shows that one.
    EndpointIndependent,
}

/// Translation of IPv6 prefixes (NPTv6, RFC 6296), each at most 64 bits long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nptv6 {
    /// The prefix that clients have.
    pub inside: Ipv6Net,
    /// The prefix that servers see; it is routed to this node.
    pub outside: Ipv6Net,
}

/// What becomes of the health probes of load balancers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probes {
    /// They are packets like any other.
    #[default]
    Off,
    /// They stay unanswered: the node is not ready for traffic.
    NotReady,
    /// They are answered.
    Ready,
}

/// An address of the host that clients reach over the service lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// The address, as clients send to it.
    pub address: IpAddr,
    /// TCP and UDP ports that are handed to the host; any other is refused. Empty: all.
    pub ports: Vec<u16>,
}

/// How long a flow may be idle, by state. Resolution about 67 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, only the first SYN seen.
    pub tcp_syn_sent: Duration,
    /// TCP, SYN answered but not yet established.
    pub tcp_syn_received: Duration,
    /// TCP established; at least 2 h 4 min by RFC 5382 REQ-5.
    pub tcp_established: Duration,
    /// TCP with one or both directions closed; at least 4 min by RFC 5382 REQ-5.
    pub tcp_closing: Duration,
    /// TCP closed in both directions and acknowledged.
    pub tcp_time_wait: Duration,
    /// TCP after a reset: long enough for segments that crossed it.
    pub tcp_reset: Duration,
    /// UDP; at least 2 min, 5 recommended by RFC 4787 REQ-5.
    pub udp: Duration,
    /// ICMP queries; at least 60 s by RFC 5508 REQ-2.
    pub icmp: Duration,
    /// Any other protocol.
    pub other: Duration,
    /// A datagram of which fragments are missing; zero: fragments are dropped.
    pub fragment: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Timeouts {
            tcp_syn_sent: s(30),
            tcp_syn_received: s(60),
            tcp_established: s(7_440),
            tcp_closing: s(240),
            tcp_time_wait: s(120),
            tcp_reset: s(10),
            udp: s(300),
            icmp: s(60),
            other: s(600),
            fragment: s(10),
        }
    }
}

impl Timeouts {
    /// The same time for every state of a live flow: what `dataplane.idle_timeout_secs` asks for.
    /// Half-open and closed TCP keep their shorter times.
    pub fn uniform(idle: Duration) -> Self {
        let d = Timeouts::default();
        Timeouts {
            tcp_syn_sent: d.tcp_syn_sent.min(idle),
            tcp_syn_received: d.tcp_syn_received.min(idle),
            tcp_established: idle,
            tcp_closing: idle,
            tcp_time_wait: d.tcp_time_wait.min(idle),
            tcp_reset: d.tcp_reset.min(idle),
            udp: idle,
            icmp: idle,
            other: idle,
            fragment: d.fragment,
        }
    }
}

/// Bounds on what a worker keeps and sends. Those by source and by group are the node's where its workers count together
/// ([`NodeTally`](crate::NodeTally)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows in one worker's table; no more than its capacity.
    pub max_flows: u32,
    /// Flows of one source group; unset: as many as there are.
    pub max_flows_per_group: Option<u32>,
    /// Flows of one source, which is a host or, in IPv6, a /64; unset: as many as there are.
    pub max_flows_per_source: Option<u32>,
    /// Flows that one source may open per second, and as many at once; unset: any number.
    pub new_flows_per_source_per_s: Option<u32>,
    /// Flows with a NAT binding.
    pub max_nat_bindings: u32,
    /// ICMP errors per second that one worker originates. Each source is sure of a sixteenth, and has more where others
    /// leave it.
    pub icmp_errors_per_s: u32,
    /// TCP resets per second that one worker originates for unknown connections; shared out in the same way.
    pub resets_per_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_flows: 1 << 20,
            max_flows_per_group: None,
            max_flows_per_source: None,
            new_flows_per_source_per_s: None,
            max_nat_bindings: 1 << 20,
            icmp_errors_per_s: 1_000,
            resets_per_s: 1_000,
        }
    }
}

/// What the operator configures, apart from the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// One data port (one arm) or two: the inside, then the outside.
    pub ports: Vec<PortSettings>,
    /// With one arm, prefixes that are inside, besides the port's own and the source groups'.
    pub internal: Vec<IpNet>,
    /// Source NAT for IPv4.
    pub snat: Snat,
    /// Source NAT for IPv6, with one address for many (NAT66); none: sources stay as they are.
    pub nat66: Option<Snat>,
    /// Which ports flows get by source NAT of either family.
    pub nat_mapping: NatMapping,
    /// Translation of IPv6 prefixes; goes before [`nat66`](Self::nat66).
    pub nptv6: Option<Nptv6>,
    /// The tunnel in which traffic arrives and leaves, on the one port; none if there is none.
    pub overlay: Option<Overlay>,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// Drop TCP segments outside the connection's window.
    pub tcp_window_check: bool,
    /// Largest segment that a TCP SYN may offer to receive; a larger offer is lowered. Unset: offers stay as they are.
    pub tcp_mss_max: Option<u16>,
    /// Until then, the middle of an unknown TCP connection from inside opens a flow if the policy
    /// allows it, instead of being answered with a reset.
    pub pick_up_until: Now,
    /// Addresses served by the host.
    pub services: Vec<LocalService>,
    /// Refuse new flows and keep the old ones.
    pub draining: bool,
    /// TCP health probes to our own addresses.
    pub probes: Probes,
}

/// Settings that cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Neither one arm nor two.
    #[error("one or two data ports are needed, not {0}")]
    PortCount(usize),
    /// A router must be reachable without another router.
    #[error("router {via} is on no prefix of {port:?}")]
    RouterNotOnLink {
        /// The port it was given for.
        port: PortId,
        /// The router.
        via: IpAddr,
    },
    /// More than one default router of a family.
    #[error("{0:?} has two gateways of one family")]
    TwoGateways(PortId),
    /// Destination and router of different families.
    #[error("route to {destination} cannot go through {via}: another address family")]
    RouteFamily {
        /// The destination.
        destination: IpNet,
        /// The router.
        via: IpAddr,
    },
    /// SNAT translates IPv4 only.
    #[error("SNAT address {0} is not an IPv4 unicast address")]
    SnatAddress(IpAddr),
    /// A pool without addresses.
    #[error("the SNAT pool is empty")]
    EmptyPool,
    /// `auto` needs an address to use.
    #[error("SNAT mode auto needs an IPv4 address on the outside port, or mode none")]
    NoAutoAddress,
    /// NAT66 needs an address to use.
    #[error("NAT66 needs a global IPv6 address on the outside port")]
    NoNat66Address,
    /// A NAT66 address must be one that a host can have.
    #[error("NAT66 address {0} is not a global IPv6 unicast address")]
    Nat66Address(IpAddr),
    /// Tunnels lead back to where packets came from.
    #[error("a tunnel needs one data port, not two")]
    OverlayPorts,
    /// Tunnels that cannot be told apart.
    #[error(
        "the tunnels towards inside and outside must differ in network or port; networks have 24 bits"
    )]
    OverlayTunnels,
    /// Prefixes that cannot stand for each other.
    #[error("NPTv6 prefixes {} and {} must not overlap, and be at most 64 bits long and global", .0.inside, .0.outside)]
    Nptv6Prefix(Nptv6),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_idle_time_for_all_keeps_half_open_flows_short() {
        let times = Timeouts::uniform(Duration::from_secs(900));
        assert_eq!(times.tcp_established, Duration::from_secs(900));
        assert_eq!(times.udp, Duration::from_secs(900));
        assert_eq!(times.tcp_syn_sent, Duration::from_secs(30));
        assert_eq!(
            Timeouts::uniform(Duration::from_secs(5)).tcp_syn_sent,
            Duration::from_secs(5)
        );
    }
}
