//! Which addresses an answer may have.
//!
//! An answer that points into the network that the client is in, at the node itself or at a cloud's
//! metadata service would make of a name that is allowed a way to what is not (DNS rebinding). Such
//! addresses are neither granted nor passed on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Unspecified (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.2).
    Unspecified,
    /// Loopback (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    Loopback,
    /// Link-local (RFC 3927, RFC 4291 section 2.5.6); clouds' metadata services are there.
    LinkLocal,
    /// A metadata service or another host service of a cloud, at an address of its own.
    Metadata,
    /// Multicast (RFC 5771, RFC 4291 section 2.7), broadcast, or reserved (RFC 1112 section 4).
    NotUnicast,
    /// An address of this node.
    Own,
    /// A private range (RFC 1918, RFC 6598, RFC 4193) that is not allowed by configuration.
    Private,
    /// One more than an answer may have.
    Excess,
}

impl Special {
    /// As it is called in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::NotUnicast => "not_unicast",
            Self::Own => "own",
            Self::Private => "private",
            Self::Excess => "excess",
        }
    }
}

/// Judges addresses in answers.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    own: Vec<IpAddr>,
    allowed: Vec<IpNet>,
}

/// Services of clouds on hosts, outside of link-local ranges: of Alibaba Cloud, of Azure, and of AWS
/// and Google by IPv6.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

impl Addresses {
    /// `own` are the node's addresses, `allowed` the private ranges that answers may point into.
    #[must_use]
    pub fn new(mut own: Vec<IpAddr>, allowed: Vec<IpNet>) -> Self {
        own.sort_unstable();
        Self { own, allowed }
    }

    /// Why an address is left out, or none if it is not. IPv6 addresses that stand for an IPv4 address
    /// (mapped or compatible, RFC 4291 section 2.5.5; NAT64, RFC 6052; 6to4, RFC 3056) are judged as
    /// that one too.
    #[must_use]
    pub fn special(&self, address: IpAddr) -> Option<Special> {
        if self.own.binary_search(&address).is_ok() {
            return Some(Special::Own);
        }
        if METADATA.contains(&address) {
            return Some(Special::Metadata);
        }
        match address {
            IpAddr::V4(ip) => self.special_v4(ip),
            IpAddr::V6(ip) => self.special_v6(ip).or_else(|| {
                let inner = embedded(ip)?;
                self.special(inner.into())
            }),
        }
    }

    fn special_v4(&self, ip: Ipv4Addr) -> Option<Special> {
        let [a, b, ..] = ip.octets();
        match a {
            0 => Some(Special::Unspecified),
            127 => Some(Special::Loopback),
            169 if b == 254 => Some(Special::LinkLocal),
            224.. => Some(Special::NotUnicast),
            _ => {
                let shared = a == 100 && b & 0xc0 == 64;
                ((ip.is_private() || shared) && !self.allows(ip.into())).then_some(Special::Private)
            }
        }
    }

    fn special_v6(&self, ip: Ipv6Addr) -> Option<Special> {
        if ip.is_unspecified() {
            return Some(Special::Unspecified);
        }
        if ip.is_loopback() {
            return Some(Special::Loopback);
        }
        match ip.segments()[0] {
            0xfe80..=0xfebf => Some(Special::LinkLocal),
            0xff00.. => Some(Special::NotUnicast),
            // Unique local, and what was site-local once (RFC 3879).
            0xfc00..=0xfdff | 0xfec0..=0xfeff if !self.allows(ip.into()) => Some(Special::Private),
            _ => None,
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|net| net.contains(&address))
    }
}

/// The IPv4 address that an IPv6 address leads to.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(v4(high, low))
        }
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let allowed = vec!["10.1.0.0/16".parse().unwrap(), "fd01::/16".parse().unwrap()];
        let own = vec![
            "203.0.113.1".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
        ];
        let addresses = Addresses::new(own, allowed);
        #[track_caller]
        fn check(addresses: &Addresses, ip: &str, want: impl Into<Option<Special>>) {
            assert_eq!(addresses.special(ip.parse().unwrap()), want.into(), "{ip}");
        }
        let a = &addresses;
        check(a, "192.0.2.1", None);
        check(a, "203.0.113.1", Special::Own);
        check(a, "0.0.0.0", Special::Unspecified);
        check(a, "0.1.2.3", Special::Unspecified);
        check(a, "127.8.8.8", Special::Loopback);
        check(a, "169.254.169.254", Special::LinkLocal);
        check(a, "169.253.0.1", None);
        check(a, "168.63.129.16", Special::Metadata);
        check(a, "100.100.100.200", Special::Metadata);
        check(a, "224.0.0.1", Special::NotUnicast);
        check(a, "240.0.0.1", Special::NotUnicast);
        check(a, "255.255.255.255", Special::NotUnicast);
        check(a, "10.0.0.1", Special::Private);
        check(a, "10.1.0.1", None);
        check(a, "172.16.0.1", Special::Private);
        check(a, "172.32.0.1", None);
        check(a, "192.168.1.1", Special::Private);
        check(a, "100.64.0.1", Special::Private);
        check(a, "100.128.0.1", None);
        check(a, "2001:db8::1", Special::Own);
        check(a, "2001:db8::2", None);
        check(a, "::", Special::Unspecified);
        check(a, "::1", Special::Loopback);
        check(a, "::2", Special::Unspecified);
        check(a, "fe80::1", Special::LinkLocal);
        check(a, "ff02::1", Special::NotUnicast);
        check(a, "fd00::1", Special::Private);
        check(a, "fd01::1", None);
        check(a, "fd00:ec2::254", Special::Metadata);
        check(a, "::ffff:127.0.0.1", Special::Loopback);
        check(a, "::ffff:192.0.2.1", None);
        check(a, "::ffff:203.0.113.1", Special::Own);
        check(a, "64:ff9b::a9fe:a9fe", Special::LinkLocal);
        check(a, "64:ff9b::c000:201", None);
        check(a, "2002:7f00:1::", Special::Loopback);
    }

    /// A range that is allowed does not open what is special for another reason.
    #[test]
    fn allowing_all_opens_private_ranges_only() {
        let all = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let addresses = Addresses::new(vec![], all);
        for ip in [
            "127.0.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
        ] {
            assert!(addresses.special(ip.parse().unwrap()).is_some(), "{ip}");
        }
        for ip in ["10.0.0.1", "fd00::1", "100.64.0.1"] {
            assert_eq!(addresses.special(ip.parse().unwrap()), None, "{ip}");
        }
    }
}
