//! Source NAT: which address and port a client's flow shows to the server.
//!
//! There is no table of its own: a binding is taken if a flow has the key that its answers would
//! have. So a port is used for as many destinations as there are (address- and port-dependent
//! mapping and filtering, RFC 4787 §4.1 and §5), and bindings and flows cannot disagree. Mapping
//! that is endpoint-independent, by a setting, adds the table [`mapping`].

mod mapping;
pub(crate) mod prefix;

pub(crate) use mapping::Mappings;
pub(crate) use prefix::PrefixPair;

use crate::DropReason;
use crate::address::Addr;
use crate::flow::key::Random;
use crate::flow::{FlowTable, Key};
use crate::wire::proto;

/// Ports tried on one address before it counts as exhausted. With 98 % of the ports towards one
/// destination in use, this many tries all fail once in thirty thousand.
const PROBES: u32 = 512;
/// Addresses of a pool tried for one flow.
const ADDRESSES: usize = 4;
/// Ports below are kept where a client uses them, but never chosen.
const FIRST_PORT: u16 = 1024;

/// The share of the ports that one worker gives out: those that leave its index when divided by
/// the number of workers, so that the owner of an answer can be read off its port ([`crate::steer`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    pub(crate) index: u16,
    pub(crate) count: u16,
}

impl Partition {
    pub(crate) fn owner(self, port: u16) -> u16 {
        port % self.count
    }

    fn owns(self, port: u16) -> bool {
        self.owner(port) == self.index
    }
}

/// What the server will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) address: Addr,
    pub(crate) port: u16,
    /// Ports tried, this one included.
    pub(crate) probes: u32,
}

/// Finds a free binding for a client's flow: the client's own among `mappings`, if there are to be
/// any. `addresses` is not empty.
pub(crate) fn bind(
    flows: &FlowTable,
    mappings: Option<&Mappings>,
    addresses: &[Addr],
    client: &Key,
    partition: Partition,
    random: &mut Random,
) -> Result<Binding, DropReason> {
    let mut probes = 0;
    let mappings = mappings.filter(|_| has_ports(client.proto));
    let mut is_free = |address: Addr, port: u16| {
        probes += 1;
        !flows.contains(&client.answer_to(address, port))
            && !mappings.is_some_and(|m| m.is_taken(flows, address, port, client))
    };
    if let Some((address, port)) = mappings.and_then(|m| m.shown(flows, client))
        && addresses.contains(&address)
    {
        return match flows.contains(&client.answer_to(address, port)) {
            true => Err(DropReason::NatPortsExhausted),
            false => Ok(Binding {
                address,
                port,
                probes: 1,
            }),
        };
    }
    // A client keeps to its address (RFC 4787 REQ-2), and moves on only when that is exhausted.
    let home = flows.hasher().hash_address(client.src) as usize % addresses.len();
    for i in 0..addresses.len().min(ADDRESSES) {
        let address = addresses[(home + i) % addresses.len()];
        if !has_ports(client.proto) {
            if is_free(address, 0) {
                return Ok(Binding {
                    address,
                    port: 0,
                    probes,
                });
            }
            continue;
        }
        let kept = client.src_port;
        if kept != 0 && partition.owns(kept) && is_free(address, kept) {
            return Ok(Binding {
                address,
                port: kept,
                probes,
            });
        }
        let mut port = first_owned(random.next(), partition);
        for _ in 0..PROBES {
            if is_free(address, port) {
                return Ok(Binding {
                    address,
                    port,
                    probes,
                });
            }
            port = next_owned(port, partition);
        }
    }
    Err(DropReason::NatPortsExhausted)
}

/// Whether flows of a protocol are told apart by more than addresses.
pub(crate) fn has_ports(p: u8) -> bool {
    matches!(p, proto::TCP | proto::UDP | proto::ICMP4 | proto::ICMP6)
}

impl Key {
    /// The key of an answer to a packet with this key, sent to a NAT address and port.
    fn answer_to(self, address: Addr, port: u16) -> Key {
        Key {
            dst: address,
            dst_port: port,
            ..self.reversed()
        }
    }
}

/// A port of the partition from [`FIRST_PORT`] on, by a random number.
fn first_owned(random: u64, partition: Partition) -> u16 {
    let (index, count) = (u64::from(partition.index), u64::from(partition.count));
    let first = u64::from(FIRST_PORT).next_multiple_of(count) + index;
    let owned = (u64::from(u16::MAX) - first) / count + 1;
    (first + random % owned * count) as u16
}

fn next_owned(port: u16, partition: Partition) -> u16 {
    port.checked_add(partition.count)
        .unwrap_or_else(|| first_owned(0, partition))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: Key = Key {
        src: Addr::v4(0x0a00_0002),
        dst: Addr::v4(0xc633_6401),
        src_port: 5000,
        dst_port: 53,
        proto: 17,
        tunnel: 0,
    };

    fn table() -> FlowTable {
        FlowTable::new(16, 1).unwrap()
    }

    proptest! {
        #[test]
        fn chosen_ports_belong_to_their_worker(random: u64, count in 1u16..=1024, index in 0u16..1024) {
            let partition = Partition { index: index % count, count };
            let mut port = first_owned(random, partition);
            for _ in 0..100 {
                prop_assert!(port >= FIRST_PORT && partition.owns(port), "{}", port);
                port = next_owned(port, partition);
            }
        }
    }

    #[test]
    fn a_port_is_kept_only_by_its_owner() {
        fn check(index: u16, port: u16, kept: bool) {
            let partition = Partition { index, count: 2 };
            let client = Key {
                src_port: port,
                ..CLIENT
            };
            let address = [Addr::v4(0xc000_0201)];
            let bound = bind(
                &table(),
                None,
                &address,
                &client,
                partition,
                &mut Random::new(3),
            )
            .unwrap();
            assert_eq!(bound.port == port, kept, "{index} {port}");
            assert_eq!(partition.owner(bound.port), index);
        }
        check(0, 5000, true);
        check(1, 5000, false);
        check(1, 5001, true);
        check(0, 0, false);
        check(0, 80, true);
    }

    #[test]
    fn a_client_keeps_to_its_address_of_a_pool() {
        let pool: Vec<Addr> = (1..=8).map(|n| Addr::v4(0xc000_0200 + n)).collect();
        let one = Partition { index: 0, count: 1 };
        let address = |client: u32, port| {
            let key = Key {
                src: Addr::v4(client),
                src_port: port,
                ..CLIENT
            };
            bind(&table(), None, &pool, &key, one, &mut Random::new(3))
                .unwrap()
                .address
        };
        for client in 1..50 {
            assert_eq!(address(client, 1), address(client, 2));
        }
        let used: std::collections::HashSet<Addr> = (1..200).map(|c| address(c, 1)).collect();
        assert_eq!(used.len(), pool.len(), "clients spread over the pool");
    }
}
