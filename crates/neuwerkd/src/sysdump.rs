//! Support archives: what a node knows about itself, packed for somebody who cannot log in to it.
//!
//! An archive holds only what is put in by name: typed views of the state, which have no field for a secret; named
//! files that are public; the settings by their keys; named facts of the host. Files that hold secrets are listed and
//! never opened. What others wrote as free text (the log, commands) passes [`scrub`] besides, as a second line.
//!
//! It needs neither a leader nor, on the command line, a running daemon; and it is bounded in bytes and in time, with
//! what was left out listed in its manifest.

mod archive;
mod host;
pub mod member;
mod scrub;
mod summary;

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::config::RecentLog;
use crate::http::App;
use archive::Archive;
use scrub::Scrub;

/// What one node's archive may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all content, before compression.
    pub bytes: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// For collecting everything.
    pub time: Duration,
    /// For one command.
    pub command_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 * 1024 * 1024,
            file_bytes: 8 * 1024 * 1024,
            time: Duration::from_secs(30),
            command_time: Duration::from_secs(5),
        }
    }
}

/// What a node's archive is made from.
#[derive(Clone, Default)]
pub struct Source {
    /// The configuration in force; none where it cannot be read.
    pub config: Option<Arc<Config>>,
    /// The running daemon; none on the command line beside a stopped one.
    pub app: Option<Arc<App>>,
    /// What the daemon logged last.
    pub log: Option<RecentLog>,
}

/// The last file of an archive: what it is, and what is not in it.
#[derive(Serialize)]
struct Manifest<'a> {
    product: &'static str,
    version: &'static str,
    made_at: String,
    node_id: Option<String>,
    daemon_runs: bool,
    files: &'a [archive::Entry],
    left_out: &'a [archive::LeftOut],
    bytes: u64,
    limit_bytes: u64,
}

/// Collects one node's archive into an unnamed temporary file, which is at its beginning again. Blocks.
///
/// # Errors
/// The temporary file cannot be made or written.
pub fn collect(source: &Source, limits: Limits) -> io::Result<File> {
    let mut archive = Archive::new(tempfile::tempfile()?, limits, Instant::now());
    let scrub = Scrub::new(source.config.as_deref());
    summary::add(source, &mut archive)?;
    if let Some(log) = &source.log {
        archive.text("log/recent.txt", &scrub.text(&log.lines()))?;
    }
    host::add(source.config.as_deref(), &scrub, &mut archive)?;
    let node = source.app.as_ref().and_then(|app| app.member());
    let manifest = serde_json::to_value(Manifest {
        product: "neuwerk",
        version: env!("CARGO_PKG_VERSION"),
        made_at: crate::http::rfc3339(crate::http::now_s() * 1_000),
        node_id: node.map(|node| node.node_id().to_string()),
        daemon_runs: source.app.is_some(),
        files: archive.entries(),
        left_out: archive.left_out(),
        bytes: archive.bytes(),
        limit_bytes: limits.bytes,
    })?;
    archive.last_json("summary/manifest.json", &manifest)?;
    let mut file = archive.finish()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
pub(crate) mod tests;
