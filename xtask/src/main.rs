//! Development commands: `cargo xtask test | ci | sim | packets | memcheck | bench | faults | fuzz | fix`. `ci` and `test` never write into
//! the working tree.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    reason = "a command-line program says what it does"
)]

mod ci;
mod dependencies;
mod dpdk;
mod fuzz;
mod licence;
mod memcheck;
mod test;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// Development commands of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run every test that can run here. Without root those of the lab are left out, which is a failure in CI.
    Test,
    /// Check formatting, lints, documentation and dependencies.
    Ci,
    /// Simulate a cluster under faults, one story for each seed; ends at the first that breaks a promise.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Print what happens, line by line.
        #[arg(long)]
        verbose: bool,
    },
    /// Put random packets through the packet engine and its reference model, which must do the same to each; ends at the
    /// first that differs, with the seed.
    Packets {
        /// How many, at least.
        #[arg(long, default_value_t = 10_000_000)]
        count: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Run the tests of `mem` and `io` under valgrind, and see that they reach all unsafe code. Without root those that need
    /// it are left out.
    Memcheck {
        /// Only see whether they reach all unsafe code.
        #[arg(long)]
        lines: bool,
    },
    /// Measure, and compare with the yardsticks; needs root. The results go to `target/bench`.
    Bench {
        /// What to measure; without it everything.
        what: Option<Bench>,
        /// Further options of the bench that was chosen.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, requires = "what")]
        options: Vec<String>,
    },
    /// Let everything fail at a cluster of real processes, in network namespaces; needs root.
    Faults {
        /// `--minutes N` of random faults instead of each once, `--seed S`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Look for inputs that break what takes bytes from strangers; needs nightly and cargo-fuzz.
    Fuzz {
        /// The name of a file in `fuzz/fuzz_targets`; all of them if none is named.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Format, and apply what the lints suggest.
    Fix,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Bench {
    /// Packets, beside the kernel's forwarding.
    Forwarding,
    /// What others keep while somebody attacks, beside what they have otherwise.
    Attack,
    /// The cluster, beside etcd.
    Cluster,
    /// The DNS proxy, beside dnsdist and unbound.
    Names,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Test => test::run(),
        Task::Ci => ci::run(),
        Task::Sim {
            seeds,
            from,
            verbose,
        } => simulate(seeds, from, verbose),
        Task::Packets { count, from } => packets(count, from),
        Task::Memcheck { lines } => memcheck::run(lines),
        Task::Bench { what, options } => bench(what, &options),
        Task::Faults { options } => lab("faults", &options),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Fix => fix(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(what: Option<Bench>, options: &[String]) -> Result<()> {
    let wanted = |bench| what.is_none_or(|what| what == bench);
    if wanted(Bench::Forwarding) {
        let mut arguments = vec!["bench", "-p", "io", "--bench", "forwarding", "--"];
        arguments.extend(options.iter().map(String::as_str));
        cargo(&arguments, &[])?;
    }
    if wanted(Bench::Attack) {
        let mut arguments = vec![
            "bench",
            "-p",
            "io",
            "--bench",
            "forwarding",
            "--",
            "--attacks",
        ];
        arguments.extend(options.iter().map(String::as_str));
        cargo(&arguments, &[])?;
    }
    if wanted(Bench::Cluster) {
        lab("bench-cluster", options)?;
    }
    if wanted(Bench::Names) {
        let mut arguments = vec!["bench", "-p", "proxy", "--bench", "serve", "--"];
        arguments.extend(options.iter().map(String::as_str));
        cargo(&arguments, &[])?;
        cargo(&["bench", "-p", "grants", "--bench", "store"], &[])?;
    }
    Ok(())
}

/// Builds a program of the lab, and the binary that it starts, as users get them, and runs it.
fn lab(program: &str, options: &[String]) -> Result<()> {
    cargo(
        &["build", "--release", "-p", "neuwerk", "-p", "lab", "--bins"],
        &[],
    )?;
    let mut arguments = vec![
        "run",
        "--release",
        "--quiet",
        "-p",
        "lab",
        "--bin",
        program,
        "--",
    ];
    arguments.extend(options.iter().map(String::as_str));
    cargo(&arguments, &[])
}

fn simulate(seeds: u64, from: u64, verbose: bool) -> Result<()> {
    let (seeds, from) = (seeds.to_string(), from.to_string());
    let mut arguments = vec![
        "run",
        "--quiet",
        "--package",
        "sim",
        "--bin",
        "cluster-sim",
        "--",
    ];
    arguments.extend(["--seeds", &seeds, "--from", &from]);
    if verbose {
        arguments.push("--verbose");
    }
    cargo(&arguments, &[])
}

fn packets(count: u64, from: u64) -> Result<()> {
    let (count, from) = (count.to_string(), from.to_string());
    cargo(
        &[
            "run",
            "--quiet",
            "--package",
            "sim",
            "--bin",
            "packet-sim",
            "--",
            "--count",
            &count,
            "--from",
            &from,
        ],
        &[],
    )
}

fn fix() -> Result<()> {
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ];
    cargo(&clippy, &[])?;
    cargo(&["fmt", "--all"], &[])
}

/// Runs cargo in the workspace, saying so.
fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    eprintln!("==> cargo {}", arguments.join(" "));
    let status = cargo_command()
        .args(arguments)
        .envs(environment.iter().copied())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo {}: {status}", arguments.join(" "));
    Ok(())
}

/// The cargo that runs this program.
fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace's directory.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
