//! Neighbour solicitation and advertisement (RFC 4861).

use super::ethernet::Mac;
use super::{get, icmp, put};
use crate::DropReason;
use crate::address::Addr;

pub(crate) const SOLICITATION: u8 = 135;
pub(crate) const ADVERTISEMENT: u8 = 136;

/// Bytes of a message with one link-layer address option.
pub(crate) const LEN: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Solicitation {
        target: Addr,
        /// Source link-layer address; absent in duplicate address detection.
        mac: Option<Mac>,
    },
    Advertisement {
        target: Addr,
        mac: Option<Mac>,
        solicited: bool,
        overriding: bool,
    },
}

impl Message {
    /// Parses an ICMPv6 message whose checksum and hop limit have been verified. Routers'
    /// messages and redirects are not for us.
    pub(crate) fn parse(b: &[u8]) -> Result<Message, DropReason> {
        if b.len() < 24 || b[1] != 0 {
            return Err(DropReason::NeighborDiscovery);
        }
        let target = Addr::v6_bytes(get(b, 8));
        if target.is_multicast() {
            return Err(DropReason::NeighborDiscovery);
        }
        match b[0] {
            SOLICITATION => Ok(Message::Solicitation {
                target,
                mac: option(&b[24..], 1)?,
            }),
            ADVERTISEMENT => Ok(Message::Advertisement {
                target,
                mac: option(&b[24..], 2)?,
                solicited: b[4] & 0x40 != 0,
                overriding: b[4] & 0x20 != 0,
            }),
            _ => Err(DropReason::NeighborDiscovery),
        }
    }

    /// Whether the message may come from one address and go to another (RFC 4861 §7.1.1, §7.1.2): whoever has no address yet
    /// asks a group and leaves no address, and an answer goes to nobody but who has asked.
    pub(crate) fn may_go(&self, src: Addr, dst: Addr) -> bool {
        match *self {
            Message::Solicitation { mac, .. } => {
                src.0 != 0 || mac.is_none() && dst == solicited_node(dst)
            }
            Message::Advertisement { solicited, .. } => !(solicited && dst.is_multicast()),
        }
    }

    /// Writes the message without its checksum; `b` has at least [`LEN`] bytes, and the message
    /// has an address option.
    pub(crate) fn emit(&self, b: &mut [u8]) {
        let (icmp_type, flags, target, mac) = match *self {
            Message::Solicitation { target, mac } => (SOLICITATION, 0, target, mac),
            Message::Advertisement {
                target,
                mac,
                solicited,
                overriding,
            } => {
                // We are a router.
                let flags = 0x80 | u8::from(solicited) << 6 | u8::from(overriding) << 5;
                (ADVERTISEMENT, flags, target, mac)
            }
        };
        put(b, 0, [icmp_type, 0, 0, 0, flags, 0, 0, 0]);
        put(b, icmp::LEN, target.octets16());
        put(b, 24, [if icmp_type == SOLICITATION { 1 } else { 2 }, 1]);
        put(b, 26, mac.unwrap_or_default());
    }
}

/// The link-layer address in the option of this kind. All options must be well-formed.
fn option(mut options: &[u8], kind: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while !options.is_empty() {
        let len = usize::from(*options.get(1).ok_or(DropReason::NeighborDiscovery)?) * 8;
        if len == 0 || len > options.len() {
            return Err(DropReason::NeighborDiscovery);
        }
        if options[0] == kind && len == 8 {
            found = Some(get(options, 2));
        }
        options = &options[len..];
    }
    Ok(found)
}

/// The solicited-node multicast address of an address (RFC 4291 §2.7.1).
pub(crate) fn solicited_node(a: Addr) -> Addr {
    Addr(0xff02_0000_0000_0000_0000_0001_ff00_0000 | a.0 & 0x00ff_ffff)
}

/// All nodes on the link (RFC 4291 §2.7.1).
pub(crate) const ALL_NODES: Addr = Addr(0xff02 << 112 | 1);

/// All routers on the link (RFC 4291 §2.7.1).
pub(crate) const ALL_ROUTERS: Addr = Addr(0xff02 << 112 | 2);

/// The Ethernet address of an IPv6 multicast group (RFC 2464 §7).
pub(crate) fn multicast_mac(group: Addr) -> Mac {
    let [a, b, c, d] = group.octets4();
    [0x33, 0x33, a, b, c, d]
}

/// The link-local address of an Ethernet address (RFC 4291 appendix A).
pub(crate) fn link_local(mac: Mac) -> Addr {
    let [a, b, c, d, e, f] = mac;
    Addr(0xfe80 << 112 | u128::from(u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Addr = Addr(0x2001_0db8 << 96 | 0x0012_3456);
    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn parse_is_the_inverse_of_emit() {
        for message in [
            Message::Solicitation {
                target: TARGET,
                mac: Some(MAC),
            },
            Message::Advertisement {
                target: TARGET,
                mac: Some(MAC),
                solicited: true,
                overriding: false,
            },
        ] {
            let mut b = [0xff; LEN];
            message.emit(&mut b);
            assert_eq!(Message::parse(&b), Ok(message));
        }
    }

    #[test]
    fn refuses_what_rfc_4861_discards() {
        fn check(change: impl Fn(&mut Vec<u8>)) {
            let mut b = vec![0; LEN];
            Message::Solicitation {
                target: TARGET,
                mac: Some(MAC),
            }
            .emit(&mut b);
            change(&mut b);
            assert_eq!(Message::parse(&b), Err(DropReason::NeighborDiscovery));
        }
        check(|b| b.truncate(23));
        check(|b| b.truncate(25));
        check(|b| b[1] = 1);
        check(|b| b[8] = 0xff);
        check(|b| b[25] = 0);
        check(|b| b[25] = 2);
        check(|b| b[0] = 134);
    }

    #[test]
    fn who_may_say_what_to_whom() {
        let (nobody, host, group) = (Addr(0), Addr(0xfe80 << 112 | 9), solicited_node(TARGET));
        let solicitation = |mac| Message::Solicitation {
            target: TARGET,
            mac,
        };
        assert!(solicitation(Some(MAC)).may_go(host, group));
        assert!(solicitation(Some(MAC)).may_go(host, TARGET));
        assert!(solicitation(None).may_go(nobody, group));
        assert!(!solicitation(Some(MAC)).may_go(nobody, group));
        assert!(!solicitation(None).may_go(nobody, TARGET));
        assert!(!solicitation(None).may_go(nobody, ALL_NODES));
        let advertisement = |solicited| Message::Advertisement {
            target: TARGET,
            mac: Some(MAC),
            solicited,
            overriding: true,
        };
        assert!(advertisement(true).may_go(TARGET, host));
        assert!(advertisement(false).may_go(TARGET, ALL_NODES));
        assert!(!advertisement(true).may_go(TARGET, ALL_NODES));
    }

    #[test]
    fn derived_addresses() {
        assert_eq!(solicited_node(TARGET).ip().to_string(), "ff02::1:ff12:3456");
        assert_eq!(
            multicast_mac(solicited_node(TARGET)),
            [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]
        );
        assert_eq!(link_local(MAC).ip().to_string(), "fe80::ff:fe00:1");
    }
}
