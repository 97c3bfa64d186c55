//! Disks that fill up, go back in time, lose their content or rot, under real nodes.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::address::{self, Family};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::{Management, metrics};
use lab::{tool, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const ACCOUNTS: &str = "/api/v1/service-accounts";

/// A small disk of its own under a directory, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, mib: u32) -> Result<Tmpfs> {
        fs::create_dir_all(&at)?;
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        tool::run(mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at))?;
        Ok(Tmpfs(at))
    }

    /// Takes all the space that is left.
    fn fill(&self) -> Result<()> {
        let block = vec![0; 64 * 1024];
        let mut file = File::create(self.0.join("filler"))?;
        while file.write(&block).is_ok_and(|written| written > 0) {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that is just being ended may still have files open in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn status_of_write(api: &Management, name: &str) -> Result<u16> {
    let body = json!({"name": name, "role": "readonly"}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", name),
    ];
    Ok(api
        .request("POST", ACCOUNTS, &headers, body.as_bytes())?
        .status)
}

fn write(api: &Management, name: &str) {
    wait::until_true(name, SOON, || {
        Ok(matches!(status_of_write(api, name)?, 200 | 201))
    })
    .unwrap();
}

fn has_account(api: &Management, name: &str) -> Result<bool> {
    let list = api.get_json(&format!("{ACCOUNTS}?consistency=linearizable"))?;
    let list = list.as_array().context("a list")?;
    Ok(list.iter().any(|account| account["name"] == name))
}

/// What `/ready` says about the cluster while it is not content.
fn cluster_detail(api: &Management) -> Result<String> {
    let ready = api.get("/ready")?.json()?;
    let checks = ready["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == "cluster");
    let check = check.context("the check of the cluster")?;
    ensure!(check["ok"] == false, "the cluster is well: {check}");
    Ok(check["detail"].as_str().unwrap_or_default().to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    tool::run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_full_disk_refuses_changes_keeps_enforcing_and_recovers_by_itself() {
    let mut cluster = Cluster::lay_out(1).unwrap();
    let disk = Tmpfs::mount(cluster.node(1).dir().join("cluster"), 192).unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    let api = cluster.api(1).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    write(&api, "before");

    disk.fill().unwrap();
    assert_eq!(status_of_write(&api, "refused-at-once").unwrap(), 507);
    let server = address::allowed_server(Family::V4);
    cluster.fetch(1, server, 100_000).unwrap();
    assert_eq!(api.status_of("/ready/traffic").unwrap(), 200);
    // Votes find room even so: the reserve is given up for them.
    let reserve = cluster.node(1).dir().join("cluster/reserve");
    wait::until_true("the reserve to be given up", SOON, || Ok(!reserve.exists())).unwrap();
    cluster.node(1).kill().unwrap();
    cluster.node(1).start().unwrap();
    let api = cluster.api(1).unwrap();
    wait::until_true("reads again", SOON, || has_account(&api, "before")).unwrap();
    assert_eq!(status_of_write(&api, "refused").unwrap(), 507);
    let page = metrics(&cluster.topology.operator, address::metrics(1)).unwrap();
    assert!(page.contains("neuwerk_cluster_storage_full 1"), "{page}");

    disk.empty().unwrap();
    write(&api, "after");
    assert!(has_account(&api, "before").unwrap());
    cluster.fetch(1, server, 100_000).unwrap();
    cluster.node(1).kill().unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_member_without_its_log_comes_back_as_a_learner_and_votes_again() {
    let mut cluster = Cluster::start(3).unwrap();
    let leader = cluster.leader(1).unwrap();
    let victim = 1 + leader % 3;
    let api = cluster.api(leader).unwrap();
    write(&api, "kept");
    cluster.node(victim).kill().unwrap();
    let data = cluster.node(victim).dir().join("cluster");
    fs::remove_file(data.join("raft.redb")).unwrap();
    fs::remove_dir_all(data.join("snapshots")).unwrap();
    cluster.node(victim).start().unwrap();

    let id = cluster.node_id(leader, victim).unwrap();
    let votes = || -> Result<bool> {
        let members = api.get_json("/api/v1/cluster/members")?;
        let members = members["members"].as_array().context("members")?;
        let member = members.iter().find(|member| member["node_id"] == id);
        Ok(member.context("the member")?["is_voter"] == true)
    };
    wait::until_true("a learner", SOON, || Ok(!votes()?)).unwrap();
    assert_eq!(
        cluster.leader(leader).unwrap(),
        leader,
        "nobody else had to lead"
    );
    write(&api, "meanwhile");
    wait::until_true("a voter", SOON, votes).unwrap();
    cluster.wait_node_ready(victim).unwrap();
    let api = cluster.api(victim).unwrap();
    assert!(has_account(&api, "kept").unwrap() && has_account(&api, "meanwhile").unwrap());
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_disk_that_went_back_in_time_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(3).unwrap();
    let leader = cluster.leader(1).unwrap();
    let (victim, third) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let data = cluster.node(victim).dir().join("cluster");
    let older = cluster.node(victim).dir().join("older");
    cluster.node(victim).terminate().unwrap();
    copy(&data, &older).unwrap();
    cluster.node(victim).start().unwrap();
    cluster.wait_ready().unwrap();

    // Acknowledged by the leader and the victim only.
    cluster.node(third).kill().unwrap();
    write(&cluster.api(leader).unwrap(), "acknowledged");
    cluster.node(leader).kill().unwrap();
    cluster.node(victim).kill().unwrap();
    fs::remove_dir_all(&data).unwrap();
    copy(&older, &data).unwrap();
    cluster.node(victim).start().unwrap();
    cluster.node(third).start().unwrap();

    // A majority of members that do not have the write: it decides nothing.
    let api = cluster.api(victim).unwrap();
    let detail = |api: &Management| {
        let detail = cluster_detail(api)?;
        Ok(Some(detail).filter(|detail| detail.contains("may have acknowledged")))
    };
    let (detail, _) = wait::until("quarantine", SOON, || detail(&api)).unwrap();
    for _ in 0..20 {
        assert_eq!(status_of_write(&api, "elsewhere").unwrap(), 503, "{detail}");
        thread::sleep(Duration::from_millis(250));
    }
    cluster.node(leader).start().unwrap();
    cluster.wait_ready().unwrap();
    for node in 1..=3 {
        let api = cluster.api(node).unwrap();
        assert!(has_account(&api, "acknowledged").unwrap(), "node {node}");
    }
    write(&cluster.api(victim).unwrap(), "more");
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_rotten_log_is_quarantine_and_the_printed_command_heals_it() {
    let mut cluster = Cluster::start(3).unwrap();
    let leader = cluster.leader(1).unwrap();
    let victim = 1 + leader % 3;
    let api = cluster.api(leader).unwrap();
    api.put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    for n in 0..20 {
        write(&api, &format!("kept-{n}"));
    }
    cluster.node(victim).kill().unwrap();
    let log = cluster.node(victim).dir().join("cluster/raft.redb");
    let file = File::options().read(true).write(true).open(&log).unwrap();
    let size = file.metadata().unwrap().len();
    // One bit in every page, so that one of them is in use.
    for page in 1..size / 4096 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page * 4096 + 300).unwrap();
        byte[0] ^= 1;
        file.write_all_at(&byte, page * 4096 + 300).unwrap();
    }
    drop(file);
    cluster.node(victim).start().unwrap();

    let server = address::allowed_server(Family::V4);
    let rotten = cluster.node(victim).management().unwrap();
    let command = || -> Result<Option<String>> {
        let detail = cluster_detail(&rotten)?;
        let command = detail.split("mkdir -p").nth(1);
        let command = command.and_then(|rest| rest.split(": ").next());
        Ok(command.map(|rest| format!("mkdir -p{rest}")))
    };
    let (command, _) = wait::until("quarantine with a command", SOON, command).unwrap();
    assert!(log.exists(), "nothing is thrown away");
    // It enforces what it enforced before.
    wait::until_true("traffic", SOON, || {
        Ok(rotten.status_of("/ready/traffic")? == 200)
    })
    .unwrap();
    cluster.fetch(victim, server, 100_000).unwrap();
    write(&api, "meanwhile");

    tool::run(Command::new("sh").args(["-c", &command])).unwrap();
    cluster.wait_node_ready(victim).unwrap();
    cluster.wait_voters().unwrap();
    let api = cluster.api(victim).unwrap();
    assert!(has_account(&api, "kept-7").unwrap() && has_account(&api, "meanwhile").unwrap());
    cluster.fetch(victim, server, 100_000).unwrap();
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_running_member_whose_data_is_moved_away_as_a_quarantine_says_fetches_it_anew() {
    let mut cluster = Cluster::start(3).unwrap();
    let leader = cluster.leader(1).unwrap();
    let member = (1..=3).find(|number| *number != leader).unwrap();
    write(&cluster.api(leader).unwrap(), "before");
    let process = cluster.node(member).process_id().unwrap();
    let dir = cluster.node(member).dir().join("cluster");
    let at = dir.display();
    let said = format!("mkdir -p {at}/damaged && mv {at}/raft.redb {at}/snapshots {at}/damaged/");
    tool::run(Command::new("sh").args(["-c", &said])).unwrap();

    let log = dir.join("raft.redb");
    wait::until_true("a new log", SOON, || Ok(log.exists())).unwrap();
    cluster.wait_node_ready(member).unwrap();
    cluster.wait_voters().unwrap();
    let api = cluster.api(member).unwrap();
    assert!(has_account(&api, "before").unwrap());
    write(&api, "after");
    assert_eq!(cluster.node(member).process_id().unwrap(), process);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_running_node_that_may_hold_the_last_copy_holds_on_to_it() {
    let mut cluster = Cluster::start(1).unwrap();
    let api = cluster.api(1).unwrap();
    write(&api, "before");
    let dir = cluster.node(1).dir().join("cluster");
    let (id, aside) = (cluster.node_id(1, 1).unwrap(), dir.with_extension("aside"));
    for (from, to) in [
        (dir.join("raft.redb"), dir.join("moved")),
        (dir.clone(), aside),
    ] {
        fs::rename(&from, &to).unwrap();
        // Longer than it takes to notice.
        thread::sleep(Duration::from_secs(4));
        assert!(has_account(&api, "before").unwrap(), "{}", from.display());
        assert_eq!(cluster.node_id(1, 1).unwrap(), id);
        fs::rename(&to, &from).unwrap();
        write(&api, &format!("after-{}", from.display()).replace('/', "-"));
    }
    cluster.node(1).kill().unwrap();
    cluster.node(1).start().unwrap();
    cluster.wait_ready().unwrap();
    assert!(has_account(&api, "before").unwrap());
}
