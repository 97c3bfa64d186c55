//! The cluster under simulated faults: whatever the seed, what was promised holds. More seeds: `cargo xtask sim`.

use sim::cluster::mutant::Mutant;
use sim::cluster::observer::Invariant;
use sim::cluster::{Options, report, simulate};

/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 200;

/// Seeds that once found a fault in the product, each with what it was.
const REGRESSIONS: &str = include_str!("cluster/regressions.txt");

fn check(options: Options) {
    let outcome = simulate(options);
    if outcome.violation.is_some() {
        panic!("{}", report(options, &outcome));
    }
}

/// One eighth of the seeds, so that a runner with several cores has something to share out.
fn eighth(number: u64) {
    (0..SEEDS)
        .filter(|seed| seed % 8 == number)
        .for_each(|seed| check(Options::new(seed)));
}

macro_rules! eighths {
    ($($name:ident = $number:literal),*) => {
        $(#[test]
        fn $name() {
            eighth($number);
        })*
    };
}

eighths!(
    promises_hold_1_of_8 = 0,
    promises_hold_2_of_8 = 1,
    promises_hold_3_of_8 = 2,
    promises_hold_4_of_8 = 3,
    promises_hold_5_of_8 = 4,
    promises_hold_6_of_8 = 5,
    promises_hold_7_of_8 = 6,
    promises_hold_8_of_8 = 7
);

#[test]
fn what_was_found_once_is_not_found_again() {
    for line in REGRESSIONS.lines().filter(|line| !line.starts_with('#')) {
        let (seed, _what) = line.split_once(' ').expect("a seed and what it found");
        check(Options::new(seed.parse().expect("a seed")));
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [3, 11, 42] {
        let (one, other) = (simulate(Options::new(seed)), simulate(Options::new(seed)));
        let differ = one.journal.iter().zip(&other.journal).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_ne!(one.trace, simulate(Options::new(seed + 1)).trace);
    }
}

/// Within the seeds there is a story in which a mutant is caught at breaking one of the promises that it is about. In
/// others it may be noticed otherwise.
fn check_mutant(mutant: Mutant, promises: &[Invariant]) {
    let is_caught = |seed: &u64| {
        let mutated = Options {
            mutant: Some(mutant),
            ..Options::new(*seed)
        };
        let broken = simulate(mutated).violation;
        broken.is_some_and(|violation| promises.contains(&violation.invariant))
    };
    let caught = (0..SEEDS).find(is_caught);
    assert!(
        caught.is_some(),
        "{mutant} is not caught within {SEEDS} seeds"
    );
}

/// The promises that what was written stays.
const KEPT: [Invariant; 4] = [
    Invariant::Quorum,
    Invariant::Committed,
    Invariant::Durability,
    Invariant::Acknowledged,
];

#[test]
fn a_sync_that_is_skipped_is_found() {
    check_mutant(Mutant::SyncSkipped, &KEPT);
}

#[test]
fn an_early_acknowledgement_is_found() {
    check_mutant(Mutant::AcknowledgedEarly, &KEPT);
}

#[test]
fn an_id_that_is_reused_is_found() {
    check_mutant(Mutant::IdReused, &[Invariant::IdsUnique]);
}

#[test]
fn a_policy_that_is_enforced_early_is_found() {
    check_mutant(Mutant::EnforcedEarly, &[Invariant::EnforcedLast]);
}

#[test]
fn a_guard_that_does_not_ask_is_found() {
    // openraft panics at a log that became shorter, mostly before anything else is seen of it.
    let promises = [&KEPT[..], &[Invariant::NoPanic]].concat();
    check_mutant(Mutant::GuardAsleep, &promises);
}
