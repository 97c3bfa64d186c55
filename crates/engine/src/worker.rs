//! One packet worker: its ports, its queues, its loop. What becomes of a frame is decided by the
//! engine inside; here bursts are taken, led through the stages together, and sent.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::acquire::{Config, Held, Learned};
use crate::event::Ring;
use crate::flow::Lookup;
use crate::fragment::Whole;
use crate::look::Desk;
use crate::mesh::{As, Handed, Peers};
use crate::neighbor::NeighborId;
use crate::outbox::LANE;
use crate::overlay::Envelope;
use crate::parse::{Content, Parsed, Station, parse, parse_into};
use crate::pipeline::{Opening, Pipeline, Step, Uncounted};
use crate::port::{GsoKind, Idle, Link, Packet, Port, PortId};
use crate::rewrite;
use crate::steer::Owner;
use crate::wire::ethernet;
use crate::{DropReason, Imported, MalformedFlows, NodeTally, Now, Snapshot, WorkerCounters};

/// Frames taken from one port in one turn.
pub const BURST: usize = 64;
/// Frames that wait for next hops, in all.
const MAX_WAITING: usize = 256;
/// Frames that wait for one next hop.
const MAX_WAITING_PER_NEIGHBOR: usize = 64;
/// How long a frame waits for what its destination is granted to.
const HOLD: Duration = Duration::from_millis(50);
/// How often it is looked whether that has come.
const LOOK_AT_HELD: Duration = Duration::from_millis(1);
/// How long after the last frame the worker stays awake: a frame that comes meanwhile is not delayed by waking up.
const SPIN: Duration = Duration::from_micros(50);
/// Without sleep for so long, a worker has steady work.
const STEADY: Duration = Duration::from_millis(20);
/// Longest sleep. Whoever stops a worker or publishes a snapshot wakes it; this is for the counters that show that it
/// lives, and bounds how late the rest is seen if nobody does.
const MAX_SLEEP: Duration = Duration::from_millis(200);
/// How often the ports are asked what they have lost, whether they are up, and what has changed of them.
const LOOK_AT_PORTS: Duration = Duration::from_millis(250);

/// What one worker is made with.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Which worker this is, from 0.
    pub index: u16,
    /// How many workers share the node's flows and NAT ports, 1..=1024.
    pub count: u16,
    /// The ways to the others, of [`mesh`](crate::mesh::mesh); none for a lone worker.
    pub peers: Option<Peers>,
    /// Key of the flow hash, of steering and of all random choices; secret, from the system's random source, and the same
    /// for all workers of a node.
    pub seed: u64,
    /// Flows that its table can hold, 1..=2^26. Memory is touched only as it fills.
    pub flow_capacity: u32,
    /// Where events go; none if nobody listens. Full means lost and counted.
    pub events: Option<Ring>,
}

/// What is known about one frame of a burst.
#[derive(Clone, Debug)]
struct Known {
    parsed: Parsed,
    lookup: Lookup,
    /// If it seems to belong to no flow.
    opening: Option<Opening>,
    /// Why it goes no further, if so.
    refused: Option<DropReason>,
}

impl Known {
    const NOTHING: Known = Known {
        parsed: Parsed::EMPTY,
        lookup: Lookup::NONE,
        opening: None,
        refused: None,
    };
}

/// A frame that waits for its next hop.
#[derive(Debug)]
struct Waiting<K> {
    port: PortId,
    id: NeighborId,
    frame: K,
    /// What it is counted as when it leaves; none for what the engine has made itself.
    uncounted: Option<Uncounted>,
}

/// One packet worker over ports `P` and a host lane `L`. Owned by one thread.
#[derive(Debug)]
pub struct Worker<P: Port, L: Port> {
    ports: Vec<P>,
    lane: Option<L>,
    published: Arc<ArcSwap<Snapshot>>,
    pipeline: Pipeline,
    /// Frames of the burst, and what they are: as many places as a burst can have frames.
    rx: Vec<P::Packet>,
    lane_rx: Vec<L::Packet>,
    known: Vec<Known>,
    /// What was around them; empty unless packets come in a tunnel.
    envelopes: Vec<Option<Envelope>>,
    /// Frames to send, by port.
    tx: Vec<Vec<P::Packet>>,
    lane_tx: Vec<L::Packet>,
    waiting: VecDeque<Waiting<P::Packet>>,
    /// Frames that wait for what their destinations are granted to, and until when.
    held: VecDeque<(Now, PortId, P::Packet)>,
    /// When it is looked at them next.
    look_at_held: Now,
    /// What the pipeline knew when it was looked at them last.
    held_news: u64,
    peers: Option<Peers>,
    /// Frames from other workers, and from which; empty between turns, kept for its memory.
    handed: Vec<(usize, Handed)>,
    next_look: Now,
}

impl<P: Port, L: Port> Worker<P, L> {
    /// A worker over these ports, in the order of the snapshot's settings.
    ///
    /// # Errors
    /// When the system refuses the address space for the flow table.
    pub fn new(
        ports: Vec<P>,
        lane: Option<L>,
        snapshot: Arc<ArcSwap<Snapshot>>,
        mut config: WorkerConfig,
        counters: Arc<WorkerCounters>,
    ) -> io::Result<Worker<P, L>> {
        let peers = config.peers.take();
        let capabilities = ports.iter().map(|p| p.capabilities().clone()).collect();
        counters.set_port_count(ports.len());
        let pipeline = Pipeline::new(snapshot.load_full(), capabilities, config, counters)?;
        let tx = ports
            .iter()
            .map(|_| Vec::with_capacity(4 * BURST))
            .collect();
        Ok(Worker {
            ports,
            lane,
            published: snapshot,
            pipeline,
            rx: Vec::with_capacity(BURST),
            lane_rx: Vec::with_capacity(BURST),
            known: vec![Known::NOTHING; BURST],
            envelopes: Vec::with_capacity(BURST),
            tx,
            lane_tx: Vec::with_capacity(BURST),
            waiting: VecDeque::with_capacity(MAX_WAITING),
            held: VecDeque::new(),
            look_at_held: Now(0),
            held_news: 0,
            handed: Vec::with_capacity(if peers.is_some() { 4 * BURST } else { 0 }),
            peers,
            next_look: Now(0),
        })
    }

    /// Has addresses asked for on these ports from now on; `tell` hears all that is known on all of them whenever
    /// it changes, on the worker's thread, and must not block. One worker of a node asks.
    pub fn acquire(
        &mut self,
        ports: Vec<(PortId, Config)>,
        tell: impl FnMut(&[Learned]) + Send + 'static,
    ) {
        self.pipeline.acquire(ports, Box::new(tell));
    }

    /// What the ports have of addresses that they got by themselves, for a process that takes over ([`Config::held`]). To be
    /// called when the worker turns no more.
    pub fn held_addresses(&self) -> Vec<Held> {
        self.pipeline.held_addresses()
    }

    /// The same worker, which answers the questions that arrive at `desk`.
    #[must_use]
    pub fn with_desk(mut self, desk: Desk) -> Self {
        self.pipeline.set_desk(desk);
        self
    }

    /// The same worker, whose limits by source and source group are those of the node, counted together with the others.
    /// To be called before there are flows.
    #[must_use]
    pub fn with_tally(mut self, node: Arc<NodeTally>) -> Self {
        self.pipeline.count_with(node);
        self
    }

    /// One turn: at most [`BURST`] frames of each port and of the lane, and a small step of the
    /// timers. Returns how many frames were taken; 0 means idle.
    pub fn poll(&mut self, now: Now) -> usize {
        self.pipeline.counters().polls.inc();
        self.pipeline.begin(&self.published.load(), now);
        if now >= self.next_look {
            self.next_look = now + LOOK_AT_PORTS;
            for (port, counters) in self.ports.iter().zip(self.pipeline.counters().ports()) {
                counters.note(port.link(), &port.stats());
            }
            for (i, port) in self.ports.iter_mut().enumerate() {
                let id = PortId(i as u8);
                if port.refresh() {
                    let caps = port.capabilities();
                    self.pipeline.note_device(now, id, caps.mac, caps.mtu);
                }
                self.pipeline.note_link(now, id, port.link() == Link::Up);
            }
        }
        let mut taken = 0;
        for i in 0..self.ports.len() {
            taken += self.poll_port(now, PortId(i as u8));
        }
        if !self.held.is_empty() && now >= self.look_at_held {
            self.look_at_held = now + LOOK_AT_HELD;
            self.release_held(now);
        }
        taken += self.poll_peers(now);
        taken += self.poll_lane(now);
        self.pipeline.handle_timeout(now);
        self.pipeline.handle_questions(now);
        self.release_settled(now);
        self.send_originated();
        self.transmit();
        if let Some(peers) = &mut self.peers {
            peers.wake();
        }
        taken
    }

    /// Takes a burst from one port through all stages.
    fn poll_port(&mut self, now: Now, port: PortId) -> usize {
        let taken = self.ports[usize::from(port.0)].rx_burst(&mut self.rx, BURST);
        if taken == 0 {
            return 0;
        }
        self.pipeline.renew(&self.published.load(), now);
        let caps = self.pipeline.capabilities(port);
        let station = if caps.layer3 {
            Station::Any
        } else {
            Station::Mac(caps.mac)
        };

        // Parse all, and ask for the memory that each lookup will need.
        self.envelopes.clear();
        let has_overlay = self.pipeline.has_overlay();
        for (frame, known) in self.rx.iter_mut().zip(&mut self.known) {
            known.parsed = Parsed::EMPTY;
            let parsed = if has_overlay {
                let parsed = self.pipeline.parse_overlay(frame, station);
                let envelope = parsed.as_ref().ok().and_then(|(_, envelope)| *envelope);
                self.envelopes.push(envelope);
                parsed.map(|(p, _)| known.parsed = p)
            } else {
                let vlan = frame.meta().vlan;
                parse_into(&mut known.parsed, frame.bytes(), station, vlan)
                    .and_then(|()| known.parsed.admit(frame.meta(), 0))
            };
            known.refused = parsed.err();
            if known.refused.is_none() {
                if !has_overlay {
                    trim(frame, &known.parsed);
                }
                if known.parsed.content == Content::Flow {
                    known.lookup = self.pipeline.prefetch_bucket(&known.parsed);
                }
            }
        }
        let mut opens = false;
        for known in self.known.iter_mut().take(taken) {
            known.opening = match known.refused.is_none() && known.parsed.content == Content::Flow {
                true => self
                    .pipeline
                    .prefetch_flow(&known.parsed, &mut known.lookup),
                false => None,
            };
            opens |= known.opening.is_some();
        }
        if opens {
            for known in self.known.iter().take(taken) {
                if let Some(opening) = known.opening {
                    let key = &known.parsed.key;
                    self.pipeline.prefetch_opened(key, known.lookup, opening);
                }
            }
        }

        // Decide and rewrite, in order.
        let (mut rx, known) = (
            std::mem::take(&mut self.rx),
            std::mem::take(&mut self.known),
        );
        let is_plain = !has_overlay && self.peers.is_none() && !self.pipeline.is_watched();
        self.pipeline.let_hold(!has_overlay);
        for (i, (mut frame, known)) in rx.drain(..).zip(&known).enumerate() {
            if let Some(reason) = known.refused {
                self.pipeline.refuse(Some(port), reason, frame.bytes());
                continue;
            }
            let step = if is_plain {
                let (p, lookup) = (&known.parsed, known.lookup);
                self.pipeline.process(now, port, &mut frame, p, lookup)
            } else {
                match self.process_shared(now, port, i, &mut frame, known) {
                    Some(step) => step,
                    None => continue,
                }
            };
            match step {
                Step::Send(out) => self.tx[usize::from(out.0)].push(frame),
                Step::Hold => self.held.push_back((now + HOLD, port, frame)),
                step => self.settle(port, step, frame),
            }
        }
        self.pipeline.let_hold(false);
        (self.rx, self.known) = (rx, known);
        taken
    }

    /// Decides on frames that were held: those that are allowed by now, and those that have waited long enough.
    #[cold]
    fn release_held(&mut self, now: Now) {
        self.pipeline.renew(&self.published.load(), now);
        let news = self.pipeline.news();
        let has_news = std::mem::replace(&mut self.held_news, news) != news;
        for _ in 0..self.held.len() {
            let Some((until, port, mut frame)) = self.held.pop_front() else {
                return;
            };
            // It was parsed when it came.
            let Ok(p) = parse(frame.bytes(), Station::Any, frame.meta().vlan) else {
                continue;
            };
            if now < until && !(has_news && self.pipeline.is_allowed(&p)) {
                self.held.push_back((until, port, frame));
                continue;
            }
            self.pipeline.unhold(p.key.src);
            let lookup = self.pipeline.prefetch_bucket(&p);
            let step = self
                .pipeline
                .process_seen(now, port, &mut frame, &p, lookup);
            self.settle(port, step, frame);
        }
    }

    /// Decides on the frame at place `i` of a burst, which may be in a tunnel or another worker's; none if it is the latter.
    fn process_shared(
        &mut self,
        now: Now,
        port: PortId,
        i: usize,
        frame: &mut P::Packet,
        known: &Known,
    ) -> Option<Step> {
        let (p, lookup) = (&known.parsed, known.lookup);
        let envelope = self.envelopes.get(i).copied().flatten();
        if !self.is_mine(port, frame, p, envelope) {
            return None;
        }
        Some(match &envelope {
            None => self.pipeline.process_seen(now, port, frame, p, lookup),
            Some(envelope) => self
                .pipeline
                .process_overlay(now, frame, envelope, p, lookup),
        })
    }

    /// Whether a frame is for this worker. If not, its owner has it now, or it was dropped for want of room; what all are
    /// to know they have been told.
    fn is_mine(
        &mut self,
        port: PortId,
        frame: &P::Packet,
        p: &Parsed,
        envelope: Option<Envelope>,
    ) -> bool {
        let Some(peers) = &mut self.peers else {
            return true;
        };
        let (at, from, as_what) = match envelope {
            None => (0, port, As::Frame),
            Some(envelope) => {
                let from = PortId(envelope.way as u8);
                (usize::from(envelope.at), from, As::Inner(envelope))
            }
        };
        let owner = match self.pipeline.owner(from, &frame.bytes()[at..], p) {
            Owner::One(owner) if self.pipeline.steering().is_mine(owner) => return true,
            Owner::One(owner) => owner,
            Owner::Everyone => {
                peers.tell_all(port, frame, p);
                return true;
            }
        };
        let bytes = frame.bytes().len();
        if peers.hand_over(owner, port, frame, p, as_what) {
            self.pipeline.counters().handed_over.count(bytes);
        } else {
            self.pipeline
                .refuse(Some(port), DropReason::WorkerQueueFull, frame.bytes());
        }
        false
    }

    /// Sends a decided frame on its way.
    fn settle(&mut self, port: PortId, step: Step, frame: P::Packet) {
        match step {
            Step::Send(out) => self.tx[usize::from(out.0)].push(frame),
            Step::Await(out, id) => wait(&mut self.waiting, &mut self.pipeline, out, id, frame),
            Step::Lane => {
                if hand_over(&frame, self.lane.as_mut(), &mut self.lane_tx) {
                    self.pipeline.count_local(frame.bytes().len());
                } else {
                    self.pipeline
                        .refuse(Some(port), DropReason::LaneUnavailable, frame.bytes());
                }
            }
            Step::TurnFor(owner, out) => self.turn(owner, out, &frame),
            step => self.settle_whole(port, step),
        }
    }

    /// Hands a frame that has turned back to the worker of the client that it is for.
    #[cold]
    fn turn(&mut self, owner: u16, out: PortId, frame: &P::Packet) {
        let bytes = frame.bytes().len();
        let handed = parse(frame.bytes(), Station::Any, None)
            .ok()
            .zip(self.peers.as_mut())
            .is_some_and(|(p, peers)| peers.hand_over(owner, out, frame, &p, As::Turned));
        if handed {
            self.pipeline.counters().handed_over.count(bytes);
        } else {
            self.pipeline
                .refuse(Some(out), DropReason::WorkerQueueFull, frame.bytes());
        }
    }

    /// The same where what is to be sent is no frame, or has been sent.
    fn settle_whole(&mut self, port: PortId, step: Step) {
        match step {
            Step::Whole => {
                let whole = self.pipeline.whole();
                let handed = hand_over(whole, self.lane.as_mut(), &mut self.lane_tx);
                self.pipeline.count_lane_whole(port, handed);
            }
            Step::WholeFor(owner) => {
                let whole = self.pipeline.whole();
                let as_what = As::Whole {
                    head: whole.head,
                    cuts: whole.cuts.clone(),
                    around: whole.around.clone(),
                    turned: whole.turned,
                };
                let bytes = whole.bytes.len();
                let peers = self.peers.as_mut();
                let handed = parse(&whole.bytes, Station::Any, None)
                    .ok()
                    .zip(peers)
                    .is_some_and(|(p, peers)| peers.hand_over(owner, port, whole, &p, as_what));
                if handed {
                    self.pipeline.counters().handed_over.count(bytes);
                } else {
                    self.pipeline
                        .refuse_whole(port, DropReason::WorkerQueueFull);
                }
            }
            _ => {}
        }
    }

    /// Takes what other workers have received for this one.
    fn poll_peers(&mut self, now: Now) -> usize {
        let Some(peers) = &mut self.peers else {
            return 0;
        };
        let mut handed = std::mem::take(&mut self.handed);
        peers.take(BURST, &mut handed);
        let taken = handed.len();
        if taken > 0 {
            self.pipeline.renew(&self.published.load(), now);
        }
        for (_, handed) in &handed {
            self.pipeline.prefetch_bucket(&handed.parsed);
        }
        for (from, mut handed) in handed.drain(..) {
            self.process_handed(now, &mut handed);
            if let Some(peers) = &mut self.peers {
                peers.give_back(from, handed.bytes);
            }
        }
        self.handed = handed;
        taken
    }

    fn process_handed(&mut self, now: Now, handed: &mut Handed) {
        let (port, mut p) = (handed.port, handed.parsed);
        let envelope = match &mut handed.as_what {
            As::Frame | As::Turned => None,
            As::Inner(envelope) => Some(*envelope),
            As::Copy => return self.pipeline.learn_from(now, port, &handed.bytes, &p),
            As::Whole {
                head,
                cuts,
                around,
                turned,
            } => {
                let whole = Whole {
                    bytes: std::mem::take(&mut handed.bytes),
                    meta: handed.meta,
                    head: *head,
                    cuts: std::mem::take(cuts),
                    around: around.take(),
                    turned: *turned,
                };
                let step = self.pipeline.process_whole(now, port, whole);
                return self.settle_whole(port, step);
            }
        };
        let bytes = &handed.bytes;
        if let Some(envelope) = &envelope {
            match self.pipeline.network(envelope) {
                Ok(number) => p.key.tunnel = number,
                Err(reason) => return self.pipeline.refuse(Some(port), reason, bytes),
            }
        }
        let Some(mut frame) = self.ports[usize::from(port.0)].alloc(bytes.len()) else {
            return self
                .pipeline
                .refuse(Some(port), DropReason::WorkerQueueFull, bytes);
        };
        frame.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        *frame.meta_mut() = handed.meta;
        let lookup = self.pipeline.prefetch_bucket(&p);
        let step = match &envelope {
            None if handed.as_what == As::Turned => {
                self.pipeline.process_turned(now, port, &mut frame, &p)
            }
            None => {
                self.pipeline.let_hold(!self.pipeline.has_overlay());
                let step = self
                    .pipeline
                    .process_seen(now, port, &mut frame, &p, lookup);
                self.pipeline.let_hold(false);
                step
            }
            Some(envelope) => self
                .pipeline
                .process_overlay(now, &mut frame, envelope, &p, lookup),
        };
        match step {
            Step::Hold => self.held.push_back((now + HOLD, port, frame)),
            step => self.settle(port, step, frame),
        }
    }

    /// Takes a burst from the host.
    fn poll_lane(&mut self, now: Now) -> usize {
        let Some(lane) = &mut self.lane else { return 0 };
        let taken = lane.rx_burst(&mut self.lane_rx, BURST);
        for mut frame in self.lane_rx.drain(..) {
            let p = match parse(frame.bytes(), Station::Any, None) {
                Ok(p) if p.content == Content::Flow => p,
                // The host's own neighbour discovery and errors stay with the host.
                Ok(_) => {
                    self.pipeline
                        .refuse(None, DropReason::LaneSource, frame.bytes());
                    continue;
                }
                Err(reason) => {
                    self.pipeline.refuse(None, reason, frame.bytes());
                    continue;
                }
            };
            trim(&mut frame, &p);
            let step = self.pipeline.process_lane(now, &mut frame, &p);
            let (Step::Send(out) | Step::Await(out, _)) = step else {
                continue;
            };
            let Some(copy) = copy(frame.bytes(), &frame, &mut self.ports[usize::from(out.0)])
            else {
                self.pipeline.counters().no_buffer.inc();
                continue;
            };
            match step {
                Step::Await(_, id) => wait(&mut self.waiting, &mut self.pipeline, out, id, copy),
                _ => self.tx[usize::from(out.0)].push(copy),
            }
        }
        taken
    }

    /// Sends what waited for a next hop that has answered, and drops what waited in vain.
    fn release_settled(&mut self, now: Now) {
        if self.pipeline.settled().is_empty() {
            return;
        }
        let mut settled = std::mem::take(self.pipeline.settled());
        // Of what was settled twice in this turn, the last counts.
        settled.sort_by_key(|(id, _)| *id);
        for _ in 0..self.waiting.len() {
            let Some(mut waiting) = self.waiting.pop_front() else {
                break;
            };
            let after = settled.partition_point(|(id, _)| *id <= waiting.id);
            let found = after.checked_sub(1).map(|at| settled[at]);
            let Some((id, known)) = found.filter(|(id, _)| *id == waiting.id) else {
                self.waiting.push_back(waiting);
                continue;
            };
            let frame = &mut waiting.frame;
            if known && self.pipeline.address(id, frame.bytes_mut()) {
                if let Some(uncounted) = waiting.uncounted {
                    let bytes = frame.bytes().len();
                    self.pipeline.count_sent(uncounted, bytes);
                }
                self.tx[usize::from(waiting.port.0)].push(waiting.frame);
            } else if waiting.uncounted.is_some() {
                self.pipeline.refuse_unreachable(now, frame);
            } else {
                self.pipeline.counters().no_buffer.inc();
            }
        }
        settled.clear();
        *self.pipeline.settled() = settled;
    }

    /// Copies what the engine originated into buffers of the ports.
    fn send_originated(&mut self) {
        if self.pipeline.outbox().is_empty() {
            return;
        }
        let mut no_buffer = 0;
        let waited = self.waiting.len();
        for originated in self.pipeline.outbox().frames() {
            let (i, bytes) = (usize::from(originated.port.0), originated.bytes);
            if originated.port == LANE {
                let lane = self.lane.as_mut();
                match lane.and_then(|lane| lane.alloc(bytes.len())) {
                    Some(mut frame) => {
                        frame.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
                        self.lane_tx.push(frame);
                    }
                    None => no_buffer += 1,
                }
                continue;
            }
            let Some(mut frame) = self.ports[i].alloc(bytes.len()) else {
                no_buffer += 1;
                continue;
            };
            frame.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            match originated.waits_for {
                None => self.tx[i].push(frame),
                Some(id) if self.waiting.len() < MAX_WAITING => {
                    self.waiting.push_back(Waiting {
                        port: originated.port,
                        id,
                        frame,
                        uncounted: None,
                    });
                }
                Some(_) => no_buffer += 1,
            }
        }
        // In this turn their next hops may have answered, or have been given up.
        for mut waiting in self.waiting.split_off(waited) {
            if self.pipeline.address(waiting.id, waiting.frame.bytes_mut()) {
                self.tx[usize::from(waiting.port.0)].push(waiting.frame);
            } else if self.pipeline.is_neighbor(waiting.id) {
                self.waiting.push_back(waiting);
            } else {
                no_buffer += 1;
            }
        }
        let refused = self.pipeline.outbox().clear();
        self.pipeline.counters().no_buffer.add(no_buffer + refused);
    }

    fn transmit(&mut self) {
        for (port, burst) in self.ports.iter_mut().zip(&mut self.tx) {
            if !burst.is_empty() {
                port.tx_burst(burst);
                burst.clear();
            }
        }
        if let Some(lane) = &mut self.lane
            && !self.lane_tx.is_empty()
        {
            let frames = self.lane_tx.len();
            let taken = lane.tx_burst(&mut self.lane_tx);
            self.lane_tx.clear();
            let lost = (frames - taken) as u64;
            self.pipeline.counters().lane_lost.add(lost);
        }
    }

    /// When [`poll`](Self::poll) is due next although no frame has come; none if never.
    pub fn next_deadline(&self, now: Now) -> Option<Now> {
        let held = (!self.held.is_empty()).then(|| now + LOOK_AT_HELD);
        let all = [self.pipeline.next_deadline(now), held];
        all.into_iter().flatten().min()
    }

    /// Hands every flow as it is at `now` to `sink`, in chunks of a few MiB that can be read apart: see
    /// [`FLOWS_VERSION`](crate::FLOWS_VERSION). To be called when the worker turns no more.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn export_flows(
        &self,
        now: Now,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pipeline.export_flows(now, sink)
    }

    /// Takes over the flows of a chunk that was exported `elapsed` ago, by this number of workers or another. To be
    /// called before the first turn. Each is judged by the policy in force when its next packet comes.
    ///
    /// # Errors
    /// The chunk is none; nothing of it was taken.
    pub fn import_flows(
        &mut self,
        now: Now,
        elapsed: Duration,
        chunk: &[u8],
    ) -> Result<Imported, MalformedFlows> {
        self.pipeline.begin(&self.published.load(), now);
        self.pipeline.import_flows(now, elapsed, chunk)
    }

    /// What this worker counts.
    pub fn counters(&self) -> &WorkerCounters {
        self.pipeline.counters()
    }

    /// The ports, for their counters and link state.
    pub fn ports(&self) -> &[P] {
        &self.ports
    }

    /// The same, to feed and inspect them in tests.
    pub fn ports_mut(&mut self) -> &mut [P] {
        &mut self.ports
    }

    /// The host lane.
    pub fn lane_mut(&mut self) -> Option<&mut L> {
        self.lane.as_mut()
    }

    /// Runs until `stop` is set. Busy while frames come; after some empty turns it sleeps until a
    /// port has a frame or a timer is due. Ports without a descriptor are polled every
    /// millisecond then.
    pub fn run(&mut self, mut idle: impl Idle, mut clock: impl FnMut() -> Now, stop: &AtomicBool) {
        let ports = self.ports.iter().map(Port::wait_fd);
        let fds: Option<Vec<i32>> = ports.chain(self.lane.iter().map(Port::wait_fd)).collect();
        let mut awake_until = Now::default();
        let mut armed = false;
        let mut slept = None;
        while !stop.load(Ordering::Relaxed) {
            let now = clock();
            if self.poll(now) > 0 || self.pipeline.is_asked() {
                awake_until = now + SPIN;
                armed = false;
                if slept.is_some_and(|slept| now >= slept + STEADY) {
                    slept = None;
                    idle.stays_awake();
                }
                continue;
            }
            if now < awake_until {
                std::hint::spin_loop();
                continue;
            }
            if !armed {
                // What comes from now on ends the sleep; what came before is found by the turn in between.
                self.ports.iter_mut().for_each(Port::arm);
                armed = true;
                continue;
            }
            armed = false;
            let due = self
                .next_deadline(now)
                .map_or(MAX_SLEEP, |d| now.until(d))
                .min(MAX_SLEEP);
            if self
                .peers
                .as_ref()
                .is_some_and(|peers| !peers.fall_asleep())
            {
                continue;
            }
            match &fds {
                Some(fds) => idle.wait(fds, due),
                None => idle.wait(&[], due.min(Duration::from_millis(1))),
            }
            slept = Some(clock());
            if let Some(peers) = &self.peers {
                peers.wake_up();
            }
        }
    }
}

/// Cuts off what Ethernet padded a short packet with.
fn trim<K: Packet>(frame: &mut K, p: &Parsed) {
    if frame.bytes().len() > p.end as usize {
        // A frame that cannot be cut is sent with its padding, which is harmless.
        let _ = frame.set_len(p.end as usize);
    }
}

/// Queues the frame that was decided on last until its next hop is known.
fn wait<K: Packet>(
    waiting: &mut VecDeque<Waiting<K>>,
    pipeline: &mut Pipeline,
    port: PortId,
    id: NeighborId,
    frame: K,
) {
    let same = waiting.iter().filter(|other| other.id == id).count();
    if waiting.len() >= MAX_WAITING || same >= MAX_WAITING_PER_NEIGHBOR {
        pipeline.refuse(None, DropReason::NeighborQueueFull, frame.bytes());
    } else {
        waiting.push_back(Waiting {
            port,
            id,
            frame,
            uncounted: Some(pipeline.uncounted()),
        });
    }
}

/// Copies a frame and its metadata into a buffer of another port.
fn copy<T: Port>(bytes: &[u8], from: &impl Packet, to: &mut T) -> Option<T::Packet> {
    let mut copy = to.alloc(bytes.len())?;
    copy.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    *copy.meta_mut() = *from.meta();
    Some(copy)
}

/// Hands a frame to the host. False if the lane is not there, has no buffer, or cannot take a
/// super-packet.
fn hand_over<L: Port>(frame: &impl Packet, lane: Option<&mut L>, tx: &mut Vec<L::Packet>) -> bool {
    let Some(lane) = lane else { return false };
    let caps = lane.capabilities();
    let able = match frame.meta().gso.map(|gso| gso.kind) {
        None => true,
        Some(GsoKind::Tcp4 | GsoKind::Tcp6) => caps.tx_gso_tcp,
        Some(GsoKind::Udp) => caps.tx_gso_udp,
    };
    let completes = caps.tx_checksum;
    if !able {
        return false;
    }
    let Some(mut copy) = copy(frame.bytes(), frame, lane) else {
        return false;
    };
    if !completes {
        let mut meta = *copy.meta();
        if !rewrite::complete_checksum(copy.bytes_mut(), &mut meta) {
            return false;
        }
        *copy.meta_mut() = meta;
    }
    copy.bytes_mut()[..ethernet::LEN - 2].fill(0);
    tx.push(copy);
    true
}
