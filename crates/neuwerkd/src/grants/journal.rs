//! Grants on disk, so that a node that starts lets through what clients have resolved before.
//!
//! A file of sections as in [`handover::format`](crate::handover::format); each has the machine's boot id, the time since
//! boot, and claims with the life that they had then. New claims are appended; when there are many, all that is held is
//! written anew. Nothing is synced: what a crash of the machine costs, peers bring back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use grants::stream::{self, Body, Change};

use super::{Grants, now_ms};
use crate::handover::format::{self, Section, Writer};

const FILE: &str = "grants";
const SECTION: &str = "claims";
const VERSION: u16 = 1;
/// Length of a boot's id.
const BOOT_BYTES: usize = 36;
/// Claims or names in a section.
const CHUNK: usize = 1_024;
/// How much is appended before everything is written anew, in bytes, beside as much as that was.
const APPENDED_BYTES: u64 = 1 << 20;

/// The file.
pub(super) struct Journal {
    path: PathBuf,
    boot: String,
    /// None: everything is to be written anew.
    file: Option<Writer<File>>,
    /// The place in the stream up to which it has everything.
    place: u64,
    /// What has been appended since everything was written, and what that was.
    appended_bytes: u64,
    whole_bytes: u64,
    told: bool,
}

impl Journal {
    /// Reads what is there; each batch goes to `restore`, with the time that has passed since it was written, as far as
    /// that is known.
    pub(super) fn open(data_dir: &Path, mut restore: impl FnMut(Vec<Change>, u64)) -> Self {
        let boot = crate::handover::boot_id().unwrap_or_default();
        let journal = Self {
            path: data_dir.join(FILE),
            file: None,
            place: 0,
            appended_bytes: 0,
            whole_bytes: 0,
            told: false,
            boot,
        };
        match File::open(&journal.path) {
            Ok(file) => {
                let read = format::read(io::BufReader::new(file), |section| {
                    if let Some((changes, elapsed_ms)) = journal.parse(&section) {
                        restore(changes, elapsed_ms);
                    }
                });
                if let Err(error) = read {
                    tracing::warn!(%error, "what clients have resolved before cannot be read");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "what clients have resolved before cannot be read");
            }
        }
        journal
    }

    fn parse(&self, section: &Section<'_>) -> Option<(Vec<Change>, u64)> {
        let Section::Sound {
            name: SECTION,
            version: VERSION,
            payload,
        } = section
        else {
            // The last one may have been cut off.
            return None;
        };
        let (boot, rest) = payload.split_at_checked(BOOT_BYTES)?;
        let (written, changes) = rest.split_first_chunk()?;
        let written_ms = u64::from_le_bytes(*written);
        let elapsed_ms = match boot == self.boot.as_bytes() {
            true => now_ms().saturating_sub(written_ms),
            false => 0,
        };
        let changes = stream::decode_changes(changes).ok()?;
        Some((changes, elapsed_ms))
    }

    /// Appends what is new; or writes everything.
    pub(super) fn write_down(&mut self, grants: &Grants, all: bool) {
        let grown = self.appended_bytes > self.whole_bytes + APPENDED_BYTES;
        let written = match all || grown || self.file.is_none() {
            true => self.write_all(grants),
            false => self.append(grants),
        };
        match written {
            Ok(()) => self.told = false,
            Err(error) => {
                self.file = None;
                // A full disk has better use for the room.
                let _ = std::fs::remove_file(self.path.with_extension("new"));
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(%error, "what clients have resolved cannot be written down");
                }
            }
        }
    }

    fn append(&mut self, grants: &Grants) -> io::Result<()> {
        loop {
            let place = self.place.max(1);
            let changes = grants.read(|store, now_ms| {
                let push = store.changes_from(place, CHUNK, now_ms)?;
                let Body::Changes { changes, .. } = push.body else {
                    return None;
                };
                Some((changes.len(), store.with_others(changes, now_ms)))
            });
            let Some((count, changes)) = changes else {
                return self.write_all(grants);
            };
            if count == 0 {
                return Ok(());
            }
            self.place = place + count as u64;
            self.appended_bytes += self.section(&changes)?;
        }
    }

    fn write_all(&mut self, grants: &Grants) -> io::Result<()> {
        let place = grants.read(|store, _now_ms| store.next_place());
        let is_empty = grants.read(|store, _now_ms| store.is_empty());
        if is_empty && !self.path.exists() {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        // Whom clients talk to is nobody else's business.
        let file = options.mode(0o600).open(&new)?;
        self.file = Some(Writer::new(file)?);
        let mut bytes = 0;
        let mut from = Some(0);
        while let Some(at) = from {
            let (changes, then) = grants.read(|store, now_ms| store.kept(at, CHUNK, now_ms));
            bytes += self.section(&changes)?;
            from = then;
        }
        std::fs::rename(&new, &self.path)?;
        (self.place, self.whole_bytes, self.appended_bytes) = (place, bytes, 0);
        Ok(())
    }

    fn section(&mut self, changes: &[Change]) -> io::Result<u64> {
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        if changes.is_empty() {
            return Ok(0);
        }
        let mut payload = self.boot.as_bytes().to_vec();
        payload.resize(BOOT_BYTES, 0);
        payload.extend_from_slice(&now_ms().to_le_bytes());
        payload.extend_from_slice(&stream::encode_changes(changes));
        file.section(SECTION, VERSION, &payload)?;
        Ok(payload.len() as u64)
    }
}
