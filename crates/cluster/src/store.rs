//! The log store: Raft's log, vote and committed index in a redb file.
//!
//! What makes an acknowledged write survive the loss of power on every node at once:
//! 1. Appends and votes are acknowledged after a two-phase commit, never before.
//! 2. One writer commits everything that has queued up in one transaction, in order.
//! 3. Every record carries a checksum of our own over its key and content; all are checked at open, and one that does
//!    not match is an error, never a shorter log.
//! 4. After a failed write or sync nothing is tried again: the store answers with that error until it is reopened.
//!
//! The committed index is a hint that saves re-learning it at restart; it is written with the next batch, or by itself
//! soon after, and nothing waits for it.

pub(crate) mod disk;
pub mod files;
mod raftlog;
pub mod reserve;
pub mod witness;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::entry::RaftEntry;
use redb::StorageBackend;

pub use raftlog::LogStore;

use crate::id::Digest;
use crate::raft::{Entry, LogId, Vote};
use disk::Disk;
use witness::{Ledger, Seen, Witness};
use writer::{Job, Writer};

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, read or written.
    #[error("the log store cannot be accessed")]
    Io(#[from] io::Error),
    /// Another process, or an earlier instance in this one, has it open.
    #[error("the log store is open elsewhere")]
    Locked,
    /// Content that does not match its checksum, or does not hang together. The node needs its data from its peers.
    #[error("the log store is damaged: {what}")]
    Corrupt {
        /// What is wrong.
        what: String,
    },
    /// Written by a version whose format this one does not know.
    #[error("the log store has format {found}, this version knows up to {known}")]
    Format {
        /// Its format.
        found: u64,
        /// The newest one known.
        known: u64,
    },
}

/// Who carries out blocking writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// A thread of its own, so that no async task waits for a disk.
    Threaded,
    /// The caller, at once: for tests whose disk takes no real time.
    Inline,
    /// For the log nobody, until [`Store::write_queued`] is called; for files the caller, at once. For a simulator, whose
    /// disk takes as long as it says.
    Driven,
}

impl Io {
    /// Runs `work`, which may block, and gives its result.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the thread comes in"
    )]
    pub(crate) fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> futures::future::BoxFuture<'static, io::Result<T>> {
        match self {
            Io::Inline | Io::Driven => {
                let result = work();
                Box::pin(std::future::ready(Ok(result)))
            }
            Io::Threaded => {
                let (sender, receiver) = futures::channel::oneshot::channel();
                let started = std::thread::Builder::new()
                    .name("cluster-files".into())
                    .spawn(move || {
                        // The receiver is gone when nobody waits for the result any more.
                        let _ = sender.send(work());
                    });
                Box::pin(async move {
                    started?;
                    receiver
                        .await
                        .map_err(|_| io::Error::other("the work panicked"))
                })
            }
        }
    }
}

/// An entry of the log, for checks that compare members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMark {
    /// Its index.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// SHA-256 of its encoding.
    pub digest: Digest,
}

/// Bytes of entries that are kept in memory after they were written, for replication and apply.
const TAIL_BYTES: usize = 4 * 1024 * 1024;

/// Entries that are kept in memory after they were written.
const TAIL_ENTRIES: usize = 4096;

/// Most bytes that one read for replication returns; at least one entry is returned whatever its size.
const READ_BYTES: usize = 1024 * 1024;

/// An entry in memory, with the size of its encoding.
#[derive(Clone)]
struct Cached {
    entry: Entry,
    bytes: usize,
}

/// What readers see: the log as it was last changed, whether or not it is on disk already.
#[derive(Default)]
struct View {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Index of the first entry; meaningless while there is none.
    first: u64,
    last: Option<LogId>,
    /// The newest entries; all that are not on disk yet are here.
    tail: BTreeMap<u64, Cached>,
    tail_bytes: usize,
    /// Every entry before this index is on disk.
    flushed: u64,
    /// Bytes of the record of each entry in the log, on disk or not; the last one is that of `last`.
    sizes: VecDeque<u32>,
    bytes: u64,
    refilling: bool,
}

impl View {
    fn push(&mut self, entry: Entry, bytes: usize) {
        if self.last == self.purged {
            self.first = entry.index();
        }
        self.last = Some(entry.log_id());
        self.sizes
            .push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.bytes += bytes as u64;
        if let Some(old) = self.tail.insert(entry.index(), Cached { entry, bytes }) {
            self.tail_bytes -= old.bytes;
        }
        self.tail_bytes += bytes;
    }

    /// Forgets entries that are on disk and beyond the limits.
    fn evict(&mut self) {
        while self.tail_bytes > TAIL_BYTES || self.tail.len() > TAIL_ENTRIES {
            match self.tail.first_key_value() {
                Some((index, _)) if *index < self.flushed => {
                    let (_, gone) = self.tail.pop_first().expect("it has a first");
                    self.tail_bytes -= gone.bytes;
                }
                _ => break,
            }
        }
    }

    /// Forgets the sizes of the newest entries.
    fn cut_sizes(&mut self, entries: u64) {
        for _ in 0..entries {
            self.bytes -= self.sizes.pop_back().map_or(0, u64::from);
        }
    }

    /// Forgets the sizes of all entries up to `index`.
    fn drop_sizes(&mut self, index: u64) {
        while !self.sizes.is_empty() && self.next_index() - self.sizes.len() as u64 <= index {
            self.bytes -= self.sizes.pop_front().map_or(0, u64::from);
        }
    }

    /// The last index to drop so that what is left has at most `limit` bytes; none if it has.
    fn excess(&self, limit: u64) -> Option<u64> {
        let mut left = self.bytes;
        let mut excess = None;
        let first = self.next_index() - self.sizes.len() as u64;
        for (index, size) in (first..).zip(&self.sizes) {
            if left <= limit {
                break;
            }
            left -= u64::from(*size);
            excess = Some(index);
        }
        excess
    }

    fn first_index(&self) -> u64 {
        self.purged.map_or(self.first, |id| id.index + 1)
    }

    fn next_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }
}

/// Everything that a store holds.
pub(crate) struct Contents {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// Index of the first entry; those before it are in a snapshot.
    pub(crate) first: u64,
    pub(crate) entries: Vec<Entry>,
}

/// An open log store. Cheap to clone; [`Store::close`] ends all clones.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    view: Mutex<View>,
    writer: Writer,
    io: Io,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates the store at `path`, readable by its owner only, and checks all of it.
    ///
    /// # Errors
    /// Any [`StoreError`]. A damaged store is left as it is.
    pub fn open(path: &Path, io: Io) -> Result<Self, StoreError> {
        Self::start(Disk::open_file(path)?, io)
    }

    /// Opens or creates the store on a backend of the caller's, and checks all of it.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn open_backend(backend: impl StorageBackend, io: Io) -> Result<Self, StoreError> {
        Self::start(Disk::open_backend(backend)?, io)
    }

    fn start(disk: Disk, io: Io) -> Result<Self, StoreError> {
        let stored = disk.load()?;
        let flushed = stored.last.map_or(0, |id| id.index + 1);
        let disk = Arc::new(disk);
        let ledger = Arc::new(Ledger::new(Seen {
            vote: stored.vote,
            last: stored.last,
        }));
        Ok(Store {
            shared: Arc::new(Shared {
                writer: Writer::start(disk.clone(), ledger.clone(), io)?,
                disk,
                ledger,
                view: Mutex::new(View {
                    vote: stored.vote,
                    committed: stored.committed,
                    purged: stored.purged,
                    first: stored.first,
                    last: stored.last,
                    flushed,
                    bytes: stored.sizes.iter().copied().map(u64::from).sum(),
                    sizes: stored.sizes,
                    refilling: stored.refilling,
                    ..View::default()
                }),
                io,
            }),
        })
    }

    /// Whether it holds nothing at all: no vote, no entry.
    pub fn is_empty(&self) -> bool {
        let view = self.view();
        view.vote.is_none() && view.last.is_none()
    }

    /// Everything in it, for those who work on the data of a node that does not run.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn contents(&self) -> io::Result<Contents> {
        let entries = LogStore::<()>::new(self.clone()).read(0, u64::MAX, usize::MAX)?;
        let view = self.view();
        Ok(Contents {
            vote: view.vote,
            committed: view.committed,
            first: view.first_index(),
            entries,
        })
    }

    /// Has `witness` remember from now on what this store acknowledges. What it remembers from before is held against
    /// the store's content by the node that starts on it.
    ///
    /// # Errors
    /// The witness cannot be read or written; it must not be believed then.
    pub fn set_witness(&self, witness: Arc<dyn Witness>) -> io::Result<()> {
        self.shared.ledger.set_witness(witness)
    }

    /// How long a sync takes, in microseconds: the least of the last few commits. None before the first one, and where no
    /// thread writes.
    pub(crate) fn sync_us(&self) -> Option<u64> {
        self.shared.writer.sync_us()
    }

    /// The last entry to drop so that the log has at most `limit` bytes; none if it has.
    pub(crate) fn excess(&self, limit: u64) -> Option<u64> {
        self.view().excess(limit)
    }

    /// What a witness has seen this store, or an earlier version of it, acknowledge; none if there is no witness.
    pub(crate) fn witnessed(&self) -> Option<Seen> {
        self.shared.ledger.witnessed()
    }

    /// What it holds now: vote and end of the log.
    pub(crate) fn holds(&self) -> Seen {
        let view = self.view();
        Seen {
            vote: view.vote,
            last: view.last,
        }
    }

    /// Whether the log lacks what it once had, as it was noted last.
    pub(crate) fn is_refilling(&self) -> bool {
        self.view().refilling
    }

    /// Notes, durably, whether the log lacks what it once had: it is that of an earlier time until it has all of it, and
    /// what it says of the members as well.
    ///
    /// # Errors
    /// The file cannot be written: as with any other write, nothing is written after that.
    pub(crate) async fn note_refilling(&self, refilling: bool) -> io::Result<()> {
        let note = |done| Job {
            change: disk::Change::Refilling(refilling),
            done: Some(done),
        };
        self.settle(note).await?;
        self.view().refilling = refilling;
        Ok(())
    }

    /// The first failure, if there was one. From then on every operation fails with it.
    pub fn failure(&self) -> Option<Arc<io::Error>> {
        self.shared.writer.failure()
    }

    /// Writes what is queued and closes the file. Every later operation fails.
    pub fn close(&self) {
        self.shared.writer.close();
        self.shared.disk.close();
    }

    /// Whether [`Store::scrub`] was ever done.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn is_scrubbed(&self) -> io::Result<bool> {
        self.shared.disk.is_scrubbed()
    }

    /// Overwrites what is free in the file, and notes that this was done.
    ///
    /// # Errors
    /// The file cannot be written: as with any other write, nothing is written after that.
    pub(crate) async fn scrub(&self) -> io::Result<()> {
        let scrub = |done| Job {
            change: disk::Change::Scrub,
            done: Some(done),
        };
        self.settle(scrub).await?;
        self.mark_scrubbed().await
    }

    /// Notes that nothing here needs to be overwritten.
    ///
    /// # Errors
    /// As [`Store::scrub`].
    pub(crate) async fn mark_scrubbed(&self) -> io::Result<()> {
        let mark = |done| Job {
            change: disk::Change::Scrubbed,
            done: Some(done),
        };
        self.settle(mark).await
    }

    /// Waits until a change is queued that somebody waits for; false once the store is closed. With [`Io::Driven`].
    pub async fn queued(&self) -> bool {
        std::future::poll_fn(|context| self.shared.writer.poll_queued(context)).await
    }

    /// Writes what has queued up in one commit. With [`Io::Driven`].
    pub fn write_queued(&self) {
        self.shared.writer.write_queued();
    }

    /// The last entry, on disk or not, as index and term.
    pub fn last(&self) -> Option<(u64, u64)> {
        self.view().last.map(|id| (id.index, id.leader_id.term))
    }

    /// Entries before this index are on disk.
    pub fn flushed(&self) -> u64 {
        self.view().flushed
    }

    /// The entries from `from` on, on disk or not.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn marks(&self, from: u64) -> io::Result<Vec<EntryMark>> {
        let entries = LogStore::<()>::new(self.clone()).read(from, u64::MAX, usize::MAX)?;
        let mark = |entry: &Entry| EntryMark {
            index: entry.index(),
            term: entry.log_id().leader_id.term,
            digest: Digest::of(&disk::entry_record(entry)),
        };
        Ok(entries.iter().map(mark).collect())
    }

    pub(crate) fn io(&self) -> Io {
        self.shared.io
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.shared
            .view
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Queues a job and waits until it is on disk.
    async fn settle(&self, job: impl FnOnce(writer::Done) -> Job) -> io::Result<()> {
        let (sender, receiver) = futures::channel::oneshot::channel();
        self.shared.writer.submit(job(Box::new(move |result| {
            // Nobody waits any more when the node is shutting down.
            let _ = sender.send(result);
        })));
        receiver
            .await
            .map_err(|_| io::Error::other("the log store is closed"))?
    }
}

#[cfg(test)]
mod tests;
