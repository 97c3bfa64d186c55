//! Transport checksums that the sender left to a device that is none.
//!
//! Over veth, and between guests of one host, a sender that offloads checksums hands over frames whose field holds only
//! the sum of the pseudo-header. AF_PACKET tells so; XDP sees nothing but bytes. But such a field can be recognised: it
//! *is* that sum. A complete checksum that equals it by chance (one in 65,536) loses nothing when it is completed: the
//! same value comes out.

use engine::port::Checksum;

use crate::checksum::pseudo_header;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The state of a received frame's transport checksum, as far as its bytes tell.
#[inline]
pub(super) fn checksum(frame: &[u8]) -> Checksum {
    find(frame).unwrap_or_default()
}

fn find(frame: &[u8]) -> Option<Checksum> {
    let (start, protocol, len, addresses) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = frame.get(14..34)?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            let fragment = header[6] & 0x3f | header[7];
            if fragment != 0 || header_len < 20 {
                return None;
            }
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let len = total.checked_sub(header_len)?;
            (14 + header_len, header[9], len, &header[12..20])
        }
        [0x86, 0xdd] => {
            let header = frame.get(14..54)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            (54, header[6], len, &header[8..40])
        }
        _ => return None,
    };
    let offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let field = frame.get(start + offset..start + offset + 2)?;
    let field = u16::from_be_bytes([field[0], field[1]]);
    // No checksum at all (UDP over IPv4).
    if field == 0 {
        return None;
    }
    let sum = pseudo_header(addresses, protocol, len);
    (sum == field).then_some(Checksum::Partial {
        start: start as u16,
        offset: offset as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IPv4 or IPv6, TCP or UDP, with the pseudo-header's sum in the field.
    fn frame(v6: bool, protocol: u8) -> Vec<u8> {
        let mut frame = vec![0; 100];
        let (start, sum) = if v6 {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14] = 0x60;
            frame[18..20].copy_from_slice(&46u16.to_be_bytes());
            frame[20] = protocol;
            frame[22..54].fill(0xab);
            (54, 16 * 0xabab + 46 + u32::from(protocol))
        } else {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&86u16.to_be_bytes());
            frame[23] = protocol;
            frame[26..34].copy_from_slice(&[192, 0, 2, 1, 198, 51, 100, 1]);
            (
                34,
                0xc000 + 0x0201 + 0xc633 + 0x6401 + 66 + u32::from(protocol),
            )
        };
        let sum = (sum & 0xffff) + (sum >> 16);
        let at = start + if protocol == TCP { 16 } else { 6 };
        frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        frame
    }

    #[test]
    fn the_sum_of_the_pseudo_header_is_recognised() {
        for (v6, protocol, start, offset) in [
            (false, TCP, 34, 16),
            (false, UDP, 34, 6),
            (true, TCP, 54, 16),
            (true, UDP, 54, 6),
        ] {
            let mut frame = frame(v6, protocol);
            assert_eq!(checksum(&frame), Checksum::Partial { start, offset });
            let field = usize::from(start + offset);
            frame[field] ^= 1;
            assert_eq!(checksum(&frame), Checksum::Unknown);
            frame[field..field + 2].fill(0);
            assert_eq!(checksum(&frame), Checksum::Unknown);
        }
    }

    #[test]
    fn fragments_other_protocols_and_cut_frames_are_left_alone() {
        let check = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = frame(false, TCP);
            change(&mut frame);
            assert_eq!(checksum(&frame), Checksum::Unknown);
        };
        check(&|f| f[20] = 0x20);
        check(&|f| f[21] = 1);
        check(&|f| f[23] = 1);
        check(&|f| f[14] = 0x44);
        check(&|f| f[12] = 0);
        for len in 0..52 {
            check(&|f| f.truncate(len));
        }
    }
}
