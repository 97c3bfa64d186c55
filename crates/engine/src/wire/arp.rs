//! ARP for IPv4 over Ethernet (RFC 826).

use super::ethernet::Mac;
use super::{get, get16, put, put16};
use crate::DropReason;
use crate::address::Addr;

/// Bytes of the packet, without the Ethernet header.
pub(crate) const LEN: usize = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Request,
    Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) operation: Operation,
    pub(crate) sender_mac: Mac,
    pub(crate) sender: Addr,
    pub(crate) target_mac: Mac,
    pub(crate) target: Addr,
}

impl Arp {
    pub(crate) fn parse(b: &[u8]) -> Result<Arp, DropReason> {
        if b.len() < LEN {
            return Err(DropReason::Truncated);
        }
        // Ethernet, IPv4, and their address lengths.
        if b[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(DropReason::Arp);
        }
        let operation = match get16(b, 6) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(DropReason::Arp),
        };
        Ok(Arp {
            operation,
            sender_mac: get(b, 8),
            sender: Addr::v4_bytes(get(b, 14)),
            target_mac: get(b, 18),
            target: Addr::v4_bytes(get(b, 24)),
        })
    }

    /// Writes the packet; `b` has at least [`LEN`] bytes.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        put(b, 0, [0, 1, 8, 0, 6, 4]);
        put16(
            b,
            6,
            if self.operation == Operation::Request {
                1
            } else {
                2
            },
        );
        put(b, 8, self.sender_mac);
        put(b, 14, self.sender.octets4());
        put(b, 18, self.target_mac);
        put(b, 24, self.target.octets4());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_is_the_inverse_of_emit() {
        let arp = Arp {
            operation: Operation::Reply,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender: Addr::v4(0x0a00_0001),
            target_mac: [2, 0, 0, 0, 0, 2],
            target: Addr::v4(0x0a00_0002),
        };
        let mut b = [0; LEN];
        arp.emit(&mut b);
        assert_eq!(
            b,
            *b"\0\x01\x08\0\x06\x04\0\x02\x02\0\0\0\0\x01\x0a\0\0\x01\x02\0\0\0\0\x02\x0a\0\0\x02"
        );
        assert_eq!(Arp::parse(&b), Ok(arp));
        assert_eq!(Arp::parse(&b[..27]), Err(DropReason::Truncated));
        b[7] = 3;
        assert_eq!(Arp::parse(&b), Err(DropReason::Arp));
        b[4] = 8;
        assert_eq!(Arp::parse(&b), Err(DropReason::Arp));
    }
}
