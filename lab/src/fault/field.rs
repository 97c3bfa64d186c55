//! The cluster that faults happen to, and how each of them begins and ends.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::json;

use super::plan::{Fault, Step, Victim};
use crate::cluster::Cluster;
use crate::topology::Segment;
use crate::wait;

/// Members from the beginning.
const MEMBERS: u8 = 3;
/// The one that joins in the middle.
const JOINER: u8 = 4;
/// The one whose data is on a file system of its own, which can be filled.
const CONFINED: u8 = 3;
/// Its size: what a node keeps free for votes and membership (64 MiB), and room for a log.
const CONFINED_BYTES: u64 = 256 << 20;
/// How long the cluster may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);
const HOUR_S: i64 = 3600;
/// More than a member may be behind before it is sent a snapshot.
const SNAPSHOT_LAG: u64 = 7_000;

/// Three members, a joiner that waits, and a small file system.
pub(super) struct Field {
    // Dropped in this order: the run's directory goes with the cluster.
    confined: SmallDisk,
    pub(super) cluster: Cluster,
    running: Vec<u8>,
}

impl Field {
    pub(super) fn lay() -> Result<Field> {
        let mut cluster = Cluster::lay_out(JOINER)?;
        let confined = SmallDisk::mount(cluster.node(CONFINED).dir().join("cluster"))?;
        let running: Vec<u8> = (1..=MEMBERS).collect();
        for number in &running {
            cluster.node(*number).allow_tampering()?;
            cluster.node(*number).start()?;
        }
        let mut field = Field {
            confined,
            cluster,
            running,
        };
        field.wait_whole()?;
        Ok(field)
    }

    /// The end of every node's log.
    pub(super) fn logs(&self) -> String {
        let tails: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .map(crate::Node::log_tail)
            .collect();
        tails.join("\n")
    }

    /// Lets one fault happen, ends it, and waits until the cluster is whole again.
    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        let leader = self.leader()?;
        let follower = self
            .running
            .iter()
            .copied()
            .find(|number| *number != leader && *number <= MEMBERS)
            .context("there is a follower")?;
        let victim = match step.victim {
            Victim::Leader => leader,
            Victim::Follower => follower,
        };
        match step.fault {
            Fault::AllKilled => self.kill_all(step.length)?,
            Fault::RollingRestart => self.restart_each()?,
            Fault::DuringJoin => self.kill_during_join(leader)?,
            Fault::DuringRotation => self.kill_during_rotation(leader)?,
            Fault::DuringSnapshot => self.kill_during_snapshot(leader, follower)?,
            fault => {
                self.begin(fault, victim, follower)?;
                thread::sleep(step.length);
                self.end(fault, victim)?;
            }
        }
        self.wait_whole()
    }

    fn begin(&mut self, fault: Fault, victim: u8, other: u8) -> Result<()> {
        let other = if other == victim {
            self.leader()?
        } else {
            other
        };
        let node = &self.cluster.nodes[usize::from(victim) - 1];
        let topology = &self.cluster.topology;
        match fault {
            Fault::Killed => self.cluster.node(victim).kill(),
            Fault::Paused => self.cluster.node(victim).pause(),
            Fault::Unplugged => topology.set_cable(victim, Segment::Management, false),
            Fault::Isolated => topology.isolate(victim),
            Fault::Ring => topology.separate(victim, other),
            Fault::Deaf => topology.deafen_to_members(victim),
            Fault::Lossy => topology.lose_packets(victim, 20),
            Fault::DiskFull => self.confined.fill(),
            Fault::SyncFails => node.tamper()?.fail_syncs(Some(Errno::EIO)),
            Fault::SyncSlow => node.tamper()?.delay_syncs(Duration::from_millis(500)),
            Fault::ClockAhead => node.tamper()?.set_clock(HOUR_S),
            Fault::ClockBehind => node.tamper()?.set_clock(-HOUR_S),
            Fault::AllKilled
            | Fault::RollingRestart
            | Fault::DuringJoin
            | Fault::DuringRotation
            | Fault::DuringSnapshot => unreachable!("it has no length"),
        }
    }

    fn end(&mut self, fault: Fault, victim: u8) -> Result<()> {
        let topology = &self.cluster.topology;
        match fault {
            Fault::Killed => self.cluster.node(victim).start(),
            Fault::Paused => self.cluster.node(victim).resume(),
            Fault::Unplugged => topology.set_cable(victim, Segment::Management, true),
            Fault::Isolated | Fault::Ring | Fault::Deaf | Fault::Lossy => topology.heal(victim),
            Fault::DiskFull => self.confined.empty(),
            _ => self.cluster.node(victim).tamper()?.stop(),
        }
    }

    fn kill_all(&mut self, pause: Duration) -> Result<()> {
        for number in self.running.clone() {
            self.cluster.node(number).signal(Signal::SIGKILL)?;
        }
        for number in self.running.clone() {
            self.cluster.node(number).reap()?;
        }
        thread::sleep(pause);
        for number in self.running.clone() {
            self.cluster.node(number).start()?;
        }
        Ok(())
    }

    fn restart_each(&mut self) -> Result<()> {
        for number in self.running.clone() {
            self.cluster.node(number).terminate()?;
            self.cluster.node(number).start()?;
            self.wait_whole()?;
        }
        Ok(())
    }

    fn kill_during_join(&mut self, leader: u8) -> Result<()> {
        ensure!(!self.running.contains(&JOINER), "the joiner joins once");
        self.cluster.node(JOINER).start()?;
        // Asking, being reserved and being replicated to take some hundred milliseconds together.
        thread::sleep(Duration::from_millis(300));
        self.cluster.node(leader).kill()?;
        thread::sleep(Duration::from_millis(700));
        self.cluster.node(leader).start()?;
        self.running.push(JOINER);
        Ok(())
    }

    fn kill_during_rotation(&mut self, leader: u8) -> Result<()> {
        const CA: &str = "/api/v1/cluster/ca";
        let before = self.cluster.api(leader)?.get_json(CA)?;
        self.cluster
            .node(leader)
            .control(&["cluster", "ca", "rotate"])?;
        // The new CA is trusted; certificates are being issued from it.
        thread::sleep(Duration::from_millis(100));
        self.cluster.node(leader).kill()?;
        thread::sleep(Duration::from_millis(700));
        self.cluster.node(leader).start()?;
        wait::until_true("the end of the rotation", WHOLE, || {
            let now = self.cluster.api(leader)?.get_json(CA)?;
            Ok(now["rotation"].is_null() && now["sha256"] != before["sha256"])
        })
        .map(drop)
    }

    fn kill_during_snapshot(&mut self, leader: u8, away: u8) -> Result<()> {
        self.cluster.node(away).terminate()?;
        self.write_many(leader, SNAPSHOT_LAG)?;
        self.cluster.node(away).start()?;
        thread::sleep(Duration::from_millis(500));
        self.cluster.node(leader).kill()?;
        self.cluster.node(leader).start()
    }

    /// Makes the log longer by `entries`.
    fn write_many(&mut self, leader: u8, entries: u64) -> Result<()> {
        let api = self.cluster.api(leader)?;
        let last_index = || -> Result<u64> {
            let stats = api.get_json("/api/v1/stats")?;
            stats["cluster"]["last_log_index"]
                .as_u64()
                .context("a log index")
        };
        let until = last_index()? + entries;
        let path = "/api/v1/service-accounts";
        let created = api.send_json("POST", path, &json!({"name": "many", "role": "readonly"}))?;
        ensure!(matches!(created.status, 201 | 409), "{}", created.text());
        let accounts = api.get_json(path)?;
        let id = accounts
            .as_array()
            .into_iter()
            .flatten()
            .find(|account| account["name"] == "many")
            .and_then(|account| account["id"].as_str())
            .context("the account is there")?;
        let path = format!("{path}/{id}");
        while last_index()? < until {
            thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            let body = json!({"name": "many", "role": "readonly"});
                            let _ = api.send_json("PUT", &path, &body);
                        }
                    });
                }
            });
        }
        Ok(())
    }

    fn leader(&mut self) -> Result<u8> {
        let running = self.running.clone();
        wait::until("a leader", WHOLE, || {
            let leaders = running.iter().map(|number| self.cluster.leader(*number));
            // Whoever leads is known as the leader to two at least.
            let known: Vec<u8> = leaders.flatten().collect();
            let twice = |one: &&u8| known.iter().filter(|other| other == one).count() >= 2;
            Ok(known.iter().find(twice).copied())
        })
        .map(|(leader, _)| leader)
    }

    /// Waits until every node is ready, and one may fail.
    fn wait_whole(&mut self) -> Result<()> {
        for number in self.running.clone() {
            self.cluster.wait_node_ready(number)?;
        }
        let members = self.running.len() as u64;
        let whole = || {
            for number in self.running.clone() {
                let stats = self.cluster.api(number)?.get_json("/api/v1/stats")?;
                let cluster = &stats["cluster"];
                if cluster["failure_tolerance"] != 1 || cluster["node_count"] != members {
                    bail!("node {number}: {cluster}");
                }
            }
            Ok(true)
        };
        wait::until_true("a whole cluster", WHOLE, whole).map(drop)
    }
}

/// What a file system in memory gives out at once.
const PAGE_BYTES: usize = 4096;

/// A file system in memory, small enough to be filled.
#[derive(Debug)]
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: PathBuf) -> Result<SmallDisk> {
        fs::create_dir_all(&path)?;
        let size = format!("size={CONFINED_BYTES},mode=0700");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .with_context(|| format!("cannot mount at {}", path.display()))?;
        Ok(SmallDisk { path })
    }

    /// Takes all the space that is left. The node takes some meanwhile, so how much that is shows at the end.
    fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.filler())?;
        let pages = [0; 16 * PAGE_BYTES];
        for size in [pages.len(), PAGE_BYTES] {
            loop {
                match filler.write(&pages[..size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill the disk"),
                }
            }
        }
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
