//! How a flow begins: what a packet that belongs to none has to pass, what is granted to it, and its translation.

use policy::{Decision, Facts, OnDeny};

use super::{Account, Pipeline, facts, icmp_of};
use crate::address::Addr;
use crate::clock::Now;
use crate::counters::{Direction, GroupCounters, Handshake};
use crate::event::Event;
use crate::flow::key::Random;
use crate::flow::{Flow, FlowId, Key, Lookup, NO_GROUP, NO_RULE, Sides};
use crate::grant::UseId;
use crate::parse::Parsed;
use crate::port::PortId;
use crate::route::Hop;
use crate::snapshot::{NatMapping, Side};
use crate::tcp::Connection;
use crate::wire::tcp::{RST, SYN};
use crate::wire::{icmp, proto};
use crate::{DropReason, nat};

/// What is looked at in advance of a packet that may open a flow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opening {
    /// Hash of the key of answers to what NAT tries first.
    answer: u64,
    /// Of its source in the tally.
    chain: u32,
}

impl Pipeline {
    /// Decides on a packet that belongs to no flow, and opens one for it.
    pub(super) fn open(
        &mut self,
        now: Now,
        port: PortId,
        frame: &[u8],
        p: &Parsed,
        lookup: Lookup,
        account: &mut Account,
    ) -> Result<FlowId, DropReason> {
        let (key, snapshot) = (&p.key, &*self.snapshot);
        if snapshot.source_side(port, key.src) == Side::Outside {
            account.direction = Direction::Inbound;
            return Err(DropReason::FromOutside);
        }
        if snapshot.is_ours(key.src) || key.src.is_link_local() || key.dst.is_link_local() {
            return Err(DropReason::Martian);
        }
        // RFC 3704: answers would leave by the other port, and untranslated.
        let leads_back = |to| snapshot.route(to).is_some_and(|hop| hop.port == port);
        if snapshot.two_arms() && !leads_back(key.src) {
            return Err(DropReason::Martian);
        }
        let is_tcp = key.proto == proto::TCP;
        let picks_up = is_tcp && !p.segment.is_initial();
        if picks_up && (now >= snapshot.settings().pick_up_until || p.segment.has(SYN | RST)) {
            self.refuse_segment(now, port, frame, p);
            return Err(DropReason::NoFlow);
        }
        if p.is_icmp_answer() {
            return Err(DropReason::NoFlow);
        }
        if p.ttl <= 1 {
            self.refuse_ttl(now, port, frame, p)?;
        }
        let snapshot = &*self.snapshot;
        let hop = match self.underway {
            Some(tunnel) => Some(Hop {
                port: tunnel.onward,
                neighbor: key.dst,
            }),
            None => snapshot.route(key.dst),
        };
        let Some(hop) = hop else {
            let error = if p.is_v4() {
                (icmp::UNREACHABLE, 0)
            } else {
                (icmp::UNREACHABLE6, 0)
            };
            self.send_icmp_error(now, port, frame, p, error, 0);
            return Err(DropReason::NoRoute);
        };

        let turns_back = self.turns_back(self.underway.is_some(), key);
        let facts = facts(key, p.icmp);
        let (decision, grant) = self.grants.judge(snapshot.policy(), &facts);
        let group = decision.group.map_or(NO_GROUP, |g| g as u16);
        let mut flow = Flow {
            client: key.src,
            server: key.dst,
            nat: key.src,
            client_port: key.src_port,
            server_port: key.dst_port,
            nat_port: key.src_port,
            proto: key.proto,
            icmp: p.icmp,
            sides: Sides::new(port, hop.port).turning(turns_back),
            last_seen: now.tick(),
            bytes: [0; 2],
            packets: [0; 2],
            epoch: snapshot.epoch() as u32,
            revision: snapshot.policy().revision() as u32,
            rule: decision.rule.unwrap_or(NO_RULE),
            group,
            tally: self.tally.place(group),
            opened: now.tick(),
            grant,
            tunnel: key.tunnel,
            tcp: match (is_tcp, picks_up) {
                (true, false) => Connection::open(&p.segment),
                (true, true) => Connection::pick_up(&p.segment),
                (false, _) => Connection::default(),
            },
        };
        account.group = flow.tally;
        if !decision.allow {
            if self.waits_for_grant(&facts, key.src) {
                self.places.waits = true;
                return Err(DropReason::PolicyDenied);
            }
            if decision.on_deny == OnDeny::Reset && is_tcp {
                self.refuse_segment(now, port, frame, p);
            }
            self.emit_denied(&flow);
            return Err(DropReason::PolicyDenied);
        }
        if snapshot.settings().draining {
            return Err(DropReason::Draining);
        }
        let limits = &snapshot.settings().limits;
        self.tally.admit(now, &flow, limits)?;
        let room = self.room_for(flow.client, limits.max_flows);
        if self.flows.active() >= room && !self.evict(now.tick(), |_| true) {
            return Err(DropReason::FlowTableFull);
        }
        if turns_back || self.snapshot.destination_side(hop.port, key.dst) == Side::Outside {
            let translated = self.translate_outgoing(&mut flow, p, lookup);
            if translated == Err(DropReason::PrefixTranslation) {
                self.send_icmp_error(now, port, frame, p, (icmp::UNREACHABLE6, 0), 0);
            }
            translated?;
        }
        let id = self
            .flows
            .insert(&flow, lookup, self.snapshot.idle())
            .ok_or(DropReason::FlowTableFull)?;
        let limits = &self.snapshot.settings().limits;
        if let Err(reason) = self.tally.enter(&flow, limits) {
            self.flows.remove(id);
            return Err(reason);
        }

        self.counters.flows_opened.inc();
        self.group_counters(flow.tally).count_opened(flow.proto);
        if is_tcp && !picks_up {
            self.counters.count_handshake(Handshake::Syn);
        }
        self.use_grant(flow.grant);
        self.tunnels.opened(flow.tunnel);
        self.counters
            .flows_active
            .set(u64::from(self.flows.active()));
        if flow.is_translated() {
            self.bound(&flow);
        }
        if picks_up {
            self.counters.picked_up.inc();
        }
        if decision.would_deny {
            self.counters.would_deny.inc();
        }
        if let Some(ring) = &self.events
            && (decision.would_deny || ring.takes_all())
        {
            self.emit(Event::Opened {
                flow: self.describe(&flow),
                icmp: icmp_of(&flow),
                would_deny: decision.would_deny,
            });
        }
        Ok(id)
    }

    /// Asks for the memory that [`prefetch_opened`](Self::prefetch_opened) reads.
    #[inline(never)]
    pub(super) fn prefetch_opening(&self, key: &Key, lookup: Lookup) -> Opening {
        let opening = Opening {
            answer: self.flows.hash(&self.first_answer(key, lookup)),
            chain: self.tally.chain_of(key.src),
        };
        self.flows.prefetch_bucket(opening.answer);
        self.tally.prefetch_chain(opening.chain);
        self.grants.prefetch(key.dst);
        opening
    }

    /// Asks for the memory that a flow will touch whose packets have this key: its source in the tally; and if the port that
    /// NAT tries first seems to be taken, by which flow, and the bucket of the one that it tries then.
    #[inline]
    pub(crate) fn prefetch_opened(&self, key: &Key, lookup: Lookup, opening: Opening) {
        self.tally.prefetch_source(opening.chain);
        if self.flows.prefetch_head(opening.answer) {
            self.prefetch_next_answer(key, lookup);
        }
    }

    #[inline(never)]
    fn prefetch_next_answer(&self, key: &Key, lookup: Lookup) {
        let first = self.first_answer(key, lookup);
        if let Some(next) = nat::next_answer(key, &first, self.partition, self.draw(lookup)) {
            self.flows.prefetch_bucket(self.flows.hash(&next));
        }
    }

    /// The key of answers to what NAT tries first for the flow of a client's packet.
    #[inline(always)]
    fn first_answer(&self, key: &Key, lookup: Lookup) -> Key {
        let addresses = self.snapshot.nat_addresses(key.src.is_v4());
        nat::first_answer(
            &self.flows,
            key,
            addresses,
            self.partition,
            self.draw(lookup),
        )
    }

    /// A random number for the flow of a packet, the same all through a turn.
    #[inline(always)]
    fn draw(&self, lookup: Lookup) -> u64 {
        Random::new(self.salt ^ lookup.hash()).next()
    }

    /// What is counted of the group whose flows are at this place of the tally.
    #[inline(always)]
    pub(super) fn group_counters(&self, place: u16) -> &GroupCounters {
        let of_group = self.tally.counters(place);
        of_group.unwrap_or(&self.counters.ungrouped)
    }

    /// How many flows there may be before a further one of this client takes the place of another. The last sixteenth is
    /// for sources with less than a sixteenth of all, so that none can keep others out.
    pub(super) fn room_for(&self, client: Addr, max_flows: u32) -> u32 {
        let all = max_flows.min(self.flows.capacity());
        let share = all / 16;
        match self.flows.active() >= all - share && self.tally.flows_of(client) > share {
            true => all - share,
            false => all,
        }
    }

    /// Whether a denied packet is to wait, because a peer may have granted what lets it pass; it has a place then.
    #[cold]
    pub(super) fn waits_for_grant(&mut self, facts: &Facts, source: Addr) -> bool {
        self.grants.is_incomplete()
            && self.places.is_open
            && self.grants.might_pass(self.snapshot.policy(), facts)
            && self.places.take(source)
    }

    /// Lets packets be held from now on, or no longer: [`Step::Hold`](super::Step::Hold).
    pub(crate) fn let_hold(&mut self, may_be: bool) {
        self.places.is_open = may_be;
    }

    /// A packet of this source is no longer held.
    pub(crate) fn unhold(&mut self, source: Addr) {
        self.places.give_back(source);
    }

    /// Goes up with everything that may change how a packet is judged.
    pub(crate) fn news(&self) -> u64 {
        self.news
    }

    /// Whether a packet that belongs to no flow is allowed by now.
    pub(crate) fn is_allowed(&self, p: &Parsed) -> bool {
        self.judge(p).allow
    }

    /// What the policy says to a packet.
    pub(super) fn judge(&self, p: &Parsed) -> Decision {
        let facts = facts(&p.key, p.icmp);
        self.grants.judge(self.snapshot.policy(), &facts).0
    }

    /// Counts a flow of a grant.
    pub(super) fn use_grant(&self, grant: Option<UseId>) {
        if let Some(grant) = grant {
            self.grants.uses().enter(grant);
        }
    }

    /// The same for one that is no more.
    pub(super) fn leave_grant(&self, grant: Option<UseId>) {
        if let Some(grant) = grant {
            self.grants.uses().leave(grant);
        }
    }

    /// Gives a new flow the address and port that the server will see.
    pub(super) fn translate_outgoing(
        &mut self,
        flow: &mut Flow,
        p: &Parsed,
        lookup: Lookup,
    ) -> Result<(), DropReason> {
        let snapshot = &*self.snapshot;
        let prefix = snapshot.translate_prefix(flow.client);
        if prefix.is_none() && snapshot.nat_addresses(flow.client.is_v4()).is_empty() {
            return match snapshot.lacks_nat_address(flow.client.is_v4()) {
                true => Err(DropReason::NoNatAddress),
                false => Ok(()),
            };
        }
        let is_full = self.nat_active >= snapshot.settings().limits.max_nat_bindings;
        if is_full && !self.evict(flow.last_seen, Flow::is_translated) {
            return Err(DropReason::NatTableFull);
        }
        if let Some(translated) = prefix {
            flow.nat = translated.ok_or(DropReason::PrefixTranslation)?;
            // A client that has this address without translation may be there before.
            return match self.flows.contains(&flow.server_key()) {
                true => Err(DropReason::PrefixTranslation),
                false => Ok(()),
            };
        }
        let client = flow.client_key();
        let mapping = self.snapshot.settings().nat_mapping;
        let wanted = nat::Wanted {
            client: &client,
            syn: p.segment.is_initial().then_some(p.segment.seq),
            addresses: self.snapshot.nat_addresses(flow.client.is_v4()),
            services: self.snapshot.services(),
            partition: self.partition,
            draw: self.draw(lookup),
            now: flow.last_seen,
        };
        let mut probes = 0;
        let bound = nat::bind(
            &self.flows,
            (mapping == NatMapping::EndpointIndependent).then_some(&self.mappings),
            wanted,
            &mut self.exhausted,
            &mut probes,
        );
        self.counters.nat_port_probes.add(probes);
        if probes > 0 {
            self.counters.nat_scans[usize::from(bound.is_err())].note(probes);
        }
        let bound = bound?;
        if let Some((id, reason)) = bound.instead_of {
            self.close(id, reason);
        }
        if bound.port == flow.client_port {
            self.counters.nat_ports_kept.inc();
        }
        (flow.nat, flow.nat_port) = (bound.address, bound.port);
        Ok(())
    }

    /// Accounts for the binding of a flow that has come into the table.
    pub(super) fn bound(&mut self, flow: &Flow) {
        self.nat_active += 1;
        self.counters.nat_active.set(u64::from(self.nat_active));
        if !self.snapshot.is_by_prefix(flow.client, flow.nat) {
            self.counters.nat_use.add(flow.nat);
        }
        let independent = self.snapshot.settings().nat_mapping == NatMapping::EndpointIndependent;
        let by_port = self.snapshot.translate_prefix(flow.client).is_none();
        if independent && by_port && nat::has_ports(flow.proto) {
            self.mappings.opened(&self.flows, flow);
        }
    }

    /// The same for one that has left it.
    pub(super) fn unbound(&mut self, flow: &Flow) {
        self.nat_active -= 1;
        self.counters.nat_active.set(u64::from(self.nat_active));
        if !self.snapshot.is_by_prefix(flow.client, flow.nat) {
            self.counters.nat_use.remove(flow.nat);
        }
        self.mappings.closed(&self.flows, flow);
    }
}
