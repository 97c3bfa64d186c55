//! A bench of nodes: disks whose unsynced writes can be lost, a switchboard that can be cut, and waiting for conditions
//! instead of for time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::command::{
    AccountSpec, Addresses, Authority, Certificate, Credential, FirstMember, Init, Reservation,
    Role as AccountRole, Secret, Settings, SigningKey,
};
use cluster::node::{Environment, FEATURE_LEVEL, StartError, Tokio};
use cluster::store::files::{Directory, MemoryDirectory};
use cluster::store::witness::{Seen, Witness};
use cluster::store::{Io, Store};
use cluster::transport::Peer;
use cluster::transport::memory::Switchboard;
use cluster::{
    Applied, ClusterId, Command, Digest, Lineage, Node, NodeConfig, NodeId, ProposeError, Response,
    Role, Timing,
};
use openraft::{AsyncRuntime, Instant};
use redb::StorageBackend;

/// A policy document, as far as this crate looks at it.
pub(crate) const POLICY: &[u8] = br#"{"mode":"enforce","source_groups":[]}"#;

/// An account with this name.
pub(crate) fn spec(name: &str) -> AccountSpec {
    AccountSpec {
        name: name.into(),
        description: String::new(),
        role: AccountRole::Readonly,
        status: Default::default(),
    }
}

/// How long a condition may take. Only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is on the platter, what is in flight, and whether syncs work.
#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    current: Vec<u8>,
}

/// A disk that forgets what was not synced when the power goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    platter: Arc<Mutex<Platter>>,
    failing: Arc<AtomicBool>,
}

impl Disk {
    /// The disk after a loss of power: the old handle's later writes go nowhere.
    fn after_power_loss(&self) -> Disk {
        let synced = self.platter.lock().expect("no panic").synced.clone();
        Disk {
            platter: Arc::new(Mutex::new(Platter {
                current: synced.clone(),
                synced,
            })),
            failing: Arc::default(),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.platter.lock().expect("no panic").current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let platter = self.platter.lock().expect("no panic");
        let from = offset as usize;
        out.copy_from_slice(&platter.current[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.platter
            .lock()
            .expect("no panic")
            .current
            .resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("sync failed"));
        }
        let mut platter = self.platter.lock().expect("no panic");
        platter.synced = platter.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        let mut platter = self.platter.lock().expect("no panic");
        let from = offset as usize;
        platter.current[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// What a machine remembers until it loses power.
#[derive(Debug, Clone, Default)]
struct Memory {
    seen: Arc<Mutex<Option<Seen>>>,
}

impl Memory {
    /// What is there now, for the machine's next process.
    fn copy(&self) -> Memory {
        let seen = self.seen.lock().expect("no panic").clone();
        Memory {
            seen: Arc::new(Mutex::new(seen)),
        }
    }
}

impl Witness for Memory {
    fn recall(&self) -> std::io::Result<Option<Seen>> {
        Ok(self.seen.lock().expect("no panic").clone())
    }

    fn note(&self, seen: &Seen) -> std::io::Result<()> {
        *self.seen.lock().expect("no panic") = Some(seen.clone());
        Ok(())
    }

    fn forget(&self) -> std::io::Result<()> {
        *self.seen.lock().expect("no panic") = None;
        Ok(())
    }
}

/// What a node's disks held at one time.
pub(crate) struct Image {
    disk: Disk,
    snapshots: MemoryDirectory,
}

struct Place<R: AsyncRuntime> {
    id: NodeId,
    disk: Disk,
    snapshots: MemoryDirectory,
    memory: Memory,
    known: Vec<Peer>,
    free_bytes: Arc<AtomicU64>,
    node: Option<Node<R>>,
    /// Highest feature level that it supports.
    feature_level: u32,
    stretch: Option<u32>,
}

/// Nodes 0, 1, 2, … and what is between them.
pub(crate) struct Bench<R: AsyncRuntime = Tokio> {
    board: Switchboard,
    places: Vec<Place<R>>,
    io: Io,
    /// Feature level that the cluster is founded at.
    founding_level: u32,
    pub(crate) patience: Duration,
    pub(crate) log_bytes: u64,
    /// What the nodes draw their random bytes from.
    draws: Arc<AtomicU64>,
}

impl<R: AsyncRuntime> Bench<R> {
    /// `size` nodes, none of them running.
    pub(crate) fn new(size: usize) -> Self {
        let places = (0..size)
            .map(|n| Place {
                id: NodeId(n as u64 + 1),
                disk: Disk::default(),
                snapshots: MemoryDirectory::default(),
                memory: Memory::default(),
                known: Vec::new(),
                free_bytes: Arc::new(AtomicU64::new(u64::MAX)),
                node: None,
                feature_level: FEATURE_LEVEL,
                stretch: None,
            })
            .collect();
        Bench {
            board: Switchboard::new(),
            places,
            io: Io::Threaded,
            founding_level: FEATURE_LEVEL,
            patience: Duration::from_secs(30),
            log_bytes: 64 * 1024 * 1024,
            draws: Arc::default(),
        }
    }

    /// `size` nodes whose disks take no time, for a simulated runtime.
    pub(crate) fn simulated(size: usize) -> Self {
        Bench {
            io: Io::Inline,
            ..Self::new(size)
        }
    }

    pub(crate) fn id(&self, n: usize) -> NodeId {
        self.places[n].id
    }

    pub(crate) fn node(&self, n: usize) -> &Node<R> {
        self.places[n].node.as_ref().expect("it runs")
    }

    fn running(&self) -> impl Iterator<Item = &Node<R>> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    pub(crate) fn set_free_bytes_of(&self, n: usize, bytes: u64) {
        self.places[n].free_bytes.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn fail_syncs(&self, n: usize) {
        self.places[n].disk.failing.store(true, Ordering::SeqCst);
    }

    /// From its next start on, node `n` is a version that supports this feature level.
    pub(crate) fn set_feature_level(&mut self, n: usize, level: u32) {
        self.places[n].feature_level = level;
    }

    /// From its next start on, the cluster may change node `n`'s timers, which are multiplied by this.
    pub(crate) fn set_stretch(&mut self, n: usize, factor: u32) {
        self.places[n].stretch = Some(factor);
    }

    /// What node `n`'s timers are multiplied by from its next start on.
    pub(crate) fn stretch(&self, n: usize) -> Option<u32> {
        self.places[n].stretch
    }

    /// The cluster will be founded at the lowest level, as by a version that knows no other.
    pub(crate) fn found_at_level_1(&mut self) {
        self.founding_level = 1;
    }

    /// Starts a node from what its disk holds.
    pub(crate) async fn start(&mut self, n: usize) {
        self.try_start(n).await.expect("starts");
    }

    /// As [`Bench::start`], where the node may refuse.
    pub(crate) async fn try_start(&mut self, n: usize) -> Result<(), StartError> {
        let (id, disk, snapshots) = {
            let place = &self.places[n];
            (place.id, place.disk.clone(), place.snapshots.clone())
        };
        let store = Store::open_backend(disk, self.io).expect("opens");
        let memory = Arc::new(self.places[n].memory.clone());
        store.set_witness(memory).expect("is asked");
        let free_bytes = self.places[n].free_bytes.clone();
        let draws = self.draws.clone();
        let environment = Environment {
            wall_clock_ms: Arc::new(|| 1_700_000_000_000),
            random: Arc::new(move |buffer| {
                let draw = Digest::of(&draws.fetch_add(1, Ordering::SeqCst).to_be_bytes());
                buffer.copy_from_slice(&draw.0[..buffer.len()]);
            }),
            free_bytes: Arc::new(move || Some(free_bytes.load(Ordering::SeqCst))),
        };
        let stretch = self.places[n].stretch;
        let timing = Timing {
            heartbeat_ms: 50,
            election_min_ms: 300,
            election_max_ms: 600,
        };
        let config = NodeConfig {
            name: format!("node-{n}"),
            addresses: addresses(id),
            timing: timing.stretched(stretch.unwrap_or(1)),
            stretch,
            snapshot_every_entries: 20,
            snapshot_every_bytes: self.log_bytes,
            entries_kept: 4,
            promote_after: Duration::ZERO,
            raise_after: Duration::ZERO,
            feature_level: self.places[n].feature_level,
            propose_timeout: Duration::from_secs(20),
            known_members: self.places[n].known.clone(),
            patience: self.patience,
            compare_every: Duration::from_secs(10),
            ..NodeConfig::new(id)
        };
        let node = Node::start(
            config,
            environment,
            store.clone(),
            Arc::new(snapshots),
            self.board.transport(id),
        )
        .await;
        let node = node.inspect_err(|_| store.close())?;
        self.board.connect(id, node.service());
        self.places[n].node = Some(node);
        Ok(())
    }

    pub(crate) async fn start_all(&mut self) {
        for n in 0..self.places.len() {
            self.start(n).await;
        }
    }

    /// Stops a node in an orderly way.
    pub(crate) async fn stop(&mut self, n: usize) {
        self.board.disconnect(self.id(n));
        let node = self.places[n].node.take().expect("it runs");
        node.shutdown().await;
    }

    /// Ends a node as a crash does: whatever it still does reaches nobody, its disk keeps what was synced, and its machine
    /// remembers what it said.
    pub(crate) async fn kill(&mut self, n: usize) {
        self.board.disconnect(self.id(n));
        // Copied before the disk, so that it does not know of anything that is not there.
        let memory = self.places[n].memory.copy();
        self.lose_power(n).await;
        self.places[n].memory = memory;
    }

    /// Takes a node's power away, and everything on its disk that was not synced.
    pub(crate) async fn lose_power(&mut self, n: usize) {
        self.board.disconnect(self.id(n));
        let survivor = self.places[n].disk.after_power_loss();
        self.places[n].disk = survivor;
        self.places[n].memory = Memory::default();
        // Ends its tasks; nothing that it still writes can be seen.
        let node = self.places[n].node.take().expect("it runs");
        node.shutdown().await;
    }

    /// What node `n` has on its disks now.
    pub(crate) fn image(&self, n: usize) -> Image {
        let Place {
            disk, snapshots, ..
        } = &self.places[n];
        let disk = disk.after_power_loss();
        let copy = MemoryDirectory::default();
        for name in snapshots.list().expect("lists") {
            let content = snapshots.read(&name).expect("reads").expect("is there");
            copy.write(&name, &[content.into()]).expect("writes");
        }
        Image {
            disk,
            snapshots: copy,
        }
    }

    /// Puts `image` on the disks of node `n`, which must be down.
    pub(crate) fn put_image(&mut self, n: usize, image: Image) {
        self.places[n].disk = image.disk;
        self.places[n].snapshots = image.snapshots;
    }

    /// Writes `new` for `old`, which is as long, into the snapshots of node `n`, which must be down, with a checksum that
    /// fits: damage that only a comparison of states can find.
    pub(crate) fn forge_snapshot(&self, n: usize, old: &str, new: &str) {
        let snapshots = &self.places[n].snapshots;
        for name in snapshots.list().expect("lists") {
            let mut image = snapshots.read(&name).expect("reads").expect("is there");
            let at = image
                .windows(old.len())
                .position(|window| window == old.as_bytes())
                .expect("is in the snapshot");
            image[at..at + new.len()].copy_from_slice(new.as_bytes());
            let content = image.len() - 32;
            let sum = Digest::of(&image[..content]);
            image[content..].copy_from_slice(&sum.0);
            snapshots.write(&name, &[image.into()]).expect("writes");
        }
    }

    /// The size of node `n`'s log, in bytes on its disk.
    pub(crate) fn disk_bytes(&self, n: usize) -> usize {
        self.places[n]
            .disk
            .platter
            .lock()
            .expect("no panic")
            .current
            .len()
    }

    /// Empties the disks of node `n`, which must be down; it knows the others still.
    pub(crate) fn wipe(&mut self, n: usize) {
        let known = self.places.iter().map(|place| Peer {
            node_id: place.id,
            address: format!("{}:9600", place.id),
        });
        self.places[n].known = known.collect();
        self.places[n].disk = Disk::default();
        self.places[n].snapshots = MemoryDirectory::default();
    }

    /// Founds the cluster on node `n`.
    pub(crate) async fn found(&self, n: usize) {
        let id = self.id(n);
        let authority = || Authority {
            certificate_der: vec![1],
            key_pkcs8: Secret::plain([2]),
        };
        self.node(n)
            .found(Init {
                cluster_id: ClusterId([7; 16]),
                lineage: Lineage(9),
                settings: Settings::default(),
                cluster_ca: authority(),
                https_ca: authority(),
                signing_key: SigningKey {
                    kid: "k1".into(),
                    public: vec![3; 32],
                    key_pkcs8: Secret::plain([4]),
                },
                seed: FirstMember {
                    node_id: id,
                    name: "node".into(),
                    addresses: addresses(id),
                    spki: Digest::of(&id.0.to_be_bytes()),
                    certificate: certificate(),
                },
                policy: None,
                feature_level: self.founding_level,
                version: String::new(),
                first_key: None,
            })
            .await
            .expect("founds");
    }

    /// Founds on node 0 and lets the others join; ends when all vote. Tells who leads.
    pub(crate) async fn form(&mut self) -> usize {
        self.found(0).await;
        self.grow().await
    }

    /// Lets the others join node 0; ends when all vote. Tells who leads.
    pub(crate) async fn grow(&mut self) -> usize {
        for n in 1..self.places.len() {
            let reservation = Reservation {
                name: format!("node-{n}"),
                addresses: addresses(self.id(n)),
                spki: Digest::of(&[n as u8]),
                csr: Digest::of(&[n as u8, 0]),
                credential: Credential::Bootstrap { kid: String::new() },
            };
            let node_id = match self
                .propose(0, Command::ReserveMember(reservation))
                .await
                .response
            {
                Response::Reserved { node_id } => node_id,
                other => panic!("{other:?}"),
            };
            // The cluster gives out the id, so the node starts anew under it.
            self.stop(n).await;
            self.places[n].id = node_id;
            self.places[n].disk = Disk::default();
            self.places[n].memory = Memory::default();
            self.start(n).await;
            let confirm = Command::ConfirmMember {
                node_id,
                certificate: certificate(),
            };
            self.propose(0, confirm).await;
        }
        let size = self.places.len();
        self.wait(|bench| {
            bench.leader().is_some_and(|leader| {
                let members = bench.node(leader).members();
                members.len() == size && members.iter().all(|member| member.voter && member.live)
            })
        })
        .await;
        // Not before the new voters have the change on their disks: until then the old ones decide alone.
        self.wait_equal().await;
        self.wait_leader().await
    }

    /// Who leads among the running nodes, as it says itself.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.places.iter().position(|place| {
            place
                .node
                .as_ref()
                .is_some_and(|node| matches!(node.role(), Role::Leader { .. }))
        })
    }

    pub(crate) async fn wait_leader(&self) -> usize {
        self.wait(|bench| bench.leader().is_some()).await;
        self.leader().expect("just seen")
    }

    /// Waits until one of `among` leads.
    pub(crate) async fn wait_leader_among(&self, among: &[usize]) -> usize {
        let leads = |n: &&usize| matches!(self.node(**n).role(), Role::Leader { .. });
        self.wait(|_| among.iter().any(|n| leads(&n))).await;
        *among.iter().find(leads).expect("just seen")
    }

    /// Waits until every running node holds the same state, and the leader has nothing beyond it.
    pub(crate) async fn wait_equal(&self) {
        self.wait(|bench| {
            let Some(leader) = bench.leader() else {
                return false;
            };
            let status = bench.node(leader).status();
            bench
                .running()
                .all(|node| node.state().index() == status.last_index)
        })
        .await;
        let hashes: Vec<Digest> = self.running().map(|node| node.state().hash()).collect();
        assert!(
            hashes.windows(2).all(|pair| pair[0] == pair[1]),
            "{hashes:?}"
        );
    }

    /// Waits until a snapshot stands in for the beginning of the log.
    pub(crate) async fn wait_snapshot(&self, n: usize) {
        self.wait(|bench| bench.node(n).status().snapshot_index > 20)
            .await;
    }

    /// Members that the leader holds for live.
    pub(crate) fn live(&self, leader: usize) -> Vec<NodeId> {
        let members = self.node(leader).members();
        members
            .into_iter()
            .filter(|m| m.live)
            .map(|m| m.node_id)
            .collect()
    }

    /// Cuts a node off from all others.
    pub(crate) fn cut_off(&self, n: usize) {
        let others: Vec<NodeId> = self
            .places
            .iter()
            .map(|p| p.id)
            .filter(|id| *id != self.id(n))
            .collect();
        self.board.cut(&[self.id(n)], &others);
    }

    pub(crate) fn heal(&self) {
        self.board.heal();
    }

    /// Commits on node `n`, which must lead or be about to.
    pub(crate) async fn propose(&self, n: usize, command: Command) -> Applied {
        let attempts = async {
            loop {
                match self.node(n).propose(command.clone()).await {
                    Ok(applied) => return applied,
                    Err(ProposeError::NoLeader(_) | ProposeError::NotLeader { .. }) => {
                        pause::<R>().await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        R::timeout(PATIENCE, attempts).await.expect("commits")
    }

    /// Waits until `condition` holds.
    pub(crate) async fn wait(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = R::Instant::now() + PATIENCE;
        while !condition(self) {
            pause::<R>().await;
            if R::Instant::now() < deadline {
                continue;
            }
            let roles: Vec<_> = self
                .running()
                .map(|node| (node.role(), node.status(), node.members()))
                .collect();
            panic!("the condition never held: {roles:#?}");
        }
    }
}

async fn pause<R: AsyncRuntime>() {
    R::sleep(Duration::from_millis(10)).await;
}

fn addresses(id: NodeId) -> Addresses {
    Addresses {
        cluster: format!("{id}:9600"),
        join: format!("{id}:9601"),
        http: String::new(),
    }
}

fn certificate() -> Certificate {
    Certificate {
        der: vec![5],
        serial: vec![6],
        not_before_ms: 0,
        not_after_ms: 1,
    }
}
