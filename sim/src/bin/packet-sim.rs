//! Tells the stories of many seeds to the packet engine and its reference, and stops at the first in which the two differ.
//! `cargo xtask packets` runs it.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a command-line program says what it found"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use clap::Parser;
use sim::packets::{Told, tell_seed};

/// Put random packets through the packet engine and its reference model.
#[derive(Parser)]
struct Arguments {
    /// How many packets, at least: the last stories are told to their ends.
    #[arg(long, default_value_t = 10_000_000)]
    count: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stories at once; as many as there are processors if it is 0.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

/// How far all threads are together.
struct Progress {
    next_seed: u64,
    stories: u64,
    told: Told,
    /// The seed with which the two differ, and where.
    failed: Option<(u64, String)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let jobs = match arguments.jobs {
        0 => thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    let progress = Mutex::new(Progress {
        next_seed: arguments.from,
        stories: 0,
        told: Told::default(),
        failed: None,
    });
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| tell_all(&progress, arguments.count, begin));
        }
    });
    let done = progress.into_inner().expect(NOT_POISONED);
    if let Some((seed, why)) = done.failed {
        println!("seed {seed}: {why}\nagain: cargo xtask packets --from {seed} --count 1");
        return ExitCode::FAILURE;
    }
    let Told {
        packets,
        left,
        returned,
        errors,
        dropped,
        policies,
    } = done.told;
    println!(
        "{packets} packets in {} stories from seed {} on, and no difference: {left} left translated, {returned} came back, \
         {errors} errors were passed on, {dropped} were dropped, under {policies} policies, {:.0} s",
        done.stories,
        arguments.from,
        begin.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

const NOT_POISONED: &str = "nothing panics while it is held";

/// Takes one seed after the other until there were enough packets, or any thread has found a difference.
fn tell_all(progress: &Mutex<Progress>, count: u64, begin: Instant) {
    loop {
        let seed = {
            let mut progress = progress.lock().expect(NOT_POISONED);
            if progress.told.packets >= count || progress.failed.is_some() {
                return;
            }
            progress.next_seed += 1;
            progress.next_seed - 1
        };
        let result = tell_seed(seed);
        let mut progress = progress.lock().expect(NOT_POISONED);
        match result {
            Ok(told) => {
                let twentieths = |packets: u64| packets.saturating_mul(20) / count.max(1);
                let before = twentieths(progress.told.packets);
                progress.told += told;
                progress.stories += 1;
                if twentieths(progress.told.packets) > before {
                    let packets = progress.told.packets;
                    println!("{packets} packets, {:.0} s", begin.elapsed().as_secs_f64());
                }
            }
            Err(why) => progress.failed = Some((seed, why)),
        }
    }
}
