//! The production node on a simulated runtime: virtual time, seeded elections, the same story for the same seed.

use std::time::Duration;

use cluster::{Command, Digest, Role};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::bench::{Bench, spec};

/// Forms a cluster, then cuts off, kills and heals; tells the acknowledged state and who led.
async fn story(seed: u64) -> (Digest, Vec<usize>) {
    let mut bench: Bench<SimRuntime> = Bench::simulated(3);
    bench.start_all().await;
    let mut leaders = vec![bench.form().await];
    let mut names = Vec::new();
    for round in 0..6_u64 {
        let leader = bench.wait_leader().await;
        let name = format!("round-{round}");
        bench
            .propose(leader, Command::CreateAccount(spec(&name)))
            .await;
        names.push(name);
        let victim = ((seed >> round) % 3) as usize;
        let rest: Vec<usize> = (0..3).filter(|n| *n != victim).collect();
        if (seed + round).is_multiple_of(2) {
            bench.cut_off(victim);
            let leader = bench.wait_leader_among(&rest).await;
            let name = format!("without-{round}");
            bench
                .propose(leader, Command::CreateAccount(spec(&name)))
                .await;
            names.push(name);
            bench.heal();
        } else {
            bench.lose_power(victim).await;
            leaders.push(bench.wait_leader_among(&rest).await);
            bench.start(victim).await;
        }
        SimRuntime::sleep(Duration::from_millis(seed % 700)).await;
        bench.wait_equal().await;
    }
    // The oracle: what was acknowledged is there, once, on every node.
    names.sort();
    for n in 0..3 {
        let mut found: Vec<String> = bench
            .node(n)
            .state()
            .accounts()
            .map(|a| a.spec.name.clone())
            .collect();
        found.sort();
        assert_eq!(found, names, "seed {seed}, node {n}");
        let leads = matches!(bench.node(n).role(), Role::Leader { .. });
        assert_eq!(leads, bench.leader() == Some(n), "seed {seed}: two leaders");
    }
    (bench.node(0).state().hash(), leaders)
}

#[test]
fn acknowledged_writes_survive_whatever_happens() {
    for seed in 0..12 {
        SimRuntime::with_seed(seed).block_on(story(seed));
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let run = || SimRuntime::with_seed(7).block_on(story(7));
    assert_eq!(run(), run());
}
