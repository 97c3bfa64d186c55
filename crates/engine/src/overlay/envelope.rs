//! What is around a packet in a tunnel: read once, before the packet itself is parsed.

use super::{Encapsulation, Overlay, TunnelId, VxlanTunnel, Way};
use crate::DropReason;
use crate::address::Addr;
use crate::port::{Checksum, Meta};
use crate::wire::{checksum, ethernet, get, get16, get32, ipv4, ipv6, proto, udp};

/// Bytes of a VXLAN header, and of a GENEVE header without options.
pub(super) const HEADER_LEN: usize = 8;
/// EtherType of a whole Ethernet frame inside GENEVE.
const BRIDGED: u16 = 0x6558;
/// Longest headers around a packet: IPv4 with options or IPv6 with some extensions, and all the
/// options that GENEVE can have.
pub(super) const MAX_LEN: usize = 512;
/// The class of the options of AWS Gateway Load Balancers, and the type of the one that names the
/// endpoint through which a packet came.
const AWS: u16 = 0x0108;
const ENDPOINT: u8 = 1;

/// Where a packet in a tunnel begins, and what is around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// First byte of what is inside, as a frame. A packet that has no Ethernet header in the tunnel
    /// gets one for the time being, in place of the bytes in front of it.
    pub(crate) at: u16,
    /// What was there before.
    pub(super) displaced: Option<[u8; ethernet::LEN]>,
    /// First byte behind the datagram; what is behind it in the frame belongs to nobody.
    pub(crate) end: u32,
    /// First byte of the UDP header.
    pub(super) udp: u16,
    /// The sender has computed a UDP checksum.
    pub(super) has_checksum: bool,
    pub(super) v4: bool,
    pub(crate) way: Way,
    pub(crate) tunnel: TunnelId,
}

impl Envelope {
    /// First byte behind all headers of the tunnel.
    pub(super) fn header_len(&self) -> usize {
        usize::from(self.at)
            + if self.displaced.is_some() {
                ethernet::LEN
            } else {
                0
            }
    }

    /// Whether the tunnel carries Ethernet frames.
    pub(crate) fn has_ethernet(&self) -> bool {
        self.displaced.is_none()
    }

    /// Whether the sender computes UDP checksums.
    pub(crate) fn has_checksum(&self) -> bool {
        self.has_checksum
    }

    /// Bytes around the inner IP packet on a link, Ethernet aside.
    pub(crate) fn overhead(&self) -> usize {
        usize::from(self.at)
    }

    /// Reads the headers around a packet; none for a frame that is not to the tunnel's port of one of
    /// our addresses.
    pub(crate) fn parse(
        frame: &[u8],
        meta: &Meta,
        overlay: &Overlay,
        is_ours: impl FnOnce(Addr) -> bool,
    ) -> Result<Option<Envelope>, DropReason> {
        let Some(outer) = ethernet::Header::parse(frame) else {
            return Ok(None);
        };
        let packet = &frame[ethernet::LEN..];
        let (v4, src, dst, proto, header_len, total_len, fragment) = match outer.ethertype {
            ethernet::IPV4 => {
                let h = ipv4::Header::parse(packet)?;
                (
                    true,
                    h.src,
                    h.dst,
                    h.proto,
                    h.header_len,
                    h.total_len,
                    h.fragment,
                )
            }
            ethernet::IPV6 => {
                let h = ipv6::Header::parse(packet)?;
                (
                    false,
                    h.src,
                    h.dst,
                    h.proto,
                    h.header_len,
                    h.total_len,
                    h.fragment,
                )
            }
            _ => return Ok(None),
        };
        if proto != proto::UDP || fragment || ethernet::is_group(outer.dst) {
            return Ok(None);
        }
        let datagram = &packet[header_len..total_len];
        let (_, port) = udp::parse_ports(datagram)?;
        if !super::is_tunnel_port(&overlay.encapsulation, port) || !is_ours(dst) {
            return Ok(None);
        }
        if src.is_martian_source() {
            return Err(DropReason::Martian);
        }
        let datagram = &datagram[..usize::from(get16(datagram, 4))];
        let has_checksum = get16(datagram, udp::CHECKSUM) != 0;
        let udp = ethernet::LEN + header_len;
        // A checksum of zero is right for a tunnel, in IPv6 as well (RFC 6935 §5); one that is
        // there has to be right, unless it has not left the host yet.
        let is_known = match meta.checksum {
            Checksum::Unknown => false,
            Checksum::Verified => true,
            Checksum::Partial { start, .. } => usize::from(start) >= udp,
        };
        if has_checksum && !is_known && checksum::transport(src, dst, proto::UDP, datagram) != 0 {
            return Err(DropReason::BadChecksum);
        }
        let body = &datagram[udp::LEN..];
        if meta.gso.is_some() || body.len() < HEADER_LEN {
            return Err(DropReason::OverlayDecap);
        }
        let (way, tunnel, len, ethertype) = match overlay.encapsulation {
            Encapsulation::Geneve { .. } => {
                let (tunnel, len, ethertype) = parse_geneve(body)?;
                (Way::Internal, tunnel, len, ethertype)
            }
            _ => {
                let way = find_vxlan(body, port, &tunnels(&overlay.encapsulation))?;
                // Both of a pair are one network.
                (way, TunnelId::default(), HEADER_LEN, BRIDGED)
            }
        };
        let inside = udp + udp::LEN + len;
        let room = body.len() - len;
        if inside > MAX_LEN || ethertype == BRIDGED && room < ethernet::LEN {
            return Err(DropReason::OverlayDecap);
        }
        let (at, displaced) = match ethertype {
            BRIDGED => (inside, None),
            _ => {
                let at = inside - ethernet::LEN;
                (at, Some(get(frame, at)))
            }
        };
        let envelope = Envelope {
            at: at as u16,
            displaced,
            end: (udp + datagram.len()) as u32,
            udp: udp as u16,
            has_checksum,
            v4,
            way,
            tunnel,
        };
        Ok(Some(envelope))
    }

    /// Gives a packet without an Ethernet header one, so that it looks like any other. To be called
    /// once.
    pub(crate) fn open(&self, frame: &mut [u8]) {
        if self.displaced.is_none() {
            return;
        }
        let (at, inside) = (usize::from(self.at), self.header_len());
        let v6 = frame.get(inside).is_some_and(|first| first >> 4 == 6);
        let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        ethernet::Header {
            dst: [0; 6],
            src: [0; 6],
            ethertype,
        }
        .emit(&mut frame[at..]);
    }
}

/// The tunnels that packets may come by, internal and external.
pub(super) fn tunnels(encapsulation: &Encapsulation) -> [Option<VxlanTunnel>; 2] {
    match *encapsulation {
        Encapsulation::Vxlan(tunnel) => [Some(tunnel), None],
        Encapsulation::VxlanPair {
            internal, external, ..
        } => [Some(internal), Some(external)],
        Encapsulation::Geneve { udp_port } => [Some(VxlanTunnel { vni: 0, udp_port }), None],
    }
}

/// The tunnel of a VXLAN packet: its network must be the one of its port (RFC 7348 §5).
fn find_vxlan(
    body: &[u8],
    port: u16,
    tunnels: &[Option<VxlanTunnel>; 2],
) -> Result<Way, DropReason> {
    if body[0] & 0x08 == 0 {
        return Err(DropReason::OverlayDecap);
    }
    let tunnel = Some(VxlanTunnel {
        vni: get32(body, 4) >> 8,
        udp_port: port,
    });
    match tunnels.iter().position(|t| *t == tunnel) {
        Some(0) => Ok(Way::Internal),
        Some(_) => Ok(Way::External),
        None => Err(DropReason::OverlayDecap),
    }
}

/// The network of a GENEVE packet, the bytes of its header, and what is inside (RFC 8926 §3.4).
fn parse_geneve(body: &[u8]) -> Result<(TunnelId, usize, u16), DropReason> {
    let refuse = Err(DropReason::OverlayDecap);
    let len = HEADER_LEN + usize::from(body[0] & 0x3f) * 4;
    let ethertype = get16(body, 2);
    // Version 0; control packets are not for us.
    if body[0] >> 6 != 0 || body[1] & 0x80 != 0 || len > body.len() {
        return refuse;
    }
    if !matches!(ethertype, BRIDGED | ethernet::IPV4 | ethernet::IPV6) {
        return refuse;
    }
    let mut tunnel = TunnelId {
        vni: get32(body, 4) >> 8,
        endpoint: None,
    };
    let mut options = &body[HEADER_LEN..len];
    while !options.is_empty() {
        if options.len() < 4 {
            return refuse;
        }
        let (class, kind, size) = (get16(options, 0), options[2], options[3] & 0x1f);
        let end = 4 + usize::from(size) * 4;
        if end > options.len() {
            return refuse;
        }
        match (class, kind) {
            (AWS, ENDPOINT) if end == 12 => {
                tunnel.endpoint = Some(u64::from_be_bytes(get(options, 4)));
            }
            // Whoever does not know a critical option must not look inside (§3.5.1).
            (_, kind) if kind & 0x80 != 0 => return refuse,
            _ => {}
        }
        options = &options[end..];
    }
    Ok((tunnel, len, ethertype))
}
