//! The system's programs that the lab calls: are they there, and running one to its end.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// Program and the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("traceroute", "traceroute"),
    ("iperf3", "iperf3"),
    ("ethtool", "ethtool"),
    ("dnsmasq", "dnsmasq-base"),
    ("dig", "bind9-dnsutils"),
    ("unbound", "unbound"),
    ("cc", "gcc"),
    ("musl-gcc", "musl-tools"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("vsftpd", "vsftpd"),
    ("gtlsclient", "ngtcp2-client"),
    ("gtlsserver", "ngtcp2-server"),
];

/// Checks that the programs are on the path.
///
/// # Errors
/// Names what is missing and the command that installs it.
pub fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| find(program).is_none())
        .collect();
    let packages: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| missing.contains(program))
        .map(|&(_, package)| package)
        .collect();
    ensure!(
        missing.is_empty(),
        "not installed: {}; apt-get install {}",
        missing.join(", "),
        packages.join(" ")
    );
    Ok(())
}

/// Where a program is. The administrator's directories are searched too: they are often missing from a user's path.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or ends with another status than 0: with the command and what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, printed(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Standard output and standard error of a finished command.
#[must_use]
pub fn printed(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
