//! `cargo xtask test`: every test of the workspace. Those marked ignored need root and network namespaces.

use std::process::Stdio;

use anyhow::{Result, ensure};

use crate::{cargo, cargo_command, dpdk};

const WORKSPACE: [&str; 4] = ["--workspace", "--lib", "--bins", "--tests"];

/// Builds everything once, the binary that the lab starts included, and runs the tests, the runner's summary last.
pub(crate) fn run() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let ci = std::env::var_os("CI").is_some();
    ensure!(
        root || !ci,
        "CI is set and this is not root: the tests that need it cannot run, which is a failure here"
    );
    // One build for all: with the DPDK backend where it can be.
    let with_dpdk = dpdk::is_installed()?;
    let features: &[&str] = if with_dpdk { &dpdk::FEATURES } else { &[] };
    let program = std::env::current_exe()?.with_file_name("neuwerk");
    let program = program.to_str().filter(|_| with_dpdk);
    let environment: Vec<(&str, &str)> = program
        .iter()
        .map(|path| ("NEUWERK_DPDK_BIN", *path))
        .collect();
    let build = ["build", "--workspace", "--lib", "--bins", "--tests"];
    cargo(&[&build[..], features].concat(), &[])?;
    let documentation = ["test", "--workspace", "--doc", "--quiet"];
    cargo(&[&documentation[..], features].concat(), &[])?;
    if !root {
        eprintln!(
            "==> left out, since it needs root: the lab's scenarios with real nodes in network namespaces, and the \
             tests of packet sockets, TUN devices and held interfaces"
        );
    }
    if has_nextest()? {
        let ignored: &[&str] = if root { &["--run-ignored", "all"] } else { &[] };
        return cargo(
            &[&["nextest", "run"], &WORKSPACE[..], features, ignored].concat(),
            &environment,
        );
    }
    let test = [&["test"], &WORKSPACE[..], features].concat();
    let test = [&test[..], &["--no-fail-fast", "--"]].concat();
    cargo(&test, &[])?;
    if root {
        // One at a time: the scenarios start several nodes each and watch their timing.
        cargo(
            &[&test[..], &["--ignored", "--test-threads=1"]].concat(),
            &environment,
        )?;
    }
    Ok(())
}

/// Whether cargo-nextest is installed.
pub(crate) fn has_nextest() -> Result<bool> {
    let version = cargo_command()
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(version.success())
}
