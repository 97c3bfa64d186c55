//! The wiring: a client side, N nodes, an internet side, an operator, and a switch between them.
//!
//! ```text
//!              operator                       every segment is a bridge in the namespace `switch`,
//!                 │ mgmt                      so that a cable can be pulled on the switch's side
//!     ┌───────────┼───────────┐
//!   node1       node2       node3             mgmt0 is the kernel's; in0 and out0 have no kernel
//!   │   │       │   │       │   │             address, the engine owns them
//!   in  out     in  out     in  out
//!   └───┼───────┴───┼───────┘   │
//!     client        └─ internet ┘             client: equal-cost routes over the nodes' inside addresses
//! ```

use std::fmt::Write;
use std::sync::Arc;

use anyhow::Result;

use crate::address::{self, FAMILIES, Family};
use crate::netns::Netns;
use crate::run::Run;

/// A node's port, by the segment that it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// API and cluster traffic.
    Management,
    /// Towards the clients.
    Inside,
    /// Towards the internet.
    Outside,
}

impl Segment {
    const ALL: [Segment; 3] = [Segment::Management, Segment::Inside, Segment::Outside];

    /// The interface's name, in every namespace that has one on this segment.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Segment::Management => "mgmt0",
            Segment::Inside => "in0",
            Segment::Outside => "out0",
        }
    }

    fn bridge(self) -> &'static str {
        match self {
            Segment::Management => "mgmt",
            Segment::Inside => "inside",
            Segment::Outside => "outside",
        }
    }

    /// The switch's end of a cable.
    fn port(self, end: &str) -> String {
        format!("{}-{end}", &self.bridge()[..1])
    }
}

/// All namespaces and the cables between them.
#[derive(Debug)]
pub struct Topology {
    /// The bridges.
    pub switch: Arc<Netns>,
    /// Where requests to the management API come from.
    pub operator: Arc<Netns>,
    /// The inside: every client address.
    pub client: Arc<Netns>,
    /// The outside: the router and every server address.
    pub internet: Arc<Netns>,
    nodes: Vec<Arc<Netns>>,
}

impl Topology {
    /// Lays out the namespaces for `nodes` nodes (1 to 9).
    ///
    /// # Errors
    /// What `ip` says.
    pub fn build(run: &Arc<Run>, nodes: u8) -> Result<Topology> {
        assert!(
            (1..=9).contains(&nodes),
            "the addressing plan has room for one to nine nodes"
        );
        let add = |role: &str| Netns::add(run, role).map(Arc::new);
        let topology = Topology {
            switch: add("switch")?,
            operator: add("operator")?,
            client: add("client")?,
            internet: add("internet")?,
            nodes: (1..=nodes)
                .map(|number| add(&format!("node{number}")))
                .collect::<Result<_>>()?,
        };
        for segment in Segment::ALL {
            // Without snooping the bridge floods neighbour discovery, as a plain switch does.
            let name = segment.bridge();
            topology.switch.ip(&format!(
                "link add {name} type bridge mcast_snooping 0\nlink set {name} up"
            ))?;
        }
        topology.plug(&topology.operator, Segment::Management, "op")?;
        topology.plug(&topology.client, Segment::Inside, "cl")?;
        topology.plug(&topology.internet, Segment::Outside, "inet")?;
        for (number, node) in topology.numbered() {
            for segment in Segment::ALL {
                topology.plug(node, segment, &number.to_string())?;
            }
            let own = address::management(number);
            node.ip(&format!("addr add {own}/24 dev mgmt0"))?;
        }
        topology
            .operator
            .ip(&format!("addr add {}/24 dev mgmt0", address::OPERATOR))?;
        topology.address_clients()?;
        topology.address_internet()?;
        Ok(topology)
    }

    /// The namespace of node `number`, counted from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> &Arc<Netns> {
        &self.nodes[usize::from(number) - 1]
    }

    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> u8 {
        u8::try_from(self.nodes.len()).expect("at most nine")
    }

    /// Makes one segment of the inside and the outside, with the router on it, for nodes with one arm.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn join_sides(&self) -> Result<()> {
        self.switch.ip("link add i-o type veth peer name o-i\n\
             link set i-o master inside up\n\
             link set o-i master outside up")?;
        for family in FAMILIES {
            let router = address::with_length(address::inside_router(family));
            let nodad = usable_at_once(family);
            let command = format!("addr add {router} dev out0 {nodad}");
            self.internet.ip_of(family, &command)?;
        }
        Ok(())
    }

    /// Pulls (or, with `up`, plugs back) a node's cable on one segment, at the switch.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn set_cable(&self, node: u8, segment: Segment, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.switch.ip(&format!(
            "link set {} {state}",
            segment.port(&node.to_string())
        ))
    }

    /// Cuts a node's cable and leads both ends into another namespace, as the interfaces `near` and `far`.
    pub(crate) fn splice(
        &self,
        node: u8,
        segment: Segment,
        into: &Netns,
        [near, far]: [&str; 2],
    ) -> Result<()> {
        let port = segment.port(&node.to_string());
        self.switch.ip(&format!(
            "link set {port} nomaster\nlink set {port} netns {} name {near}",
            into.name()
        ))?;
        into.ip(&format!("link set {near} up"))?;
        into.link(far, &self.switch, &port)?;
        self.switch
            .ip(&format!("link set {port} master {}", segment.bridge()))
    }

    /// From now on the node sends but hears nothing on its management port: a partition in one direction.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn deafen(&self, node: u8) -> Result<()> {
        self.filter(node, "input", "iifname mgmt0 drop")
    }

    /// From now on the node reaches no other member and none reaches it; its API stays within reach.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn isolate(&self, node: u8) -> Result<()> {
        for hook in ["input", "output"] {
            for port in ["sport", "dport"] {
                self.filter(node, hook, &format!("tcp {port} 9600-9601 drop"))?;
            }
        }
        Ok(())
    }

    /// From now on the node hears nothing from the other members, who go on hearing it: a partition in one direction that
    /// leaves the API within reach.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn deafen_to_members(&self, node: u8) -> Result<()> {
        for port in ["sport", "dport"] {
            self.filter(node, "input", &format!("tcp {port} 9600-9601 drop"))?;
        }
        Ok(())
    }

    /// From now on these two members do not reach each other; both reach all others. Undone at `node`.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn separate(&self, node: u8, other: u8) -> Result<()> {
        let other = address::management(other);
        for (hook, end) in [("input", "saddr"), ("output", "daddr")] {
            self.filter(node, hook, &format!("ip {end} {other} drop"))?;
        }
        Ok(())
    }

    /// From now on so many of a hundred packets between the node and other members are lost, in each direction.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn lose_packets(&self, node: u8, percent: u8) -> Result<()> {
        for hook in ["input", "output"] {
            for port in ["sport", "dport"] {
                let some = format!("numgen random mod 100 < {percent}");
                self.filter(node, hook, &format!("tcp {port} 9600-9601 {some} drop"))?;
            }
        }
        Ok(())
    }

    /// The end of what was done to the node's packets.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn heal(&self, node: u8) -> Result<()> {
        self.node(node).nft("delete table inet lab")
    }

    fn filter(&self, node: u8, hook: &str, rule: &str) -> Result<()> {
        self.node(node).nft(&format!(
            "add table inet lab\n\
             add chain inet lab {hook} {{ type filter hook {hook} priority -300; policy accept; }}\n\
             add rule inet lab {hook} {rule}"
        ))
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, &Arc<Netns>)> {
        (1..).zip(&self.nodes)
    }

    pub(crate) fn plug(&self, netns: &Netns, segment: Segment, end: &str) -> Result<()> {
        let port = segment.port(end);
        netns.link(segment.interface(), &self.switch, &port)?;
        self.switch
            .ip(&format!("link set {port} master {}", segment.bridge()))
    }

    /// Every client address, and for each one the way that its packets take: through one node, or spread by the hash of
    /// addresses and ports over all of them, leaving out a next hop that does not answer.
    fn address_clients(&self) -> Result<()> {
        for family in ["ipv4", "ipv6"] {
            self.client
                .sysctl(&format!("{family}/fib_multipath_hash_policy"), "1")?;
        }
        self.client.sysctl("ipv4/fib_multipath_use_neigh", "1")?;
        // A next hop that does not answer counts as gone after about a second, not after eight.
        for family in ["ipv4", "ipv6"] {
            for (timer, value) in [
                ("delay_first_probe_time", "1"),
                ("retrans_time_ms", "100"),
                ("base_reachable_time_ms", "1000"),
            ] {
                self.client
                    .sysctl(&format!("{family}/neigh/in0/{timer}"), value)?;
            }
        }
        for family in FAMILIES {
            let nodad = usable_at_once(family);
            let spread = address::spread_client(family);
            let mut commands = format!(
                "addr add {} dev in0 {nodad}\n",
                address::with_length(spread)
            );
            for (number, _) in self.numbered() {
                let hop = address::inside(number, family);
                let table = 100 + u32::from(number);
                for client in [
                    address::client(number, family),
                    address::second_client(number, family),
                ] {
                    let _ = writeln!(
                        commands,
                        "addr add {} dev in0 {nodad}",
                        address::with_length(client)
                    );
                    let _ = writeln!(commands, "rule add from {client} table {table}");
                }
                let _ = writeln!(
                    commands,
                    "route add default via {hop} dev in0 table {table}"
                );
            }
            let hops: String = self
                .numbered()
                .map(|(number, _)| {
                    format!(" nexthop via {} dev in0", address::inside(number, family))
                })
                .collect();
            let _ = writeln!(commands, "route add default src {spread}{hops}");
            self.client.ip_of(family, &commands)?;
        }
        Ok(())
    }

    /// The router's and the servers' addresses. Replies to IPv6 clients that keep their own address go back through the
    /// node that their packets take; translated traffic needs no route.
    fn address_internet(&self) -> Result<()> {
        for family in FAMILIES {
            let nodad = usable_at_once(family);
            let router = address::with_length(address::router(family));
            let mut commands = format!("addr add {router} dev out0 {nodad}\n");
            for server in [
                address::allowed_server(family),
                address::denied_server(family),
            ] {
                let _ = writeln!(commands, "addr add {server} dev lo {nodad}");
            }
            if family == Family::V6 {
                for (number, _) in self.numbered() {
                    let hop = address::outside(number, family);
                    for client in [
                        address::client(number, family),
                        address::second_client(number, family),
                    ] {
                        let _ = writeln!(commands, "route add {client} via {hop} dev out0");
                    }
                }
            }
            self.internet.ip_of(family, &commands)?;
        }
        Ok(())
    }
}

/// The flag for `ip addr` that spares an IPv6 address the duplicate detection.
fn usable_at_once(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "nodad",
    }
}
