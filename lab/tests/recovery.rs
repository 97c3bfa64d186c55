//! Losing nodes, the quorum and everything, and coming back by the commands of `docs/recovery.md`; from one node to three
//! and back.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::address::{self, FAMILIES, Family};
use lab::client::Outcome;
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::Management;
use lab::{node, runbook, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const ACCOUNTS: &str = "/api/v1/service-accounts";
const STATS: &str = "/api/v1/stats";

#[test]
#[ignore = "needs root; make test runs it"]
fn a_cluster_goes_on_from_one_survivor_and_the_others_come_back() {
    let mut cluster = Cluster::start(3).unwrap();
    let api = cluster.api(3).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    for n in 0..5 {
        create(&api, &format!("before-{n}")).unwrap();
    }
    let before = stats(&api).unwrap()["lineage"].clone();
    cluster.node(1).kill().unwrap();
    cluster.node(2).kill().unwrap();
    wait::until_true("/ready 503", SOON, || Ok(api.status_of("/ready")? == 503)).unwrap();
    assert_eq!(api.status_of("/ready/traffic").unwrap(), 200);
    forwards(&cluster, 3);

    let printed = follow(&mut cluster, "The quorum is lost for good", 3, &[]);
    assert!(
        printed[1].contains("1 of 3 voters are here"),
        "{}",
        printed[1]
    );
    assert!(printed[1].contains("Nothing was changed"), "{}", printed[1]);
    forwards(&cluster, 3);
    cluster.wait_node_ready(3).unwrap();
    let after = stats(&api).unwrap();
    assert_ne!(after["lineage"], before);
    assert_eq!(after["is_leader"], true);
    assert_eq!(names(&api).unwrap().len(), 5);
    create(&api, "after").unwrap();

    for number in [1, 2] {
        cluster.node(number).start().unwrap();
        let management = cluster.node(number).management().unwrap();
        wait::until_true("a node that says what to do", SOON, || {
            let ready = management.get("/ready")?;
            ensure!(
                ready.text().contains("neuwerk cluster rejoin"),
                "{}",
                ready.text()
            );
            Ok(true)
        })
        .unwrap();
        forwards(&cluster, number);
        let live = cluster
            .live(number, address::allowed_server(Family::V4))
            .unwrap();
        let heading = "A node comes back with data that cannot be used";
        let printed = follow(&mut cluster, heading, number, &[]);
        assert!(
            printed[0].contains("the old data is kept in"),
            "{}",
            printed[0]
        );
        cluster.wait_node_ready(number).unwrap();
        assert_eq!(live.account().ended, None, "it forwards all the while");
    }
    cluster.wait_voters().unwrap();
    for number in 1..=3 {
        assert_eq!(
            names(&cluster.api(number).unwrap()).unwrap().len(),
            6,
            "node {number}"
        );
        forwards(&cluster, number);
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_learner_is_enough_to_go_on_from() {
    let mut cluster = Cluster::lay_out(4).unwrap();
    for number in 1..=4 {
        cluster.node(number).start().unwrap();
    }
    for number in 1..=4 {
        cluster.wait_node_ready(number).unwrap();
    }
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    create(&api, "kept").unwrap();
    // Of four, three vote.
    let voter = |member: &Value| member["is_voter"] == true;
    let (members, _) = wait::until("three voters and a learner", SOON, || {
        let answer = api.get_json("/api/v1/cluster/members")?;
        let members = answer["members"].as_array().cloned().unwrap_or_default();
        let settled = members.len() == 4 && members.iter().filter(|m| voter(m)).count() == 3;
        Ok(settled.then_some(members))
    })
    .unwrap();
    let learner = members.iter().find(|member| !voter(member)).unwrap();
    let learner = (1..=4)
        .find(|number| cluster.node_id(1, *number).unwrap() == learner["node_id"])
        .unwrap();
    let api = cluster.api(learner).unwrap();
    for number in (1..=4).filter(|number| *number != learner) {
        cluster.node(number).kill().unwrap();
    }
    forwards(&cluster, learner);

    let printed = follow(&mut cluster, "The quorum is lost for good", learner, &[]);
    assert!(
        printed[1].contains("0 of 3 voters are here"),
        "{}",
        printed[1]
    );
    cluster.wait_node_ready(learner).unwrap();
    assert_eq!(stats(&api).unwrap()["is_leader"], true);
    assert_eq!(names(&api).unwrap().len(), 1);
    create(&api, "after").unwrap();
    forwards(&cluster, learner);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn everything_comes_back_from_a_backup() {
    let mut cluster = Cluster::start(3).unwrap();
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    for n in 0..5 {
        create(&api, &format!("before-{n}")).unwrap();
    }
    let before = stats(&api).unwrap()["lineage"].clone();
    let printed = follow(&mut cluster, "Backups", 1, &[]);
    assert!(
        printed.last().unwrap().contains("can be restored"),
        "{printed:?}"
    );
    let recipient = printed[0].trim().to_owned();
    scheduled(&mut cluster, &recipient);

    for number in 1..=3 {
        cluster.node(number).terminate().unwrap();
    }
    let dir = cluster.node(2).dir().to_owned();
    fs::remove_dir_all(dir.join("cluster")).unwrap();
    fs::remove_file(dir.join("node_id")).unwrap();
    follow(&mut cluster, "Nothing is left but a backup", 2, &[]);
    forwards(&cluster, 2);
    cluster.wait_node_ready(2).unwrap();
    // The token was signed before the loss, by a key that came back.
    let api = cluster.api(2).unwrap();
    assert_eq!(names(&api).unwrap().len(), 5);
    assert_ne!(stats(&api).unwrap()["lineage"], before);
    create(&api, "after").unwrap();

    // Another node still has data of the old lineage.
    cluster.node(3).start().unwrap();
    forwards(&cluster, 3);
    let join = address::join(2).to_string();
    let socket = cluster.node(3).path("run/admin.sock").unwrap();
    let rejoin = [
        "cluster",
        "rejoin",
        "--join",
        &join,
        "--control-socket",
        &socket,
    ];
    wait::until("the control socket", SOON, || {
        cluster.node(3).cli(&rejoin).map(Some)
    })
    .unwrap();
    cluster.wait_node_ready(3).unwrap();
    assert_eq!(names(&cluster.api(3).unwrap()).unwrap().len(), 6);
}

/// Node 3 makes backups by itself, and says how old the last one is.
fn scheduled(cluster: &mut Cluster, recipient: &str) {
    let directory = cluster.node(3).path("backups").unwrap();
    cluster.node(3).terminate().unwrap();
    cluster.node(3).set_program(
        &node::binary().unwrap(),
        &[
            "--cluster-backup-directory",
            &directory,
            "--cluster-backup-recipient",
            recipient,
        ],
    );
    cluster.node(3).start().unwrap();
    cluster.wait_node_ready(3).unwrap();
    let api = cluster.api(3).unwrap();
    let (file, _) = wait::until("a scheduled backup", SOON, || {
        let backup = api.get_json(STATS)?["backup"].clone();
        ensure!(backup["age_secs"].is_u64(), "{backup}");
        Ok(backup["file"].as_str().map(str::to_owned))
    })
    .unwrap();
    let printed = cluster
        .node(3)
        .cli(&["cluster", "backup", "verify", &file])
        .unwrap();
    assert!(printed.contains("whole"), "{printed}");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn one_node_becomes_three_and_one_again_with_everything_that_it_had() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    for number in [1, 2] {
        cluster.node(number).stand_alone().unwrap();
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    for n in 0..5 {
        create(&api, &format!("alone-{n}")).unwrap();
    }
    forwards(&cluster, 1);
    let status = |cluster: &mut Cluster, number: u8| {
        let socket = cluster.node(number).path("run/admin.sock").unwrap();
        cluster
            .node(number)
            .cli(&["status", "--control-socket", &socket])
            .unwrap()
    };
    let shown = status(&mut cluster, 1);
    assert!(shown.contains("not highly available"), "{shown}");

    // A restart with listeners, and it is the first member.
    let binary = node::binary().unwrap();
    let cluster_mode = |number: u8| {
        let bind = address::cluster(number).to_string();
        [
            "--cluster-bind".to_owned(),
            bind.clone(),
            "--cluster-advertise".to_owned(),
            bind,
        ]
    };
    let restart = |cluster: &mut Cluster, number: u8, more: &[&str]| {
        let flags = cluster_mode(number);
        let flags: Vec<&str> = flags
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        cluster.node(number).terminate().unwrap();
        cluster.node(number).set_program(&binary, &flags);
        cluster.node(number).start().unwrap();
    };
    restart(&mut cluster, 1, &[]);
    forwards(&cluster, 1);
    cluster.wait_node_ready(1).unwrap();
    assert_eq!(names(&api).unwrap().len(), 5);

    // Traffic goes on through it while the others join.
    let live = cluster
        .live(1, address::allowed_server(Family::V4))
        .unwrap();
    cluster.node(3).start().unwrap();
    let join = address::join(1).to_string();
    restart(&mut cluster, 2, &["--join", &join]);
    let management = cluster.node(2).management().unwrap();
    wait::until_true("a refusal with the remedy", SOON, || {
        let ready = management.get("/ready")?;
        ensure!(
            ready.text().contains("--join-discard-local"),
            "{}",
            ready.text()
        );
        Ok(true)
    })
    .unwrap();
    restart(&mut cluster, 2, &["--join", &join, "--join-discard-local"]);
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    assert_eq!(live.account().ended, None);
    for number in 1..=3 {
        assert_eq!(
            names(&cluster.api(number).unwrap()).unwrap().len(),
            5,
            "node {number}"
        );
        forwards(&cluster, number);
    }
    let shown = status(&mut cluster, 1);
    assert!(!shown.contains("not highly available"), "{shown}");

    // And back, under the same traffic.
    for victim in [3, 2] {
        let id = cluster.node_id(1, victim).unwrap();
        let remove = ["cluster", "members", "remove", &id, "--confirm", "neuwerk"];
        cluster.node(1).control(&remove).unwrap();
        cluster.node(victim).terminate().unwrap();
    }
    create(&api, "alone-again").unwrap();
    assert_eq!(names(&api).unwrap().len(), 6);
    let shown = status(&mut cluster, 1);
    assert!(shown.contains("not highly available"), "{shown}");
    assert_eq!(live.account().ended, None);
    forwards(&cluster, 1);
}

/// Carries out a section of the runbook on node `number`, and returns what each command printed.
fn follow(cluster: &mut Cluster, heading: &str, number: u8, words: &[(&str, &str)]) -> Vec<String> {
    let here = cluster.node(1).dir().with_file_name("operator");
    fs::create_dir_all(&here).unwrap();
    let mut printed: Vec<String> = Vec::new();
    for step in runbook::steps(heading).unwrap() {
        // What the page says to copy from an earlier answer.
        let recipient = printed
            .first()
            .map_or(String::new(), |text| text.trim().to_owned());
        let mut all = words.to_vec();
        all.extend([("NAME", "neuwerk"), ("RECIPIENT", recipient.as_str())]);
        let answer = step.run(cluster, number, &here, &all);
        printed.push(answer.unwrap_or_else(|error| panic!("{}: {error:#}", step.command)));
    }
    printed
}

/// Node `number` lets through what the policy allows, and nothing else.
#[track_caller]
fn forwards(cluster: &Cluster, number: u8) {
    for family in FAMILIES {
        wait::until_true("traffic", SOON, || {
            cluster
                .fetch(number, address::allowed_server(family), 10_000)
                .map(|_| true)
        })
        .unwrap();
        assert_eq!(
            cluster.probe(number, address::denied_server(family)),
            Outcome::Silent
        );
    }
}

fn create(api: &Management, name: &str) -> Result<()> {
    wait::until_true("a new account", SOON, || {
        api.create_account(name).map(|()| true)
    })
    .map(drop)
}

fn names(api: &Management) -> Result<Vec<Value>> {
    let list = api.get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

fn stats(api: &Management) -> Result<Value> {
    Ok(api.get_json(STATS)?["cluster"].clone())
}
