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
use crate::flow::{FlowId, FlowTable, Key, Lookup};
use crate::tcp::{End, State};
use crate::wire::proto;

/// Ports tried on one address before it counts as exhausted. With 98 % of the ports towards one
/// destination in use, this many tries all fail once in thirty thousand.
const PROBES: u32 = 512;
/// So many of these are only asked whether they are free: rarely are more needed, and what flows have them is far away in
/// memory.
const AT_ONCE: u32 = 2;
/// Ports tried before that of a connection that is over is as good as a free one, and all that are tried towards a
/// destination for which none was free a moment ago.
const FEW_PROBES: u32 = 32;
/// So many of the ports that follow are fetched from memory at once, and then looked at.
const AHEAD: usize = 16;
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
/// How many of its ports a worker goes on by from one that it tried to the next, in the order of their places
/// ([`Partition`]). A client opens flows from ports in a row and keeps them, so that what is next to a taken port is taken as
/// well: of all ports the first 32 are at least 1,800 apart. A prime above the number of ports: it divides none, so that each
/// has its turn.
const STRIDE: u32 = 171_271;

/// The share of the ports that one worker gives out, so that the owner of an answer can be read off its port, and the
/// owner of what a client sends off the port that it is to keep ([`crate::steer`]). Shares are even among ports in a row and
/// among every second one, which systems choose for clients; which ports are whose is secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    index: u16,
    count: u16,
    /// From which port on places are counted: any.
    offset: u16,
    /// The places of this worker's ports: from which on, and how many.
    first: u32,
    owned: u32,
}

impl Partition {
    /// Odd, so that every place is some port's, and such that both ports in a row and places in a row lie far apart.
    pub(crate) const FACTOR: u16 = 14_367;
    /// Its inverse modulo 2^16.
    const INVERSE: u16 = 17_375;

    pub(crate) fn new(index: u16, count: u16, offset: u16) -> Partition {
        let from = |index: u16| (u32::from(index) << 16).div_ceil(count.into());
        Partition {
            index,
            count,
            offset,
            first: from(index),
            owned: from(index + 1) - from(index),
        }
    }

    pub(crate) fn index(self) -> u16 {
        self.index
    }

    pub(crate) fn count(self) -> u16 {
        self.count
    }

    pub(crate) fn offset(self) -> u16 {
        self.offset
    }

    pub(crate) fn owner(self, port: u16) -> u16 {
        ((u32::from(self.place(port)) * u32::from(self.count)) >> 16) as u16
    }

    fn owns(self, port: u16) -> bool {
        self.owner(port) == self.index
    }

    fn place(self, port: u16) -> u16 {
        port.wrapping_sub(self.offset).wrapping_mul(Self::FACTOR)
    }

    /// The `nth` of this worker's ports.
    fn port(self, nth: u32) -> u16 {
        ((self.first + nth) as u16)
            .wrapping_mul(Self::INVERSE)
            .wrapping_add(self.offset)
    }

    /// One of its ports from [`FIRST_PORT`] on, by a random number.
    fn some_port(self, random: u64) -> u16 {
        let port = self.port((((random >> 32) * u64::from(self.owned)) >> 32) as u32);
        match port < FIRST_PORT {
            true => self.port_after(port),
            false => port,
        }
    }

    /// The one to try after such a port, far from it.
    fn port_after(self, port: u16) -> u16 {
        let mut nth = u32::from(self.place(port)) - self.first;
        loop {
            nth = (nth + STRIDE) % self.owned;
            let port = self.port(nth);
            // Every share has such a port, however many there are.
            if port >= FIRST_PORT {
                return port;
            }
        }
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
    /// The addresses and ports that the host serves: what is sent there never belongs to a client.
    pub(crate) services: &'a [(Addr, Vec<u16>)],
    /// The ports among which one is chosen.
    pub(crate) partition: Partition,
    /// A random number, which chooses the port that is tried first after the client's own.
    pub(crate) draw: u64,
    pub(crate) now: Tick,
}

impl Wanted<'_> {
    fn is_served(&self, address: Addr, port: u16) -> bool {
        let of_host = |(a, ports): &(Addr, Vec<u16>)| *a == address && ports.contains(&port);
        has_ports(self.client.proto) && self.services.iter().any(of_host)
    }
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
    exhausted: &mut Exhausted,
    probes: &mut u64,
) -> Result<Binding, DropReason> {
    let Wanted {
        client,
        addresses,
        partition,
        ..
    } = wanted;
    let mappings = mappings.filter(|_| has_ports(client.proto));
    let free = |address, port| Binding {
        address,
        port,
        instead_of: None,
    };
    if let Some((address, port)) = mappings.and_then(|m| m.shown(flows, client))
        && addresses.contains(&address)
    {
        return match flows.contains(&client.answer_to(address, port)) {
            true => Err(DropReason::NatPortsExhausted),
            false => Ok(free(address, port)),
        };
    }
    // A client keeps to its address (RFC 4787 REQ-2), and moves on only when that is exhausted.
    let home = home(flows, client.src, addresses.len());
    for i in 0..addresses.len().min(ADDRESSES) {
        let address = addresses[(home + i) % addresses.len()];
        let is_shown = |port| {
            wanted.is_served(address, port)
                || mappings.is_some_and(|m| m.shown_by(flows, address, port, client) > 0)
        };
        if let Some(own) = own_port(client, partition) {
            *probes += 1;
            if !is_shown(own) && !flows.contains(&client.answer_to(address, own)) {
                return Ok(free(address, own));
            }
        }
        if !has_ports(client.proto) {
            continue;
        }
        let mut port = partition.some_port(wanted.draw);
        for _ in 0..AT_ONCE {
            *probes += 1;
            if !is_shown(port) && !flows.may_contain(&client.answer_to(address, port)) {
                return Ok(free(address, port));
            }
            port = partition.port_after(port);
        }
        if let Some(found) = search(flows, mappings, &wanted, address, port, exhausted, probes) {
            return Ok(found);
        }
    }
    Err(DropReason::NatPortsExhausted)
}

/// The port that a client's flow is to keep if it is free: its own, if that is this worker's; none if it has to change.
fn own_port(client: &Key, partition: Partition) -> Option<u16> {
    match has_ports(client.proto) {
        true => Some(client.src_port).filter(|port| *port != 0 && partition.owns(*port)),
        false => Some(0),
    }
}

/// Finds a port of an address from `port` on, after [`AT_ONCE`] others, where few are free, or whose port can be taken away.
#[cold]
fn search(
    flows: &FlowTable,
    mappings: Option<&Mappings>,
    wanted: &Wanted<'_>,
    address: Addr,
    mut port: u16,
    exhausted: &mut Exhausted,
    probes: &mut u64,
) -> Option<Binding> {
    let mut spare = Spare::default();
    let destination = flows.hash(&wanted.client.answer_to(address, 0));
    let most = match exhausted.has(destination, wanted.now) {
        true => FEW_PROBES,
        false => PROBES,
    };
    let mut n = AT_ONCE;
    'all: while n < most {
        let mut candidates = [(0, Lookup::by(0)); AHEAD];
        for (candidate, lookup) in &mut candidates {
            (*candidate, *lookup) = (
                port,
                Lookup::by(flows.hash(&wanted.client.answer_to(address, port))),
            );
            flows.prefetch_bucket(lookup.hash());
            port = wanted.partition.port_after(port);
        }
        for (_, lookup) in &mut candidates {
            flows.prefetch_flow(lookup);
        }
        for (port, lookup) in candidates {
            n += 1;
            *probes += 1;
            match look_at(flows, mappings, wanted, address, port, lookup) {
                Port::Free => {
                    return Some(Binding {
                        address,
                        port,
                        instead_of: None,
                    });
                }
                Port::Over(found) => spare.over = spare.over.max(Some(found)),
                Port::Unanswered(found) => {
                    spare.count += 1;
                    spare.unanswered = spare.unanswered.max(Some(found));
                }
                Port::Taken => {}
            }
            if spare.is_enough(n) {
                break 'all;
            }
            if n == most {
                if most == PROBES {
                    exhausted.note(destination, wanted.now);
                }
                break 'all;
            }
        }
    }
    let (id, reason) = spare.best()?;
    Some(Binding {
        address,
        port: flows.get(id).nat_port,
        instead_of: Some((id, reason)),
    })
}

/// Which of some addresses a client keeps to.
fn home(flows: &FlowTable, client: Addr, addresses: usize) -> usize {
    match addresses {
        0 | 1 => 0,
        _ => flows.hasher().hash_address(client) as usize % addresses,
    }
}

/// The key of answers to the port that [`bind`] tries first for a client; to packets without translation if there are no
/// `addresses`.
#[inline]
pub(crate) fn first_answer(
    flows: &FlowTable,
    client: &Key,
    addresses: &[Addr],
    partition: Partition,
    draw: u64,
) -> Key {
    let Some(address) = addresses.get(home(flows, client.src, addresses.len())) else {
        return client.reversed();
    };
    let port = own_port(client, partition).unwrap_or_else(|| partition.some_port(draw));
    client.answer_to(*address, port)
}

/// The same for the port that it tries next; none if there is no other.
pub(crate) fn next_answer(
    client: &Key,
    first: &Key,
    partition: Partition,
    draw: u64,
) -> Option<Key> {
    let is_other = has_ports(client.proto) && own_port(client, partition).is_some();
    is_other.then(|| client.answer_to(first.dst, partition.some_port(draw)))
}

/// What a port of an address is to a client.
fn look_at(
    flows: &FlowTable,
    mappings: Option<&Mappings>,
    wanted: &Wanted<'_>,
    address: Addr,
    port: u16,
    lookup: Lookup,
) -> Port {
    let client = wanted.client;
    if wanted.is_served(address, port) {
        return Port::Taken;
    }
    let shown_by = mappings.map_or(0, |m| m.shown_by(flows, address, port, client));
    match flows.find(&client.answer_to(address, port), lookup) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;
    use crate::snapshot::IdleTicks;
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
            services: &[],
            partition,
            draw: 3,
            now: Tick(0),
        };
        let exhausted = &mut Exhausted::new();
        bind(flows, None, wanted, exhausted, &mut 0).unwrap()
    }

    proptest! {
        #[test]
        fn chosen_ports_belong_to_their_worker(
            random: u64, count in 1u16..=1024, index in 0u16..1024, offset: u16,
        ) {
            let partition = Partition::new(index % count, count, offset);
            let mut port = partition.some_port(random);
            for _ in 0..100 {
                prop_assert!(port >= FIRST_PORT && partition.owns(port), "{}", port);
                port = partition.port_after(port);
            }
        }

        #[test]
        fn every_port_has_its_turn(random: u64, count in 1u16..=1024, index in 0u16..1024, offset: u16) {
            let partition = Partition::new(index % count, count, offset);
            let owned = (FIRST_PORT..=u16::MAX).filter(|port| partition.owns(*port)).count();
            let mut port = partition.some_port(random);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..owned {
                prop_assert!(seen.insert(port), "{} twice", port);
                port = partition.port_after(port);
            }
            prop_assert!(seen.contains(&port));
        }
    }

    /// Else [`Partition::port_after`] would not end.
    #[test]
    fn every_worker_has_ports_however_many_there_are() {
        let mut least = u16::MAX;
        for offset in (0..=u16::MAX).step_by(991) {
            for count in [1023, 1024] {
                let mut ports = vec![0; usize::from(count)];
                for port in FIRST_PORT..=u16::MAX {
                    ports[usize::from(Partition::new(0, count, offset).owner(port))] += 1;
                }
                least = ports.into_iter().fold(least, u16::min);
            }
        }
        assert!(least >= 32, "{least}");
    }

    #[test]
    fn a_port_is_kept_by_its_owner_alone() {
        for port in [0, 80, 5000, 5001, 40_000] {
            let kept = |index| {
                let partition = Partition::new(index, 2, 0x5eed);
                let client = Key {
                    src_port: port,
                    ..CLIENT
                };
                let address = [Addr::v4(0xc000_0201)];
                let bound = bind_in(&table(), &address, &client, partition);
                assert_eq!(partition.owner(bound.port), index);
                bound.port == port
            };
            let owner = Partition::new(0, 2, 0x5eed).owner(port);
            let expected = [0, 1].map(|index| port != 0 && index == owner);
            assert_eq!([0, 1].map(kept), expected, "{port}");
        }
    }

    proptest! {
        /// Else what is fetched ahead is fetched in vain.
        #[test]
        fn it_is_known_before_what_is_tried_first_and_then(
            src_port: u16, proto in prop_oneof![Just(6), Just(17), Just(1), Just(47)],
            count in 1u16..=4, index in 0u16..4, draw: u64, pool in 1u32..=8,
        ) {
            let partition = Partition::new(index % count, count, 0x5eed);
            let addresses: Vec<Addr> = (1..=pool).map(|n| Addr::v4(0xc000_0200 + n)).collect();
            let client = Key { src_port: if proto == 47 { 0 } else { src_port }, proto, ..CLIENT };
            let mut flows = table();
            flows.start(Tick(0));
            let mut exhausted = Exhausted::new();
            let mut bound = |flows: &FlowTable| {
                let wanted = Wanted {
                    client: &client, syn: None, addresses: &addresses, services: &[], partition, draw, now: Tick(0),
                };
                let found = bind(flows, None, wanted, &mut exhausted, &mut 0).unwrap();
                client.answer_to(found.address, found.port)
            };
            let first = first_answer(&flows, &client, &addresses, partition, draw);
            prop_assert_eq!(bound(&flows), first);
            // Another client has that.
            let other = Key { src: Addr::v4(0x0a00_0003), ..client };
            let flow = Flow { nat: first.dst, nat_port: first.dst_port, ..Flow::of(&other) };
            prop_assert_eq!(flow.server_key(), first);
            flows.insert_at(&flow, Tick(0), &IdleTicks::default()).unwrap();
            match next_answer(&client, &first, partition, draw) {
                Some(next) if next != first => prop_assert_eq!(bound(&flows), next),
                _ if has_ports(proto) || pool > 1 => prop_assert_ne!(bound(&flows), first),
                _ => {}
            }
        }
    }

    #[test]
    fn a_client_keeps_to_its_address_of_a_pool() {
        let pool: Vec<Addr> = (1..=8).map(|n| Addr::v4(0xc000_0200 + n)).collect();
        let one = Partition::new(0, 1, 0);
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
