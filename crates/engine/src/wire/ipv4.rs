//! IPv4 (RFC 791, RFC 1812).

use super::{checksum, get, get16, put, put16};
use crate::DropReason;
use crate::address::Addr;

/// Bytes of a header without options.
pub(crate) const MIN_LEN: usize = 20;
/// Bytes of the longest header.
pub(crate) const MAX_LEN: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the header, options included: 20..=60.
    pub(crate) header_len: usize,
    /// Bytes of header and payload, by the header's own word.
    pub(crate) total_len: usize,
    pub(crate) ttl: u8,
    pub(crate) proto: u8,
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// The sender forbids fragmentation.
    pub(crate) dont_fragment: bool,
    /// A part of a datagram: an offset, or more to come.
    pub(crate) fragment: bool,
}

impl Header {
    /// Parses a header of which the whole packet is in `b`; verifies the header checksum.
    #[inline(always)]
    pub(crate) fn parse(b: &[u8]) -> Result<Header, DropReason> {
        let header = Header::parse_embedded(b)?;
        if header.total_len > b.len() {
            return Err(DropReason::Truncated);
        }
        if header.header_len > MIN_LEN {
            check_with_options(&b[..header.header_len])?;
        } else if !b.first_chunk().is_some_and(checksum::is_right) {
            return Err(DropReason::BadChecksum);
        }
        Ok(header)
    }

    /// Parses a header quoted in an ICMP error, where payload may be cut off and the checksum is
    /// of the time when the quoting router saw it.
    #[inline(always)]
    pub(crate) fn parse_embedded(b: &[u8]) -> Result<Header, DropReason> {
        let Some(h) = b.first_chunk::<MIN_LEN>() else {
            return Err(DropReason::Truncated);
        };
        let header_len = usize::from(h[0] & 0xf) * 4;
        let total_len = usize::from(get16(h, 2));
        if h[0] >> 4 != 4 || header_len < MIN_LEN || total_len < header_len {
            return Err(DropReason::MalformedHeader);
        }
        if b.len() < header_len {
            return Err(DropReason::Truncated);
        }
        let flags = get16(h, 6);
        Ok(Header {
            header_len,
            total_len,
            ttl: h[8],
            proto: h[9],
            src: Addr::v4_bytes(get(h, 12)),
            dst: Addr::v4_bytes(get(h, 16)),
            dont_fragment: flags & 0x4000 != 0,
            fragment: flags & 0x3fff != 0,
        })
    }

    /// Writes a header without options, checksum included; `b` has at least [`MIN_LEN`] bytes.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        put16(b, 0, 0x4500);
        put16(b, 2, self.total_len as u16);
        put16(b, 4, 0);
        put16(b, 6, if self.dont_fragment { 0x4000 } else { 0 });
        b[8] = self.ttl;
        b[9] = self.proto;
        put16(b, 10, 0);
        put(b, 12, self.src.octets4());
        put(b, 16, self.dst.octets4());
        let sum = !checksum::fold(checksum::sum(&b[..MIN_LEN]));
        put16(b, 10, sum);
    }
}

/// Appends those options that every fragment carries (RFC 791 §3.1), padded. The options have been checked.
pub(crate) fn copied_options(mut options: &[u8], to: &mut Vec<u8>) {
    let start = to.len();
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            kind => {
                let len = rest.first().map_or(1, |len| usize::from(*len));
                let (option, behind) = options.split_at(len.clamp(1, options.len()));
                if kind & 0x80 != 0 {
                    to.extend_from_slice(option);
                }
                options = behind;
            }
        }
    }
    to.resize(start + (to.len() - start).next_multiple_of(4), 0);
}

/// Verifies the checksum of a header with options, and the options.
#[cold]
fn check_with_options(header: &[u8]) -> Result<(), DropReason> {
    match checksum::fold(checksum::sum(header)) {
        0xffff => check_options(&header[MIN_LEN..]),
        _ => Err(DropReason::BadChecksum),
    }
}

/// Walks the options; source routes are refused (RFC 7126 §4.3).
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return Ok(()),
            1 => options = rest,
            131 | 137 => return Err(DropReason::SourceRoute),
            _ => {
                let len = usize::from(*rest.first().ok_or(DropReason::MalformedHeader)?);
                if len < 2 || len > options.len() {
                    return Err(DropReason::MalformedHeader);
                }
                options = &options[len..];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut b = vec![0; 28];
        Header {
            header_len: 20,
            total_len: 28,
            ttl: 64,
            proto: 17,
            src: Addr::v4(0x0a00_0001),
            dst: Addr::v4(0xc000_0201),
            dont_fragment: true,
            fragment: false,
        }
        .emit(&mut b);
        b
    }

    /// The sample with these option bytes and a right checksum.
    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut b = sample();
        b.splice(20..20, options.iter().copied());
        b[0] = 0x45 + (options.len() / 4) as u8;
        put16(&mut b, 2, 28 + options.len() as u16);
        put16(&mut b, 10, 0);
        let sum = !checksum::fold(checksum::sum(&b[..20 + options.len()]));
        put16(&mut b, 10, sum);
        b
    }

    #[test]
    fn emits_what_it_parses() {
        let b = sample();
        assert_eq!(b[..10], *b"\x45\0\0\x1c\0\0\x40\0\x40\x11");
        let header = Header::parse(&b).unwrap();
        assert_eq!((header.ttl, header.proto, header.total_len), (64, 17, 28));
        assert!(header.dont_fragment && !header.fragment);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        fn check(change: impl Fn(&mut Vec<u8>), expected: DropReason) {
            let mut b = sample();
            change(&mut b);
            assert_eq!(Header::parse(&b), Err(expected));
        }
        check(|b| b.truncate(19), DropReason::Truncated);
        check(|b| b.truncate(27), DropReason::Truncated);
        check(|b| b[0] = 0x65, DropReason::MalformedHeader);
        check(|b| b[0] = 0x44, DropReason::MalformedHeader);
        check(|b| b[3] = 19, DropReason::MalformedHeader);
        check(|b| b[0] = 0x4f, DropReason::MalformedHeader);
        check(|b| b[8] = 63, DropReason::BadChecksum);
    }

    #[test]
    fn options() {
        fn check(options: &[u8], expected: Result<(), DropReason>) {
            assert_eq!(
                Header::parse(&with_options(options)).map(|_| ()),
                expected,
                "{options:?}"
            );
        }
        check(&[1, 1, 1, 0], Ok(()));
        check(&[148, 4, 0, 0], Ok(()));
        check(&[131, 4, 0, 0], Err(DropReason::SourceRoute));
        check(&[1, 137, 3, 0], Err(DropReason::SourceRoute));
        check(&[7, 0, 0, 0], Err(DropReason::MalformedHeader));
        check(&[7, 9, 0, 0], Err(DropReason::MalformedHeader));
        check(&[1, 1, 1, 7], Err(DropReason::MalformedHeader));
    }

    #[test]
    fn fragments_carry_options_that_say_so() {
        fn check(options: &[u8], expected: &[u8]) {
            let mut to = vec![0xaa];
            copied_options(options, &mut to);
            assert_eq!(to[1..], *expected, "{options:?}");
        }
        check(&[148, 4, 0, 0], &[148, 4, 0, 0]);
        check(&[7, 3, 4, 1, 148, 4, 0, 0], &[148, 4, 0, 0]);
        check(&[1, 0x86, 3, 9, 0, 148, 4, 0], &[0x86, 3, 9, 0]);
        check(&[], &[]);
    }

    #[test]
    fn any_part_of_a_datagram_is_a_fragment() {
        for (word, expected) in [
            (0x4000, false),
            (0x2000, true),
            (0x0001, true),
            (0x0000, false),
        ] {
            let mut b = sample();
            put16(&mut b, 6, word);
            assert_eq!(
                Header::parse_embedded(&b).unwrap().fragment,
                expected,
                "{word:#x}"
            );
        }
    }
}
