//! Our part of ARP and neighbour discovery: answering for our addresses, asking for others.

use std::time::Duration;

use super::{Pipeline, Step};
use crate::DropReason;
use crate::Snapshot;
use crate::address::Addr;
use crate::clock::Now;
use crate::neighbor::{Due, NeighborId};
use crate::outbox::Link;
use crate::parse::{Content, Parsed};
use crate::port::PortId;
use crate::route::Hop;
use crate::wire::arp::{Arp, Operation};
use crate::wire::ethernet;
use crate::wire::mld::{self, Query, Record, Version};
use crate::wire::ndp::{self, Message};
use crate::wire::{checksum, ipv6, proto, ra};

/// How often addresses are announced when a link has come up, and the pause in between (RFC 5227 §1.1, ANNOUNCE_NUM and
/// ANNOUNCE_INTERVAL; RFC 4861 §7.2.6 allows no more than three, a second apart).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two answers to whoever asks where we listen.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two defences of an address (RFC 5227 §1.1).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// When the addresses of a port are announced again, and where we listen for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcing {
    /// How often.
    rounds: u8,
    /// Not before.
    at: Now,
    is_down: bool,
    /// When whoever has asked where we listen is answered.
    asked: Option<Now>,
    /// Not before.
    quiet_until: Now,
    /// In what the link speaks of that.
    version: Version,
    /// Addresses that were claimed by others and announced again, and until when they are not.
    defended: Vec<(Addr, Now)>,
}

impl Pipeline {
    /// Learns from a frame that another worker has received and answered.
    pub(crate) fn learn_from(&mut self, now: Now, port: PortId, frame: &[u8], p: &Parsed) {
        let learned = match p.content {
            Content::Arp => self.handle_arp(now, port, frame, false),
            Content::Neighbor => self.handle_neighbor(now, port, frame, p, false),
            Content::Flow | Content::Fragment | Content::IcmpError | Content::Dhcp => return,
        };
        // Refused and counted where it was received.
        let _: Result<Step, DropReason> = learned;
    }

    pub(super) fn handle_arp(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        answer: bool,
    ) -> Result<Step, DropReason> {
        if answer {
            self.counters.arp_handled.inc();
        }
        let arp = Arp::parse(&frame[ethernet::LEN..])?;
        let mac = self.capabilities(port).mac;
        if ethernet::is_group(arp.sender_mac) {
            return Err(DropReason::Arp);
        }
        if arp.sender_mac != mac {
            let claimed = if arp.sender.low32() == 0 {
                arp.target
            } else {
                arp.sender
            };
            self.note_claim4(now, port, claimed);
        }
        if self.snapshot.is_ours(arp.sender) {
            if answer {
                self.defend(now, port, arp.sender_mac, arp.sender);
            }
            return Err(DropReason::Arp);
        }
        let for_us = self.snapshot.is_ours(arp.target);
        // RFC 826: what is known is brought up to date; a new neighbour is learned only if it
        // speaks to us. A probe (RFC 5227) has no sender address and teaches nothing.
        if self.is_on_link(port, arp.sender) {
            let answers = arp.operation == Operation::Reply && arp.target_mac == mac;
            let (from, confirm) = (arp.sender_mac, answers || for_us);
            let trusted = self.learn(port, arp.sender, from, now, for_us, confirm);
            self.count_untrusted(!trusted && answer);
        }
        if arp.operation != Operation::Request || !answer {
            return Ok(Step::Consumed);
        }
        if !for_us {
            return Err(DropReason::Arp);
        }
        let link = Link::new(port, mac, arp.sender_mac);
        let reply = Arp {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: arp.target,
            target_mac: arp.sender_mac,
            target: arp.sender,
        };
        self.outbox.arp(link, reply);
        Ok(Step::Answered)
    }

    pub(super) fn handle_neighbor(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
        answer: bool,
    ) -> Result<Step, DropReason> {
        if p.icmp.0 == mld::QUERY {
            return self.handle_listener_query(now, port, frame, p, answer);
        }
        if answer {
            self.counters.nd_handled.inc();
        }
        let message = &frame[usize::from(p.l4)..p.end as usize];
        // RFC 4861 §7.1: a hop limit of 255 proves that it comes from this link. RFC 6980 §5: none comes in fragments, an
        // atomic one included, behind which a switch does not look.
        let header = ipv6::Header::parse(&frame[ethernet::LEN..])?;
        if p.ttl != 255 || header.has_fragment_header {
            return Err(DropReason::NeighborDiscovery);
        }
        if checksum::transport(p.key.src, p.key.dst, proto::ICMP6, message) != 0 {
            return Err(DropReason::BadChecksum);
        }
        if p.icmp.0 == ra::ADVERTISEMENT {
            return self.handle_advertisement(now, port, frame, p);
        }
        let mac = self.capabilities(port).mac;
        let station = ethernet::Header::parse(frame)
            .map(|h| h.src)
            .unwrap_or_default();
        let message = Message::parse(message)?;
        if !message.may_go(p.key.src, p.key.dst) {
            return Err(DropReason::NeighborDiscovery);
        }
        match message {
            // Whoever tries an address or has it, while we try it.
            Message::Solicitation { target, .. }
                if p.key.src.0 == 0 && self.note_claim6(now, port, station, target) => {}
            Message::Advertisement { target, .. }
                if self.note_claim6(now, port, station, target) => {}
            Message::Solicitation {
                target,
                mac: source,
            } => {
                if !self.answers_for(port, target) {
                    return Err(DropReason::NeighborDiscovery);
                }
                let probing = p.key.src.0 == 0;
                if let Some(source) = source
                    && !probing
                    && self.is_on_link(port, p.key.src)
                {
                    let trusted = self.learn(port, p.key.src, source, now, true, true);
                    self.count_untrusted(!trusted && answer);
                }
                if !answer {
                    return Ok(Step::Consumed);
                }
                let (to, dst) = match probing {
                    true => (ndp::ALL_NODES, ndp::multicast_mac(ndp::ALL_NODES)),
                    false => (p.key.src, source.unwrap_or(station)),
                };
                let reply = Message::Advertisement {
                    target,
                    mac: Some(mac),
                    solicited: !probing,
                    overriding: true,
                };
                self.outbox
                    .neighbor(Link::new(port, mac, dst), target, to, reply);
                return Ok(Step::Answered);
            }
            Message::Advertisement {
                target,
                mac: theirs,
                solicited,
                overriding,
            } => {
                if self.answers_for(port, target) {
                    if answer {
                        self.defend(now, port, station, target);
                    }
                    return Err(DropReason::NeighborDiscovery);
                }
                let trusted =
                    self.learn_advertised(port, target, theirs, now, (solicited, overriding));
                self.count_untrusted(!trusted && answer);
            }
        }
        Ok(Step::Consumed)
    }

    /// Tells the links which addresses are ours and where we listen for them, those of `before` aside, and again a little
    /// later.
    pub(super) fn announce(&mut self, now: Now, before: Option<&Snapshot>) {
        if self.partition.index() > 0 {
            return;
        }
        let snapshot = self.snapshot.clone();
        for place in 0..self.announcing.len() {
            let port = PortId(place as u8);
            let had = before.map_or(&[][..], |before| before.groups(port));
            let is_new = snapshot.groups(port).iter().any(|g| !had.contains(g));
            if is_new && self.report_groups(port, Record::Begun) {
                self.repeat_later(now, port);
            }
        }
        let had = before.map_or(&[][..], Snapshot::announced);
        for (port, address) in snapshot.announced() {
            if !had.contains(&(*port, *address)) && self.announce_one(*port, *address) {
                self.repeat_later(now, *port);
            }
        }
    }

    fn repeat_later(&mut self, now: Now, port: PortId) {
        let repeat = &mut self.announcing[usize::from(port.0)];
        (repeat.rounds, repeat.at) = (1, now + ANNOUNCE_INTERVAL);
    }

    /// Takes in the address of a port and what its link carries, one of which has changed.
    pub(crate) fn note_device(&mut self, now: Now, port: PortId, mac: ethernet::Mac, mtu: u16) {
        let mut is_new = false;
        // Two tunnels over one port are two arms.
        let both_sides = self.has_overlay() && port == PortId(0);
        for (i, caps) in self.ports.iter_mut().enumerate() {
            if i == usize::from(port.0) || both_sides {
                is_new |= std::mem::replace(&mut caps.mac, mac) != mac;
                self.link_mtus[i] = mtu;
            }
        }
        self.heed_mtus();
        self.note_device_of_acquire(now, port, mac, mtu);
        if is_new {
            self.announce_again(now, port);
        }
    }

    /// Takes in whether a link is up: one that has come back may lead to stations that have forgotten us, or to others.
    pub(super) fn announce_on_link_up(&mut self, now: Now, port: PortId, up: bool) {
        let repeat = &mut self.announcing[usize::from(port.0)];
        let was_down = std::mem::replace(&mut repeat.is_down, !up);
        if up && was_down {
            self.announce_again(now, port);
        }
    }

    /// Has the addresses of a port announced as soon as may be.
    fn announce_again(&mut self, now: Now, port: PortId) {
        if self.partition.index() > 0 {
            return;
        }
        let repeat = &mut self.announcing[usize::from(port.0)];
        // What is due already keeps its time, so that a link that flaps is not flooded.
        if repeat.rounds == 0 {
            repeat.at = repeat.at.max(now);
        }
        repeat.rounds = ANNOUNCEMENTS;
    }

    /// Tells links once more which addresses are ours, where that is due, and those that have asked where we listen.
    pub(super) fn repeat_announcements(&mut self, now: Now) {
        for place in 0..self.announcing.len() {
            let port = PortId(place as u8);
            if self.announcing[place].asked.is_some_and(|due| now >= due) {
                self.announcing[place].asked = None;
                self.announcing[place].quiet_until = now + REPORT_PAUSE;
                self.report_groups(port, Record::Listening);
            }
            let repeat = &mut self.announcing[place];
            if repeat.rounds == 0 || now < repeat.at || repeat.is_down {
                continue;
            }
            repeat.rounds -= 1;
            repeat.at = now + ANNOUNCE_INTERVAL;
            self.report_groups(port, Record::Begun);
            let snapshot = self.snapshot.clone();
            for (port, address) in snapshot.announced() {
                if usize::from(port.0) == place {
                    self.announce_one(*port, *address);
                }
            }
        }
    }

    /// When that is due.
    pub(super) fn next_announcement(&self) -> Option<Now> {
        let due = self
            .announcing
            .iter()
            .filter(|r| r.rounds > 0 && !r.is_down);
        let asked = self.announcing.iter().filter_map(|r| r.asked);
        due.map(|repeat| repeat.at).chain(asked).min()
    }

    /// Tells a link in which groups we listen. False where there is nothing to say, or nobody to say it to.
    fn report_groups(&mut self, port: PortId, record: Record) -> bool {
        let Some(caps) = self.ports.get(usize::from(port.0)) else {
            return false;
        };
        let groups = self.snapshot.groups(port);
        let speaks = !groups.is_empty() || self.snapshot.acquires(port);
        if caps.layer3 || !speaks {
            return false;
        }
        let own = ndp::solicited_node(ndp::link_local(caps.mac));
        let others = groups.iter().copied().filter(|group| *group != own);
        let version = self.announcing[usize::from(port.0)].version;
        let all = std::iter::once(own).chain(others);
        self.outbox
            .listener_report(port, caps.mac, version, record, all);
        true
    }

    /// A query for the groups that somebody listens to (RFC 3810 §6.2). It is answered a little later, for all groups, by
    /// whoever has received it.
    fn handle_listener_query(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
        answer: bool,
    ) -> Result<Step, DropReason> {
        let is_of_link = p.ttl == 1 && p.key.src.is_link_local6();
        if !is_of_link || !ipv6::has_router_alert(&frame[ethernet::LEN..]) {
            return Err(DropReason::Multicast);
        }
        let message = &frame[usize::from(p.l4)..p.end as usize];
        if checksum::transport(p.key.src, p.key.dst, proto::ICMP6, message) != 0 {
            return Err(DropReason::BadChecksum);
        }
        let query = Query::parse(message).ok_or(DropReason::Multicast)?;
        let own = ndp::solicited_node(ndp::link_local(self.capabilities(port).mac));
        let groups = self.snapshot.groups(port);
        let listens = |group| group == own || groups.contains(&group);
        let concerns_us = query.group.is_none_or(listens);
        let most = u64::try_from(query.within.as_nanos()).unwrap_or(u64::MAX);
        let Some(state) = self.announcing.get_mut(usize::from(port.0)) else {
            return Ok(Step::Consumed);
        };
        state.version = query.version;
        if answer && concerns_us {
            let due = now + Duration::from_nanos(self.random.next() % most.max(1));
            let due = due.max(state.quiet_until);
            state.asked = Some(state.asked.map_or(due, |asked| asked.min(due)));
        }
        Ok(Step::Consumed)
    }

    /// False where there are no stations to tell.
    fn announce_one(&mut self, port: PortId, address: Addr) -> bool {
        let Some(caps) = self.ports.get(usize::from(port.0)) else {
            return false;
        };
        if caps.layer3 {
            return false;
        }
        self.outbox.announce(port, caps.mac, address);
        true
    }

    /// The neighbour that a packet to `to` goes to, asked for if it is new.
    pub(super) fn find_neighbor(
        &mut self,
        hop: Hop,
        to: Addr,
        now: Now,
    ) -> Result<NeighborId, DropReason> {
        let is_router = hop.neighbor != to;
        let (id, new) = self
            .neighbors
            .find_or_add(hop.port, hop.neighbor, is_router, now)
            .ok_or(DropReason::NeighborQueueFull)?;
        if new {
            self.ask(id);
        }
        Ok(id)
    }

    pub(super) fn ask_neighbors(&mut self, now: Now) {
        let mut lost = false;
        let (neighbors, settled) = (&mut self.neighbors, &mut self.settled);
        let mut asked = std::mem::take(&mut self.to_ask);
        neighbors.handle_timeout(now, |due| match due {
            Due::Ask(id) => asked.push(id),
            Due::Lost(id) => {
                settled.push((id, false));
                lost = true;
            }
        });
        for id in asked.drain(..) {
            self.ask(id);
        }
        self.to_ask = asked;
        if lost {
            // Next hops that lead to it are void.
            self.epoch = self.epoch.wrapping_add(1);
        }
        self.counters.neighbors.set(self.neighbors.len() as u64);
    }

    fn ask(&mut self, id: NeighborId) {
        let Some(n) = self.neighbors.get(id).copied() else {
            return;
        };
        let mac = self.capabilities(n.port).mac;
        let from = match self.snapshot.address_towards(n.port, n.address) {
            Some(from) if !n.address.is_link_local6() => from,
            _ if !n.address.is_v4() => ndp::link_local(mac),
            _ => return,
        };
        self.outbox.ask(n.port, mac, from, n.address, n.mac);
    }

    /// Takes in what a station says of itself. False if it says that it is a gateway that it must not be.
    pub(super) fn learn(
        &mut self,
        port: PortId,
        address: Addr,
        mac: ethernet::Mac,
        now: Now,
        create: bool,
        confirm: bool,
    ) -> bool {
        if ethernet::is_group(mac) || address.is_martian_source() {
            return true;
        }
        if self.snapshot.is_false_gateway(port, address, mac) {
            return false;
        }
        let settled = self
            .neighbors
            .learn(port, address, mac, now, create, confirm);
        self.settled.extend(settled.map(|id| (id, true)));
        true
    }

    /// The same of a neighbour advertisement with these flags; without an address it confirms the one that is known.
    fn learn_advertised(
        &mut self,
        port: PortId,
        target: Addr,
        mac: Option<ethernet::Mac>,
        now: Now,
        (solicited, overriding): (bool, bool),
    ) -> bool {
        if mac.is_some_and(ethernet::is_group) || target.is_martian_source() {
            return true;
        }
        if mac.is_some_and(|mac| self.snapshot.is_false_gateway(port, target, mac)) {
            return false;
        }
        let settled = self
            .neighbors
            .handle_advertisement(port, target, mac, now, solicited, overriding);
        self.settled.extend(settled.map(|id| (id, true)));
        true
    }

    /// Counts a false gateway, once for all workers that hear of it.
    fn count_untrusted(&mut self, is_false: bool) {
        if is_false {
            self.counters.gateway_untrusted.inc();
        }
    }

    /// Answers a claim to one of our addresses: a node that others send their packets to keeps it (RFC 5227 §2.4 c).
    fn defend(&mut self, now: Now, port: PortId, from: ethernet::Mac, address: Addr) {
        // A switch may give back what we sent ourselves, by this port or another on the same link.
        if self.ports.iter().any(|caps| caps.mac == from) {
            return;
        }
        let mac = self.capabilities(port).mac;
        self.counters.address_conflicts.inc();
        let is_announced = self.snapshot.announced().contains(&(port, address));
        if is_announced && self.may_defend(now, port, address) {
            self.outbox.announce(port, mac, address);
        }
    }

    /// Notes that an address is defended now, if it was not of late. Those that are remembered are no more than there are
    /// to announce.
    fn may_defend(&mut self, now: Now, port: PortId, address: Addr) -> bool {
        let Some(state) = self.announcing.get_mut(usize::from(port.0)) else {
            return false;
        };
        state.defended.retain(|(_, until)| now < *until);
        let may = state.defended.iter().all(|(a, _)| *a != address);
        if may {
            state.defended.push((address, now + DEFEND_INTERVAL));
        }
        may
    }

    /// Whether packets to an address come to us: one of ours, or the one that only the link of this port has us by.
    pub(super) fn is_for_us(&self, port: PortId, a: Addr) -> bool {
        let is_of_link = || {
            let is_of_port = self.underway.is_none() && !self.capabilities(port).layer3;
            is_of_port && self.answers_for(port, a)
        };
        self.snapshot.is_ours(a) || a.is_link_local() && is_of_link()
    }

    /// Whether we answer neighbour solicitations for an address on a port.
    fn answers_for(&self, port: PortId, a: Addr) -> bool {
        self.snapshot.is_ours(a) || a == ndp::link_local(self.capabilities(port).mac)
    }

    /// Whether a station with this address may be on the link of a port: in the prefix of an address of ours, or where the
    /// settings say so. A router outside the prefix of a lease is such a one.
    fn is_on_link(&self, port: PortId, a: Addr) -> bool {
        let own = self.snapshot.own_addresses();
        let settings = self.snapshot.settings().ports.get(usize::from(port.0));
        let said = settings.map_or(&[][..], |port| &port.on_link);
        a.is_link_local6()
            || own.iter().any(|o| o.port == port && o.prefix.contains(a))
            || said.iter().any(|net| net.contains(&a.ip()))
    }
}
