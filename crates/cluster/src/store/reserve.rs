//! Space set aside on the file system of the log: given up when the rest is full, so that votes and membership still fit.
//!
//! Proposals are refused long before ([`NodeConfig::reserve_bytes`](crate::NodeConfig::reserve_bytes)), but others write
//! to the same disk. Once there is room again it is set aside again.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::durable::PRIVATE;

/// Bytes set aside.
pub const RESERVE_BYTES: u64 = 32 * 1024 * 1024;

/// It is given up when less than this is free: a few commits.
const GIVE_UP_BELOW: u64 = 4 * 1024 * 1024;

/// It is set aside when this much is free besides: enough to take proposals.
const SET_ASIDE_ABOVE: u64 = 96 * 1024 * 1024;

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    SetAside,
    GiveUp,
    Nothing,
}

fn step(free: u64, there: bool) -> Step {
    match there {
        true if free < GIVE_UP_BELOW => Step::GiveUp,
        false if free > SET_ASIDE_ABOVE + RESERVE_BYTES => Step::SetAside,
        _ => Step::Nothing,
    }
}

/// The reserve of one data directory.
#[derive(Debug)]
pub struct Reserve {
    directory: PathBuf,
}

impl Reserve {
    /// The reserve in `data_dir`. Nothing is done yet.
    pub fn new(data_dir: &Path) -> Self {
        Reserve {
            directory: data_dir.to_owned(),
        }
    }

    /// Sets space aside, or gives it up, as the free space demands.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn keep(&self) -> io::Result<()> {
        let stat = statvfs(&self.directory)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let path = self.directory.join("reserve");
        match step(free, path.exists()) {
            Step::Nothing => Ok(()),
            Step::GiveUp => {
                tracing::warn!(
                    free,
                    directory = %self.directory.display(),
                    "the disk is full: the reserve is given up, and changes are refused until there is room"
                );
                std::fs::remove_file(path)
            }
            Step::SetAside => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(PRIVATE)
                    .open(&path)?;
                fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(|error| {
                    // Half a reserve would be taken for a whole one.
                    let _ = std::fs::remove_file(&path);
                    io::Error::from(error)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_set_aside_only_where_there_is_plenty() {
        const MIB: u64 = 1024 * 1024;
        for (free, there, expected) in [
            (1000 * MIB, false, Step::SetAside),
            (1000 * MIB, true, Step::Nothing),
            (100 * MIB, false, Step::Nothing),
            (100 * MIB, true, Step::Nothing),
            (5 * MIB, true, Step::Nothing),
            (3 * MIB, true, Step::GiveUp),
            (0, true, Step::GiveUp),
            (0, false, Step::Nothing),
            // What was given up is not taken back at once.
            (RESERVE_BYTES, false, Step::Nothing),
        ] {
            assert_eq!(step(free, there), expected, "{free} {there}");
        }
    }
}
