//! Time per packet through the whole worker: established UDP flows with SNAT, over a port that
//! costs next to nothing. `cargo bench -p engine`; for people, not for a verdict.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![expect(clippy::print_stdout, reason = "its output is what it is run for")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use engine::port::{Capabilities, Link, Meta, Packet, Port, PortStats};
use engine::snapshot::{PortSettings, Settings};
use engine::{Imported, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use policy::{Compiled, Document};
use sim::frame::Frame;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// Bytes of a frame in this measurement.
const LEN: usize = 60;

struct Buffer {
    bytes: [u8; 128],
    len: usize,
    meta: Meta,
}

/// A buffer as a backend has them: the frames move, their bytes do not.
struct Pooled(Box<Buffer>);

impl Packet for Pooled {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes[..self.0.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0.bytes[..self.0.len]
    }
    fn set_len(&mut self, len: usize) -> bool {
        self.0.len = len.min(128);
        len <= 128
    }
    fn meta(&self) -> &Meta {
        &self.0.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.0.meta
    }
}

/// Delivers prepared frames round and round, and takes sent buffers back into the common pool.
struct Loop {
    /// Frames of [`LEN`] bytes, one behind the other.
    frames: Vec<u8>,
    next: usize,
    pool: Rc<RefCell<Vec<Pooled>>>,
    sent: u64,
    capabilities: Capabilities,
}

impl Loop {
    fn new(mac: [u8; 6], pool: &Rc<RefCell<Vec<Pooled>>>) -> Loop {
        let capabilities = Capabilities {
            mtu: 1500,
            tx_checksum: true,
            tx_gso_tcp: true,
            tx_gso_udp: true,
            mac,
            layer3: false,
        };
        Loop {
            frames: Vec::new(),
            next: 0,
            pool: Rc::clone(pool),
            sent: 0,
            capabilities,
        }
    }
}

impl Port for Loop {
    type Packet = Pooled;
    fn rx_burst(&mut self, burst: &mut Vec<Pooled>, max: usize) -> usize {
        if self.frames.is_empty() {
            return 0;
        }
        for _ in 0..max {
            let mut buffer = self.alloc(LEN).expect("the pool grows");
            buffer.0.bytes[..LEN].copy_from_slice(&self.frames[self.next..][..LEN]);
            burst.push(buffer);
            self.next = if self.next + LEN == self.frames.len() {
                0
            } else {
                self.next + LEN
            };
        }
        max
    }
    fn tx_burst(&mut self, burst: &mut Vec<Pooled>) -> usize {
        self.sent += burst.len() as u64;
        let n = burst.len();
        self.pool.borrow_mut().append(burst);
        n
    }
    fn alloc(&mut self, len: usize) -> Option<Pooled> {
        let empty = || {
            Pooled(Box::new(Buffer {
                bytes: [0; 128],
                len: 0,
                meta: Meta::default(),
            }))
        };
        let mut buffer = self.pool.borrow_mut().pop().unwrap_or_else(empty);
        buffer.0.len = len;
        buffer.0.meta = Meta::default();
        Some(buffer)
    }
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn link(&self) -> Link {
        Link::Up
    }
    fn stats(&self) -> PortStats {
        PortStats::default()
    }
    fn wait_fd(&self) -> Option<i32> {
        None
    }
}

fn measure(flows: u32) {
    let policy = r#"{"default_policy":"allow","source_groups":[]}"#;
    let document = Document::parse_json(policy.as_bytes()).expect("a valid policy");
    let compiled = Arc::new(Compiled::compile(&document, 1).expect("a policy that compiles"));
    let net = |s: &str| s.parse().expect("a prefix");
    let settings = Settings {
        ports: vec![
            PortSettings {
                addresses: vec![net("10.0.0.1/8")],
                ..PortSettings::default()
            },
            PortSettings {
                addresses: vec![net("192.0.2.1/24")],
                ..PortSettings::default()
            },
        ],
        ..Settings::default()
    };
    let snapshot = Snapshot::new(1, compiled, settings).expect("settings that work");
    let published = Arc::new(ArcSwap::from_pointee(snapshot));
    let counters = Arc::new(WorkerCounters::default());
    let make = |seed| -> Worker<Loop, Loop> {
        let config = WorkerConfig {
            index: 0,
            count: 1,
            peers: None,
            seed,
            flow_capacity: flows.max(1024),
            events: None,
        };
        let pool = Rc::default();
        let ports = vec![Loop::new(MACS[0], &pool), Loop::new(MACS[1], &pool)];
        let published = Arc::clone(&published);
        Worker::new(ports, None, published, config, Arc::clone(&counters))
            .expect("memory for the table")
    };
    let mut worker = make(42);

    // The server's answer to our question for it, in ARP.
    let mut arp = [&MACS[1][..], &PEER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &PEER].concat();
    arp.extend([192, 0, 2, 9]);
    arp.extend(MACS[1]);
    arp.extend([192, 0, 2, 1]);
    arp.resize(60, 0);

    // Clients in a shuffled order, so that each packet meets a cold flow.
    let mut frames: Vec<Vec<u8>> = (0..flows)
        .map(|i| {
            let client = std::net::Ipv4Addr::from(0x0a01_0000 + i / 16);
            let src = (client, 2000 + (i % 16) as u16).into();
            let dst = ([192, 0, 2, 9], 1000 + (i / 16 % 32_000) as u16).into();
            Frame::udp(src, dst, &[0; 18]).between(PEER, MACS[0]).emit()
        })
        .collect();
    let mut random = 1u64;
    for i in (1..frames.len()).rev() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        frames.swap(i, (random >> 33) as usize % (i + 1));
    }

    let start = Instant::now();
    let now = || Now(1 + start.elapsed().as_nanos() as u64);
    worker.poll(now());
    worker.ports_mut()[0].frames = frames.concat();
    worker.poll(now());
    worker.ports_mut()[1].frames = arp;
    worker.poll(now());
    worker.ports_mut()[1].frames.clear();
    // Open every flow.
    let opening = Instant::now();
    let mut opened = 0u64;
    while opened < u64::from(flows) {
        opened += worker.poll(now()) as u64;
    }
    let open_ns = opening.elapsed().as_nanos() as f64 / opened as f64;

    let rounds = 8_000_000u64.max(u64::from(flows) * 2);
    let before = worker.ports()[1].sent;
    let timed = Instant::now();
    let mut taken = 0;
    while taken < rounds {
        taken += worker.poll(now()) as u64;
    }
    let ns = timed.elapsed().as_nanos() as f64 / taken as f64;
    let forwarded = worker.ports()[1].sent - before;
    println!(
        "{flows:>9} flows  {ns:6.1} ns/packet  (first packets {open_ns:.0} ns, forwarded {forwarded} of {taken}, active {})",
        counters.flows_active.get()
    );

    let timed = Instant::now();
    let mut chunks = Vec::new();
    let exported = worker.export_flows(now(), |chunk| {
        chunks.push(chunk.to_vec());
        Ok(())
    });
    exported.expect("memory for the flows");
    let export = timed.elapsed();
    let mut next = make(43);
    let timed = Instant::now();
    let mut handed = Imported::default();
    for chunk in &chunks {
        let imported = next.import_flows(now(), Duration::ZERO, chunk);
        handed += imported.expect("just exported");
    }
    println!(
        "{flows:>9} flows handed over: export {export:.1?}, import {:.1?}, taken {}",
        timed.elapsed(),
        handed.taken
    );
}

fn main() {
    for flows in [1, 1_000, 100_000, 1_000_000] {
        measure(flows);
    }
}
