//! A member: consensus, state and transport under one handle.
//!
//! The handle is generic over the async runtime, with tokio as the default; nothing here starts a thread, reads a clock
//! or draws a random number other than through that runtime and the [`Environment`], so that the simulator runs it as
//! it is.

pub(crate) mod amnesia;
pub(crate) mod autopilot;
mod boots;
pub(crate) mod divergence;
pub(crate) mod door;
pub(crate) mod finder;
pub(crate) mod guard;
mod notes;
mod pace;
mod propose;
pub(crate) mod report;
mod scrub;
mod steward;
pub(crate) mod tempo;
mod trust;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::alias::InstantOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, Config, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::watch;

pub use crate::feature::FEATURE_LEVEL;
pub use autopilot::{Foresight, Wish};
use divergence::{Album, Findings};
use guard::Guard;
use notes::Notes;
pub use propose::{Applied, ProposeError, REQUEST_DIGESTS_LEVEL, Retry, TransferError};
use report::{LeaderView, Received};

use crate::command::{Addresses, Author, Command, Init, JoinApproval, Refusal};
use crate::feature::{TooOld, Verdict};
use crate::forward::{HttpRequest, HttpResponse};
use crate::id::{ClusterId, Lineage, NodeId};
use crate::keyring::Keyring;
use crate::raft::feed::Chosen;
use crate::raft::machine::Machine;
use crate::raft::network::{Network, peer};
use crate::raft::service::RaftService;
use crate::raft::{Address, Types};
use crate::state::State;
use crate::status::{NoLeader, NodeReport, Role};
use crate::store::files::Directory;
use crate::store::{LogStore, Store};
use crate::transport::{Kind, Peer, Service, ServiceError, Transport};

/// The runtime that the product uses.
pub type Tokio = openraft_rt_tokio::TokioRuntime;

/// Consensus timers, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats; 10 at least.
    pub heartbeat_ms: u64,
    /// Shortest random election time; more than `heartbeat_ms`.
    pub election_min_ms: u64,
    /// Longest random election time, and how long a leader's lease lasts; more than `election_min_ms`.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat_ms: 100,
            election_min_ms: 200,
            election_max_ms: 400,
        }
    }
}

impl Timing {
    /// How long a leader's silence goes unnoticed at most: followers wait until its lease has run out, then a random
    /// election time more.
    pub fn detection_time(&self) -> Duration {
        Duration::from_millis(2 * self.election_max_ms)
    }
}

/// How one node takes part.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// This node.
    pub node_id: NodeId,
    /// Host name, for people.
    pub name: String,
    /// Where others reach it; its `http` address comes from the [`NodeReport`].
    pub addresses: Addresses,
    /// Random, new at every start.
    pub incarnation: u64,
    /// Highest feature level that this version supports.
    pub feature_level: u32,
    /// Consensus timers.
    pub timing: Timing,
    /// By what [`Self::timing`] has been multiplied because of long ways or slow disks, as [`Node::retimed`] said, 1 if
    /// it has not been; none: the timers are not to be changed.
    pub stretch: Option<u32>,
    /// Entries after which a snapshot is taken.
    pub snapshot_every_entries: u64,
    /// Bytes of commands after which a snapshot is taken.
    pub snapshot_every_bytes: u64,
    /// Entries kept behind a snapshot, so that a short absence needs none.
    pub entries_kept: u64,
    /// How long a proposal may take until its fate is declared unknown.
    pub propose_timeout: Duration,
    /// How long a learner must have been caught up (lag below 64) before it votes.
    pub promote_after: Duration,
    /// How long every member must have supported a feature level, without a break, before it comes into force. Until
    /// then each can go back to the version that it came from.
    pub raise_after: Duration,
    /// How long a voter must have been unreachable before a spare learner takes its place.
    pub replace_after: Duration,
    /// `host:port` of cluster listeners at which members may be found whose addresses have changed.
    pub find_at: Vec<String>,
    /// Free space below which proposals are refused, in bytes: what is left is for votes and membership.
    pub reserve_bytes: u64,
    /// This node's private keys: what it vouches for others with, and opens the state's secrets with.
    pub keyring: Arc<Keyring>,
    /// Whether this node, when it leads, has new members wait for an administrator: the settings follow it.
    pub join_approval: JoinApproval,
    /// Other members that are known from before, to be asked by a node whose own log names none.
    pub known_members: Vec<Peer>,
    /// How long a restarted member waits for more than a bare majority to confirm what it acknowledged before.
    pub patience: Duration,
    /// How often the members' states are compared, at least; after 1,000 entries in any case.
    pub compare_every: Duration,
    /// The command that makes a node fetch everything anew from the other members, for messages.
    pub refetch: String,
}

impl NodeConfig {
    /// The defaults for a node with this id.
    pub fn new(node_id: NodeId) -> Self {
        NodeConfig {
            node_id,
            name: String::new(),
            addresses: Addresses::default(),
            incarnation: 0,
            feature_level: FEATURE_LEVEL,
            timing: Timing::default(),
            stretch: None,
            snapshot_every_entries: 5_000,
            snapshot_every_bytes: 64 * 1024 * 1024,
            entries_kept: 1_000,
            propose_timeout: Duration::from_secs(5),
            promote_after: Duration::from_secs(10),
            raise_after: Duration::from_secs(600),
            replace_after: Duration::from_secs(600),
            find_at: Vec::new(),
            reserve_bytes: 64 * 1024 * 1024,
            keyring: Arc::default(),
            join_approval: JoinApproval::Auto,
            known_members: Vec::new(),
            patience: Duration::from_secs(10),
            compare_every: Duration::from_secs(60),
            refetch: String::new(),
        }
    }
}

/// Fills a buffer with unpredictable bytes.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// What a node needs of the world besides network and disk.
#[derive(Clone)]
pub struct Environment {
    /// Wall clock, milliseconds since 1970.
    pub wall_clock_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Fills a buffer with unpredictable bytes.
    pub random: Random,
    /// Free bytes where the log is; none if that cannot be told.
    pub free_bytes: Arc<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}

impl Environment {
    /// The machine's clock and random source, and the free space of the file system at `data_dir`.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the machine's clock comes in"
    )]
    pub fn system(data_dir: &Path) -> Self {
        let data_dir = data_dir.to_owned();
        Environment {
            wall_clock_ms: Arc::new(|| {
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(0, |since| since.as_millis() as u64)
            }),
            random: Arc::new(|buffer| {
                aws_lc_rs::rand::fill(buffer).expect("the system's random source does not fail");
            }),
            // At every change anew, which takes a microsecond: what it said a moment ago would let a change run into a
            // full disk, its fate unknown, where it can be refused.
            free_bytes: Arc::new(move || {
                let stat = rustix::fs::statvfs(&data_dir).ok();
                stat.map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
            }),
        }
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timers contradict one another.
    #[error("the consensus timers do not fit together: {0}")]
    Timing(String),
    /// The snapshots cannot be read: quarantine.
    #[error("the snapshots cannot be read")]
    Snapshots(#[source] std::io::Error),
    /// A newer version has written them. Nothing is wrong with the data.
    #[error(transparent)]
    TooOld(TooOld),
    /// Log and snapshots do not fit together, or cannot be read: quarantine.
    #[error("consensus cannot start from this data: {0}")]
    Consensus(String),
}

/// Why a cluster could not be founded.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The store belongs to a cluster already, or another member exists.
    #[error("the store cannot found a cluster: {0}")]
    NotAllowed(String),
    /// The first entry was not committed.
    #[error("the first entry could not be written")]
    Propose(#[from] ProposeError),
    /// The first entry was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why the control plane has stopped: it must be restarted from disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The disk is full.
    #[error("the disk is full")]
    StorageFull,
    /// A write, sync or read failed.
    #[error("the storage failed: {0}")]
    Storage(String),
    /// A newer version has written what came next.
    #[error(transparent)]
    TooOld(TooOld),
    /// Another machine runs under this node's identity, and was there first.
    #[error(
        "a copy of this node is running at {0}: stop one of the two for good, or make this one a new node by removing \
         cluster.data_dir and cluster.node_id_path"
    )]
    Duplicate(String),
    /// Consensus has stopped otherwise.
    #[error("consensus has stopped: {0}")]
    Consensus(String),
    /// It was shut down.
    #[error("the node was shut down")]
    Shutdown,
}

/// Answers requests of one kind from other members.
pub type Handler =
    Arc<dyn Fn(NodeId, Bytes) -> BoxFuture<'static, Result<Bytes, ServiceError>> + Send + Sync>;

/// Answers management requests that the named member forwards.
pub type HttpHandler =
    Arc<dyn Fn(NodeId, HttpRequest) -> BoxFuture<'static, HttpResponse> + Send + Sync>;

/// When and from whom a follower last heard.
pub(crate) struct Contact<R: AsyncRuntime> {
    pub(crate) leader: NodeId,
    pub(crate) at: InstantOf<Types<R>>,
    /// The newest commit index that a leader has confirmed, and when it last did.
    pub(crate) confirmed: Option<(u64, InstantOf<Types<R>>)>,
}

/// A running member. Clones are the same node.
pub struct Node<R: AsyncRuntime = Tokio> {
    inner: Arc<Inner<R>>,
}

pub(crate) struct Inner<R: AsyncRuntime> {
    pub(crate) config: NodeConfig,
    started: InstantOf<Types<R>>,
    pub(crate) raft: Raft<Types<R>, Machine<R>>,
    environment: Environment,
    transport: Arc<dyn Transport>,
    store: Store,
    state: watch::Receiver<Arc<State>>,
    chosen: Weak<Chosen>,
    unsnapped_bytes: Arc<std::sync::atomic::AtomicU64>,
    /// Why the state machine stopped, if a newer version has written what came next.
    verdict: Verdict,
    /// States of a moment ago.
    album: Album,
    /// What this node's checks have found while it leads.
    findings: Mutex<Findings<R>>,
    contact: Mutex<Option<Contact<R>>>,
    /// Lets nothing through to consensus that a restarted member must not answer yet.
    pub(crate) guard: Guard,
    /// Members that have less than they acknowledged to this node while it leads, and when they last asked.
    forgetful: Mutex<BTreeMap<NodeId, guard::Asked<InstantOf<Types<R>>>>>,
    /// What members reported, while this node leads.
    reports: Mutex<BTreeMap<NodeId, Received<R>>>,
    /// What the leader said of all, while another node leads.
    leader_view: Mutex<Option<(LeaderView, InstantOf<Types<R>>)>>,
    own_report: watch::Sender<NodeReport>,
    /// How long the last reports took there and back.
    round_trips: Mutex<tempo::Least>,
    /// How long the cluster's timers should be, while this node leads.
    tempo: Mutex<Option<tempo::Tempo<InstantOf<Types<R>>>>>,
    /// By what this node's timers are to be multiplied from now on, if otherwise than they are.
    retime: watch::Sender<Option<u32>>,
    /// Why the leader's last step of trust failed, so that it is told once.
    trust_failure: Mutex<Option<String>>,
    /// Which machines report under each identity, while this node leads.
    boots: Mutex<boots::Boots<R>>,
    /// Members that run twice and have been told of, with the time.
    told: Mutex<BTreeMap<NodeId, InstantOf<Types<R>>>>,
    /// What this member noticed, until the change log has it.
    notes: Notes,
    /// Where the machine is that has this node's identity as well, and had it first.
    duplicate_of: Mutex<Option<String>>,
    /// Whether secrets in clear may be left on this node's disk.
    scrub: Mutex<scrub::Scrub>,
    handlers: RwLock<BTreeMap<Kind, Handler>>,
    stop: watch::Sender<bool>,
}

impl<R: AsyncRuntime> Clone for Node<R> {
    fn clone(&self) -> Self {
        Node {
            inner: self.inner.clone(),
        }
    }
}

impl<R: AsyncRuntime> std::fmt::Debug for Node<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Node")
            .field(&self.inner.config.node_id)
            .finish()
    }
}

impl<R: AsyncRuntime> Node<R> {
    /// Starts from what store and snapshots hold. The node answers its peers once [`Node::service`] is connected to
    /// the transport's listening side.
    ///
    /// # Errors
    /// Any [`StartError`]; the data is left as it is.
    pub async fn start(
        config: NodeConfig,
        environment: Environment,
        store: Store,
        snapshots: Arc<dyn Directory>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let timing = config.timing;
        let raft_config = Config {
            cluster_name: "neuwerk".into(),
            heartbeat_interval: timing.heartbeat_ms,
            election_timeout_min: timing.election_min_ms,
            election_timeout_max: timing.election_max_ms,
            install_snapshot_timeout: 60_000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every_entries),
            replication_lag_threshold: config.snapshot_every_entries.saturating_mul(2),
            max_in_snapshot_log_to_keep: config.entries_kept,
            enable_pre_vote: Some(true),
            // The amnesia guard lets it, as soon as it may.
            enable_elect: false,
            // A restarted leader must be elected anew: what it knew to be committed may be newer than what it has saved.
            enable_leader_restore: Some(false),
            backoff: "20ms 40ms 80ms ...500ms".into(),
            ..Config::default()
        }
        .validate()
        .map_err(|error| StartError::Timing(error.to_string()))?;

        let io = store.io();
        let (verdict, supported) = (Verdict::default(), config.feature_level);
        let too_old = |otherwise: StartError| match verdict.get() {
            Some(too_old) => StartError::TooOld(too_old.clone()),
            None => otherwise,
        };
        let shared = verdict.clone();
        let machine = io
            .run(move || Machine::<R>::open(snapshots, io, supported, shared))
            .await
            .and_then(|opened| opened)
            .map_err(|error| too_old(StartError::Snapshots(error)))?;
        let machine = machine.read_with(Arc::clone(&config.keyring));
        let state = machine.watch();
        let unsnapped_bytes = machine.unsnapped_bytes();
        let chosen = machine.chosen();
        let album = machine.album();
        let network = Network {
            transport: transport.clone(),
            state: state.clone(),
            io,
        };
        let raft = Raft::new(
            config.node_id,
            Arc::new(raft_config),
            network,
            LogStore::new(store.clone()),
            machine,
        )
        .await
        .map_err(|error| too_old(StartError::Consensus(error.to_string())))?;

        let inner = Arc::new(Inner {
            config,
            started: Types::<R>::now(),
            raft,
            environment,
            transport,
            store,
            state,
            unsnapped_bytes,
            verdict,
            chosen,
            album,
            findings: Mutex::default(),
            contact: Mutex::new(None),
            guard: Guard::new(),
            forgetful: Mutex::default(),
            reports: Mutex::default(),
            leader_view: Mutex::new(None),
            own_report: watch::Sender::new(NodeReport::default()),
            round_trips: Mutex::default(),
            tempo: Mutex::new(None),
            retime: watch::Sender::new(None),
            trust_failure: Mutex::new(None),
            boots: Mutex::default(),
            told: Mutex::default(),
            notes: Notes::default(),
            duplicate_of: Mutex::new(None),
            scrub: Mutex::new(scrub::Scrub::Unknown),
            handlers: RwLock::default(),
            stop: watch::Sender::new(false),
        });
        let node = Node { inner };
        // Consensus has read its disk once it answers.
        node.inner
            .raft
            .is_initialized()
            .await
            .map_err(|error| StartError::Consensus(error.to_string()))?;
        node.begin_guard().await;
        let _guard = Types::<R>::spawn(node.clone().run_guard());
        let _reporter = Types::<R>::spawn(node.clone().run_reporter());
        let _pace = Types::<R>::spawn(node.clone().run_pace());
        let _steward = Types::<R>::spawn(node.clone().run_steward());
        let _finder = Types::<R>::spawn(node.clone().run_finder());
        let _scribe = Types::<R>::spawn(node.clone().run_scribe());
        let _divergence = Types::<R>::spawn(node.clone().run_divergence());
        Ok(node)
    }

    /// What the transport's listening side calls.
    pub fn service(&self) -> Arc<dyn Service> {
        Arc::new(RaftService {
            inner: self.inner.clone(),
        })
    }

    /// Founds the cluster on an empty store, or finishes an interrupted attempt. Does nothing where a cluster exists.
    ///
    /// # Errors
    /// Any [`FoundError`].
    pub async fn found(&self, init: Init) -> Result<(), FoundError> {
        if self.state().is_initialised() {
            return Ok(());
        }
        let initialised = self
            .inner
            .raft
            .is_initialized()
            .await
            .map_err(|error| FoundError::NotAllowed(error.to_string()))?;
        if !initialised {
            let address = Address {
                cluster: self.inner.config.addresses.cluster.clone(),
            };
            self.inner
                .raft
                .initialize(BTreeMap::from([(self.node_id(), address)]))
                .await
                .map_err(|error| FoundError::NotAllowed(error.to_string()))?;
        }
        // A lone voter elects itself at once; a restarted one within an election time.
        let waiting = self.wait_for_role(|role| matches!(role, Role::Leader { .. }));
        if Types::<R>::timeout(self.inner.config.propose_timeout, waiting)
            .await
            .is_err()
        {
            return Err(ProposeError::NoLeader(self.no_leader()).into());
        }
        if init.first_key.is_some() {
            // Then nothing in clear was ever here. If that cannot be noted, it is looked for once in vain.
            let _ = self.inner.store.mark_scrubbed().await;
        }
        let author = Author::system(self.node_id());
        let applied = self
            .propose_as(Command::Init(Box::new(init)), author, None)
            .await?;
        match applied.response.accepted() {
            Ok(_) | Err(Refusal::AlreadyInitialised { .. }) => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node_id
    }

    /// The cluster, once known.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.inner.state.borrow().cluster_id()
    }

    /// The lineage, once known.
    pub fn lineage(&self) -> Option<Lineage> {
        self.inner.state.borrow().lineage()
    }

    /// The applied state, now.
    pub fn state(&self) -> Arc<State> {
        self.inner.state.borrow().clone()
    }

    /// Follows the applied state: woken by every write.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.clone()
    }

    /// Follows those changes of the applied state, from one that was told to a later one, for which `differs` is true.
    pub fn watch_changes(
        &self,
        differs: impl Fn(&State, &State) -> bool + Send + 'static,
    ) -> watch::Receiver<Arc<State>> {
        match self.inner.chosen.upgrade() {
            Some(chosen) => chosen.follow(&self.inner.state, differs),
            None => self.watch(),
        }
    }

    /// Answers requests of `kind` from now on. Kinds that belong to consensus are never passed on.
    pub fn set_handler(&self, kind: Kind, handler: Handler) {
        self.inner
            .handlers
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .insert(kind, handler);
    }

    /// Answers forwarded management requests from now on.
    pub fn set_http_handler(&self, handler: HttpHandler) {
        self.set_request_handler(Kind::Http, handler);
    }

    /// Answers management requests of other members' root from now on.
    pub fn set_admin_handler(&self, handler: HttpHandler) {
        self.set_request_handler(Kind::Admin, handler);
    }

    fn set_request_handler(&self, kind: Kind, handler: HttpHandler) {
        self.set_handler(
            kind,
            Arc::new(move |from, body| {
                let handler = handler.clone();
                Box::pin(async move {
                    let request = rmp_serde::from_slice(&body)
                        .map_err(|error| ServiceError(format!("unreadable request: {error}")))?;
                    let response = handler(from, request).await;
                    Ok(Bytes::from(
                        rmp_serde::to_vec_named(&response)
                            .expect("a response has no value that MessagePack lacks"),
                    ))
                })
            }),
        );
    }

    /// What this node is, by what it heard within the effective detection time.
    pub fn role(&self) -> Role {
        self.inner.role()
    }

    /// Ends when the control plane has stopped, and says why.
    pub async fn failed(&self) -> Failure {
        let mut metrics = self.inner.raft.metrics();
        loop {
            let duplicate_of = locked(&self.inner.duplicate_of).clone();
            if let Some(first) = duplicate_of {
                return Failure::Duplicate(first);
            }
            let changed = Types::<R>::timeout(Duration::from_secs(1), metrics.changed()).await;
            if metrics.borrow_watched().running_state.is_err() || matches!(changed, Ok(Err(_))) {
                return self.inner.failure();
            }
        }
    }

    /// Stops: no more answers, everything queued is written, files are closed. Hand over leadership before, with
    /// [`Node::transfer_leader`].
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        // It only fails when the core has panicked, and then it has stopped as well.
        let _ = self.inner.raft.shutdown().await;
        // They may hold this node, which would then never be freed.
        self.inner
            .handlers
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clear();
        let store = self.inner.store.clone();
        let _ = store.io().run(move || store.close()).await;
    }

    fn no_leader(&self) -> NoLeader {
        match self.role() {
            Role::NoLeader { reason } => reason,
            Role::Leader { .. } | Role::Follower { .. } => NoLeader::Electing,
        }
    }

    /// Looks at the role until `wanted` holds. Roles also change by mere silence, so this looks again and again.
    async fn wait_for_role(&self, wanted: impl Fn(&Role) -> bool) {
        let pause = Duration::from_millis(self.inner.config.timing.heartbeat_ms / 5 + 1);
        while !wanted(&self.role()) {
            Types::<R>::sleep(pause).await;
        }
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl<R: AsyncRuntime> Inner<R> {
    pub(crate) fn metrics<T>(&self, look: impl FnOnce(&RaftMetrics<Types<R>>) -> T) -> T {
        look(&self.raft.metrics().borrow_watched())
    }

    pub(crate) fn handler(&self, kind: Kind) -> Option<Handler> {
        self.handlers
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(&kind)
            .cloned()
    }

    pub(crate) fn io(&self) -> crate::store::Io {
        self.store.io()
    }

    /// A leader was heard, and this node has accepted what it said.
    pub(crate) fn heard(&self, leader: NodeId, confirmed: Option<u64>) {
        let now = Types::<R>::now();
        let mut contact = locked(&self.contact);
        let earlier = contact.as_ref().and_then(|contact| contact.confirmed);
        let newest = earlier.map_or(0, |(index, _)| index);
        *contact = Some(Contact {
            leader,
            at: now,
            confirmed: confirmed.map(|index| (index.max(newest), now)).or(earlier),
        });
    }

    pub(crate) fn detection_time(&self) -> Duration {
        self.config.timing.detection_time()
    }

    fn role(&self) -> Role {
        let node_id = self.config.node_id;
        let none = |reason| Role::NoLeader { reason };
        // Copied out, so that consensus never waits for this.
        let (running, leads, candidate, term, acked, alone, member, leader_address) =
            self.metrics(|metrics| {
                let membership = metrics.membership_config.membership();
                (
                    metrics.running_state.is_ok(),
                    metrics.state == ServerState::Leader,
                    metrics.state == ServerState::Candidate,
                    metrics.current_term,
                    metrics.last_quorum_acked.map(|acked| acked.into_inner()),
                    membership.voter_ids().all(|voter| voter == node_id),
                    membership.get_node(&node_id).is_some(),
                    metrics.current_leader.and_then(|leader| {
                        Some((leader, membership.get_node(&leader)?.cluster.clone()))
                    }),
                )
            });
        if !running {
            return none(NoLeader::Stopped);
        }
        let now = Types::<R>::now();
        let fresh = |at: InstantOf<Types<R>>| now < at + self.detection_time();
        if leads {
            return match acked {
                _ if alone => Role::Leader { term },
                Some(acked) if fresh(acked) => Role::Leader { term },
                Some(_) => none(NoLeader::QuorumLost),
                None => none(NoLeader::Electing),
            };
        }
        let state = self.state.borrow();
        if state.removed(node_id).is_some() || self.transport.is_removed() {
            return none(NoLeader::Removed);
        }
        match &*locked(&self.contact) {
            Some(contact) if fresh(contact.at) => {
                let fallback = leader_address
                    .filter(|(leader, _)| *leader == contact.leader)
                    .map_or(String::new(), |(_, address)| address);
                Role::Follower {
                    leader_id: contact.leader,
                    leader_address: peer(&state, contact.leader, &fallback).address,
                    leader_http: state
                        .member(contact.leader)
                        .map_or(String::new(), |member| member.addresses.http.clone()),
                }
            }
            _ if !member => none(NoLeader::NotMember),
            _ if candidate => none(NoLeader::Electing),
            Some(_) => none(NoLeader::LeaderSilent),
            None => none(NoLeader::Starting),
        }
    }

    /// Where the leader is, if another node leads.
    fn leader_peer(&self) -> Result<Peer, NoLeader> {
        match self.role() {
            Role::Follower {
                leader_id,
                leader_address,
                ..
            } => Ok(Peer {
                node_id: leader_id,
                address: leader_address,
            }),
            Role::NoLeader { reason } => Err(reason),
            Role::Leader { .. } => Err(NoLeader::Electing),
        }
    }

    fn failure(&self) -> Failure {
        if let Some(too_old) = self.verdict.get() {
            return Failure::TooOld(too_old.clone());
        }
        if let Some(error) = self.store.failure() {
            return match error.kind() {
                std::io::ErrorKind::StorageFull => Failure::StorageFull,
                _ => Failure::Storage(error.to_string()),
            };
        }
        self.metrics(|metrics| match &metrics.running_state {
            Err(openraft::errors::Fatal::StorageError(error)) => {
                Failure::Consensus(error.to_string())
            }
            Err(openraft::errors::Fatal::Panicked) => Failure::Consensus("it panicked".into()),
            Ok(()) | Err(openraft::errors::Fatal::Stopped) => Failure::Shutdown,
        })
    }
}
