//! A whole cluster in one thread: the production node, state machine, store, join protocol and replay agent, on a
//! network, disks and a clock that are simulated, with faults that follow from a seed.
//!
//! [`simulate`] tells the story of one seed: machines found and join a cluster, clients use it, things go wrong, the
//! faults end, and then everything must be as clients were told. An [`observer`] checks what must always hold after
//! every step of every node. The same seed always tells the same story.

pub mod client;
pub mod disk;
pub mod fault;
pub mod machine;
pub mod mutant;
pub mod network;
pub mod observer;
pub mod random;
pub mod runtime;
pub mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::state::Standing;
use openraft::AsyncRuntime as _;

use fault::Schedule;
use mutant::Mutant;
use observer::Invariant;
use runtime::{Sim, WORLD, spawn_in};
use world::{MACHINES, Violation, World};

/// Clients in every story.
const CLIENTS: usize = 3;

/// How long machines may take to form a cluster, and to agree once the faults are gone.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often a story looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// What is wrong on purpose.
    pub mutant: Option<Mutant>,
    /// Faults of the schedule to leave out, by their number: to find those that matter.
    pub without: u64,
}

impl Options {
    /// The story of a seed.
    pub fn new(seed: u64) -> Self {
        Options {
            seed,
            mutant: None,
            without: 0,
        }
    }
}

/// How a story went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What went wrong, if anything.
    pub violation: Option<Violation>,
    /// What was planned.
    pub schedule: Schedule,
    /// Everything that happened, as one number.
    pub trace: u64,
    /// What happened, line by line.
    pub journal: Vec<String>,
    /// Entries that were committed.
    pub committed: u64,
    /// Terms that had a leader.
    pub terms: usize,
    /// Writes that clients were told of.
    pub writes: u32,
    /// Reads that were confirmed.
    pub reads: u32,
    /// How long it took, in virtual time.
    pub took: Duration,
}

/// Tells the story of a seed.
pub fn simulate(options: Options) -> Outcome {
    let schedule = fault::schedule(options.seed);
    let world = World::new(options.seed, options.mutant);
    let (seen, teller) = (world.clone(), world.clone());
    let faults = schedule.clone();
    let (trace, took) = runtime::run(
        options.seed,
        move |process| seen.after_step(process),
        async move {
            tell(&teller, &faults, options).await;
            let end = (runtime::scheduler().trace(), runtime::now());
            for machine in 0..MACHINES {
                machine::stop(&teller, machine, false);
            }
            end
        },
    );
    let (committed, terms) = {
        let observer = world.observer();
        (observer.last_committed(), observer.terms_led())
    };
    let (writes, reads) = {
        let ledger = world.ledger();
        (ledger.writes, ledger.reads)
    };
    Outcome {
        violation: world.violation(),
        schedule,
        trace,
        journal: world.take_journal(),
        committed,
        terms,
        writes,
        reads,
        took,
    }
}

/// Leaves out every fault that is not needed for the promise to be broken.
pub fn shrink(options: Options) -> Options {
    let broken = |options| Some(simulate(options).violation?.invariant);
    let Some(invariant) = broken(options) else {
        return options;
    };
    let count = fault::schedule(options.seed).faults.len();
    (0..count).rev().fold(options, |least, number| {
        let fewer = Options {
            without: least.without | 1 << number,
            ..least
        };
        if broken(fewer) == Some(invariant) {
            fewer
        } else {
            least
        }
    })
}

/// What somebody needs to know who is to find out why.
pub fn report(options: Options, outcome: &Outcome) -> String {
    let seed = options.seed;
    let broken = outcome.violation.as_ref().map_or_else(
        || "nothing is broken".to_owned(),
        |violation| violation.to_string(),
    );
    let mut lines = vec![
        format!("seed {seed}: {broken}"),
        format!("{} founders, then:", outcome.schedule.founders),
    ];
    lines.extend(
        outcome
            .schedule
            .faults
            .iter()
            .enumerate()
            .filter(|(number, _)| options.without >> number & 1 == 0)
            .map(|(number, planned)| format!("  {number:2}  {planned}")),
    );
    lines.push("the last that happened:".into());
    let skipped = outcome.journal.len().saturating_sub(40);
    lines.extend(outcome.journal.iter().skip(skipped).cloned());
    lines.push(format!(
        "all of it: cargo xtask sim --seeds 1 --from {seed} --verbose"
    ));
    lines.join("\n")
}

async fn tell(world: &Arc<World>, schedule: &Schedule, options: Options) {
    machine::boot(world, 0);
    let formed = until(world, PATIENCE, |world| {
        world.founded.load(Ordering::Relaxed)
    })
    .await;
    for machine in 1..schedule.founders {
        machine::boot(world, machine);
    }
    if !(formed
        && until(world, PATIENCE, |world| {
            unsettled(world, schedule.founders).is_none()
        })
        .await)
    {
        return world.accuse(Invariant::Converges, "no cluster was formed".into());
    }
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| spawn_in(WORLD, client::run(world.clone(), number)))
        .collect();

    let begin = runtime::now();
    for (number, planned) in schedule.faults.iter().enumerate() {
        if pause(world, begin + planned.at).await {
            return;
        }
        if options.without >> number & 1 == 0 {
            fault::apply(world, planned);
        }
    }
    if pause(world, begin + schedule.end).await {
        return;
    }
    fault::heal(world);
    if pause(world, runtime::now() + Duration::from_secs(1)).await {
        return;
    }
    world.closed.store(true, Ordering::Relaxed);
    for client in clients {
        // Clients do not panic; if one did, that was kept.
        let _ = client.await;
    }
    if !until(world, PATIENCE, |world| unsettled(world, 1).is_none()).await {
        let why = unsettled(world, 1).unwrap_or_default();
        for (number, live) in world.nodes() {
            let (status, sets) = (live.node.status(), live.node.voter_sets());
            world.tell(|| format!("m{number}: {status:?}, voters {sets:?}"));
        }
        return world.accuse(Invariant::Converges, why);
    }
    check(world);
}

/// Waits until `end`; true when a promise was broken meanwhile.
async fn pause(world: &World, end: Duration) -> bool {
    while runtime::now() < end && world.violation().is_none() {
        Sim::sleep(LOOK_EVERY.min(end - runtime::now())).await;
    }
    world.violation().is_some()
}

/// Waits until `condition` holds, or time is up, or a promise was broken: whether it holds.
async fn until(world: &World, patience: Duration, condition: impl Fn(&World) -> bool) -> bool {
    let end = runtime::now() + patience;
    while runtime::now() < end && world.violation().is_none() {
        if condition(world) {
            return true;
        }
        Sim::sleep(LOOK_EVERY).await;
    }
    // A promise that was broken is told already.
    world.violation().is_some()
}

/// Why not all machines that take part agree yet; none if they do, and are `least` at least.
fn unsettled(world: &World, least: usize) -> Option<String> {
    let Some((number, leader)) = world.leader() else {
        return Some("nobody leads".into());
    };
    let state = leader.node.state();
    let retired = world.retired();
    let members: BTreeSet<_> = state.members().map(|member| member.node_id).collect();
    let unfinished = state
        .members()
        .find(|member| member.standing != Standing::Member);
    if let Some(member) = unfinished {
        return Some(format!("{} is {:?}", member.node_id, member.standing));
    }
    if let Some(gone) = members.intersection(&retired).next() {
        return Some(format!("{gone} is still a member"));
    }
    if members.len() < least {
        return Some(format!("{} members of {least}", members.len()));
    }
    let voters = leader.node.voter_sets();
    let want = match members.len() {
        few @ 0..=3 => few,
        many => many - 1 + many % 2,
    };
    match voters.as_slice() {
        [one] if one.len() >= want && one.is_subset(&members) => {}
        other => return Some(format!("the voters are {other:?} of {members:?}")),
    }
    let last = leader.store.last().map_or(0, |(index, _)| index);
    let mark = state.policy().map(|policy| (policy.index, policy.hash.0));
    let mut running = BTreeSet::new();
    for (number, machine) in world.machines.iter().enumerate() {
        if machine.process().is_none() {
            continue;
        }
        let Some(live) = machine.live() else {
            return Some(format!("m{number} does not run yet"));
        };
        running.insert(live.node.node_id());
        let applied = live.node.state().index();
        if applied != last {
            return Some(format!("m{number} has applied {applied} of {last}"));
        }
        let enforced = machine.enforced();
        if mark != Some((enforced.index, enforced.hash)) {
            return Some(format!("m{number} enforces {enforced:?}, not {mark:?}"));
        }
    }
    (running != members).then(|| format!("m{number} leads {members:?}; there are {running:?}"))
}

/// What must hold at the end.
fn check(world: &Arc<World>) {
    for (number, live) in world.nodes() {
        let state = live.node.state();
        world.observe(|observer| observer.compare(number, state.index(), state.hash()));
        let told = world.ledger().check(&state);
        if let Err(what) = told {
            world.accuse(Invariant::Acknowledged, format!("m{number}: {what}"));
        }
    }
}
