//! ICMP (RFC 792) and ICMPv6 (RFC 4443): what a message is to us.

use super::get16;
use crate::DropReason;

/// Bytes of the header that all messages share, with the four that differ.
pub(crate) const LEN: usize = 8;
/// Where the checksum field sits.
pub(crate) const CHECKSUM: usize = 2;

pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const UNREACHABLE: u8 = 3;
pub(crate) const ECHO: u8 = 8;
pub(crate) const TIME_EXCEEDED: u8 = 11;

pub(crate) const UNREACHABLE6: u8 = 1;
pub(crate) const TOO_BIG6: u8 = 2;
pub(crate) const TIME_EXCEEDED6: u8 = 3;
pub(crate) const ECHO6: u8 = 128;
pub(crate) const ECHO_REPLY6: u8 = 129;

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks, with this identifier: opens a flow.
    Query(u16),
    /// Answers a query with this identifier.
    Answer(u16),
    /// Tells that a packet, which it quotes, failed.
    Error,
    /// Neighbour discovery, or a question for listeners.
    Neighbor,
    /// Anything else.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) icmp_type: u8,
    pub(crate) code: u8,
}

impl Header {
    /// Parses the header of a message of the family.
    pub(crate) fn parse(b: &[u8], v4: bool) -> Result<Header, DropReason> {
        if b.len() < LEN {
            return Err(DropReason::Truncated);
        }
        let id = get16(b, 4);
        let kind = match (v4, b[0]) {
            // Echo, and timestamp.
            (true, ECHO | 13) | (false, ECHO6) => Kind::Query(id),
            (true, ECHO_REPLY | 14) | (false, ECHO_REPLY6) => Kind::Answer(id),
            (true, UNREACHABLE | TIME_EXCEEDED | 12) | (false, 1..=4) => Kind::Error,
            (false, 130 | 133..=137) => Kind::Neighbor,
            _ => Kind::Other,
        };
        Ok(Header {
            kind,
            icmp_type: b[0],
            code: b[1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        fn check(v4: bool, icmp_type: u8, expected: Kind) {
            let b = [icmp_type, 5, 0, 0, 0x12, 0x34, 0, 0];
            let header = Header::parse(&b, v4).unwrap();
            assert_eq!(
                (header.kind, header.icmp_type, header.code),
                (expected, icmp_type, 5)
            );
        }
        check(true, 8, Kind::Query(0x1234));
        check(true, 0, Kind::Answer(0x1234));
        check(true, 13, Kind::Query(0x1234));
        check(true, 11, Kind::Error);
        check(true, 5, Kind::Other);
        check(false, 128, Kind::Query(0x1234));
        check(false, 129, Kind::Answer(0x1234));
        check(false, 2, Kind::Error);
        check(false, 130, Kind::Neighbor);
        check(false, 131, Kind::Other);
        check(false, 135, Kind::Neighbor);
        check(false, 143, Kind::Other);
        assert_eq!(Header::parse(&[8; 7], true), Err(DropReason::Truncated));
    }
}
