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
use crate::clock::Tick;
use crate::counters::CloseReason;
use crate::flow::key::Random;
use crate::flow::{FlowId, FlowTable, Key};
use crate::tcp::{End, State};
use crate::wire::proto;

/// Ports tried on one address before it counts as exhausted. With 98 % of the ports towards one
/// destination in use, this many tries all fail once in thirty thousand.
const PROBES: u32 = 512;
/// Ports tried before that of a connection that is over is as good as a free one, and all that are tried towards a
/// destination for which none was free a moment ago.
const FEW_PROBES: u32 = 32;
/// How long such a moment is, in ticks: about 270 ms.
const MOMENT: u32 = 4;
/// Once so many of the ports tried belong to flows that nobody has answered, the one among them that has been idle for
/// longest is taken: who only asks keeps nobody from a destination.
const UNANSWERED: u32 = 16;
/// Ticks for which a reset must have stood undisputed: about a second. A forged one is disputed by the next segment.
const RESET_STANDS: u32 = 15;
/// Addresses of a pool tried for one flow.
const ADDRESSES: usize = 4;
/// Ports below are kept where a client uses them, but never chosen.
const FIRST_PORT: u16 = 1024;
/// How many of its ports a worker goes on by from one that it tried to the next. A client opens flows from ports in a row
/// and keeps them, so that what is next to a taken port is taken as well. A prime above the number of ports: it divides
/// none, so that each has its turn. Of all ports it is the golden section, which spreads the first few evenly.
const STRIDE: u32 = 104_381;

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
    /// The flow that has it still, since its connection is over or was never answered: it is to be closed for that reason.
    pub(crate) instead_of: Option<(FlowId, CloseReason)>,
}

/// What a binding is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The key of the client's packets.
    pub(crate) client: &'a Key,
    /// The sequence number of its SYN, if it opens a TCP connection.
    pub(crate) syn: Option<u32>,
    /// Not empty.
    pub(crate) addresses: &'a [Addr],
    pub(crate) now: Tick,
}

/// Destinations for which ports were sought in vain of late, by hash: each further flow to one of them must not cost as
/// long a search.
#[derive(Debug)]
pub(crate) struct Exhausted([Option<(u64, Tick)>; 64]);

impl Exhausted {
    pub(crate) fn new() -> Exhausted {
        Exhausted([None; 64])
    }

    fn note(&mut self, hash: u64, now: Tick) {
        self.0[hash as usize % self.0.len()] = Some((hash, now));
    }

    fn has(&self, hash: u64, now: Tick) -> bool {
        self.0[hash as usize % self.0.len()]
            .is_some_and(|(noted, at)| noted == hash && now.since(at) < MOMENT)
    }
}

/// What a port is at the moment.
enum Port {
    Free,
    /// A connection has it that is over.
    Over(Over),
    /// A flow has it that nobody has answered.
    Unanswered(Unanswered),
    Taken,
}

/// A flow that nobody has answered, and how well it can be spared: the greatest best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unanswered {
    /// Ticks for which it has been idle.
    idle: u32,
    id: FlowId,
}

/// What can be spared on an address, of what was looked at.
#[derive(Default)]
struct Spare {
    over: Option<Over>,
    unanswered: Option<Unanswered>,
    /// How many those were.
    count: u32,
}

impl Spare {
    /// Whether there is no better one to be expected within reason.
    fn is_enough(&self, looked_at: u32) -> bool {
        self.count >= UNANSWERED
            || looked_at >= FEW_PROBES && self.over.is_some_and(|over| over.is_followed)
    }

    /// Which flow is to give way, and why: a connection that the new one follows, else a question without an answer, else
    /// another connection that is over.
    fn best(&self) -> Option<(FlowId, CloseReason)> {
        let over = |followed: bool| {
            let over = self.over.filter(|over| over.is_followed || !followed);
            over.map(|over| (over.id, CloseReason::Reused))
        };
        let unanswered = self.unanswered.map(|flow| (flow.id, CloseReason::Evicted));
        over(true).or(unanswered).or_else(|| over(false))
    }
}

/// A connection that is over, and how well it can be spared: the greatest best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Over {
    /// A server that waits with it (TIME_WAIT) takes the new connection in its place, since this begins behind all that
    /// was sent in it (RFC 9293 §3.6.1, RFC 6191 §2).
    is_followed: bool,
    /// Ticks for which it has been over.
    idle: u32,
    id: FlowId,
}

/// Finds a binding for a client's flow: the client's own among `mappings`, if there are to be any, else a free one. Where
/// none is found, that of a TCP connection that is over is taken away from it (RFC 6888, REQ-8 A lets us do so at once), or
/// that of a flow that nobody has answered.
pub(crate) fn bind(
    flows: &FlowTable,
    mappings: Option<&Mappings>,
    wanted: Wanted<'_>,
    partition: Partition,
    random: &mut Random,
    exhausted: &mut Exhausted,
    probes: &mut u64,
) -> Result<Binding, DropReason> {
    let Wanted {
        client,
        addresses,
        now,
        ..
    } = wanted;
    let mappings = mappings.filter(|_| has_ports(client.proto));
    if let Some((address, port)) = mappings.and_then(|m| m.shown(flows, client))
        && addresses.contains(&address)
    {
        return match flows.contains(&client.answer_to(address, port)) {
            true => Err(DropReason::NatPortsExhausted),
            false => Ok(Binding {
                address,
                port,
                instead_of: None,
            }),
        };
    }
    // A client keeps to its address (RFC 4787 REQ-2), and moves on only when that is exhausted.
    let home = home(flows, client.src, addresses.len());
    for i in 0..addresses.len().min(ADDRESSES) {
        let address = addresses[(home + i) % addresses.len()];
        let mut spare = Spare::default();
        let mut try_port = |port, spare: &mut Spare| {
            *probes += 1;
            match look_at(flows, mappings, &wanted, address, port) {
                Port::Free => return Some(port),
                Port::Over(found) => spare.over = spare.over.max(Some(found)),
                Port::Unanswered(found) => {
                    spare.count += 1;
                    spare.unanswered = spare.unanswered.max(Some(found));
                }
                Port::Taken => {}
            }
            None
        };
        let free = |port| Binding {
            address,
            port,
            instead_of: None,
        };
        if !has_ports(client.proto) {
            match try_port(0, &mut spare) {
                Some(port) => return Ok(free(port)),
                None => continue,
            }
        }
        let kept = client.src_port;
        if kept != 0
            && partition.owns(kept)
            && let Some(port) = try_port(kept, &mut spare)
        {
            return Ok(free(port));
        }
        let destination = flows.hash(&client.answer_to(address, 0));
        let most = match exhausted.has(destination, now) {
            true => FEW_PROBES,
            false => PROBES,
        };
        let mut port = first_owned(random.next(), partition);
        for n in 1..=most {
            if let Some(port) = try_port(port, &mut spare) {
                return Ok(free(port));
            }
            if spare.is_enough(n) {
                break;
            }
            if n == PROBES {
                exhausted.note(destination, now);
            }
            port = next_owned(port, partition);
        }
        if let Some((id, reason)) = spare.best() {
            return Ok(Binding {
                address,
                port: flows.get(id).nat_port,
                instead_of: Some((id, reason)),
            });
        }
    }
    Err(DropReason::NatPortsExhausted)
}

/// Which of some addresses a client keeps to.
fn home(flows: &FlowTable, client: Addr, addresses: usize) -> usize {
    match addresses {
        1 => 0,
        _ => flows.hasher().hash_address(client) as usize % addresses,
    }
}

/// The key of answers to a client's packets as [`bind`] would have it that looks no further than where it begins, or as it
/// is without translation.
pub(crate) fn first_answer(flows: &FlowTable, client: &Key, addresses: &[Addr]) -> Key {
    let address = addresses.get(home(flows, client.src, addresses.len().max(1)));
    client.answer_to(address.copied().unwrap_or(client.src), client.src_port)
}

/// What a port of an address is to a client.
fn look_at(
    flows: &FlowTable,
    mappings: Option<&Mappings>,
    wanted: &Wanted<'_>,
    address: Addr,
    port: u16,
) -> Port {
    let client = wanted.client;
    let shown_by = mappings.map_or(0, |m| m.shown_by(flows, address, port, client));
    match flows.find_key(&client.answer_to(address, port)) {
        None if shown_by == 0 => Port::Free,
        // The port is given up with the one flow that shows it.
        Some((id, End::Server)) if shown_by <= 1 => {
            if let Some(idle) = flows.unanswered_for(id, wanted.now) {
                return Port::Unanswered(Unanswered { idle, id });
            }
            match wanted.syn {
                Some(seq) => {
                    look_at_flow(flows, id, seq, wanted.now).map_or(Port::Taken, Port::Over)
                }
                None => Port::Taken,
            }
        }
        _ => Port::Taken,
    }
}

/// Whether the connection of a flow is over, and what that is worth to one that begins with this sequence number.
fn look_at_flow(flows: &FlowTable, id: FlowId, seq: u32, now: Tick) -> Option<Over> {
    let tcp = &flows.body(id).tcp;
    let idle = now.since(flows.head(id).last_seen);
    let is_over = match tcp.state {
        State::TimeWait => true,
        State::Reset => idle >= RESET_STANDS,
        _ => false,
    };
    is_over.then(|| Over {
        is_followed: tcp.is_followed_by(seq),
        idle,
        id,
    })
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

/// The lowest port of the partition from [`FIRST_PORT`] on, and how many there are.
fn owned(partition: Partition) -> (u32, u32) {
    let (index, count) = (u32::from(partition.index), u32::from(partition.count));
    let first = u32::from(FIRST_PORT).next_multiple_of(count) + index;
    (first, (u32::from(u16::MAX) - first) / count + 1)
}

/// A port of the partition from [`FIRST_PORT`] on, by a random number.
fn first_owned(random: u64, partition: Partition) -> u16 {
    let (first, owned) = owned(partition);
    let nth = (random % u64::from(owned)) as u32;
    (first + nth * u32::from(partition.count)) as u16
}

/// The one to try after `port`, far from it.
fn next_owned(port: u16, partition: Partition) -> u16 {
    let (first, owned) = owned(partition);
    let count = u32::from(partition.count);
    let nth = ((u32::from(port) - first) / count + STRIDE) % owned;
    (first + nth * count) as u16
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

    fn bind_in(
        flows: &FlowTable,
        addresses: &[Addr],
        client: &Key,
        partition: Partition,
    ) -> Binding {
        let wanted = Wanted {
            client,
            syn: None,
            addresses,
            now: Tick(0),
        };
        let mut random = Random::new(3);
        let exhausted = &mut Exhausted::new();
        bind(
            flows,
            None,
            wanted,
            partition,
            &mut random,
            exhausted,
            &mut 0,
        )
        .unwrap()
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

        #[test]
        fn every_port_has_its_turn(random: u64, count in 1u16..=1024, index in 0u16..1024) {
            let partition = Partition { index: index % count, count };
            let (_, owned) = owned(partition);
            let mut port = first_owned(random, partition);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..owned {
                prop_assert!(seen.insert(port), "{} twice", port);
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
            let bound = bind_in(&table(), &address, &client, partition);
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
            bind_in(&table(), &pool, &key, one).address
        };
        for client in 1..50 {
            assert_eq!(address(client, 1), address(client, 2));
        }
        let used: std::collections::HashSet<Addr> = (1..200).map(|c| address(c, 1)).collect();
        assert_eq!(used.len(), pool.len(), "clients spread over the pool");
    }
}
