//! What names were found to have, as this node lets its packet workers and its peers know it.
//!
//! Every change is published to the workers while it is made: whoever sees a client's answer leave knows that they judge by
//! it. Peers are told in order by a task for each ([`feed`]); an answer waits for those that keep up, for a bounded time.

mod barred;
mod feed;
mod journal;
mod metrics;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use engine::Snapshot;
use engine::grant::Table;
use grants::{Asked, Grant, Origin, Settings, Store, Wanted};
use policy::Compiled;
use proxy::dns::{Denied, Granted, Granting, Told};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dataplane::{DeniedNames, monotonic};
use crate::readiness::{Part, Readiness};
use barred::Barred;
use journal::Journal;
pub(crate) use metrics::FAMILIES;

/// Most grants: some 300 MiB.
const CAPACITY: usize = 1 << 20;
/// Grants that are looked at before others have their turn.
const SWEPT_AT_ONCE: usize = 1_024;
/// Names that are shown before others have their turn.
const SHOWN_AT_ONCE: usize = 1_024;
/// How long a table that was replaced is kept, so that no packet worker has to free it, in milliseconds.
const RETIRED_MS: u64 = 1_000;
/// A peer that has missed the bound this often in a row is not waited for until it has caught up.
const MISSES: u32 = 3;
/// How long a node that starts waits for what its peers hold, before it is ready without that.
const PEERS_WAIT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// For how long what a peer that says nothing any more has granted outlives its end, at least.
const SILENT: Duration = Duration::from_secs(60);
/// One that has said nothing for so long is gone.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How often all that is held is written down, if something is new.
const WRITE_ALL: Duration = Duration::from_secs(60);
/// How often what is new of this node's own is written down.
const WRITE: Duration = Duration::from_secs(1);

/// The grants of this node.
pub struct Grants {
    held: Mutex<Held>,
    /// What packet workers judge by, once there are any.
    published: OnceLock<Arc<ArcSwap<Snapshot>>>,
    /// The place in this node's stream that the next change will have.
    news: watch::Sender<u64>,
    /// The policy in force has rules by name.
    needed: watch::Sender<bool>,
    /// Who the peers are is known.
    met: watch::Sender<bool>,
    /// The place that all peers which are waited for have come to.
    reached: watch::Sender<u64>,
    peers: Mutex<BTreeMap<Origin, Peer>>,
    journal: Mutex<Journal>,
    barred: Barred,
    /// Changes when a grant of this node has ended before its time.
    epoch: AtomicU64,
    sweep_interval: Duration,
    /// How long an answer waits for peers.
    bound: Duration,
    /// When the control plane began, or this node.
    began: Mutex<Instant>,
    /// Answers that left before all peers knew.
    late_answers: AtomicU64,
}

struct Held {
    store: Store,
    /// Changes of the table that are published.
    published: u64,
    /// Tables that were published before, and when they were replaced.
    retired: VecDeque<(u64, Arc<Table>)>,
}

/// A peer, as far as telling it has come.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// The place that it has come to.
    at: u64,
    /// Whether answers wait for it.
    waited_for: bool,
    /// Answers in a row that left without it.
    missed: u32,
    /// All of them.
    misses: u64,
    /// Whether it answers; none: not known yet.
    reachable: Option<bool>,
    /// When it said something last.
    heard: Option<Instant>,
    /// It has said something since the control plane began.
    in_touch: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            at: 0,
            waited_for: true,
            missed: 0,
            misses: 0,
            reachable: None,
            heard: None,
            in_touch: false,
        }
    }
}

impl Peer {
    fn set_unreachable(&mut self) {
        (self.reachable, self.waited_for) = (Some(false), false);
    }

    /// Whether it tells this node what it grants, and is told, since the control plane began.
    fn is_in_touch(&self) -> bool {
        self.in_touch && self.reachable == Some(true)
    }

    /// Whether it may be telling what it has granted: what it said last is not long ago, or it is about to say something.
    fn may_be_telling(&self) -> bool {
        match self.heard {
            Some(heard) => heard.elapsed() < FORGOTTEN,
            None => self.reachable != Some(false),
        }
    }
}

fn now_ms() -> u64 {
    monotonic().0 / 1_000_000
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panicked has at worst left a grant short of a claim.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Grants {
    /// With what was kept in the data directory.
    pub fn open(config: &Config) -> Arc<Self> {
        let grace = config.dataplane.dns_allowlist_idle();
        let grants = Self::new(
            &config.cluster.data_dir,
            grace,
            Duration::from_secs(config.dataplane.dns_allowlist_gc_interval_secs.into()),
            Duration::from_millis(config.dns.program_timeout_ms.into()),
            Barred::new(config),
        );
        Arc::new(grants)
    }

    /// Without any, and without a place to keep them.
    #[cfg(test)]
    pub(crate) fn nothing() -> Arc<Self> {
        let minute = Duration::from_secs(60);
        Arc::new(Self::new(
            Path::new("/nonexistent"),
            minute,
            minute,
            Duration::ZERO,
            Barred::nothing(),
        ))
    }

    fn new(
        data_dir: &Path,
        grace: Duration,
        sweep: Duration,
        bound: Duration,
        barred: Barred,
    ) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4);
        // What live flows use is extended before it ends.
        let sweep_interval = sweep.min(grace / 3).max(Duration::from_millis(100));
        let mut store = Store::new(Settings {
            grace_ms: milliseconds(grace),
            capacity: CAPACITY,
            silent_ms: milliseconds((3 * sweep_interval).max(SILENT)),
            incarnation: crate::control::random_u64(),
        })
        .but_for(barred.judge());
        let now_ms = now_ms();
        let journal = Journal::open(data_dir, |changes, elapsed_ms| {
            store.restore(&changes, elapsed_ms, now_ms);
        });
        if !store.is_empty() {
            let names = store.len();
            tracing::info!(
                names,
                "names that clients have resolved before stay granted"
            );
        }
        Self {
            news: watch::Sender::new(store.next_place()),
            needed: watch::Sender::new(false),
            met: watch::Sender::new(false),
            reached: watch::Sender::new(u64::MAX),
            held: Mutex::new(Held {
                store,
                published: 0,
                retired: VecDeque::new(),
            }),
            published: OnceLock::new(),
            peers: Mutex::default(),
            journal: Mutex::new(journal),
            barred,
            epoch: AtomicU64::new(0),
            sweep_interval,
            bound,
            began: Mutex::new(Instant::now()),
            late_answers: AtomicU64::new(0),
        }
    }

    /// Publishes changes to what packet workers judge by from now on.
    pub(crate) fn attach(&self, published: Arc<ArcSwap<Snapshot>>) {
        // There is one dataplane.
        let _ = self.published.set(published);
    }

    /// Derives everything for a policy that is about to be published, while others change what is granted.
    pub(crate) async fn prepare(&self, policy: &Arc<Compiled>) {
        while !self.change(|store, _now_ms| store.prepare(policy, SWEPT_AT_ONCE)) {
            tokio::task::yield_now().await;
        }
    }

    /// Runs `publish`, which publishes a policy with the table that it gets for it; nothing changes meanwhile.
    pub(crate) fn install<T>(
        &self,
        publish: impl FnOnce(&mut dyn FnMut(&Arc<Compiled>) -> Table) -> T,
    ) -> T {
        let mut held = lock(&self.held);
        let now_ms = now_ms();
        let published = publish(&mut |policy| {
            let needed = policy.name_rules().next().is_some();
            self.needed
                .send_if_modified(|was| std::mem::replace(was, needed) != needed);
            held.store.install(Arc::clone(policy), now_ms)
        });
        held.published = held.store.changes();
        self.note(&held.store);
        published
    }

    /// Tells those who wait for news of the store, or go by what it has.
    fn note(&self, store: &Store) {
        self.epoch.store(store.lost(), Ordering::Release);
        let next = store.next_place();
        self.news
            .send_if_modified(|news| std::mem::replace(news, next) != next);
    }

    /// Changes what is granted, and publishes that.
    fn change<T>(&self, change: impl FnOnce(&mut Store, u64) -> T) -> T {
        let now_ms = now_ms();
        let mut held = lock(&self.held);
        let held = &mut *held;
        let changed = change(&mut held.store, now_ms);
        if held.published != held.store.changes()
            && let Some(published) = self.published.get()
        {
            held.published = held.store.changes();
            let table = Arc::new(held.store.table());
            let before = published.load().grants().swap(table);
            held.retired.push_back((now_ms, before));
        }
        while held
            .retired
            .pop_front_if(|(since_ms, _)| *since_ms + RETIRED_MS <= now_ms)
            .is_some()
        {}
        self.note(&held.store);
        changed
    }

    /// Reads what is granted.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Store, u64) -> T) -> T {
        read(&lock(&self.held).store, now_ms())
    }

    /// Shows the grants that are wanted, with the time it is. Others change what is granted meanwhile.
    pub(crate) fn each(&self, wanted: &Wanted<'_>, mut take: impl FnMut(Grant, u64)) {
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.read(|store, now_ms| {
                store.each(wanted, at, SHOWN_AT_ONCE, now_ms, |grant| {
                    take(grant, now_ms);
                })
            });
        }
    }

    /// Waits until this node knows of each peer whether it can be told, and has told it what there is.
    pub(crate) async fn in_touch(&self) {
        let mut met = self.met.subscribe();
        let mut reached = self.reached.subscribe();
        // They end with this.
        let _ = met.wait_for(|met| *met).await;
        if *self.needed.borrow() {
            let newest = *self.news.borrow();
            let _ = reached.wait_for(|reached| *reached >= newest).await;
        }
    }

    /// Waits until peers have come to a place, for as long as the bound allows.
    async fn wait_for_peers(self: Arc<Self>, place: u64) {
        let mut reached = self.reached.subscribe();
        let told = reached.wait_for(|reached| *reached > place);
        if tokio::time::timeout(self.bound, told).await.is_ok() {
            return;
        }
        self.late_answers.fetch_add(1, Ordering::Relaxed);
        self.change_peers(|peers| {
            for peer in peers.values_mut() {
                if peer.waited_for && peer.at <= place {
                    peer.misses += 1;
                    peer.missed += 1;
                    peer.waited_for = peer.missed < MISSES;
                }
            }
        });
    }

    fn all_peers(&self) -> Vec<(Origin, Peer)> {
        let peers = lock(&self.peers);
        peers.iter().map(|(id, peer)| (*id, *peer)).collect()
    }

    fn change_peers(&self, change: impl FnOnce(&mut BTreeMap<Origin, Peer>)) {
        let mut peers = lock(&self.peers);
        change(&mut peers);
        let waited_for = peers.values().filter(|peer| peer.waited_for);
        let least = waited_for.map(|peer| peer.at).min().unwrap_or(u64::MAX);
        self.reached
            .send_if_modified(|reached| std::mem::replace(reached, least) != least);
    }

    /// Ends what has had its time, extends what live flows use, and writes down what is new, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let sweeping = async {
            loop {
                let mut from = Some(0);
                while let Some(at) = from {
                    from = self.change(|store, now_ms| store.sweep(at, SWEPT_AT_ONCE, now_ms));
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(self.sweep_interval).await;
            }
        };
        let writing = async {
            // What there was when something was written, and when all of it was.
            let (mut written, mut whole, mut whole_since) = (0, 0, Instant::now());
            loop {
                tokio::time::sleep(WRITE).await;
                let changes = self.read(|store, _now_ms| store.changes() + store.next_place());
                // What others have granted is in none of this node's own changes.
                let all = changes != whole && whole_since.elapsed() >= WRITE_ALL;
                if changes == written && !all {
                    continue;
                }
                written = changes;
                if all {
                    (whole, whole_since) = (changes, Instant::now());
                }
                let grants = Arc::clone(&self);
                let written = tokio::task::spawn_blocking(move || grants.write_down(all)).await;
                if let Err(error) = written {
                    tracing::error!(%error, "grants are not written down");
                }
            }
        };
        let watching = async {
            let mut needed = self.needed.subscribe();
            loop {
                let is_needed = *needed.borrow_and_update();
                let incomplete = self.may_be_incomplete();
                self.change(|store, _now_ms| store.set_incomplete(incomplete));
                rest(is_needed, &mut needed).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sweeping => {}
            () = writing => {}
            () = watching => {}
            () = self.keep_barred() => {}
        }
    }

    /// Whether peers may have granted what this node has not heard of yet: it may be under way whenever there are any.
    fn may_be_incomplete(&self) -> bool {
        let has_just_begun = !*self.met.borrow() && lock(&self.began).elapsed() < PEERS_WAIT;
        *self.needed.borrow()
            && (has_just_begun || lock(&self.peers).values().any(Peer::may_be_telling))
    }

    /// Writes down what is new; all of it anew, if that is wanted or the file has grown.
    pub(crate) fn write_down(&self, all: bool) {
        lock(&self.journal).write_down(self, all);
    }

    /// Says in `readiness` whether this node knows what its peers do, until `stop`.
    pub(crate) async fn tell(self: Arc<Self>, readiness: Arc<Readiness>, stop: CancellationToken) {
        let mut needed = self.needed.subscribe();
        loop {
            let is_needed = *needed.borrow_and_update();
            match self.standing() {
                Ok(detail) => readiness.set_ok(Part::DnsAllowlist, detail),
                Err(detail) => readiness.set_failed(Part::DnsAllowlist, detail),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = rest(is_needed, &mut needed) => {}
            }
        }
    }

    fn standing(&self) -> Result<String, String> {
        if !*self.needed.borrow() {
            return Ok("no active policy needs it".into());
        }
        let is_early = lock(&self.began).elapsed() < PEERS_WAIT;
        if is_early && !*self.met.borrow() {
            return Err(
                "waiting for the control plane, to ask members what they have granted".into(),
            );
        }
        let peers = self.all_peers();
        self.read(|store, _now_ms| {
            let mut reachable = peers
                .iter()
                .filter(|(_, peer)| peer.reachable != Some(false));
            let missing = reachable.find(|(id, peer)| !peer.is_in_touch() || store.is_behind(*id));
            match missing {
                Some((id, _)) if is_early => {
                    let id = cluster::NodeId(*id);
                    Err(format!("waiting for what node {id} has granted"))
                }
                _ => Ok(format!(
                    "addresses of names that are granted: {}",
                    store.len()
                )),
            }
        })
    }
}

/// A short while, or, where no policy needs grants, until one does.
async fn rest(is_needed: bool, needed: &mut watch::Receiver<bool>) {
    let changed = async {
        if needed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    match is_needed {
        true => drop(tokio::time::timeout(LOOK, changed).await),
        false => changed.await,
    }
}

/// [`Granting`] waits for peers, so it needs to outlive the answer. What is denied is for the node's findings.
pub(crate) struct Programming(pub(crate) Arc<Grants>, pub(crate) Arc<DeniedNames>);

impl Granting for Programming {
    fn grant(&self, told: &Told<'_>) -> Granted {
        let asked = Asked {
            group: told.group,
            client: told.client,
            name: told.name,
            addresses: told.addresses,
            ttl_s: told.ttl_s,
        };
        let (learned, now_ms) = self
            .0
            .change(|store, now_ms| (store.learn(&asked, now_ms), now_ms));
        let wait = (learned.place > 0 && *self.0.reached.borrow() <= learned.place).then(|| {
            let grants = Arc::clone(&self.0);
            Box::pin(grants.wait_for_peers(learned.place)) as _
        });
        Granted {
            for_ms: learned.until_ms.saturating_sub(now_ms),
            wait,
        }
    }

    fn denied(&self, denied: &Denied<'_>) {
        self.1.tell(denied);
    }

    fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
