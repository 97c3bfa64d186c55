//! Every reason for which a frame is discarded, in one place: counters, metric labels, CLI text
//! and the reference page come from this list.

macro_rules! drop_reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $name:literal, )+) => {
        /// Why a frame was discarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl DropReason {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [DropReason] = &[ $( DropReason::$variant, )+ ];

            /// The stable name: the metric's label and the text in the CLI.
            pub const fn name(self) -> &'static str {
                match self { $( DropReason::$variant => $name, )+ }
            }

            /// One sentence for people.
            pub const fn description(self) -> &'static str {
                match self { $( DropReason::$variant => concat!($($doc),+), )+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before the headers that it announces.
    Truncated = "truncated",
    /// A header contradicts itself: version, header length, total length or option layout.
    MalformedHeader = "malformed_header",
    /// The checksum of an IPv4 header, or of a message for the engine itself, is wrong.
    BadChecksum = "bad_checksum",
    /// The frame is addressed to another station.
    NotForUs = "not_for_us",
    /// An EtherType that is neither IPv4, IPv6 nor ARP.
    UnknownEthertype = "unknown_ethertype",
    /// The frame carries a VLAN tag, and no VLAN is configured.
    VlanTagged = "vlan_tagged",
    /// A source or destination address that may not be routed (unspecified, loopback, our own, link-local), or, with two
    /// arms, a source to which no route leads back by the port that it came from.
    Martian = "martian",
    /// The destination is a multicast or broadcast address.
    Multicast = "multicast",
    /// IPv4 source routing, or an IPv6 routing header of a deprecated type.
    SourceRoute = "source_route",
    /// A fragment that makes no datagram: malformed, without its others in time, repeated, or with headers cut apart.
    Fragment = "fragment",
    /// A fragment of a datagram whose fragments overlap or contradict each other.
    FragmentOverlap = "fragment_overlap",
    /// A fragment for which there is no room, by source or in all.
    FragmentLimit = "fragment_limit",
    /// A TCP flag combination that no stack sends (SYN with FIN or RST, or no flag at all).
    BadTcpFlags = "bad_tcp_flags",
    /// An ARP packet that is malformed, or asks for an address that is not ours.
    Arp = "arp",
    /// A neighbour discovery message that RFC 4861 says to discard, or asks for an address that is not ours.
    NeighborDiscovery = "neighbor_discovery",
    /// A DHCP message to us that is malformed, not what was asked for, or from a server that is not the configured one.
    Dhcp = "dhcp",
    /// A flow may not begin from outside.
    FromOutside = "from_outside",
    /// The policy denies the flow.
    PolicyDenied = "policy_denied",
    /// The policy changed and now denies a flow that it had allowed.
    PolicyChanged = "policy_changed",
    /// A segment in the middle of a TCP connection that is not known here.
    NoFlow = "no_flow",
    /// A segment outside the window of its TCP connection.
    TcpWindow = "tcp_window",
    /// An ICMP error about a packet that did not pass here.
    IcmpNoFlow = "icmp_no_flow",
    /// An ICMP type that is neither a query nor an error about a flow.
    IcmpType = "icmp_type",
    /// The flow table is full, and of 64 flows that were looked at none could give way.
    FlowTableFull = "flow_table_full",
    /// The source group has as many flows as one may have.
    SourceGroupFull = "source_group_full",
    /// The source (a host, or a /64 in IPv6) has as many flows as one may have.
    SourceFull = "source_full",
    /// The source opens flows faster than one may.
    SourceRate = "source_rate",
    /// The limit on NAT bindings is reached, and of 64 flows that were looked at none that has one could give way.
    NatTableFull = "nat_table_full",
    /// No free port is left for this destination.
    NatPortsExhausted = "nat_ports_exhausted",
    /// A source that prefix translation leaves out (RFC 6296 §3.4, §3.5), or whose translation somebody else has.
    PrefixTranslation = "prefix_translation",
    /// Translation is asked for, and the outside port has no address of this family yet.
    NoNatAddress = "no_nat_address",
    /// The flow was translated to an address that this node has no longer.
    AddressLost = "address_lost",
    /// The flow was opened for another way out: routes, sides or translation have changed since.
    PathChanged = "path_changed",
    /// New flows are refused because the node drains.
    Draining = "draining",
    /// TTL or hop limit has run out.
    TtlExceeded = "ttl_exceeded",
    /// Received by another worker than the one that owns its flow, which had no room for it.
    WorkerQueueFull = "worker_queue_full",
    /// Larger than the next link carries, and not to be fragmented.
    TooBig = "too_big",
    /// A super-packet for a port that cannot segment it, or of a tunnel that passes through.
    GsoUnsupported = "gso_unsupported",
    /// No route to the destination.
    NoRoute = "no_route",
    /// The next hop does not answer.
    NeighborUnreachable = "neighbor_unreachable",
    /// Too many packets wait for next hops to answer.
    NeighborQueueFull = "neighbor_queue_full",
    /// For one of our addresses, where nothing listens to it.
    LocalUnserved = "local_unserved",
    /// The host lane is not there or has no buffer.
    LaneUnavailable = "lane_unavailable",
    /// From a client to what stands for clients outside, where none asked for it.
    HairpinNoFlow = "hairpin_no_flow",
    /// Not in the tunnel that is configured, or in one that cannot be read: wrong network or header, or too many networks.
    OverlayDecap = "overlay_decap",
    /// A packet from a tunnel could not be put into one.
    OverlayEncap = "overlay_encap",
    /// Larger than the tunnel carries.
    OverlayMtu = "overlay_mtu",
    /// From the host lane with a source that is not a service address.
    LaneSource = "lane_source",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = DropReason::ALL.len();

    /// Whether it is a decision about the packet, by the policy or since its flow may not begin there: what `deny` stands
    /// for in metrics. All others are troubles on its way.
    pub(crate) const fn is_denial(self) -> bool {
        matches!(
            self,
            DropReason::PolicyDenied | DropReason::PolicyChanged | DropReason::FromOutside
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_labels_and_discriminants_are_indices() {
        let mut seen = HashSet::new();
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
            assert!(seen.insert(reason.name()), "{} twice", reason.name());
            assert!(reason.description().trim().ends_with('.'), "{reason:?}");
        }
    }
}
