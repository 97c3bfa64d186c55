//! The stages that packets go through, one by one, for their benches alone: `cargo bench -p engine --features stages`.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Pipeline, Step, facts};
use crate::clock::Now;
use crate::flow::Lookup;
use crate::overlay::{Envelope, Overlay};
use crate::parse::{Parsed, Station, parse_into};
use crate::port::memory::MemoryPacket;
use crate::port::{Capabilities, Packet as _, PortId};
use crate::rewrite::{self, Translation, Which};
use crate::tcp::{Connection, End};
use crate::wire::tcp::{ACK, SYN, Segment};
use crate::{Snapshot, WorkerConfig, WorkerCounters};

/// Where the TTL is in a frame over IPv4, and the hop limit in one over IPv6.
const TTL: [usize; 2] = [22, 21];
/// The station of whoever is known on a link.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Far more flows than a burst has packets: of the last ones of a table no source gets all.
const FLOWS: u32 = 1024;
/// More than a slot of the wheel holds.
const MOMENT: Duration = Duration::from_secs(1);

/// The engine of one worker, and packets of flows that it knows.
#[derive(Debug)]
pub struct Stages {
    pipeline: Pipeline,
    /// The packets as they come from inside.
    frames: Vec<MemoryPacket>,
    known: Vec<(Parsed, Lookup)>,
    /// Copies that are rewritten.
    scratch: Vec<MemoryPacket>,
    /// Who is known on the second port's link.
    neighbors: Vec<IpAddr>,
    now: Now,
}

impl Stages {
    /// Has UDP flows opened for these frames, which come from the first port and go to the second, on whose link these
    /// `neighbors` are known; ports of layer 3 need none.
    ///
    /// # Errors
    /// When the system refuses the address space, or one of the frames is not forwarded.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        ports: Vec<Capabilities>,
        neighbors: &[IpAddr],
        frames: Vec<Vec<u8>>,
    ) -> io::Result<Stages> {
        let frames: Vec<MemoryPacket> = frames.into_iter().map(MemoryPacket::new).collect();
        let mut stages = Stages {
            pipeline: pipeline(snapshot, ports)?,
            known: vec![(Parsed::EMPTY, Lookup::NONE); frames.len()],
            scratch: frames.clone(),
            frames,
            neighbors: neighbors.to_vec(),
            now: Now(0),
        };
        stages.hear_neighbors();
        stages.parse();
        stages.hash();
        match [stages.process(), stages.find()] == [stages.frames.len(); 2] {
            true => Ok(stages),
            false => Err(io::Error::other("not all frames were forwarded")),
        }
    }

    /// The neighbours say who they are, so that nobody has to ask them for a while.
    fn hear_neighbors(&mut self) {
        for neighbor in &self.neighbors {
            let (known, address) = (&mut self.pipeline.neighbors, (*neighbor).into());
            known.learn(PortId(1), address, STATION, self.now, true, true);
        }
    }

    /// Parses all; returns how many are sound.
    pub fn parse(&mut self) -> usize {
        let mut sound = 0;
        for (frame, (p, _)) in self.frames.iter().zip(&mut self.known) {
            *p = Parsed::EMPTY;
            sound += usize::from(parse_into(p, frame.bytes(), Station::Any, None).is_ok());
        }
        sound
    }

    /// Hashes all keys, and asks for the lines of the index.
    pub fn hash(&mut self) {
        for (p, lookup) in &mut self.known {
            *lookup = self.pipeline.prefetch_bucket(p);
        }
    }

    /// Asks for the flows that the index leads to.
    pub fn prefetch(&mut self) {
        for (p, lookup) in &mut self.known {
            self.pipeline.prefetch_flow(p, lookup);
        }
    }

    /// Looks all flows up; returns how many there are.
    pub fn find(&self) -> usize {
        let flows = &self.pipeline.flows;
        let found = |(p, lookup): &&(Parsed, Lookup)| flows.find(&p.key, *lookup).is_some();
        self.known.iter().filter(found).count()
    }

    /// Judges all by the policy and by what names have led to, as if each opened its flow; returns how many are allowed.
    pub fn judge(&self) -> usize {
        let (grants, policy) = (&self.pipeline.grants, self.pipeline.snapshot.policy());
        let judge = |p: &Parsed| grants.judge(policy, &facts(&p.key, p.icmp)).0;
        let allowed = |(p, _): &&(Parsed, Lookup)| judge(p).allow;
        self.known.iter().filter(allowed).count()
    }

    /// Rewrites source address, port and TTL of all.
    pub fn rewrite(&mut self) {
        for (frame, (p, _)) in self.scratch.iter_mut().zip(&self.known) {
            let meta = *frame.meta();
            let bytes = frame.bytes_mut();
            bytes[TTL[usize::from(!p.is_v4())]] = 64;
            let translation = Translation {
                which: Which::Source,
                address: p.key.dst,
                port: 4_000,
            };
            rewrite::translate_and_decrement(bytes, &meta, p, translation);
        }
    }

    /// Copies all frames, which [`process`](Self::process) does too.
    pub fn copy(&mut self) {
        self.scratch.clone_from(&self.frames);
    }

    /// Copies all frames and takes them through everything, which opens the flows that are not there; returns how many are
    /// sent on.
    pub fn process(&mut self) -> usize {
        self.copy();
        let mut sent = 0;
        for (frame, (p, lookup)) in self.scratch.iter_mut().zip(&self.known) {
            let step = (self.pipeline).process(self.now, PortId(0), frame, p, *lookup);
            sent += usize::from(matches!(step, Step::Send(_)));
        }
        sent
    }

    /// Lets time pass until all flows are about to expire.
    pub fn fall_idle(&mut self) {
        let idle = self.pipeline.snapshot.settings().timeouts.udp;
        self.now = self.now + idle.saturating_sub(MOMENT);
        self.hear_neighbors();
        self.pipeline.handle_timeout(self.now);
        while self.pipeline.expires_on {
            self.pipeline.handle_timeout(self.now);
        }
    }

    /// Has the timing wheel turn on by the slots in which they all expire; returns how many are left.
    pub fn expire(&mut self) -> u32 {
        self.now = self.now + 2 * MOMENT;
        self.pipeline.handle_timeout(self.now);
        while self.pipeline.expires_on {
            self.pipeline.handle_timeout(self.now);
        }
        self.pipeline.flows.active()
    }
}

/// The engine of one worker, and packets in a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    pipeline: Pipeline,
    overlay: Overlay,
    /// The packets as they come.
    frames: Vec<MemoryPacket>,
    /// Copies that are opened and closed.
    scratch: Vec<MemoryPacket>,
    envelopes: Vec<Envelope>,
}

impl Tunnel {
    /// Takes all these frames out of the tunnel that the snapshot has.
    ///
    /// # Errors
    /// When the system refuses the address space, the snapshot has no tunnel, or one of the frames is not in it.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        port: Capabilities,
        frames: Vec<Vec<u8>>,
    ) -> io::Result<Tunnel> {
        let overlay = snapshot.settings().overlay;
        let frames: Vec<MemoryPacket> = frames.into_iter().map(MemoryPacket::new).collect();
        let mut tunnel = Tunnel {
            pipeline: pipeline(snapshot, vec![port])?,
            overlay: overlay.ok_or_else(|| io::Error::other("there is no tunnel"))?,
            scratch: frames.clone(),
            envelopes: Vec::with_capacity(frames.len()),
            frames,
        };
        match tunnel.decapsulate() == tunnel.frames.len() {
            true => Ok(tunnel),
            false => Err(io::Error::other("not all frames are in the tunnel")),
        }
    }

    /// Copies all frames, which [`decapsulate`](Self::decapsulate) does too.
    pub fn copy(&mut self) {
        self.scratch.clone_from(&self.frames);
    }

    /// Copies all frames, reads what is around them and parses what is inside; returns how many are in the tunnel.
    pub fn decapsulate(&mut self) -> usize {
        self.copy();
        self.envelopes.clear();
        for frame in &mut self.scratch {
            let parsed = self.pipeline.parse_overlay(frame, Station::Any);
            self.envelopes
                .extend(parsed.ok().and_then(|(_, envelope)| envelope));
        }
        self.envelopes.len()
    }

    /// Puts the way back around all that was taken out.
    pub fn encapsulate(&mut self) {
        let outbox = &mut self.pipeline.outbox;
        for (frame, envelope) in self.scratch.iter_mut().zip(&self.envelopes) {
            outbox.wrap(frame.bytes(), envelope, &self.overlay);
            outbox.wrapping().seal(frame.bytes_mut(), true, false);
            outbox.unwrap(PortId(0));
        }
    }
}

/// The engine of a worker that is alone.
fn pipeline(snapshot: &Arc<Snapshot>, ports: Vec<Capabilities>) -> io::Result<Pipeline> {
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed: 1,
        flow_capacity: FLOWS,
        events: None,
    };
    let counters = Arc::new(WorkerCounters::default());
    let mut pipeline = Pipeline::new(Arc::clone(snapshot), ports, config, counters)?;
    pipeline.begin(snapshot, Now(0));
    Ok(pipeline)
}

/// Takes `segments` segments in order, with data and acknowledged, into the state of a connection; returns how many fit
/// its windows.
pub fn track(segments: u32) -> u32 {
    let segment = |flags, seq, ack, len| Segment {
        src_port: 1,
        dst_port: 2,
        seq,
        ack,
        flags,
        window: 65_535,
        len,
        scale: None,
    };
    let mut connection = Connection::open(&segment(SYN, 0, 0, 0));
    let mut fits = 0;
    let mut take = |from, s| fits += u32::from(connection.advance(from, &s, true).is_ok());
    take(End::Server, segment(SYN | ACK, 0, 1, 0));
    for i in 0..segments / 2 {
        let seq = 1 + i.wrapping_mul(1_000);
        take(End::Client, segment(ACK, seq, 1, 1_000));
        take(End::Server, segment(ACK, 1, seq.wrapping_add(1_000), 0));
    }
    fits
}
