//! Router solicitation and advertisement (RFC 4861 §4.1, §4.2), with route information (RFC 4191).

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use super::ethernet::Mac;
use super::{get, get16, get32};
use crate::DropReason;

pub(crate) const SOLICITATION: u8 = 133;
pub(crate) const ADVERTISEMENT: u8 = 134;

/// Bytes of an advertisement without options.
const LEN: usize = 16;
/// Prefixes, and routes, that are taken in of one advertisement.
const MAX_OPTIONS: usize = 16;

/// How much a router, or a route, is to be preferred (RFC 4191 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Preference {
    Low,
    Medium,
    High,
}

impl Preference {
    /// Of two bits; none if they are reserved.
    fn of(bits: u8) -> Option<Preference> {
        match bits & 3 {
            0 => Some(Preference::Medium),
            1 => Some(Preference::High),
            3 => Some(Preference::Low),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefixInfo {
    pub(crate) prefix: Ipv6Net,
    pub(crate) on_link: bool,
    pub(crate) autonomous: bool,
    /// Seconds; `u32::MAX` is for ever.
    pub(crate) valid_s: u32,
    pub(crate) preferred_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteInfo {
    pub(crate) prefix: Ipv6Net,
    pub(crate) preference: Preference,
    /// Seconds; `u32::MAX` is for ever.
    pub(crate) lifetime_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advertisement {
    /// As a default router, seconds; 0: it is none.
    pub(crate) lifetime_s: u16,
    pub(crate) preference: Preference,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: Option<u32>,
    pub(crate) prefixes: Vec<PrefixInfo>,
    pub(crate) routes: Vec<RouteInfo>,
}

impl Advertisement {
    /// Parses an ICMPv6 message whose checksum, source and hop limit have been verified.
    pub(crate) fn parse(b: &[u8]) -> Result<Advertisement, DropReason> {
        if b.len() < LEN || b[0] != ADVERTISEMENT || b[1] != 0 {
            return Err(DropReason::NeighborDiscovery);
        }
        let mut all = Advertisement {
            lifetime_s: get16(b, 6),
            // A reserved preference counts as medium (RFC 4191 §2.2).
            preference: Preference::of(b[5] >> 3).unwrap_or(Preference::Medium),
            mac: None,
            mtu: None,
            prefixes: Vec::new(),
            routes: Vec::new(),
        };
        let mut rest = &b[LEN..];
        while !rest.is_empty() {
            let len = usize::from(*rest.get(1).ok_or(DropReason::NeighborDiscovery)?) * 8;
            if len == 0 || len > rest.len() {
                return Err(DropReason::NeighborDiscovery);
            }
            let (option, behind) = rest.split_at(len);
            all.take_in(option);
            rest = behind;
        }
        Ok(all)
    }

    /// What is unknown, or of a length that it does not have, is passed over (RFC 4861 §4.6).
    fn take_in(&mut self, option: &[u8]) {
        match (option[0], option.len()) {
            (1, 8) => self.mac = Some(get(option, 2)),
            (5, 8) => self.mtu = Some(get32(option, 4)),
            (3, 32) if self.prefixes.len() < MAX_OPTIONS => {
                if let Some(prefix) = net(get(option, 16), option[2]) {
                    self.prefixes.push(PrefixInfo {
                        prefix,
                        on_link: option[3] & 0x80 != 0,
                        autonomous: option[3] & 0x40 != 0,
                        valid_s: get32(option, 4),
                        preferred_s: get32(option, 8),
                    });
                }
            }
            (24, len @ (8 | 16 | 24)) if self.routes.len() < MAX_OPTIONS => {
                let mut octets = [0; 16];
                octets[..len - 8].copy_from_slice(&option[8..]);
                let fits = usize::from(option[2]) <= (len - 8) * 8;
                // A route of reserved preference is no route (RFC 4191 §2.3).
                if let (true, Some(prefix), Some(preference)) =
                    (fits, net(octets, option[2]), Preference::of(option[3] >> 3))
                {
                    self.routes.push(RouteInfo {
                        prefix,
                        preference,
                        lifetime_s: get32(option, 4),
                    });
                }
            }
            _ => {}
        }
    }
}

fn net(octets: [u8; 16], len: u8) -> Option<Ipv6Net> {
    let net = Ipv6Net::new(Ipv6Addr::from(octets), len).ok()?;
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut b = vec![
            ADVERTISEMENT,
            0,
            0,
            0,
            64,
            0x08,
            0x07,
            0x08,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        b.extend(options);
        b
    }

    fn prefix(len: u8, flags: u8) -> Vec<u8> {
        let mut b = vec![3, 4, len, flags, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0];
        b.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
        b
    }

    #[test]
    fn every_option_is_read() {
        let mut options = vec![1, 1, 2, 0, 0, 0, 0, 1, 5, 1, 0, 0, 0, 0, 5, 0];
        options.extend(prefix(64, 0xc0));
        options.extend([24, 1, 0, 0x18, 0, 0, 0, 9]);
        options.extend([
            24, 2, 32, 0x08, 0xff, 0xff, 0xff, 0xff, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0,
        ]);
        options.extend([25, 1, 0, 0, 0, 0, 0, 0]);
        let ra = Advertisement::parse(&message(&options)).unwrap();
        assert_eq!((ra.lifetime_s, ra.preference), (1800, Preference::High));
        assert_eq!((ra.mac, ra.mtu), (Some([2, 0, 0, 0, 0, 1]), Some(1280)));
        let expected = PrefixInfo {
            prefix: "2001:db8:0:1::/64".parse().unwrap(),
            on_link: true,
            autonomous: true,
            valid_s: 3600,
            preferred_s: 1800,
        };
        assert_eq!(ra.prefixes, [expected]);
        let route = |prefix: &str, preference, lifetime_s| RouteInfo {
            prefix: prefix.parse().unwrap(),
            preference,
            lifetime_s,
        };
        assert_eq!(
            ra.routes,
            [
                route("::/0", Preference::Low, 9),
                route("2001:db8::/32", Preference::High, u32::MAX)
            ]
        );
    }

    #[test]
    fn malformed_messages_are_refused_and_odd_options_passed_over() {
        for bad in [
            message(&[])[..15].to_vec(),
            message(&[1]),
            message(&[1, 0, 0, 0, 0, 0, 0, 0]),
            message(&[1, 2, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(
                Advertisement::parse(&bad),
                Err(DropReason::NeighborDiscovery),
                "{bad:?}"
            );
        }
        let mut code = message(&[]);
        code[1] = 1;
        assert!(Advertisement::parse(&code).is_err());
        let mut odd = prefix(129, 0xc0);
        odd.extend([24, 1, 64, 0, 0, 0, 0, 9]);
        odd.extend([24, 1, 0, 0x10, 0, 0, 0, 9]);
        let ra = Advertisement::parse(&message(&odd)).unwrap();
        assert!(ra.prefixes.is_empty() && ra.routes.is_empty());
    }

    #[test]
    fn an_advertisement_without_end_is_bounded() {
        let options: Vec<u8> = (0..100).flat_map(|_| prefix(64, 0xc0)).collect();
        let ra = Advertisement::parse(&message(&options)).unwrap();
        assert_eq!(ra.prefixes.len(), MAX_OPTIONS);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), shaped in any::<bool>()) {
            if shaped {
                bytes = message(&bytes);
            }
            let _ = Advertisement::parse(&bytes);
        }
    }
}
