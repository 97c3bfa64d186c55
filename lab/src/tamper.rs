//! What disks and clocks do to one process: a preloaded library (`preload/tamper.c`) that makes its syncs slow or fail and
//! sets its wall clock, as told while it runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::tool;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/preload/tamper.c");

/// Positions of the words that the library reads.
const SYNC_ERROR: u64 = 0;
const SYNC_DELAY_MS: u64 = 1;
const CLOCK_OFFSET_S: u64 = 2;

/// The library, built, and what it is told.
#[derive(Debug)]
pub struct Tamper {
    library: PathBuf,
    control: PathBuf,
    file: File,
}

impl Tamper {
    /// Builds the library, for a process whose files here are called `path` with an ending. It changes nothing yet.
    ///
    /// # Errors
    /// When there is no C compiler, or it refuses.
    pub fn build(path: &Path) -> Result<Tamper> {
        tool::require(&["cc"])?;
        let (library, control) = (
            path.with_extension("tamper.so"),
            path.with_extension("tamper"),
        );
        let flags = [
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
        ];
        tool::run(
            Command::new("cc")
                .args(flags)
                .arg(&library)
                .args([SOURCE, "-ldl"]),
        )?;
        let file = File::create(&control).with_context(|| format!("{}", control.display()))?;
        file.set_len(24)?;
        Ok(Tamper {
            library,
            control,
            file,
        })
    }

    /// Makes `command` load the library, besides what it is to load already.
    pub fn preload(&self, command: &mut Command) {
        let others = command
            .get_envs()
            .find_map(|(name, value)| value.filter(|_| name == "LD_PRELOAD"))
            .map(std::ffi::OsStr::to_owned);
        let mut libraries = self.library.clone().into_os_string();
        if let Some(others) = others {
            libraries.push(":");
            libraries.push(others);
        }
        command
            .env("LD_PRELOAD", libraries)
            .env("NWK_TAMPER", &self.control);
    }

    /// From now on every sync fails with this error, or none does.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn fail_syncs(&self, error: Option<Errno>) -> Result<()> {
        self.tell(SYNC_ERROR, error.map_or(0, |error| error as i64))
    }

    /// From now on every sync takes this much longer.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn delay_syncs(&self, delay: Duration) -> Result<()> {
        self.tell(SYNC_DELAY_MS, i64::try_from(delay.as_millis())?)
    }

    /// From now on the wall clock is off by this many seconds.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn set_clock(&self, offset_s: i64) -> Result<()> {
        self.tell(CLOCK_OFFSET_S, offset_s)
    }

    /// Everything as it really is.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn stop(&self) -> Result<()> {
        self.fail_syncs(None)?;
        self.delay_syncs(Duration::ZERO)?;
        self.set_clock(0)
    }

    fn tell(&self, word: u64, value: i64) -> Result<()> {
        Ok(self.file.write_all_at(&value.to_ne_bytes(), 8 * word)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn syncs_and_clock_are_as_told() {
        let dir = std::env::temp_dir().join(format!("tamper-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let tamper = Tamper::build(&dir.join("process")).unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            tamper.preload(command.args(["-c", script]).current_dir(&dir));
            tool::run(&mut command)
        };
        let sync = "printf x | dd of=f conv=fsync status=none";
        shell(sync).unwrap();
        tamper.fail_syncs(Some(Errno::EIO)).unwrap();
        shell(sync).unwrap_err();
        tamper.fail_syncs(None).unwrap();
        tamper.delay_syncs(Duration::from_millis(300)).unwrap();
        let begin = Instant::now();
        shell(sync).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        let year = || shell("date +%Y").unwrap().trim().parse::<i64>().unwrap();
        let now = year();
        tamper.set_clock(-3 * 366 * 86_400).unwrap();
        assert!((now - 4..=now - 3).contains(&year()));
        tamper.stop().unwrap();
        assert!((now..=now + 1).contains(&year()));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
