//! Clients: they write, compare and set, put policies and read, retry what is safe to retry, and remember what they were
//! told. What they were told must be true when the faults are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cluster::command::{AccountSpec, Author, Role as AccountRole};
use cluster::{
    Applied, Command, Digest, Node, NodeId, ProposeError, Refusal, Response, Retry, Role, State,
};
use openraft::AsyncRuntime as _;
use uuid::Uuid;

use super::mutant::Mutant;
use super::observer::Invariant;
use super::runtime::{Sim, spawn_in};
use super::world::{MACHINES, World};

/// Name of the account that clients compare and set.
const SHARED: &str = "shared";

/// What clients were told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Accounts that were created: their ids by name. None where the mutant did not wait for it.
    created: BTreeMap<String, Option<Uuid>>,
    /// Accounts whose creation was asked for, with an unknown fate.
    asked: BTreeSet<String>,
    /// Revisions of the shared account that were won.
    won: BTreeSet<u64>,
    /// Policies that were put, by revision.
    policies: BTreeMap<u64, Digest>,
    /// Newest entry that was acknowledged.
    newest: u64,
    /// Writes that were acknowledged.
    pub writes: u32,
    /// Reads that were confirmed.
    pub reads: u32,
}

impl Ledger {
    /// Compares what clients were told with a state that has everything.
    pub fn check(&self, state: &State) -> Result<(), String> {
        for (name, id) in &self.created {
            let mut found = state
                .accounts()
                .filter(|account| account.spec.name == *name);
            let account = found.next().ok_or(format!("account {name} is gone"))?;
            if id.is_some_and(|id| id != account.id) || found.next().is_some() {
                return Err(format!("account {name} is not the one that was created"));
            }
        }
        for account in state.accounts() {
            let name = &account.spec.name;
            let known = self.created.contains_key(name) || self.asked.contains(name);
            if !known && name != SHARED {
                return Err(format!("nobody has asked for account {name}"));
            }
        }
        if let Some(last) = self.won.last() {
            let shared = state.accounts().find(|account| account.spec.name == SHARED);
            let revision = shared.map_or(0, |account| account.revision);
            if revision < *last {
                return Err(format!(
                    "revision {last} of the shared account is gone: {revision}"
                ));
            }
        }
        for (revision, hash) in &self.policies {
            let found = state
                .policy_history()
                .find(|policy| policy.revision == *revision);
            match found {
                Some(policy) if policy.hash == *hash => {}
                _ => return Err(format!("policy revision {revision} is gone or another one")),
            }
        }
        Ok(())
    }
}

/// What became of one attempt.
enum Attempt {
    Done(Applied),
    /// Certainly not taken; ask this machine next if one is known.
    NotTaken(Option<usize>),
    Unknown,
}

/// One client, until clients are sent home.
pub async fn run(world: Arc<World>, number: usize) {
    let mut client = Client {
        author: Author {
            subject: format!("client-{number}"),
            node: None,
        },
        world,
        number,
        target: number,
        count: 0,
    };
    while !client.world.is_closed() {
        let pause = client.world.random(|random| random.between(150, 900));
        Sim::sleep(Duration::from_millis(pause)).await;
        client.count += 1;
        match client.world.random(|random| random.below(10)) {
            0..=4 => client.create().await,
            5..=6 => client.compare_and_set().await,
            7 => client.put_policy().await,
            _ => client.read().await,
        }
    }
}

struct Client {
    world: Arc<World>,
    author: Author,
    number: usize,
    /// The machine that it asks next.
    target: usize,
    count: u64,
}

impl Client {
    /// Does something on the target's node; none when nobody can tell whether it was done. The node's own process does
    /// it, and takes it along when it ends.
    async fn on_node<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: impl FnOnce(Node<Sim>) -> F,
    ) -> Option<Result<T, ()>> {
        let Some(live) = self.world.machines[self.target].live() else {
            return Some(Err(()));
        };
        let working = spawn_in(live.process, work(live.node));
        Some(Ok(working.await.ok()?))
    }

    async fn propose(&self, command: Command, key: Option<String>) -> Attempt {
        let author = self.author.clone();
        let proposing = |node: Node<Sim>| async move {
            node.propose_as(command, author, key.map(Retry::from)).await
        };
        self.judge(self.on_node(proposing).await)
    }

    fn judge(&self, outcome: Option<Result<Result<Applied, ProposeError>, ()>>) -> Attempt {
        match outcome {
            None | Some(Ok(Err(ProposeError::FateUnknown))) => Attempt::Unknown,
            Some(Ok(Ok(applied))) => Attempt::Done(applied),
            Some(Ok(Err(ProposeError::NotLeader { leader: Some(id) }))) => {
                Attempt::NotTaken(self.machine_of(id))
            }
            Some(Ok(Err(_)) | Err(())) => Attempt::NotTaken(None),
        }
    }

    fn machine_of(&self, id: NodeId) -> Option<usize> {
        let machines = &self.world.machines;
        machines
            .iter()
            .position(|machine| machine.node_id() == Some(id))
    }

    /// Asks somebody else next, after a while.
    async fn turn(&mut self, to: Option<usize>) {
        let elsewhere = self.world.random(|random| random.index(MACHINES));
        self.target = to.unwrap_or(elsewhere);
        Sim::sleep(Duration::from_millis(30)).await;
    }

    /// Proposes until it is answered or clients are sent home; the key makes that safe.
    async fn insist(&mut self, command: Command, key: String) -> Option<Applied> {
        while !self.world.is_closed() {
            match self.propose(command.clone(), Some(key.clone())).await {
                Attempt::Done(applied) => {
                    self.acknowledged(&applied);
                    return Some(applied);
                }
                Attempt::NotTaken(to) => self.turn(to).await,
                Attempt::Unknown => self.turn(None).await,
            }
        }
        None
    }

    fn acknowledged(&self, applied: &Applied) {
        let committed = self.world.observer().last_committed();
        if applied.index > committed {
            let told = format!(
                "entry {} was acknowledged, committed are {committed}",
                applied.index
            );
            self.world.accuse(Invariant::Acknowledged, told);
        }
        let mut ledger = self.world.ledger();
        ledger.newest = ledger.newest.max(applied.index);
        ledger.writes += 1;
    }

    async fn create(&mut self) {
        let name = format!("c{}-{}", self.number, self.count);
        let command = Command::CreateAccount(spec(&name));
        self.world.ledger().asked.insert(name.clone());
        if self.world.mutant == Some(Mutant::AcknowledgedEarly) {
            return self.create_hastily(name, command).await;
        }
        let Some(applied) = self.insist(command, name.clone()).await else {
            return;
        };
        match applied.response {
            Response::Record { id, .. } => {
                self.world.ledger().created.insert(name, Some(id));
            }
            other => self.surprised(&format!("create {name}"), &other),
        }
    }

    /// A mutant's doing: takes a write for done as soon as the leader has it.
    async fn create_hastily(&mut self, name: String, command: Command) {
        let Some(live) = self.world.machines[self.target].live() else {
            return self.turn(None).await;
        };
        if !matches!(live.node.role(), Role::Leader { .. }) {
            return self.turn(None).await;
        }
        let author = self.author.clone();
        let _detached = spawn_in(live.process, async move {
            live.node.propose_as(command, author, None).await
        });
        self.world.ledger().created.insert(name, None);
    }

    async fn compare_and_set(&mut self) {
        let Some(live) = self.world.machines[self.target].live() else {
            return self.turn(None).await;
        };
        let state = live.node.state();
        let Some(shared) = state.accounts().find(|account| account.spec.name == SHARED) else {
            let _ = self
                .insist(
                    Command::CreateAccount(spec(SHARED)),
                    format!("{SHARED}-{}", self.number),
                )
                .await;
            return;
        };
        let update = Command::UpdateAccount {
            id: shared.id,
            if_match: Some(shared.revision),
            spec: spec(SHARED),
        };
        match self.propose(update, None).await {
            Attempt::Done(applied) => {
                self.acknowledged(&applied);
                match applied.response {
                    Response::Record { revision, .. } => {
                        if !self.world.ledger().won.insert(revision) {
                            let twice = format!("revision {revision} was won twice");
                            self.world.accuse(Invariant::Acknowledged, twice);
                        }
                    }
                    Response::Refused(Refusal::Conflict { .. }) => {}
                    other => self.surprised("compare and set", &other),
                }
            }
            Attempt::NotTaken(to) => self.turn(to).await,
            // Not safe to retry: who has won it is not known.
            Attempt::Unknown => self.turn(None).await,
        }
    }

    async fn put_policy(&mut self) {
        let document = format!("policy {} of client {}", self.count, self.number).into_bytes();
        let hash = Digest::of(&document);
        let key = format!("policy-{}", self.count);
        while !self.world.is_closed() {
            if self.world.mutant == Some(Mutant::EnforcedEarly)
                && let Some(live) = self.world.machines[self.target].live()
                && matches!(live.node.role(), Role::Leader { .. })
            {
                self.world.machines[self.target].enforce_early(&live.node, &document);
            }
            let (bytes, author, key) = (document.clone(), self.author.clone(), key.clone());
            let putting = |node: Node<Sim>| async move {
                node.put_policy(&bytes, None, String::new(), author, Some(key.into()))
                    .await
            };
            match self.judge(self.on_node(putting).await) {
                Attempt::Done(applied) => {
                    self.acknowledged(&applied);
                    match applied.response {
                        Response::Policy { revision, .. } => {
                            self.world.ledger().policies.insert(revision, hash);
                        }
                        other => self.surprised("put policy", &other),
                    }
                    return;
                }
                Attempt::NotTaken(to) => self.turn(to).await,
                Attempt::Unknown => self.turn(None).await,
            }
        }
    }

    /// A confirmed read, on whatever node.
    async fn read(&mut self) {
        self.target = self.world.random(|random| random.index(MACHINES));
        let floor = self.world.ledger().newest;
        let reading = |node: Node<Sim>| async move {
            let read = node.read_index().await;
            read.map(|index| (index, node.state().index()))
        };
        if let Some(Ok(Ok((index, applied)))) = self.on_node(reading).await {
            self.world.ledger().reads += 1;
            if index < floor || applied < floor {
                let stale = format!(
                    "m{} read at {index} from a state at {applied}; {floor} was acknowledged before",
                    self.target
                );
                self.world.accuse(Invariant::Linearizable, stale);
            }
        }
    }

    fn surprised(&self, what: &str, answer: &Response) {
        let told = format!("{what} of client {}: {answer:?}", self.number);
        self.world.accuse(Invariant::Acknowledged, told);
    }
}

fn spec(name: &str) -> AccountSpec {
    AccountSpec {
        name: name.into(),
        description: String::new(),
        role: AccountRole::Readonly,
        status: Default::default(),
    }
}
