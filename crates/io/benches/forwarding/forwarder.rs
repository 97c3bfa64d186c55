//! The two forwarders that are compared: the kernel and the engine, each for a while in the same
//! namespace between the same links.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use engine::counters::CloseReason;
use engine::port::{Port, PortStats};
use engine::snapshot::{PortSettings, Settings, Snat};
use engine::{DropReason, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use io::idle::{CpuLatency, PollIdle, Waker};
use io::packet::{Hold, HoldConfig, PacketConfig, PacketPort};
use io::tun::Tun;
use io::xdp::{XdpConfig, XdpPort};
use policy::{Compiled, Document};
use serde_json::json;

use crate::space::{Space, pin};

const RULESET: &str = include_str!("kernel.nft");

/// The addresses that both allow: 100,000, of which one is the sink's.
fn allowed() -> impl Iterator<Item = Ipv4Addr> {
    // Apart, so that none can be merged with its neighbour.
    let others = (0..99_999).map(|i| Ipv4Addr::from(0x0b00_0000 + i * 7));
    std::iter::once(Ipv4Addr::new(10, 2, 0, 1)).chain(others)
}

/// The kernel's forwarding, until dropped.
pub(crate) struct Kernel<'a> {
    space: &'a Space,
}

impl<'a> Kernel<'a> {
    /// `spread_to` is a core to which the kernel hands what the inside link receives (RPS);
    /// without it, packets are forwarded on the core that sends them.
    pub(crate) fn start(space: &'a Space, spread_to: Option<usize>) -> Result<Self> {
        let elements: Vec<String> = allowed().map(|address| address.to_string()).collect();
        let mask = spread_to.map_or(0, |core| 1u64 << core);
        let directory = tempfile::tempdir()?;
        let ruleset = directory.path().join("ruleset.nft");
        std::fs::write(
            &ruleset,
            format!(
                "{RULESET}\nadd element inet forwarding allowed {{ {} }}\n",
                elements.join(",")
            ),
        )?;
        let kernel = Self { space };
        space.sh(&format!(
            "nft -f {}
             echo {mask:x} > /sys/class/net/left/queues/rx-0/rps_cpus
             sysctl -qw net.ipv4.ip_forward=1",
            ruleset.display()
        ))?;
        Ok(kernel)
    }
}

impl Drop for Kernel<'_> {
    fn drop(&mut self) {
        // What is missing was not set up; the namespace ends with the program.
        let _ = self.space.sh("sysctl -qw net.ipv4.ip_forward=0
             echo 0 > /sys/class/net/left/queues/rx-0/rps_cpus
             nft delete table inet forwarding");
    }
}

/// Flows that the engine has room for.
pub(crate) const FLOWS: u32 = 1 << 20;

/// What the engine has counted.
pub(crate) struct Account {
    /// Inside, outside.
    pub(crate) ports: [PortStats; 2],
    /// Packets that it did not forward, by reason, where there are any.
    pub(crate) drops: Vec<(DropReason, u64)>,
    /// Flows that were opened.
    pub(crate) opened: u64,
    /// Flows at the end.
    pub(crate) active: u64,
    /// Flows that gave way to others.
    pub(crate) evicted: u64,
}

impl Account {
    /// Packets that it did not forward for one of these reasons.
    pub(crate) fn dropped(&self, reasons: &[DropReason]) -> u64 {
        let meant = self
            .drops
            .iter()
            .filter(|(reason, _)| reasons.contains(reason));
        meant.map(|(_, packets)| packets).sum()
    }
}

/// What the engine's ports are made of.
#[derive(Clone, Copy)]
pub(crate) enum Backend {
    Packet,
    Xdp,
}

/// A worker with two ports on a core of its own, until stopped.
pub(crate) struct Engine {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<Result<[PortStats; 2]>>>,
    counters: Arc<WorkerCounters>,
}

impl Engine {
    pub(crate) fn start(
        space: &Space,
        core: usize,
        state_dir: PathBuf,
        backend: Backend,
    ) -> Result<Self> {
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()?));
        let counters = Arc::new(WorkerCounters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = channel();
        let thread = {
            let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
            space.spawn(move || {
                pin(core)?;
                // As in a node.
                rustix::process::setpriority_process(None, -10)?;
                let hold = |interface: &str| {
                    Hold::open(&HoldConfig {
                        interface: interface.to_owned(),
                        management_interface: None,
                        state_dir: state_dir.clone(),
                    })
                };
                let _held = [hold("left")?, hold("right")?];
                match backend {
                    Backend::Packet => {
                        let open = |interface| PacketPort::open(&PacketConfig::new(interface));
                        let ports = vec![open("left")?, open("right")?];
                        work(ports, snapshot, counters, &stop, &ready)
                    }
                    Backend::Xdp => {
                        let interfaces = ["left".to_owned(), "right".to_owned()];
                        let ports = XdpPort::open_all(&interfaces, &XdpConfig::default())?;
                        work(ports, snapshot, counters, &stop, &ready)
                    }
                }
            })?
        };
        let Ok(waker) = started.recv() else {
            let failed = thread.join().ok().context("the engine panicked")?;
            failed?;
            anyhow::bail!("the engine ended before it began");
        };
        Ok(Self {
            stop,
            waker,
            thread: Some(thread),
            counters,
        })
    }

    /// What it counts while it runs.
    pub(crate) fn counters(&self) -> Arc<WorkerCounters> {
        Arc::clone(&self.counters)
    }

    /// Stops it and gives the links back to the kernel.
    pub(crate) fn stop(mut self) -> Result<Account> {
        let ports = self.end().context("the engine was stopped before")?;
        let drops = DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.counters.dropped(*reason).packets.get()))
            .filter(|(_, packets)| *packets > 0)
            .collect();
        Ok(Account {
            ports: ports?,
            drops,
            opened: self.counters.flows_opened.get(),
            active: self.counters.flows_active.get(),
            evicted: self.counters.closed(CloseReason::Evicted),
        })
    }

    fn end(&mut self) -> Option<Result<[PortStats; 2]>> {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        let ended = self.thread.take()?.join();
        Some(ended.ok().context("the engine panicked").flatten())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn work<P: Port>(
    ports: Vec<P>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    counters: Arc<WorkerCounters>,
    stop: &AtomicBool,
    ready: &Sender<Waker>,
) -> Result<[PortStats; 2]> {
    let config = WorkerConfig {
        index: 0,
        count: 1,
        peers: None,
        seed: 0x6e65_7577_6572_6b21,
        flow_capacity: FLOWS,
        events: None,
    };
    let mut worker = Worker::<P, Tun>::new(ports, None, snapshot, config, counters)?;
    // As `dataplane.cpu_latency_hold_ms` is unless told otherwise.
    let latency = CpuLatency::open(Duration::from_millis(20))?;
    let idle = PollIdle::new()?.with_latency(latency);
    ready.send(idle.waker())?;
    let origin = Instant::now();
    worker.run(idle, || Now(origin.elapsed().as_nanos() as u64), stop);
    let [left, right] = worker.ports() else {
        unreachable!("two were handed in");
    };
    Ok([left.stats(), right.stats()])
}

/// The policy and the settings: the same as the kernel's ruleset, address for address.
fn snapshot() -> Result<Snapshot> {
    let addresses: Vec<String> = allowed().map(|address| address.to_string()).collect();
    let document = json!({
        "default_policy": "deny",
        "source_groups": [{
            "id": "inside",
            "mode": "enforce",
            "sources": {"cidrs": ["10.1.0.0/24"]},
            "rules": [{"id": "allowed", "action": "allow", "match": {"dst_ips": addresses}}],
        }],
    });
    let document = Document::parse_json(document.to_string().as_bytes())?;
    let port = |address: &str| -> Result<PortSettings> {
        Ok(PortSettings {
            addresses: vec![address.parse()?],
            ..PortSettings::default()
        })
    };
    let settings = Settings {
        ports: vec![port("10.1.0.254/24")?, port("10.2.0.254/24")?],
        snat: Snat::Auto,
        tcp_window_check: true,
        ..Settings::default()
    };
    let compiled = Compiled::compile(&document, 1)?;
    ensure!(
        compiled.tells_source([10, 1, 0, 1].into()),
        "the policy is the one meant"
    );
    Ok(Snapshot::new(1, Arc::new(compiled), settings)?)
}

/// Time for which a forwarder works before it is measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(500);
