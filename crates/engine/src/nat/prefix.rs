//! Prefix translation for IPv6 (NPTv6, RFC 6296): one prefix stands for another, address by
//! address, and no checksum changes.

use ipnet::Ipv6Net;

use crate::address::Addr;

/// The longest prefix: one word of the interface identifier has to take up the difference.
pub(crate) const MAX_LEN: u8 = 64;

/// An inside and an outside prefix. The mapping is a bijection between the addresses that it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefixPair {
    inside: u128,
    outside: u128,
    mask: u128,
    /// What the outside address has too little, in ones' complement.
    adjustment: u16,
    /// Prefixes of /48 and shorter are balanced in the subnet (§3.4), longer ones in the interface
    /// identifier (§3.5).
    in_subnet: bool,
}

impl PrefixPair {
    /// A pair of prefixes of at most [`MAX_LEN`] bits. The shorter is filled up with zeros (§3.2).
    pub(crate) fn new(inside: Ipv6Net, outside: Ipv6Net) -> PrefixPair {
        let len = inside.prefix_len().max(outside.prefix_len()).min(MAX_LEN);
        let mask = u128::MAX
            .checked_shl(128 - u32::from(len))
            .unwrap_or_default();
        let value = |net: Ipv6Net| u128::from(net.network());
        let (inside, outside) = (value(inside), value(outside));
        PrefixPair {
            inside,
            outside,
            mask,
            adjustment: add(sum(inside), !sum(outside)),
            in_subnet: len <= 48,
        }
    }

    /// Whether an address is to be translated on the way out.
    pub(crate) fn is_inside(&self, a: Addr) -> bool {
        a.0 & self.mask == self.inside
    }

    /// What an inside address is outside; none for the addresses that RFC 6296 leaves out.
    pub(crate) fn translate_outgoing(&self, a: Addr) -> Option<Addr> {
        self.exchange(a, self.outside, self.adjustment)
    }

    /// Whether an address may stand for an inside one.
    fn is_outside(&self, a: Addr) -> bool {
        a.0 & self.mask == self.outside
    }

    /// The inside address that an outside one stands for; any other as it is.
    pub(crate) fn inside_of(&self, a: Addr) -> Addr {
        match self.is_outside(a) {
            true => self.translate_incoming(a).unwrap_or(a),
            false => a,
        }
    }

    /// What an outside address is inside.
    fn translate_incoming(&self, a: Addr) -> Option<Addr> {
        self.exchange(a, self.inside, !self.adjustment)
    }

    fn exchange(&self, a: Addr, prefix: u128, adjustment: u16) -> Option<Addr> {
        let word = |i: u32| (a.0 >> (112 - 16 * i)) as u16;
        let place = if self.in_subnet {
            (word(3) != 0xffff).then_some(3)?
        } else if a.0 as u64 == 0 {
            // The subnet's anycast address (RFC 4291 §2.6.1).
            return None;
        } else {
            (4..8).find(|i| word(*i) != 0xffff)?
        };
        // All ones is another zero, and is never written.
        let balanced = match add(word(place), adjustment) {
            0xffff => 0,
            sum => sum,
        };
        let shift = 112 - 16 * place;
        let rest = a.0 & !self.mask & !(0xffff << shift);
        Some(Addr(prefix | rest | u128::from(balanced) << shift))
    }
}

/// Ones' complement addition.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The ones' complement sum of an address's words.
fn sum(a: u128) -> u16 {
    (0..8).fold(0, |total, i| add(total, (a >> (16 * i)) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(inside: &str, outside: &str) -> PrefixPair {
        PrefixPair::new(inside.parse().unwrap(), outside.parse().unwrap())
    }

    fn addr(s: &str) -> Addr {
        s.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn the_example_of_rfc_6296() {
        let pair = pair("fd01:203:405::/48", "2001:db8:1::/48");
        let (inside, outside) = (addr("fd01:203:405:1::1234"), addr("2001:db8:1:d550::1234"));
        assert!(pair.is_inside(inside) && !pair.is_inside(outside));
        assert_eq!(pair.translate_outgoing(inside), Some(outside));
        assert_eq!(pair.translate_incoming(outside), Some(inside));
    }

    #[test]
    fn what_cannot_be_balanced_is_left_out() {
        let short = pair("fd01:203:405::/48", "2001:db8:1::/48");
        assert_eq!(short.translate_outgoing(addr("fd01:203:405:ffff::1")), None);
        let long = pair("fd01:203:405:1::/64", "2001:db8:1:2::/64");
        for none in ["fd01:203:405:1::", "fd01:203:405:1:ffff:ffff:ffff:ffff"] {
            assert_eq!(long.translate_outgoing(addr(none)), None, "{none}");
        }
        let second = addr("fd01:203:405:1:ffff:1:2:3");
        let out = long.translate_outgoing(second).unwrap();
        assert_eq!((out.0 >> 48) as u16, 0xffff, "the first word that can");
    }

    proptest! {
        #[test]
        fn neutral_to_checksums_and_invertible(
            inside: u128, outside: u128, len in 1u8..=64, other in 1u8..=64, host: u128,
        ) {
            let net = |n: u128, len| Ipv6Net::new(n.into(), len).unwrap().trunc();
            let pair = PrefixPair::new(net(inside, len), net(outside, other));
            let a = Addr(pair.inside | host & !pair.mask);
            prop_assert!(pair.is_inside(a));
            if let Some(out) = pair.translate_outgoing(a) {
                prop_assert_eq!(out.0 & pair.mask, pair.outside);
                // All ones and zero are one number.
                prop_assert_eq!(sum(out.0) % 0xffff, sum(a.0) % 0xffff);
                prop_assert_eq!(pair.translate_incoming(out), Some(a));
            }
        }
    }
}
