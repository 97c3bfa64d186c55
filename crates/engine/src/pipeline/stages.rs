//! The stages that packets of established flows go through, one by one, for their benches alone:
//! `cargo bench -p engine --features stages`.

use std::io;
use std::sync::Arc;

use super::{Pipeline, Step, facts};
use crate::clock::Now;
use crate::flow::Lookup;
use crate::parse::{Parsed, Station, parse_into};
use crate::port::memory::MemoryPacket;
use crate::port::{Capabilities, Packet as _, PortId};
use crate::rewrite::{self, Translation, Which};
use crate::tcp::{Connection, End};
use crate::wire::tcp::{ACK, SYN, Segment};
use crate::{Snapshot, WorkerConfig, WorkerCounters};

/// Where the TTL is in a frame over IPv4, and the hop limit in one over IPv6.
const TTL: [usize; 2] = [22, 21];

/// The engine of one worker, and packets of flows that it knows.
#[derive(Debug)]
pub struct Stages {
    pipeline: Pipeline,
    /// The packets as they come from inside.
    frames: Vec<MemoryPacket>,
    known: Vec<(Parsed, Lookup)>,
    /// Copies that are rewritten.
    scratch: Vec<MemoryPacket>,
}

impl Stages {
    /// Has flows opened for these frames, which come from the first port. The ports are of layer 3, so that no neighbour
    /// has to be known.
    ///
    /// # Errors
    /// When the system refuses the address space, or one of the frames is not forwarded.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        ports: Vec<Capabilities>,
        frames: Vec<Vec<u8>>,
    ) -> io::Result<Stages> {
        let config = WorkerConfig {
            index: 0,
            count: 1,
            peers: None,
            seed: 1,
            flow_capacity: frames.len() as u32,
            events: None,
        };
        let counters = Arc::new(WorkerCounters::default());
        let mut pipeline = Pipeline::new(Arc::clone(snapshot), ports, config, counters)?;
        pipeline.begin(snapshot, Now(0));
        let frames: Vec<MemoryPacket> = frames.into_iter().map(MemoryPacket::new).collect();
        let mut stages = Stages {
            pipeline,
            known: vec![(Parsed::EMPTY, Lookup::NONE); frames.len()],
            scratch: frames.clone(),
            frames,
        };
        stages.parse();
        stages.hash();
        match stages.process() == stages.frames.len() {
            true => Ok(stages),
            false => Err(io::Error::other("not all frames were forwarded")),
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

    /// Judges all by the policy, as if each opened its flow; returns how many are allowed.
    pub fn judge(&self) -> usize {
        let policy = self.pipeline.snapshot.policy();
        let allowed = |(p, _): &&(Parsed, Lookup)| policy.evaluate(&facts(&p.key, p.icmp)).allow;
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

    /// Copies all frames and takes them through everything; returns how many are sent on.
    pub fn process(&mut self) -> usize {
        self.copy();
        let mut sent = 0;
        for (frame, (p, lookup)) in self.scratch.iter_mut().zip(&self.known) {
            let step = self.pipeline.process(Now(0), PortId(0), frame, p, *lookup);
            sent += usize::from(matches!(step, Step::Send(_)));
        }
        sent
    }
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
