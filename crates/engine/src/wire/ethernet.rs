//! Ethernet II.

use super::{get, get16, put, put16};

/// Bytes of the header.
pub(crate) const LEN: usize = 14;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;

pub(crate) type Mac = [u8; 6];
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// The header's three fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dst: Mac,
    pub(crate) src: Mac,
    pub(crate) ethertype: u16,
}

impl Header {
    pub(crate) fn parse(frame: &[u8]) -> Option<Header> {
        (frame.len() >= LEN).then(|| Header {
            dst: get(frame, 0),
            src: get(frame, 6),
            ethertype: get16(frame, 12),
        })
    }

    /// Writes the header; `frame` has at least [`LEN`] bytes.
    pub(crate) fn emit(&self, frame: &mut [u8]) {
        put(frame, 0, self.dst);
        put(frame, 6, self.src);
        put16(frame, 12, self.ethertype);
    }
}

/// Group bit: broadcast and multicast.
pub(crate) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_is_the_inverse_of_emit() {
        let header = Header {
            dst: BROADCAST,
            src: [2, 0, 0, 0, 0, 1],
            ethertype: ARP,
        };
        let mut frame = [0; LEN];
        header.emit(&mut frame);
        assert_eq!(frame, *b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06");
        assert_eq!(Header::parse(&frame), Some(header));
        assert_eq!(Header::parse(&frame[..13]), None);
        assert!(is_group(header.dst) && !is_group(header.src));
    }
}
