//! One address type for both families, so that IPv4 and IPv6 share one path and one flow key.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address in its mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) or an IPv6 address.
///
/// Mapped addresses may not appear on the wire; the parser refuses them, so the two families
/// never meet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Addr(pub(crate) u128);

const MAPPED: u128 = 0xffff_0000_0000;

impl Addr {
    #[inline(always)]
    pub(crate) const fn v4(raw: u32) -> Addr {
        Addr(MAPPED | raw as u128)
    }

    #[inline(always)]
    pub(crate) fn v4_bytes(raw: [u8; 4]) -> Addr {
        Addr::v4(u32::from_be_bytes(raw))
    }

    #[inline(always)]
    pub(crate) fn v6_bytes(raw: [u8; 16]) -> Addr {
        Addr(u128::from_be_bytes(raw))
    }

    #[inline(always)]
    pub(crate) fn is_v4(self) -> bool {
        self.0 >> 32 == MAPPED >> 32
    }

    /// The IPv4 address, if it is one; else its low 32 bits.
    #[inline(always)]
    pub(crate) fn low32(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub(crate) fn octets4(self) -> [u8; 4] {
        self.low32().to_be_bytes()
    }

    #[inline(always)]
    pub(crate) fn octets16(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub(crate) fn ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.low32()))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }

    /// IPv4 or IPv6 multicast.
    #[inline(always)]
    pub(crate) fn is_multicast(self) -> bool {
        if self.is_v4() {
            self.low32() >> 28 == 0xe
        } else {
            self.0 >> 120 == 0xff
        }
    }

    /// Whether one host can have it, and none of the special addresses below: what almost every address is.
    #[inline(always)]
    pub(crate) fn is_ordinary(self) -> bool {
        if self.is_v4() {
            let a = self.low32() >> 24;
            a.wrapping_sub(1) < 223 && a != 127
        } else {
            self.0 > 1 && !self.is_multicast()
        }
    }

    /// An address of one link alone, which no router forwards packets from or to: 169.254.0.0/16 (RFC 3927 §7) or fe80::/10
    /// (RFC 4291 §2.5.6).
    pub(crate) fn is_link_local(self) -> bool {
        self.is_link_local6() || self.is_v4() && self.low32() >> 16 == 0xa9fe
    }

    /// fe80::/10.
    pub(crate) fn is_link_local6(self) -> bool {
        self.0 >> 118 == 0xfe80 >> 6
    }

    /// Whether no host can be the source of a packet with this address: unspecified, loopback,
    /// multicast, broadcast, class E, "this network" (RFC 1122 §3.2.1.3, RFC 4291 §2.7).
    #[inline(always)]
    pub(crate) fn is_martian_source(self) -> bool {
        if self.is_v4() {
            let a = self.low32() >> 24;
            a == 0 || a == 127 || a >= 224
        } else {
            self.0 <= 1 || self.is_multicast()
        }
    }

    /// Whether a packet to this address may not be routed: unspecified, loopback, class E.
    #[inline(always)]
    pub(crate) fn is_martian_destination(self) -> bool {
        if self.is_v4() {
            let a = self.low32() >> 24;
            a == 0 || a == 127 || a >= 240
        } else {
            self.0 <= 1
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(a) => Addr::v4(u32::from(a)),
            IpAddr::V6(a) => Addr(u128::from(a)),
        }
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// A prefix of either family, as mask and value over the mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    value: u128,
    mask: u128,
    v4: bool,
}

impl Prefix {
    pub(crate) fn contains(&self, a: Addr) -> bool {
        a.0 & self.mask == self.value && a.is_v4() == self.v4
    }

    /// Length over the 128-bit form (an IPv4 prefix of n bits has 96 + n).
    pub(crate) fn len(&self) -> u32 {
        self.mask.leading_ones()
    }
}

impl From<ipnet::IpNet> for Prefix {
    fn from(net: ipnet::IpNet) -> Prefix {
        let len = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        Prefix {
            value: Addr::from(net.addr()).0 & mask,
            mask,
            v4: net.addr().is_ipv4(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> Addr {
        Addr::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn families_do_not_mix() {
        assert!(addr("1.2.3.4").is_v4());
        assert!(!addr("::1.2.3.4").is_v4());
        assert!(!addr("2001:db8::1").is_v4());
        assert_eq!(addr("1.2.3.4").ip().to_string(), "1.2.3.4");
        assert_eq!(addr("2001:db8::1").ip().to_string(), "2001:db8::1");
    }

    #[test]
    fn prefixes_contain_their_own_family_only() {
        fn check(net: &str, a: &str, expected: bool) {
            let p = Prefix::from(net.parse::<ipnet::IpNet>().unwrap());
            assert_eq!(p.contains(addr(a)), expected, "{net} {a}");
        }
        check("10.0.0.7/24", "10.0.0.200", true);
        check("10.0.0.0/24", "10.0.1.0", false);
        check("0.0.0.0/0", "1.2.3.4", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("::/0", "2001:db8::1", true);
        check("2001:db8::/32", "2001:db9::1", false);
        check("1.2.3.4/32", "1.2.3.4", true);
    }

    #[test]
    fn what_is_ordinary_is_nothing_else() {
        let all = (0..=u32::MAX).step_by(65_521).map(Addr::v4);
        let wide = (0..=u16::MAX).flat_map(|n| [u128::from(n), u128::from(n) << 112 | 7]);
        let mut ordinary = 0;
        for a in all.chain(wide.map(Addr)) {
            let special = a.is_multicast() || a.is_martian_source() || a.is_martian_destination();
            assert_eq!(a.is_ordinary(), !special, "{a:?}");
            ordinary += u32::from(!special);
        }
        assert!(ordinary > 100_000);
    }

    #[test]
    fn martians() {
        for a in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert!(addr(a).is_martian_source(), "{a}");
        }
        for a in ["10.0.0.1", "169.254.1.1", "fe80::1", "2001:db8::1"] {
            assert!(!addr(a).is_martian_source(), "{a}");
        }
        assert!(addr("fe80::1").is_link_local6());
        assert!(!addr("2001:db8::").is_link_local6());
        for (a, expected) in [
            ("fe80::1", true),
            ("169.254.0.0", true),
            ("169.254.255.255", true),
            ("169.253.255.255", false),
            ("::a9fe:a9fe", false),
        ] {
            assert_eq!(addr(a).is_link_local(), expected, "{a}");
        }
    }
}
