//! Everything that one story shares: machines, network, observer, what clients were told, and the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cluster::ca::{Ca, Csr, Purpose};
use cluster::command::{
    Addresses, Authority, Document, FirstMember, Init, Secret as StateSecret, Settings, SigningKey,
};
use cluster::identity::NodeKey;
use cluster::join::secret::Secret;
use cluster::{ClusterId, Lineage, NodeId};
use serde_bytes::ByteBuf;

use super::client::Ledger;
use super::machine::{self, Live, Machine};
use super::mutant::Mutant;
use super::network::{self, Network};
use super::observer::{Invariant, Observer};
use super::random::Random;
use super::runtime::{self, Process, WORLD};

/// Machines that a story may use.
pub const MACHINES: usize = 5;

/// Milliseconds since 1970 when a story begins.
const EPOCH_MS: u64 = 1_750_000_000_000;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub detail: String,
    /// When, in virtual time.
    pub at: Duration,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {:.3} s: {}",
            self.invariant,
            self.at.as_secs_f64(),
            self.detail
        )
    }
}

/// What a story shares.
pub struct World {
    pub(super) machines: Vec<Machine>,
    pub(super) network: Network,
    pub(super) mutant: Option<Mutant>,
    pub(super) secrets: Vec<Secret>,
    /// Clients have gone home.
    pub(super) closed: AtomicBool,
    pub(super) founded: AtomicBool,
    /// A machine was put back to an earlier image.
    pub(super) put_back: AtomicBool,
    chance: Arc<Mutex<Random>>,
    observer: Mutex<Observer>,
    ledger: Mutex<Ledger>,
    journal: Mutex<Vec<String>>,
    violation: Mutex<Option<Violation>>,
    processes: Mutex<BTreeMap<Process, usize>>,
    retired: Mutex<BTreeSet<NodeId>>,
}

impl World {
    /// Machines without power, on a network without faults.
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Arc<Self> {
        let random = Random::new(seed);
        let lies = mutant == Some(Mutant::SyncSkipped);
        let machines = (0..MACHINES)
            .map(|number| Machine::new(random.fork(100 + number as u64), lies))
            .collect();
        Arc::new(World {
            machines,
            network: Network::new(random.fork(2)),
            mutant,
            secrets: Secret::new("", "a secret that is long enough for a test")
                .into_iter()
                .collect(),
            closed: AtomicBool::new(false),
            founded: AtomicBool::new(false),
            put_back: AtomicBool::new(false),
            chance: Arc::new(Mutex::new(random.fork(3))),
            observer: Mutex::new(Observer::new(MACHINES)),
            ledger: Mutex::default(),
            journal: Mutex::default(),
            violation: Mutex::default(),
            processes: Mutex::default(),
            retired: Mutex::default(),
        })
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut locked(&self.chance))
    }

    /// The same stream, for what must not hold on to the world.
    pub(super) fn chance(&self) -> Arc<Mutex<Random>> {
        self.chance.clone()
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        locked(&self.ledger)
    }

    /// Looks with the observer, and keeps the first broken promise.
    pub(super) fn observe<T: Default>(
        &self,
        look: impl FnOnce(&mut Observer) -> Result<T, (Invariant, String)>,
    ) -> T {
        let outcome = look(&mut locked(&self.observer));
        match outcome {
            Ok(seen) => seen,
            Err((invariant, detail)) => {
                self.accuse(invariant, detail);
                T::default()
            }
        }
    }

    /// A promise is broken. The first one counts.
    pub(super) fn accuse(&self, invariant: Invariant, detail: String) {
        let mut first = locked(&self.violation);
        if first.is_none() {
            let violation = Violation {
                invariant,
                detail,
                at: runtime::now(),
            };
            self.tell(|| format!("VIOLATED: {violation}"));
            *first = Some(violation);
        }
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        locked(&self.violation).clone()
    }

    /// Adds a line to the journal, and to the trace.
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        let text = line();
        let event = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        runtime::scheduler().note(event);
        let at = runtime::now().as_secs_f64();
        locked(&self.journal).push(format!("{at:9.4}  {text}"));
    }

    pub(super) fn take_journal(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.journal))
    }

    pub(super) fn owns(&self, process: Process, machine: usize) {
        locked(&self.processes).insert(process, machine);
    }

    /// After every step of any task: look at the node that it belongs to.
    pub(super) fn after_step(self: &Arc<Self>, process: Process) {
        if process == WORLD {
            return;
        }
        for panic in runtime::scheduler().take_panics() {
            self.accuse(Invariant::NoPanic, panic);
        }
        let Some(number) = locked(&self.processes).get(&process).copied() else {
            return;
        };
        let machine = &self.machines[number];
        if let Some(live) = machine.live() {
            self.observe(|observer| observer.look(number, &live.node, &live.store));
        }
        if machine.disk.take_cut() {
            self.tell(|| format!("m{number}: the power went in the middle of a commit"));
            machine::stop(self, number, true);
            let pause = self.random(|random| random.between(100, 1500));
            machine::boot_after(self, number, Duration::from_millis(pause));
        }
    }

    /// The running nodes.
    pub(super) fn nodes(&self) -> Vec<(usize, Live)> {
        self.machines
            .iter()
            .enumerate()
            .filter_map(|(number, machine)| Some((number, machine.live()?)))
            .collect()
    }

    /// The machine whose node holds itself to be the acknowledged leader.
    pub(super) fn leader(&self) -> Option<(usize, Live)> {
        self.nodes()
            .into_iter()
            .find(|(_, live)| matches!(live.node.role(), cluster::Role::Leader { .. }))
    }

    /// Ids that were given up: their disks are gone, or they were removed.
    pub(super) fn retired(&self) -> BTreeSet<NodeId> {
        locked(&self.retired).clone()
    }

    pub(super) fn retire(&self, node_id: NodeId) {
        locked(&self.retired).insert(node_id);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether every voter set that any machine goes by has a majority without `lost` and those that were lost before.
    pub(super) fn survives(&self, lost: NodeId) -> bool {
        let mut gone = self.retired();
        gone.insert(lost);
        locked(&self.observer)
            .voter_sets()
            .iter()
            .all(|set| set.is_empty() || set.difference(&gone).count() > set.len() / 2)
    }

    pub(super) fn observer(&self) -> MutexGuard<'_, Observer> {
        locked(&self.observer)
    }

    /// What machine 0 founds the cluster with.
    pub(super) fn init(&self, node_id: NodeId, key: &NodeKey) -> Init {
        let cluster_id = ClusterId([7; 16]);
        let now = std::time::UNIX_EPOCH + Duration::from_millis(wall_clock_ms());
        let ca = Ca::create(Purpose::Members, cluster_id, now).expect("makes an authority");
        let request = Csr::parse(key.request()).expect("a request of our own");
        let certificate = ca
            .issue_node(cluster_id, node_id, "m0", &request, now)
            .expect("issues");
        Init {
            cluster_id,
            lineage: Lineage(9),
            settings: Settings::default(),
            cluster_ca: ca.authority(),
            // Nothing here looks at these two.
            https_ca: Authority {
                certificate_der: vec![1],
                key_pkcs8: StateSecret::plain([2]),
            },
            signing_key: SigningKey {
                kid: "k1".into(),
                public: vec![3; 32],
                key_pkcs8: StateSecret::plain([4]),
            },
            seed: FirstMember {
                node_id,
                name: "m0".into(),
                addresses: addresses(0),
                spki: key.spki(),
                certificate,
            },
            policy: Some(Document::Inline(ByteBuf::from(b"deny".to_vec()))),
            feature_level: cluster::node::FEATURE_LEVEL,
            version: String::new(),
            first_key: None,
        }
    }
}

/// Milliseconds since 1970, on a clock that is right.
pub(super) fn wall_clock_ms() -> u64 {
    let passed = u64::try_from(runtime::now().as_millis()).unwrap_or(u64::MAX);
    EPOCH_MS + passed
}

/// Where a machine is reached.
pub(super) fn addresses(machine: usize) -> Addresses {
    Addresses {
        cluster: network::address(machine),
        join: format!("m{machine}:9601"),
        http: String::new(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
