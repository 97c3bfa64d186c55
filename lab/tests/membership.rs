//! Growing, shrinking, replacing and moving a cluster's members, through the real binary.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::address::{self, FAMILIES, Family};
use lab::client::Outcome;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::Management;
use lab::wait;
use serde_json::{Value, json};

const ACCOUNTS: &str = "/api/v1/service-accounts";

/// How long a change may take; a learner has to keep up for ten seconds before it votes.
const CHANGE: Duration = Duration::from_secs(90);

/// The longest time without an acknowledged write that counts as an election. A lost quorum would not come back.
const LONGEST_GAP: Duration = Duration::from_secs(15);

#[test]
#[ignore = "needs root; make test runs it"]
fn four_times_a_fresh_node_replaces_the_oldest_and_then_the_cluster_shrinks_to_one() {
    let lower = |number: u8| (1..number).collect();
    let mut cluster = Cluster::lay_out_joining(8, lower).unwrap();
    for number in 1..=4 {
        cluster.node(number).start().unwrap();
    }
    for number in 1..=4 {
        cluster.wait_node_ready(number).unwrap();
    }
    let mut members: Vec<u8> = vec![1, 2, 3, 4];
    // Three vote, the fourth stands by.
    expect(&mut cluster, &members, 3, 1);
    let writer = Writer::start();
    writer.through(&mut cluster, &members);

    for round in 0..4 {
        let (oldest, fresh) = (members[0], 5 + round);
        cluster.node(fresh).start().unwrap();
        cluster.wait_node_ready(fresh).unwrap();
        members.push(fresh);
        expect(&mut cluster, &members, 5, 2);
        writer.through(&mut cluster, &members);

        members.remove(0);
        let gone = cluster.node_id(members[0], oldest).unwrap();
        if round % 2 == 0 {
            writer.through(&mut cluster, &members);
            let left = cluster.node(oldest).control(&["cluster", "leave"]).unwrap();
            assert!(left.contains("has left its cluster"), "{left}");
            cluster.node(oldest).terminate().unwrap();
        } else {
            cluster.node(oldest).kill().unwrap();
            writer.through(&mut cluster, &members);
            // Five voters of which four are live survive one more failure.
            wait_tolerance(&mut cluster, &members, 1);
            cluster
                .node(members[0])
                .control(&["cluster", "members", "remove", &gone])
                .unwrap();
        }
        expect(&mut cluster, &members, 3, 1);
        writer.expect_more();
    }

    // 4 → 2 → 1. The step that costs the last failure that is survived wants the cluster's name.
    let remove = |cluster: &mut Cluster, asked: u8, victim: u8, more: &[&str]| {
        let id = cluster.node_id(asked, victim)?;
        let words = [&["cluster", "members", "remove", &id], more].concat();
        cluster.node(asked).control(&words)
    };
    for (victim, voters, tolerance) in [(8, 3, 1), (7, 2, 0), (6, 1, 0)] {
        members.retain(|number| *number != victim);
        writer.through(&mut cluster, &members);
        let asked = members[0];
        if voters == 2 {
            let refused = remove(&mut cluster, asked, victim, &[])
                .unwrap_err()
                .to_string();
            assert!(refused.contains("no failure survived"), "{refused}");
            let wrong = ["--confirm", "another"];
            let refused = remove(&mut cluster, asked, victim, &wrong)
                .unwrap_err()
                .to_string();
            assert!(refused.contains("nothing was done"), "{refused}");
        }
        let confirm = ["--confirm", "neuwerk"];
        remove(&mut cluster, asked, victim, &confirm).unwrap();
        expect(&mut cluster, &members, voters, tolerance);
        writer.expect_more();
        // A removed node says so, and goes on.
        let api = cluster.node(victim).management().unwrap();
        wait::until_true("the word of the removed", CHANGE, || {
            Ok(api
                .get("/ready")?
                .text()
                .contains("was removed from the cluster"))
        })
        .unwrap();
        assert_eq!(api.status_of("/ready/traffic").unwrap(), 200);
        cluster.node(victim).terminate().unwrap();
    }

    let (acknowledged, longest_gap) = writer.finish();
    assert!(longest_gap < LONGEST_GAP, "{longest_gap:?} without a write");
    let kept = accounts(&cluster.api(5).unwrap()).unwrap();
    let lost: Vec<_> = acknowledged.difference(&kept).collect();
    assert!(lost.is_empty(), "of {}: {lost:?}", acknowledged.len());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_spare_takes_the_place_of_a_voter_that_is_gone_for_long() {
    let mut cluster = Cluster::lay_out(4).unwrap();
    for number in 1..=4 {
        cluster
            .node(number)
            .configure("cluster", "replace_after_secs: 12")
            .unwrap();
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    let all = [1, 2, 3, 4];
    expect(&mut cluster, &all, 3, 1);
    let spare = (1..=4_u8)
        .find(|number| !votes(&mut cluster, *number).unwrap())
        .unwrap();
    let gone = (1..=4).rfind(|number| *number != spare).unwrap();
    cluster.node(gone).kill().unwrap();
    let rest: Vec<u8> = all.into_iter().filter(|number| *number != gone).collect();
    wait_tolerance(&mut cluster, &rest, 0);
    wait_tolerance(&mut cluster, &rest, 1);
    assert!(votes(&mut cluster, spare).unwrap());
    // Back again, it stands by in its turn.
    cluster.node(gone).start().unwrap();
    cluster.wait_node_ready(gone).unwrap();
    expect(&mut cluster, &all, 3, 1);
    assert!(!votes(&mut cluster, gone).unwrap());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_operators_word_outlives_the_clusters_own_decisions() {
    let mut cluster = Cluster::start(3).unwrap();
    let control = |cluster: &mut Cluster, node: u8, line: &str| {
        cluster
            .node(node)
            .control(&line.split(' ').collect::<Vec<_>>())
    };
    let third = cluster.node_id(1, 3).unwrap();
    let demote = format!("cluster members demote {third}");
    let refused = control(&mut cluster, 2, &demote).unwrap_err().to_string();
    assert!(refused.contains("no failure survived"), "{refused}");
    control(&mut cluster, 2, &format!("{demote} --confirm neuwerk")).unwrap();
    expect(&mut cluster, &[1, 2, 3], 2, 0);
    // Longer than a learner has to keep up for, and over a change of the leader.
    thread::sleep(Duration::from_secs(12));
    control(&mut cluster, 3, "cluster transfer").unwrap();
    expect(&mut cluster, &[1, 2, 3], 2, 0);
    control(
        &mut cluster,
        1,
        &format!("cluster members promote {third} --auto"),
    )
    .unwrap();
    expect(&mut cluster, &[1, 2, 3], 3, 1);
    let to = cluster.node_id(1, 3).unwrap();
    control(&mut cluster, 1, &format!("cluster transfer {to}")).unwrap();
    // The node that was asked hears it from the new leader.
    wait::until_true("node 3 leads", CHANGE, || Ok(cluster.leader(1)? == 3)).unwrap();
    // A new leader hears of the others first.
    control(
        &mut cluster,
        2,
        "cluster wait --ready --members 3 --timeout 20s",
    )
    .unwrap();
    let verified = control(&mut cluster, 3, "cluster verify").unwrap();
    assert!(!verified.contains("FAILED"), "{verified}");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_drained_node_keeps_its_flows_takes_no_new_ones_and_stays_so_over_a_restart() {
    let mut cluster = Cluster::start(3).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    let server = address::allowed_server(Family::V4);
    let live = cluster.live(3, server).unwrap();
    let id = cluster.node_id(1, 3).unwrap();
    // Asked of another node than the one that it is about.
    cluster.node(2).control(&["cluster", "drain", &id]).unwrap();
    let api = cluster.api(3).unwrap();
    let refuses = |api: &Management| {
        let ready = api.get("/ready/traffic")?;
        Ok(ready.status == 503 && ready.text().contains("drained by an operator"))
    };
    wait::until_true("a drained node", CHANGE, || refuses(&api)).unwrap();
    for family in FAMILIES {
        let outcome = cluster.probe(3, address::allowed_server(family));
        assert_ne!(outcome, Outcome::Connected, "a new flow");
    }
    let before = live.account();
    wait::until_true("more lines", CHANGE, || {
        Ok(live.account().lines > before.lines + 50)
    })
    .unwrap();
    assert_eq!(live.account().ended, None);
    assert_eq!(
        drain_state(&mut cluster, 2, &id).unwrap(),
        json!("draining")
    );

    cluster.node(3).kill().unwrap();
    cluster.node(3).start().unwrap();
    let api = cluster.api(3).unwrap();
    wait::until_true("a drained node after its restart", CHANGE, || refuses(&api)).unwrap();
    assert_ne!(cluster.probe(3, server), Outcome::Connected, "a new flow");
    wait::until_true("no flow left", CHANGE, || {
        Ok(drain_state(&mut cluster, 2, &id)? == json!("drained"))
    })
    .unwrap();
    cluster.node(3).control(&["cluster", "undrain"]).unwrap();
    cluster.wait_node_ready(3).unwrap();
    cluster.fetch(3, server, 10_000).unwrap();
    assert_eq!(drain_state(&mut cluster, 1, &id).unwrap(), Value::Null);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn with_every_address_of_every_node_changed_they_find_each_other_by_name() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    let hosts = |address: fn(u8) -> std::net::Ipv4Addr| {
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for number in 1..=3 {
            let _ = writeln!(hosts, "{} member{number}", address(number));
        }
        hosts
    };
    // The seed is told of nobody, as on its first boot; the others of two names, their own among them in one case.
    for number in 1..=3 {
        cluster
            .topology
            .node(number)
            .set_hosts(&hosts(address::management))
            .unwrap();
        if number > 1 {
            let names = ["member1".to_owned(), "member2:9601".to_owned()];
            cluster.node(number).set_join(&names).unwrap();
        }
        cluster.node(number).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    api.create_account("before").unwrap();

    for number in 1..=3 {
        cluster.node(number).terminate().unwrap();
    }
    for number in 1..=3 {
        cluster.node(number).move_away().unwrap();
        cluster
            .topology
            .node(number)
            .set_hosts(&hosts(address::moved))
            .unwrap();
        cluster.node(number).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    for number in 1..=3 {
        let api = cluster.api(number).unwrap();
        wait::until_true("a write", CHANGE, || {
            api.create_account(&format!("through-{number}"))
                .map(|()| true)
        })
        .unwrap();
    }
    let api = cluster.api(2).unwrap();
    wait::until_true("the new addresses on record", CHANGE, || {
        let members = members(&api)?;
        let on_record: BTreeSet<_> = members.iter().filter_map(|m| m["addr"].as_str()).collect();
        let moved: Vec<String> = (1..=3)
            .map(|n| format!("{}:9600", address::moved(n)))
            .collect();
        Ok(on_record == moved.iter().map(String::as_str).collect())
    })
    .unwrap();
    assert!(accounts(&api).unwrap().contains("before"));
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_planned_stop_of_the_leader_costs_no_write() {
    let mut cluster = Cluster::start(3).unwrap();
    for round in 0..3 {
        let leader = cluster.leader(1).unwrap();
        let survivors: Vec<u8> = (1..=3).filter(|number| *number != leader).collect();
        let apis = [survivors[0], survivors[1], survivors[0], survivors[1]]
            .map(|number| cluster.api(number).unwrap());
        let stop = AtomicBool::new(false);
        let gaps = thread::scope(|scope| {
            let clients: Vec<_> = (0..)
                .zip(&apis)
                .map(|(client, api)| {
                    let stop = &stop;
                    scope.spawn(move || {
                        write_without_a_retry(api, &format!("r{round}c{client}"), stop)
                    })
                })
                .collect();
            // Some writes before, and some after.
            thread::sleep(Duration::from_secs(1));
            cluster.node(leader).terminate().unwrap();
            thread::sleep(Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
            clients
                .into_iter()
                .map(|client| client.join().unwrap().unwrap())
                .collect::<Vec<_>>()
        });
        let longest = gaps.iter().max().copied().unwrap();
        eprintln!("round {round}: at most {longest:?} without an acknowledged write");
        assert!(longest < Duration::from_secs(1), "{gaps:?}");
        cluster.node(leader).start().unwrap();
        cluster.wait_ready().unwrap();
        expect(&mut cluster, &[1, 2, 3], 3, 1);
    }
}

/// Creates accounts until told to stop; any refusal is a failure. Returns the longest time that one took.
fn write_without_a_retry(api: &Management, name: &str, stop: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        api.create_account(&format!("{name}-{number}"))?;
        longest = longest.max(begin.elapsed());
    }
    Ok(longest)
}

/// Waits until every member counts so many voters and survives so many failures, as each of them says itself.
fn expect(cluster: &mut Cluster, members: &[u8], voters: usize, tolerance: u64) {
    for &number in members {
        let api = cluster.api(number).unwrap();
        wait::until_true(
            &format!(
                "{voters} voters of {} by the word of node {number}",
                members.len()
            ),
            CHANGE,
            || {
                let list = self::members(&api)?;
                let count = list
                    .iter()
                    .filter(|member| member["is_voter"] == true)
                    .count();
                let told = self::tolerance(&api)?;
                ensure!(
                    list.len() == members.len() && count == voters && told == Some(tolerance),
                    "{} members, {count} voters, {told:?} may fail",
                    list.len()
                );
                Ok(true)
            },
        )
        .unwrap();
    }
}

fn wait_tolerance(cluster: &mut Cluster, members: &[u8], tolerance: u64) {
    for &number in members {
        let api = cluster.api(number).unwrap();
        wait::until_true(
            &format!("{tolerance} may fail, says {number}"),
            CHANGE,
            || Ok(self::tolerance(&api)? == Some(tolerance)),
        )
        .unwrap();
    }
}

/// What stats and the list of members say, which must agree.
fn tolerance(api: &Management) -> Result<Option<u64>> {
    let stats = api.get_json("/api/v1/stats")?["cluster"]["failure_tolerance"].as_u64();
    let members = api.get_json("/api/v1/cluster/members")?["failure_tolerance"].as_u64();
    ensure!(
        stats == members,
        "{stats:?} in stats, {members:?} in members"
    );
    Ok(stats)
}

fn members(api: &Management) -> Result<Vec<Value>> {
    let answer = api.get_json("/api/v1/cluster/members")?;
    Ok(answer["members"]
        .as_array()
        .context("no members in the answer")?
        .clone())
}

fn votes(cluster: &mut Cluster, number: u8) -> Result<bool> {
    let asked = cluster
        .nodes
        .iter_mut()
        .find_map(|node| node.is_running().then(|| node.number()));
    let api = cluster.api(asked.context("no node runs")?)?;
    let own = address::cluster(number).to_string();
    Ok(members(&api)?
        .iter()
        .any(|member| member["addr"] == own && member["is_voter"] == true))
}

fn drain_state(cluster: &mut Cluster, asked: u8, id: &str) -> Result<Value> {
    let members = members(&cluster.api(asked)?)?;
    let member = members.iter().find(|member| member["node_id"] == id);
    Ok(member.context("it is no member")?["drain_state"].clone())
}

fn accounts(api: &Management) -> Result<BTreeSet<String>> {
    let list = api.get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
    let list = list.as_array().context("no list")?;
    Ok(list
        .iter()
        .filter_map(|account| Some(account["name"].as_str()?.to_owned()))
        .collect())
}

/// Writes without pause through whichever members there are, each write until it is acknowledged.
struct Writer {
    apis: Arc<Mutex<Vec<Management>>>,
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<Duration>,
}

impl Writer {
    fn start() -> Writer {
        let apis: Arc<Mutex<Vec<Management>>> = Arc::default();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = {
            let (apis, stop, written) =
                (Arc::clone(&apis), Arc::clone(&stop), Arc::clone(&written));
            thread::spawn(move || write(&apis, &stop, &written))
        };
        Writer {
            apis,
            stop,
            written,
            thread,
        }
    }

    fn through(&self, cluster: &mut Cluster, members: &[u8]) {
        let apis = members
            .iter()
            .map(|&number| cluster.api(number).unwrap())
            .collect();
        *self.apis.lock().unwrap() = apis;
    }

    fn expect_more(&self) {
        let before = self.written.lock().unwrap().len();
        wait::until_true("more acknowledged writes", CHANGE, || {
            Ok(self.written.lock().unwrap().len() > before + 5)
        })
        .unwrap();
    }

    /// What was acknowledged, and the longest time without.
    fn finish(self) -> (BTreeSet<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest_gap = self.thread.join().unwrap();
        (self.written.lock().unwrap().clone(), longest_gap)
    }
}

fn write(
    apis: &Mutex<Vec<Management>>,
    stop: &AtomicBool,
    written: &Mutex<BTreeSet<String>>,
) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut attempt = 0_usize;
    for number in 0.. {
        let name = format!("w{number}");
        loop {
            if stop.load(Ordering::Relaxed) {
                return longest;
            }
            let api = {
                let apis = apis.lock().unwrap();
                apis.get(attempt % apis.len().max(1)).cloned()
            };
            attempt += 1;
            if api.is_some_and(|api| api.create_account(&name).is_ok()) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        longest = longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
        last = Some(Instant::now());
        written.lock().unwrap().insert(name);
        // A few a second are enough, and leave the machine to the nodes.
        thread::sleep(Duration::from_millis(100));
    }
    longest
}
