//! `cargo xtask test`: every test of the workspace. Those marked ignored need root and network namespaces.

use std::process::Stdio;

use anyhow::{Result, ensure};

use crate::{cargo, cargo_command};

/// Builds everything once, the binary that the lab starts included, and runs the tests, the runner's summary last.
pub(crate) fn run() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let ci = std::env::var_os("CI").is_some();
    ensure!(
        root || !ci,
        "CI is set and this is not root: the lab's scenarios cannot run, which is a failure here"
    );
    cargo(&["build", "--workspace", "--lib", "--bins", "--tests"], &[])?;
    cargo(&["test", "--workspace", "--doc", "--quiet"], &[])?;
    if !root {
        eprintln!(
            "==> left out: the lab's scenarios with real nodes in network namespaces, which need root"
        );
    }
    let nextest = cargo_command()
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match (nextest.success(), root) {
        (true, true) => cargo(
            &[
                "nextest",
                "run",
                "--workspace",
                "--lib",
                "--bins",
                "--tests",
                "--run-ignored",
                "all",
            ],
            &[],
        ),
        (true, false) => cargo(
            &[
                "nextest",
                "run",
                "--workspace",
                "--lib",
                "--bins",
                "--tests",
            ],
            &[],
        ),
        (false, _) => {
            let mut arguments = vec![
                "test",
                "--workspace",
                "--lib",
                "--bins",
                "--tests",
                "--no-fail-fast",
                "--",
            ];
            if root {
                // One at a time: the scenarios start several nodes each and watch their timing.
                arguments.extend(["--include-ignored", "--test-threads=1"]);
            }
            cargo(&arguments, &[])
        }
    }
}
