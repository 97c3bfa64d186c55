//! The flow table: who talks to whom, what was decided about it, how far it has come.
//!
//! Fixed capacity, one worker, no lock. Each flow has two entries in the [`index`], one for each
//! direction as its packets look on the wire, so that either is found by one lookup. The flows
//! themselves are kept in [`parts`].

pub(crate) mod index;
pub(crate) mod key;
mod parts;
pub(crate) mod record;
mod wheel;

use std::io;

use crate::address::Addr;
use crate::clock::Tick;
use crate::grant::UseId;
use crate::port::PortId;
use crate::snapshot::IdleTicks;
use crate::tcp::{Connection, End, State};
use crate::wire::proto;
pub(crate) use index::Index;
pub(crate) use key::Key;
use key::KeyHasher;
use parts::Parts;
pub(crate) use parts::{Body, Head, Onward, halves};
use wheel::Wheel;

/// No source group, or no rule, decided.
pub(crate) const NO_GROUP: u16 = u16::MAX;
pub(crate) const NO_RULE: u32 = u32::MAX;

/// The place of a flow in the table. Used again after the flow is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlowId(u32);

/// What is known about where a flow is before it is looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    /// Of the key.
    hash: u64,
    /// Where it probably is; behind all places if that has not been asked.
    near: u32,
}

impl Lookup {
    pub(crate) fn hash(self) -> u64 {
        self.hash
    }

    /// Of no packet that belongs to a flow.
    pub(crate) const NONE: Lookup = Lookup::by(0);

    #[inline(always)]
    pub(crate) const fn by(hash: u64) -> Lookup {
        Lookup {
            hash,
            near: u32::MAX,
        }
    }
}

/// The ports that lead to the ends of a flow, of a node's two. A place without a flow leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides(u8);

impl Sides {
    const NOWHERE: Sides = Sides(u8::MAX);

    pub(crate) fn new(client: PortId, server: PortId) -> Sides {
        debug_assert!(client.0 < 2 && server.0 < 2, "two ports at most");
        Sides(client.0 | server.0 << 1)
    }

    /// The same for a flow to one of our NAT addresses, whose packets turn back there.
    pub(crate) fn turning(self, turns: bool) -> Sides {
        Sides(self.0 | u8::from(turns) << 2)
    }

    pub(crate) fn turns_back(self) -> bool {
        self.0 & 4 != 0
    }

    /// The same for a flow over IPv6.
    fn wide(self, is_wide: bool) -> Sides {
        Sides(self.0 & !8 | u8::from(is_wide) << 3)
    }

    fn is_wide(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether there is a flow.
    fn is_somewhere(self) -> bool {
        self != Sides::NOWHERE
    }

    pub(crate) fn of(self, end: End) -> PortId {
        PortId(self.0 >> end as u8 & 1)
    }
}

impl FlowId {
    /// The flow at a place that [`FlowTable::at`] has shown to be live.
    pub(crate) fn of(place: u32) -> FlowId {
        FlowId(place)
    }
}

/// One flow, whole, as it is opened, closed, shown and handed over. The table keeps it in parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// The end that opened it, as it sees itself.
    pub(crate) client: Addr,
    /// The end that it was opened to.
    pub(crate) server: Addr,
    /// What the server sees as the client's address; the client's own without NAT.
    pub(crate) nat: Addr,
    /// The client's port, or the identifier of its ICMP query.
    pub(crate) client_port: u16,
    pub(crate) server_port: u16,
    /// What the server sees as the client's port.
    pub(crate) nat_port: u16,
    pub(crate) proto: u8,
    pub(crate) sides: Sides,
    /// ICMP type and code of the first packet.
    pub(crate) icmp: (u8, u8),
    /// The network that both ends are in, by number; 0 outside of tunnels.
    pub(crate) tunnel: u16,
    pub(crate) last_seen: Tick,
    /// When its first packet came; at most [`parts::MAX_AGE`] before the last.
    pub(crate) opened: Tick,
    /// Bytes of whole frames from either end.
    pub(crate) bytes: [u64; 2],
    /// Packets from either end; a super-packet counts once.
    pub(crate) packets: [u32; 2],
    /// Low half of the epoch in which it was judged last.
    pub(crate) epoch: u32,
    /// Low half of the policy revision that judged it last.
    pub(crate) revision: u32,
    pub(crate) rule: u32,
    pub(crate) group: u16,
    /// Where it is counted among its group's flows.
    pub(crate) tally: u16,
    /// The grant by which its rule has its server, if that rule is by name.
    pub(crate) grant: Option<UseId>,
    pub(crate) tcp: Connection,
}

impl Flow {
    /// The key of packets from the client.
    pub(crate) fn client_key(&self) -> Key {
        Key {
            src: self.client,
            dst: self.server,
            src_port: self.client_port,
            dst_port: self.server_port,
            proto: self.proto,
            tunnel: self.tunnel,
        }
    }

    /// The key of packets from the server.
    pub(crate) fn server_key(&self) -> Key {
        Key {
            src: self.server,
            dst: self.nat,
            src_port: self.server_port,
            dst_port: self.nat_port,
            proto: self.proto,
            tunnel: self.tunnel,
        }
    }

    /// Whether it is in the table; else its place is free.
    pub(crate) fn is_live(&self) -> bool {
        self.sides.is_somewhere()
    }

    /// Whether its client is hidden behind another address.
    pub(crate) fn is_translated(&self) -> bool {
        self.client != self.nat || self.client_port != self.nat_port
    }

    /// Ticks that it may be idle in its present state.
    pub(crate) fn idle(&self, t: &IdleTicks) -> u32 {
        idle(self.proto, self.tcp.state, t)
    }

    /// Whether it has been idle for too long.
    pub(crate) fn has_expired(&self, now: Tick, t: &IdleTicks) -> bool {
        now.since(self.last_seen) >= self.idle(t)
    }

    /// Whether its connection is over and it only waits for stragglers.
    pub(crate) fn is_finished(&self) -> bool {
        self.proto == proto::TCP && matches!(self.tcp.state, State::TimeWait | State::Reset)
    }

    /// Whether the other end has not answered yet.
    fn is_half_open(&self) -> bool {
        is_half_open(self.proto, &self.tcp, self.packets)
    }
}

fn is_half_open(proto: u8, tcp: &Connection, packets: [u32; 2]) -> bool {
    match proto {
        proto::TCP => matches!(tcp.state, State::SynSent | State::SynReceived),
        _ => packets[End::Server as usize] == 0,
    }
}

#[cfg(test)]
impl Flow {
    /// A flow of this key that nothing is known about, not translated, for tests.
    pub(crate) fn of(client: &Key) -> Flow {
        Flow {
            client: client.src,
            server: client.dst,
            nat: client.src,
            client_port: client.src_port,
            server_port: client.dst_port,
            nat_port: client.src_port,
            proto: client.proto,
            sides: Sides::new(PortId(0), PortId(1)),
            icmp: (0, 0),
            tunnel: client.tunnel,
            last_seen: Tick(0),
            opened: Tick(0),
            bytes: [0; 2],
            packets: [0; 2],
            epoch: 0,
            revision: 0,
            rule: NO_RULE,
            group: NO_GROUP,
            tally: crate::tally::NO_PLACE,
            grant: None,
            tcp: Connection::default(),
        }
    }
}

/// Ticks that a flow may be idle; `state` counts for TCP only.
fn idle(proto: u8, state: State, t: &IdleTicks) -> u32 {
    match proto {
        proto::TCP => match state {
            State::SynSent => t.syn_sent,
            State::SynReceived => t.syn_received,
            State::Established => t.established,
            State::Closing => t.closing,
            State::TimeWait => t.time_wait,
            State::Reset => t.reset,
        },
        proto::UDP => t.udp,
        proto::ICMP4 | proto::ICMP6 => t.icmp,
        _ => t.other,
    }
}

/// The flows of one worker.
#[derive(Debug)]
pub(crate) struct FlowTable {
    flows: Parts,
    index: Index,
    wheel: Wheel,
    hasher: KeyHasher,
    active: u32,
    /// Where the search for a flow to evict goes on.
    hand: u32,
}

impl FlowTable {
    pub(crate) fn new(capacity: u32, seed: u64) -> io::Result<FlowTable> {
        let n = capacity as usize;
        Ok(FlowTable {
            flows: Parts::new(n)?,
            index: Index::new(2 * n)?,
            wheel: Wheel::new(n)?,
            hasher: KeyHasher::new(seed),
            active: 0,
            hand: 0,
        })
    }

    /// Begins to count time at `now`; once, before the first flow.
    pub(crate) fn start(&mut self, now: Tick) {
        self.wheel.start(now);
    }

    pub(crate) fn active(&self) -> u32 {
        self.active
    }

    /// How many flows fit.
    pub(crate) fn capacity(&self) -> u32 {
        self.flows.capacity() as u32
    }

    /// Ticks for which a flow that has not been answered has been idle; none for another.
    pub(crate) fn unanswered_for(&self, id: FlowId, now: Tick) -> Option<u32> {
        let (head, body) = (self.flows.head(id.0), self.flows.body(id.0));
        is_half_open(head.proto, &body.tcp, body.packets).then(|| now.since(head.last_seen))
    }

    #[inline]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    /// Fetches what [`prefetch_flow`](Self::prefetch_flow) and `find` will read first.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Fetches the flow that the hash probably leads to, and remembers which one that is; false if it leads to none.
    #[inline(always)]
    pub(crate) fn prefetch_flow(&self, lookup: &mut Lookup) -> bool {
        let first = self.index.find(lookup.hash, |_| true);
        if let Some(place) = first {
            self.flows.prefetch(place);
            lookup.near = place;
        }
        first.is_some()
    }

    /// Fetches what tells whether the hash leads to a flow of a key, if it probably leads to one; false if to none.
    #[inline(always)]
    pub(crate) fn prefetch_head(&self, hash: u64) -> bool {
        let first = self.index.find(hash, |_| true);
        if let Some(place) = first {
            self.flows.prefetch_head(place);
        }
        first.is_some()
    }

    /// The flow that a packet with this key belongs to, and the end that it comes from.
    #[inline(always)]
    pub(crate) fn find(&self, key: &Key, lookup: Lookup) -> Option<(FlowId, End)> {
        if (lookup.near as usize) < self.flows.len()
            && let Some(from) = self.flows.end_of(key, lookup.near)
        {
            return Some((FlowId(lookup.near), from));
        }
        self.find_by_hash(key, lookup.hash)
    }

    #[inline(never)]
    fn find_by_hash(&self, key: &Key, hash: u64) -> Option<(FlowId, End)> {
        let mut from = None;
        let found = self.index.find(hash, |place| {
            from = self.flows.end_of(key, place);
            from.is_some()
        })?;
        Some((FlowId(found), from?))
    }

    /// The same where nothing is known about where it is.
    pub(crate) fn find_key(&self, key: &Key) -> Option<(FlowId, End)> {
        self.find_by_hash(key, self.hash(key))
    }

    /// Whether packets with this key belong to a flow.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.find_key(key).is_some()
    }

    /// Whether there may be such a flow: always if there is, and once in some 2,000 times if there is none. Looks at no flow.
    pub(crate) fn may_contain(&self, key: &Key) -> bool {
        self.index.find(self.hash(key), |_| true).is_some()
    }

    pub(crate) fn get(&self, id: FlowId) -> Flow {
        self.flows.get(id.0)
    }

    #[inline(always)]
    pub(crate) fn head(&self, id: FlowId) -> &Head {
        self.flows.head(id.0)
    }

    #[inline(always)]
    pub(crate) fn head_mut(&mut self, id: FlowId) -> &mut Head {
        self.flows.head_mut(id.0)
    }

    #[inline(always)]
    pub(crate) fn body(&self, id: FlowId) -> &Body {
        self.flows.body(id.0)
    }

    #[inline(always)]
    pub(crate) fn body_mut(&mut self, id: FlowId) -> &mut Body {
        self.flows.body_mut(id.0)
    }

    /// Where packets of a flow from one end go.
    #[inline(always)]
    pub(crate) fn onward(&self, id: FlowId, from: End) -> Onward {
        self.flows.onward(id.0, from)
    }

    /// Whether a flow has been idle for too long.
    #[inline(always)]
    pub(crate) fn has_expired(&self, id: FlowId, now: Tick, t: &IdleTicks) -> bool {
        let idle_for = now.since(self.flows.head(id.0).last_seen);
        idle_for >= t.least && idle_for >= self.allowed_idle(id.0, t)
    }

    /// Ticks that a flow may be idle in its present state.
    fn allowed_idle(&self, place: u32, t: &IdleTicks) -> u32 {
        let proto = self.flows.head(place).proto;
        idle(proto, self.flows.body(place).tcp.state, t)
    }

    /// Changes a flow; its keys stay as they are.
    pub(crate) fn update(&mut self, id: FlowId, flow: &Flow) {
        self.flows.set(id.0, flow);
    }

    /// Every flow, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Flow> {
        let places = 0..self.flows.len() as u32;
        places
            .map(|place| self.flows.get(place))
            .filter(Flow::is_live)
    }

    /// What is at a place, live or not; none behind the last place that was ever used.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> Option<Flow> {
        ((place as usize) < self.flows.len()).then(|| self.flows.get(place))
    }

    /// Adds a flow of which neither key is in the table, and whose client's packets were looked up like this; none if
    /// there is no room.
    pub(crate) fn insert(
        &mut self,
        flow: &Flow,
        lookup: Lookup,
        idle: &IdleTicks,
    ) -> Option<FlowId> {
        debug_assert_eq!(lookup.hash, self.hash(&flow.client_key()));
        self.insert_by(lookup.hash, flow, flow.last_seen, idle)
    }

    /// The same, of a flow that has been idle for a while `now`.
    pub(crate) fn insert_at(&mut self, flow: &Flow, now: Tick, idle: &IdleTicks) -> Option<FlowId> {
        self.insert_by(self.hash(&flow.client_key()), flow, now, idle)
    }

    fn insert_by(
        &mut self,
        client: u64,
        flow: &Flow,
        now: Tick,
        idle: &IdleTicks,
    ) -> Option<FlowId> {
        let place = match self.wheel.take_free() {
            Some(place) => {
                self.flows.set(place, flow);
                place
            }
            None => self.flows.push(flow)?,
        };
        let server = self.hash(&flow.server_key());
        if !self.index.insert(client, place) {
            self.release(place);
            return None;
        }
        if !self.index.insert(server, place) {
            self.index.remove(client, place);
            self.release(place);
            return None;
        }
        self.wheel
            .place(place, now, flow.last_seen.plus(flow.idle(idle)));
        self.active += 1;
        Some(FlowId(place))
    }

    /// Takes a flow out.
    pub(crate) fn remove(&mut self, id: FlowId) -> Flow {
        self.wheel.unlink(id.0);
        self.forget(id.0)
    }

    /// Moves a flow's timer forward after its idle time has become shorter.
    pub(crate) fn reschedule(&mut self, id: FlowId, idle: &IdleTicks) {
        let (seen, deadline) = self.deadline(id.0, idle);
        self.wheel.unlink(id.0);
        self.wheel.place(id.0, seen, deadline);
    }

    /// Takes out and returns a flow that has been idle for too long. Looks at no more timers and
    /// slots than `budget`, which it reduces: none when there is no more to do for now.
    pub(crate) fn pop_expired(
        &mut self,
        now: Tick,
        idle: &IdleTicks,
        budget: &mut u32,
    ) -> Option<Flow> {
        while *budget > 0 {
            *budget -= 1;
            let place = self.wheel.pop(now, budget)?;
            if self.has_expired(FlowId(place), now, idle) {
                return Some(self.forget(place));
            }
            self.flows.keep_age(place);
            let (_, deadline) = self.deadline(place, idle);
            self.wheel.place(place, now, deadline);
        }
        None
    }

    /// When a flow was last used, and when it has been idle for too long.
    fn deadline(&self, place: u32, t: &IdleTicks) -> (Tick, Tick) {
        let seen = self.flows.head(place).last_seen;
        (seen, seen.plus(self.allowed_idle(place, t)))
    }

    /// A flow of the `wanted` ones that can best be spared, found in a bounded search: one that was never answered,
    /// else one whose connection is over, else the longest idle one that is not TCP.
    pub(crate) fn find_victim(
        &mut self,
        now: Tick,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Option<FlowId> {
        const SEARCH: u32 = 64;
        let mut best: Option<(u32, u32)> = None;
        let len = self.flows.len() as u32;
        for _ in 0..SEARCH.min(len) {
            self.hand = (self.hand + 1) % len;
            let flow = self.flows.get(self.hand);
            if !flow.is_live() || !wanted(&flow) {
                continue;
            }
            let idle = now.since(flow.last_seen);
            let rank = if flow.is_half_open() {
                return Some(FlowId(self.hand));
            } else if flow.is_finished() {
                u32::MAX
            } else if flow.proto != proto::TCP && idle > 0 {
                idle
            } else {
                continue;
            };
            if best.is_none_or(|(r, _)| rank > r) {
                best = Some((rank, self.hand));
            }
        }
        best.map(|(_, place)| FlowId(place))
    }

    /// Removes a flow that is in no slot of the wheel any more.
    fn forget(&mut self, place: u32) -> Flow {
        let flow = self.flows.get(place);
        self.index.remove(self.hash(&flow.client_key()), place);
        self.index.remove(self.hash(&flow.server_key()), place);
        self.release(place);
        self.active -= 1;
        flow
    }

    fn release(&mut self, place: u32) {
        self.flows.head_mut(place).sides = Sides::NOWHERE;
        self.wheel.put_free(place);
    }
}
