//! Which worker a packet belongs to, when there are several.
//!
//! Each flow has one owner, and both of its directions lead to it. Each worker gives out NAT ports of its own share, so an
//! answer to one of our NAT addresses belongs to the owner of its port; and what a client sends from a port that systems
//! choose for clients belongs to the owner of that port, who so can keep it. Everything else goes by a hash that is the same
//! both ways (of the client alone where its flows share one mapping): ports that programs have by themselves would lead all
//! their users to one worker. What has no ports, and what the host serves, is the first worker's. A backend that can steer
//! by the same rule saves the hand-over ([`Steering::hash_keys`], [`Steering::port_rule`]); one that cannot is only slower.

use std::net::SocketAddr;

use crate::address::Addr;
use crate::flow::Key;
use crate::flow::key::Random;
use crate::nat::{Partition, has_ports};
use crate::parse::{Content, Parsed};
use crate::pipeline::quoted_key;
use crate::snapshot::Snapshot;
use crate::wire::{dhcp, ethernet, udp};

/// Who is to process a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This worker.
    One(u16),
    /// Whoever receives it, and all others learn from it.
    Everyone,
}

/// The lowest of the ports that systems choose for their clients: FreeBSD's 10000; Linux begins with 32768, others where RFC
/// 6335 says, with 49152.
pub const FIRST_CLIENT_PORT: u16 = 10_000;

/// By what a port leads to a worker, `((port + addend) · factor mod 2^16) · count / 2^16`.
#[derive(Clone, Copy, Debug)]
pub struct PortRule {
    /// Any number.
    pub addend: u16,
    /// Odd.
    pub factor: u16,
    /// The number of workers.
    pub count: u16,
}

/// The rule by which the workers of one node share packets.
#[derive(Clone, Debug)]
pub struct Steering {
    partition: Partition,
    keys: [u32; 5],
}

impl Steering {
    /// The rule for worker `index` of `count` (1..=1024); all workers of a node have the same `seed`.
    pub fn new(seed: u64, index: u16, count: u16) -> Steering {
        // Apart from the generator that the flow table's keys come from.
        let mut random = Random::new(!seed);
        Steering {
            // Odd: multiplication by it loses nothing.
            keys: std::array::from_fn(|_| random.next() as u32 | 1),
            partition: Partition::new(index, count.max(1), random.next() as u16),
        }
    }

    /// The share of the NAT ports that is this worker's.
    pub(crate) fn partition(&self) -> Partition {
        self.partition
    }

    /// The rule of ports, for a backend that goes by it before a frame gets here: by the destination port of packets to
    /// [`Snapshot::translated`], and by the source port, from [`FIRST_CLIENT_PORT`] on, of packets from inside that are
    /// translated.
    pub fn port_rule(&self) -> PortRule {
        PortRule {
            addend: self.partition.offset().wrapping_neg(),
            factor: Partition::FACTOR,
            count: self.partition.count(),
        }
    }

    /// The factors of the symmetric hash, for a backend that computes it before a frame gets here: four for the words of
    /// source plus destination address (each as wrapping 32-bit sums, the most significant first; IPv4 has the last word
    /// only), one for source plus destination port. The products are added, wrapping; the upper 16 bits of the sum, modulo
    /// the number of workers, name the worker.
    pub fn hash_keys(&self) -> [u32; 5] {
        self.keys
    }

    /// How many workers there are.
    pub fn count(&self) -> u16 {
        self.partition.count()
    }

    /// Whose a TCP or UDP packet is, by its addresses and ports as on the wire and by where it comes from.
    pub fn worker_of(
        &self,
        snapshot: &Snapshot,
        from_inside: bool,
        src: SocketAddr,
        dst: SocketAddr,
        protocol: u8,
    ) -> u16 {
        let key = Key {
            src: src.ip().into(),
            dst: dst.ip().into(),
            src_port: src.port(),
            dst_port: dst.port(),
            proto: protocol,
            tunnel: 0,
        };
        match from_inside {
            true => self.owner_of_client(snapshot, &key),
            false => self.owner_of(snapshot, &key),
        }
    }

    /// Whether this worker is the one.
    pub(crate) fn is_mine(&self, owner: u16) -> bool {
        owner == self.partition.index()
    }

    #[inline]
    pub(crate) fn owner(
        &self,
        snapshot: &Snapshot,
        from_inside: bool,
        frame: &[u8],
        p: &Parsed,
    ) -> Owner {
        let owner_of = |key: &Key| match from_inside {
            true => self.owner_of_client(snapshot, key),
            false => self.owner_of(snapshot, key),
        };
        match p.content {
            Content::Arp | Content::Neighbor => Owner::Everyone,
            // The first worker asks for addresses.
            Content::Dhcp if may_be_for_us(frame, p) => Owner::One(0),
            // All pieces of a datagram have the same addresses and no ports.
            Content::Flow | Content::Fragment | Content::Dhcp => Owner::One(owner_of(&p.key)),
            // The quoted packet went the other way. What quotes nothing sensible is refused by whoever has it.
            Content::IcmpError => Owner::One(
                quoted_key(frame, p).map_or(self.partition.index(), |quoted| {
                    owner_of(&quoted.reversed())
                }),
            ),
        }
    }

    /// The same for a packet that comes from inside. One that is translated goes by its client, unless it is sent to a NAT
    /// address, whose port tells more; but where clients have mappings, that one shares its client's as well.
    pub(crate) fn owner_of_client(&self, snapshot: &Snapshot, key: &Key) -> u16 {
        let is_shared = || match snapshot.is_told_by_port(key.dst) {
            true => {
                snapshot.is_independent()
                    && snapshot.nat_addresses(key.dst.is_v4()).contains(&key.dst)
                    && snapshot.service(key.dst, key.dst_port) != Some(true)
            }
            false => !snapshot.is_service(key.dst) && snapshot.is_translated(key.src, key.dst),
        };
        match has_ports(key.proto) && is_by_client(snapshot, key) && is_shared() {
            true => self.owner_of_mapping(key),
            false => self.owner_of(snapshot, key),
        }
    }

    /// All flows of a client's port go through the worker that has its mapping, or that can keep the port.
    fn owner_of_mapping(&self, key: &Key) -> u16 {
        if key.src_port >= FIRST_CLIENT_PORT {
            return self.partition.owner(key.src_port);
        }
        let client = Key {
            dst: Addr::default(),
            dst_port: 0,
            ..*key
        };
        self.by_hash(&client)
    }

    fn by_hash(&self, key: &Key) -> u16 {
        (self.symmetric_hash(key) >> 16) as u16 % self.partition.count()
    }

    pub(crate) fn owner_of(&self, snapshot: &Snapshot, key: &Key) -> u16 {
        let is_told_by_port = snapshot.is_told_by_port(key.dst);
        // Sources may be translated to the address of a service as well.
        let is_served = match is_told_by_port {
            true => snapshot.service(key.dst, key.dst_port) == Some(true),
            false => snapshot.is_service(key.dst),
        };
        if !has_ports(key.proto) || is_served {
            return 0;
        }
        if is_told_by_port {
            return self.partition.owner(key.dst_port);
        }
        // Either end may be known by another prefix, or be one that is not translated since it has that prefix itself.
        self.by_hash(&Key {
            src: snapshot.inside_of(key.src),
            dst: snapshot.inside_of(key.dst),
            ..*key
        })
    }

    #[inline]
    fn symmetric_hash(&self, key: &Key) -> u32 {
        let k = &self.keys;
        let word = |a: Addr, i: u32| (a.0 >> (96 - 32 * i)) as u32;
        let sum = |i| word(key.src, i).wrapping_add(word(key.dst, i));
        let ports = u32::from(key.src_port) + u32::from(key.dst_port);
        let mut hash = sum(3)
            .wrapping_mul(k[3])
            .wrapping_add(ports.wrapping_mul(k[4]));
        if !key.src.is_v4() {
            for i in 0..3 {
                hash = hash.wrapping_add(sum(i).wrapping_mul(k[i as usize]));
            }
        }
        hash
    }
}

/// Whether a client's packet goes by its client if it is translated.
#[inline]
pub(crate) fn is_by_client(snapshot: &Snapshot, key: &Key) -> bool {
    key.src_port >= FIRST_CLIENT_PORT || snapshot.is_independent()
}

/// Whether a datagram to a DHCP client is for all stations, or for the one whose frame it is in, and not for a client
/// behind us.
fn may_be_for_us(frame: &[u8], p: &Parsed) -> bool {
    let Some(link) = ethernet::Header::parse(frame) else {
        return false;
    };
    let message = frame.get(usize::from(p.l4) + udp::LEN..p.end as usize);
    ethernet::is_group(link.dst)
        || message
            .and_then(dhcp::peek)
            .is_some_and(|(_, client)| client == link.dst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;
    use proptest::prelude::*;

    fn key(src: u128, dst: u128, ports: (u16, u16)) -> Key {
        Key {
            src: Addr(src),
            dst: Addr(dst),
            src_port: ports.0,
            dst_port: ports.1,
            proto: proto::TCP,
            tunnel: 0,
        }
    }

    proptest! {
        #[test]
        fn both_directions_have_one_hash(src: u128, dst: u128, ports: (u16, u16), seed: u64) {
            let steering = Steering::new(seed, 0, 4);
            let key = key(src, dst, ports);
            prop_assert_eq!(steering.symmetric_hash(&key), steering.symmetric_hash(&key.reversed()));
        }
    }

    #[test]
    fn clients_and_their_ports_spread_over_the_workers() {
        for seed in 1..20 {
            let steering = Steering::new(seed, 0, 4);
            let mut by_port = [0; 4];
            let mut by_client = [0; 4];
            let server = Addr::v4(0xc633_6401);
            for n in 0..10_000u32 {
                let worker = |client: u32, port: u16| {
                    let key = key(Addr::v4(client).0, server.0, (port, 443));
                    usize::from((steering.symmetric_hash(&key) >> 16) as u16 % 4)
                };
                by_port[worker(0x0a00_0002, 32_768 + n as u16)] += 1;
                by_client[worker(0x0a00_0000 + n, 40_000)] += 1;
            }
            for share in by_port.into_iter().chain(by_client) {
                assert!(
                    (1_500..=3_500).contains(&share),
                    "{by_port:?} {by_client:?}"
                );
            }
        }
    }
}
