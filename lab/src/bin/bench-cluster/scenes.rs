//! What is measured, one function a scene, in the order in which they go best: what needs a young cluster first.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use lab::address;
use lab::cluster::Cluster;
use lab::fault::plan::Plan;
use lab::netns::Netns;
use lab::process::processor_time;
use lab::topology::Segment;
use lab::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::load::{Watch, percentile, write_for};
use crate::report::{Line, Target};
use crate::subject::{Connection, Subject, name};

const NODES: u8 = 3;
const CLIENTS: usize = 64;
/// Anything that a healthy cluster does.
const SOON: Duration = Duration::from_secs(60);
const ACCOUNTS: &str = "/api/v1/service-accounts";
/// Entries behind an idle node.
const ENTRIES: u64 = 8_000;
const RULES: usize = 10_000;

type Scene = fn(&mut Bench) -> Result<Vec<Line>>;

/// Every scene, by name.
pub(crate) const ALL: [(&str, Scene); 9] = [
    ("join", join),
    ("idle", idle),
    ("writes", writes),
    ("enforce", enforce),
    ("gaps", gaps),
    ("stop", stop),
    ("elections", elections),
    ("log", log),
    ("faults", faults),
];

/// Both clusters, running.
pub(crate) struct Bench {
    full: bool,
    // Dropped in this order.
    etcd: Etcd,
    cluster: Cluster,
    ours: Subject,
    theirs: Subject,
    joined: Duration,
}

impl Bench {
    /// Lays out the nodes, starts both clusters, and times the join of the third node on the way.
    pub(crate) fn lay(full: bool) -> Result<Self> {
        let mut cluster = Cluster::lay_out(NODES)?;
        for node in &mut cluster.nodes {
            node.log_as_shipped();
        }
        let etcd = Etcd::start(&cluster.topology)?;
        for number in [1, 2] {
            cluster.node(number).start()?;
            cluster.wait_node_ready(number)?;
        }
        wait_voters(&mut cluster, 2)?;
        let api = cluster.api(1)?;
        api.put_policy(&policy(10, 0))?;
        let begin = Instant::now();
        cluster.node(3).start()?;
        cluster.wait_node_ready(3)?;
        wait_voters(&mut cluster, 3)?;
        wait::until_true("the third node to enforce", SOON, || {
            Ok(all_enforce(&api.get_json("/api/v1/stats")?))
        })?;
        let joined = begin.elapsed();
        let mut accounts = Vec::new();
        for client in 0..CLIENTS {
            let body = json!({"name": name(client), "role": "readonly"});
            let created = api.send_json("POST", ACCOUNTS, &body)?;
            ensure!(created.status == 201, "{}", created.text());
            let id = created.json()?["id"].as_str().context("an id")?.to_owned();
            accounts.push(id);
        }
        let ca = fs::read(cluster.node(1).ca_path())?;
        let token = cluster.token().context("a token was minted")?;
        Ok(Self {
            full,
            ours: Subject::neuwerk(&ca, token, accounts)?,
            theirs: Subject::etcd(etcd.ca_pem.as_bytes())?,
            etcd,
            cluster,
            joined,
        })
    }

    fn operator(&self) -> &Netns {
        &self.cluster.topology.operator
    }

    /// The leaders of both, once all nodes of both are there and in step.
    fn leaders(&mut self) -> Result<(u8, u8)> {
        self.cluster.wait_ready()?;
        let (ours, _) = wait::until("our leader", SOON, || {
            let stats = self.cluster.api(1)?.get_json("/api/v1/stats")?;
            ensure!(stats["cluster"]["failure_tolerance"] == 1, "{stats:#}");
            self.cluster.leader(1).map(Some)
        })?;
        let (theirs, _) = wait::until("etcd's leader", SOON, || {
            let mut leader = None;
            for number in 1..=NODES {
                let leads = asked(
                    self.operator(),
                    &self.theirs,
                    number,
                    |mut connection| async move { connection.leads().await },
                )?;
                leader = leader.or(leads.then_some(number));
            }
            Ok(leader)
        })?;
        Ok((ours, theirs))
    }

    fn samples(&self) -> usize {
        if self.full { 20 } else { 4 }
    }

    fn of_samples(&self) -> String {
        format!("p95 of {}", self.samples())
    }
}

fn line(what: impl Into<String>, value: f64, unit: &'static str) -> Line {
    Line {
        what: what.into(),
        value,
        unit,
        yardstick: None,
        target: Target::None,
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn join(bench: &mut Bench) -> Result<Vec<Line>> {
    Ok(vec![Line {
        target: Target::AtMost(15.0),
        ..line(
            "third node's start to voter that enforces",
            bench.joined.as_secs_f64(),
            "s",
        )
    }])
}

/// An idle node with thousands of entries behind it.
fn idle(bench: &mut Bench) -> Result<Vec<Line>> {
    let (leader, _) = bench.leaders()?;
    while last_index(&mut bench.cluster)? < ENTRIES {
        let second = Duration::from_secs(1);
        write_for(bench.operator(), &bench.ours, leader, CLIENTS, second)?;
    }
    let length = Duration::from_secs(if bench.full { 60 } else { 15 });
    // Reports, snapshots and closing connections come to rest first.
    thread::sleep(Duration::from_secs(5));
    let mut pids = Vec::new();
    for number in 1..=NODES {
        pids.push(bench.cluster.node(number).process_id()?);
    }
    let others: Vec<u32> = (1..=NODES)
        .filter_map(|number| bench.etcd.pid(number))
        .collect();
    let cpu = |pids: &[u32]| {
        pids.iter()
            .map(|pid| processor_time(*pid))
            .collect::<Result<Vec<_>>>()
    };
    let (before, before_others) = (cpu(&pids)?, cpu(&others)?);
    thread::sleep(length);
    let (after, after_others) = (cpu(&pids)?, cpu(&others)?);
    let most = |before: &[Duration], after: &[Duration]| {
        let spent = before
            .iter()
            .zip(after)
            .map(|(before, after)| *after - *before);
        100.0 * spent.max().unwrap_or_default().as_secs_f64() / length.as_secs_f64()
    };
    let resident = |pids: &[u32]| -> Result<f64> {
        let all = pids
            .iter()
            .map(|pid| resident_mib(*pid))
            .collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().fold(0.0, f64::max))
    };
    let behind = last_index(&mut bench.cluster)?;
    Ok(vec![
        Line {
            yardstick: Some(most(&before_others, &after_others)),
            target: Target::AtMost(1.0),
            ..line(
                format!("idle node, {behind} entries behind it: busiest of three"),
                most(&before, &after),
                "% core",
            )
        },
        Line {
            yardstick: Some(resident(&others)?),
            target: Target::AtMost(60.0),
            ..line(
                "idle node: largest of three, resident",
                resident(&pids)?,
                "MiB",
            )
        },
    ])
}

/// Latency at one client, throughput at many.
fn writes(bench: &mut Bench) -> Result<Vec<Line>> {
    let (ours, theirs) = bench.leaders()?;
    let (rounds, length) = if bench.full { (5, 6) } else { (2, 4) };
    let length = Duration::from_secs(length);
    let mut single = [Vec::new(), Vec::new()];
    let mut rates = [Vec::new(), Vec::new()];
    let mut through_follower = Vec::new();
    let follower = if ours == 1 { 2 } else { 1 };
    for round in 1..=rounds {
        for (turn, (subject, leader)) in [(&bench.ours, ours), (&bench.theirs, theirs)]
            .into_iter()
            .enumerate()
        {
            let taken = write_for(bench.operator(), subject, leader, 1, length)?;
            println!(
                "    {round}/{rounds} {}: {} writes at 1 client, p50 {:.2} ms, p99 {:.2} ms",
                ["neuwerk", "etcd"][turn],
                taken.len(),
                ms(percentile(&taken, 50)?),
                ms(percentile(&taken, 99)?)
            );
            single[turn].extend(taken);
            let taken = write_for(bench.operator(), subject, leader, CLIENTS, length)?;
            let rate = taken.len() as f64 / length.as_secs_f64();
            println!(
                "    {round}/{rounds} {}: {rate:.0} writes/s at {CLIENTS} clients, p99 {:.1} ms",
                ["neuwerk", "etcd"][turn],
                ms(percentile(&taken, 99)?)
            );
            rates[turn].push(rate);
        }
        through_follower.extend(write_for(
            bench.operator(),
            &bench.ours,
            follower,
            1,
            length,
        )?);
    }
    let [one, one_etcd] = &single;
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len() as f64;
    Ok(vec![
        Line {
            yardstick: Some(ms(percentile(one_etcd, 50)?)),
            target: Target::RatioAtMost(1.5),
            ..line(
                "accepted write, 1 client, p50",
                ms(percentile(one, 50)?),
                "ms",
            )
        },
        Line {
            yardstick: Some(ms(percentile(one_etcd, 99)?)),
            target: Target::AtMost(20.0),
            ..line(
                "accepted write, 1 client, p99",
                ms(percentile(one, 99)?),
                "ms",
            )
        },
        Line {
            yardstick: Some(mean(&rates[1])),
            target: Target::RatioAtLeast(1.0),
            ..line(
                format!("accepted writes at {CLIENTS} clients"),
                mean(&rates[0]),
                "1/s",
            )
        },
        line(
            "accepted write through a follower, 1 client, p50",
            ms(percentile(&through_follower, 50)?),
            "ms",
        ),
    ])
}

/// From the answer that a policy is committed to the moment when the leader has heard of every node that it enforces it.
fn enforce(bench: &mut Bench) -> Result<Vec<Line>> {
    let (leader, _) = bench.leaders()?;
    let count = if bench.full { 300 } else { 100 };
    let ours = bench.ours.clone();
    let (taken, whole) = bench.operator().enter(move || {
        runtime()?.block_on(async {
            let to = ours.connect(leader, false)?;
            let (mut taken, mut whole) = (Vec::new(), Vec::new());
            for number in 1..=count {
                let body = policy(RULES, number).to_string();
                let path = "/api/v1/policy?wait=committed";
                let called = Instant::now();
                let (status, answer) = to.exchange(Method::PUT, path, body, None).await?;
                ensure!(status == 200, "{status} {answer}");
                let committed = Instant::now();
                while !all_enforce(&stats(&to).await?) {
                    ensure!(committed.elapsed() < SOON, "the policy is not enforced");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                taken.push(committed.elapsed());
                whole.push(called.elapsed());
            }
            anyhow::Ok((taken, whole))
        })
    })?;
    Ok(vec![
        Line {
            target: Target::AtMost(150.0),
            ..line(
                format!("commit to enforced on all three, {RULES} rules, p99 of {count}"),
                ms(percentile(&taken, 99)?),
                "ms",
            )
        },
        line(
            format!("PUT to enforced on all three, {RULES} rules, p50"),
            ms(percentile(&whole, 50)?),
            "ms",
        ),
    ])
}

/// How the leader is lost, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Unplugged,
    Paused,
    Stopped,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Loss::Killed => "SIGKILL",
            Loss::Unplugged => "link down",
            Loss::Paused => "SIGSTOP",
            Loss::Stopped => "planned stop",
        }
    }
}

/// The longest gaps in writing, ours and etcd's, and the writes of clients that try again: how many, how many failed.
#[derive(Default)]
struct Gaps {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
    retried: u64,
    failed: u64,
}

fn lose(bench: &mut Bench, loss: Loss) -> Result<Gaps> {
    let mut gaps = Gaps::default();
    for sample in 1..=bench.samples() {
        for turn in ["neuwerk", "etcd"] {
            let (ours, theirs) = bench.leaders()?;
            let (subject, leader) = match turn {
                "neuwerk" => (&bench.ours, ours),
                _ => (&bench.theirs, theirs),
            };
            let watch = Watch::start(bench.operator(), subject, NODES)?;
            watch.settle(SOON)?;
            let since = Instant::now();
            bench.strike(turn, leader, loss)?;
            // Long enough for etcd to elect, and then a while of steady writing.
            thread::sleep(Duration::from_millis(1500));
            watch.settle(SOON)?;
            let gap = watch.longest_gap(since);
            let (retried, failed) = watch.finish()?;
            println!(
                "    {sample}/{} {turn}, {}: {:.0} ms; of {retried} writes with retries {failed} failed",
                bench.samples(),
                loss.name(),
                ms(gap)
            );
            bench.mend(turn, leader, loss)?;
            match turn {
                "neuwerk" => {
                    gaps.ours.push(gap);
                    gaps.retried += retried;
                    gaps.failed += failed;
                }
                _ => gaps.theirs.push(gap),
            }
        }
    }
    Ok(gaps)
}

impl Bench {
    fn strike(&mut self, turn: &str, leader: u8, loss: Loss) -> Result<()> {
        let signal = match loss {
            Loss::Unplugged => {
                return self
                    .cluster
                    .topology
                    .set_cable(leader, Segment::Management, false);
            }
            Loss::Killed => Signal::SIGKILL,
            Loss::Paused => Signal::SIGSTOP,
            Loss::Stopped => Signal::SIGTERM,
        };
        match turn {
            "neuwerk" => self.cluster.node(leader).signal(signal),
            _ => self.etcd.signal(leader, signal),
        }
    }

    fn mend(&mut self, turn: &str, leader: u8, loss: Loss) -> Result<()> {
        match (loss, turn) {
            (Loss::Unplugged, _) => {
                self.cluster
                    .topology
                    .set_cable(leader, Segment::Management, true)
            }
            (Loss::Paused, "neuwerk") => self.cluster.node(leader).resume(),
            (Loss::Paused, _) => self.etcd.signal(leader, Signal::SIGCONT),
            (Loss::Killed, "neuwerk") => {
                self.cluster.node(leader).reap()?;
                self.cluster.node(leader).start()
            }
            (Loss::Stopped, "neuwerk") => {
                self.cluster.node(leader).wait_stopped()?;
                self.cluster.node(leader).start()
            }
            (Loss::Killed | Loss::Stopped, _) => {
                self.etcd.reap(leader)?;
                self.etcd.restart(leader)
            }
        }
    }
}

/// The leader is lost.
fn gaps(bench: &mut Bench) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for loss in [Loss::Killed, Loss::Unplugged, Loss::Paused] {
        let gaps = lose(bench, loss)?;
        let (ours, theirs) = (
            percentile(&gaps.ours, 95)?.as_secs_f64(),
            percentile(&gaps.theirs, 95)?.as_secs_f64(),
        );
        let what = format!("longest write gap, leader lost by {}", loss.name());
        lines.push(Line {
            target: Target::AtMost(1.0),
            ..line(format!("{what}, {}", bench.of_samples()), ours, "s")
        });
        lines.push(Line {
            yardstick: Some(theirs),
            target: Target::RatioAtMost(0.7),
            ..line("  the same beside etcd's", ours, "s")
        });
    }
    Ok(lines)
}

/// The leader is asked to stop.
fn stop(bench: &mut Bench) -> Result<Vec<Line>> {
    let gaps = lose(bench, Loss::Stopped)?;
    let most = |gaps: &[Duration]| gaps.iter().copied().max().map(ms);
    Ok(vec![
        Line {
            yardstick: most(&gaps.theirs),
            target: Target::AtMost(200.0),
            ..line(
                format!(
                    "longest write gap, planned stop of the leader, of {}",
                    bench.samples()
                ),
                most(&gaps.ours).context("samples")?,
                "ms",
            )
        },
        Line {
            target: Target::AtMost(0.0),
            ..line(
                format!("  failed writes of {} with a retrying client", gaps.retried),
                gaps.failed as f64,
                "",
            )
        },
    ])
}

/// Elections that nothing called for, with both cores busy and some writing.
fn elections(bench: &mut Bench) -> Result<Vec<Line>> {
    let (leader, _) = bench.leaders()?;
    let length = Duration::from_secs(if bench.full { 30 * 60 } else { 60 });
    let before = term(&mut bench.cluster)?;
    let busy = thread::available_parallelism()?.get();
    let until = Instant::now() + length;
    thread::scope(|scope| -> Result<()> {
        for _ in 0..busy {
            scope.spawn(|| {
                let mut sum = 0_u64;
                while Instant::now() < until {
                    for number in 0..100_000_u64 {
                        sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
                    }
                }
            });
        }
        let left = until.saturating_duration_since(Instant::now());
        write_for(bench.operator(), &bench.ours, leader, 1, left).map(drop)
    })?;
    let elections = term(&mut bench.cluster)? - before;
    Ok(vec![Line {
        target: Target::AtMost(0.0),
        ..line(
            format!(
                "false elections in {} s with {busy} of {busy} cores busy",
                length.as_secs()
            ),
            elections as f64,
            "",
        )
    }])
}

fn log_lines(bench: &mut Bench, numbers: &[u8]) -> Result<usize> {
    let mut sum = 0;
    for number in numbers {
        let log = fs::read_to_string(bench.cluster.node(*number).log_path())?;
        sum += log.lines().count();
    }
    Ok(sum)
}

/// What the survivors log while a peer is down.
fn log(bench: &mut Bench) -> Result<Vec<Line>> {
    const TARGET_LENGTH: Duration = Duration::from_secs(600);
    let (leader, _) = bench.leaders()?;
    let length = if bench.full {
        TARGET_LENGTH
    } else {
        Duration::from_secs(90)
    };
    let down = if leader == 3 { 2 } else { 3 };
    let survivors: Vec<u8> = (1..=NODES).filter(|number| *number != down).collect();
    let before = log_lines(bench, &survivors)?;
    bench.cluster.node(down).kill()?;
    thread::sleep(length);
    let after = log_lines(bench, &survivors)?;
    bench.cluster.node(down).start()?;
    let counted = after - before;
    // Some lines come once and some every minute; all are scaled, which is the worse for us.
    let scaled = counted as f64 * TARGET_LENGTH.as_secs_f64() / length.as_secs_f64();
    let how = if bench.full {
        String::new()
    } else {
        format!(", {counted} in {} s scaled", length.as_secs())
    };
    Ok(vec![Line {
        target: Target::AtMost(100.0),
        ..line(
            format!("log lines with a peer down for 10 minutes{how}"),
            scaled,
            "",
        )
    }])
}

/// Faults of every kind at a cluster of their own, with a recorded history.
fn faults(bench: &mut Bench) -> Result<Vec<Line>> {
    let plan = if bench.full {
        Plan::random(1, Duration::from_secs(20 * 60))
    } else {
        Plan::each_once(1)
    };
    let told = lab::fault::run(&plan, |step| println!("    {step}"))?;
    for found in told.lost.iter().chain(&told.violations) {
        println!("    {found}");
    }
    let of = format!("{} faults, {} operations", told.faults, told.operations);
    Ok(vec![
        Line {
            target: Target::AtMost(0.0),
            ..line(
                format!("lost acknowledged writes, {of}"),
                told.lost.len() as f64,
                "",
            )
        },
        Line {
            target: Target::AtMost(0.0),
            ..line(
                "linearizability violations in the same",
                told.violations.len() as f64,
                "",
            )
        },
    ])
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// One question to node `number`.
fn asked<T: Send, F: Future<Output = Result<T>>>(
    operator: &Netns,
    subject: &Subject,
    number: u8,
    ask: impl FnOnce(Connection) -> F + Send,
) -> Result<T> {
    operator.enter(|| {
        runtime()?.block_on(async {
            let connection = subject.connect(number, true)?;
            tokio::time::timeout(Duration::from_secs(2), ask(connection)).await?
        })
    })
}

async fn stats(connection: &Connection) -> Result<Value> {
    let (status, answer) = connection
        .exchange(Method::GET, "/api/v1/stats", String::new(), None)
        .await?;
    ensure!(status == 200, "{status} {answer}");
    Ok(serde_json::from_str(&answer)?)
}

/// Whether every member has told the leader that it enforces the newest policy.
fn all_enforce(stats: &Value) -> bool {
    let cluster = &stats["cluster"];
    let members = cluster["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    members.len() == usize::from(NODES)
        && members
            .iter()
            .all(|member| member["enforced_revision"] == cluster["policy_revision"])
}

/// A policy of `rules` rules, each for an address of its own; `salt` makes it another one.
fn policy(rules: usize, salt: u64) -> Value {
    let rule = |number: usize| {
        let [_, a, b, c] = (number as u32).to_be_bytes();
        json!({
            "id": format!("rule-{number}"),
            "action": "allow",
            "match": {"dst_ips": [format!("198.{}.{b}.{c}", 18 + a)], "proto": "tcp", "dst_ports": [443]},
        })
    };
    let mut all: Vec<Value> = (0..rules).map(rule).collect();
    all[0]["id"] = json!(format!("salt-{salt}"));
    json!({
        "default_policy": "deny",
        "source_groups": [{
            "id": "clients",
            "mode": "enforce",
            "sources": {"cidrs": address::INSIDE},
            "rules": all,
        }],
    })
}

fn cluster_stats(cluster: &mut Cluster) -> Result<Value> {
    let stats = cluster.api(1)?.get_json("/api/v1/stats")?;
    Ok(stats["cluster"].clone())
}

fn last_index(cluster: &mut Cluster) -> Result<u64> {
    let stats = cluster_stats(cluster)?;
    stats["last_log_index"].as_u64().context("a log index")
}

fn term(cluster: &mut Cluster) -> Result<u64> {
    let stats = cluster_stats(cluster)?;
    stats["current_term"].as_u64().context("a term")
}

/// Waits until `count` members vote.
fn wait_voters(cluster: &mut Cluster, count: usize) -> Result<()> {
    let api = cluster.api(1)?;
    wait::until_true("votes", SOON, || {
        let members = api.get_json("/api/v1/cluster/members")?;
        let members = members["members"].as_array().context("members")?;
        let voters = members.iter().filter(|member| member["is_voter"] == true);
        Ok(voters.count() == count)
    })
    .map(drop)
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("VmRSS")?
        .parse()?;
    Ok(kib / 1024.0)
}
