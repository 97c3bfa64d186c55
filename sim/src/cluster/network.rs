//! The network between machines: delays, losses, cuts in either direction, broken connections.
//!
//! Requests are answered by tasks of the process that is asked, so that they end with it. Connections keep their order,
//! as TCP's do, and break; requests on different connections overtake one another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cluster::NodeId;
use cluster::transport::{Kind, Peer, Search, Service, Transport, TransportError};
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use openraft::AsyncRuntime as _;

use super::mutant::Mutant;
use super::random::Random;
use super::runtime::{Process, Sim, scheduler, spawn_in};

/// How long a connection tries to get a message through before it breaks.
const BREAKS_AFTER: Duration = Duration::from_secs(3);

/// How often it tries.
const RETRY: Duration = Duration::from_millis(50);

/// Whom a machine lets in; what TLS decides in the product. Every member shows vouchers, so that only those are kept out
/// who never joined, or of whom this machine knows that they were removed.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    joined: Arc<Mutex<BTreeSet<NodeId>>>,
    removed: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Trust {
    /// Replaces those that are known to be removed.
    pub fn set_removed(&self, removed: BTreeSet<NodeId>) {
        *locked(&self.removed) = removed;
    }

    fn has(&self, node_id: NodeId) -> bool {
        locked(&self.joined).contains(&node_id) && !locked(&self.removed).contains(&node_id)
    }
}

/// What listens on a machine.
#[derive(Clone)]
pub struct Station {
    /// The process that answers.
    pub process: Process,
    /// Who it proves to be.
    pub node_id: NodeId,
    /// What it answers with.
    pub service: Arc<dyn Service>,
    /// Whom it lets in.
    pub trust: Trust,
}

/// All cables. Clones are the same network.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    random: Random,
    /// Everybody who ever became a member.
    joined: Arc<Mutex<BTreeSet<NodeId>>>,
    stations: BTreeMap<usize, Station>,
    /// Directed, by machine.
    cuts: BTreeSet<(usize, usize)>,
    loss_percent: u64,
    /// Added to every delay, at most, in microseconds.
    jitter_us: u64,
    /// Added to every delay from or to a machine, in microseconds.
    slow_us: BTreeMap<usize, u64>,
}

/// The cluster listener's address of a machine.
pub fn address(machine: usize) -> String {
    format!("m{machine}:9600")
}

fn machine_at(address: &str) -> Option<usize> {
    address
        .strip_prefix('m')?
        .strip_suffix(":9600")?
        .parse()
        .ok()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn lost(what: &str) -> TransportError {
    TransportError::Lost(what.into())
}

impl Network {
    /// A network without faults.
    pub fn new(random: Random) -> Self {
        Network {
            inner: Arc::new(Mutex::new(Inner {
                random,
                joined: Arc::default(),
                stations: BTreeMap::new(),
                cuts: BTreeSet::new(),
                loss_percent: 0,
                jitter_us: 0,
                slow_us: BTreeMap::new(),
            })),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }

    /// What a machine goes by that has become the member `node_id`.
    pub fn admit(&self, node_id: NodeId) -> Trust {
        let joined = self.inner().joined.clone();
        locked(&joined).insert(node_id);
        Trust {
            joined,
            removed: Arc::default(),
        }
    }

    /// Begins to listen.
    pub fn connect(&self, machine: usize, station: Station) {
        self.inner().stations.insert(machine, station);
    }

    /// Ends to listen.
    pub fn disconnect(&self, machine: usize) {
        self.inner().stations.remove(&machine);
    }

    /// What listens on a machine.
    pub fn station(&self, machine: usize) -> Option<Station> {
        self.inner().stations.get(&machine).cloned()
    }

    /// Loses everything from the first to the second.
    pub fn cut(&self, from: usize, to: usize) {
        self.inner().cuts.insert((from, to));
    }

    /// Mends one direction.
    pub fn mend(&self, from: usize, to: usize) {
        self.inner().cuts.remove(&(from, to));
    }

    /// Loses some messages, and delays all of them by up to this.
    pub fn disturb(&self, loss_percent: u64, jitter: Duration) {
        let mut inner = self.inner();
        inner.loss_percent = loss_percent;
        inner.jitter_us = micros(jitter);
    }

    /// Delays everything from and to a machine.
    pub fn slow(&self, machine: usize, by: Duration) {
        self.inner().slow_us.insert(machine, micros(by));
    }

    /// Mends everything.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.cuts.clear();
        inner.slow_us.clear();
        (inner.loss_percent, inner.jitter_us) = (0, 0);
    }

    /// How long the next message takes, and whether it arrives if nothing is cut.
    fn next(&self, from: usize, to: usize) -> (Duration, bool) {
        let mut inner = self.inner();
        let slow: u64 = [from, to]
            .iter()
            .filter_map(|machine| inner.slow_us.get(machine))
            .sum();
        let jitter = inner.jitter_us;
        let delay = inner.random.between(80, 400) + inner.random.below(jitter + 1) + slow;
        let loss = inner.loss_percent;
        (Duration::from_micros(delay), !inner.random.chance(loss))
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.inner().cuts.contains(&(from, to))
    }

    /// Carries one message; whether it arrived.
    pub async fn carry(&self, from: usize, to: usize) -> bool {
        let (delay, arrives) = self.next(from, to);
        Sim::sleep(delay).await;
        arrives && !self.is_cut(from, to)
    }

    /// Carries a message of an established connection, which sends it again for a while.
    async fn carry_surely(&self, from: usize, to: usize) -> bool {
        let mut waited = Duration::ZERO;
        while !self.carry(from, to).await {
            Sim::sleep(RETRY).await;
            waited += RETRY;
            if waited >= BREAKS_AFTER {
                return false;
            }
        }
        true
    }

    /// What becomes of a request that got lost: the connection is reset, or nothing is ever heard again.
    async fn silence(&self) -> TransportError {
        let reset = self.inner().random.chance(30);
        if reset {
            Sim::sleep(Duration::from_millis(5)).await;
        } else {
            Sim::sleep(Duration::from_secs(3600)).await;
        }
        lost("the connection broke")
    }

    /// The transport of the member `node_id` on `machine`.
    pub fn transport(
        &self,
        machine: usize,
        node_id: NodeId,
        trust: Trust,
        mutant: Option<Mutant>,
    ) -> Arc<dyn Transport> {
        Arc::new(Line {
            asks_itself: mutant == Some(Mutant::GuardAsleep),
            network: self.clone(),
            machine,
            node_id,
            trust,
            relocated: Arc::default(),
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// One member's end.
#[derive(Clone)]
struct Line {
    network: Network,
    machine: usize,
    node_id: NodeId,
    trust: Trust,
    /// A mutant: what it may have forgotten it asks nobody but itself.
    asks_itself: bool,
    /// By member: where it is dialled in truth, when it is to be dialled at the first address.
    relocated: Arc<Mutex<BTreeMap<NodeId, (String, String)>>>,
}

impl Line {
    /// Gets through to a member: both sides prove who they are.
    async fn reach(&self, peer: &Peer) -> Result<(usize, Station), TransportError> {
        let unreachable = |what: &str| TransportError::Unreachable(what.into());
        let address = match locked(&self.relocated).get(&peer.node_id) {
            Some((recorded, address)) if *recorded == peer.address => address.clone(),
            _ => peer.address.clone(),
        };
        let to = machine_at(&address).ok_or_else(|| unreachable("no such host"))?;
        if !self.network.carry(self.machine, to).await {
            return Err(self.network.silence().await);
        }
        let station = self
            .network
            .station(to)
            .ok_or_else(|| unreachable("connection refused"))?;
        if station.node_id != peer.node_id || !self.trust.has(peer.node_id) {
            return Err(unreachable("somebody else answers"));
        }
        if !station.trust.has(self.node_id) {
            return Err(unreachable("not let in"));
        }
        Ok((to, station))
    }

    async fn ask(&self, peer: &Peer, kind: Kind, body: Bytes) -> Result<Bytes, TransportError> {
        let (to, mut station) = self.reach(peer).await?;
        if self.asks_itself && kind == Kind::Recall {
            let own = self.network.station(self.machine);
            station = own.ok_or_else(|| lost("it does not listen yet"))?;
        }
        let (service, from) = (station.service, self.node_id);
        let answering = spawn_in(station.process, async move {
            service.handle(from, kind, body).await
        });
        let answer = answering.await.map_err(|_| lost("the peer has ended"))?;
        if !self.network.carry(to, self.machine).await {
            return Err(self.network.silence().await);
        }
        answer.map_err(|error| TransportError::Refused(error.0))
    }

    async fn open(
        &self,
        peer: &Peer,
        requests: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        let (to, station) = self.reach(peer).await?;
        let (request_sender, request_receiver) = mpsc::unbounded();
        let (answer_sender, answer_receiver) = mpsc::unbounded();
        // Ends the sending side as soon as nobody listens for answers.
        let (open, closed) = oneshot::channel::<()>();
        let broken = Arc::new(AtomicBool::new(true));

        let (line, peer_id) = (self.clone(), peer.node_id);
        let sending = async move {
            let mut requests = requests;
            while let Some(request) = requests.next().await {
                let arrived =
                    line.trust.has(peer_id) && line.network.carry_surely(line.machine, to).await;
                if !arrived || request_sender.unbounded_send(Some(request)).is_err() {
                    return;
                }
            }
            // An orderly end, other than that of the channel.
            let _ = request_sender.unbounded_send(None);
        };
        let _detached = Sim::spawn(async move {
            let _ = Sim::select2(Box::pin(sending), closed).await;
        });

        let (line, ended) = (self.clone(), broken.clone());
        let in_order = Arc::new(AtomicBool::new(false));
        let orderly = in_order.clone();
        let arriving = request_receiver
            .take_while(move |request| {
                if request.is_none() {
                    orderly.store(true, Ordering::Relaxed);
                }
                std::future::ready(request.is_some())
            })
            .filter_map(std::future::ready);
        let _detached = spawn_in(station.process, async move {
            let mut answers = station
                .service
                .handle_append(line.node_id, arriving.boxed());
            while let Some(answer) = answers.next().await {
                let arrived = station.trust.has(line.node_id)
                    && line.network.carry_surely(to, line.machine).await;
                let answer = answer.map_err(|error| TransportError::Refused(error.0));
                if !arrived || answer_sender.unbounded_send(answer).is_err() {
                    return;
                }
            }
            ended.store(!in_order.load(Ordering::Relaxed), Ordering::Relaxed);
        });

        let end = async move {
            broken
                .load(Ordering::Relaxed)
                .then(|| Err(lost("the connection broke")))
        };
        let answers = answer_receiver
            .chain(end.into_stream().filter_map(std::future::ready))
            .map(move |answer| {
                // Held by the stream.
                let _open = &open;
                answer
            });
        Ok(answers.boxed())
    }

    async fn deliver(
        &self,
        peer: &Peer,
        mut chunks: BoxStream<'static, Bytes>,
    ) -> Result<Bytes, TransportError> {
        // A snapshot has no deadline as a whole; to get through has one.
        let (to, station) = Sim::timeout(BREAKS_AFTER, Box::pin(self.reach(peer)))
            .await
            .unwrap_or_else(|_| Err(lost("no connection in time")))?;
        let (sender, receiver) = mpsc::unbounded();
        let (service, from) = (station.service, self.node_id);
        let installing = spawn_in(station.process, async move {
            service.handle_snapshot(from, receiver.boxed()).await
        });
        while let Some(chunk) = chunks.next().await {
            if !self.network.carry_surely(self.machine, to).await {
                let _ = sender.unbounded_send(Err(lost("the connection broke")));
                return Err(lost("the connection broke"));
            }
            // It may have ended early, with an answer that tells why.
            let _ = sender.unbounded_send(Ok(chunk));
        }
        drop(sender);
        let answer = installing.await.map_err(|_| lost("the peer has ended"))?;
        if !self.network.carry_surely(to, self.machine).await {
            return Err(lost("the connection broke"));
        }
        answer.map_err(|error| TransportError::Refused(error.0))
    }
}

impl Transport for Line {
    fn call(
        &self,
        peer: &Peer,
        kind: Kind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (line, peer) = (self.clone(), peer.clone());
        scheduler().note(kind as u64);
        Box::pin(async move {
            Sim::timeout(deadline, Box::pin(line.ask(&peer, kind, body)))
                .await
                .unwrap_or_else(|_| Err(lost("no answer in time")))
        })
    }

    fn open_append(
        &self,
        peer: &Peer,
        requests: BoxStream<'static, Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>>
    {
        let (line, peer) = (self.clone(), peer.clone());
        Box::pin(async move {
            Sim::timeout(deadline, Box::pin(line.open(&peer, requests)))
                .await
                .unwrap_or_else(|_| Err(lost("no answer in time")))
        })
    }

    fn send_snapshot(
        &self,
        peer: &Peer,
        chunks: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (line, peer) = (self.clone(), peer.clone());
        Box::pin(async move { line.deliver(&peer, chunks).await })
    }

    fn forget(&self, _node_id: NodeId) {
        // Trust follows the state by itself.
    }

    fn find(&self, search: Search) -> BoxFuture<'static, Vec<(NodeId, Bytes)>> {
        let line = self.clone();
        Box::pin(async move {
            let asking = search
                .addresses
                .iter()
                .filter(|address| **address != search.own)
                .filter_map(|address| {
                    let node_id = line.network.station(machine_at(address)?)?.node_id;
                    let peer = Peer {
                        node_id,
                        address: address.clone(),
                    };
                    Some((line.clone(), peer, search.body.clone()))
                })
                .map(|(line, peer, body)| async move {
                    let asked = Box::pin(line.ask(&peer, Kind::Find, body));
                    let answer = Sim::timeout(search.deadline, asked).await;
                    Some((peer.node_id, answer.ok()?.ok()?))
                });
            join_all(asking).await.into_iter().flatten().collect()
        })
    }

    fn relocate(&self, node_id: NodeId, recorded: &str, address: &str) {
        let mut relocated = locked(&self.relocated);
        if recorded == address {
            relocated.remove(&node_id);
        } else {
            relocated.insert(node_id, (recorded.to_owned(), address.to_owned()));
        }
    }

    fn relocated(&self) -> Vec<(NodeId, String)> {
        let relocated = locked(&self.relocated);
        let relocated = relocated.iter();
        relocated
            .map(|(id, (_, address))| (*id, address.clone()))
            .collect()
    }
}
