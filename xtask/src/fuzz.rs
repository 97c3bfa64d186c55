//! `cargo xtask fuzz`: looks for inputs that the targets do not handle soundly. What it finds is kept as a file of the
//! corpus, which ordinary tests replay.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The targets in `fuzz/fuzz_targets`.
const TARGETS: [&str; 16] = [
    "wire",
    "addresses",
    "overlay_decap",
    "fragments",
    "neighbours",
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

/// Runs one target, or all of them, for so many seconds each. New inputs go to `target/fuzz`, one that fails to
/// `fuzz/artifacts`.
pub(crate) fn run(target: Option<&str>, seconds: u64) -> Result<()> {
    ensure!(seconds > 0, "--seconds must be at least 1");
    let targets = match target {
        None => TARGETS.to_vec(),
        Some(one) if TARGETS.contains(&one) => vec![one],
        Some(other) => bail!(
            "there is no target {other}; there are {}",
            TARGETS.join(", ")
        ),
    };
    let answers = fuzzer(&["--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    ensure!(
        answers,
        "fuzzing needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz"
    );
    for target in targets {
        let found = format!("target/fuzz/{target}");
        let kept = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(crate::root().join(&found))
            .with_context(|| format!("cannot create {found}"))?;
        let total = format!("-max_total_time={seconds}");
        eprintln!("==> fuzz {target}, {seconds} s");
        // The first directory takes what is new; the corpus itself is only read.
        let golden = ["member_message", "disk_record"].contains(&target);
        let status = fuzzer(&["run", "--features", "link", target, &found, &kept])
            .args(golden.then_some(GOLDEN))
            .arg("--")
            .args([
                &total,
                "-timeout=10",
                "-max_len=8192",
                "-print_final_stats=1",
            ])
            .status()?;
        ensure!(
            status.success(),
            "{target} fails: the input is in fuzz/artifacts/{target}; make it small with \
             `cargo +nightly fuzz tmin {target} FILE`, mend, and keep it in {kept}"
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
