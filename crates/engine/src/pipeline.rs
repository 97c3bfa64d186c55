//! The engine behind the worker: what becomes of one frame.
//!
//! A packet's life in [`Pipeline::process`]:
//! 1. Its kind was parsed: ARP, neighbour discovery, an ICMP error, or a packet of a flow. A fragment is kept until
//!    its datagram is whole, which then is the packet ([`Pipeline::handle_fragment`]).
//! 2. The flow is looked up by the key as on the wire ([`Pipeline::find_live`]). A flow judged in
//!    an older epoch is judged again, by the facts of its first packet.
//! 3. Without a flow: for one of our own addresses it is answered or handed to the host
//!    ([`Pipeline::handle_local`]); from inside it may open a flow, if the policy allows it and NAT
//!    finds a port ([`Pipeline::open`]); from outside it is dropped.
//! 4. TTL, TCP state, next hop, size on the way out ([`Pipeline::forward`]).
//! 5. Addresses, ports, TTL and checksums are rewritten in place, Ethernet addresses are set.
//!
//! Direction and NAT are values on this one path; IPv4 and IPv6 share it.

mod account;
mod acquire;
mod forward;
mod fragment;
mod hairpin;
pub(crate) mod handover;
mod hold;
mod icmp_error;
mod link;
mod local;
mod look;
mod open;
mod overlay;
mod probe;
mod reset;
#[cfg(feature = "stages")]
pub mod stages;
mod tap;

use account::Account;
pub(crate) use account::Uncounted;
pub(crate) use icmp_error::quoted_key;
pub(crate) use open::Opening;

use overlay::Underway;
use std::sync::Arc;

use policy::{Facts, OnDeny};

use crate::address::Addr;
use crate::clock::{Now, Tick};
use crate::counters::{CloseReason, Direction};
use crate::event::{Event, FlowFacts, Ring};
use crate::flow::key::Random;
use crate::flow::{Flow, FlowId, FlowTable, Lookup, NO_GROUP, NO_RULE};
use crate::fragment::{Fragments, Identifications, Whole};
use crate::grant;
use crate::limit::SharedBucket;
use crate::look::Desk;
use crate::nat::{Exhausted, Mappings, Partition};
use crate::neighbor::{NeighborId, NeighborTable};
use crate::outbox::{LANE, Link, Outbox};
use crate::overlay::Tunnels;
use crate::parse::{Content, Parsed};
use crate::port::{Capabilities, Packet, PortId};
use crate::snapshot::{Side, Snapshot};
use crate::steer::{self, Owner, Steering};
use crate::tally::{NodeTally, Tally};
use crate::tcp::{End, State};
use crate::wire::tcp::{ACK, SYN};
use crate::wire::{ethernet, ipv6, proto};
use crate::{DropReason, Verdict, WorkerCounters};

/// Where a processed frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Out of a port; complete.
    Send(PortId),
    /// Out of a port, once this neighbour's address is known.
    Await(PortId, NeighborId),
    /// Out of a port, but in pieces, which are in the outbox.
    Cut(PortId),
    /// To the worker that owns the flow of the datagram that is whole now.
    WholeFor(u16),
    /// Back in by a port, at the worker of the client that it is for.
    TurnFor(u16, PortId),
    /// To the host.
    Lane,
    /// To the host: not this fragment, but the datagram that it has made whole.
    Whole,
    /// Nowhere yet: what its destination is granted to may be on its way.
    Hold,
    /// Nowhere: it was answered.
    Answered,
    /// Nowhere: it was learned from, kept, or understood.
    Consumed,
    /// Nowhere.
    Drop(DropReason),
}

impl Step {
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Step::Send(port) | Step::Await(port, _) | Step::Cut(port) => Verdict::Forward(port),
            Step::Lane | Step::Whole => Verdict::Local,
            Step::Answered | Step::Consumed => Verdict::Reply,
            Step::Hold | Step::WholeFor(_) | Step::TurnFor(..) => Verdict::Reply,
            Step::Drop(reason) => Verdict::Drop(reason),
        }
    }
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
struct NextHop {
    port: PortId,
    /// None on a layer-3 port.
    neighbor: Option<NeighborId>,
}

/// A next hop, remembered by destination.
#[derive(Clone, Copy, Debug)]
struct CachedHop {
    to: Addr,
    /// Valid only in the epoch in which it was stored.
    epoch: u32,
    hop: NextHop,
}

/// Places of the cache of next hops, a power of two.
const HOP_CACHE: usize = 1024;

/// Timers that a turn looks at, at least.
const EXPIRED_A_TURN: u32 = 48;

#[derive(Debug)]
pub(crate) struct Pipeline {
    snapshot: Arc<Snapshot>,
    /// What is granted under its policy, as of this burst.
    grants: Arc<grant::Table>,
    /// Goes up with each other snapshot and each other table of grants.
    news: u64,
    /// Of packets that wait for grants on their way.
    places: hold::Places,
    flows: FlowTable,
    neighbors: NeighborTable,
    ports: Vec<Capabilities>,
    /// What the links carry, whatever they are told to.
    link_mtus: Vec<u16>,
    /// What they are told to carry of IPv6; that of IPv4 is among their capabilities.
    ipv6_mtus: Vec<u16>,
    /// Ports whose addresses are asked for; none in most workers.
    acquire: Option<Box<acquire::Acquire>>,
    announcing: [link::Announcing; 2],
    hops: Vec<CachedHop>,
    epoch: u32,
    outbox: Outbox,
    /// Neighbours whose address has just become known (true), or that do not answer (false).
    settled: Vec<(NeighborId, bool)>,
    /// Neighbours to ask in this turn; empty between turns, kept for its memory.
    to_ask: Vec<NeighborId>,
    counters: Arc<WorkerCounters>,
    events: Option<Ring>,
    random: Random,
    /// A random number of this turn.
    salt: u64,
    partition: Partition,
    steering: Steering,
    tally: Tally,
    fragments: Fragments,
    identifications: Identifications,
    /// The datagram made of the last fragments; kept for its memory.
    whole: Whole,
    /// Bytes of the largest piece of the datagram in hand; zero for a packet that came in one.
    largest_piece: usize,
    tunnels: Tunnels,
    /// Set while a packet from a tunnel is processed.
    underway: Option<Underway>,
    /// Of the frame in hand, if it waits, or is for the host.
    uncounted: Uncounted,
    nat_active: u32,
    mappings: Mappings,
    exhausted: Exhausted,
    /// Flows that had been opened when timers were looked at last.
    opened_before: u64,
    /// More timers are due than a turn looks at.
    expires_on: bool,
    probes: probe::Responder,
    icmp_limit: SharedBucket,
    reset_limit: SharedBucket,
    started: bool,
    /// Where questions of the control side arrive, if there is one.
    desk: Option<Desk>,
    taps: tap::Taps,
}

impl Pipeline {
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        mut ports: Vec<Capabilities>,
        config: crate::WorkerConfig,
        counters: Arc<WorkerCounters>,
    ) -> std::io::Result<Pipeline> {
        let mut random = Random::new(config.seed);
        let flows = FlowTable::new(config.flow_capacity, random.next())?;
        let probes = probe::Responder::new(random.next());
        counters.flow_capacity.set(u64::from(config.flow_capacity));
        let nowhere = CachedHop {
            to: Addr(0),
            epoch: 0,
            hop: NextHop {
                port: PortId(0),
                neighbor: None,
            },
        };
        let mut tally = Tally::new(config.flow_capacity, flows.hasher().clone())?;
        tally.install(snapshot.policy());
        counters.set_groups(tally.groups());
        let fragments = Fragments::new(flows.hasher().clone())?;
        let identifications = Identifications::new(
            flows.hasher().clone(),
            || random.next(),
            config.index,
            config.count.max(1),
        );
        let steering = Steering::new(config.seed, config.index, config.count.max(1));
        let overlay = snapshot.settings().overlay;
        if overlay.is_some_and(|o| o.encapsulation.is_pair()) {
            // Two tunnels over one port are two arms.
            ports.extend(ports.first().cloned());
        }
        Ok(Pipeline {
            grants: snapshot.grants().load_full(),
            snapshot,
            tally,
            fragments,
            identifications,
            whole: Whole::default(),
            largest_piece: 0,
            news: 0,
            places: hold::Places::default(),
            flows,
            neighbors: NeighborTable::default(),
            link_mtus: ports.iter().map(|caps| caps.mtu).collect(),
            ipv6_mtus: ports.iter().map(|caps| caps.mtu).collect(),
            ports,
            acquire: None,
            announcing: Default::default(),
            hops: vec![nowhere; HOP_CACHE],
            epoch: 1,
            outbox: Outbox::new(),
            settled: Vec::with_capacity(64),
            to_ask: Vec::with_capacity(64),
            counters,
            events: config.events,
            salt: random.next(),
            random,
            partition: steering.partition(),
            steering,
            tunnels: Tunnels::default(),
            underway: None,
            uncounted: Uncounted::default(),
            nat_active: 0,
            mappings: Mappings::new(config.flow_capacity)?,
            exhausted: Exhausted::new(),
            opened_before: 0,
            expires_on: false,
            probes,
            icmp_limit: SharedBucket::full(),
            reset_limit: SharedBucket::full(),
            started: false,
            desk: None,
            taps: tap::Taps::new(),
        })
    }

    /// Begins a turn under the snapshot that is published now.
    pub(crate) fn begin(&mut self, snapshot: &Arc<Snapshot>, now: Now) {
        self.taps.begin(now);
        self.tunnels.begin();
        self.salt = self.random.next();
        self.renew(snapshot, now);
    }

    /// Goes by this snapshot from now on, and by what is granted under it. Frames that were received before it was loaded
    /// are judged by what was in force when they came, or later: who is told of an address after it has been granted has
    /// it in force for the first packet.
    pub(crate) fn renew(&mut self, snapshot: &Arc<Snapshot>, now: Now) {
        if !self.started {
            self.started = true;
            self.flows.start(now.tick());
            self.install(Arc::clone(snapshot));
            self.announce(now, None);
            self.counters.set_generation(snapshot.generation());
        } else if !Arc::ptr_eq(&self.snapshot, snapshot) {
            let before = Arc::clone(&self.snapshot);
            self.install(Arc::clone(snapshot));
            self.announce(now, Some(&before));
            drop(before);
            // Whoever waits for this may free what was published before: it is not held here any more.
            self.counters.set_generation(snapshot.generation());
        }
        let grants = self.snapshot.grants().load();
        if !Arc::ptr_eq(&self.grants, &grants) {
            self.grants = Arc::clone(&grants);
            self.news += 1;
        }
    }

    fn install(&mut self, snapshot: Arc<Snapshot>) {
        let same_policy = Arc::ptr_eq(self.snapshot.policy(), snapshot.policy());
        self.snapshot = snapshot;
        self.news += 1;
        if !same_policy {
            self.tally.install(self.snapshot.policy());
            self.counters.set_groups(self.tally.groups());
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.heed_mtus();
        self.counters
            .nat_capacity
            .set(u64::from(self.snapshot.settings().limits.max_nat_bindings));
    }

    /// What a link is told to carry holds as far as it carries that. Less than every link carries of IPv6 is told of IPv4
    /// alone, as a DHCP server may.
    fn heed_mtus(&mut self) {
        let told = self.snapshot.settings().ports.iter().map(|port| port.mtu);
        let ports = self.ports.iter_mut().zip(&mut self.ipv6_mtus);
        for (((caps, ipv6_mtu), link), told) in ports.zip(&self.link_mtus).zip(told) {
            let told = told.unwrap_or(*link);
            caps.mtu = told.min(*link);
            *ipv6_mtu = told.max(ipv6::MIN_MTU).min(*link);
        }
    }

    /// Counts flows together with the other workers of the node, for its limits.
    pub(crate) fn count_with(&mut self, node: Arc<NodeTally>) {
        self.tally.join(node);
    }

    pub(crate) fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Who is to process a frame.
    #[inline]
    pub(crate) fn owner(&self, port: PortId, frame: &[u8], p: &Parsed) -> Owner {
        let snapshot = &self.snapshot;
        // For the others it makes no difference.
        // An error may come from any router on the way: who it is about tells.
        let about = match p.content {
            Content::IcmpError => quoted_key(frame, p).map(|quoted| quoted.dst),
            _ => steer::is_by_client(snapshot, &p.key).then_some(p.key.src),
        };
        let from_inside = about.is_some_and(|a| snapshot.source_side(port, a) == Side::Inside);
        self.steering.owner(snapshot, from_inside, frame, p)
    }

    pub(crate) fn steering(&self) -> &Steering {
        &self.steering
    }

    pub(crate) fn capabilities(&self, port: PortId) -> &Capabilities {
        &self.ports[usize::from(port.0)]
    }

    pub(crate) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Neighbours that frames may be waiting for: whether they are known now, or never will be.
    pub(crate) fn settled(&mut self) -> &mut Vec<(NeighborId, bool)> {
        &mut self.settled
    }

    /// Begins the lookup of a packet's flow: asks for the memory that it will read first.
    #[inline(always)]
    pub(crate) fn prefetch_bucket(&self, p: &Parsed) -> Lookup {
        let hash = self.flows.hash(&p.key);
        self.flows.prefetch_bucket(hash);
        Lookup::by(hash)
    }

    /// Asks for the memory that the lookup will read next; what that is of a flow that is to be opened, if it leads to none.
    #[inline(always)]
    pub(crate) fn prefetch_flow(&self, p: &Parsed, lookup: &mut Lookup) -> Option<Opening> {
        match self.flows.prefetch_flow(lookup) {
            true => None,
            false => Some(self.prefetch_opening(&p.key, *lookup)),
        }
    }

    /// Decides on a frame from a port, rewrites it, and counts it; and tells those who watch.
    pub(crate) fn process_seen<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        lookup: Lookup,
    ) -> Step {
        if self.taps.is_empty() {
            return self.process(now, port, frame, p, lookup);
        }
        self.watched(Some(port), frame, p, |this, frame| {
            this.process(now, port, frame, p, lookup)
        })
    }

    /// Whether somebody watches packets.
    pub(crate) fn is_watched(&self) -> bool {
        !self.taps.is_empty()
    }

    /// The same where nobody watches.
    pub(crate) fn process<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        lookup: Lookup,
    ) -> Step {
        let bytes = frame.bytes().len();
        let mut account = self.account(port);
        let step = match p.content {
            Content::Flow => self.handle_packet(now, port, frame, p, lookup, &mut account),
            Content::Fragment => {
                // A datagram that came in pieces is not held: it is in no frame.
                let is_open = std::mem::take(&mut self.places.is_open);
                let step = self.handle_fragment(now, port, frame.bytes(), p);
                self.places.is_open = is_open;
                return step;
            }
            _ => self.handle_other(now, port, frame, p, &mut account),
        };
        if let Ok(Step::Send(out)) = step {
            self.count_allowed(account, p.key.proto, p.icmp, bytes);
            return Step::Send(out);
        }
        if std::mem::take(&mut self.places.waits) {
            return Step::Hold;
        }
        let step = step.unwrap_or_else(Step::Drop);
        if let Step::Drop(reason) = step
            && p.content == Content::Flow
            && p.key.proto == proto::TCP
            && p.segment.has(SYN)
        {
            self.counters
                .count_handshake_drop(p.segment.has(ACK), reason);
        }
        self.count(step, account, p.key.proto, p.icmp, bytes);
        step
    }

    /// What is neither a packet of a flow nor a part of one.
    #[cold]
    fn handle_other<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        account: &mut Account,
    ) -> Result<Step, DropReason> {
        match p.content {
            Content::IcmpError => self.handle_icmp_error(now, port, frame, p, account, false),
            Content::Neighbor => self.handle_neighbor(now, port, frame.bytes(), p, true),
            Content::Arp => self.handle_arp(now, port, frame.bytes(), true),
            // The other two are not brought here.
            Content::Dhcp | Content::Flow | Content::Fragment => {
                match self.handle_dhcp(now, port, frame, p)? {
                    Some(step) => Ok(step),
                    None if self.has_overlay() && !self.snapshot.is_ours(p.key.dst) => {
                        Err(DropReason::OverlayDecap)
                    }
                    None => {
                        let lookup = self.prefetch_bucket(p);
                        self.handle_packet(now, port, frame, p, lookup, account)
                    }
                }
            }
        }
    }

    /// Whether a neighbour is known or asked for.
    pub(crate) fn is_neighbor(&self, id: NeighborId) -> bool {
        self.neighbors.get(id).is_some()
    }

    /// Writes a neighbour's link-layer address into a frame that waited for it.
    pub(crate) fn address(&mut self, id: NeighborId, frame: &mut [u8]) -> bool {
        let Some(mac) = self.neighbors.use_mac(id) else {
            return false;
        };
        frame[..6].copy_from_slice(&mac);
        true
    }

    #[inline(always)]
    fn handle_packet<K: Packet>(
        &mut self,
        now: Now,
        port: PortId,
        frame: &mut K,
        p: &Parsed,
        lookup: Lookup,
        account: &mut Account,
    ) -> Result<Step, DropReason> {
        let (id, from) = match self.find_live(now, port, p, lookup)? {
            Some((id, from)) => {
                account.direction = if from == End::Client {
                    Direction::Outbound
                } else {
                    Direction::Inbound
                };
                self.rejudge_if_stale(now, id, frame, p, from, account)?;
                account.group = self.flows.head(id).tally;
                (id, from)
            }
            None => {
                if self.is_for_us(port, p.key.dst) {
                    if let Some(step) = self.answer_probe(now, port, frame.bytes(), p) {
                        return step;
                    }
                    if !self.is_for_client(port, p) {
                        return self.handle_local(port, frame, p, account);
                    }
                }
                let id = self.open(now, port, frame.bytes(), p, lookup, account)?;
                (id, End::Client)
            }
        };
        self.forward(now, port, frame, p, id, from)
    }

    /// The flow of a packet, if it is there and not over, and the end that the packet is from.
    #[inline(always)]
    fn find_live(
        &mut self,
        now: Now,
        port: PortId,
        p: &Parsed,
        lookup: Lookup,
    ) -> Result<Option<(FlowId, End)>, DropReason> {
        let Some((id, from)) = self.flows.find(&p.key, lookup) else {
            return Ok(None);
        };
        let snapshot = &self.snapshot;
        if self.flows.has_expired(id, now.tick(), snapshot.idle()) {
            self.close_expired(id);
            return Ok(None);
        }
        if snapshot.two_arms() && self.flows.head(id).sides.of(from) != port {
            // Addresses of one side on the other: somebody pretends.
            return Err(DropReason::Martian);
        }
        match p.key.proto {
            proto::UDP => {}
            proto::TCP if p.segment.is_initial() && self.flows.body(id).tcp.may_be_reused() => {
                let turns_back = self.flows.head(id).sides.turns_back();
                if from == End::Server
                    && (turns_back || snapshot.source_side(port, p.key.src) == Side::Outside)
                {
                    // Another connection, that begins outside.
                    return Err(DropReason::FromOutside);
                }
                self.close(id, CloseReason::Reused);
                return Ok(None);
            }
            proto::TCP => {}
            // With the identifier zero a question looks like an answer: it is one that begins outside.
            _ if p.key.src_port == p.key.dst_port && from == End::Server && p.is_icmp_query() => {
                return Err(DropReason::FromOutside);
            }
            proto::ICMP4 | proto::ICMP6
                if from == End::Client && p.icmp != self.flows.body(id).tcp.query() =>
            {
                return Ok(self.may_ask(p)?.then_some((id, from)));
            }
            _ => {}
        }
        Ok(Some((id, from)))
    }

    /// Whether an ICMP message of a client belongs to a flow that began with another type or code: only if it could begin
    /// one itself. Where the policy denies that, it is refused, and recorded, like one without a flow.
    #[cold]
    fn may_ask(&self, p: &Parsed) -> Result<bool, DropReason> {
        if p.is_icmp_answer() {
            return Err(DropReason::NoFlow);
        }
        let decision = self.judge(p);
        if decision.would_deny {
            self.counters.would_deny.inc();
        }
        Ok(decision.allow)
    }

    /// Judges a flow again if what it was judged by has changed since.
    #[inline(always)]
    fn rejudge_if_stale<K: Packet>(
        &mut self,
        now: Now,
        id: FlowId,
        frame: &K,
        p: &Parsed,
        from: End,
        account: &mut Account,
    ) -> Result<(), DropReason> {
        if self.flows.head(id).epoch == self.snapshot.epoch() as u32 {
            return Ok(());
        }
        self.rejudge(now, id, frame.bytes(), p, from, account)
    }

    #[cold]
    fn rejudge(
        &mut self,
        now: Now,
        id: FlowId,
        frame: &[u8],
        p: &Parsed,
        from: End,
        account: &mut Account,
    ) -> Result<(), DropReason> {
        let snapshot = Arc::clone(&self.snapshot);
        let mut flow = self.flows.get(id);
        let is_lost = flow.is_translated() && !snapshot.still_translates(flow.client, flow.nat);
        if is_lost && snapshot.lacks_nat_address(flow.nat.is_v4()) {
            // It may be had again: the flow waits for that.
            return Err(DropReason::NoNatAddress);
        }
        let leads_elsewhere = snapshot.leads_elsewhere(&flow);
        if leads_elsewhere && flow.tunnel == 0 && snapshot.waits_for_network(flow.client.is_v4()) {
            return Err(DropReason::NoRoute);
        }
        let (decision, grant) = self
            .grants
            .judge(snapshot.policy(), &facts(&flow.client_key(), flow.icmp));
        if grant != flow.grant {
            // In this order: it is never seen without a flow in between.
            self.use_grant(grant);
            self.leave_grant(flow.grant);
            flow.grant = grant;
        }
        flow.epoch = snapshot.epoch() as u32;
        flow.revision = snapshot.policy().revision() as u32;
        flow.group = decision.group.map_or(NO_GROUP, |g| g as u16);
        flow.rule = decision.rule.unwrap_or(NO_RULE);
        let place = self.tally.place(flow.group);
        self.tally.move_group(flow.tally, place);
        (flow.tally, account.group) = (place, place);
        self.flows.update(id, &flow);
        self.counters.rejudged.inc();
        let lost = if is_lost {
            Some((CloseReason::AddressLost, DropReason::AddressLost))
        } else if decision.allow && leads_elsewhere {
            Some((CloseReason::PathChanged, DropReason::PathChanged))
        } else {
            None
        };
        if let Some((close, drop)) = lost {
            if from == End::Client && p.key.proto == proto::TCP {
                self.refuse_segment(now, flow.sides.of(from), frame, p);
            }
            self.close(id, close);
            return Err(drop);
        }
        if decision.allow {
            return Ok(());
        }
        if decision.on_deny == OnDeny::Reset && p.key.proto == proto::TCP {
            self.reset_both(now, &flow, from, frame, p);
        }
        self.close(id, CloseReason::Policy);
        self.emit_denied(&flow);
        Err(DropReason::PolicyChanged)
    }

    /// Runs what is due without a frame: expiry of flows, questions to neighbours. A small step.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        // Never fewer than come in, or the table would fill whatever the time-outs.
        let opened = self.counters.flows_opened.get();
        let new = opened.wrapping_sub(std::mem::replace(&mut self.opened_before, opened));
        let mut budget = EXPIRED_A_TURN.max(2 * new as u32);
        while let Some(flow) = self
            .flows
            .pop_expired(now.tick(), self.snapshot.idle(), &mut budget)
        {
            let reason = if flow.is_finished() {
                CloseReason::Finished
            } else {
                CloseReason::Idle
            };
            self.closed(&flow, reason);
        }
        self.expires_on = budget == 0;
        self.expire_fragments(now);
        self.ask_neighbors(now);
        self.repeat_announcements(now);
        self.ask_for_addresses(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do, at the latest.
    pub(crate) fn next_deadline(&self, now: Now) -> Option<Now> {
        let waiting = self.flows.active() > 0 || !self.fragments.is_empty();
        let pause = if self.expires_on {
            std::time::Duration::ZERO
        } else {
            std::time::Duration::from_millis(250)
        };
        let flows = waiting.then(|| now + pause);
        let asking = self.acquire.as_ref().map(|acquire| acquire.deadline());
        let all = [
            flows,
            self.neighbors.next_deadline(),
            self.next_announcement(),
            asking,
        ];
        all.into_iter().flatten().min()
    }

    fn evict(&mut self, now: Tick, wanted: impl Fn(&Flow) -> bool) -> bool {
        let Some(id) = self.flows.find_victim(now, wanted) else {
            return false;
        };
        self.close(id, CloseReason::Evicted);
        true
    }

    #[cold]
    fn close_expired(&mut self, id: FlowId) {
        let reason = if self.flows.get(id).is_finished() {
            CloseReason::Finished
        } else {
            CloseReason::Idle
        };
        self.close(id, reason);
    }

    fn close(&mut self, id: FlowId, reason: CloseReason) {
        let flow = self.flows.remove(id);
        self.closed(&flow, reason);
    }

    /// Accounts for a flow that has left the table.
    fn closed(&mut self, flow: &Flow, reason: CloseReason) {
        self.tally.leave(flow);
        self.leave_grant(flow.grant);
        self.counters.count_closed(reason);
        let lasted = flow.last_seen.since(flow.opened);
        let group = self.group_counters(flow.tally);
        group.count_lifetime(reason, lasted);
        if flow.proto == proto::TCP {
            self.counters.count_age(reason, &flow.tcp, lasted);
            match flow.tcp.state {
                State::SynSent => self.counters.count_unanswered(reason),
                State::SynReceived => group.count_unfinished(reason),
                _ => {}
            }
        }
        self.tunnels.closed(flow.tunnel);
        self.counters
            .flows_active
            .set(u64::from(self.flows.active()));
        if flow.is_translated() {
            self.unbound(flow);
        }
        if self.events.as_ref().is_some_and(Ring::takes_all) {
            let [bytes_out, bytes_in] = flow.bytes;
            self.emit(Event::Closed {
                flow: self.describe(flow),
                reason,
                bytes_out,
                bytes_in,
            });
        }
    }

    fn describe(&self, flow: &Flow) -> FlowFacts {
        // The one meant is the latest with these low bits up to the one in force; beyond that the one with no others, as
        // while everything is denied, or after a policy was restored.
        let current = self.snapshot.policy().revision();
        let age = (current as u32).wrapping_sub(flow.revision);
        FlowFacts {
            src: flow.client.ip(),
            dst: flow.server.ip(),
            proto: flow.proto,
            src_port: flow.client_port,
            dst_port: flow.server_port,
            group: (flow.group != NO_GROUP).then_some(u32::from(flow.group)),
            rule: (flow.rule != NO_RULE).then_some(flow.rule),
            revision: current
                .checked_sub(u64::from(age))
                .unwrap_or(flow.revision.into()),
        }
    }

    /// Tells that the policy denies a flow.
    fn emit_denied(&mut self, flow: &Flow) {
        if self.events.is_some() {
            self.emit(Event::Denied {
                flow: self.describe(flow),
                icmp: icmp_of(flow),
            });
        }
    }

    fn emit(&mut self, event: Event) {
        if let Some(ring) = &self.events
            && !ring.put(event)
        {
            self.counters.events_lost.inc();
        }
    }

    /// The hash by which the limits on what is sent tell sources apart: hosts, or in IPv6 a /64.
    fn source_hash(&self, source: Addr) -> u64 {
        self.flows
            .hasher()
            .hash_address(crate::fragment::source(source))
    }

    /// The link back to the station that a frame came from.
    fn back(&self, port: PortId, frame: &[u8]) -> Link {
        if port == LANE {
            return Link::new(LANE, ethernet::Mac::default(), ethernet::Mac::default());
        }
        let header = ethernet::Header::parse(frame);
        let dst = header.map(|h| h.src).unwrap_or_default();
        let src = match (self.underway, header) {
            (Some(_), Some(inner)) => inner.dst,
            _ => self.capabilities(port).mac,
        };
        Link::new(port, src, dst)
    }
}

/// Type and code of the ICMP query that has opened a flow.
fn icmp_of(flow: &Flow) -> Option<(u8, u8)> {
    matches!(flow.proto, proto::ICMP4 | proto::ICMP6).then_some(flow.icmp)
}

/// What the policy is asked about a flow that begins with this key.
pub(crate) fn facts(key: &crate::flow::Key, icmp: (u8, u8)) -> Facts {
    let is_icmp = matches!(key.proto, proto::ICMP4 | proto::ICMP6);
    Facts {
        src: key.src.ip(),
        dst: key.dst.ip(),
        proto: key.proto,
        // An identifier is no port.
        src_port: if is_icmp { 0 } else { key.src_port },
        dst_port: if is_icmp { 0 } else { key.dst_port },
        icmp: is_icmp.then_some(icmp),
    }
}
