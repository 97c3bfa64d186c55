//! Development commands: `cargo xtask test | ci | bench | fuzz | fix`. `ci` and `test` never write into the working tree.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    reason = "a command-line program says what it does"
)]

mod ci;
mod dependencies;
mod fuzz;
mod licence;
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
    /// Measure forwarding and compare it with the kernel's; needs root. The result goes to `target/bench`.
    Bench,
    /// Look for inputs that break what takes bytes from strangers; needs nightly and cargo-fuzz.
    Fuzz {
        /// wire, policy_document or join_request; all of them if none is named.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Format, and apply what the lints suggest.
    Fix,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Test => test::run(),
        Task::Ci => ci::run(),
        Task::Bench => cargo(&["bench", "-p", "io", "--bench", "forwarding"], &[]),
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
