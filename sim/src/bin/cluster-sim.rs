//! Tells the stories of many seeds and stops at the first one in which a promise is broken. `cargo xtask sim` runs it.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a command-line program says what it found"
)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::cluster::{Options, report, shrink, simulate};
use tracing_subscriber::{EnvFilter, fmt};

/// Simulate a cluster, one story for each seed.
#[derive(Parser)]
struct Arguments {
    /// How many stories.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print every story, line by line.
    #[arg(long)]
    verbose: bool,
    /// Name every seed that breaks a promise, instead of ending at the first.
    #[arg(long)]
    survey: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.verbose {
        let filter = EnvFilter::from_default_env();
        fmt().with_env_filter(filter).without_time().init();
    }
    let begin = Instant::now();
    let (mut committed, mut terms, mut broken) = (0, 0, 0);
    for seed in arguments.from..arguments.from + arguments.seeds {
        let options = Options::new(seed);
        let outcome = simulate(options);
        if arguments.verbose {
            outcome.journal.iter().for_each(|line| println!("{line}"));
        }
        if let Some(violation) = outcome.violation.as_ref().filter(|_| arguments.survey) {
            println!("seed {seed}: {violation}");
            broken += 1;
            continue;
        }
        if outcome.violation.is_some() {
            println!("{}", report(options, &outcome));
            let least = shrink(options);
            println!("what it takes:\n{}", report(least, &simulate(least)));
            return ExitCode::FAILURE;
        }
        committed += outcome.committed;
        terms += outcome.terms;
        if arguments.verbose {
            println!(
                "seed {seed}: {} entries, {} terms, {} writes, {} reads in {:.1} s",
                outcome.committed,
                outcome.terms,
                outcome.writes,
                outcome.reads,
                outcome.took.as_secs_f64()
            );
        }
    }
    println!(
        "{} stories from seed {} on: {committed} entries committed in {terms} terms, {broken} broken, {:.0} s",
        arguments.seeds,
        arguments.from,
        begin.elapsed().as_secs_f64()
    );
    match broken {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
