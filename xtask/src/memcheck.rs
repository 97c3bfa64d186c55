//! `cargo xtask memcheck`: the tests of the two crates that may have unsafe code, under valgrind, which sees accesses to
//! memory that is not there, decisions by bytes that were never written, and memory that nobody frees. That each unsafe
//! block says why it is sound is a lint of `cargo xtask ci`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{cargo_command, root};

/// Those with unsafe code.
const CRATES: [&str; 4] = ["-p", "mem", "-p", "io"];

/// What is an error, and that one fails the run.
const OPTIONS: [&str; 7] = [
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite",
    "--show-leak-kinds=definite",
    // Else a thread that polls may keep the others, which it waits for, from running.
    "--fair-sched=yes",
    // A child is another program, or becomes one at once.
    "--child-silent-after-fork=yes",
];

/// Tests by name that are left out, each with the reason.
const LEFT_OUT: [(&str, &str); 6] = [
    (
        "buffer::tests::memory_is_used_only_as_frames_fill_it",
        "valgrind's allocator writes to all that it hands out",
    ),
    (
        "memory_with_long_frames",
        "ports in memory have no unsafe code, and each length up to 64 KiB takes minutes",
    ),
    (
        "pcap",
        "minutes, too; captures are tested in the crate itself",
    ),
    (
        "packet_with_long_frames",
        "minutes, too; other lengths are tested by packet",
    ),
    (
        "tun_and_tap_with_long_packets",
        "minutes, too; other lengths are tested by tun and tap",
    ),
    (
        "what_a_killed_process_left_is_put_right",
        "it forgets what it holds, as a process does that is killed",
    ),
];

/// Code that no test here reaches, with the reason.
const NOT_REACHED: [(&str, &str); 1] = [(
    "io/src/dpdk",
    "its library and drivers are not made for valgrind, which has neither their huge pages nor all their instructions",
)];

/// Builds the tests and runs each program under valgrind, ignored tests too where this is root.
pub(crate) fn run() -> Result<()> {
    install()?;
    let is_root = nix::unistd::geteuid().is_root();
    for (name, why) in LEFT_OUT.iter().chain(&NOT_REACHED) {
        eprintln!("==> left out: {name}: {why}");
    }
    if !is_root {
        eprintln!(
            "==> left out, since it needs root: all that opens sockets and devices in a network namespace"
        );
    }
    let programs = programs()?;
    ensure!(!programs.is_empty(), "cargo has built no test");
    let suppressions = format!(
        "--suppressions={}/xtask/src/memcheck.supp",
        root().display()
    );
    let mut failed = Vec::new();
    for Program { path, directory } in &programs {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("==> valgrind {name}");
        let mut command = Command::new("valgrind");
        command
            .args(OPTIONS)
            .arg(&suppressions)
            .arg(path)
            .args(["--test-threads=1", "--exact"])
            .current_dir(directory);
        if is_root {
            command.arg("--include-ignored");
        }
        for (test, _) in LEFT_OUT {
            command.args(["--skip", test]);
        }
        let ended = command.status().context("cannot start valgrind")?;
        if !ended.success() {
            failed.push(format!("{name}: {ended}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Installs valgrind where it is not, which needs root.
fn install() -> Result<()> {
    let answers = || {
        Command::new("valgrind")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !answers() {
        Command::new(root().join("lab/install-tools")).status()?;
    }
    ensure!(
        answers(),
        "valgrind is not installed: apt-get install valgrind"
    );
    Ok(())
}

/// A program of tests.
struct Program {
    path: PathBuf,
    /// Its package's, in which cargo runs it.
    directory: PathBuf,
}

/// Builds the tests of [`CRATES`].
fn programs() -> Result<Vec<Program>> {
    let build = ["test", "--no-run", "--lib", "--tests", "--locked"];
    let arguments = [&build[..], &CRATES, &["--message-format", "json"]].concat();
    eprintln!("==> cargo {}", arguments.join(" "));
    let output = cargo_command()
        .args(&arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo {}: {}",
        arguments.join(" "),
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(program).collect())
}

/// The program of a message that says that one was built.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let is_test = message["profile"]["test"].as_bool()?;
    is_test.then(|| Program {
        path: path.into(),
        directory: manifest.parent().map_or_else(PathBuf::new, Path::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_cargo_has_built_for_tests() {
        fn check(message: &str, expected: Option<[&str; 2]>) {
            let found = program(message).map(|p| [p.path, p.directory]);
            assert_eq!(found, expected.map(|e| e.map(PathBuf::from)), "{message}");
        }
        check(
            r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","executable":"/t/x","profile":{"test":true}}"#,
            Some(["/t/x", "/a"]),
        );
        check(
            r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","executable":"/t/x","profile":{"test":false}}"#,
            None,
        );
        check(
            r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","executable":null,"profile":{"test":true}}"#,
            None,
        );
        check("warning: not JSON", None);
    }
}
