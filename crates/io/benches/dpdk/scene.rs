//! Workers between clients and one server, on queues of DPDK's devices, and the clients' frames.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use engine::counters::{Direction, Protocol};
use engine::mesh::{Peers, mesh};
use engine::port::Port;
use engine::snapshot::{PortSettings, Settings};
use engine::steer::Steering;
use engine::{BURST, DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use io::dpdk::{DeviceConfig, DpdkPort, Eal, EalConfig, Queue, Selector};
use io::memory::MemoryPort;
use policy::{Compiled, Document};

use crate::filled::Filled;
use crate::frame::{LEN, udp};

/// Flows in all.
const FLOWS: u32 = 1 << 16;
/// Flows that a node can hold by default, over all workers.
const CAPACITY: u32 = 1 << 20;
const SEED: u64 = 42;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// What every packet leaves with.
const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const SERVER: [u8; 4] = [192, 0, 2, 9];
const POLICY: &str = r#"{"default_policy":"deny","source_groups":[{"id":"clients","mode":"enforce",
    "sources":{"cidrs":["10.0.0.0/8"]},
    "rules":[{"id":"web","action":"allow","match":{"dst_cidrs":["192.0.2.9/32"]}}]}]}"#;

/// What a thread does with what it receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loop {
    /// A worker of the engine.
    Engine,
    /// It is sent as it is.
    Bare,
}

/// Million packets in a second of each worker's processor time, over all workers.
pub(crate) fn measure(what: Loop, workers: usize, length: Duration) -> Result<f64> {
    let eal = Eal::start(&EalConfig {
        memory_mib: 256,
        ..EalConfig::default()
    })?;
    let open = |vdev: &str, mac| -> Result<Vec<Queue>> {
        let config = DeviceConfig {
            queues: workers as u16,
            mac: Some(mac),
            ..DeviceConfig::default()
        };
        let located = Selector::Vdev(vdev.to_owned()).locate()?;
        Ok(Queue::open(eal, &located, &config)?)
    };
    let inside = open(&format!("net_null0,size={LEN}"), MACS[0])?;
    let outside = open("net_null1,no-rx=1", MACS[1])?;
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()?));
    let barrier = Arc::new(Barrier::new(workers));
    // They never sleep here.
    let mut peers = mesh((0..workers).map(|_| Box::new(|| ()) as _).collect()).into_iter();
    let frames = frames(&snapshot.load(), workers as u16);
    let start = |(index, ((inside, outside), frames))| -> JoinHandle<Result<f64>> {
        let seat = Seat {
            index,
            peers: peers.next().filter(|_| workers > 1),
            workers,
            snapshot: Arc::clone(&snapshot),
            barrier: Arc::clone(&barrier),
        };
        std::thread::spawn(move || {
            pin(index)?;
            let ports = [inside, outside].map(|queue| Filled::new(DpdkPort::new(queue)));
            match what {
                Loop::Engine => seat.forward(ports, frames, length),
                Loop::Bare => seat.pass(ports, frames, length),
            }
        })
    };
    let queues = inside.into_iter().zip(outside).zip(frames);
    let threads: Vec<_> = queues.enumerate().map(start).collect();
    let mut all = 0.0;
    for thread in threads {
        all += thread.join().ok().context("a worker panicked")??;
    }
    Ok(all / 1e6)
}

/// One thread's place among the others.
struct Seat {
    index: usize,
    workers: usize,
    peers: Option<Peers>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    barrier: Arc<Barrier>,
}

impl Seat {
    /// Packets in a second of this thread's time through a worker of the engine.
    fn forward(
        mut self,
        ports: [Filled; 2],
        frames: Vec<[u8; LEN]>,
        length: Duration,
    ) -> Result<f64> {
        let flows = frames.len() as u64;
        let config = WorkerConfig {
            index: self.index as u16,
            count: self.workers as u16,
            peers: self.peers.take(),
            seed: SEED,
            flow_capacity: CAPACITY / self.workers as u32,
            events: None,
        };
        let counters = Arc::new(WorkerCounters::default());
        let snapshot = Arc::clone(&self.snapshot);
        let worker = Worker::new(ports.into(), None, snapshot, config, Arc::clone(&counters))?;
        let mut lane = Lane {
            worker,
            counters,
            start: Instant::now(),
        };
        // Who the first frames ask for answers once (RFC 826), then each flow is opened by its first frame.
        lane.inside().deliver(frames[..BURST].to_vec());
        lane.turn();
        lane.inside().deliver(Vec::new());
        lane.outside().first = Some(answer());
        lane.turn();
        // What the others tell of the answer has come as well then.
        self.barrier.wait();
        lane.inside().deliver(frames);
        lane.poll_packets(2 * flows);
        ensure!(
            lane.counters.nat_active.get() == flows,
            "{} of {flows} flows were opened and translated",
            lane.counters.nat_active.get()
        );
        // What the node tells of itself when it starts, and again a second later, has been sent.
        lane.start -= Duration::from_secs(2);
        lane.poll_packets(BURST as u64);
        self.barrier.wait();
        let before = lane.forwarded();
        let (cpu, timed) = (cpu_s()?, Instant::now());
        let mut taken = 0;
        while timed.elapsed() < length {
            taken += lane.poll_packets(64 * BURST as u64);
        }
        let cpu = cpu_s()? - cpu;
        self.barrier.wait();
        lane.check(before, taken)?;
        // A packet of each flow again, to look at what becomes of it.
        lane.outside().expected = Some((OUTSIDE, 0));
        let before = lane.forwarded();
        let looked_at = lane.poll_packets(flows);
        lane.check(before, looked_at)?;
        let wrong = lane.outside().expected.take();
        ensure!(wrong == Some((OUTSIDE, 0)), "{wrong:?} left untranslated");
        Ok(taken as f64 / cpu)
    }

    /// Packets in a second of this thread's time from one port to the other, with nothing done to them.
    fn pass(
        self,
        [mut inside, mut outside]: [Filled; 2],
        frames: Vec<[u8; LEN]>,
        length: Duration,
    ) -> Result<f64> {
        inside.deliver(frames);
        self.barrier.wait();
        let (cpu, timed) = (cpu_s()?, Instant::now());
        let mut sent = 0;
        let mut burst = Vec::with_capacity(BURST);
        while timed.elapsed() < length {
            for _ in 0..64 {
                inside.rx_burst(&mut burst, BURST);
                sent += outside.tx_burst(&mut burst);
            }
        }
        Ok(sent as f64 / (cpu_s()? - cpu))
    }
}

/// A worker and its clock.
struct Lane {
    worker: Worker<Filled, MemoryPort>,
    counters: Arc<WorkerCounters>,
    start: Instant,
}

/// What has left a worker.
#[derive(Clone, Copy)]
struct Forwarded {
    /// As the engine counts it.
    allowed: u64,
    /// As the outside port does.
    sent: u64,
}

impl Lane {
    fn inside(&mut self) -> &mut Filled {
        &mut self.worker.ports_mut()[0]
    }

    fn outside(&mut self) -> &mut Filled {
        &mut self.worker.ports_mut()[1]
    }

    fn turn(&mut self) -> usize {
        // The clock is read for every turn, as a node does.
        self.worker
            .poll(Now(1 + self.start.elapsed().as_nanos() as u64))
    }

    /// Turns until so many packets were taken.
    fn poll_packets(&mut self, packets: u64) -> u64 {
        let mut taken = 0;
        while taken < packets {
            taken += self.turn() as u64;
        }
        taken
    }

    fn forwarded(&self) -> Forwarded {
        let allowed = self.counters.allowed(Direction::Outbound, Protocol::Udp);
        Forwarded {
            allowed: allowed.packets,
            sent: self.worker.ports()[1].stats().tx_frames,
        }
    }

    /// That all that was taken since was judged and sent, and nothing dropped, ever.
    fn check(&self, before: Forwarded, taken: u64) -> Result<()> {
        let now = self.forwarded();
        let (allowed, sent) = (now.allowed - before.allowed, now.sent - before.sent);
        ensure!(
            (allowed, sent) == (taken, taken),
            "{taken} packets were taken, {allowed} allowed and {sent} sent"
        );
        for reason in DropReason::ALL {
            let dropped = self.counters.dropped(*reason).packets.get();
            ensure!(
                dropped == 0,
                "{dropped} packets were dropped for {reason:?}"
            );
        }
        let handed_over = self.counters.handed_over.packets.get();
        ensure!(
            handed_over == 0,
            "{handed_over} packets were another worker's"
        );
        let stats = self.worker.ports()[1].stats();
        let lost = stats.tx_dropped + stats.tx_errors;
        ensure!(lost == 0, "the device lost {lost}");
        Ok(())
    }
}

fn snapshot() -> Result<Snapshot> {
    let document = Document::parse_json(POLICY.as_bytes()).context("the document")?;
    let compiled = Compiled::compile(&document, 1)?;
    let port = |address: &str| -> Result<PortSettings> {
        Ok(PortSettings {
            addresses: vec![address.parse()?],
            ..PortSettings::default()
        })
    };
    let settings = Settings {
        ports: vec![port("10.0.0.1/8")?, port("192.0.2.1/24")?],
        ..Settings::default()
    };
    Ok(Snapshot::new(1, Arc::new(compiled), settings)?)
}

/// By worker, a frame of each flow that is its own, shuffled, so that each meets a flow that the caches have forgotten.
fn frames(snapshot: &Snapshot, workers: u16) -> Vec<Vec<[u8; LEN]>> {
    let steering = Steering::new(SEED, 0, workers);
    let mut by_worker = vec![Vec::new(); usize::from(workers)];
    let mut random = 1_u64;
    for i in 0..FLOWS {
        let client = Ipv4Addr::from(0x0a01_0000 + i / 16);
        let source = SocketAddrV4::new(client, 2000 + (i % 16) as u16);
        let server = SocketAddrV4::new(SERVER.into(), 1000 + (i / 16) as u16);
        let ends = [source, server].map(SocketAddr::V4);
        let owner = steering.worker_of(snapshot, true, ends[0], ends[1], 17);
        let frames = &mut by_worker[usize::from(owner)];
        frames.push(udp([PEER, MACS[0]], source, server));
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (last, other) = (frames.len() - 1, (random >> 33) as usize % frames.len());
        frames.swap(last, other);
    }
    by_worker
}

/// The server says where it is.
fn answer() -> [u8; LEN] {
    let mut frame = [0; LEN];
    let parts = [&MACS[1][..], &PEER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &PEER];
    let bytes = [&parts.concat()[..], &SERVER, &MACS[1], &OUTSIDE].concat();
    frame[..bytes.len()].copy_from_slice(&bytes);
    frame
}

fn pin(core: usize) -> Result<()> {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core)?;
    let this_thread = nix::unistd::Pid::from_raw(0);
    Ok(nix::sched::sched_setaffinity(this_thread, &cores)?)
}

/// Processor time of this thread, seconds.
fn cpu_s() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time).as_secs_f64())
}
