//! What outlives the process at a planned restart: flow state, listening sockets and data ports, handed to the program that takes
//! its place.
//!
//! The process replaces itself (`execve(2)`), so that its id and its supervisor's view of it stay. Descriptors stay open
//! across that under names, which [`VARIABLE`] tells; `state` is a sealed memfd of sections ([`mod@format`]), every other one
//! a listening socket, or a data port's queue, in which frames wait meanwhile. A part of the node that has something to hand over writes a section of its own, or leaves a
//! descriptor under a name of its own. Nothing that comes this way can keep the node from starting.

pub mod format;
mod report;
mod sockets;

use std::ffi::OsString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use engine::acquire::Held;
use engine::port::Port;
use engine::{FLOWS_VERSION, Imported, Now, Worker};
use io::kept::Kept;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

use crate::dataplane::monotonic;
use format::{Section, Writer};
pub use report::Report;
pub use sockets::{Listening, Sockets};

/// Names the descriptors that the program is started with: the process id for which this is meant, then `NAME=NUMBER`,
/// all separated by spaces.
pub const VARIABLE: &str = "NEUWERK_HANDOVER";

/// The descriptor of the sections.
const STATE: &str = "state";

/// Section: when and by which version this was written. Version 1: nanoseconds of the monotonic clock (`u64`,
/// little-endian), 36 bytes of the boot's id, the version in the rest.
const ORIGIN: &str = "origin";
const ORIGIN_VERSION: u16 = 1;
/// Section: a chunk of flows, as the engine writes it.
const FLOWS: &str = "flows";

/// Section: the seed of the packet workers, a `u64`. While it and their number stay, each flow stays with its worker.
const SEED: &str = "seed";
const SEED_VERSION: u16 = 1;
/// Section: what the data ports have of addresses that they got by themselves, a list in JSON.
const ADDRESSES: &str = "addresses";
const ADDRESSES_VERSION: u16 = 1;

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// How long the check of the configuration may take.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// What this process was started with.
pub struct Received {
    state: Option<State>,
    /// The listening sockets.
    pub sockets: Sockets,
    /// The ports that packets come from.
    pub ports: Kept,
    report: Mutex<Report>,
}

struct State {
    file: File,
    written: Now,
}

impl Received {
    /// Takes what the process before this one left, if there was one that did. To be called once, before anything is
    /// opened.
    pub fn take() -> Self {
        let named = std::env::var(VARIABLE).unwrap_or_default();
        let mut fds = io::inherited::take(&named);
        let mut report = Report::default();
        let state = fds.remove(STATE).and_then(|fd| match State::open(fd) {
            Ok(state) => Some(state),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the state of the process before this one is lost");
                report.lost += 1;
                None
            }
        });
        Self {
            state,
            ports: Kept::take(&mut fds),
            sockets: Sockets::new(fds),
            report: Mutex::new(report),
        }
    }

    /// Nothing.
    pub fn nothing() -> Self {
        Self {
            state: None,
            sockets: Sockets::new(Default::default()),
            ports: Kept::default(),
            report: Mutex::default(),
        }
    }

    /// The seed of the packet workers before, if they left one.
    pub(crate) fn seed(&self) -> Option<u64> {
        self.state.as_ref()?.seed()
    }

    /// What the data ports had of addresses that they got by themselves.
    pub(crate) fn addresses(&self) -> Vec<Held> {
        let payload = self
            .state
            .as_ref()
            .and_then(|state| state.payload(ADDRESSES, ADDRESSES_VERSION));
        let Some(payload) = payload else {
            return Vec::new();
        };
        serde_json::from_slice(&payload).unwrap_or_else(|error| {
            tracing::error!(%error, "the addresses that the process before this one had are lost");
            self.report
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .damaged += 1;
            Vec::new()
        })
    }

    /// Gives a worker that has not turned yet the flows that are its own. `is_first` on one of them: what concerns no
    /// worker is counted and said once.
    pub(crate) fn give<P: Port, L: Port>(&self, worker: &mut Worker<P, L>, is_first: bool) {
        let Some(state) = &self.state else { return };
        let mut report = Report::default();
        let elapsed = Duration::from_nanos(monotonic().0.saturating_sub(state.written.0));
        let outcome = state.sections(|section| match section {
            Section::Sound {
                name: FLOWS,
                version: FLOWS_VERSION,
                payload,
            } => match worker.import_flows(monotonic(), elapsed, payload) {
                Ok(imported) => {
                    report.taken += 1;
                    report.flows += imported;
                }
                Err(error) => {
                    tracing::error!(%error, "flows of the process before this one are lost");
                    report.damaged += 1;
                }
            },
            other => report.note(&other),
        });
        if let Err(error) = outcome {
            tracing::error!(%error, "the state of the process before this one cannot be read to its end");
            report.lost += 1;
        }
        let mut sum = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        sum.flows += report.flows;
        if is_first {
            report.flows = Imported::default();
            sum.add_sections(&report);
        }
    }

    /// What became of it; to be said once all workers have what is theirs.
    pub fn report(&self) -> Report {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what became of it.
    pub fn tell(&self) {
        if self.state.is_some() {
            let flows = self.report().flows;
            tracing::info!(
                taken = flows.taken,
                expired = flows.expired,
                refused = flows.refused,
                "flows of the process before this one are taken over"
            );
        }
    }
}

impl State {
    fn open(fd: OwnedFd) -> anyhow::Result<Self> {
        let file = File::from(fd);
        let seals = fcntl_get_seals(&file).context("it is not in a sealed memory file")?;
        ensure!(seals.contains(SEALS), "its memory file is not sealed");
        let owner = file.metadata()?.uid();
        let own = rustix::process::geteuid().as_raw();
        ensure!(
            owner == own || owner == 0,
            "its memory file belongs to user {owner}"
        );
        let mut state = Self {
            file,
            written: Now(0),
        };
        let mut origin = None;
        state.sections(|section| {
            if let Section::Sound {
                name: ORIGIN,
                version: ORIGIN_VERSION,
                payload,
            } = section
                && origin.is_none()
            {
                origin = Origin::parse(payload);
            }
        })?;
        let origin = origin.context("it does not say when it was written")?;
        ensure!(
            origin.boot == boot_id()?,
            "it was written before this machine was started"
        );
        tracing::info!(
            version = origin.version,
            "taking over from the process before"
        );
        state.written = origin.written;
        Ok(state)
    }

    fn seed(&self) -> Option<u64> {
        let payload = self.payload(SEED, SEED_VERSION)?;
        payload.try_into().ok().map(u64::from_le_bytes)
    }

    /// The payload of the last section of this name, if it has this version.
    fn payload(&self, of: &str, in_version: u16) -> Option<Vec<u8>> {
        let mut found = None;
        let read = self.sections(|section| {
            if let Section::Sound {
                name,
                version,
                payload,
            } = section
                && (name, version) == (of, in_version)
            {
                found = Some(payload.to_vec());
            }
        });
        // What is wrong with it is told when the flows are taken.
        read.ok().and(found)
    }

    fn sections(&self, take: impl FnMut(Section<'_>)) -> std::io::Result<()> {
        // A reader of its own: workers read at the same time, and a duplicate would share its place.
        format::read(At(&self.file, 0), take)
    }
}

/// Reads a file from a place of its own.
struct At<'a>(&'a File, u64);

impl std::io::Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = std::os::unix::fs::FileExt::read_at(self.0, bytes, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

struct Origin {
    written: Now,
    boot: String,
    version: String,
}

impl Origin {
    fn parse(payload: &[u8]) -> Option<Self> {
        let (written, rest) = payload.split_first_chunk()?;
        let (boot, version) = rest.split_at_checked(36)?;
        Some(Self {
            written: Now(u64::from_le_bytes(*written)),
            boot: String::from_utf8(boot.to_vec()).ok()?,
            version: String::from_utf8(version.to_vec()).ok()?,
        })
    }
}

/// What this process leaves: the sections are being written.
pub struct Leaving {
    writer: Writer<File>,
    now: Now,
}

impl Leaving {
    /// Begins, as of now, with the seed of the packet workers.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub fn begin(seed: u64) -> anyhow::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("neuwerk-handover", flags)?);
        let now = monotonic();
        let mut writer = Writer::new(file)?;
        let mut origin = now.0.to_le_bytes().to_vec();
        origin.extend(boot_id()?.bytes());
        origin.extend(env!("CARGO_PKG_VERSION").bytes());
        writer.section(ORIGIN, ORIGIN_VERSION, &origin)?;
        writer.section(SEED, SEED_VERSION, &seed.to_le_bytes())?;
        Ok(Self { writer, now })
    }

    /// Writes the flows of a worker that turns no more, and the addresses if it is the one that asks for them.
    pub(crate) fn take<P: Port, L: Port>(&mut self, worker: &Worker<P, L>) -> std::io::Result<()> {
        let held = worker.held_addresses();
        if !held.is_empty() {
            let payload = serde_json::to_vec(&held)?;
            self.writer
                .section(ADDRESSES, ADDRESSES_VERSION, &payload)?;
        }
        worker.export_flows(self.now, |chunk| {
            self.writer.section(FLOWS, FLOWS_VERSION, chunk)
        })
    }

    /// The finished state, which nobody can change any more.
    fn seal(self) -> anyhow::Result<OwnedFd> {
        let mut file = self.writer.into_inner();
        file.rewind()?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(file.into())
    }
}

/// The program as it was started, to be started again: what is installed under its name by now.
pub struct Successor {
    program: OsString,
    arguments: Vec<OsString>,
}

impl Successor {
    /// From this process's own command line.
    ///
    /// # Errors
    /// There is none.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let mut arguments = std::env::args_os();
        let program = arguments.next().context("the process has no name")?;
        let arguments = arguments.collect();
        Ok(Self { program, arguments })
    }

    /// Has the program look at its configuration, so that it is not started with one that it refuses.
    ///
    /// # Errors
    /// What the program says.
    pub async fn check(&self) -> anyhow::Result<()> {
        let mut check = tokio::process::Command::new(&self.program);
        check
            .args(&self.arguments)
            .arg("--check")
            .env_remove(VARIABLE)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        io::inherited::unmask(check.as_std_mut());
        let output = tokio::time::timeout(CHECK_LIMIT, check.output())
            .await
            .context("the check of the configuration takes too long")?
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("it refuses its configuration: {}", text.trim());
        }
        Ok(())
    }

    /// Puts the program in this process's place, with `state`, `sockets` and `ports`. Returns only if that fails.
    ///
    /// # Errors
    /// The program cannot be started, or a descriptor not be handed over.
    pub fn replace_this_process(
        &self,
        state: Option<Leaving>,
        sockets: &Sockets,
        ports: &Kept,
    ) -> anyhow::Result<std::convert::Infallible> {
        let state = state.map(Leaving::seal).transpose()?;
        let sockets = sockets.leave();
        // Not all that libraries open closes on exec, and what stays open keeps its memory and its devices.
        io::inherited::leave_none()?;
        let mut named = std::process::id().to_string();
        let mut hand = |name: &str, fd: BorrowedFd<'_>| -> anyhow::Result<()> {
            fcntl_setfd(fd, FdFlags::empty())?;
            named.push_str(&format!(" {name}={}", fd.as_raw_fd()));
            Ok(())
        };
        if let Some(state) = &state {
            hand(STATE, state.as_fd())?;
        }
        let ports = ports.leave();
        for (name, socket) in sockets
            .iter()
            .chain(ports.iter().map(|(name, fd)| (name, fd)))
        {
            hand(name, socket.as_fd())?;
        }
        let error = Command::new(&self.program)
            .args(&self.arguments)
            .env(VARIABLE, named)
            .exec();
        Err(error).with_context(|| format!("{} cannot be started", self.program.display()))
    }
}

/// Asks the node that runs as process `pid` to restart.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn ask(pid: i32) -> std::io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(std::io::ErrorKind::NotFound)?;
    Ok(kill_process(pid, Signal::USR2)?)
}

/// The id of this machine's boot.
pub(crate) fn boot_id() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
