//! `cargo xtask fuzz`: looks for inputs that the targets do not handle soundly. What it finds is kept as a file of the
//! corpus, which ordinary tests replay; how long it has looked in vain, as a line of `fuzz/runs.tsv`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The targets in `fuzz/fuzz_targets` that need no more than the engine.
const DATAPLANE: [&str; 5] = [
    "wire",
    "addresses",
    "overlay_decap",
    "fragments",
    "neighbours",
];

/// The others.
const CONTROL: [&str; 11] = [
    "policy_document",
    "join_request",
    "join_token",
    "member_message",
    "disk_record",
    "configuration",
    "dns_query",
    "dns_answer",
    "grants",
    "api_body",
    "handover",
];

/// Encodings that are kept beside their types, and are a corpus as well.
const GOLDEN: &str = "crates/cluster/tests/golden";

/// The runs that found nothing: when each ended, its target, seconds of processor time, inputs, and the commit.
const RUNS: &str = "fuzz/runs.tsv";

/// Runs one target, or all of them, for so many seconds each. New inputs go to `target/fuzz`, one that fails to
/// `fuzz/artifacts`.
pub(crate) fn run(target: Option<&str>, seconds: u64) -> Result<()> {
    ensure!(seconds > 0, "--seconds must be at least 1");
    let all = || DATAPLANE.into_iter().chain(CONTROL);
    let targets: Vec<&str> = match target {
        None => all().collect(),
        Some(one) => all().filter(|target| *target == one).collect(),
    };
    if targets.is_empty() {
        let all: Vec<_> = all().collect();
        bail!("there is no such target; there are {}", all.join(", "));
    }
    let answers = fuzzer(&["--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    ensure!(
        answers,
        "fuzzing needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz"
    );
    for target in targets {
        let run = fuzz(target, seconds)?;
        note(target, &run)?;
    }
    show()
}

/// What a run that found nothing came to.
struct Run {
    /// Processor time, in seconds: on a busy machine less than the time that it ran.
    seconds: u64,
    inputs: u64,
}

/// Runs a target.
fn fuzz(target: &str, seconds: u64) -> Result<Run> {
    let found = format!("target/fuzz/{target}");
    let kept = format!("fuzz/corpus/{target}");
    std::fs::create_dir_all(crate::root().join(&found))
        .with_context(|| format!("cannot create {found}"))?;
    let features = match DATAPLANE.contains(&target) {
        true => "link",
        false => "link,control",
    };
    let total = format!("-max_total_time={seconds}");
    let log = format!("{found}.log");
    eprintln!("==> fuzz {target}, {seconds} s, what it says is in {log}");
    let told =
        File::create(crate::root().join(&log)).with_context(|| format!("cannot create {log}"))?;
    // The first directory takes what is new; the corpus itself is only read.
    let golden = ["member_message", "disk_record"].contains(&target);
    let built = fuzzer(&["build", "--features", features, target]).status()?;
    ensure!(built.success(), "{target} cannot be built");
    let before = processor_time()?;
    let status = fuzzer(&["run", "--features", features, target, &found, &kept])
        .args(golden.then_some(GOLDEN))
        .arg("--")
        .args([
            &total,
            "-timeout=10",
            "-max_len=8192",
            "-print_final_stats=1",
        ])
        .stderr(told)
        .status()?;
    ensure!(
        status.success(),
        "{target} fails, see {log}: the input is in fuzz/artifacts/{target}; make it small with \
         `cargo +nightly fuzz tmin {target} FILE`, mend, and keep it in {kept}"
    );
    let said = std::fs::read(crate::root().join(&log))?;
    let inputs = String::from_utf8_lossy(&said)
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|count| count.trim().parse().ok())
        .with_context(|| format!("{log} does not say how many inputs there were"))?;
    Ok(Run {
        seconds: processor_time()? - before,
        inputs,
    })
}

/// What all children that have ended have used, in seconds.
fn processor_time() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time().tv_sec() + usage.system_time().tv_sec()).cast_unsigned())
}

/// Adds a run to [`RUNS`].
fn note(target: &str, run: &Run) -> Result<()> {
    let Run { seconds, inputs } = run;
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(crate::root())
        .output()?;
    let commit = String::from_utf8(commit.stdout)?;
    let ended = OffsetDateTime::now_utc()
        .replace_nanosecond(0)?
        .format(&Rfc3339)?;
    let line = format!(
        "{ended}\t{target}\t{seconds}\t{inputs}\t{}\n",
        commit.trim()
    );
    OpenOptions::new()
        .append(true)
        .open(crate::root().join(RUNS))
        .and_then(|mut runs| runs.write_all(line.as_bytes()))
        .with_context(|| format!("cannot write {RUNS}"))
}

/// Prints how much processor time each target has had in all, and with how many inputs.
fn show() -> Result<()> {
    let runs = std::fs::read_to_string(crate::root().join(RUNS))?;
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for line in runs.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, target, seconds, inputs, _] = fields[..] else {
            bail!("a line of {RUNS} is none: {line}");
        };
        let sum = sums.entry(target).or_default();
        sum.0 += seconds.parse::<u64>()?;
        sum.1 += inputs.parse::<u64>()?;
    }
    for (target, (seconds, inputs)) in sums {
        eprintln!(
            "{target:<16} {:>6} min {:>12} inputs, none failed",
            seconds / 60,
            inputs
        );
    }
    Ok(())
}

/// cargo-fuzz on the nightly toolchain, whatever toolchain this program runs on.
fn fuzzer(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo", "fuzz"])
        .args(arguments)
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .current_dir(crate::root());
    command
}
