//! UDP (RFC 768).

use super::get16;
use crate::DropReason;

/// Bytes of the header.
pub(crate) const LEN: usize = 8;
/// Where the checksum field sits.
pub(crate) const CHECKSUM: usize = 6;

/// The ports of a datagram whose bytes are all in `b`.
#[inline(always)]
pub(crate) fn parse_ports(b: &[u8]) -> Result<(u16, u16), DropReason> {
    let Some(h) = b.first_chunk::<LEN>() else {
        return Err(DropReason::Truncated);
    };
    let len = usize::from(get16(h, 4));
    if len < LEN {
        return Err(DropReason::MalformedHeader);
    }
    if len > b.len() {
        return Err(DropReason::Truncated);
    }
    Ok((get16(h, 0), get16(h, 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        fn check(b: &[u8], expected: Result<(u16, u16), DropReason>) {
            assert_eq!(parse_ports(b), expected, "{b:?}");
        }
        check(&[0x12, 0x34, 0, 53, 0, 8, 0, 0], Ok((0x1234, 53)));
        check(
            &[0x12, 0x34, 0, 53, 0, 7, 0, 0],
            Err(DropReason::MalformedHeader),
        );
        check(&[0x12, 0x34, 0, 53, 0, 9, 0, 0], Err(DropReason::Truncated));
        check(&[0x12, 0x34, 0, 53, 0, 8, 0], Err(DropReason::Truncated));
    }
}
