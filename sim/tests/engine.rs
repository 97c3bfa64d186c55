//! The real worker and the reference take the same packets, policies and jumps of time, and must
//! do the same to every frame. `cargo xtask packets` does it ten million times.

use proptest::prelude::*;
use sim::packets::{Told, story, tell, tell_seed};

proptest! {
    #[test]
    fn the_worker_agrees_with_the_reference(story in story(1..=120)) {
        tell(&story)?;
    }
}

/// The stories are worth something only if packets go all ways, and a seed only if it tells the same story again.
#[test]
fn packets_of_seeds_go_all_ways() {
    let mut sum = Told::default();
    for seed in 0..8 {
        let told = tell_seed(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        sum += told;
    }
    assert_eq!(tell_seed(0), tell_seed(0));
    for share in [sum.left, sum.returned, sum.dropped] {
        assert!(share * 20 > sum.packets, "{sum:?}");
    }
    assert!(sum.errors * 100 > sum.packets, "{sum:?}");
    assert!(sum.policies * 50 > sum.packets, "{sum:?}");
}
