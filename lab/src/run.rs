//! One run of the lab: the prefix that its namespaces and files share, and the removal of what a killed run left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::tool;

/// Where `ip netns` keeps the names of namespaces.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "nwk-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A run of the lab. Its directory goes when the last user of the run is dropped.
#[derive(Debug)]
pub struct Run {
    prefix: String,
    dir: PathBuf,
}

impl Run {
    /// Begins a run: removes what killed runs left behind, and makes a directory for this one.
    ///
    /// # Errors
    /// Without root, or when a tool that the lab calls is missing: the message says how to go on.
    pub fn begin() -> Result<Arc<Run>> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces and needs root: sudo make test"
        );
        tool::require(&["ip", "nft", "ping", "curl"])?;
        remove_leftovers();
        let prefix = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Arc::new(Run { prefix, dir }))
    }

    /// The full name of a namespace of this run.
    #[must_use]
    pub fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    /// The run's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends the processes of a namespace and deletes it. What is gone already is no error: two runs may clean at once.
pub(crate) fn remove_namespace(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        let pids = String::from_utf8_lossy(&output.stdout);
        for pid in pids
            .split_whitespace()
            .filter_map(|pid| pid.parse::<i32>().ok())
        {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes what runs have made whose process is gone, and ends every process that they left.
pub fn remove_leftovers() {
    for name in entries(Path::new(NAMES))
        .iter()
        .filter(|name| is_leftover(name, is_alive))
    {
        remove_namespace(name);
    }
    let temp = std::env::temp_dir();
    for name in entries(&temp)
        .iter()
        .filter(|name| is_leftover(name, is_alive))
    {
        unmount_below(&temp.join(name));
        let _ = fs::remove_dir_all(temp.join(name));
    }
}

/// Takes down the file systems that a killed run left mounted in its directory.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.map(Path::new).filter(|point| point.starts_with(dir)) {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(read) = fs::read_dir(dir) else {
        return Vec::new();
    };
    read.flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Whether `name` was made by a run whose process is gone.
fn is_leftover(name: &str, alive: impl Fn(u32) -> bool) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| !alive(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_run_named_is_a_leftover() {
        check("nwk-17-0-client", true);
        check("nwk-17-3-node2", true);
        check("nwk-17", true);
        check("nwk-18-0-client", false);
        check("nwk-x-0-client", false);
        check("nwk-", false);
        check("web", false);
        check("my-nwk-17-0", false);
    }

    fn check(name: &str, leftover: bool) {
        assert_eq!(is_leftover(name, |pid| pid == 18), leftover, "{name}");
    }
}
