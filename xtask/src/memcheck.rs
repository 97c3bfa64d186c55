//! `cargo xtask memcheck`: the tests of the two crates that may have unsafe code, under valgrind, which sees accesses to
//! memory that is not there, decisions by bytes that were never written, and memory that nobody frees; and then once more,
//! to see that they come by all unsafe code there is. That each unsafe block says why it is sound is a lint of
//! `cargo xtask ci`.

mod reached;
mod sites;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use reached::Executed;
use sites::{Kind, Site};

use crate::{cargo_command, dpdk, root};

/// Those with unsafe code.
const CRATES: [&str; 4] = ["-p", "mem", "-p", "io"];

/// What is an error, and that one fails the run.
const OPTIONS: [&str; 8] = [
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite",
    "--show-leak-kinds=definite",
    // Else a thread that polls may keep the others, which it waits for, from running.
    "--fair-sched=yes",
    // The places that suppressions name lie deep.
    "--num-callers=40",
    // A child is another program, or becomes one at once.
    "--child-silent-after-fork=yes",
];

/// Tests by name that are left out, each with the reason.
const LEFT_OUT: [(&str, &str); 5] = [
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
];

/// Where there is unsafe code.
const DIRECTORIES: [&str; 2] = ["crates/mem/src", "crates/io/src"];

/// Unsafe code that no test reaches, by file and by words in its lines, with the reason.
const NOT_REACHED: [(&str, &str, &str); 1] = [(
    "crates/io/src/dpdk.rs",
    "nw_interrupt_disarm",
    "only cards have interrupts that are switched on and off",
)];

/// Builds the tests and runs each program under valgrind, ignored tests too where this is root; and sees that they reach
/// all unsafe code. With `lines` does that alone.
pub(crate) fn run(lines: bool) -> Result<()> {
    install()?;
    let is_root = nix::unistd::geteuid().is_root();
    let with_dpdk = dpdk::is_installed()?;
    for (name, why) in LEFT_OUT {
        eprintln!("==> left out: {name}: {why}");
    }
    if !is_root {
        eprintln!(
            "==> left out, since it needs root: all that opens sockets and devices in a network namespace"
        );
    }
    let programs = programs(with_dpdk)?;
    ensure!(!programs.is_empty(), "cargo has built no test");
    let suppressions = format!(
        "--suppressions={}/xtask/src/memcheck.supp",
        root().display()
    );
    if !lines {
        let options: Vec<OsString> = OPTIONS.iter().map(OsString::from).collect();
        let options = [options, vec![suppressions.into()]].concat();
        watch(&programs, &options, is_root)?;
    }
    if !is_root || !with_dpdk {
        eprintln!("==> left out: whether all unsafe code is reached, which takes root and DPDK");
        return Ok(());
    }
    see_lines(&programs)
}

/// Runs the tests under valgrind, with these options; all of them, whatever the first do.
fn watch(programs: &[Program], options: &[OsString], is_root: bool) -> Result<()> {
    let mut failed = Vec::new();
    for Program { path, directory } in programs {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("==> valgrind {name}");
        let mut command = Command::new("valgrind");
        command
            .args(options)
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

/// Runs the tests once more and sees whether they come by all unsafe code.
fn see_lines(programs: &[Program]) -> Result<()> {
    let sites: Vec<Vec<Site>> = DIRECTORIES
        .iter()
        .map(|directory| sites::of_directory(root(), directory))
        .collect::<Result<_>>()?;
    let sites = sites.concat();
    let directory = tempfile::tempdir()?;
    let mut options: Vec<OsString> = reached::OPTIONS.iter().map(OsString::from).collect();
    options.push(reached::output(directory.path()));
    watch(programs, &options, true)?;
    let executed = Executed::read(directory.path())?;
    let mut missing = Vec::new();
    for site in reached::missing(&sites, &executed) {
        match not_reached(site)? {
            Some(why) => eprintln!("==> not reached: {site}: {why}"),
            None => missing.push(site.to_string()),
        }
    }
    let code = sites.iter().filter(|site| site.kind == Kind::Code).count();
    ensure!(
        missing.is_empty(),
        "unsafe code that no test under valgrind reaches:\n{}",
        missing.join("\n")
    );
    eprintln!(
        "==> {code} places with unsafe code, and {} that declare something",
        sites.len() - code
    );
    Ok(())
}

/// Why a site need not be reached, if so.
fn not_reached(site: &Site) -> Result<Option<&'static str>> {
    let text = std::fs::read_to_string(root().join(&site.file))?;
    let (first, last) = site.lines;
    let lines: Vec<&str> = text
        .lines()
        .skip(first - 1)
        .take(last + 1 - first)
        .collect();
    let found = NOT_REACHED.iter().find(|(file, words, _)| {
        site.file.ends_with(file) && lines.iter().any(|line| line.contains(words))
    });
    Ok(found.map(|(_, _, why)| *why))
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
fn programs(with_dpdk: bool) -> Result<Vec<Program>> {
    let build = ["test", "--no-run", "--lib", "--tests", "--locked"];
    let features: &[&str] = if with_dpdk {
        &["--features", "io/dpdk"]
    } else {
        &[]
    };
    let arguments = [&build[..], &CRATES, features, &["--message-format", "json"]].concat();
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
