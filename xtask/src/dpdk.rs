//! The DPDK backend, which is built only with a feature, and only where DPDK is installed.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

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
