//! A running cluster is rolled from an older version to this one and back, and forward for good. `make test-upgrade`
//! runs it; it builds the older version first and is left out of `make test` for that.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use lab::address::{self, FAMILIES, Family};
use lab::client::Outcome;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::Management;
use lab::{node, upgrade, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const ACCOUNTS: &str = "/api/v1/service-accounts";

#[test]
fn a_cluster_is_rolled_forward_back_and_forward_for_good() {
    let older = upgrade::older_binary().unwrap();
    let current = node::binary().unwrap();
    let mut cluster = Cluster::lay_out(3).unwrap();
    for number in 1..=3 {
        cluster.node(number).set_program(&older, &[]);
        cluster.node(number).start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();

    let apis = [1, 2, 3].map(|number| cluster.api(number).unwrap());
    let writer = Writer::default();
    thread::scope(|scope| {
        let finished = writer.stop_when_dropped();
        scope.spawn(|| writer.run(&apis));

        // The default keeps the level down for longer than this takes.
        roll(&mut cluster, &current, &[]);
        assert_eq!(level(&mut cluster), (1, 2, vec![]));
        roll(&mut cluster, &older, &[]);
        roll(
            &mut cluster,
            &current,
            &["--cluster-feature-level-delay-secs", "3"],
        );
        wait::until_true("the feature level to rise", SOON, || {
            Ok(level(&mut cluster).0 == 2)
        })
        .unwrap();
        drop(finished);
    });

    let acknowledged = writer.acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > 20, "{} writes", acknowledged.len());
    for number in 1..=3 {
        let kept = accounts(&cluster.api(number).unwrap()).unwrap();
        let missing: Vec<_> = acknowledged
            .iter()
            .filter(|name| kept.get(*name) != Some(&1))
            .collect();
        assert!(
            missing.is_empty(),
            "node {number}: of {} acknowledged, not there once: {missing:?}",
            acknowledged.len()
        );
    }

    // From here there is no way back; what the older version enforced last, it still does.
    let follower = follower(&mut cluster);
    cluster.node(follower).terminate().unwrap();
    cluster.node(follower).set_program(&older, &[]);
    cluster.node(follower).start().unwrap();
    let management = cluster.node(follower).management().unwrap();
    wait::until_true("traffic", SOON, || {
        Ok(management.status_of("/ready/traffic")? == 200)
    })
    .unwrap();
    forwards(&cluster, follower);
}

/// Replaces every node's program, followers first, one at a time, the leader last; each must be in good standing again
/// before the next goes. Traffic through the others goes on.
fn roll(cluster: &mut Cluster, program: &Path, flags: &[&str]) {
    let leader = cluster.leader(1).unwrap();
    let order = (1..=3).filter(|&number| number != leader).chain([leader]);
    for number in order.collect::<Vec<_>>() {
        let others: Vec<_> = (1..=3)
            .filter(|&other| other != number)
            .map(|other| {
                let server = address::allowed_server(Family::V4);
                (other, cluster.live(other, server).unwrap())
            })
            .collect();
        cluster.node(number).terminate().unwrap();
        cluster.node(number).set_program(program, flags);
        cluster.node(number).start().unwrap();
        let management = cluster.node(number).management().unwrap();
        wait::until_true("traffic", SOON, || {
            Ok(management.status_of("/ready/traffic")? == 200)
        })
        .unwrap();
        forwards(cluster, number);
        cluster.wait_ready().unwrap();
        for (other, live) in others {
            let before = live.account();
            wait::until_true("more lines", SOON, || {
                Ok(live.account().lines > before.lines + 20)
            })
            .unwrap();
            assert_eq!(live.account().ended, None, "through node {other}");
        }
    }
}

/// Node `number` lets through what the policy allows, and nothing else.
#[track_caller]
fn forwards(cluster: &Cluster, number: u8) {
    for family in FAMILIES {
        cluster
            .fetch(number, address::allowed_server(family), 100_000)
            .unwrap();
        assert_eq!(
            cluster.probe(number, address::denied_server(family)),
            Outcome::Silent
        );
    }
}

fn follower(cluster: &mut Cluster) -> u8 {
    let leader = cluster.leader(1).unwrap();
    (1..=3).find(|&number| number != leader).unwrap()
}

/// Level in force, the highest that node 1 supports, and who holds it back, once that is settled.
fn level(cluster: &mut Cluster) -> (u64, u64, Vec<Value>) {
    let api = cluster.api(1).unwrap();
    let (settled, _) = wait::until("what each member supports", SOON, || {
        let stats = api.get_json("/api/v1/stats")?["cluster"].clone();
        let held_back = stats["feature_level_held_back_by"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let number = |name: &str| stats[name].as_u64().unwrap_or_default();
        Ok(held_back.is_empty().then(|| {
            (
                number("feature_level"),
                number("feature_level_supported"),
                held_back,
            )
        }))
    })
    .unwrap();
    settled
}

/// Creates accounts without pause, through whichever node takes them.
#[derive(Default)]
struct Writer {
    acknowledged: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Ends the writer, also when the test fails before its end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Writer {
    fn stop_when_dropped(&self) -> Stop<'_> {
        Stop(&self.stop)
    }

    fn run(&self, apis: &[Management]) {
        for count in 0.. {
            let name = format!("account-{count}");
            let mut asked = count;
            let written = wait::until_true("an account", SOON, || {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(true);
                }
                asked += 1;
                apis[asked % apis.len()]
                    .create_account(&name)
                    .map(|()| true)
            });
            written.unwrap();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.acknowledged.lock().unwrap().push(name);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// How often each name is there.
fn accounts(api: &Management) -> Result<BTreeMap<String, usize>> {
    let list = api.get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
    let mut names = BTreeMap::new();
    for account in list.as_array().unwrap() {
        *names
            .entry(account["name"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    Ok(names)
}
