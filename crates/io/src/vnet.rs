//! The virtio network header that AF_PACKET and TUN put in front of a frame (`struct
//! virtio_net_hdr`, ten bytes, the machine's byte order), to and from [`Meta`].

use engine::port::{Checksum, Gso, GsoKind, Meta};

use crate::buffer::ETHERNET_LEN;
use crate::checksum::pseudo_header;

/// Bytes of the header.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The header does not fit its frame, or asks for what this program does not know (UFO).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

/// Reads the header of a received frame. `added` bytes were put in front of the frame since the
/// kernel counted its offsets (14 for a synthetic Ethernet header, which need not be written yet).
pub(crate) fn parse(header: [u8; LEN], frame: &mut [u8], added: usize) -> Result<Meta, Unusable> {
    // Nearly every small frame from a trusted or an unknown sender.
    if header[1] == GSO_NONE && header[0] & NEEDS_CSUM == 0 {
        return Ok(Meta {
            checksum: if header[0] & DATA_VALID == 0 {
                Checksum::Unknown
            } else {
                Checksum::Verified
            },
            ..Meta::default()
        });
    }
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let (start, offset) = if header[0] & NEEDS_CSUM != 0 {
        (usize::from(field(6)) + added, usize::from(field(8)))
    } else if header[0] & DATA_VALID != 0 {
        let is_ethernet = added == 0;
        make_partial(frame, is_ethernet, header[1] & !GSO_ECN)?
    } else {
        // Segments cut from it would get checksums that are right, whatever is in them.
        return Err(Unusable);
    };
    if start + offset + 2 > frame.len() {
        return Err(Unusable);
    }
    let checksum = Checksum::Partial {
        start: u16::try_from(start).map_err(|_| Unusable)?,
        offset: offset as u16,
    };
    let (kind, transport_len) = match header[1] & !GSO_ECN {
        GSO_NONE => {
            return Ok(Meta {
                checksum,
                ..Meta::default()
            });
        }
        // The kernel reports the length of its linear part as the header's length: useless here.
        GSO_TCPV4 | GSO_TCPV6 => {
            let data_offset = frame.get(start + 12).ok_or(Unusable)? >> 4;
            let kind = if header[1] & !GSO_ECN == GSO_TCPV4 {
                GsoKind::Tcp4
            } else {
                GsoKind::Tcp6
            };
            (kind, usize::from(data_offset) * 4)
        }
        GSO_UDP_L4 => (GsoKind::Udp, 8),
        _ => return Err(Unusable),
    };
    let header_len = start + transport_len;
    let size = field(4);
    if size == 0 || header_len > frame.len() {
        return Err(Unusable);
    }
    Ok(Meta {
        checksum,
        gso: Some(Gso {
            kind,
            size,
            header_len: u16::try_from(header_len).map_err(|_| Unusable)?,
            ecn: header[1] & GSO_ECN != 0,
        }),
        ..Meta::default()
    })
}

/// Makes the checksum of a super-packet a partial one, as the segments need it that are cut from it. The kernel does so
/// for whatever it merges itself; a device that merges (LRO), and packets that are but chained (`rx-gro-list`), come with
/// the word that all is right. Returns where the transport header begins, and where in it the checksum is.
fn make_partial(frame: &mut [u8], is_ethernet: bool, kind: u8) -> Result<(usize, usize), Unusable> {
    let (ethernet, ip) = frame.split_at_mut_checked(ETHERNET_LEN).ok_or(Unusable)?;
    let word = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *ip.get(at)?,
            *ip.get(at + 1)?,
        ])))
    };
    let version = *ip.first().ok_or(Unusable)? >> 4;
    let (ethertype, l4, total, protocol, addresses) = match version {
        4 => {
            let header = ip.get(..20).ok_or(Unusable)?;
            let fragment = header[6] & 0x3f | header[7];
            let header_len = usize::from(header[0] & 0xf) * 4;
            if fragment != 0 || header_len < 20 {
                return Err(Unusable);
            }
            ([0x08, 0x00], header_len, word(2), header[9], 12..20)
        }
        6 => {
            let header = ip.get(..40).ok_or(Unusable)?;
            let (mut next, mut l4) = (header[6], 40);
            // Hop-by-hop options, routing, destination options.
            while matches!(next, 0 | 43 | 60) {
                let extension = ip.get(l4..l4 + 2).ok_or(Unusable)?;
                next = extension[0];
                l4 += (usize::from(extension[1]) + 1) * 8;
            }
            ([0x86, 0xdd], l4, word(4).map(|len| 40 + len), next, 8..40)
        }
        _ => return Err(Unusable),
    };
    let offset = match (kind, version, protocol) {
        (GSO_TCPV4, 4, TCP) | (GSO_TCPV6, 6, TCP) => 16,
        (GSO_UDP_L4, _, UDP) => 6,
        _ => return Err(Unusable),
    };
    if is_ethernet && ethernet[12..] != ethertype {
        return Err(Unusable);
    }
    let total = total.filter(|total| *total <= ip.len()).ok_or(Unusable)?;
    let field = l4 + offset;
    if field + 2 > total {
        return Err(Unusable);
    }
    let sum = pseudo_header(&ip[addresses], protocol, total - l4);
    ip[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Ok((ETHERNET_LEN + l4, offset))
}

/// The header for a frame to send. `moved` bytes are added to (a VLAN tag) or, when negative,
/// taken from (a synthetic Ethernet header) the front of the frame that `meta` describes.
pub(crate) fn emit(meta: &Meta, moved: i32) -> [u8; LEN] {
    let mut header = [0; LEN];
    let mut put = |at: usize, value: i32| {
        header[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
    };
    let mut flags = 0;
    let mut kind = GSO_NONE;
    if let Checksum::Partial { start, offset } = meta.checksum {
        flags = NEEDS_CSUM;
        put(6, i32::from(start) + moved);
        put(8, i32::from(offset));
    }
    if let Some(gso) = meta.gso {
        kind = match gso.kind {
            GsoKind::Tcp4 => GSO_TCPV4,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        };
        if gso.ecn {
            kind |= GSO_ECN;
        }
        put(2, i32::from(gso.header_len) + moved);
        put(4, i32::from(gso.size));
    }
    header[0] = flags;
    header[1] = kind;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gso(kind: GsoKind, header_len: u16, ecn: bool) -> Meta {
        Meta {
            checksum: Checksum::Partial {
                start: 34,
                offset: if kind == GsoKind::Udp { 6 } else { 16 },
            },
            gso: Some(Gso {
                kind,
                size: 1448,
                header_len,
                ecn,
            }),
            ..Meta::default()
        }
    }

    /// A frame whose TCP header at byte 34 is 32 bytes long.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 4000];
        frame[46] = 8 << 4;
        frame
    }

    #[test]
    fn what_is_emitted_is_parsed() {
        let partial = Meta {
            checksum: Checksum::Partial {
                start: 34,
                offset: 6,
            },
            ..Meta::default()
        };
        for meta in [
            Meta::default(),
            partial,
            gso(GsoKind::Tcp4, 66, false),
            gso(GsoKind::Tcp6, 66, true),
            gso(GsoKind::Udp, 42, false),
        ] {
            assert_eq!(parse(emit(&meta, 0), &mut frame(), 0), Ok(meta), "{meta:?}");
        }
    }

    #[test]
    fn offsets_follow_the_bytes_in_front() {
        let meta = gso(GsoKind::Tcp4, 66, false);
        let stripped = emit(&meta, -14);
        assert_eq!(parse(stripped, &mut frame(), 14), Ok(meta));
        let tagged = emit(&meta, 4);
        assert_eq!(u16::from_ne_bytes([tagged[6], tagged[7]]), 38);
        assert_eq!(u16::from_ne_bytes([tagged[2], tagged[3]]), 70);
    }

    #[test]
    fn a_trusted_sender_is_verified() {
        let header = [DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let meta = parse(header, &mut frame(), 0).expect("usable");
        assert_eq!(meta.checksum, Checksum::Verified);
    }

    /// A frame with an IP packet of 4000 bytes, as its header says.
    fn merged(header: &[u8], protocol: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_LEN];
        let v4 = header[0] >> 4 == 4;
        frame[12..].copy_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        frame.extend(header);
        let l4 = frame.len();
        frame.extend((0..4000 - header.len()).map(|i| i as u8));
        if protocol == TCP {
            frame[l4 + 12] = 8 << 4;
        }
        frame
    }

    fn ipv4(protocol: u8) -> Vec<u8> {
        let mut header = vec![0x46, 0, 0x0f, 0xa0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
        header.extend([192, 0, 2, 1, 198, 51, 100, 2]);
        // An option.
        header.extend([148, 4, 0, 0]);
        header
    }

    fn ipv6(protocol: u8) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0x0f, 0x78, 0, 64];
        header.extend([0x20; 16]);
        header.extend([0xfd; 16]);
        // Hop-by-hop and destination options of eight bytes each.
        header.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        header.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
        header
    }

    /// Bytes as words, end-around.
    fn sum(bytes: &[u8]) -> u32 {
        let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        bytes.chunks(2).fold(0, |sum, pair| {
            let sum = sum + word(pair);
            (sum & 0xffff) + (sum >> 16)
        })
    }

    #[test]
    fn what_a_device_has_merged_and_verified_gets_a_partial_checksum() {
        for (header, kind, protocol) in [
            (ipv4(TCP), GSO_TCPV4, TCP),
            (ipv6(TCP), GSO_TCPV6, TCP),
            (ipv4(UDP), GSO_UDP_L4, UDP),
            (ipv6(UDP), GSO_UDP_L4, UDP),
        ] {
            for added in [0, ETHERNET_LEN] {
                let mut frame = merged(&header, protocol);
                if added > 0 {
                    // It is written later.
                    frame[..added].fill(0xee);
                }
                let mut vnet = [0; LEN];
                (vnet[0], vnet[1]) = (DATA_VALID, kind);
                vnet[4..6].copy_from_slice(&1000u16.to_ne_bytes());
                let mut meta = parse(vnet, &mut frame, added).expect("usable");
                let start = ETHERNET_LEN + header.len();
                let transport_len = if protocol == TCP { 32 } else { 8 };
                let expected = Checksum::Partial {
                    start: start as u16,
                    offset: if protocol == TCP { 16 } else { 6 },
                };
                assert_eq!(meta.checksum, expected);
                let gso = meta.gso.expect("a super-packet");
                assert_eq!(
                    (gso.size, usize::from(gso.header_len)),
                    (1000, start + transport_len)
                );
                // What comes of it is right, by the plain sum of pseudo-header and segment.
                assert!(engine::complete_checksum(&mut frame, &mut meta));
                let addresses = if header[0] >> 4 == 4 { 26..34 } else { 22..54 };
                let segment = &frame[start..];
                let mut all = frame[addresses].to_vec();
                all.extend([0, protocol]);
                all.extend((segment.len() as u16).to_be_bytes());
                all.extend(segment);
                assert_eq!(sum(&all), 0xffff);
            }
        }
    }

    #[test]
    fn what_is_said_to_be_merged_and_contradicts_itself_is_refused() {
        let check = |header: Vec<u8>, kind: u8, change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = merged(&header, TCP);
            change(&mut frame);
            let mut vnet = [0; LEN];
            (vnet[0], vnet[1]) = (DATA_VALID, kind);
            vnet[4..6].copy_from_slice(&1000u16.to_ne_bytes());
            assert_eq!(parse(vnet, &mut frame, 0), Err(Unusable));
        };
        check(ipv4(UDP), GSO_TCPV4, &|_| ());
        check(ipv4(TCP), GSO_UDP_L4, &|_| ());
        check(ipv4(TCP), GSO_TCPV6, &|_| ());
        check(ipv6(TCP), GSO_TCPV4, &|_| ());
        check(ipv4(TCP), 3, &|_| ());
        check(ipv4(TCP), GSO_TCPV4, &|f| f[12] = 0x81); // tagged
        check(ipv4(TCP), GSO_TCPV4, &|f| f[20] |= 0x20); // a fragment
        check(ipv4(TCP), GSO_TCPV4, &|f| f[14] = 0x44); // no header
        check(ipv4(TCP), GSO_TCPV4, &|f| f[14] = 0x54); // no version
        check(ipv4(TCP), GSO_TCPV4, &|f| f[16..18].fill(0)); // no end
        check(ipv6(TCP), GSO_TCPV6, &|f| f[18..20].fill(0));
        check(ipv6(TCP), GSO_TCPV6, &|f| f[55] = 255); // options without one
        check(ipv6(TCP), GSO_TCPV6, &|f| f[62] = 44); // a fragment
        for len in 0..100 {
            check(ipv4(TCP), GSO_TCPV4, &|f| f.truncate(len));
            check(ipv6(TCP), GSO_TCPV6, &|f| f.truncate(len));
        }
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        let check = |change: &dyn Fn(&mut [u8; LEN]), len: usize| {
            let mut header = emit(&gso(GsoKind::Tcp4, 66, false), 0);
            change(&mut header);
            assert_eq!(parse(header, &mut frame()[..len], 0), Err(Unusable));
        };
        check(&|h| h[0] = 0, 4000); // merged, but neither partial nor verified
        check(&|h| h[1] = 3, 4000); // UFO
        check(&|h| h[4..6].fill(0), 4000); // segments of no size
        check(&|h| h[6..8].fill(0xff), 4000); // checksum beyond the frame
        check(&|_| (), 40); // header beyond the frame
        check(&|_| (), 60);
    }
}
