//! Faults, and the schedule of them that follows from a seed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{Command, Node, NodeId, Role};
use openraft::AsyncRuntime as _;

use super::disk::{DiskImage, SyncEvent};
use super::machine::{self, Live};
use super::random::Random;
use super::runtime::{Process, Sim, WORLD, scheduler, spawn_in};
use super::world::{MACHINES, World};

/// Whom a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This machine.
    Machine(usize),
    /// Whichever leads then.
    Leader,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Machine(number) => write!(f, "m{number}"),
            Who::Leader => f.write_str("the leader"),
        }
    }
}

/// Something that goes wrong, or that an operator does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between the machines in the mask and the others; or only one way does.
    Cut {
        /// A bit for each machine.
        side: u8,
        /// Messages to the machines in the mask still arrive.
        one_way: bool,
    },
    /// One machine is cut off, or cannot be heard.
    Isolate {
        /// Which.
        who: Who,
        /// Only what it sends is lost.
        one_way: bool,
    },
    /// Each machine reaches its two neighbours only.
    Ring,
    /// Messages are lost, and come late and in another order.
    Disturb {
        /// How many of 100.
        loss_percent: u64,
        /// How late, at most.
        jitter_ms: u64,
    },
    /// Everything from and to a machine takes longer.
    Slow {
        /// Which.
        who: Who,
        /// How much.
        by_ms: u64,
    },
    /// SIGKILL; it starts again later.
    Kill(Who),
    /// Power is lost; what was not synced is gone, or torn.
    LosePower(Who),
    /// All machines lose power at once.
    LoseAllPower,
    /// Power is lost in the middle of a commit.
    CutAtSync {
        /// Which.
        who: Who,
        /// After so many more syncs.
        after: u64,
        /// The commit is on disk, but nobody was told.
        committed: bool,
    },
    /// A sync fails.
    SyncError {
        /// Which.
        who: Who,
        /// After so many more syncs.
        after: u64,
    },
    /// The disk is full; `hard`: to the last byte.
    FullDisk {
        /// Which.
        who: Who,
        /// Not even what is kept back for votes is left.
        hard: bool,
    },
    /// Every commit takes longer.
    SlowDisk {
        /// Which.
        who: Who,
        /// How much.
        by_ms: u64,
    },
    /// SIGSTOP; SIGCONT comes later.
    Stall(Who),
    /// The wall clock jumps.
    ClockJump {
        /// Which.
        who: Who,
        /// Where to.
        by_s: i64,
    },
    /// An orderly restart: leadership is handed over first.
    Restart(Who),
    /// Leadership is handed over.
    HandOver,
    /// A machine joins that was not there.
    Join,
    /// A member leaves for good.
    Leave(Who),
    /// A disk is lost. An operator removes the member, and the machine joins as a new one.
    Wipe(Who),
    /// A hypervisor takes an image of a running machine and puts it back later.
    Rollback(Who),
    /// The log and its snapshots are lost, and the rest of the disk is not.
    LoseLog(Who),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Cut { side, one_way } => {
                let names: Vec<String> = (0..MACHINES)
                    .filter(|machine| side >> machine & 1 == 1)
                    .map(|machine| format!("m{machine}"))
                    .collect();
                let from = if *one_way {
                    "nothing arrives from"
                } else {
                    "cut off"
                };
                write!(f, "{from} {}", names.join(", "))
            }
            Fault::Isolate {
                who,
                one_way: false,
            } => write!(f, "{who} is cut off"),
            Fault::Isolate { who, one_way: true } => write!(f, "{who} is not heard"),
            Fault::Ring => f.write_str("each machine reaches its neighbours only"),
            Fault::Disturb {
                loss_percent,
                jitter_ms,
            } => {
                write!(
                    f,
                    "{loss_percent} % are lost, others up to {jitter_ms} ms late"
                )
            }
            Fault::Slow { who, by_ms } => write!(f, "{who} is {by_ms} ms away"),
            Fault::Kill(who) => write!(f, "{who} is killed"),
            Fault::LosePower(who) => write!(f, "{who} loses power"),
            Fault::LoseAllPower => f.write_str("all lose power"),
            Fault::CutAtSync {
                who,
                after,
                committed,
            } => {
                let when = if *committed { "after" } else { "before" };
                write!(
                    f,
                    "{who} loses power {when} its sync number {after} from now"
                )
            }
            Fault::SyncError { who, after } => {
                write!(f, "{who}'s sync number {after} from now fails")
            }
            Fault::FullDisk { who, hard: false } => write!(f, "{who}'s disk is nearly full"),
            Fault::FullDisk { who, hard: true } => write!(f, "{who}'s disk is full"),
            Fault::SlowDisk { who, by_ms } => write!(f, "{who}'s disk takes {by_ms} ms"),
            Fault::Stall(who) => write!(f, "{who} is stopped"),
            Fault::ClockJump { who, by_s } => write!(f, "{who}'s clock jumps by {by_s} s"),
            Fault::Restart(who) => write!(f, "{who} is restarted"),
            Fault::HandOver => f.write_str("leadership is handed over"),
            Fault::Join => f.write_str("a machine joins"),
            Fault::Leave(who) => write!(f, "{who} leaves"),
            Fault::Wipe(who) => write!(f, "{who} loses its disk"),
            Fault::Rollback(who) => write!(f, "{who} is put back to what it is now"),
            Fault::LoseLog(who) => write!(f, "{who} loses its log"),
        }
    }
}

/// A fault with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it comes, since the faults began.
    pub at: Duration,
    /// How long it stays, where that means something.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "+{:.3} s for {:.3} s: {}",
            self.at.as_secs_f64(),
            self.lasts.as_secs_f64(),
            self.fault
        )
    }
}

/// What a story begins with and goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Machines that are members before the faults begin.
    pub founders: usize,
    /// Faults, in order of time.
    pub faults: Vec<Planned>,
    /// When all of them end, since the faults began.
    pub end: Duration,
}

/// The schedule of a seed.
pub fn schedule(seed: u64) -> Schedule {
    let mut random = Random::new(seed).fork(4);
    let founders = match random.below(10) {
        0 => 1,
        1 => 5,
        _ => 3,
    };
    let count = random.between(4, 14);
    let mut at = Duration::ZERO;
    let mut faults = Vec::new();
    for _ in 0..count {
        at += Duration::from_millis(random.between(50, 1500));
        let lasts = match random.below(3) {
            0 => random.between(50, 400),
            1 => random.between(400, 1500),
            _ => random.between(1500, 4000),
        };
        faults.push(Planned {
            at,
            lasts: Duration::from_millis(lasts),
            fault: draw(&mut random),
        });
    }
    Schedule {
        founders,
        faults,
        end: at + Duration::from_millis(random.between(500, 3000)),
    }
}

fn draw(random: &mut Random) -> Fault {
    let who = if random.chance(40) {
        Who::Leader
    } else {
        Who::Machine(random.index(MACHINES))
    };
    match random.below(40) {
        0..=2 => Fault::Cut {
            side: u8::try_from(random.between(1, 30)).expect("five bits"),
            one_way: random.chance(40),
        },
        3..=5 => Fault::Isolate {
            who,
            one_way: random.chance(40),
        },
        6 => Fault::Ring,
        7..=8 => Fault::Disturb {
            loss_percent: random.between(0, 30),
            jitter_ms: random.between(1, 150),
        },
        9..=10 => Fault::Slow {
            who,
            by_ms: random.between(5, 300),
        },
        11..=13 => Fault::Kill(who),
        14..=15 => Fault::LosePower(who),
        16..=17 => Fault::LoseAllPower,
        18..=20 => Fault::CutAtSync {
            who,
            after: random.below(6),
            committed: random.chance(50),
        },
        21..=22 => Fault::SyncError {
            who,
            after: random.below(6),
        },
        23..=24 => Fault::FullDisk {
            who,
            hard: random.chance(60),
        },
        25 => Fault::SlowDisk {
            who,
            by_ms: random.between(5, 500),
        },
        26..=28 => Fault::Stall(who),
        29 => Fault::ClockJump {
            who,
            by_s: if random.chance(50) { 3600 } else { -3600 },
        },
        30 => Fault::Restart(who),
        31 => Fault::HandOver,
        32..=33 => Fault::Join,
        34..=35 => Fault::Leave(who),
        36..=37 => Fault::Wipe(who),
        38 => Fault::Rollback(who),
        _ => Fault::LoseLog(who),
    }
}

/// Has a fault happen, and end when its time is over.
pub fn apply(world: &Arc<World>, planned: &Planned) {
    let Planned { lasts, fault, .. } = *planned;
    world.tell(|| format!("FAULT: {fault}"));
    let network = world.network.clone();
    let each = || (0..MACHINES).flat_map(|a| (0..MACHINES).map(move |b| (a, b)));
    match fault {
        Fault::Cut { side, one_way } => {
            let inside = move |machine: usize| side >> machine & 1 == 1;
            let pairs = each().filter(move |(a, b)| {
                inside(*a) && !inside(*b) || !one_way && !inside(*a) && inside(*b)
            });
            cut(world, pairs.collect(), lasts);
        }
        Fault::Isolate { who, one_way } => {
            if let Some(machine) = find(world, who) {
                let pairs = each()
                    .filter(move |(a, b)| a != b && (*a == machine || !one_way && *b == machine));
                cut(world, pairs.collect(), lasts);
            }
        }
        Fault::Ring => {
            let pairs = each().filter(|(a, b)| {
                let apart = a.abs_diff(*b);
                apart > 1 && apart < MACHINES - 1
            });
            cut(world, pairs.collect(), lasts);
        }
        Fault::Disturb {
            loss_percent,
            jitter_ms,
        } => {
            network.disturb(loss_percent, Duration::from_millis(jitter_ms));
            later(lasts, move || network.disturb(0, Duration::ZERO));
        }
        Fault::Slow { who, by_ms } => {
            if let Some(machine) = find(world, who) {
                network.slow(machine, Duration::from_millis(by_ms));
                later(lasts, move || network.slow(machine, Duration::ZERO));
            }
        }
        Fault::Kill(who) | Fault::LosePower(who) => {
            if let Some(machine) = find(world, who) {
                machine::stop(world, machine, matches!(fault, Fault::LosePower(_)));
                machine::boot_after(world, machine, lasts);
            }
        }
        Fault::LoseAllPower => {
            for machine in 0..MACHINES {
                if world.machines[machine].process().is_some() {
                    machine::stop(world, machine, true);
                    let pause = world.random(|random| random.between(100, 1500));
                    machine::boot_after(world, machine, Duration::from_millis(pause));
                }
            }
        }
        Fault::CutAtSync {
            who,
            after,
            committed,
        } => {
            let event = if committed {
                SyncEvent::CutAfter
            } else {
                SyncEvent::CutBefore
            };
            if let Some(machine) = find(world, who) {
                world.machines[machine].disk.plan(after, event);
            }
        }
        Fault::SyncError { who, after } => {
            if let Some(machine) = find(world, who) {
                world.machines[machine].disk.plan(after, SyncEvent::Error);
            }
        }
        Fault::FullDisk { who, hard } => {
            if let Some(machine) = find(world, who) {
                set_full(world, machine, true, hard);
                let world = world.clone();
                later(lasts, move || set_full(&world, machine, false, false));
            }
        }
        Fault::SlowDisk { who, by_ms } => {
            if let Some(machine) = find(world, who) {
                let takes = world.machines[machine].disk_us.clone();
                takes.store(by_ms * 1000, Ordering::Relaxed);
                later(lasts, move || takes.store(0, Ordering::Relaxed));
            }
        }
        Fault::Stall(who) => {
            if let Some(process) = process_of(world, who) {
                scheduler().stall(process, true);
                later(lasts, move || scheduler().stall(process, false));
            }
        }
        Fault::ClockJump { who, by_s } => {
            if let Some(machine) = find(world, who) {
                let clock = &world.machines[machine].clock_ms;
                clock.fetch_add(by_s * 1000, Ordering::Relaxed);
            }
        }
        Fault::Restart(who) => {
            if let Some(machine) = find(world, who) {
                let _detached = spawn_in(WORLD, restart(world.clone(), machine));
            }
        }
        Fault::HandOver => {
            if let Some((_, live)) = world.leader() {
                let _detached = spawn_in(live.process, async move {
                    let _ = live.node.transfer_leader(None).await;
                });
            }
        }
        Fault::Join => {
            let free = (0..MACHINES).find(|machine| {
                let machine = &world.machines[*machine];
                machine.process().is_none() && machine.node_id().is_none()
            });
            if let Some(machine) = free {
                machine::boot(world, machine);
            }
        }
        Fault::Leave(who) => {
            if let Some((machine, id)) = expendable(world, who) {
                let _detached = spawn_in(WORLD, leave(world.clone(), machine, id));
            }
        }
        Fault::Wipe(who) => {
            if let Some((machine, id)) = expendable(world, who) {
                machine::stop(world, machine, true);
                world.retire(id);
                world.machines[machine].replace_disk();
                world.observe(|observer| {
                    observer.forget(machine);
                    Ok(())
                });
                machine::boot_after(world, machine, lasts);
                let _detached = spawn_in(WORLD, remove(world.clone(), id));
            }
        }
        Fault::Rollback(who) => {
            // An image from when it was alone is beyond what a cluster mends by itself.
            if let Some((machine, id)) = expendable(world, who) {
                let image = world.machines[machine].disk.image();
                let world = world.clone();
                later(lasts, move || put_back(&world, machine, id, image));
            }
        }
        Fault::LoseLog(who) => {
            if let Some((machine, id)) = expendable(world, who) {
                let image = world.machines[machine].disk.image().without_log();
                put_back(world, machine, id, image);
            }
        }
    }
}

/// Ends every fault, and gives every machine power that is to take part.
pub fn heal(world: &Arc<World>) {
    world.tell(|| "HEAL".into());
    world.network.heal();
    for (number, machine) in world.machines.iter().enumerate() {
        machine.disk.repair();
        machine.disk_us.store(0, Ordering::Relaxed);
        machine.free_bytes.store(u64::MAX, Ordering::Relaxed);
        if let Some(process) = machine.process() {
            scheduler().stall(process, false);
        }
        let takes_part = machine
            .node_id()
            .is_some_and(|id| !world.retired().contains(&id));
        if takes_part {
            machine::boot(world, number);
        }
    }
}

fn later(after: Duration, work: impl FnOnce() + Send + 'static) {
    let _detached = spawn_in(WORLD, async move {
        Sim::sleep(after).await;
        work();
    });
}

fn cut(world: &World, pairs: Vec<(usize, usize)>, lasts: Duration) {
    let network = world.network.clone();
    for (from, to) in &pairs {
        network.cut(*from, *to);
    }
    later(lasts, move || {
        for (from, to) in &pairs {
            network.mend(*from, *to);
        }
    });
}

fn set_full(world: &World, machine: usize, full: bool, hard: bool) {
    let machine = &world.machines[machine];
    let free = if full { 1024 } else { u64::MAX };
    machine.free_bytes.store(free, Ordering::Relaxed);
    machine.disk.set_full(hard);
}

/// The machine that is meant, if it has power.
fn find(world: &World, who: Who) -> Option<usize> {
    let machine = match who {
        Who::Machine(machine) => machine,
        Who::Leader => world.leader()?.0,
    };
    world.machines[machine].process().map(|_| machine)
}

fn process_of(world: &World, who: Who) -> Option<Process> {
    world.machines[find(world, who)?].process()
}

/// A member that the others can do without.
fn expendable(world: &World, who: Who) -> Option<(usize, NodeId)> {
    let machine = find(world, who).filter(|_| !world.put_back.load(Ordering::Relaxed))?;
    let id = world.machines[machine].node_id()?;
    let others = world
        .machines
        .iter()
        .filter_map(|machine| machine.node_id())
        .filter(|other| *other != id && !world.retired().contains(other));
    (others.count() >= 2 && !world.retired().contains(&id) && world.survives(id))
        .then_some((machine, id))
}

async fn restart(world: Arc<World>, machine: usize) {
    if let Some(live) = world.machines[machine].live() {
        let node = live.node.clone();
        let _ = spawn_in(live.process, async move { stop_in_order(&node).await }).await;
    }
    machine::stop(&world, machine, false);
    machine::boot_after(&world, machine, Duration::from_millis(200));
}

async fn stop_in_order(node: &Node<Sim>) {
    if let Role::Leader { .. } = node.role() {
        let _ = node.transfer_leader(None).await;
    }
    node.shutdown().await;
}

/// An operator has a member removed and switches it off when it is out.
async fn leave(world: Arc<World>, machine: usize, id: NodeId) {
    remove(world.clone(), id).await;
    world.retire(id);
    if world.machines[machine].node_id() == Some(id) {
        machine::stop(&world, machine, false);
        world.machines[machine].replace_disk();
        world.observe(|observer| {
            observer.forget(machine);
            Ok(())
        });
    }
}

/// An operator asks for a removal until it is done.
async fn remove(world: Arc<World>, id: NodeId) {
    loop {
        if let Some((_, live)) = world.leader() {
            if live.node.state().removed(id).is_some() {
                return world.tell(|| format!("{id} is out"));
            }
            let Live { process, node, .. } = live;
            let asking = spawn_in(process, async move {
                node.propose(Command::RemoveMember { node_id: id }).await
            });
            // Whatever it says: what counts is whether the member is out.
            let _ = asking.await;
        }
        Sim::sleep(Duration::from_millis(500)).await;
    }
}

/// A machine goes on from an image of its own. Only one does in a story, and no disk is lost after that: to lose two
/// disks of three is more than any cluster survives.
fn put_back(world: &Arc<World>, machine: usize, id: NodeId, image: DiskImage) {
    let same = world.machines[machine].node_id() == Some(id);
    if !same || !world.survives(id) || world.put_back.swap(true, Ordering::Relaxed) {
        return;
    }
    machine::stop(world, machine, true);
    world.machines[machine].disk.restore(image);
    world.observe(|observer| {
        observer.forget(machine);
        Ok(())
    });
    world.tell(|| format!("m{machine}: put back"));
    machine::boot_after(world, machine, Duration::from_millis(100));
}
