//! What is kept on disk and in memory stays bounded, and equal on all members, on virtual time.

use std::time::Duration;

use cluster::command::{Author, EventKind};
use cluster::state::Action;
use cluster::{Command, ProposeError, Role};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::bench::{Bench, spec};

type SimBench = Bench<SimRuntime>;

fn run<F: Future<Output = ()>>(seed: u64, story: F) {
    SimRuntime::with_seed(seed).block_on(story);
}

fn quarantine(bench: &SimBench, leader: usize, n: usize) -> Option<String> {
    let id = bench.id(n);
    let members = bench.node(leader).members();
    let member = members.into_iter().find(|member| member.node_id == id)?;
    member.report?.quarantine
}

#[test]
fn a_state_that_differs_is_found_and_its_node_leads_no_more() {
    run(1, async {
        let mut bench = SimBench::simulated(3);
        bench.start_all().await;
        let leader = bench.form().await;
        let victim = (leader + 1) % 3;
        for n in 0..40 {
            let command = Command::CreateAccount(spec(&format!("account-{n:03}")));
            bench.propose(leader, command).await;
        }
        bench.wait_equal().await;
        bench
            .wait(|bench| bench.node(victim).status().state_checked_index.is_some())
            .await;

        bench.stop(victim).await;
        bench.forge_snapshot(victim, "account-000", "account-999");
        bench.start(victim).await;
        bench
            .wait(|bench| {
                quarantine(bench, leader, victim).is_some_and(|why| why.contains("differs"))
            })
            .await;
        // It is told, and it is no candidate; the majority is not taken.
        bench
            .wait(|bench| bench.node(victim).status().quarantine.is_some())
            .await;
        assert!(!bench.live(leader).contains(&bench.id(victim)));
        let command = Command::CreateAccount(spec("more"));
        bench.propose(leader, command).await;
        bench.cut_off(leader);
        let third = 3 - leader - victim;
        bench.wait_leader_among(&[third]).await;
        assert!(!matches!(bench.node(victim).role(), Role::Leader { .. }));
        bench.heal();
    });
}

#[test]
fn a_node_that_was_accused_is_well_again_once_it_is_equal() {
    run(2, async {
        let mut bench = SimBench::simulated(3);
        bench.start_all().await;
        let leader = bench.form().await;
        let victim = (leader + 1) % 3;
        for n in 0..40 {
            let command = Command::CreateAccount(spec(&format!("account-{n:03}")));
            bench.propose(leader, command).await;
        }
        bench.wait_equal().await;
        bench.stop(victim).await;
        bench.forge_snapshot(victim, "account-000", "account-999");
        bench.start(victim).await;
        bench
            .wait(|bench| {
                quarantine(bench, leader, victim).is_some_and(|why| why.contains("differs"))
            })
            .await;
        // What the message says to do: fetch everything anew.
        bench.lose_power(victim).await;
        bench.wipe(victim);
        bench.start(victim).await;
        bench
            .wait(|bench| quarantine(bench, leader, victim).is_none())
            .await;
        bench
            .wait(|bench| bench.live(leader).contains(&bench.id(victim)))
            .await;
        bench.wait_equal().await;
    });
}

#[test]
fn a_check_that_could_not_be_made_is_not_passed() {
    run(3, async {
        let mut bench = SimBench::simulated(3);
        bench.start_all().await;
        let leader = bench.form().await;
        let away = (leader + 1) % 3;
        bench
            .wait(|bench| bench.node(away).status().state_checked_index.is_some())
            .await;
        let before = bench.node(away).status().state_checked_index;
        bench.cut_off(away);
        let command = Command::CreateAccount(spec("more"));
        let index = bench.propose(leader, command).await.index;
        SimRuntime::sleep(Duration::from_secs(90)).await;
        let members = bench.node(leader).members();
        let id = bench.id(away);
        for member in members {
            let passed = member.checked_index;
            if member.node_id == id {
                assert_eq!(passed, before, "it was not asked since");
            } else {
                assert!(passed >= Some(index), "{passed:?} {index}");
            }
        }
    });
}

#[test]
fn the_log_stays_bounded_in_bytes() {
    run(4, async {
        let mut bench = SimBench::simulated(1);
        bench.log_bytes = 256 * 1024;
        bench.start(0).await;
        bench.found(0).await;
        let put = |n: u32| {
            let document = vec![n as u8; 60_000];
            let node = bench.node(0).clone();
            async move {
                node.put_policy(&document, None, String::new(), Author::default(), None)
                    .await
                    .expect("commits");
            }
        };
        for n in 0..120 {
            put(n).await;
            SimRuntime::sleep(Duration::from_millis(300)).await;
        }
        let early = bench.disk_bytes(0);
        for n in 0..240 {
            put(n).await;
            SimRuntime::sleep(Duration::from_millis(300)).await;
        }
        // 14 MB more have gone through it.
        assert!(bench.disk_bytes(0) <= early.max(4 * 1024 * 1024), "{early}");
        bench.stop(0).await;
        bench.start(0).await;
        bench.wait_leader().await;
    });
}

#[test]
fn a_majority_with_full_disks_takes_no_proposals() {
    run(5, async {
        let mut bench = SimBench::simulated(3);
        bench.start_all().await;
        let leader = bench.form().await;
        let followers: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
        let attempt = async |name: &str| {
            let command = Command::CreateAccount(spec(name));
            bench.node(leader).propose(command).await.map(drop)
        };
        bench.set_free_bytes_of(followers[0], 1024);
        SimRuntime::sleep(Duration::from_secs(2)).await;
        assert_eq!(attempt("one").await, Ok(()));
        bench.set_free_bytes_of(followers[1], 1024);
        SimRuntime::sleep(Duration::from_secs(2)).await;
        assert_eq!(attempt("two").await, Err(ProposeError::StorageFull));
        assert!(bench.node(followers[1]).status().storage_full);
        bench.set_free_bytes_of(followers[1], u64::MAX);
        SimRuntime::sleep(Duration::from_secs(2)).await;
        assert_eq!(attempt("three").await, Ok(()));
    });
}

#[test]
fn what_a_member_noticed_without_a_leader_is_in_the_change_log_once() {
    run(3, async {
        let mut bench = SimBench::simulated(3);
        bench.start_all().await;
        let leader = bench.form().await;
        let witness = (leader + 1) % 3;
        bench.node(leader).answer_events();
        bench.cut_off(witness);
        for source in ["192.0.2.1", "192.0.2.2"] {
            bench.node(witness).note(
                EventKind::ForeignCluster,
                source.into(),
                "somebody else answers".into(),
            );
        }
        SimRuntime::sleep(Duration::from_secs(5)).await;
        assert_eq!(noticed(&bench, leader), Vec::<String>::new());
        bench.heal();
        bench
            .wait(|bench| noticed(bench, witness) == ["192.0.2.1", "192.0.2.2"])
            .await;
        SimRuntime::sleep(Duration::from_secs(5)).await;
        assert_eq!(noticed(&bench, leader), ["192.0.2.1", "192.0.2.2"]);
    });
}

/// Where somebody of another cluster was noticed, in the words of the change log that `n` has.
fn noticed(bench: &SimBench, n: usize) -> Vec<String> {
    let state = bench.node(n).state();
    let told = state
        .changes()
        .filter(|change| change.action == Action::Event(EventKind::ForeignCluster));
    told.map(|change| change.subject.clone()).collect()
}
