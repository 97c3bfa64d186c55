//! The DPDK backend, which is built only with a feature, and only where DPDK is installed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// What turns it on in all crates that know of it.
pub(crate) const FEATURES: [&str; 2] = ["--features", "neuwerk/dpdk"];

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

/// Runs the tests of `io` that begin with `dpdk`, and returns a binary of the node that is built with it, for those of the
/// lab; none where DPDK is not installed.
pub(crate) fn test() -> Result<Option<PathBuf>> {
    if !is_installed()? {
        return Ok(None);
    }
    let nextest = crate::test::has_nextest()?;
    let runner: &[&str] = if nextest {
        &["nextest", "run"]
    } else {
        &["test"]
    };
    let drivers = ["--package", "io", "--lib", "--test", "conformance"];
    let named = ["--features", "dpdk", "dpdk"];
    cargo(&[runner, &drivers, &named].concat(), &[])?;
    // Chosen from the whole workspace, so that what it depends on is built as for the other tests.
    let build = ["build", "--workspace", "--bin", "neuwerk"];
    cargo(&[&build[..], &FEATURES].concat(), &[])?;
    // Out of the way of the usual one, which is built next.
    let own = std::env::current_exe()?;
    let built = own.with_file_name("neuwerk");
    let kept = own.with_file_name("neuwerk-dpdk");
    std::fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(Some(kept))
}
