//! Which port and which next hop lead to an address.

use crate::address::{Addr, Prefix};
use crate::port::PortId;

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The port to leave by.
    pub(crate) port: PortId,
    /// The neighbour to send to: the destination itself, or a router.
    pub(crate) neighbor: Addr,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: Prefix,
    port: PortId,
    /// None for an on-link prefix.
    via: Option<Addr>,
}

/// Longest prefix first; among equals the one added first. A node has a handful of routes and
/// workers cache the result by destination, so an ordered list is enough.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteTable {
    entries: Vec<Entry>,
}

impl RouteTable {
    pub(crate) fn add(&mut self, prefix: Prefix, port: PortId, via: Option<Addr>) {
        let at = self
            .entries
            .partition_point(|e| e.prefix.len() >= prefix.len());
        self.entries.insert(at, Entry { prefix, port, via });
    }

    pub(crate) fn lookup(&self, to: Addr) -> Option<Hop> {
        let e = self.entries.iter().find(|e| e.prefix.contains(to))?;
        Some(Hop {
            port: e.port,
            neighbor: e.via.unwrap_or(to),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn addr(s: &str) -> Addr {
        s.parse::<IpAddr>().unwrap().into()
    }

    fn prefix(s: &str) -> Prefix {
        s.parse::<ipnet::IpNet>().unwrap().into()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = RouteTable::default();
        table.add(prefix("0.0.0.0/0"), PortId(1), Some(addr("192.0.2.1")));
        table.add(prefix("10.0.0.0/8"), PortId(0), Some(addr("10.1.0.254")));
        table.add(prefix("10.1.0.0/24"), PortId(0), None);
        table.add(prefix("::/0"), PortId(1), Some(addr("fe80::1")));
        let check = |to: &str, port: u8, hop: &str| {
            let expected = Hop {
                port: PortId(port),
                neighbor: addr(hop),
            };
            assert_eq!(table.lookup(addr(to)), Some(expected), "{to}");
        };
        check("10.1.0.9", 0, "10.1.0.9");
        check("10.2.0.9", 0, "10.1.0.254");
        check("8.8.8.8", 1, "192.0.2.1");
        check("2001:db8::1", 1, "fe80::1");
        assert_eq!(RouteTable::default().lookup(addr("8.8.8.8")), None);
    }

    #[test]
    fn the_first_of_two_defaults_wins() {
        let mut table = RouteTable::default();
        table.add(prefix("0.0.0.0/0"), PortId(1), Some(addr("192.0.2.1")));
        table.add(prefix("0.0.0.0/0"), PortId(0), Some(addr("10.1.0.254")));
        assert_eq!(table.lookup(addr("8.8.8.8")).unwrap().port, PortId(1));
    }
}
