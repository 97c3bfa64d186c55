//! The lab's addressing plan: who has which address. Node numbers count from 1.
//!
//! | segment | IPv4 | IPv6 | who |
//! |---|---|---|---|
//! | management | 172.31.0.0/24 | | node *n*: .*n*, or .10*n* once it has moved; the operator: .254 |
//! | inside | 10.1.0.0/24 | fd00:1::/64 | node *n*: .*n*; clients: .100 spread, .100+*n* and .200+*n* through node *n* |
//! | outside | 192.0.2.0/24 | 2001:db8::/64 | node *n*: .*n*; the internet's router: .254 |
//! | servers | 198.51.100.0/24 | 2001:db8:a::/64 | .10 and .20 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both, for loops.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The inside prefixes.
pub const INSIDE: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

/// Where the operator's requests come from.
pub const OPERATOR: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 254);

/// A node's management address.
#[must_use]
pub fn management(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, node)
}

/// A node's management address after it has moved.
#[must_use]
pub fn moved(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, 100 + node)
}

/// A node's HTTPS listener.
#[must_use]
pub fn https(node: u8) -> SocketAddr {
    (management(node), 8443).into()
}

/// A node's metrics listener.
#[must_use]
pub fn metrics(node: u8) -> SocketAddr {
    (management(node), 8080).into()
}

/// A node's address towards the other members.
#[must_use]
pub fn cluster(node: u8) -> SocketAddr {
    (management(node), 9600).into()
}

/// A node's join listener.
#[must_use]
pub fn join(node: u8) -> SocketAddr {
    (management(node), 9601).into()
}

/// A node's inside address, the clients' next hop.
#[must_use]
pub fn inside(node: u8, family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(10, 1, 0, node), "fd00:1::", node)
}

/// A node's outside address, which it translates to.
#[must_use]
pub fn outside(node: u8, family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(192, 0, 2, node), "2001:db8::", node)
}

/// The router on the outside segment, the nodes' gateway.
#[must_use]
pub fn router(family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(192, 0, 2, 254), "2001:db8::", 254)
}

/// The same router on the inside segment, once both are one: the gateway of nodes with one arm.
#[must_use]
pub fn inside_router(family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(10, 1, 0, 254), "fd00:1::", 254)
}

/// The client whose connections spread over all nodes.
#[must_use]
pub fn spread_client(family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(10, 1, 0, 100), "fd00:1::", 100)
}

/// The client whose packets go through one node.
#[must_use]
pub fn client(node: u8, family: Family) -> IpAddr {
    host(
        family,
        Ipv4Addr::new(10, 1, 0, 100 + node),
        "fd00:1::",
        100 + node,
    )
}

/// A second client through the same node, for a source group of its own.
#[must_use]
pub fn second_client(node: u8, family: Family) -> IpAddr {
    host(
        family,
        Ipv4Addr::new(10, 1, 0, 200 + node),
        "fd00:1::",
        200 + node,
    )
}

/// The server that tests' policies allow.
#[must_use]
pub fn allowed_server(family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(198, 51, 100, 10), "2001:db8:a::", 10)
}

/// The server that tests' policies do not allow.
#[must_use]
pub fn denied_server(family: Family) -> IpAddr {
    host(family, Ipv4Addr::new(198, 51, 100, 20), "2001:db8:a::", 20)
}

/// In IPv6 the last group shows the same digits as the last byte in IPv4: `.110` is `::110`.
fn host(family: Family, v4: Ipv4Addr, prefix: &str, number: u8) -> IpAddr {
    match family {
        Family::V4 => v4.into(),
        Family::V6 => {
            let address: Ipv6Addr = format!("{prefix}{number}")
                .parse()
                .expect("a prefix and up to three digits");
            address.into()
        }
    }
}

/// The length of every prefix in the plan.
#[must_use]
pub fn prefix_length(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// `ADDRESS/LENGTH`, as interfaces take it.
#[must_use]
pub fn with_length(address: IpAddr) -> String {
    let family = if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    format!("{address}/{}", prefix_length(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_show_the_same_digits() {
        check(inside(2, Family::V4), "10.1.0.2");
        check(inside(2, Family::V6), "fd00:1::2");
        check(client(3, Family::V6), "fd00:1::103");
        check(router(Family::V6), "2001:db8::254");
        check(allowed_server(Family::V6), "2001:db8:a::10");
    }

    fn check(address: IpAddr, expected: &str) {
        assert_eq!(address.to_string(), expected);
    }
}
