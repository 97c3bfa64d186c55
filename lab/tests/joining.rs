//! Letting nodes in, and recognising them, through the real binary: what preflight tells, join tokens, approval, a node that
//! missed everything, copies, strangers and wrong clocks, the CA replaced under traffic.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lab::address::{self, Family};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::unverified_body;
use lab::{tool, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// Runs `neuwerk cluster ...` on node `number`, over its control socket.
fn cli(cluster: &mut Cluster, number: u8, words: &str) -> String {
    let socket = cluster.node(number).dir().join("run/admin.sock");
    let socket = socket.to_str().unwrap().to_owned();
    let mut arguments: Vec<&str> = ["cluster"].into_iter().chain(words.split(' ')).collect();
    arguments.extend(["--control-socket", &socket]);
    cluster.node(number).cli(&arguments).unwrap()
}

/// Replaces the token file of a node that is still to be started.
fn give(cluster: &mut Cluster, number: u8, credential: &str) {
    let file = cluster.node(number).dir().join("bootstrap-token");
    fs::write(file, credential).unwrap();
}

/// Waits until node `number` says in `/ready` why it is not let in, in these words.
fn wait_refused(cluster: &mut Cluster, number: u8, reason: &str) {
    wait::until_true("a refusal with its reason", SOON, || {
        let operator = &cluster.topology.operator;
        let ready = unverified_body(operator, address::https(number), "/ready")?;
        anyhow::ensure!(ready.contains(reason), "{ready}");
        Ok(true)
    })
    .unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_token_admits_as_many_as_it_says_and_an_administrator_may_have_the_last_word() {
    let mut cluster = Cluster::lay_out(3).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    cli(&mut cluster, 1, "token bootstrap off");
    let token = cli(&mut cluster, 1, "token create --ttl 10m --uses 1");
    assert!(token.starts_with("nwj1."));

    // Node 3 holds the secret, which is switched off; node 2 holds the token.
    cluster.node(3).start().unwrap();
    wait_refused(&mut cluster, 3, "switched off");
    give(&mut cluster, 2, &token);
    cluster.node(2).start().unwrap();
    cluster.wait_node_ready(2).unwrap();
    // One use, and it is gone.
    give(&mut cluster, 3, &token);
    wait_refused(&mut cluster, 3, "used up");
    let listed = cli(&mut cluster, 2, "token list");
    assert!(listed.contains("used up"), "{listed}");

    // Another one, and an administrator who looks first; asked at the member that joined, which forwards.
    cli(&mut cluster, 2, "approval manual");
    let token = cli(&mut cluster, 2, "token create");
    give(&mut cluster, 3, &token);
    wait_refused(&mut cluster, 3, "waits for an administrator");
    let settings = cluster
        .api(1)
        .unwrap()
        .get_json("/api/v1/cluster/join")
        .unwrap();
    let waiting = settings["waiting"][0].as_str().unwrap().to_owned();
    cli(&mut cluster, 1, &format!("members approve {waiting}"));
    cluster.wait_ready().unwrap();
    cluster.wait_voters().unwrap();
    assert_eq!(cluster.node_id(1, 3).unwrap(), waiting);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_would_keep_a_node_from_joining_is_told_before_its_first_start() {
    let mut cluster = Cluster::lay_out(2).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    let token = cluster.node(1).dir().join("token");
    fs::write(&token, cluster.node(1).mint_token("lab", "admin").unwrap()).unwrap();
    let ca = cluster.node(1).ca_path();
    let config = cluster.node(2).dir().join("config.yaml");
    let netns = Arc::clone(cluster.topology.node(2));
    let preflight = || {
        let mut command = netns.command(lab::node::binary().unwrap());
        command.args(["cluster", "preflight", "--json", "--config"]);
        command.arg(&config).arg("--token-file").arg(&token);
        command.arg("--ca").arg(&ca);
        command.args(["--url", &format!("https://{}", address::https(1))]);
        let output = command.output().unwrap();
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", tool::printed(&output)));
        (output.status.code().unwrap(), findings)
    };
    // Two things are as they are here: one kernel's host name for all nodes, and the disk that all tests share.
    let of = |findings: &[Value], verdict: &str| -> BTreeSet<String> {
        findings
            .iter()
            .filter(|finding| finding["verdict"] == verdict && finding["check"] != "sync time")
            .map(|finding| finding["check"].as_str().unwrap().to_owned())
            .collect()
    };
    let set = |checks: &[&str]| checks.iter().map(ToString::to_string).collect();
    let (code, findings) = preflight();
    let fine = [
        "configuration",
        "cluster listener",
        "join listener",
        "way to members",
        "packet size",
        "way back",
        "clock",
    ];
    assert_eq!(of(&findings, "ok"), set(&fine), "{findings:?}");
    assert_eq!(
        of(&findings, "warning"),
        set(&["duplicates"]),
        "{findings:?}"
    );
    assert_eq!(code, 4);

    // A packet filter that lets out and not in.
    netns
        .nft(
            "add table inet wall
         add chain inet wall in { type filter hook input priority 0; }
         add rule inet wall in tcp dport 9600 drop",
        )
        .unwrap();
    let (code, findings) = preflight();
    let failed = of(&findings, "failed");
    assert!(failed.contains("way back"), "{findings:?}");
    assert!(!failed.contains("way to members"), "{findings:?}");
    assert_eq!(code, 5);
    cluster.node(1).kill().unwrap();
    let (code, findings) = preflight();
    assert!(
        of(&findings, "failed").contains("way to members"),
        "{findings:?}"
    );
    assert_eq!(code, 5);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_wrong_an_expired_and_a_revoked_credential_admit_nobody_and_say_so() {
    let mut cluster = Cluster::lay_out(2).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    give(&mut cluster, 2, &"wrong".repeat(8));
    cluster.node(2).start().unwrap();
    wait_refused(
        &mut cluster,
        2,
        "does not hold this node's bootstrap secret",
    );

    let expired = cli(&mut cluster, 1, "token create --ttl 1s");
    wait::until_true("its end", SOON, || {
        Ok(cli(&mut cluster, 1, "token list").contains("expired"))
    })
    .unwrap();
    give(&mut cluster, 2, &expired);
    wait_refused(&mut cluster, 2, "expired");

    let revoked = cli(&mut cluster, 1, "token create");
    let listed: Value = serde_json::from_str(&cli(&mut cluster, 1, "token list --json")).unwrap();
    let active = listed.as_array().unwrap();
    let active = active.iter().find(|token| token["status"] == "active");
    let id = active.unwrap()["id"].as_str().unwrap();
    cli(&mut cluster, 1, &format!("token revoke {id}"));
    give(&mut cluster, 2, &revoked);
    wait_refused(&mut cluster, 2, "revoked");

    // Every attempt is on record, and none has made a member.
    for reason in ["another bootstrap secret", "expired", "revoked"] {
        wait::until_true("an entry of the change log", SOON, || {
            let log = cli(&mut cluster, 1, "changes");
            Ok(log
                .lines()
                .any(|line| line.contains("join_refused") && line.contains(reason)))
        })
        .unwrap();
    }
    let members = cluster.api(1).unwrap();
    let members = members.get_json("/api/v1/cluster/members").unwrap();
    assert_eq!(members["members"].as_array().unwrap().len(), 1, "{members}");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_rotation_of_the_ca_that_is_aborted_leaves_all_as_it_was() {
    let mut cluster = Cluster::start(3).unwrap();
    let before = ca(&mut cluster);
    cli(&mut cluster, 1, "ca rotate");
    cli(&mut cluster, 2, "ca rotate --abort");
    wait::until_true("the end of the rotation", SOON, || {
        Ok(ca(&mut cluster)["rotation"].is_null())
    })
    .unwrap();
    assert_eq!(ca(&mut cluster)["sha256"], before["sha256"]);
    for number in 1..=3 {
        cluster.node(number).terminate().unwrap();
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    // The next one is not hindered by it.
    cli(&mut cluster, 3, "ca rotate");
    wait::until_true("the end of the next rotation", SOON, || {
        let now = ca(&mut cluster);
        Ok(now["rotation"].is_null() && now["sha256"] != before["sha256"])
    })
    .unwrap();
    cluster.wait_ready().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_that_was_off_while_everybody_it_knows_was_replaced_finds_its_way_back() {
    let mut cluster = Cluster::lay_out(5).unwrap();
    for number in 1..=3 {
        cluster.node(number).start().unwrap();
    }
    for number in 1..=3 {
        cluster.wait_node_ready(number).unwrap();
    }
    wait_voters(&mut cluster, 1, 3);
    cluster.node(3).terminate().unwrap();
    // Two that node 3 has never heard of join and vote; then the two that it knows are gone for good.
    for number in [4, 5] {
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    wait_voters(&mut cluster, 1, 5);
    // Until the change is through, the first three decide alone.
    wait::until_true("the end of the membership change", SOON, || {
        let stats = cluster.api(1)?.get_json("/api/v1/stats")?;
        Ok(stats["cluster"]["failure_tolerance"] == 1)
    })
    .unwrap();
    cluster.node(1).kill().unwrap();
    cluster.node(2).kill().unwrap();
    // Without node 3 there is no quorum: 2 of 5.
    cluster.node(3).start().unwrap();
    wait::until_true("a write with the vote of node 3", SOON, || {
        let policy = policy_allowing(&allowed_servers());
        let put =
            cluster
                .api(3)?
                .send_json("PUT", "/api/v1/policy?wait=self&timeout=5s", &policy)?;
        anyhow::ensure!(put.status == 200, "{} {}", put.status, put.text());
        Ok(true)
    })
    .unwrap();
    for number in [3, 4, 5] {
        wait::until_true("the policy on every node that is left", SOON, || {
            cluster.fetch(number, address::allowed_server(Family::V4), 10_000)?;
            Ok(true)
        })
        .unwrap();
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn the_ca_is_replaced_under_traffic_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    let before = ca(&mut cluster);
    let terms = |cluster: &mut Cluster| cluster.leader(1).unwrap();
    let leader = terms(&mut cluster);
    let live = cluster
        .live(leader, address::allowed_server(Family::V4))
        .unwrap();

    // One member is down meanwhile, and is not waited for.
    let away = (1..=3).find(|number| *number != leader).unwrap();
    cluster.node(away).kill().unwrap();
    cli(&mut cluster, leader, "ca rotate");
    let mut written = 0;
    wait::until_true("the end of the rotation", SOON, || {
        let name = format!("during-{written}");
        let body = json!({"name": name, "role": "readonly"});
        let response = cluster
            .api(leader)?
            .send_json("POST", "/api/v1/service-accounts", &body)?;
        anyhow::ensure!(response.status == 201, "{}", response.text());
        written += 1;
        let now = cluster.api(leader)?.get_json("/api/v1/cluster/ca")?;
        Ok(now["rotation"].is_null() && now["sha256"] != before["sha256"])
    })
    .unwrap();
    assert_eq!(terms(&mut cluster), leader, "nobody lost anybody");
    let account = live.account();
    assert!(account.ended.is_none(), "{account:?}");

    // It comes back with a certificate of the CA that nobody trusts any more, and gets a new one.
    cluster.node(away).start().unwrap();
    cluster.wait_ready().unwrap();
    let of_it = cluster.node_id(leader, away).unwrap();
    wait::until_true("its certificate in the change log", SOON, || {
        let named = |line: &str| line.contains("out_of_date") && line.contains(&of_it);
        Ok(cli(&mut cluster, leader, "changes").lines().any(named))
    })
    .unwrap();
    for number in 1..=3 {
        cluster.node(number).terminate().unwrap();
    }
    for number in 1..=3 {
        cluster.node(number).start().unwrap();
    }
    cluster.wait_ready().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_copied_machine_and_one_that_was_set_up_anew_are_named_and_change_nothing() {
    let mut cluster = Cluster::lay_out(4).unwrap();
    for number in 1..=3 {
        cluster.node(number).start().unwrap();
    }
    for number in 1..=3 {
        cluster.wait_node_ready(number).unwrap();
    }
    wait_voters(&mut cluster, 1, 3);
    let before = cluster.leader(1).unwrap();

    // Machine 4 starts from a copy of machine 2's disk.
    let (original, copy) = (2, 4);
    for name in ["cluster", "node_id"] {
        let from = cluster.node(original).dir().join(name);
        let to = cluster.node(copy).dir().join(name);
        tool::run(Command::new("cp").arg("-a").args([&from, &to])).unwrap();
    }
    cluster.node(copy).start().unwrap();
    wait_changes(&mut cluster, 1, "duplicate_identity");
    let at = |number| address::cluster(number).to_string();
    wait_refused(&mut cluster, copy, &at(original));
    cluster.node(copy).kill().unwrap();
    for number in 1..=3 {
        cluster.wait_node_ready(number).unwrap();
    }
    assert_eq!(cluster.leader(1).unwrap(), before, "nobody was disturbed");

    // A member's machine is set up anew, as the first of a cluster: it founds another one.
    let anew = 1;
    cluster.node(anew).kill().unwrap();
    for name in ["cluster", "node_id"] {
        let path = cluster.node(anew).dir().join(name);
        tool::run(Command::new("rm").arg("-r").arg(path)).unwrap();
    }
    cluster.node(anew).start().unwrap();
    wait_changes(&mut cluster, original, "foreign_cluster");
    let changes = cli(&mut cluster, original, "changes");
    assert!(changes.contains(&at(anew)), "{changes}");
    let policy = policy_allowing(&allowed_servers());
    let api = cluster.api(original).unwrap();
    let put = api
        .send_json("PUT", "/api/v1/policy?wait=self", &policy)
        .unwrap();
    assert_eq!(put.status, 200, "{}", put.text());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_member_whose_clock_is_wrong_is_not_locked_out_and_certificates_out_of_date_are_named() {
    const TWO_DAYS_S: i64 = 2 * 24 * 3600;
    let mut cluster = Cluster::lay_out(2).unwrap();
    cluster.node(2).allow_tampering().unwrap();
    for number in [1, 2] {
        cluster.node(number).start().unwrap();
        cluster.wait_node_ready(number).unwrap();
    }
    // By its clock the other's certificate will be valid some day.
    cluster.node(2).terminate().unwrap();
    let tamper = cluster.node(2).tamper().unwrap();
    tamper.set_clock(-TWO_DAYS_S).unwrap();
    cluster.node(2).start().unwrap();
    cluster.wait_node_ready(2).unwrap();
    wait_changes(&mut cluster, 1, "out_of_date");
    let changes = cli(&mut cluster, 1, "changes");
    let told: Vec<&str> = changes
        .lines()
        .filter(|line| line.contains("out_of_date"))
        .collect();
    let other = cluster.node_id(1, 1).unwrap();
    assert!(told.len() == 1 && told[0].contains(&other), "{changes}");
}

/// Waits until the change log, as node `number` shows it, names such an event.
fn wait_changes(cluster: &mut Cluster, number: u8, event: &str) {
    wait::until_true(event, SOON, || {
        let changes = cli(cluster, number, "changes");
        anyhow::ensure!(changes.contains(event), "{changes}");
        Ok(true)
    })
    .unwrap();
}

fn ca(cluster: &mut Cluster) -> Value {
    cluster
        .api(1)
        .unwrap()
        .get_json("/api/v1/cluster/ca")
        .unwrap()
}

fn wait_voters(cluster: &mut Cluster, asked: u8, count: usize) {
    wait::until_true("votes", Duration::from_secs(90), || {
        let members = cluster.api(asked)?.get_json("/api/v1/cluster/members")?;
        let members = members["members"].as_array().unwrap();
        Ok(members.iter().filter(|m| m["is_voter"] == true).count() == count)
    })
    .unwrap();
}
