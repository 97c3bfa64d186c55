//! The virtio network header that AF_PACKET and TUN put in front of a frame (`struct
//! virtio_net_hdr`, ten bytes, the machine's byte order), to and from [`Meta`].

use engine::port::{Checksum, Gso, GsoKind, Meta};

/// Bytes of the header.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The header does not fit its frame, or asks for what this program does not know (UFO).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

/// Reads the header of a received frame. `added` bytes were put in front of the frame since the
/// kernel counted its offsets (14 for a synthetic Ethernet header).
pub(crate) fn parse(header: [u8; LEN], frame: &[u8], added: usize) -> Result<Meta, Unusable> {
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
    // A super-packet without a partial checksum would leave with wrong segments: the kernel
    // makes one for whatever it merges, so only a device that merges on its own lacks it.
    if header[0] & NEEDS_CSUM == 0 {
        return Err(Unusable);
    }
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let start = usize::from(field(6)) + added;
    let offset = usize::from(field(8));
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
            assert_eq!(parse(emit(&meta, 0), &frame(), 0), Ok(meta), "{meta:?}");
        }
    }

    #[test]
    fn offsets_follow_the_bytes_in_front() {
        let meta = gso(GsoKind::Tcp4, 66, false);
        let stripped = emit(&meta, -14);
        assert_eq!(parse(stripped, &frame(), 14), Ok(meta));
        let tagged = emit(&meta, 4);
        assert_eq!(u16::from_ne_bytes([tagged[6], tagged[7]]), 38);
        assert_eq!(u16::from_ne_bytes([tagged[2], tagged[3]]), 70);
    }

    #[test]
    fn a_trusted_sender_is_verified() {
        let header = [DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let meta = parse(header, &frame(), 0).expect("usable");
        assert_eq!(meta.checksum, Checksum::Verified);
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        let check = |change: &dyn Fn(&mut [u8; LEN]), len: usize| {
            let mut header = emit(&gso(GsoKind::Tcp4, 66, false), 0);
            change(&mut header);
            assert_eq!(parse(header, &frame()[..len], 0), Err(Unusable));
        };
        check(&|h| h[0] = 0, 4000); // merged, but without a partial checksum
        check(&|h| h[1] = 3, 4000); // UFO
        check(&|h| h[4..6].fill(0), 4000); // segments of no size
        check(&|h| h[6..8].fill(0xff), 4000); // checksum beyond the frame
        check(&|_| (), 40); // header beyond the frame
        check(&|_| (), 60);
    }
}
