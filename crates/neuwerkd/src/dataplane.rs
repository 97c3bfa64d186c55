//! The dataplane as the control side sees it: start the packet workers, hand them a policy, and
//! know what they run on.
//!
//! One immutable snapshot is published to all workers. A swap bumps its generation; it is in force
//! once every worker has loaded that generation, which each does at the start of its next burst.

mod addresses;
mod debug;
mod devices;
#[cfg(feature = "dpdk")]
mod dpdk;
mod findings;
mod held;
mod lane;
mod look;
mod places;
mod ports;
mod settings;
mod watch;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use engine::event::{Event, Ring};
use engine::look::Asker;
use engine::mesh::mesh;
use engine::port::{Link, Port};
use engine::snapshot::{Limits, PortSettings, Probes, Settings, SettingsError};
use engine::steer::Steering;
use engine::{NodeTally, Now, Snapshot, Worker, WorkerConfig, WorkerCounters};
use io::idle::{CpuLatency, PollIdle, Waker};
use io::packet::{Fanout, Translated};
use io::tun::Upkeep;
use policy::Compiled;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::grants::Grants;
use crate::handover::{Leaving, Received};

pub(crate) use addresses::Kept;
pub use addresses::{Acquire, Acquired, Addresses, PortAddresses};
pub use devices::{Device, Figures};
pub(crate) use findings::DeniedNames;
pub use findings::{Finding, FindingKind, Findings, Subject};
pub use look::{Found, LookError, Order, Page, Shown, summed, utilization};
pub use ports::HeldDataplane;
pub(crate) use settings::check;
pub use watch::{Interest, Watch};

/// How long a swap may take to reach every worker before it counts as failed. A burst takes
/// microseconds and a sleeping worker is woken, so only a stuck worker misses it.
const SWAP_LIMIT: Duration = Duration::from_secs(5);

/// A worker that has not turned for this long is stuck. An idle one turns several times a second.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// What the data ports are called, with one arm and with two.
pub(crate) const PORT_NAMES: [&[&str]; 2] = [&["data"], &["inside", "outside"]];

/// The swap did not reach every worker in time.
#[derive(Debug, thiserror::Error)]
#[error("packet worker {worker} did not take over the new snapshot within {} s: restart the node", SWAP_LIMIT.as_secs())]
pub struct SwapError {
    /// Index of the worker that is stuck.
    pub worker: usize,
}

/// The running packet workers of this node.
pub struct Dataplane {
    published: Arc<ArcSwap<Snapshot>>,
    /// The policy in whose place everything is denied, while that is so. Serializes swaps, so that none overwrites what
    /// another changed.
    withheld: Mutex<Option<Arc<Compiled>>>,
    /// Held while another policy is put in force, or all is denied.
    turns: tokio::sync::Mutex<()>,
    /// What was published before and may be held by a worker still. A large policy takes long to free, which is none of
    /// a packet worker's business.
    retired: Mutex<Vec<Arc<Snapshot>>>,
    /// What clients may reach by name.
    grants: Arc<Grants>,
    workers: Vec<WorkerThread>,
    seed: u64,
    /// Whose a packet is.
    steering: Steering,
    /// The kernel's part in that, where it has one, and what it was told last.
    fanouts: Mutex<(Vec<Fanout>, Told)>,
    stop: Arc<AtomicBool>,
    /// The devices that this process drives itself, in the order of the ports.
    devices: Vec<Device>,
    /// The host's side of the lane, where there is one.
    lane: Mutex<Option<Upkeep>>,
    /// Where workers leave their flows when they stop, if another process is to take them over.
    leaving: Arc<Mutex<Option<Leaving>>>,
    /// What was counted in the flow tables last.
    shown: Mutex<Arc<Shown>>,
    /// What the policy has denied.
    findings: Mutex<Findings>,
    /// Where the DNS proxy tells what it has denied, and the end from which that is taken.
    denied_names: (Arc<DeniedNames>, Mutex<findings::Taken>),
    /// Turns at watching packets.
    watches: Arc<Semaphore>,
    /// Set when the node stops.
    watches_stop: CancellationToken,
}

struct WorkerThread {
    asker: Asker,
    /// What the policy denies.
    events: Mutex<Receiver<Event>>,
    counters: Arc<WorkerCounters>,
    waker: Waker,
    seen: Mutex<Seen>,
    /// Closed once it turns no more.
    turns: Mutex<Receiver<Infallible>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WorkerThread {
    /// Waits until the worker has ended; none if it still turns at `give_up`. What it does after its last turn, as leaving
    /// its flows, takes as long as it takes.
    fn end(&self, give_up: Instant) -> Option<std::thread::Result<()>> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else {
            return Some(Ok(()));
        };
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let left = give_up.saturating_duration_since(Instant::now());
        match turns.recv_timeout(left) {
            Err(RecvTimeoutError::Timeout) => None,
            _ => Some(thread.join()),
        }
    }
}

/// When a worker was last seen to turn.
struct Seen {
    polls: u64,
    at: Instant,
}

/// The addresses that sources are translated to, and whether those of IPv4 and of IPv6 are.
type Told = (Vec<IpAddr>, [bool; 2]);

/// What packets are judged by from the first one on.
#[derive(Clone)]
pub struct Judging {
    /// The policy.
    pub policy: Arc<Compiled>,
    /// What clients may reach by name.
    pub grants: Arc<Grants>,
}

/// The ports and the host lane of one worker, as its `open` function returns them.
pub struct Opened<P, L> {
    /// Inside first, then outside.
    pub ports: Vec<P>,
    /// The way to the host's own services.
    pub lane: Option<L>,
    /// The processor that the worker's thread stays on, if on one.
    pub cpu: Option<u32>,
    /// What keeps processors awake after frames, if they are to be.
    pub latency: Option<CpuLatency>,
}

/// What the workers of a node have in common at their start.
struct Shared {
    /// From the process before.
    received: Arc<Received>,
    /// What they count together, if there are limits for it.
    tally: Option<Arc<NodeTally>>,
}

/// What several workers count together: flows by source and by group, if there are limits on these.
fn node_tally(
    limits: &Limits,
    flow_capacity: u32,
    workers: u16,
    seed: u64,
) -> anyhow::Result<Option<Arc<NodeTally>>> {
    let by_source = limits
        .max_flows_per_source
        .or(limits.new_flows_per_source_per_s);
    if workers < 2 || by_source.or(limits.max_flows_per_group).is_none() {
        return Ok(None);
    }
    let flows = flow_capacity as usize * usize::from(workers);
    let tally = NodeTally::new(flows, seed).context("no memory to count flows by source")?;
    Ok(Some(Arc::new(tally)))
}

impl Dataplane {
    /// Starts one worker per element of `open`, each of which opens the worker's ports on the
    /// worker's own thread. The first of them asks for addresses where that is to be done. Returns once all are open and
    /// have what is theirs of what was `received` from the process before; if one fails, all are stopped.
    ///
    /// # Errors
    /// The settings contradict each other, or a port cannot be opened.
    pub fn start<P, L, O>(
        settings: Settings,
        judging: Judging,
        flow_capacity: u32,
        mut acquire: Option<Acquire>,
        open: Vec<O>,
        received: &Arc<Received>,
    ) -> anyhow::Result<Dataplane>
    where
        P: Port + 'static,
        L: Port + 'static,
        O: FnOnce() -> anyhow::Result<Opened<P, L>> + Send + 'static,
    {
        let Judging { policy, grants } = judging;
        let count = u16::try_from(open.len()).context("too many packet workers")?;
        let seed = match received.seed() {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let tally = node_tally(&settings.limits, flow_capacity, count, seed)?;
        let snapshot = Snapshot::new(1, Arc::new(Compiled::deny_all()), settings)?;
        let snapshot = grants.install(|granted| {
            let granted = granted(&policy);
            snapshot.with_policy(1, policy, granted)
        });
        let published = Arc::new(ArcSwap::from_pointee(snapshot));
        grants.attach(Arc::clone(&published));
        let (denied_names, taken) = DeniedNames::new();
        let mut dataplane = Dataplane {
            published,
            grants,
            withheld: Mutex::new(None),
            turns: tokio::sync::Mutex::default(),
            retired: Mutex::default(),
            workers: Vec::new(),
            seed,
            steering: Steering::new(seed, 0, count),
            fanouts: Mutex::default(),
            stop: Arc::new(AtomicBool::new(false)),
            leaving: Arc::default(),
            shown: Mutex::default(),
            findings: Mutex::default(),
            denied_names: (denied_names, Mutex::new(taken)),
            watches: Arc::new(Semaphore::new(engine::tap::MAX_TAPS)),
            watches_stop: CancellationToken::new(),
            devices: Vec::new(),
            lane: Mutex::default(),
        };
        let idles = open
            .iter()
            .map(|_| PollIdle::new().context("cannot make an eventfd"))
            .collect::<Result<Vec<_>, _>>()?;
        let wake = |idle: &PollIdle| {
            let waker = idle.waker();
            Box::new(move || waker.wake()) as engine::mesh::Wake
        };
        let peers = mesh(idles.iter().map(wake).collect());
        for (index, ((open, idle), peers)) in (0..count).zip(open.into_iter().zip(idles).zip(peers))
        {
            let config = WorkerConfig {
                index,
                count,
                peers: (count > 1).then_some(peers),
                seed,
                flow_capacity,
                events: None,
            };
            let shared = Shared {
                received: Arc::clone(received),
                tally: tally.clone(),
            };
            dataplane.spawn(config, idle, acquire.take(), open, shared)?;
        }
        Ok(dataplane)
    }

    fn spawn<P, L, O>(
        &mut self,
        mut config: WorkerConfig,
        idle: PollIdle,
        acquire: Option<Acquire>,
        open: O,
        Shared { received, tally }: Shared,
    ) -> anyhow::Result<()>
    where
        P: Port + 'static,
        L: Port + 'static,
        O: FnOnce() -> anyhow::Result<Opened<P, L>> + Send + 'static,
    {
        let counters = Arc::new(WorkerCounters::default());
        let waker = idle.waker();
        let (asker, desk) = engine::look::channel();
        let (sender, events) = sync_channel(findings::RING);
        config.events = Some(Ring::of_denials(sender));
        let (opened, result) = sync_channel(1);
        let (turning, turns) = sync_channel(0);
        let thread = {
            let counters = Arc::clone(&counters);
            let published = Arc::clone(&self.published);
            let stop = Arc::clone(&self.stop);
            let leaving = Arc::clone(&self.leaving);
            let is_first = config.index == 0;
            std::thread::Builder::new()
                .name(format!("packets-{}", config.index))
                .spawn(move || {
                    let Opened {
                        ports,
                        lane,
                        cpu,
                        latency,
                    } = match open() {
                        Ok(ports) => ports,
                        Err(error) => return drop(opened.send(Err(error))),
                    };
                    let idle = match latency {
                        Some(latency) => idle.with_latency(latency),
                        None => idle,
                    };
                    if let Some(cpu) = cpu {
                        counters.set_cpu(cpu);
                    }
                    let mut worker = match Worker::new(ports, lane, published, config, counters) {
                        Ok(worker) => worker.with_desk(desk),
                        Err(error) => return drop(opened.send(Err(error.into()))),
                    };
                    if let Some(tally) = tally {
                        worker = worker.with_tally(tally);
                    }
                    received.give(&mut worker, is_first);
                    drop(received);
                    if let Some(Acquire { ports, tell, .. }) = acquire {
                        worker.acquire(ports, move |learned| {
                            drop(tell.send_replace(learned.to_vec()));
                        });
                    }
                    if opened.send(Ok(())).is_ok() {
                        worker.run(idle, monotonic, &stop);
                    }
                    drop(turning);
                    let mut leaving = leaving.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(state) = leaving.as_mut()
                        && let Err(error) = state.take(&worker)
                    {
                        tracing::error!(%error, "flows are not handed over");
                    }
                })?
        };
        result
            .recv()
            .context("a packet worker ended while it opened its ports")??;
        let seen = Mutex::new(Seen {
            polls: 0,
            at: Instant::now(),
        });
        self.workers.push(WorkerThread {
            asker,
            events: Mutex::new(events),
            counters,
            waker,
            seen,
            turns: Mutex::new(turns),
            thread: Mutex::new(Some(thread)),
        });
        Ok(())
    }

    /// Publishes a compiled policy and waits until the last worker runs on it; while everything is denied, keeps it for
    /// the time after that.
    ///
    /// # Errors
    /// A worker is stuck; those that are not have taken the policy over.
    pub async fn set_policy(&self, policy: Arc<Compiled>) -> Result<(), SwapError> {
        // Two at once would prepare their grants in turns for ever.
        let _turn = self.turns.lock().await;
        if self.withheld().is_none() {
            self.grants.prepare(&policy).await;
        }
        let generation = self.publish_policy(|withheld, now| match withheld {
            None => policy,
            // It is prepared when it is to be in force.
            Some(kept) => {
                *kept = policy;
                Arc::clone(now)
            }
        });
        self.reached(generation).await
    }

    /// Denies everything in the policy's place from now on (`true`), open flows included, or goes by it again, and waits
    /// until the last worker knows.
    ///
    /// # Errors
    /// As [`Dataplane::set_policy`].
    pub async fn set_denying(&self, denying: bool) -> Result<(), SwapError> {
        if denying {
            // At once, whatever is being prepared: what grants nothing needs no preparation.
            let generation = self.publish_policy(|withheld, now| {
                if withheld.is_some() {
                    return Arc::clone(now);
                }
                *withheld = Some(Arc::clone(now));
                Arc::new(Compiled::deny_all())
            });
            return self.reached(generation).await;
        }
        let _turn = self.turns.lock().await;
        let next = self.withheld().clone();
        if let Some(next) = next {
            self.grants.prepare(&next).await;
        }
        let generation =
            self.publish_policy(|withheld, now| withheld.take().unwrap_or_else(|| Arc::clone(now)));
        self.reached(generation).await
    }

    /// Refuses new flows from now on (`true`) or takes them again, and waits until the last worker
    /// knows. Flows that exist go on.
    ///
    /// # Errors
    /// As [`Dataplane::set_policy`].
    pub async fn set_draining(&self, draining: bool) -> Result<(), SwapError> {
        let generation =
            self.publish(|_withheld, now, generation| now.with_draining(generation, draining));
        self.reached(generation).await
    }

    /// Gives the ports other addresses and routes. Flows go on, but for those that were translated to an address that is
    /// no longer there.
    ///
    /// # Errors
    /// The settings contradict each other; everything stays as it is.
    pub fn set_ports(&self, ports: Vec<PortSettings>) -> Result<(), SettingsError> {
        let mut refused = None;
        self.publish(|_withheld, now, generation| {
            let mut settings = now.settings().clone();
            settings.ports = ports;
            now.with_settings(generation, settings)
                .unwrap_or_else(|error| {
                    refused = Some(error);
                    now.with_generation(generation)
                })
        });
        self.attach(false);
        refused.map_or(Ok(()), Err)
    }

    /// Answers health probes from now on (`true`), or not, where they are answered at all.
    pub fn set_ready(&self, ready: bool) {
        let wanted = if ready {
            Probes::Ready
        } else {
            Probes::NotReady
        };
        let now = self.published.load().settings().probes;
        if now == Probes::Off || now == wanted {
            return;
        }
        self.publish(|_withheld, now, generation| {
            let mut settings = now.settings().clone();
            settings.probes = wanted;
            now.with_settings(generation, settings)
                .expect("probes have no part in the checks")
        });
    }

    /// All that decides about packets, as it is published.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load_full()
    }

    /// The policy that is published.
    pub fn policy(&self) -> Arc<Compiled> {
        Arc::clone(self.published.load().policy())
    }

    /// What clients may reach by name.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }

    /// The devices that this process drives itself, in the order of the ports; none where the kernel does.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Has the kernel share the packets of these queues among the workers as they would do it themselves.
    fn steer(&mut self, fanouts: Vec<Fanout>) {
        self.fanouts = Mutex::new((fanouts, Default::default()));
        self.attach(true);
    }

    /// Tells the kernel by which addresses' ports it is to steer, if they have changed. Until it knows, and where it cannot
    /// be told, workers hand packets over to each other.
    fn attach(&self, always: bool) {
        let mut fanouts = self.fanouts.lock().unwrap_or_else(PoisonError::into_inner);
        let (fanouts, told) = &mut *fanouts;
        let snapshot = self.published.load();
        let now = (snapshot.translated(), snapshot.translates());
        if now == *told && !always {
            return;
        }
        for (port, fanout) in fanouts.iter().enumerate() {
            let ports = Translated {
                to: &now.0,
                // Clients are inside: on the only port, or on the first of two.
                from: if port == 0 { now.1 } else { [false; 2] },
            };
            if let Err(error) = fanout.steer(&self.steering, &ports) {
                tracing::warn!(%error, "the kernel does not steer packets: their workers hand them over");
            }
        }
        *told = now;
    }

    /// What the workers' choices come from: secret.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The counters of every worker.
    pub fn counters(&self) -> Vec<Arc<WorkerCounters>> {
        self.workers
            .iter()
            .map(|worker| Arc::clone(&worker.counters))
            .collect()
    }

    /// Flows that exist now, over all workers.
    pub fn active_flows(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.counters.flows_active.get())
            .sum()
    }

    /// Why a data port carries nothing at the moment, if one does not: its link is down.
    pub fn link_down(&self) -> Option<String> {
        let name = self.find_link(Link::Down)?;
        Some(format!("the {name} port has no link"))
    }

    /// The name of a data port whose link is in this state.
    fn find_link(&self, state: Link) -> Option<&'static str> {
        self.workers.iter().find_map(|worker| {
            let ports = worker.counters.ports();
            let names = PORT_NAMES[ports.len().saturating_sub(1).min(1)];
            let mut named = ports.iter().zip(names);
            named.find_map(|(port, name)| (port.link() == state).then_some(*name))
        })
    }

    /// Why packets do not flow, if they do not: a worker that has ended or makes no progress, or a device that has gone.
    pub fn fault(&self) -> Option<String> {
        if let Some(name) = self.find_link(Link::Gone) {
            return Some(format!("the device of the {name} port has gone"));
        }
        if self.lane_has_gone() {
            return Some("the device of the host lane has gone".to_owned());
        }
        let now = Instant::now();
        self.workers.iter().enumerate().find_map(|(index, worker)| {
            let thread = worker.thread.lock().unwrap_or_else(PoisonError::into_inner);
            if thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return Some(format!("packet worker {index} has ended"));
            }
            let mut seen = worker.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let polls = worker.counters.polls.get();
            if polls != seen.polls {
                *seen = Seen { polls, at: now };
            }
            let stalled = now.duration_since(seen.at) > STALL_LIMIT;
            stalled.then(|| format!("packet worker {index} makes no progress"))
        })
    }

    /// Stops the workers and waits for them, but not for one that is stuck, which is left to the end of the process.
    /// Returns whether all have ended. Whoever still holds the dataplane sees all of them as ended.
    pub fn stop(&self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &self.workers {
            worker.waker.wake();
        }
        let give_up = Instant::now() + STALL_LIMIT;
        let mut all = true;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.end(give_up) {
                Some(Ok(())) => {}
                Some(Err(_)) => tracing::error!("a packet worker panicked"),
                None => {
                    tracing::error!(index, "a packet worker is stuck: it is not waited for");
                    all = false;
                }
            }
        }
        all
    }

    /// Stops the workers, each of which leaves its flows in `state`, and returns that.
    pub fn leave(&self, state: Leaving) -> Option<Leaving> {
        let leaving = || self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        *leaving() = Some(state);
        self.stop();
        leaving().take()
    }

    /// Publishes the policy that `choose` makes of the withheld one and of the one in force, with what is granted under it.
    fn publish_policy(
        &self,
        choose: impl FnOnce(&mut Option<Arc<Compiled>>, &Arc<Compiled>) -> Arc<Compiled>,
    ) -> u64 {
        self.grants.install(|granted| {
            self.publish(|withheld, now, generation| {
                let policy = choose(withheld, now.policy());
                let granted = granted(&policy);
                now.with_policy(generation, policy, granted)
            })
        })
    }

    fn publish(
        &self,
        change: impl FnOnce(&mut Option<Arc<Compiled>>, &Snapshot, u64) -> Snapshot,
    ) -> u64 {
        let mut withheld = self.withheld();
        let now = self.published.load_full();
        let generation = now.generation() + 1;
        let next = change(&mut withheld, &now, generation);
        self.published.store(Arc::new(next));
        self.retired().push(now);
        self.free_retired();
        for worker in &self.workers {
            worker.waker.wake();
        }
        generation
    }

    /// The policy that goes by when everything is denied no longer.
    fn withheld(&self) -> MutexGuard<'_, Option<Arc<Compiled>>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<Snapshot>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what was published before and no worker holds any more.
    fn free_retired(&self) {
        let (held, free) = std::mem::take(&mut *self.retired())
            .into_iter()
            .partition(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired().extend::<Vec<_>>(held);
        drop::<Vec<_>>(free);
    }

    async fn reached(&self, generation: u64) -> Result<(), SwapError> {
        let give_up = tokio::time::Instant::now() + SWAP_LIMIT;
        for (index, worker) in self.workers.iter().enumerate() {
            let mut pause = Duration::from_micros(50);
            while worker.counters.generation() < generation {
                if tokio::time::Instant::now() >= give_up {
                    return Err(SwapError { worker: index });
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(10));
            }
        }
        self.free_retired();
        Ok(())
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed)
        .ok()
        .context("the system has no randomness")?;
    Ok(u64::from_ne_bytes(seed))
}

/// The time since boot.
pub(crate) fn monotonic() -> Now {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Now(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}
