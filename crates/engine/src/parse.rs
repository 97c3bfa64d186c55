//! Stage one: from bytes to what the rest of the engine asks about a frame.

use crate::DropReason;
use crate::address::Addr;
use crate::flow::Key;
use crate::wire::ethernet::{self, Mac};
use crate::wire::icmp::{self, Kind};
use crate::wire::{dhcp, ipv4, ipv6, proto, tcp, udp};

/// What a frame carries, as far as the next stages differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A packet that belongs to a flow, or may open one.
    Flow,
    /// An ICMP error about another packet.
    IcmpError,
    /// A neighbour discovery message.
    Neighbor,
    /// An ARP packet.
    Arp,
    /// A part of a datagram. It has no ports, and its transport header is what follows the IP header.
    Fragment,
    /// A datagram from the port of DHCP servers to that of their clients.
    Dhcp,
}

/// A parsed frame: offsets and values, no borrow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed {
    pub(crate) content: Content,
    /// Addresses, ports and protocol as on the wire. Of an ICMP query or answer, the identifier
    /// stands for the port on the asking side.
    pub(crate) key: Key,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// The sender forbids fragmentation (always so in IPv6).
    pub(crate) dont_fragment: bool,
    /// ICMP type and code; zero for others.
    pub(crate) icmp: (u8, u8),
    /// First byte of the transport header, from the start of the frame.
    pub(crate) l4: u16,
    /// First byte behind the IP packet; the rest of the frame is padding.
    pub(crate) end: u32,
    /// Of a TCP segment; zero for others.
    pub(crate) segment: tcp::Segment,
}

impl Parsed {
    pub(crate) fn is_v4(&self) -> bool {
        self.key.src.is_v4()
    }

    /// Whether an ICMP message asks for an answer.
    pub(crate) fn is_icmp_query(&self) -> bool {
        match self.key.proto {
            proto::ICMP4 => matches!(self.icmp.0, icmp::ECHO | 13),
            proto::ICMP6 => self.icmp.0 == icmp::ECHO6,
            _ => false,
        }
    }

    /// Whether an ICMP message answers a query; such a packet opens nothing.
    pub(crate) fn is_icmp_answer(&self) -> bool {
        match self.key.proto {
            proto::ICMP4 => matches!(self.icmp.0, icmp::ECHO_REPLY | 14),
            proto::ICMP6 => self.icmp.0 == icmp::ECHO_REPLY6,
            _ => false,
        }
    }
}

/// Who must be the receiver of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Station {
    /// A port with this Ethernet address.
    Mac(Mac),
    /// A layer-3 port, where Ethernet addresses mean nothing.
    Any,
}

impl Station {
    /// Whether a frame is for this station and no other.
    pub(crate) fn is_alone(&self, frame: &[u8]) -> bool {
        match self {
            Station::Mac(mac) => frame.starts_with(mac),
            Station::Any => true,
        }
    }
}

/// Parses one frame.
pub(crate) fn parse(
    frame: &[u8],
    station: Station,
    vlan: Option<u16>,
) -> Result<Parsed, DropReason> {
    let header = ethernet::Header::parse(frame).ok_or(DropReason::Truncated)?;
    // Only the priority bits may be set: the packet is then untagged (IEEE 802.1Q §6.9).
    if vlan.is_some_and(|tci| tci & 0xfff != 0) {
        return Err(DropReason::VlanTagged);
    }
    if let Station::Mac(mac) = station
        && header.dst != mac
        && !ethernet::is_group(header.dst)
    {
        return Err(DropReason::NotForUs);
    }
    let parsed = match header.ethertype {
        ethernet::IPV4 => parse_ipv4(frame)?,
        ethernet::IPV6 => parse_ipv6(frame)?,
        ethernet::ARP => {
            return Ok(Parsed {
                content: Content::Arp,
                key: Key::default(),
                ttl: 0,
                dont_fragment: false,
                icmp: (0, 0),
                l4: ethernet::LEN as u16,
                end: frame.len() as u32,
                segment: tcp::Segment::default(),
            });
        }
        0x8100 | 0x88a8 => return Err(DropReason::VlanTagged),
        _ => return Err(DropReason::UnknownEthertype),
    };
    let key = &parsed.key;
    let group = match station {
        Station::Mac(_) => ethernet::is_group(header.dst),
        Station::Any => false,
    };
    if !matches!(parsed.content, Content::Neighbor | Content::Dhcp)
        && (key.dst.is_multicast() || group || key.dst == Addr::v4(u32::MAX))
    {
        return Err(DropReason::Multicast);
    }
    let to_all = parsed.content == Content::Dhcp && key.dst == Addr::v4(u32::MAX);
    if key.dst.is_martian_destination() && !to_all
        // The source of duplicate address detection is unspecified (RFC 4862 §5.4.2).
        || key.src.is_martian_source() && !(parsed.content == Content::Neighbor && key.src.0 == 0)
    {
        return Err(DropReason::Martian);
    }
    Ok(parsed)
}

/// Parses what was in a tunnel, as a frame. Only packets belong there.
pub(crate) fn parse_inner(frame: &[u8]) -> Result<Parsed, DropReason> {
    let mut p = parse(frame, Station::Any, None)?;
    match p.content {
        Content::Flow | Content::IcmpError | Content::Fragment => Ok(p),
        // Whoever asked for addresses did not ask in there.
        Content::Dhcp if p.key.dst != Addr::v4(u32::MAX) => {
            p.content = Content::Flow;
            Ok(p)
        }
        Content::Dhcp | Content::Neighbor | Content::Arp => Err(DropReason::OverlayDecap),
    }
}

fn parse_ipv4(frame: &[u8]) -> Result<Parsed, DropReason> {
    let packet = &frame[ethernet::LEN..];
    let ip = ipv4::Header::parse(packet)?;
    let transport = &packet[ip.header_len..ip.total_len];
    let parsed = match ip.fragment {
        true => Ok(Transport::fragment(ip.src, ip.dst, ip.proto)),
        false => parse_transport(transport, ip.src, ip.dst, ip.proto),
    };
    parsed.map(|t| Parsed {
        content: t.content,
        key: t.key,
        ttl: ip.ttl,
        dont_fragment: ip.dont_fragment,
        icmp: t.icmp,
        l4: (ethernet::LEN + ip.header_len) as u16,
        end: (ethernet::LEN + ip.total_len) as u32,
        segment: t.segment,
    })
}

fn parse_ipv6(frame: &[u8]) -> Result<Parsed, DropReason> {
    let packet = &frame[ethernet::LEN..];
    let ip = ipv6::Header::parse(packet)?;
    let transport = &packet[ip.header_len..ip.total_len];
    let parsed = match ip.fragment {
        true => Ok(Transport::fragment(ip.src, ip.dst, ip.proto)),
        false => parse_transport(transport, ip.src, ip.dst, ip.proto),
    };
    parsed.map(|t| Parsed {
        content: t.content,
        key: t.key,
        ttl: ip.hop_limit,
        dont_fragment: true,
        icmp: t.icmp,
        l4: (ethernet::LEN + ip.header_len) as u16,
        end: (ethernet::LEN + ip.total_len) as u32,
        segment: t.segment,
    })
}

struct Transport {
    content: Content,
    key: Key,
    icmp: (u8, u8),
    segment: tcp::Segment,
}

impl Transport {
    fn fragment(src: Addr, dst: Addr, proto: u8) -> Transport {
        let key = Key {
            src,
            dst,
            src_port: 0,
            dst_port: 0,
            proto,
            tunnel: 0,
        };
        Transport {
            content: Content::Fragment,
            key,
            icmp: (0, 0),
            segment: tcp::Segment::default(),
        }
    }
}

#[inline]
fn parse_transport(b: &[u8], src: Addr, dst: Addr, proto: u8) -> Result<Transport, DropReason> {
    let mut t = Transport {
        content: Content::Flow,
        key: Key {
            src,
            dst,
            src_port: 0,
            dst_port: 0,
            proto,
            tunnel: 0,
        },
        icmp: (0, 0),
        segment: tcp::Segment::default(),
    };
    match proto {
        proto::TCP => {
            t.segment = tcp::Segment::parse(b)?;
            (t.key.src_port, t.key.dst_port) = (t.segment.src_port, t.segment.dst_port);
        }
        proto::UDP => {
            (t.key.src_port, t.key.dst_port) = udp::parse_ports(b)?;
            if t.key.dst_port == dhcp::CLIENT_PORT
                && t.key.src_port == dhcp::SERVER_PORT
                && src.is_v4()
            {
                t.content = Content::Dhcp;
            }
        }
        proto::ICMP4 | proto::ICMP6 => {
            // One family's ICMP inside the other means nothing.
            if (proto == proto::ICMP4) != src.is_v4() {
                return Err(DropReason::IcmpType);
            }
            let header = icmp::Header::parse(b, src.is_v4())?;
            t.icmp = (header.icmp_type, header.code);
            match header.kind {
                Kind::Query(id) => t.key.src_port = id,
                Kind::Answer(id) => t.key.dst_port = id,
                Kind::Error => t.content = Content::IcmpError,
                Kind::Neighbor => t.content = Content::Neighbor,
                Kind::Other if dst.is_multicast() => return Err(DropReason::Multicast),
                Kind::Other => return Err(DropReason::IcmpType),
            }
        }
        _ => {}
    }
    Ok(t)
}
