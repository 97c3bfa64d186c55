//! The DPDK backend, which is built only with a feature, and only where DPDK is installed.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::cargo;

/// What turns it on in all crates that know of it.
pub(crate) const FEATURES: [&str; 2] = ["--features", "io/dpdk"];

/// Whether DPDK is installed; in CI it must be.
pub(crate) fn is_installed() -> Result<bool> {
    let found = Command::new("pkg-config")
        .args(["--exists", "libdpdk"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let ci = std::env::var_os("CI").is_some();
    ensure!(
        found || !ci,
        "CI is set and DPDK is not installed: apt-get install libdpdk-dev"
    );
    if !found {
        eprintln!("==> left out: the DPDK backend, for which libdpdk-dev is not installed");
    }
    Ok(found)
}

/// Runs its tests: those of `io` that begin with `dpdk`.
pub(crate) fn test() -> Result<()> {
    if !is_installed()? {
        return Ok(());
    }
    let nextest = crate::test::has_nextest()?;
    let runner: &[&str] = if nextest {
        &["nextest", "run"]
    } else {
        &["test"]
    };
    let drivers = ["--package", "io", "--lib", "--test", "conformance"];
    let named = ["--features", "dpdk", "dpdk"];
    cargo(&[runner, &drivers, &named].concat(), &[])
}
