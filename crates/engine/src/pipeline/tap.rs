//! Packets that somebody watches take the same way as all others; what can be told of them is read
//! off before and after.

use super::{Pipeline, Step, facts, quoted_key};
use crate::clock::Now;
use crate::flow::{Flow, FlowId, Key, Lookup, NO_GROUP, NO_RULE};
use crate::fragment::Whole;
use crate::look::{Filter, FlowState};
use crate::parse::{Content, Parsed, Station, parse};
use crate::port::{Packet, PortId};
use crate::tap::{Ends, Headers, Hit, MAX_SNAP, MAX_TAPS, Ruling, Tap};
use crate::tcp::End;
use crate::wire::proto;
use crate::{DropReason, Verdict};

/// Who watches packets; mostly nobody.
#[derive(Debug)]
pub(super) struct Taps {
    #[expect(
        clippy::vec_box,
        reason = "each goes home in the box that it came in, which is freed there"
    )]
    list: Vec<Box<Tap>>,
    /// The first bytes of the packet in hand, as it came.
    frame: Vec<u8>,
    /// When this turn began.
    turn: Now,
}

/// What is known of a packet before anything is done with it.
struct Before {
    /// Where it came from; none: from the host.
    port: Option<PortId>,
    len: u32,
    /// Fragments that it was put together from.
    pieces: u16,
    frame: Vec<u8>,
    /// The key of its flow, or of the flow that an ICMP error is about.
    key: Option<Key>,
    hit: Option<Hit>,
    /// What that flow began with.
    began: Option<(Key, (u8, u8))>,
    answers: u64,
    /// Who means it, going by that flow.
    meant: [bool; MAX_TAPS],
}

impl Taps {
    pub(super) fn new() -> Taps {
        Taps {
            list: Vec::with_capacity(MAX_TAPS),
            frame: Vec::with_capacity(MAX_SNAP),
            turn: Now(0),
        }
    }

    /// Whether nobody watches.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Begins a turn: ends what is over.
    #[inline]
    pub(super) fn begin(&mut self, now: Now) {
        if !self.list.is_empty() {
            self.turn = now;
            self.end(now);
        }
    }

    #[cold]
    fn end(&mut self, now: Now) {
        while let Some(over) = self.list.iter().position(|tap| tap.is_over(now)) {
            self.list.swap_remove(over).give_back();
        }
    }

    /// Watches from now on; the tap is left there if too many watch already.
    pub(super) fn add(&mut self, now: Now, tap: &mut Option<Box<Tap>>) {
        self.turn = now;
        if self.list.len() < MAX_TAPS {
            self.list.extend(tap.take());
        }
    }
}

impl Pipeline {
    /// Has `handle` deal with a packet, and tells those who watch. Without a port it is from the host.
    #[cold]
    #[inline(never)]
    pub(super) fn watched<K: Packet>(
        &mut self,
        port: Option<PortId>,
        frame: &mut K,
        p: &Parsed,
        handle: impl FnOnce(&mut Pipeline, &mut K) -> Step,
    ) -> Step {
        if p.content == Content::Fragment {
            // It is told of with its datagram.
            return handle(self, frame);
        }
        let before = self.before(port, p, frame.bytes(), 0);
        let step = handle(self, frame);
        // One that is held is told of when it has gone.
        if step != Step::Hold {
            self.note(p, before, step, frame.bytes());
        }
        step
    }

    /// The same with a datagram that came in pieces.
    #[cold]
    #[inline(never)]
    pub(super) fn whole_watched(
        &mut self,
        port: PortId,
        whole: &mut Whole,
        handle: impl FnOnce(&mut Pipeline, &mut Whole) -> Step,
    ) -> Step {
        let parsed = self.parse_whole(whole);
        let p = match &parsed {
            Ok(p) => p,
            Err(reason) => {
                self.note_refused(Some(port), *reason, &whole.bytes);
                return handle(self, whole);
            }
        };
        let pieces = u16::try_from(whole.cuts.len()).unwrap_or(u16::MAX);
        let before = self.before(Some(port), p, &whole.bytes, pieces);
        let step = handle(self, whole);
        let told = match (step, whole.turned) {
            (Step::WholeFor(owner), Some(out)) => Step::TurnFor(owner, out),
            _ => step,
        };
        self.note(p, before, told, &whole.bytes);
        step
    }

    /// Tells those who watch of a frame that is dropped before or after that.
    #[cold]
    #[inline(never)]
    pub(super) fn note_refused(&mut self, port: Option<PortId>, reason: DropReason, frame: &[u8]) {
        let verdict = Verdict::Drop(reason);
        let parsed = parse(frame, Station::Any, None).ok();
        // It may have been translated already.
        let flow = parsed.as_ref().and_then(|p| {
            let found = self.find(&p.key).or_else(|| self.find(&p.key.reversed()));
            found.map(|(id, _)| self.flows.get(id))
        });
        for tap in &self.taps.list {
            let meant = match &parsed {
                Some(p) => matches(&tap.wish.filter, p, flow.as_ref()),
                None => tap.wish.filter.is_everything(),
            };
            if !meant || !tap.wants(verdict) {
                continue;
            }
            tap.record(frame, |record| {
                record.at = self.taps.turn;
                record.worker = self.partition.index();
                record.port = port;
                record.len = frame.len() as u32;
                record.headers = parsed.as_ref().and_then(headers);
                record.ruling = flow.as_ref().map(|flow| self.kept(flow));
                record.verdict = verdict;
            });
        }
    }

    /// The flow with this key, if it is not over.
    fn find(&self, key: &Key) -> Option<(FlowId, End)> {
        let (id, from) = self.flows.find(key, Lookup::by(self.flows.hash(key)))?;
        let (now, idle) = (self.taps.turn.tick(), self.snapshot.idle());
        (!self.flows.has_expired(id, now, idle)).then_some((id, from))
    }

    fn before(&mut self, port: Option<PortId>, p: &Parsed, bytes: &[u8], pieces: u16) -> Before {
        let wanted = self.taps.list.iter().map(|tap| tap.wish.snap).max();
        let snap = wanted.unwrap_or(0).min(MAX_SNAP).min(bytes.len());
        let mut frame = std::mem::take(&mut self.taps.frame);
        frame.clear();
        frame.extend_from_slice(&bytes[..snap]);
        let key = match p.content {
            Content::Flow | Content::Dhcp if port.is_some() => Some(p.key),
            // Answers to what it quotes have the reversed key.
            Content::IcmpError => quoted_key(bytes, p).map(|key| key.reversed()),
            _ => None,
        };
        let found = key.as_ref().and_then(|key| self.find(key));
        let flow = found.map(|(id, _)| self.flows.get(id));
        let hit = found.zip(flow).map(|((_, from), flow)| Hit {
            from_client: from == End::Client,
            state: FlowState::of(&flow),
            stale: flow.epoch != self.snapshot.epoch() as u32,
        });
        let mut meant = [false; MAX_TAPS];
        for (meant, tap) in meant.iter_mut().zip(&self.taps.list) {
            *meant = matches(&tap.wish.filter, p, flow.as_ref());
        }
        Before {
            port,
            len: bytes.len() as u32,
            pieces,
            frame,
            key,
            hit,
            began: flow.map(|flow| (flow.client_key(), flow.icmp)),
            answers: self.answers(),
            meant,
        }
    }

    /// Frames that were originated because of others, in all.
    fn answers(&self) -> u64 {
        self.counters.resets_sent.get() + self.counters.icmp_errors_sent.get()
    }

    fn note(&mut self, p: &Parsed, before: Before, step: Step, frame: &[u8]) {
        let (verdict, handed_to) = match step {
            // It is told of where it is decided.
            Step::WholeFor(_) => {
                self.taps.frame = before.frame;
                return;
            }
            Step::TurnFor(owner, out) => (Verdict::Forward(out), Some(owner)),
            step => (step.verdict(), None),
        };
        // The flow now: the one that was found, unless it was closed, or the one that was opened.
        let flow = before.key.as_ref().and_then(|key| self.find(key));
        let flow = flow.map(|(id, _)| self.flows.get(id));
        let sent = match verdict {
            Verdict::Forward(_) | Verdict::Local => parse(frame, Station::Any, None).ok(),
            _ => None,
        };
        let ruling = self.ruling(p, &before, flow.as_ref(), verdict);
        // What turns back belongs to the flow of the one that it is for as well.
        let turned = match &flow {
            Some(flow) if flow.sides.turns_back() => sent.as_ref().and_then(|p| {
                let found = self.find(&p.key.reversed());
                found.map(|(id, _)| self.flows.get(id))
            }),
            _ => None,
        };
        let (next_hop, waits) = match step {
            Step::Send(out) if self.underway.is_none() && !self.capabilities(out).layer3 => {
                (frame.first_chunk().copied(), false)
            }
            Step::Await(..) => (None, true),
            _ => (None, false),
        };
        let answers = self.answers().wrapping_sub(before.answers);
        for (tap, meant) in self.taps.list.iter().zip(before.meant) {
            let filter = &tap.wish.filter;
            let meant = meant
                || flow
                    .as_ref()
                    .is_some_and(|flow| matches(filter, p, Some(flow)))
                || turned.as_ref().is_some_and(|flow| filter.matches(flow));
            if !meant || !tap.wants(verdict) {
                continue;
            }
            tap.record(&before.frame, |record| {
                record.at = self.taps.turn;
                record.worker = self.partition.index();
                record.port = before.port;
                record.from_host = before.port.is_none();
                record.network = self.underway.map(|tunnel| tunnel.network.vni);
                record.len = before.len;
                record.pieces = before.pieces;
                record.headers = headers(p);
                record.hit = before.hit;
                record.ruling = ruling;
                record.verdict = verdict;
                record.sent = sent.as_ref().map(|p| ends(&p.key));
                record.next_hop = next_hop;
                record.waits = waits;
                record.handed_to = handed_to;
                record.answers = u8::try_from(answers).unwrap_or(u8::MAX);
            });
        }
        self.taps.frame = before.frame;
    }

    /// What the policy said: as the flow keeps it, or, where there is none since it was denied, as
    /// it says again.
    fn ruling(
        &self,
        p: &Parsed,
        before: &Before,
        flow: Option<&Flow>,
        verdict: Verdict,
    ) -> Option<Ruling> {
        let facts = match verdict {
            // Even if there is a flow: of a question of another kind, with the same identifier.
            Verdict::Drop(DropReason::PolicyDenied) => facts(&p.key, p.icmp),
            _ if flow.is_some() => return flow.map(|flow| self.kept(flow)),
            Verdict::Drop(DropReason::PolicyChanged) => {
                let (key, icmp) = before.began?;
                facts(&key, icmp)
            }
            _ => return None,
        };
        let (decision, _) = self.grants.judge(self.snapshot.policy(), &facts);
        Some(Ruling {
            group: decision.group,
            rule: decision.rule,
            revision: self.snapshot.policy().revision(),
            allowed: decision.allow,
        })
    }

    fn kept(&self, flow: &Flow) -> Ruling {
        Ruling {
            group: (flow.group != NO_GROUP).then_some(u32::from(flow.group)),
            rule: (flow.rule != NO_RULE).then_some(flow.rule),
            revision: self.describe(flow).revision,
            allowed: true,
        }
    }
}

/// Whether a packet is meant: by the ends of its flow, else by its own.
fn matches(filter: &Filter, p: &Parsed, flow: Option<&Flow>) -> bool {
    match (p.content, flow) {
        (Content::Arp, _) => filter.is_everything(),
        (_, Some(flow)) => filter.matches(flow),
        (_, None) => filter.matches_packet(&p.key),
    }
}

fn headers(p: &Parsed) -> Option<Headers> {
    if p.content == Content::Arp {
        return None;
    }
    let is_icmp = matches!(p.key.proto, proto::ICMP4 | proto::ICMP6);
    let is_whole = p.content != Content::Fragment;
    Some(Headers {
        ends: ends(&p.key),
        proto: p.key.proto,
        ttl: p.ttl,
        tcp_flags: (p.key.proto == proto::TCP && is_whole).then_some(p.segment.flags),
        icmp: (is_icmp && is_whole).then_some(p.icmp),
    })
}

fn ends(key: &Key) -> Ends {
    Ends {
        src: (key.src.ip(), key.src_port),
        dst: (key.dst.ip(), key.dst_port),
    }
}
