//! How the table keeps flows: in three parts, so that a packet touches two cache lines at most, and a flow over IPv4 takes
//! 96 bytes.

use std::io;

use mem::{Slab, Table};

use super::{Flow, Key, Sides};
use crate::address::Addr;
use crate::clock::Tick;
use crate::grant::UseId;
use crate::tcp::{Connection, End, State};
use crate::wire::proto;

/// What tells a flow from all others, and what every packet asks: half a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Head {
    /// Addresses in their short form ([`short`]).
    client: u32,
    server: u32,
    nat: u32,
    client_port: u16,
    server_port: u16,
    nat_port: u16,
    pub(crate) proto: u8,
    pub(crate) sides: Sides,
    tunnel: u16,
    pub(crate) tally: u16,
    pub(crate) last_seen: Tick,
    pub(crate) epoch: u32,
}

/// What packets add to, and what was decided: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Body {
    pub(crate) bytes: [u64; 2],
    pub(crate) packets: [u32; 2],
    /// Of a flow that is none: the query that began it. With the upper byte of the time stamp of the flow's opening.
    pub(crate) tcp: Connection,
    revision: u32,
    rule: u32,
    grant: Option<UseId>,
    group: u16,
    /// The lower bytes of that.
    opened: u16,
}

/// What is kept of the time of a flow's opening: 24 bits of ticks, 13 days before they come round. A flow that lasts
/// moves its opening along, so that half of that always lies between it and the last packet at most
/// ([`Parts::keep_age`]); a packet after more than six days of silence may make its flow young again.
const AGE_BITS: u32 = 24;

/// Ticks that a flow is known to last at most: 6.5 days.
pub(crate) const MAX_AGE: u32 = 1 << (AGE_BITS - 1);

/// The three addresses of a flow over IPv6, client, server and NAT, upper half first.
type Wide = [u64; 6];

/// Of the byte of a connection's state three bits are used. The others are for how far a flow's TLS hello has been read.
const _: () = assert!(size_of::<Head>() == 32 && size_of::<Body>() == 64 && State::ALL.len() < 8);

/// An IPv4 address; of an IPv6 address what tells it from most others.
#[inline(always)]
fn short(a: Addr) -> u32 {
    if a.is_v4() {
        a.low32()
    } else {
        let half = (a.0 >> 64) as u64 ^ a.0 as u64;
        (half >> 32) as u32 ^ half as u32
    }
}

/// The upper and the lower half of an address.
pub(crate) fn halves(a: Addr) -> [u64; 2] {
    [(a.0 >> 64) as u64, a.0 as u64]
}

/// Where the packets of a flow from one end go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Onward {
    /// The other end, as it sees itself.
    pub(crate) to: Addr,
    /// The address and port that the packet has then: of its source, if it comes from the client, else of its destination.
    pub(crate) address: Addr,
    pub(crate) port: u16,
    /// Whether these differ from what it has now.
    pub(crate) is_translated: bool,
    pub(crate) sides: Sides,
}

/// The flows at their places.
#[derive(Debug)]
pub(crate) struct Parts {
    heads: Slab<Head>,
    bodies: Slab<Body>,
    /// Touched only for flows over IPv6.
    wide: Table<Wide>,
}

impl Parts {
    pub(crate) fn new(capacity: usize) -> io::Result<Parts> {
        Ok(Parts {
            heads: Slab::new(capacity)?,
            bodies: Slab::new(capacity)?,
            wide: Table::new(capacity)?,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.heads.capacity()
    }

    /// Fetches what [`end_of`](Self::end_of) and those behind it will read.
    #[inline(always)]
    pub(crate) fn prefetch(&self, place: u32) {
        self.heads.prefetch(place as usize);
        self.bodies.prefetch(place as usize);
    }

    /// The same for [`end_of`](Self::end_of) alone.
    #[inline(always)]
    pub(crate) fn prefetch_head(&self, place: u32) {
        self.heads.prefetch(place as usize);
    }

    #[inline(always)]
    pub(crate) fn head(&self, place: u32) -> &Head {
        &self.heads[place as usize]
    }

    #[inline(always)]
    pub(crate) fn head_mut(&mut self, place: u32) -> &mut Head {
        &mut self.heads[place as usize]
    }

    #[inline(always)]
    pub(crate) fn body(&self, place: u32) -> &Body {
        &self.bodies[place as usize]
    }

    #[inline(always)]
    pub(crate) fn body_mut(&mut self, place: u32) -> &mut Body {
        &mut self.bodies[place as usize]
    }

    /// The end from which packets with this key come; none if they belong to another flow, or the place is free.
    #[inline(always)]
    pub(crate) fn end_of(&self, key: &Key, place: u32) -> Option<End> {
        let head = self.head(place);
        let is_wide = !key.src.is_v4();
        let (src, dst) = match is_wide {
            false => (key.src.low32(), key.dst.low32()),
            true => (short(key.src), short(key.dst)),
        };
        if head.proto != key.proto
            || head.tunnel != key.tunnel
            || head.sides.is_wide() != is_wide
            || !head.sides.is_somewhere()
        {
            return None;
        }
        let ports = (key.src_port, key.dst_port);
        let from = if src == head.client
            && dst == head.server
            && ports == (head.client_port, head.server_port)
        {
            End::Client
        } else if src == head.server
            && dst == head.nat
            && ports == (head.server_port, head.nat_port)
        {
            End::Server
        } else {
            return None;
        };
        match is_wide {
            false => Some(from),
            true => self.wide_end_of(key, place),
        }
    }

    /// The same by whole addresses, where all else fits.
    #[inline(never)]
    fn wide_end_of(&self, key: &Key, place: u32) -> Option<End> {
        let flow = self.get(place);
        if flow.client_key() == *key {
            Some(End::Client)
        } else if flow.server_key() == *key {
            Some(End::Server)
        } else {
            None
        }
    }

    #[inline(always)]
    pub(crate) fn onward(&self, place: u32, from: End) -> Onward {
        let head = self.head(place);
        if head.sides.is_wide() {
            return self.wide_onward(place, from);
        }
        let (to, address, port) = match from {
            End::Client => (head.server, head.nat, head.nat_port),
            End::Server => (head.client, head.client, head.client_port),
        };
        Onward {
            to: Addr::v4(to),
            address: Addr::v4(address),
            port,
            is_translated: head.client != head.nat || head.client_port != head.nat_port,
            sides: head.sides,
        }
    }

    #[inline(never)]
    fn wide_onward(&self, place: u32, from: End) -> Onward {
        let head = self.head(place);
        let [client, server, nat] = self.wide_addresses(place);
        let (to, address, port) = match from {
            End::Client => (server, nat, head.nat_port),
            End::Server => (client, client, head.client_port),
        };
        Onward {
            to,
            address,
            port,
            is_translated: client != nat || head.client_port != head.nat_port,
            sides: head.sides,
        }
    }

    fn wide_addresses(&self, place: u32) -> [Addr; 3] {
        let wide = &self.wide[place as usize];
        [0, 2, 4].map(|at| Addr(u128::from(wide[at]) << 64 | u128::from(wide[at + 1])))
    }

    /// The flow at a place that has had one.
    pub(crate) fn get(&self, place: u32) -> Flow {
        let (head, body) = (self.head(place), self.body(place));
        let [client, server, nat] = match head.sides.is_wide() {
            false => [head.client, head.server, head.nat].map(Addr::v4),
            true => self.wide_addresses(place),
        };
        Flow {
            client,
            server,
            nat,
            client_port: head.client_port,
            server_port: head.server_port,
            nat_port: head.nat_port,
            proto: head.proto,
            sides: head.sides,
            icmp: match head.proto {
                proto::ICMP4 | proto::ICMP6 => body.tcp.query(),
                _ => (0, 0),
            },
            tunnel: head.tunnel,
            last_seen: head.last_seen,
            opened: opened(head, body),
            bytes: body.bytes,
            packets: body.packets,
            epoch: head.epoch,
            revision: body.revision,
            rule: body.rule,
            group: body.group,
            tally: head.tally,
            grant: body.grant,
            tcp: match head.proto {
                proto::TCP => body.tcp.without_byte(),
                _ => Connection::default(),
            },
        }
    }

    /// Moves the opening of a flow along that has lasted for long. To be called from time to time.
    pub(crate) fn keep_age(&mut self, place: u32) {
        let (head, body) = (self.head(place), self.body(place));
        if head.last_seen.since(opened(head, body)) > MAX_AGE {
            let moved = head.last_seen.0.wrapping_sub(MAX_AGE);
            let body = self.body_mut(place);
            (body.opened, body.tcp.of_flow) = (moved as u16, (moved >> 16) as u8);
        }
    }

    /// Puts a flow at a place that has had one before.
    pub(crate) fn set(&mut self, place: u32, flow: &Flow) {
        let (head, body) = apart(flow);
        self.heads[place as usize] = head;
        self.bodies[place as usize] = body;
        self.widen(place, flow);
    }

    /// Puts a flow at the next place that has had none; none if there is no more.
    pub(crate) fn push(&mut self, flow: &Flow) -> Option<u32> {
        let (head, body) = apart(flow);
        let place = self.heads.push(head)? as u32;
        self.bodies.push(body)?;
        self.widen(place, flow);
        Some(place)
    }

    fn widen(&mut self, place: u32, flow: &Flow) {
        if !flow.client.is_v4() {
            let addresses = [flow.client, flow.server, flow.nat].map(halves);
            self.wide[place as usize].copy_from_slice(addresses.as_flattened());
        }
    }
}

/// When a flow was opened: the latest time before its last packet that has these bits.
fn opened(head: &Head, body: &Body) -> Tick {
    let kept = u32::from(body.tcp.of_flow) << 16 | u32::from(body.opened);
    let age = head.last_seen.0.wrapping_sub(kept) & ((1 << AGE_BITS) - 1);
    Tick(head.last_seen.0.wrapping_sub(age))
}

fn apart(flow: &Flow) -> (Head, Body) {
    let age = flow.last_seen.since(flow.opened).min(MAX_AGE);
    let opened = flow.last_seen.0.wrapping_sub(age);
    let mut tcp = match flow.proto {
        proto::TCP => flow.tcp,
        _ => Connection::of_query(flow.icmp),
    };
    tcp.of_flow = (opened >> 16) as u8;
    let head = Head {
        client: short(flow.client),
        server: short(flow.server),
        nat: short(flow.nat),
        client_port: flow.client_port,
        server_port: flow.server_port,
        nat_port: flow.nat_port,
        proto: flow.proto,
        sides: flow.sides.wide(!flow.client.is_v4()),
        tunnel: flow.tunnel,
        tally: flow.tally,
        last_seen: flow.last_seen,
        epoch: flow.epoch,
    };
    let body = Body {
        bytes: flow.bytes,
        packets: flow.packets,
        tcp,
        revision: flow.revision,
        rule: flow.rule,
        grant: flow.grant,
        group: flow.group,
        opened: opened as u16,
    };
    (head, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_lasts_from_its_first_packet_to_its_last_as_far_as_that_is_kept() {
        let mut parts = Parts::new(1).unwrap();
        let start = Tick(u32::MAX - 1000);
        let key = Key {
            src: Addr::v4(1),
            dst: Addr::v4(2),
            src_port: 4,
            dst_port: 5,
            proto: proto::TCP,
            tunnel: 0,
        };
        let flow = Flow {
            last_seen: start,
            opened: start,
            ..Flow::of(&key)
        };
        parts.push(&flow).unwrap();
        let mut lasted = |after: u32| {
            parts.head_mut(0).last_seen = start.plus(after);
            let at_once = parts.get(0);
            parts.keep_age(0);
            let kept = parts.get(0);
            assert_eq!(
                kept.last_seen.since(kept.opened),
                at_once.last_seen.since(at_once.opened).min(MAX_AGE)
            );
            kept.last_seen.since(kept.opened)
        };
        assert_eq!([0, 1, 70_000].map(&mut lasted), [0, 1, 70_000]);
        // 100 days, with a packet every day.
        let day = 1_287_000;
        let days: Vec<u32> = (1..100).map(|n| lasted(n * day)).collect();
        assert_eq!(days[..6], [1, 2, 3, 4, 5, 6].map(|n| n * day));
        assert!(days[6..].iter().all(|age| *age == MAX_AGE), "{days:?}");

        let query = Flow {
            proto: proto::ICMP4,
            icmp: (13, 7),
            opened: start,
            last_seen: start.plus(0x0012_3456),
            ..flow
        };
        parts.set(0, &query);
        let kept = parts.get(0);
        assert_eq!(
            (kept.icmp, kept.opened, kept.tcp),
            (query.icmp, start, query.tcp)
        );
    }
}
