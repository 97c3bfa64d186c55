//! Frames that the engine originates: ARP, neighbour discovery, ICMP errors, TCP resets. Built in
//! memory reserved once; the worker copies them into buffers of the port.

mod solicit;

use crate::address::Addr;
use crate::fragment::seal_header;
use crate::neighbor::NeighborId;
use crate::overlay::{Envelope, Overlay, Wrapping};
use crate::port::PortId;
use crate::wire::arp::{self, Arp, Operation};
use crate::wire::ethernet::{self, BROADCAST, Mac};
use crate::wire::ndp::{self, Message};
use crate::wire::tcp::{self, Segment};
use crate::wire::{checksum, icmp, ipv4, ipv6, proto, put, put16};

/// In place of a port, for a frame to the host.
pub(crate) const LANE: PortId = PortId(u8::MAX);

/// Bytes reserved for one burst's worth.
const CAPACITY: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    frames: Vec<(Link, usize, usize)>,
    /// What is put around frames in answer to one from a tunnel.
    wrapping: Wrapping,
    /// Frames that were there before those.
    unwrapped: usize,
    /// Frames for which there was no room.
    refused: u64,
}

/// The two ends of a frame on a link, and the way to the port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) port: PortId,
    pub(crate) src: Mac,
    pub(crate) dst: Mac,
    /// The neighbour whose address has yet to be found out, and takes the place of `dst`.
    pub(crate) waits_for: Option<NeighborId>,
}

impl Link {
    pub(crate) fn new(port: PortId, src: Mac, dst: Mac) -> Link {
        Link {
            port,
            src,
            dst,
            waits_for: None,
        }
    }
}

/// A frame in the outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Originated<'a> {
    pub(crate) port: PortId,
    pub(crate) waits_for: Option<NeighborId>,
    pub(crate) bytes: &'a [u8],
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox {
            bytes: Vec::with_capacity(CAPACITY),
            frames: Vec::with_capacity(CAPACITY / 64),
            wrapping: Wrapping::default(),
            unwrapped: 0,
            refused: 0,
        }
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = Originated<'_>> {
        self.frames.iter().map(|(link, start, end)| Originated {
            port: link.port,
            waits_for: link.waits_for,
            bytes: &self.bytes[*start..*end],
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Empties it, and returns how many frames it had no room for.
    pub(crate) fn clear(&mut self) -> u64 {
        self.bytes.clear();
        self.frames.clear();
        std::mem::take(&mut self.refused)
    }

    /// From now on frames go into the tunnel that this one came by.
    pub(crate) fn wrap(&mut self, frame: &[u8], envelope: &Envelope, overlay: &Overlay) {
        self.wrapping.take(frame, envelope, overlay);
        self.unwrapped = self.frames.len();
    }

    /// The same, with what was kept of that frame.
    pub(crate) fn wrap_again(&mut self, wrapping: Wrapping) {
        self.wrapping = wrapping;
        self.unwrapped = self.frames.len();
    }

    /// What is put around frames now.
    pub(crate) fn wrapping(&self) -> &Wrapping {
        &self.wrapping
    }

    /// Completes the frames since [`wrap`](Self::wrap), those to the side `back` in the tunnel that
    /// the packet came by, and returns how many there are. From now on frames go as they are.
    pub(crate) fn unwrap(&mut self, back: PortId) -> u64 {
        let wrapped = &mut self.frames[self.unwrapped..];
        for (link, start, end) in wrapped.iter_mut() {
            let onward = link.port != back;
            self.wrapping
                .seal(&mut self.bytes[*start..*end], onward, false);
            link.port = PortId(0);
        }
        let count = wrapped.len() as u64;
        self.wrapping.end();
        count
    }

    /// Room for a packet of `len` bytes behind an Ethernet header; none when the outbox is full.
    fn frame(&mut self, link: Link, ethertype: u16, len: usize) -> Option<&mut [u8]> {
        let (front, inner) = match self.wrapping.is_on() {
            false => (0, Some([link.dst, link.src])),
            // A frame to nobody in particular goes between the stations of the one that came.
            true => match self.wrapping.inner_stations() {
                Some(came) if link.dst == Mac::default() => {
                    (self.wrapping.header_len(), Some(came))
                }
                Some(_) => (self.wrapping.header_len(), Some([link.dst, link.src])),
                None => (self.wrapping.header_len(), None),
            },
        };
        let head = front + if inner.is_some() { ethernet::LEN } else { 0 };
        let (start, end) = (self.bytes.len(), self.bytes.len() + head + len);
        if end > CAPACITY || self.frames.len() == self.frames.capacity() {
            self.refused += 1;
            return None;
        }
        self.bytes.resize(end, 0);
        self.frames.push((link, start, end));
        let frame = &mut self.bytes[start..];
        if let Some([dst, src]) = inner {
            let header = ethernet::Header {
                dst,
                src,
                ethertype,
            };
            header.emit(&mut frame[front..]);
        }
        Some(&mut frame[head..])
    }

    /// Room for a transport segment of `len` bytes behind an IP header.
    fn packet(
        &mut self,
        link: Link,
        src: Addr,
        dst: Addr,
        proto: u8,
        hop_limit: u8,
        len: usize,
    ) -> Option<&mut [u8]> {
        if src.is_v4() {
            let total_len = ipv4::MIN_LEN + len;
            let b = self.frame(link, ethernet::IPV4, total_len)?;
            ipv4::Header {
                header_len: ipv4::MIN_LEN,
                total_len,
                ttl: hop_limit,
                proto,
                src,
                dst,
                dont_fragment: false,
                fragment: false,
            }
            .emit(b);
            Some(&mut b[ipv4::MIN_LEN..])
        } else {
            let total_len = ipv6::LEN + len;
            let b = self.frame(link, ethernet::IPV6, total_len)?;
            ipv6::Header {
                header_len: ipv6::LEN,
                total_len,
                hop_limit,
                proto,
                src,
                dst,
                fragment: false,
                has_fragment_header: false,
            }
            .emit(b);
            Some(&mut b[ipv6::LEN..])
        }
    }

    /// Sends a packet in pieces: `head` bytes of `frame` in front of each, in IPv6 with a fragment header at their end,
    /// and of the rest as many bytes as `cuts` says, which are all. All of it goes, or nothing.
    pub(crate) fn pieces(
        &mut self,
        (port, waits_for): (PortId, Option<NeighborId>),
        frame: &[u8],
        head: usize,
        cuts: impl Iterator<Item = usize> + Clone,
        id: Option<u32>,
    ) {
        let count = cuts.clone().count();
        let (front, skip) = match self.wrapping.is_on() {
            false => (0, 0),
            true if self.wrapping.inner_stations().is_some() => (self.wrapping.header_len(), 0),
            // What is in the tunnel begins behind the Ethernet header.
            true => (self.wrapping.header_len(), ethernet::LEN),
        };
        let needed = count * (front + head) + frame.len();
        if self.bytes.len() + needed > CAPACITY
            || self.frames.len() + count > self.frames.capacity()
        {
            self.refused += 1;
            return;
        }
        let v4 = u16::from_be_bytes([frame[12], frame[13]]) == ethernet::IPV4;
        let flags = u16::from_be_bytes([frame[ethernet::LEN + 6], frame[ethernet::LEN + 7]]);
        let mut at = head;
        for cut in cuts {
            let start = self.bytes.len();
            self.bytes.resize(start + front, 0);
            let packet = start + front + ethernet::LEN - skip;
            if v4 && at > head {
                self.bytes
                    .extend_from_slice(&frame[skip..ethernet::LEN + ipv4::MIN_LEN]);
                let options = &frame[ethernet::LEN + ipv4::MIN_LEN..head];
                ipv4::copied_options(options, &mut self.bytes);
            } else {
                self.bytes.extend_from_slice(&frame[skip..head]);
            }
            let header_len = self.bytes.len() - packet;
            self.bytes.extend_from_slice(&frame[at..at + cut]);
            let more = at + cut < frame.len();
            let b = &mut self.bytes[packet..];
            let len = b.len();
            if v4 {
                b[0] = 0x40 | (header_len / 4) as u8;
                put16(b, 2, len as u16);
                if let Some(id) = id {
                    put16(b, 4, id as u16);
                }
                let offset = ((at - head) / 8) as u16;
                put16(b, 6, flags & 0x4000 | u16::from(more) << 13 | offset);
                seal_header(b, header_len);
            } else {
                put16(b, 4, (len - ipv6::LEN) as u16);
                put16(b, header_len - 6, (at - head) as u16 | u16::from(more));
                if let Some(id) = id {
                    put(b, header_len - 4, id.to_be_bytes());
                }
            }
            let link = Link {
                waits_for,
                ..Link::new(port, Mac::default(), Mac::default())
            };
            self.frames.push((link, start, self.bytes.len()));
            at += cut;
        }
    }

    pub(crate) fn arp(&mut self, link: Link, arp: Arp) {
        if let Some(b) = self.frame(link, ethernet::ARP, arp::LEN) {
            arp.emit(b);
        }
    }

    /// Asks for a neighbour: all stations, or the one that is thought to be it.
    pub(crate) fn ask(
        &mut self,
        port: PortId,
        mac: Mac,
        from: Addr,
        target: Addr,
        known: Option<Mac>,
    ) {
        if target.is_v4() {
            let link = Link::new(port, mac, known.unwrap_or(BROADCAST));
            let operation = Operation::Request;
            self.arp(
                link,
                Arp {
                    operation,
                    sender_mac: mac,
                    sender: from,
                    target_mac: [0; 6],
                    target,
                },
            );
        } else {
            let group = ndp::solicited_node(target);
            let (to, dst) = match known {
                Some(known) => (target, known),
                None => (group, ndp::multicast_mac(group)),
            };
            let message = Message::Solicitation {
                target,
                mac: Some(mac),
            };
            self.neighbor(Link::new(port, mac, dst), from, to, message);
        }
    }

    /// Tells all stations that an address is ours (RFC 5227 §3, RFC 4861 §7.2.6).
    pub(crate) fn announce(&mut self, port: PortId, mac: Mac, address: Addr) {
        if address.is_v4() {
            let link = Link::new(port, mac, BROADCAST);
            let operation = Operation::Request;
            self.arp(
                link,
                Arp {
                    operation,
                    sender_mac: mac,
                    sender: address,
                    target_mac: [0; 6],
                    target: address,
                },
            );
        } else {
            let dst = ndp::multicast_mac(ndp::ALL_NODES);
            let message = Message::Advertisement {
                target: address,
                mac: Some(mac),
                solicited: false,
                overriding: true,
            };
            self.neighbor(Link::new(port, mac, dst), address, ndp::ALL_NODES, message);
        }
    }

    pub(crate) fn neighbor(&mut self, link: Link, src: Addr, dst: Addr, message: Message) {
        if let Some(b) = self.packet(link, src, dst, proto::ICMP6, 255, ndp::LEN) {
            message.emit(b);
            let sum = checksum::transport(src, dst, proto::ICMP6, b);
            put16(b, icmp::CHECKSUM, sum);
        }
    }

    /// An ICMP error about `quoted`, a packet from its IP header on. `rest` is the header's second
    /// word (an MTU, or zero). As much is quoted as fits 576 bytes in IPv4 (RFC 1812 §4.3.2.3) and
    /// 1280 in IPv6 (RFC 4443 §2.4).
    pub(crate) fn icmp_error(
        &mut self,
        link: Link,
        src: Addr,
        dst: Addr,
        (icmp_type, code): (u8, u8),
        rest: u32,
        quoted: &[u8],
    ) -> bool {
        let v4 = src.is_v4();
        let room = if v4 {
            576 - ipv4::MIN_LEN
        } else {
            usize::from(ipv6::MIN_MTU) - ipv6::LEN
        } - icmp::LEN;
        let quoted = &quoted[..quoted.len().min(room)];
        // RFC 8201 §4: hosts discard a report of less than every link carries.
        let rest = match !v4 && icmp_type == icmp::TOO_BIG6 {
            true => rest.max(ipv6::MIN_MTU.into()),
            false => rest,
        };
        let proto = if v4 { proto::ICMP4 } else { proto::ICMP6 };
        let Some(b) = self.packet(link, src, dst, proto, 64, icmp::LEN + quoted.len()) else {
            return false;
        };
        put(b, 0, [icmp_type, code, 0, 0]);
        put(b, 4, rest.to_be_bytes());
        b[icmp::LEN..].copy_from_slice(quoted);
        let sum = if v4 {
            !checksum::fold(checksum::sum(b))
        } else {
            checksum::transport(src, dst, proto, b)
        };
        put16(b, icmp::CHECKSUM, sum);
        true
    }

    /// The answer to an echo request whose checksum has been verified.
    pub(crate) fn echo_reply(&mut self, link: Link, src: Addr, dst: Addr, request: &[u8]) {
        let v4 = src.is_v4();
        let (proto, reply) = if v4 {
            (proto::ICMP4, icmp::ECHO_REPLY)
        } else {
            (proto::ICMP6, icmp::ECHO_REPLY6)
        };
        let Some(b) = self.packet(link, src, dst, proto, 64, request.len()) else {
            return;
        };
        b.copy_from_slice(request);
        // Only the type differs, and the pseudo-header's sum does not depend on the order.
        let mut delta = checksum::Delta::default();
        delta.replace16(
            u16::from_be_bytes([b[0], b[1]]),
            u16::from_be_bytes([reply, b[1]]),
        );
        b[0] = reply;
        let sum = delta.apply(u16::from_be_bytes([b[2], b[3]]));
        put16(b, icmp::CHECKSUM, sum);
    }

    /// A TCP segment without payload.
    pub(crate) fn tcp(&mut self, link: Link, src: Addr, dst: Addr, segment: &Segment) -> bool {
        let Some(b) = self.packet(link, src, dst, proto::TCP, 64, tcp::MIN_LEN) else {
            return false;
        };
        segment.emit(b);
        let sum = checksum::transport(src, dst, proto::TCP, b);
        put16(b, tcp::CHECKSUM, sum);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Content, Station, parse};

    const LINK: Link = Link {
        port: PortId(1),
        src: [2, 0, 0, 0, 0, 1],
        dst: [2, 0, 0, 0, 0, 2],
        waits_for: None,
    };

    fn pairs() -> [(Addr, Addr); 2] {
        let v6 = |n: u128| Addr(0x2001_0db8 << 96 | n);
        [
            (Addr::v4(0x0a00_0001), Addr::v4(0x0a00_0002)),
            (v6(1), v6(2)),
        ]
    }

    #[test]
    fn what_is_built_parses_and_verifies() {
        for (src, dst) in pairs() {
            let mut outbox = Outbox::new();
            let error = if src.is_v4() { (3, 1) } else { (1, 3) };
            assert!(outbox.icmp_error(LINK, src, dst, error, 0, &[0x5a; 3000]));
            let reset = Segment {
                flags: tcp::RST,
                seq: 9,
                ..Segment::default()
            };
            assert!(outbox.tcp(LINK, src, dst, &reset));
            let frames: Vec<_> = outbox.frames().collect();
            assert_eq!(
                frames[0].bytes.len(),
                ethernet::LEN + if src.is_v4() { 576 } else { 1280 }
            );
            for Originated {
                port, bytes: frame, ..
            } in frames
            {
                assert_eq!(port, LINK.port);
                let parsed = parse(frame, Station::Mac(LINK.dst), None).unwrap();
                let segment = &frame[usize::from(parsed.l4)..];
                let whole = match parsed.content {
                    Content::IcmpError if src.is_v4() => !checksum::fold(checksum::sum(segment)),
                    _ => checksum::transport(src, dst, parsed.key.proto, segment),
                };
                assert_eq!(whole, 0);
            }
        }
    }

    #[test]
    fn a_full_outbox_refuses_and_counts() {
        let mut outbox = Outbox::new();
        let (src, dst) = pairs()[1];
        let sent = (0..1000)
            .filter(|_| outbox.icmp_error(LINK, src, dst, (1, 3), 0, &[0; 3000]))
            .count();
        assert!(sent < 1000);
        assert_eq!(outbox.clear(), 1000 - sent as u64);
        assert!(outbox.is_empty());
        assert!(outbox.icmp_error(LINK, src, dst, (1, 3), 0, &[]));
    }
}
