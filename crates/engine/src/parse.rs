//! Stage one: from bytes to what the rest of the engine asks about a frame.

use std::ops::Range;

use crate::DropReason;
use crate::address::Addr;
use crate::flow::Key;
use crate::port::{Checksum, Gso, GsoKind, Meta};
use crate::wire::ethernet::{self, Mac};
use crate::wire::icmp::{self, Kind};
use crate::wire::{dhcp, get, get16, ipv4, ipv6, proto, tcp, udp};

/// What a frame carries, as far as the next stages differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A packet that belongs to a flow, or may open one.
    Flow,
    /// An ICMP error about another packet.
    IcmpError,
    /// A neighbour discovery message, or a query for multicast listeners.
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
    /// Whether the addresses are those of IPv4.
    v4: bool,
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
    /// A packet of which nothing is known yet.
    pub(crate) const EMPTY: Parsed = Parsed {
        content: Content::Flow,
        key: Key {
            src: Addr(0),
            dst: Addr(0),
            src_port: 0,
            dst_port: 0,
            proto: 0,
            tunnel: 0,
        },
        v4: false,
        ttl: 0,
        dont_fragment: false,
        icmp: (0, 0),
        l4: 0,
        end: 0,
        segment: tcp::Segment {
            src_port: 0,
            dst_port: 0,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 0,
            len: 0,
            scale: None,
        },
    };

    /// Checks what came beside the frame, in which this packet begins at byte `at`, since a neighbour on the same host may
    /// write what it likes there: the checksum that is to be completed must lie in no field that packets are judged by,
    /// and a super-packet must be cut where this packet's own header ends.
    #[inline]
    pub(crate) fn admit(&self, meta: &Meta, at: usize) -> Result<(), DropReason> {
        match meta.checksum {
            Checksum::Partial { start, offset } => {
                let start = usize::from(start).checked_sub(at);
                self.admit_partial(meta.gso, start.ok_or(DropReason::MalformedHeader)?, offset)
            }
            _ if meta.gso.is_some() => Err(DropReason::GsoUnsupported),
            _ => Ok(()),
        }
    }

    fn admit_partial(&self, gso: Option<Gso>, start: usize, offset: u16) -> Result<(), DropReason> {
        let l4 = usize::from(self.l4);
        let (header_len, own) = match self.key.proto {
            proto::TCP => (20, Some(16)),
            proto::UDP => (udp::LEN, Some(6)),
            proto::ICMP4 | proto::ICMP6 => (8, None),
            _ => (0, None),
        };
        let is_own = start == l4 && own == Some(offset);
        if let Some(gso) = gso {
            let proto = match (gso.kind, self.v4) {
                (GsoKind::Tcp4, true) | (GsoKind::Tcp6, false) => proto::TCP,
                (GsoKind::Udp, _) => proto::UDP,
                _ => return Err(DropReason::GsoUnsupported),
            };
            // In a tunnel that passes through it is the packet inside that is to be cut.
            return match is_own && proto == self.key.proto {
                true => Ok(()),
                false => Err(DropReason::GsoUnsupported),
            };
        }
        // A checksum behind the header is of a packet inside.
        match is_own || start >= l4 && start + usize::from(offset) >= l4 + header_len {
            true => Ok(()),
            false => Err(DropReason::MalformedHeader),
        }
    }

    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.v4
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
    let mut p = Parsed::EMPTY;
    parse_into(&mut p, frame, station, vlan)?;
    Ok(p)
}

/// Parses one frame into a place that is there already: `p`, which is [`Parsed::EMPTY`]. After an error it means nothing.
#[inline]
pub(crate) fn parse_into(
    p: &mut Parsed,
    frame: &[u8],
    station: Station,
    vlan: Option<u16>,
) -> Result<(), DropReason> {
    let Some((header, packet)) = frame.split_first_chunk::<{ ethernet::LEN }>() else {
        return Err(DropReason::Truncated);
    };
    // Only the priority bits may be set: the packet is then untagged (IEEE 802.1Q §6.9).
    if vlan.is_some_and(|tci| tci & 0xfff != 0) {
        return Err(DropReason::VlanTagged);
    }
    let group = match station {
        Station::Mac(mac) => {
            let dst: Mac = get(header, 0);
            if dst != mac && !ethernet::is_group(dst) {
                return Err(DropReason::NotForUs);
            }
            ethernet::is_group(dst)
        }
        Station::Any => false,
    };
    match get16(header, 12) {
        ethernet::IPV4 => parse_ipv4(p, packet, group),
        ethernet::IPV6 => parse_ipv6(p, packet, group),
        ethernet::ARP => {
            p.content = Content::Arp;
            p.l4 = ethernet::LEN as u16;
            p.end = frame.len() as u32;
            Ok(())
        }
        0x8100 | 0x88a8 => Err(DropReason::VlanTagged),
        _ => Err(DropReason::UnknownEthertype),
    }
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

#[inline]
fn parse_ipv4(p: &mut Parsed, packet: &[u8], group: bool) -> Result<(), DropReason> {
    let ip = ipv4::Header::parse(packet)?;
    (p.v4, p.ttl, p.dont_fragment) = (true, ip.ttl, ip.dont_fragment);
    (p.key.src, p.key.dst, p.key.proto) = (ip.src, ip.dst, ip.proto);
    let payload = ip.header_len..ip.total_len;
    parse_payload(p, packet, payload, ip.fragment, true)?;
    check_addresses(p.content, ip.src, ip.dst, group)
}

fn parse_ipv6(p: &mut Parsed, packet: &[u8], group: bool) -> Result<(), DropReason> {
    let ip = ipv6::Header::parse(packet)?;
    (p.v4, p.ttl, p.dont_fragment) = (false, ip.hop_limit, true);
    (p.key.src, p.key.dst, p.key.proto) = (ip.src, ip.dst, ip.proto);
    let payload = ip.header_len..ip.total_len;
    parse_payload(p, packet, payload, ip.fragment, false)?;
    check_addresses(p.content, ip.src, ip.dst, group)
}

/// Notes where in a packet what is behind the IP header lies, and parses it unless it is but a part.
#[inline(always)]
fn parse_payload(
    p: &mut Parsed,
    packet: &[u8],
    at: Range<usize>,
    fragment: bool,
    v4: bool,
) -> Result<(), DropReason> {
    p.l4 = (ethernet::LEN + at.start) as u16;
    p.end = (ethernet::LEN + at.end) as u32;
    if fragment {
        p.content = Content::Fragment;
        return Ok(());
    }
    parse_transport(p, &packet[at], v4)
}

/// Refuses what is to many, and what no host can be.
#[inline(always)]
fn check_addresses(content: Content, src: Addr, dst: Addr, group: bool) -> Result<(), DropReason> {
    match !group && src.is_ordinary() && dst.is_ordinary() {
        true => Ok(()),
        false => check_special(content, src, dst, group),
    }
}

#[cold]
fn check_special(content: Content, src: Addr, dst: Addr, group: bool) -> Result<(), DropReason> {
    let broadcast = Addr::v4(u32::MAX);
    let may_be_to_many = match content {
        Content::Neighbor => true,
        // To all, or to the address that is offered (RFC 2131 §4.1).
        Content::Dhcp => !dst.is_multicast(),
        _ => false,
    };
    if !may_be_to_many && (dst.is_multicast() || group || dst == broadcast) {
        return Err(DropReason::Multicast);
    }
    let to_all = content == Content::Dhcp && dst == broadcast;
    if dst.is_martian_destination() && !to_all
        // The source of duplicate address detection is unspecified (RFC 4862 §5.4.2).
        || src.is_martian_source() && !(content == Content::Neighbor && src.0 == 0)
    {
        return Err(DropReason::Martian);
    }
    Ok(())
}

/// Parses the transport header, which `b` begins with, of a packet whose addresses are known.
#[inline(always)]
fn parse_transport(p: &mut Parsed, b: &[u8], v4: bool) -> Result<(), DropReason> {
    match p.key.proto {
        proto::TCP => {
            p.segment = tcp::Segment::parse(b)?;
            (p.key.src_port, p.key.dst_port) = (p.segment.src_port, p.segment.dst_port);
        }
        proto::UDP => {
            (p.key.src_port, p.key.dst_port) = udp::parse_ports(b)?;
            if v4 && (p.key.src_port, p.key.dst_port) == (dhcp::SERVER_PORT, dhcp::CLIENT_PORT) {
                p.content = Content::Dhcp;
            }
        }
        proto::ICMP4 | proto::ICMP6 => parse_icmp(p, b, v4)?,
        _ => {}
    }
    Ok(())
}

fn parse_icmp(p: &mut Parsed, b: &[u8], v4: bool) -> Result<(), DropReason> {
    // One family's ICMP inside the other means nothing.
    if (p.key.proto == proto::ICMP4) != v4 {
        return Err(DropReason::IcmpType);
    }
    let header = icmp::Header::parse(b, v4)?;
    p.icmp = (header.icmp_type, header.code);
    match header.kind {
        Kind::Query(id) => p.key.src_port = id,
        Kind::Answer(id) => p.key.dst_port = id,
        Kind::Error => p.content = Content::IcmpError,
        Kind::Neighbor => p.content = Content::Neighbor,
        Kind::Other if p.key.dst.is_multicast() => return Err(DropReason::Multicast),
        Kind::Other => return Err(DropReason::IcmpType),
    }
    Ok(())
}
