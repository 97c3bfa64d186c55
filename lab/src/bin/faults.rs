//! Random faults at a cluster of real processes, for as long as asked: `cargo xtask faults --minutes N --seed S`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program that says how far it is")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lab::fault::plan::Plan;

/// Lets things fail while clients write, and judges what the clients were told.
#[derive(Parser)]
struct Options {
    /// How long; without it every fault comes once.
    #[arg(long)]
    minutes: Option<u64>,
    /// Decides the faults and what the clients do; how they meet is up to the machine.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let plan = match options.minutes {
        Some(minutes) => Plan::random(options.seed, Duration::from_secs(60 * minutes)),
        None => Plan::each_once(options.seed),
    };
    let told = lab::fault::run(&plan, |step| println!("{step}"))?;
    println!(
        "{} faults, {} operations, of {} nobody knows what became",
        told.faults, told.operations, told.unknown
    );
    for lost in &told.lost {
        println!("acknowledged and lost: {lost}");
    }
    for violation in &told.violations {
        println!("not linearizable: {violation}");
    }
    let good = told.lost.is_empty() && told.violations.is_empty();
    println!("{}", if good { "all as promised" } else { "BROKEN" });
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
