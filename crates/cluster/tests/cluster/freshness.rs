//! What a node says of itself when it is partitioned, stopped or restarted, on a virtual clock: readiness is made of
//! nothing else.

use std::time::Duration;

use cluster::{Command, Role};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::bench::{Bench, spec};

type Simulated = Bench<SimRuntime>;

async fn formed() -> (Simulated, usize) {
    let mut bench: Simulated = Bench::simulated(3);
    bench.start_all().await;
    let leader = bench.form().await;
    bench
        .propose(leader, Command::CreateAccount(spec("before")))
        .await;
    bench.wait_equal().await;
    bench.wait(|bench| (0..3).all(|n| is_fresh(bench, n))).await;
    (bench, leader)
}

/// Knows a leader, and that its state holds all that this leader has committed.
fn is_fresh(bench: &Simulated, n: usize) -> bool {
    let status = bench.node(n).status();
    let has_leader = !matches!(status.role, Role::NoLeader { .. });
    has_leader
        && status
            .confirmed_index
            .is_some_and(|confirmed| confirmed <= status.applied_index)
}

/// How long a node may at most take for fresh what is not: the detection time, as it says itself.
fn detection_time(bench: &Simulated, n: usize) -> Duration {
    Duration::from_millis(bench.node(n).status().detection_time_ms)
}

#[test]
fn a_partitioned_leader_stops_calling_itself_one_within_the_detection_time() {
    SimRuntime::with_seed(1).block_on(async {
        let (bench, leader) = formed().await;
        bench.cut_off(leader);
        SimRuntime::sleep(detection_time(&bench, leader)).await;
        let status = bench.node(leader).status();
        assert!(matches!(status.role, Role::NoLeader { .. }), "{status:?}");
        assert_eq!(status.confirmed_index, None);
        assert_eq!(status.failure_tolerance, None);
        // What it said of the others as their leader is no knowledge any more.
        assert!(
            bench
                .node(leader)
                .members()
                .iter()
                .all(|member| !member.live)
        );
        bench.heal();
        bench.wait(|bench| (0..3).all(|n| is_fresh(bench, n))).await;
    });
}

#[test]
fn a_stopped_follower_knows_nothing_when_it_wakes_up() {
    SimRuntime::with_seed(2).block_on(async {
        let (bench, leader) = formed().await;
        let follower = (leader + 1) % 3;
        let applied = bench.node(follower).status().applied_index;
        // Nothing reaches it and nothing comes from it, as of a process that was stopped; its clock goes on.
        bench.cut_off(follower);
        for n in 0..5 {
            let name = format!("missed-{n}");
            bench
                .propose(leader, Command::CreateAccount(spec(&name)))
                .await;
        }
        SimRuntime::sleep(detection_time(&bench, follower)).await;
        let status = bench.node(follower).status();
        assert!(matches!(status.role, Role::NoLeader { .. }), "{status:?}");
        assert_eq!(status.confirmed_index, None);
        assert_eq!(status.applied_index, applied);
        bench.heal();
        bench.wait(|bench| is_fresh(bench, follower)).await;
        assert!(bench.node(follower).status().applied_index >= applied + 5);
    });
}

#[test]
fn a_restarted_node_is_not_fresh_before_a_leader_has_confirmed_it() {
    SimRuntime::with_seed(3).block_on(async {
        let (mut bench, leader) = formed().await;
        let follower = (leader + 1) % 3;
        bench.cut_off(follower);
        bench.lose_power(follower).await;
        bench.start(follower).await;
        SimRuntime::sleep(Duration::from_secs(60)).await;
        let status = bench.node(follower).status();
        assert!(matches!(status.role, Role::NoLeader { .. }), "{status:?}");
        assert_eq!(status.confirmed_index, None);
        bench.heal();
        bench.wait(|bench| is_fresh(bench, follower)).await;
    });
}

#[test]
fn every_member_tells_the_same_of_all() {
    SimRuntime::with_seed(4).block_on(async {
        let (bench, leader) = formed().await;
        // Two reports later everybody has heard what the leader knows.
        SimRuntime::sleep(Duration::from_secs(2)).await;
        let timeless = |n: usize| {
            let mut members = bench.node(n).members();
            for member in &mut members {
                member.last_contact_ms = None;
            }
            members
        };
        let expected = timeless(leader);
        assert!(
            expected
                .iter()
                .all(|member| member.live && member.report.is_some())
        );
        for n in 0..3 {
            assert_eq!(timeless(n), expected, "node {n}");
            assert_eq!(bench.node(n).status().failure_tolerance, Some(1));
        }
    });
}
