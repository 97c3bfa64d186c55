//! One machine: a disk, a clock, and a process that does what the daemon does. It enforces its last-known-good policy,
//! finds out who it is (or joins), runs the control plane, and starts that anew from disk when it has failed.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cluster::enrol::known_members;
use cluster::identity::NodeKey;
use cluster::join::protocol::{Acceptor, Application, Binding, Joiner, Outcome};
use cluster::join::{EnrolGrant, KnownMember};
use cluster::node::{Environment, StartError};
use cluster::replay::{self, Mark, Progress, Target};
use cluster::store::files::Directory;
use cluster::store::witness::{Seen, Witness};
use cluster::store::{Io, Store, StoreError};
use cluster::transport::Peer;
use cluster::{Digest, Node, NodeConfig, NodeId, State, Timing, lkg};
use futures::StreamExt as _;
use futures::channel::mpsc;
use openraft::AsyncRuntime as _;
use openraft::async_runtime::Select2;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::disk::{Disk, Files};
use super::mutant::Mutant;
use super::network::{Station, Trust};
use super::observer::Invariant;
use super::random::Random;
use super::runtime::{Process, Sim, WORLD, scheduler, spawn_in};
use super::world::{MACHINES, World, addresses, wall_clock_ms};

/// How long a job that nobody waits for stays in memory, as in the writer's own thread.
const IDLE_FLUSH: Duration = Duration::from_millis(100);

/// How long one attempt to join may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(12);

/// How often what failed to be enforced is tried again.
const REPLAY_RETRY: Duration = Duration::from_secs(1);

/// Who a machine is, as its disk says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    node_id: NodeId,
    /// The members that it knew when this was written, with their addresses.
    known: BTreeMap<NodeId, String>,
}

/// A machine.
pub struct Machine {
    pub(super) disk: Disk,
    /// How wrong its wall clock is.
    pub(super) clock_ms: Arc<AtomicI64>,
    /// What a commit takes at least, in microseconds.
    pub(super) disk_us: Arc<AtomicU64>,
    /// What its disk says to proposals, in bytes.
    pub(super) free_bytes: Arc<AtomicU64>,
    running: Mutex<Option<Running>>,
    /// What it remembers until it loses power.
    memory: Mutex<Memory>,
    /// Counts the disks that it had.
    disks: AtomicU64,
    /// The id under which it last took part.
    last_id: Mutex<Option<NodeId>>,
}

struct Running {
    process: Process,
    live: Option<Live>,
    progress: Option<watch::Receiver<Progress>>,
    targets: Option<Targets>,
}

/// What a machine remembers of its log beside its disk.
#[derive(Debug, Clone, Default)]
struct Memory {
    seen: Arc<Mutex<Option<Seen>>>,
}

impl Witness for Memory {
    fn recall(&self) -> io::Result<Option<Seen>> {
        Ok(locked(&self.seen).clone())
    }

    fn note(&self, seen: &Seen) -> io::Result<()> {
        *locked(&self.seen) = Some(seen.clone());
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        *locked(&self.seen) = None;
        Ok(())
    }
}

/// What the replay agent is fed with.
type Targets = Arc<watch::Sender<Option<Target>>>;

/// A node that has started.
#[derive(Clone)]
pub struct Live {
    pub(super) process: Process,
    pub(super) node: Node<Sim>,
    pub(super) store: Store,
}

impl Machine {
    pub(super) fn new(random: Random, lies: bool) -> Self {
        Machine {
            disk: Disk::new(random, lies),
            clock_ms: Arc::default(),
            disk_us: Arc::default(),
            free_bytes: Arc::new(AtomicU64::new(u64::MAX)),
            running: Mutex::default(),
            memory: Mutex::default(),
            disks: AtomicU64::new(1),
            last_id: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        locked(&self.running)
    }

    /// Its process, if it has power.
    pub(super) fn process(&self) -> Option<Process> {
        self.running().as_ref().map(|running| running.process)
    }

    /// Its node, if that has started.
    pub(super) fn live(&self) -> Option<Live> {
        self.running().as_ref()?.live.clone()
    }

    /// The policy that its dataplane runs on.
    pub(super) fn enforced(&self) -> Mark {
        self.running()
            .as_ref()
            .and_then(|running| Some(running.progress.as_ref()?.borrow().enforced))
            .unwrap_or_default()
    }

    /// A mutant's doing: the replay agent is handed a policy that is only about to be proposed.
    pub(super) fn enforce_early(&self, node: &Node<Sim>, document: &[u8]) {
        let target = Target {
            lineage: node.lineage().unwrap_or_default(),
            index: node.status().last_index + 1,
            revision: u64::MAX,
            hash: Digest::of(document).0,
            document: document.into(),
        };
        if let Some(running) = self.running().as_ref()
            && let Some(targets) = &running.targets
        {
            targets.send_replace(Some(target));
        }
    }

    /// Who it is by its disk.
    pub(super) fn node_id(&self) -> Option<NodeId> {
        let files = self.disk.directory("identity");
        Some(identity(&files).ok()??.node_id)
    }

    /// The witness of its next process.
    fn memory(&self) -> Memory {
        let mut memory = locked(&self.memory);
        // What an earlier process still does is not remembered here.
        let seen = locked(&memory.seen).clone();
        memory.seen = Arc::new(Mutex::new(seen));
        memory.clone()
    }

    /// Gives it a new disk.
    pub(super) fn replace_disk(&self) {
        *locked(&self.last_id) = self.node_id();
        self.disk.wipe();
        self.disks.fetch_add(1, Ordering::Relaxed);
    }

    fn with(&self, process: Process, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.running().as_mut()
            && running.process == process
        {
            change(running);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn identity(files: &Files) -> io::Result<Option<Identity>> {
    Ok(files
        .read("identity")?
        .map(|bytes| rmp_serde::from_slice(&bytes).expect("written as a whole")))
}

fn keep(files: &Files, identity: &Identity) -> io::Result<()> {
    let bytes = rmp_serde::to_vec_named(identity).expect("plain data");
    files.write("identity", &[Bytes::from(bytes)])
}

/// Gives a machine power, if it has none.
pub fn boot(world: &Arc<World>, number: usize) {
    let machine = &world.machines[number];
    let mut running = machine.running();
    if running.is_some() {
        return;
    }
    let process = scheduler().new_process();
    *running = Some(Running {
        process,
        live: None,
        progress: None,
        targets: None,
    });
    drop(running);
    world.owns(process, number);
    world.tell(|| format!("m{number}: boots"));
    let _detached = spawn_in(process, daemon(world.clone(), number, process));
}

/// Gives a machine power later.
pub fn boot_after(world: &Arc<World>, number: usize, pause: Duration) {
    let world = world.clone();
    let _detached = spawn_in(WORLD, async move {
        Sim::sleep(pause).await;
        boot(&world, number);
    });
}

/// Ends a machine's process between two awaits; with `power`, what its disk had not synced is lost as well.
pub fn stop(world: &Arc<World>, number: usize, power: bool) {
    let machine = &world.machines[number];
    let Some(running) = machine.running().take() else {
        return;
    };
    world.network.disconnect(number);
    if power {
        machine.disk.lose_power();
        *locked(&machine.memory) = Memory::default();
    } else {
        machine.disk.release();
    }
    scheduler().kill(running.process);
    // Its file is closed already; this frees the memory.
    if let Some(live) = running.live {
        live.store.close();
    }
    world.tell(|| {
        format!(
            "m{number}: {}",
            if power { "loses power" } else { "is killed" }
        )
    });
}

async fn daemon(world: Arc<World>, number: usize, process: Process) {
    let machine = &world.machines[number];
    // Above everything else: enforce what was enforced.
    let kept = match lkg::read_from(&machine.disk.directory("lkg")) {
        Ok(kept) => kept.as_ref().map(Mark::from).unwrap_or_default(),
        Err(error) => {
            world.accuse(
                Invariant::Durability,
                format!("m{number}: last-known-good policy: {error}"),
            );
            return;
        }
    };
    let (progress, seen) = watch::channel(Progress {
        compiled: kept,
        enforced: kept,
        failure: None,
    });
    machine.with(process, |running| running.progress = Some(seen));
    let progress = Arc::new(progress);
    loop {
        let ended = live(&world, number, process, &progress).await;
        world.network.disconnect(number);
        let was = machine
            .running()
            .as_mut()
            .and_then(|running| running.live.take());
        if let Some(live) = was {
            live.node.shutdown().await;
            live.store.close();
        }
        let pause = world.random(|random| random.between(100, 600));
        world.tell(|| format!("m{number}: the control plane has stopped: {ended}"));
        Sim::sleep(Duration::from_millis(pause)).await;
    }
}

/// The control plane from its start until it fails; tells why.
async fn live(
    world: &Arc<World>,
    number: usize,
    process: Process,
    progress: &Arc<watch::Sender<Progress>>,
) -> String {
    let machine = &world.machines[number];
    let store = match Store::open_backend(machine.disk.open_log(), Io::Driven) {
        Ok(store) => store,
        Err(StoreError::Io(error)) => return format!("the store cannot be opened: {error}"),
        Err(error) => {
            // Nothing here damages what was synced.
            world.accuse(Invariant::Durability, format!("m{number}: {error}"));
            return error.to_string();
        }
    };
    let files = machine.disk.directory("identity").of_this_process();
    let (identity, founding) = match who(world, number, &files).await {
        Ok(found) => found,
        Err(error) => {
            store.close();
            return format!("there is no identity yet: {error}");
        }
    };
    let node_id = identity.node_id;
    *locked(&machine.last_id) = Some(node_id);
    let life = machine.disks.load(Ordering::Relaxed);
    world.observe(|observer| observer.belongs(node_id, number, life));
    let trust = world.network.admit(node_id);
    if let Err(error) = store.set_witness(Arc::new(machine.memory())) {
        store.close();
        return format!("the witness fails: {error}");
    }

    let _driver = spawn_in(
        process,
        drive(store.clone(), machine.disk_us.clone(), world.clone()),
    );
    let node = Node::start(
        config(world, number, &identity),
        environment(world, number),
        store.clone(),
        Arc::new(machine.disk.directory("snapshots").of_this_process()),
        world
            .network
            .transport(number, node_id, trust.clone(), world.mutant),
    )
    .await;
    let node = match node {
        Ok(node) => node,
        Err(error) => {
            store.close();
            let damaged = match &error {
                StartError::Snapshots(error) => error.kind() == io::ErrorKind::InvalidData,
                StartError::Timing(_) | StartError::TooOld(_) | StartError::Consensus(_) => {
                    !machine.disk.is_full()
                }
            };
            if damaged {
                world.accuse(
                    Invariant::Durability,
                    format!("m{number} cannot start: {error}"),
                );
            }
            return error.to_string();
        }
    };
    world.observe(|observer| observer.started(number, node_id, &node, &store));
    machine.with(process, |running| {
        running.live = Some(Live {
            process,
            node: node.clone(),
            store: store.clone(),
        });
    });
    if let Some(key) = founding {
        let init = world.init(node_id, &key);
        if let Err(error) = node.found(init).await {
            return format!("cannot found: {error}");
        }
        world.founded.store(true, Ordering::Relaxed);
    }
    node.answer_enrolments();
    let station = Station {
        process,
        node_id,
        service: node.service(),
        trust: trust.clone(),
    };
    world.network.connect(number, station);
    let (targets, seen) = watch::channel(None);
    let targets = Arc::new(targets);
    machine.with(process, |running| running.targets = Some(targets.clone()));
    let enforcer = Dataplane {
        world: world.clone(),
        number,
        files: machine.disk.directory("lkg").of_this_process(),
    };
    world.tell(|| format!("m{number}: the control plane runs as {node_id}"));
    let working = async {
        futures::join!(
            follow(node.clone(), identity, trust, files),
            feed(node.clone(), targets, progress.clone()),
            replay::run(&enforcer, seen, progress),
        )
    };
    match Sim::select2(Box::pin(node.failed()), Box::pin(working)).await {
        Select2::First(failure) => failure.to_string(),
        Select2::Second(_) => "its state is no longer published".into(),
    }
}

fn config(world: &World, number: usize, identity: &Identity) -> NodeConfig {
    let known = identity.known.iter();
    let others = known.filter(|(id, _)| **id != identity.node_id);
    NodeConfig {
        known_members: others
            .map(|(id, address)| Peer {
                node_id: *id,
                address: address.clone(),
            })
            .collect(),
        name: format!("m{number}"),
        addresses: addresses(number),
        incarnation: world.random(Random::draw),
        timing: Timing::default(),
        snapshot_every_entries: 25,
        entries_kept: 6,
        promote_after: Duration::from_millis(500),
        propose_timeout: Duration::from_secs(2),
        ..NodeConfig::new(identity.node_id)
    }
}

/// What the node needs of its machine. It does not hold on to the world, which holds on to the node.
fn environment(world: &World, number: usize) -> Environment {
    let machine = &world.machines[number];
    let (clock, free) = (machine.clock_ms.clone(), machine.free_bytes.clone());
    let chance = world.chance();
    Environment {
        wall_clock_ms: Arc::new(move || {
            wall_clock_ms().saturating_add_signed(clock.load(Ordering::Relaxed))
        }),
        random: Arc::new(move |buffer| locked(&chance).fill(buffer)),
        free_bytes: Arc::new(move || Some(free.load(Ordering::Relaxed))),
    }
}

/// The disk at work: what queues up while a commit is under way is written with the next.
async fn drive(store: Store, disk_us: Arc<AtomicU64>, world: Arc<World>) {
    loop {
        if let Ok(false) = Sim::timeout(IDLE_FLUSH, Box::pin(store.queued())).await {
            return;
        }
        let least = disk_us.load(Ordering::Relaxed);
        let takes = world.random(|random| least + random.between(100, 900));
        Sim::sleep(Duration::from_micros(takes)).await;
        store.write_queued();
    }
}

/// Who this machine is: by its disk, by founding, or by joining for as long as it takes.
async fn who(
    world: &Arc<World>,
    number: usize,
    files: &Files,
) -> io::Result<(Identity, Option<NodeKey>)> {
    if let Some(identity) = identity(files)? {
        return Ok((identity, None));
    }
    if number == 0 && !world.founded.load(Ordering::Relaxed) {
        let node_id = NodeId(world.random(Random::draw));
        let identity = Identity {
            node_id,
            known: BTreeMap::new(),
        };
        keep(files, &identity)?;
        let key = NodeKey::create().map_err(io::Error::other)?;
        return Ok((identity, Some(key)));
    }
    let request = match files.read("request")? {
        Some(request) => request,
        None => {
            let key = NodeKey::create().map_err(io::Error::other)?;
            files.write("request", &[Bytes::copy_from_slice(key.request())])?;
            key.request().to_vec()
        }
    };
    let grant = join(world, number, request).await;
    let mut node_id = grant.node_id;
    if world.mutant == Some(Mutant::IdReused)
        && let Some(last) = *locked(&world.machines[number].last_id)
    {
        node_id = last;
    }
    let identity = Identity {
        node_id,
        known: addresses_of(&grant.members).collect(),
    };
    keep(files, &identity)?;
    world.tell(|| format!("m{number}: joined as {node_id}"));
    Ok((identity, None))
}

/// Asks every other machine until one lets it in.
async fn join(world: &Arc<World>, number: usize, request: Vec<u8>) -> EnrolGrant {
    let application = Application {
        csr: request,
        name: format!("m{number}"),
        addresses: addresses(number),
        version: "simulated".into(),
        feature_level: cluster::node::FEATURE_LEVEL,
    };
    loop {
        let other = world.random(|random| random.index(MACHINES));
        if other != number {
            let attempt = Box::pin(knock(world, number, other, application.clone()));
            if let Ok(Some(Outcome::Granted(grant))) = Sim::timeout(JOIN_DEADLINE, attempt).await {
                return *grant;
            }
        }
        let pause = world.random(|random| random.between(50, 500));
        Sim::sleep(Duration::from_millis(pause)).await;
    }
}

/// One attempt at one machine's join listener; none when the connection broke.
async fn knock(
    world: &Arc<World>,
    number: usize,
    other: usize,
    application: Application,
) -> Option<Outcome> {
    let network = &world.network;
    if !network.carry(number, other).await {
        return None;
    }
    let station = network.station(other)?;
    let node = world.machines[other].live()?.node;
    let exporter = nonce(world);
    let (to_cluster, at_cluster) = mpsc::unbounded();
    let (to_joiner, mut at_joiner) = mpsc::unbounded();
    let _detached = spawn_in(
        station.process,
        admit(world.clone(), node, exporter, at_cluster, to_joiner),
    );
    let binding = Binding {
        nonce: nonce(world),
        exporter,
    };
    let mut joiner = Joiner::new(world.secrets.clone(), application, binding);
    loop {
        if let Some(output) = joiner.poll_transmit() {
            if !network.carry(number, other).await {
                return None;
            }
            to_cluster.unbounded_send(output).ok()?;
        }
        let input: Vec<u8> = at_joiner.next().await?;
        if !network.carry(other, number).await {
            return None;
        }
        match joiner.handle_input(&input) {
            Ok(None) => {}
            Ok(Some(outcome)) => return Some(outcome),
            Err(error) => {
                world.accuse(Invariant::Join, format!("m{number} at m{other}: {error}"));
                return None;
            }
        }
    }
}

/// The listening side of one attempt.
async fn admit(
    world: Arc<World>,
    node: Node<Sim>,
    exporter: [u8; 32],
    mut input: mpsc::UnboundedReceiver<Vec<u8>>,
    output: mpsc::UnboundedSender<Vec<u8>>,
) {
    let now = UNIX_EPOCH + Duration::from_millis(wall_clock_ms());
    let secrets = world.secrets.iter().filter(|secret| secret.is_valid(now));
    let binding = Binding {
        nonce: nonce(&world),
        exporter,
    };
    let mut acceptor = Acceptor::new(secrets.cloned().collect(), binding);
    while let Some(bytes) = input.next().await {
        let request = match acceptor.handle_input(&bytes) {
            Ok(request) => request,
            Err(error) => return world.accuse(Invariant::Join, error.to_string()),
        };
        if let Some(request) = request {
            let outcome = node.enrol(request).await;
            acceptor.answer(outcome);
        }
        if let Some(bytes) = acceptor.poll_transmit()
            && output.unbounded_send(bytes).is_err()
        {
            return;
        }
    }
}

fn nonce(world: &World) -> [u8; 32] {
    let mut bytes = [0; 32];
    world.random(|random| random.fill(&mut bytes));
    bytes
}

fn addresses_of(members: &[KnownMember]) -> impl Iterator<Item = (NodeId, String)> {
    members
        .iter()
        .map(|member| (member.node_id, member.cluster_address.clone()))
}

/// Keeps whom this machine trusts up with its state, in memory and on disk.
async fn follow(node: Node<Sim>, mut identity: Identity, trust: Trust, files: Files) {
    let mut states = node.watch();
    loop {
        let state: Arc<State> = states.borrow_and_update().clone();
        let mut known = identity.known.clone();
        known.extend(addresses_of(&known_members(&state)));
        known.retain(|id, _| state.removed(*id).is_none());
        trust.set_removed(state.removed_ids().collect());
        if known != identity.known {
            identity.known = known;
            // What cannot be written now is written with the next change; the state says it as well.
            let _ = keep(&files, &identity);
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Feeds applied policies to the replay agent, and retries what failed.
async fn feed(node: Node<Sim>, targets: Targets, progress: Arc<watch::Sender<Progress>>) {
    let mut states = node.watch();
    let mut last = None;
    loop {
        let state: Arc<State> = states.borrow_and_update().clone();
        if let Some(target) = newest(&state).filter(|target| Some(target.index) != last) {
            last = Some(target.index);
            targets.send_replace(Some(target));
        } else if progress.borrow().failure.is_some() {
            targets.send_modify(|_same_again| {});
        }
        if let Ok(Err(_)) = Sim::timeout(REPLAY_RETRY, Box::pin(states.changed())).await {
            return;
        }
    }
}

fn newest(state: &State) -> Option<Target> {
    let policy = state.policy()?;
    Some(Target {
        lineage: state.lineage()?,
        index: policy.index,
        revision: policy.revision,
        hash: policy.hash.0,
        document: state.document(policy)?.into(),
    })
}

/// A dataplane that takes its time, and tells the observer what it runs on.
struct Dataplane {
    world: Arc<World>,
    number: usize,
    files: Files,
}

impl Dataplane {
    async fn takes(&self, longest_ms: u64) {
        let takes = self.world.random(|random| random.between(1, longest_ms));
        Sim::sleep(Duration::from_millis(takes)).await;
    }
}

impl replay::Enforcer for Dataplane {
    type Prepared = Mark;

    async fn compile(&self, target: &Target) -> Result<Mark, String> {
        self.takes(20).await;
        Ok(Mark::from(target))
    }

    async fn enforce(&self, prepared: Mark) -> Result<(), String> {
        self.takes(5).await;
        self.world
            .observe(|observer| observer.enforces(self.number, &prepared));
        Ok(())
    }

    async fn keep(&self, target: &Target) -> Result<(), String> {
        self.takes(3).await;
        lkg::write_to(&self.files, target).map_err(|error| error.to_string())
    }
}
