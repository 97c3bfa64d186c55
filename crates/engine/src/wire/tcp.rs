//! TCP headers (RFC 9293, window scale RFC 7323).

use super::{get16, get32, put, put16};
use crate::DropReason;

/// Bytes of a header without options.
pub(crate) const MIN_LEN: usize = 20;
/// Where the checksum field sits.
pub(crate) const CHECKSUM: usize = 16;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// What the state machine needs of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// As in the header, not scaled.
    pub(crate) window: u16,
    /// Payload bytes.
    pub(crate) len: u32,
    /// Window scale offered in a SYN.
    pub(crate) scale: Option<u8>,
}

impl Segment {
    /// Parses a segment whose bytes are all in `b`.
    #[inline(always)]
    pub(crate) fn parse(b: &[u8]) -> Result<Segment, DropReason> {
        let Some(h) = b.first_chunk::<MIN_LEN>() else {
            return Err(DropReason::Truncated);
        };
        let header_len = usize::from(h[12] >> 4) * 4;
        if header_len < MIN_LEN {
            return Err(DropReason::MalformedHeader);
        }
        if header_len > b.len() {
            return Err(DropReason::Truncated);
        }
        let flags = h[13] & 0x3f;
        let known = flags & (SYN | FIN | RST | ACK);
        let both = |a, b| known & (a | b) == a | b;
        if known == 0 || both(SYN, FIN) || both(SYN, RST) || both(FIN, RST) {
            return Err(DropReason::BadTcpFlags);
        }
        let scale = if flags & SYN != 0 {
            window_scale(&b[MIN_LEN..header_len])
        } else {
            None
        };
        Ok(Segment {
            src_port: get16(h, 0),
            dst_port: get16(h, 2),
            seq: get32(h, 4),
            ack: get32(h, 8),
            flags,
            window: get16(h, 14),
            len: (b.len() - header_len) as u32,
            scale,
        })
    }

    #[inline]
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it asks for a new connection.
    #[inline]
    pub(crate) fn is_initial(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// The sequence number behind the segment: SYN and FIN count one each.
    pub(crate) fn end(&self) -> u32 {
        let extra = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.len).wrapping_add(extra)
    }

    /// Writes the header of a segment without options, payload or checksum; `b` has at least
    /// [`MIN_LEN`] bytes.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        put16(b, 0, self.src_port);
        put16(b, 2, self.dst_port);
        put(b, 4, self.seq.to_be_bytes());
        put(b, 8, self.ack.to_be_bytes());
        b[12] = 0x50;
        b[13] = self.flags;
        put16(b, 14, self.window);
        put16(b, 16, 0);
        put16(b, 18, 0);
    }
}

/// The window scale option; at most 14 (RFC 7323 §2.3). A malformed option ends the search.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return None,
            1 => options = rest,
            3 => {
                return match rest {
                    [3, shift, ..] => Some((*shift).min(14)),
                    _ => None,
                };
            }
            _ => options = options.get(usize::from(*rest.first()?).max(2)..)?,
        }
    }
    None
}

/// Where among these options the value of the maximum segment size stands (RFC 9293 §3.2). A malformed option ends the
/// search.
pub(crate) fn find_mss(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match options.get(at..)? {
            [1, ..] => at += 1,
            [2, 4, _, _, ..] => return Some(at + 2),
            [0 | 2, ..] => return None,
            [_, len, ..] => at += usize::from(*len).max(2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emits_what_it_parses() {
        let segment = Segment {
            src_port: 1,
            dst_port: 2,
            seq: 3,
            ack: 4,
            flags: RST | ACK,
            window: 5,
            ..Segment::default()
        };
        let mut b = [0xff; MIN_LEN];
        segment.emit(&mut b);
        assert_eq!(
            b,
            *b"\0\x01\0\x02\0\0\0\x03\0\0\0\x04\x50\x14\0\x05\0\0\0\0"
        );
        assert_eq!(Segment::parse(&b), Ok(segment));
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        fn check(offset: u8, flags: u8, len: usize, expected: DropReason) {
            let mut b = [0; 20];
            b[12] = offset << 4;
            b[13] = flags;
            assert_eq!(
                Segment::parse(&b[..len]),
                Err(expected),
                "{offset} {flags:#x} {len}"
            );
        }
        check(5, ACK, 19, DropReason::Truncated);
        check(4, ACK, 20, DropReason::MalformedHeader);
        check(6, ACK, 20, DropReason::Truncated);
        check(5, 0, 20, DropReason::BadTcpFlags);
        check(5, SYN | FIN, 20, DropReason::BadTcpFlags);
        check(5, SYN | RST, 20, DropReason::BadTcpFlags);
        check(5, FIN | RST, 20, DropReason::BadTcpFlags);
    }

    #[test]
    fn the_end_counts_syn_and_fin() {
        let at = |flags, len| {
            Segment {
                seq: u32::MAX,
                flags,
                len,
                ..Segment::default()
            }
            .end()
        };
        assert_eq!((at(SYN, 0), at(ACK, 5), at(FIN | ACK, 1)), (0, 4, 1));
    }

    #[test]
    fn maximum_segment_size_option() {
        fn check(options: &[u8], expected: Option<usize>) {
            assert_eq!(find_mss(options), expected, "{options:?}");
        }
        check(&[2, 4, 5, 180], Some(2));
        check(&[1, 3, 3, 7, 2, 4, 5, 180], Some(6));
        check(&[1, 2, 4, 5, 180, 0, 0, 0], Some(3));
        check(&[2, 4, 5], None);
        check(&[2, 3, 5, 2, 4, 5, 180, 0], None);
        check(&[0, 2, 4, 5, 180], None);
        check(&[3], None);
        check(&[3, 0, 2, 4, 5, 180], Some(4));
        check(&[3, 200, 2, 4], None);
        check(&[], None);
    }

    #[test]
    fn window_scale_option() {
        fn check(options: &[u8], expected: Option<u8>) {
            assert_eq!(window_scale(options), expected, "{options:?}");
        }
        check(&[2, 4, 5, 180, 1, 3, 3, 7], Some(7));
        check(&[3, 3, 200], Some(14));
        check(&[3, 3], None);
        check(&[3, 2, 1], None);
        check(&[0, 3, 3, 7], None);
        check(&[2], None);
        check(&[2, 0, 3, 3, 7], Some(7));
        check(&[], None);
    }
}
