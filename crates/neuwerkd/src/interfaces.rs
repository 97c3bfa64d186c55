//! What the host says about its network interfaces.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

/// The address that management listeners bind: the interface's first global IPv4 address, else its
/// first global IPv6 address; none while the interface has neither (DHCP may still be at work).
pub fn management_address(interface: &str) -> io::Result<Option<IpAddr>> {
    Ok(first_global(&global_addresses(interface)?))
}

/// All addresses of an interface that are global.
pub fn global_addresses(interface: &str) -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(is_global);
    Ok(addresses.collect())
}

/// The addresses of all interfaces.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|entry| {
        let address = entry.address?;
        address
            .as_sockaddr_in()
            .map(|v4| IpAddr::V4(v4.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(addresses.collect())
}

/// Whether the interface exists.
pub fn exists(interface: &str) -> bool {
    nix::net::if_::if_nametoindex(interface).is_ok()
}

/// The interface that has this address.
pub fn holder_of(address: IpAddr) -> Option<String> {
    let holder = nix::ifaddrs::getifaddrs().ok()?.find(|entry| {
        entry.address.as_ref().is_some_and(|own| {
            let v4 = own.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = own.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            v4.or(v6) == Some(address)
        })
    })?;
    Some(holder.interface_name)
}

/// The interface that has this address, and the largest packet that it takes, in bytes; none if no interface has it.
pub fn mtu_of(address: IpAddr) -> Option<(String, usize)> {
    let name = holder_of(address)?;
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?;
    Some((name, mtu.trim().parse().ok()?))
}

fn first_global(addresses: &[IpAddr]) -> Option<IpAddr> {
    let global = || addresses.iter().filter(|address| is_global(address));
    let v4 = global().find(|address| address.is_ipv4());
    let v6 = global().find(|address| address.is_ipv6());
    v4.or(v6).copied()
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !is_link_local(v6) && !v6.is_unspecified(),
    }
}

fn is_link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn management_prefers_global_ipv4_then_global_ipv6() {
        check(&["fe80::1", "2001:db8::1", "192.0.2.1"], Some("192.0.2.1"));
        check(&["169.254.1.1", "10.0.0.1", "10.0.0.2"], Some("10.0.0.1"));
        check(&["fe80::1", "2001:db8::1"], Some("2001:db8::1"));
        check(&["fe80::1", "169.254.1.1"], None);
        check(&[], None);
    }

    #[test]
    fn the_loopback_interface_has_an_mtu() {
        let (name, mtu) = mtu_of(IpAddr::from([127, 0, 0, 1])).expect("there is a loopback");
        assert_eq!(name, "lo");
        assert!(mtu >= 1280, "{mtu}");
        assert_eq!(mtu_of(IpAddr::from([192, 0, 2, 77])), None);
    }

    #[test]
    fn the_loopback_interface_is_seen() {
        assert!(exists("lo"));
        assert!(!exists("no-such-if"));
    }

    fn check(addresses: &[&str], expected: Option<&str>) {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|a| a.parse().expect("test address"))
            .collect();
        assert_eq!(
            first_global(&addresses),
            expected.map(|a| a.parse().expect("test address"))
        );
    }
}
