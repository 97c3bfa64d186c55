//! The tables, and what is written in them.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use openraft::entry::RaftEntry;
use redb::backends::FileBackend;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::raft::{Entry, LogId, Vote};

/// Log entries by index.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// Single records by name.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FORMAT: &str = "format";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SCRUBBED: &str = "scrubbed";
/// There while the log is being fetched from the other members: until it has all that it once had.
const REFILLING: &str = "refilling";

/// Takes the place of free pages while they are overwritten.
const FILLER: TableDefinition<u64, &[u8]> = TableDefinition::new("filler");

/// Fills a page of redb's with what is around it, so that single free pages are reached.
const FILLER_BYTES: usize = 3 * 1024;

/// Fillings: pages that one transaction frees can be written after the next.
const FILLINGS: usize = 3;

/// Format written by this version.
const KNOWN_FORMAT: u64 = 1;

/// Bytes of the checksum before each record: the first half of a SHA-256.
const SUM_BYTES: usize = 16;

/// redb's page cache. Its own default is a gigabyte.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// A file smaller than this is not worth compacting.
const COMPACT_ABOVE: u64 = 32 * 1024 * 1024;

/// An open file. `None` once closed.
pub(super) struct Disk {
    database: RwLock<Option<Database>>,
    /// Its name, if it has one.
    path: Option<PathBuf>,
}

/// What the single records say, and the end of the log.
pub(super) struct Stored {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Index of the first entry; 0 if there is none.
    pub(super) first: u64,
    pub(super) last: Option<LogId>,
    /// Bytes of each entry's record.
    pub(super) sizes: VecDeque<u32>,
    pub(super) refilling: bool,
}

/// A change to the tables.
pub(super) enum Change {
    /// Records of entries by index, and the id of the last one.
    Entries(Vec<(u64, Vec<u8>)>, Option<LogId>),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Removes every entry from this index on; the log ends with this one then.
    Truncate(u64, Option<LogId>),
    /// Removes every entry up to this one, itself included.
    Purge(LogId),
    /// Overwrites what is free in the file.
    Scrub,
    /// Notes that this was done.
    Scrubbed,
    /// Notes whether the log lacks what it once had.
    Refilling(bool),
}

impl Change {
    /// Whether it changes anything beside the entries.
    fn is_noted(&self) -> bool {
        !matches!(
            self,
            Change::Entries(..) | Change::Truncate(..) | Change::Scrub
        )
    }
}

impl Disk {
    pub(super) fn open_file(path: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // After a failed sync the kernel may hold pages that never reached the disk and call them clean. What is read
        // here must be what the disk holds, or it would be acknowledged and then lost with the power.
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(io::Error::from)?;
        let backend = FileBackend::new(file).map_err(open_error)?;
        let mut disk = Self::open_backend(backend)?;
        disk.path = Some(path.to_owned());
        disk.compact(path)?;
        // The file's name must survive a loss of power as well as its content.
        if let Some(parent) = path.parent() {
            std::fs::File::open(parent)?.sync_all()?;
        }
        Ok(disk)
    }

    pub(super) fn open_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(open_error)?;
        Ok(Disk {
            database: RwLock::new(Some(database)),
            path: None,
        })
    }

    /// Gives back space that is free inside the file, if that is most of a large file. Done at open only, since nothing can
    /// be read or written meanwhile.
    fn compact(&mut self, path: &Path) -> Result<(), StoreError> {
        let size = std::fs::metadata(path)?.len();
        if size < COMPACT_ABOVE {
            return Ok(());
        }
        let database = self
            .database
            .get_mut()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(database) = database else {
            return Ok(());
        };
        let compacted = (|| {
            let transaction = database.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            let used = stats.stored_bytes() + stats.metadata_bytes();
            Ok::<_, redb::Error>(used < size / 2 && database.compact()?)
        })();
        if compacted.map_err(io_error).map_err(load_error)? {
            let now = std::fs::metadata(path)?.len();
            tracing::info!(size, now, "the log store was compacted");
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        *self
            .database
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> io::Result<T> {
        let guard = self
            .database
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let database = guard
            .as_ref()
            .ok_or_else(|| io::Error::other("the log store is closed"))?;
        work(database).map_err(io_error)
    }

    /// Reads and checks everything.
    pub(super) fn load(&self) -> Result<Stored, StoreError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            transaction.open_table(LOG)?;
            {
                let mut meta = transaction.open_table(META)?;
                if meta.get(FORMAT)?.is_none() {
                    meta.insert(
                        FORMAT,
                        sealed(FORMAT.as_bytes(), packed(&KNOWN_FORMAT)).as_slice(),
                    )?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
        .map_err(load_error)?;
        self.with(|database| {
            let transaction = database.begin_read()?;
            let meta = transaction.open_table(META)?;
            let log = transaction.open_table(LOG)?;
            Ok(Self::check(&meta, &log))
        })
        .map_err(load_error)?
    }

    fn check(
        meta: &impl ReadableTable<&'static str, &'static [u8]>,
        log: &impl ReadableTable<u64, &'static [u8]>,
    ) -> Result<Stored, StoreError> {
        let found: u64 = read_record(meta, FORMAT)?.ok_or_else(|| corrupt("it has no format"))?;
        if found > KNOWN_FORMAT {
            return Err(StoreError::Format {
                found,
                known: KNOWN_FORMAT,
            });
        }
        let purged: Option<LogId> = read_record(meta, PURGED)?;
        let mut next = purged.map(|id| id.index + 1);
        let mut last = purged;
        let mut first = None;
        let mut sizes = VecDeque::new();
        for item in log.iter().map_err(storage_error)? {
            let (index, value) = item.map_err(storage_error)?;
            let index = index.value();
            if next.is_some_and(|next| next != index) {
                return Err(corrupt(format!(
                    "entry {} is missing",
                    next.unwrap_or_default()
                )));
            }
            let entry = open_entry(index, value.value())?;
            sizes.push_back(u32::try_from(value.value().len()).unwrap_or(u32::MAX));
            first = first.or(Some(index));
            last = Some(entry.log_id());
            next = Some(index + 1);
        }
        Ok(Stored {
            vote: read_record(meta, VOTE)?,
            committed: read_record(meta, COMMITTED)?,
            purged,
            first: first.unwrap_or(0),
            last,
            sizes,
            refilling: meta.get(REFILLING).map_err(storage_error)?.is_some(),
        })
    }

    pub(super) fn is_scrubbed(&self) -> io::Result<bool> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get(SCRUBBED)?.is_some())
        })
    }

    /// Writes zeros into as many pages as there are, so that none that is free keeps what it held, and frees them again.
    fn overwrite_free(&self) -> io::Result<()> {
        let zeros = [0; FILLER_BYTES];
        let size = match &self.path {
            Some(path) => std::fs::metadata(path)?.len(),
            None => 0,
        };
        for _ in 0..FILLINGS {
            self.with(|database| {
                let mut transaction = database.begin_write()?;
                transaction.set_two_phase_commit(true);
                let stats = transaction.stats()?;
                let used = stats.allocated_pages();
                let pages = (size / stats.page_size() as u64).max(used * 2);
                {
                    let mut filler = transaction.open_table(FILLER)?;
                    for page in 0..pages {
                        filler.insert(page, zeros.as_slice())?;
                    }
                }
                transaction.commit()?;
                let mut transaction = database.begin_write()?;
                transaction.set_two_phase_commit(true);
                transaction.delete_table(FILLER)?;
                transaction.commit()?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Carries out `changes` in order, in one durable transaction.
    pub(super) fn commit<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change> + Clone,
    ) -> io::Result<()> {
        let scrubs = |change: &Change| matches!(change, Change::Scrub);
        if changes.clone().into_iter().any(scrubs) {
            self.overwrite_free()?;
        }
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_two_phase_commit(true);
            {
                let mut log = transaction.open_table(LOG)?;
                for change in changes.clone() {
                    match change {
                        Change::Entries(entries, _) => {
                            for (index, record) in entries {
                                log.insert(index, record.as_slice())?;
                            }
                        }
                        Change::Truncate(from, _) => {
                            log.retain_in::<u64, _>(*from.., |_, _| false)?
                        }
                        Change::Purge(id) => {
                            log.retain_in::<u64, _>(..=id.index, |_, _| false)?;
                        }
                        _ => {}
                    }
                }
            }
            // A table that is opened costs pages, whether it changes or not.
            if changes.clone().into_iter().any(Change::is_noted) {
                let mut meta = transaction.open_table(META)?;
                for change in changes {
                    match change {
                        Change::Vote(vote) => put(&mut meta, VOTE, packed(vote))?,
                        Change::Committed(Some(id)) => put(&mut meta, COMMITTED, packed(id))?,
                        Change::Committed(None) => drop(meta.remove(COMMITTED)?),
                        Change::Scrubbed => put(&mut meta, SCRUBBED, packed(&true))?,
                        Change::Refilling(true) => put(&mut meta, REFILLING, packed(&true))?,
                        Change::Refilling(false) => drop(meta.remove(REFILLING)?),
                        Change::Purge(id) => put(&mut meta, PURGED, packed(id))?,
                        Change::Entries(..) | Change::Truncate(..) | Change::Scrub => {}
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Entries with index in `from..to`, until `limit_bytes` are exceeded (but at least one).
    pub(super) fn read(&self, from: u64, to: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let log = transaction.open_table(LOG)?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            for item in log.range(from..to)? {
                let (index, value) = item?;
                bytes += value.value().len();
                if bytes > limit_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(open_entry(index.value(), value.value()));
            }
            Ok(entries)
        })?
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

fn put(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    name: &'static str,
    content: Vec<u8>,
) -> Result<(), redb::Error> {
    table.insert(name, sealed(name.as_bytes(), content).as_slice())?;
    Ok(())
}

/// The record of an entry: checksum and encoding.
pub(crate) fn entry_record(entry: &Entry) -> Vec<u8> {
    sealed(&entry.index().to_be_bytes(), packed(entry))
}

pub(crate) fn open_entry(index: u64, record: &[u8]) -> Result<Entry, StoreError> {
    let entry: Entry = opened(&index.to_be_bytes(), record)
        .and_then(|content| rmp_serde::from_slice(content).ok())
        .ok_or_else(|| corrupt(format!("entry {index} does not match its checksum")))?;
    if entry.index() != index {
        return Err(corrupt(format!(
            "entry {} is stored as {index}",
            entry.index()
        )));
    }
    Ok(entry)
}

fn read_record<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let Some(record) = table.get(name).map_err(storage_error)? else {
        return Ok(None);
    };
    opened(name.as_bytes(), record.value())
        .and_then(|content| rmp_serde::from_slice(content).ok())
        .map(Some)
        .ok_or_else(|| corrupt(format!("the {name} record does not match its checksum")))
}

fn packed(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("Raft's records have no value that MessagePack lacks")
}

fn checksum(key: &[u8], content: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(key);
    hasher.update(content);
    let digest: [u8; 32] = hasher.finalize().into();
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&digest[..SUM_BYTES]);
    sum
}

/// `content` with its checksum before it. The key is part of the sum, so that no record can stand in for another.
fn sealed(key: &[u8], content: Vec<u8>) -> Vec<u8> {
    let mut record = Vec::with_capacity(SUM_BYTES + content.len());
    record.extend_from_slice(&checksum(key, &content));
    record.extend_from_slice(&content);
    record
}

/// `content` as the record of entry `index`, whatever it says.
pub(crate) fn checked(index: u64, content: &[u8]) -> Vec<u8> {
    sealed(&index.to_be_bytes(), content.to_vec())
}

fn opened<'a>(key: &[u8], record: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, content) = record.split_at_checked(SUM_BYTES)?;
    (sum == checksum(key, content)).then_some(content)
}

fn corrupt(what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

fn storage_error(error: redb::StorageError) -> StoreError {
    match error {
        redb::StorageError::Corrupted(what) => StoreError::Corrupt { what },
        other => StoreError::Io(io_error(other.into())),
    }
}

fn open_error(error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Locked,
        redb::DatabaseError::Storage(error) => storage_error(error),
        redb::DatabaseError::RepairAborted => corrupt("it needs a repair that did not finish"),
        other => StoreError::Corrupt {
            what: other.to_string(),
        },
    }
}

fn load_error(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidData => corrupt(error.to_string()),
        _ => StoreError::Io(error),
    }
}

fn io_error(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        redb::Error::Corrupted(what) => io::Error::new(io::ErrorKind::InvalidData, what),
        other => io::Error::other(other.to_string()),
    }
}
