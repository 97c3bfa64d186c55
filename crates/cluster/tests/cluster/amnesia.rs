//! Members that have forgotten what they acknowledged, on virtual time: nothing is lost by them, and they come back by
//! themselves.

use std::time::Duration;

use cluster::{Command, Role};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::bench::{Bench, spec};

type SimBench = Bench<SimRuntime>;

fn run<F: Future<Output = ()>>(seed: u64, story: F) {
    SimRuntime::with_seed(seed).block_on(story);
}

async fn formed(size: usize) -> (SimBench, usize) {
    let mut bench = SimBench::simulated(size);
    bench.start_all().await;
    let leader = bench.form().await;
    (bench, leader)
}

async fn write(bench: &SimBench, leader: usize, name: &str) {
    bench
        .propose(leader, Command::CreateAccount(spec(name)))
        .await;
}

fn has(bench: &SimBench, n: usize, name: &str) -> bool {
    let state = bench.node(n).state();
    state.accounts().any(|account| account.spec.name == name)
}

fn is_voter(bench: &SimBench, leader: usize, n: usize) -> bool {
    let id = bench.id(n);
    let members = bench.node(leader).members();
    members.iter().any(|m| m.node_id == id && m.voter && m.live)
}

/// A write is acknowledged by the leader and one follower while the third is away. Then the follower's disk goes back to
/// before it, the leader is cut off, and the two that do not have the write meet. Tells whether the write was there when
/// all had met again.
async fn rolled_back(patience: Duration, reboots: bool) -> bool {
    let (mut bench, leader) = formed(3).await;
    let (victim, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let image = bench.image(victim);
    bench.cut_off(third);
    write(&bench, leader, "acknowledged").await;
    bench.wait(|bench| has(bench, victim, "acknowledged")).await;
    match reboots {
        true => bench.lose_power(victim).await,
        false => bench.kill(victim).await,
    }
    bench.put_image(victim, image);
    bench.kill(leader).await;
    bench.heal();
    bench.patience = patience;
    bench.start(victim).await;
    SimRuntime::sleep(Duration::from_secs(20)).await;
    if let Some(elsewhere) = bench.leader() {
        assert!(patience.is_zero() && reboots, "the guard let it pass");
        return has(&bench, elsewhere, "acknowledged");
    }
    let reason = bench.node(victim).status().quarantine;
    assert!(reason.is_some(), "in quarantine, and says why");
    bench.start(leader).await;
    bench.wait_leader().await;
    bench.wait_equal().await;
    has(&bench, victim, "acknowledged")
}

#[test]
fn a_write_outlives_a_rolled_back_disk() {
    run(1, async {
        assert!(rolled_back(Duration::from_secs(60), true).await);
    });
}

#[test]
fn within_one_boot_a_rolled_back_disk_is_known_without_the_others() {
    run(2, async {
        assert!(rolled_back(Duration::ZERO, false).await);
    });
}

/// What the guard is for: the same story, without it.
#[test]
fn without_the_guard_the_write_is_lost() {
    run(3, async {
        assert!(!rolled_back(Duration::ZERO, true).await);
    });
}

#[test]
fn a_wiped_voter_becomes_a_learner_and_votes_again_by_itself() {
    for (seed, entries) in [(4, 5), (5, 60)] {
        run(seed, async move {
            let (mut bench, leader) = formed(3).await;
            let victim = (leader + 1) % 3;
            for n in 0..entries {
                write(&bench, leader, &format!("a{n}")).await;
            }
            bench.wait_equal().await;
            bench.lose_power(victim).await;
            bench.wipe(victim);
            bench.start(victim).await;
            let id = bench.id(victim);
            bench
                .wait(|bench| {
                    let members = bench.node(leader).members();
                    members.iter().any(|m| m.node_id == id && !m.voter)
                })
                .await;
            assert!(matches!(bench.node(leader).role(), Role::Leader { .. }));
            bench.wait(|bench| is_voter(bench, leader, victim)).await;
            bench.wait_equal().await;
            assert!(has(&bench, victim, &format!("a{}", entries - 1)));
            assert_eq!(bench.node(victim).status().quarantine, None);
        });
    }
}

#[test]
fn of_two_a_wiped_one_comes_back_without_leaving() {
    run(6, async {
        let (mut bench, leader) = formed(2).await;
        let victim = 1 - leader;
        write(&bench, leader, "kept").await;
        bench.lose_power(victim).await;
        bench.wipe(victim);
        bench.start(victim).await;
        bench.wait_leader().await;
        bench.wait_equal().await;
        assert!(has(&bench, victim, "kept"));
        let leader = bench.wait_leader().await;
        bench
            .wait(|bench| is_voter(bench, leader, 1 - leader))
            .await;
        write(&bench, leader, "more").await;
    });
}

#[test]
fn quarantine_never_takes_the_majority() {
    run(7, async {
        let (mut bench, leader) = formed(3).await;
        let (victim, third) = ((leader + 1) % 3, (leader + 2) % 3);
        write(&bench, leader, "kept").await;
        bench.wait_equal().await;
        bench.kill(third).await;
        bench.lose_power(victim).await;
        bench.wipe(victim);
        bench.patience = Duration::from_secs(2);
        bench.start(victim).await;
        // Nobody else is left: it counts where it is, once it has everything back.
        bench
            .wait(|bench| bench.node(victim).status().quarantine.is_none())
            .await;
        let leader = bench.wait_leader_among(&[leader, victim]).await;
        write(&bench, leader, "more").await;
        bench.start(third).await;
        bench.wait_equal().await;
        assert!(has(&bench, third, "kept") && has(&bench, victim, "more"));
    });
}

#[test]
fn clusters_of_every_size_come_up_by_themselves_after_a_power_failure() {
    for size in [1, 2, 3, 5] {
        run(8 + size as u64, async move {
            let (mut bench, leader) = formed(size).await;
            write(&bench, leader, "kept").await;
            for n in 0..size {
                bench.lose_power(n).await;
            }
            bench.start_all().await;
            let elected = SimRuntime::timeout(Duration::from_secs(5), bench.wait_leader()).await;
            let leader = elected.expect("soon");
            write(&bench, leader, "more").await;
            bench.wait_equal().await;
            assert!((0..size).all(|n| has(&bench, n, "kept")));
        });
    }
}

#[test]
fn a_majority_is_enough_after_crashes_and_with_patience_after_a_power_failure() {
    for (seed, power, within) in [(20, false, 5), (21, true, 40)] {
        run(seed, async move {
            let (mut bench, leader) = formed(3).await;
            write(&bench, leader, "kept").await;
            bench.wait_equal().await;
            for n in 0..3 {
                match power {
                    true => bench.lose_power(n).await,
                    false => bench.kill(n).await,
                }
            }
            // One of them stays away.
            let rest: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
            for n in &rest {
                bench.start(*n).await;
            }
            let waiting = bench.wait_leader_among(&rest);
            let elected = SimRuntime::timeout(Duration::from_secs(within), waiting).await;
            let elected = elected.expect("in time");
            assert!(has(&bench, elected, "kept"));
        });
    }
}

#[test]
fn a_majority_that_is_itself_new_decides_nothing() {
    run(22, async {
        let (mut bench, leader) = formed(3).await;
        write(&bench, leader, "kept").await;
        bench.wait_equal().await;
        for n in 0..3 {
            bench.lose_power(n).await;
        }
        let honest = (leader + 1) % 3;
        for n in (0..3).filter(|n| *n != honest) {
            bench.wipe(n);
        }
        bench.start_all().await;
        SimRuntime::sleep(Duration::from_secs(120)).await;
        assert_eq!(bench.leader(), None);
        let reason = bench.node(honest).status().quarantine.expect("a reason");
        assert!(reason.contains("cluster recover"), "{reason}");
        assert!(reason.contains("lost their logs"), "{reason}");
    });
}

#[test]
fn a_lone_node_whose_data_went_back_goes_on_with_what_it_has() {
    run(23, async {
        let (mut bench, leader) = formed(1).await;
        let image = bench.image(leader);
        write(&bench, leader, "acknowledged").await;
        bench.kill(leader).await;
        bench.put_image(leader, image);
        bench.start(leader).await;
        bench.wait_leader().await;
        assert_eq!(bench.node(leader).status().quarantine, None);
        assert!(!has(&bench, leader, "acknowledged"));
        write(&bench, leader, "more").await;
    });
}

#[test]
fn a_founder_whose_disk_went_back_to_when_it_was_alone_leads_nobody() {
    for seed in 24..30 {
        run(seed, async move {
            let mut bench = SimBench::simulated(3);
            bench.start_all().await;
            bench.found(0).await;
            let image = bench.image(0);
            let leader = bench.grow().await;
            write(&bench, leader, "kept").await;
            bench.wait_equal().await;
            bench.lose_power(0).await;
            bench.put_image(0, image);
            bench.wait_leader_among(&[1, 2]).await;
            bench.start(0).await;
            let estranged = |bench: &SimBench| {
                let reason = bench.node(0).status().quarantine;
                reason.is_some_and(|reason| reason.contains("cluster rejoin"))
            };
            bench.wait(estranged).await;
            // Nothing of it reaches the others, nor the other way.
            let leader = bench.wait_leader_among(&[1, 2]).await;
            write(&bench, leader, "more").await;
            SimRuntime::sleep(Duration::from_secs(20)).await;
            assert!(estranged(&bench) && bench.leader() != Some(0));
            assert!((1..3).all(|n| has(&bench, n, "kept") && has(&bench, n, "more")));
        });
    }
}
