//! IPv6 (RFC 8200) and the extension headers in front of the transport header.

use super::{get, get16, put, put16};
use crate::DropReason;
use crate::address::Addr;

/// Bytes of the fixed header.
pub(crate) const LEN: usize = 40;

/// Bytes of a packet that every link carries (RFC 8200 §5).
pub(crate) const MIN_MTU: u16 = 1280;

/// Extension headers that we walk past at most; real packets have two or three.
const MAX_EXTENSIONS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes in front of the transport header: the fixed header and all extensions.
    pub(crate) header_len: usize,
    /// Bytes of the whole packet, by the header's own word.
    pub(crate) total_len: usize,
    pub(crate) hop_limit: u8,
    /// The transport protocol, behind all extensions.
    pub(crate) proto: u8,
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// A part of a datagram. (An atomic fragment, RFC 6946, is a whole one.)
    pub(crate) fragment: bool,
    /// It has a fragment header, if only that of an atomic fragment.
    pub(crate) has_fragment_header: bool,
}

impl Header {
    /// Parses a header of which the whole packet is in `b`.
    pub(crate) fn parse(b: &[u8]) -> Result<Header, DropReason> {
        let header = Header::parse_embedded(b)?;
        if header.total_len > b.len() {
            return Err(DropReason::Truncated);
        }
        if header.total_len < header.header_len {
            return Err(DropReason::MalformedHeader);
        }
        Ok(header)
    }

    /// Parses a header quoted in an ICMP error, where payload may be cut off.
    pub(crate) fn parse_embedded(b: &[u8]) -> Result<Header, DropReason> {
        if b.len() < LEN {
            return Err(DropReason::Truncated);
        }
        if b[0] >> 4 != 6 {
            return Err(DropReason::MalformedHeader);
        }
        let (src, dst) = (Addr::v6_bytes(get(b, 8)), Addr::v6_bytes(get(b, 24)));
        // IPv4-mapped addresses never appear on the wire (RFC 4291 §2.5.5.2).
        if src.is_v4() || dst.is_v4() {
            return Err(DropReason::Martian);
        }
        let mut header = Header {
            header_len: LEN,
            total_len: LEN + usize::from(get16(b, 4)),
            hop_limit: b[7],
            proto: b[6],
            src,
            dst,
            fragment: false,
            has_fragment_header: false,
        };
        header.walk_extensions(b)?;
        Ok(header)
    }

    fn walk_extensions(&mut self, b: &[u8]) -> Result<(), DropReason> {
        for _ in 0..MAX_EXTENSIONS {
            let at = self.header_len;
            let extension = |len: usize| b.get(at..at + len).ok_or(DropReason::Truncated);
            match self.proto {
                // RFC 8200 §4.1: hop-by-hop options come first.
                0 if at != LEN => return Err(DropReason::MalformedHeader),
                0 | 60 => {
                    let e = extension(2)?;
                    self.proto = e[0];
                    self.header_len += (usize::from(e[1]) + 1) * 8;
                }
                43 => {
                    let e = extension(4)?;
                    // Types 0 (RFC 5095) and 1 are deprecated; a route still to go would lead
                    // the packet past the policy.
                    if e[2] < 2 || e[3] != 0 {
                        return Err(DropReason::SourceRoute);
                    }
                    self.proto = e[0];
                    self.header_len += (usize::from(e[1]) + 1) * 8;
                }
                44 => {
                    let e = extension(8)?;
                    self.proto = e[0];
                    self.fragment = get16(e, 2) & 0xfff9 != 0;
                    self.has_fragment_header = true;
                    self.header_len += 8;
                    if self.fragment {
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
        }
        Err(DropReason::MalformedHeader)
    }

    /// Writes a header without extensions; `b` has at least [`LEN`] bytes.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        put(b, 0, [0x60, 0, 0, 0]);
        put16(b, 4, (self.total_len - LEN) as u16);
        b[6] = self.proto;
        b[7] = self.hop_limit;
        put(b, 8, self.src.octets16());
        put(b, 24, self.dst.octets16());
    }
}

/// Whether a packet, whose header has been parsed, asks every router to look at it (RFC 2711).
pub(crate) fn has_router_alert(b: &[u8]) -> bool {
    if b[6] != super::proto::HOP_BY_HOP {
        return false;
    }
    let len = (usize::from(b[LEN + 1]) + 1) * 8;
    let mut options = b.get(LEN + 2..LEN + len).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        match kind {
            0 => options = rest,
            5 => return true,
            _ => {
                let len = rest.first().map_or(0, |len| usize::from(*len));
                options = rest.get(1 + len..).unwrap_or_default();
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(proto: u8, payload: &[u8]) -> Vec<u8> {
        let mut b = vec![0; LEN];
        Header {
            header_len: LEN,
            total_len: LEN + payload.len(),
            hop_limit: 64,
            proto,
            src: Addr(0x2001_0db8 << 96 | 1),
            dst: Addr(0x2001_0db8 << 96 | 2),
            fragment: false,
            has_fragment_header: false,
        }
        .emit(&mut b);
        b.extend_from_slice(payload);
        b
    }

    #[test]
    fn emits_what_it_parses() {
        let b = sample(17, &[0; 8]);
        assert_eq!(b[..9], *b"\x60\0\0\0\0\x08\x11\x40\x20");
        let header = Header::parse(&b).unwrap();
        assert_eq!(
            (header.proto, header.header_len, header.total_len),
            (17, 40, 48)
        );
        assert_eq!(Header::parse(&b[..47]), Err(DropReason::Truncated));
        assert_eq!(Header::parse(&b[..39]), Err(DropReason::Truncated));
    }

    #[test]
    fn extension_headers() {
        fn check(first: u8, payload: &[u8], expected: Result<(u8, usize, bool), DropReason>) {
            let parsed = Header::parse(&sample(first, payload));
            assert_eq!(
                parsed.map(|h| (h.proto, h.header_len, h.fragment)),
                expected,
                "{payload:?}"
            );
        }
        let options = [6, 0, 1, 4, 0, 0, 0, 0];
        check(0, &options, Ok((6, 48, false)));
        check(60, &options, Ok((6, 48, false)));
        check(
            60,
            &[0, 0, 0, 0, 0, 0, 0, 0],
            Err(DropReason::MalformedHeader),
        );
        check(
            0,
            &[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0],
            Ok((17, 56, false)),
        );
        check(43, &[6, 0, 0, 0, 0, 0, 0, 0], Err(DropReason::SourceRoute));
        check(43, &[6, 0, 4, 1, 0, 0, 0, 0], Err(DropReason::SourceRoute));
        check(43, &[6, 0, 4, 0, 0, 0, 0, 0], Ok((6, 48, false)));
        check(44, &[17, 0, 0, 1, 0, 0, 0, 1], Ok((17, 48, true)));
        check(44, &[17, 0, 0, 8, 0, 0, 0, 1], Ok((17, 48, true)));
        check(44, &[17, 0, 0, 0, 0, 0, 0, 1], Ok((17, 48, false)));
        check(
            0,
            &[6, 9, 1, 4, 0, 0, 0, 0],
            Err(DropReason::MalformedHeader),
        );
        check(0, &[6], Err(DropReason::Truncated));
        check(
            60,
            &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9),
            Err(DropReason::MalformedHeader),
        );
    }

    #[test]
    fn a_fragment_header_is_noted_wherever_it_is() {
        let check = |first, payload: &[u8], expected| {
            let parsed = Header::parse(&sample(first, payload)).unwrap();
            assert_eq!(parsed.has_fragment_header, expected, "{payload:?}");
        };
        let options = [58, 0, 1, 4, 0, 0, 0, 0];
        check(60, &options, false);
        check(44, &[58, 0, 0, 0, 0, 0, 0, 1], true);
        check(44, &[17, 0, 0, 1, 0, 0, 0, 1], true);
        let header = [60, 0, 0, 0, 0, 0, 0, 1];
        check(44, &[header, options].concat(), true);
    }

    #[test]
    fn a_router_alert_is_found_among_the_options() {
        fn check(proto: u8, options: &[u8], expected: bool) {
            let b = sample(proto, options);
            assert!(Header::parse(&b).is_ok());
            assert_eq!(has_router_alert(&b), expected, "{options:?}");
        }
        check(0, &[58, 0, 5, 2, 0, 0, 1, 0], true);
        check(0, &[58, 0, 1, 0, 5, 2, 0, 0], true);
        check(0, &[58, 0, 0, 0, 0, 0, 0, 5], true);
        check(0, &[58, 0, 1, 4, 5, 2, 0, 0], false);
        check(0, &[58, 0, 1, 200, 5, 2, 0, 0], false);
        check(0, &[58, 0, 0, 0, 0, 0, 0, 1], false);
        check(60, &[58, 0, 5, 2, 0, 0, 1, 0], false);
    }

    #[test]
    fn mapped_addresses_are_refused() {
        let mut b = sample(17, &[0; 8]);
        b[8..24].copy_from_slice(&Addr::v4(0x0a00_0001).octets16());
        assert_eq!(Header::parse(&b), Err(DropReason::Martian));
    }
}
