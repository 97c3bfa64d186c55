//! What travels beside a frame, between DPDK's flags and [`Meta`].

use engine::port::{Checksum, Gso, GsoKind, Meta};

use super::ffi::{Frame, frame, port};
use crate::buffer::ETHERNET_LEN;

/// The frame cannot be taken over, or cannot be sent as it asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable;

/// The TCP or UDP header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transport {
    v6: bool,
    tcp: bool,
    /// Its first byte.
    start: usize,
}

impl Transport {
    /// That of a whole IPv4 packet, or of an IPv6 packet without extension headers.
    fn of(bytes: &[u8]) -> Option<Self> {
        let ip = bytes.get(ETHERNET_LEN..)?;
        let (v6, protocol, start) = match (bytes[12], bytes[13], ip.first()? >> 4) {
            (0x08, 0x00, 4) => {
                let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff;
                let protocol = (fragment == 0).then_some(*ip.get(9)?)?;
                (false, protocol, usize::from(ip[0] & 15) * 4)
            }
            (0x86, 0xdd, 6) => (true, *ip.get(6)?, 40),
            _ => return None,
        };
        let tcp = match protocol {
            6 => true,
            17 => false,
            _ => return None,
        };
        let transport = Self {
            v6,
            tcp,
            start: ETHERNET_LEN + start,
        };
        (transport.start + transport.fixed_len() <= bytes.len()).then_some(transport)
    }

    fn fixed_len(self) -> usize {
        if self.tcp { 20 } else { 8 }
    }

    /// Where the checksum sits in the header.
    fn checksum_offset(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// Bytes of the header, options included.
    fn header_len(self, bytes: &[u8]) -> usize {
        if self.tcp {
            usize::from(bytes[self.start + 12] >> 4) * 4
        } else {
            8
        }
    }

    /// The folded sum of the pseudo-header.
    fn pseudo_sum(self, bytes: &[u8]) -> u16 {
        let addresses = if self.v6 { 22..54 } else { 26..34 };
        let words = bytes[addresses].chunks_exact(2);
        let mut sum: u32 = words
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        sum += if self.tcp { 6 } else { 17 };
        sum += (bytes.len() - self.start) as u32;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }
}

/// What is known of a received frame. One that the device has merged gets the partial checksum that its segments will
/// need.
pub(super) fn received(raw: &Frame, bytes: &mut [u8]) -> Result<Meta, Unusable> {
    let has = |flag| raw.flags & flag != 0;
    let mut meta = Meta {
        hash: has(frame::HASH).then_some(raw.hash),
        vlan: has(frame::VLAN).then_some(raw.vlan),
        ..Meta::default()
    };
    if has(frame::L4_GOOD) {
        meta.checksum = Checksum::Verified;
    }
    if !has(frame::L4_PARTIAL | frame::LRO) {
        return Ok(meta);
    }
    let transport = Transport::of(bytes).ok_or(Unusable)?;
    let partial = Checksum::Partial {
        start: transport.start as u16,
        offset: transport.checksum_offset() as u16,
    };
    if has(frame::L4_PARTIAL) {
        meta.checksum = partial;
    }
    let header_len = transport.start + transport.header_len(bytes);
    let longer = bytes.len() > header_len + usize::from(raw.gso_size);
    if has(frame::LRO) && raw.gso_size > 0 && longer {
        if !transport.tcp {
            return Err(Unusable);
        }
        let at = transport.start + transport.checksum_offset();
        let sum = transport.pseudo_sum(bytes);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        meta.checksum = partial;
        meta.gso = Some(Gso {
            kind: if transport.v6 {
                GsoKind::Tcp6
            } else {
                GsoKind::Tcp4
            },
            size: raw.gso_size,
            header_len: header_len as u16,
            ecn: false,
        });
    }
    Ok(meta)
}

/// Writes what a frame asks for into `raw`, as far as the port was `granted` it. A checksum that the device does not
/// complete is completed here.
#[inline]
pub(super) fn ask(
    meta: &mut Meta,
    bytes: &mut [u8],
    granted: u16,
    raw: &mut Frame,
) -> Result<(), Unusable> {
    if let Some(tci) = meta.vlan {
        raw.flags |= frame::VLAN;
        raw.vlan = tci;
    }
    match (meta.checksum, meta.gso) {
        (Checksum::Unknown | Checksum::Verified, None) => Ok(()),
        _ => ask_transport(meta, bytes, granted, raw),
    }
}

#[cold]
fn ask_transport(
    meta: &mut Meta,
    bytes: &mut [u8],
    granted: u16,
    raw: &mut Frame,
) -> Result<(), Unusable> {
    let Checksum::Partial { start, offset } = meta.checksum else {
        return Err(Unusable);
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let transport = Transport::of(bytes).filter(|transport| {
        let same = transport.start == start && transport.checksum_offset() == offset;
        same && granted & port::TX_CHECKSUM != 0
    });
    let gso = meta
        .gso
        .filter(|gso| bytes.len() > usize::from(gso.header_len) + usize::from(gso.size));
    let Some(transport) = transport else {
        return if gso.is_none() && engine::complete_checksum(bytes, meta) {
            Ok(())
        } else {
            Err(Unusable)
        };
    };
    raw.flags |= if transport.tcp {
        frame::TCP
    } else {
        frame::UDP
    };
    if transport.v6 {
        raw.flags |= frame::IPV6;
    }
    // At most 60 bytes: Transport::of knows no longer header.
    raw.l3_len = (start - ETHERNET_LEN) as u8;
    if let Some(gso) = gso {
        let header_len = transport.header_len(bytes);
        let able = granted & port::TX_TSO != 0 && transport.tcp && gso.size > 0;
        if !able || header_len < 20 || start + header_len >= bytes.len() {
            return Err(Unusable);
        }
        raw.flags |= frame::TSO;
        raw.l4_len = header_len as u8;
        raw.gso_size = gso.size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u16 = port::TX_CHECKSUM | port::TX_TSO | port::TX_VLAN;

    #[test]
    fn flags_of_a_received_frame() {
        let check = |flags, expected: Meta| {
            let raw = Frame {
                flags,
                hash: 7,
                vlan: 100,
                ..Frame::EMPTY
            };
            assert_eq!(received(&raw, &mut tcp4(10)), Ok(expected), "{flags:#x}");
        };
        let none = Meta::default();
        check(0, none);
        check(
            frame::HASH,
            Meta {
                hash: Some(7),
                ..none
            },
        );
        check(
            frame::VLAN,
            Meta {
                vlan: Some(100),
                ..none
            },
        );
        let checksum = Checksum::Verified;
        check(frame::L4_GOOD, Meta { checksum, ..none });
        check(
            frame::L4_PARTIAL,
            Meta {
                checksum: PARTIAL,
                ..none
            },
        );
    }

    #[test]
    fn what_the_device_merged_gets_the_sum_of_its_pseudo_header() {
        let raw = Frame {
            flags: frame::LRO | frame::L4_GOOD,
            gso_size: 100,
            ..Frame::EMPTY
        };
        let mut bytes = tcp4(250);
        let meta = received(&raw, &mut bytes).expect("usable");
        let gso = Gso {
            kind: GsoKind::Tcp4,
            size: 100,
            header_len: 54,
            ecn: false,
        };
        assert_eq!((meta.gso, meta.checksum), (Some(gso), PARTIAL));
        // 10.0.0.1, 10.0.0.2, protocol 6, 270 bytes.
        let expected = 0x0a00u16 + 1 + 0x0a00 + 2 + 6 + 270;
        assert_eq!(bytes[50..52], expected.to_be_bytes());
        // And it can be sent as it came.
        let mut sent = Frame::EMPTY;
        let mut meta = meta;
        assert_eq!(ask(&mut meta, &mut bytes, ALL, &mut sent), Ok(()));
        assert_eq!(sent.flags, frame::TCP | frame::TSO);
        assert_eq!((sent.l3_len, sent.l4_len, sent.gso_size), (20, 20, 100));
    }

    #[test]
    fn what_is_asked_depends_on_what_was_granted() {
        #[track_caller]
        fn check(
            mut bytes: Vec<u8>,
            granted: u16,
            gso: Option<u16>,
            expected: Result<u16, Unusable>,
        ) {
            let transport = Transport::of(&bytes).expect("TCP or UDP");
            let mut meta = Meta {
                checksum: Checksum::Partial {
                    start: transport.start as u16,
                    offset: transport.checksum_offset() as u16,
                },
                gso: gso.map(|size| Gso {
                    kind: GsoKind::Tcp4,
                    size,
                    header_len: (transport.start + transport.header_len(&bytes)) as u16,
                    ecn: false,
                }),
                ..Meta::default()
            };
            let mut raw = Frame::EMPTY;
            let asked = ask(&mut meta, &mut bytes, granted, &mut raw).map(|()| raw.flags);
            assert_eq!(asked, expected);
        }
        check(tcp4(10), ALL, None, Ok(frame::TCP));
        check(udp6(10), ALL, None, Ok(frame::UDP | frame::IPV6));
        // Completed here.
        check(tcp4(10), 0, None, Ok(0));
        check(tcp4(1000), ALL, Some(500), Ok(frame::TCP | frame::TSO));
        // A single segment needs no cut.
        check(tcp4(400), ALL, Some(500), Ok(frame::TCP));
        check(tcp4(1000), port::TX_CHECKSUM, Some(500), Err(Unusable));
        check(tcp4(1000), 0, Some(500), Err(Unusable));
        check(udp6(1000), ALL, Some(500), Err(Unusable));
    }

    #[test]
    fn a_checksum_that_lies_elsewhere_is_completed_here() {
        let mut bytes = tcp4(30);
        let mut meta = Meta {
            checksum: Checksum::Partial {
                start: 60,
                offset: 6,
            },
            ..Meta::default()
        };
        let mut raw = Frame::EMPTY;
        assert_eq!(ask(&mut meta, &mut bytes, ALL, &mut raw), Ok(()));
        assert_eq!((raw.flags, meta.checksum), (0, Checksum::Unknown));
        meta.checksum = Checksum::Partial {
            start: 83,
            offset: 0,
        };
        assert_eq!(ask(&mut meta, &mut bytes, ALL, &mut raw), Err(Unusable));
    }

    #[test]
    fn no_frame_is_too_short_or_too_odd() {
        let whole = tcp4(0);
        for len in 0..whole.len() {
            assert_eq!(Transport::of(&whole[..len]), None, "{len} bytes");
        }
        let mut fragment = whole.clone();
        fragment[20] = 0x20;
        assert_eq!(Transport::of(&fragment), None);
        let mut other = whole;
        other[23] = 50;
        assert_eq!(Transport::of(&other), None);
    }

    const PARTIAL: Checksum = Checksum::Partial {
        start: 34,
        offset: 16,
    };

    /// A frame with a payload of `len` bytes, 10.0.0.1 to 10.0.0.2.
    fn tcp4(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; 54 + len];
        bytes[12] = 8;
        bytes[14] = 0x45;
        bytes[23] = 6;
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[46] = 5 << 4;
        bytes
    }

    fn udp6(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; 62 + len];
        bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        bytes[20] = 17;
        bytes
    }
}
