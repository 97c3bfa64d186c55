//! The store as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};

use super::disk::{self, Change};
use super::writer::Job;
use super::{READ_BYTES, Store};
use crate::raft::{Entry, LogId, Types, Vote};

/// A [`Store`] bound to a runtime.
pub struct LogStore<R> {
    pub(super) store: Store,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R> Clone for LogStore<R> {
    fn clone(&self) -> Self {
        Self::new(self.store.clone())
    }
}

impl<R> LogStore<R> {
    /// Binds a store to the runtime `R`.
    pub fn new(store: Store) -> Self {
        LogStore {
            store,
            runtime: std::marker::PhantomData,
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.store.failure() {
            None => Ok(()),
            Some(error) => Err(io::Error::new(error.kind(), error)),
        }
    }

    pub(super) fn read(&self, from: u64, to: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        self.check()?;
        let view = self.store.view();
        let from = from.max(view.first_index());
        let to = to.min(view.next_index());
        if from >= to {
            return Ok(Vec::new());
        }
        let in_memory = view.tail.first_key_value().map_or(to, |(index, _)| *index);
        let mut entries = Vec::new();
        if from < in_memory {
            // Under the lock, so that no change of the log comes in between. Only a member that is far behind, or a
            // restart, reads from disk.
            entries = self
                .store
                .shared
                .disk
                .read(from, in_memory.min(to), limit_bytes)?;
            let read_to = entries.last().map_or(from, |entry| entry.index() + 1);
            if read_to < in_memory.min(to) {
                return if entries.is_empty() {
                    Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("entry {from} is missing"),
                    ))
                } else {
                    Ok(entries)
                };
            }
        }
        let mut bytes = 0;
        for (_, cached) in view.tail.range(from.max(in_memory)..to.max(in_memory)) {
            bytes += cached.bytes;
            if bytes > limit_bytes && !entries.is_empty() {
                break;
            }
            entries.push(cached.entry.clone());
        }
        Ok(entries)
    }
}

impl<R: AsyncRuntime> LogStore<R> {
    /// Makes an empty log one that begins after `last`, and whose node has voted like that.
    pub(crate) async fn begin(mut self, vote: Vote, last: LogId) -> io::Result<()> {
        self.save_vote(&vote).await?;
        self.purge(last).await?;
        self.check()
    }
}

#[cfg(test)]
impl<R: AsyncRuntime> LogStore<R> {
    /// Writes a vote and entries, all of them committed.
    pub(crate) async fn fill(
        mut self,
        vote: Vote,
        entries: impl IntoIterator<Item = Entry> + Send,
    ) -> io::Result<()> {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let last = entries.last().map(|entry| entry.log_id);
        self.save_vote(&vote).await?;
        self.append(entries, IOFlushed::noop()).await?;
        self.save_committed(last).await?;
        self.check()
    }
}

impl<R: AsyncRuntime> RaftLogReader<Types<R>> for LogStore<R> {
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: B,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.check()?;
        Ok(self.store.view().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }
}

impl<R: AsyncRuntime> RaftLogStorage<Types<R>> for LogStore<R> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<R>>, io::Error> {
        self.check()?;
        let view = self.store.view();
        Ok(LogState {
            last_purged_log_id: view.purged,
            last_log_id: view.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.store
            .settle(|done| Job {
                change: Change::Vote(vote),
                done: Some(done),
            })
            .await?;
        self.store.view().vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.check()?;
        self.store.view().committed = committed;
        self.store.shared.writer.submit(Job {
            change: Change::Committed(committed),
            done: None,
        });
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.check()?;
        Ok(self.store.view().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<Types<R>>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut view = self.store.view();
            for entry in entries {
                let record = disk::entry_record(&entry);
                let bytes = record.len();
                records.push((entry.index(), record));
                view.push(entry, bytes);
            }
        }
        let last_id = self.store.view().last;
        let last = records.last().map(|(index, _)| *index);
        let store = self.store.clone();
        self.store.shared.writer.submit(Job {
            change: Change::Entries(records, last_id),
            done: Some(Box::new(move |result| {
                if let (Ok(()), Some(last)) = (&result, last) {
                    let mut view = store.view();
                    view.flushed = view.flushed.max(last + 1);
                    view.evict();
                }
                callback.io_completed(result);
            })),
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        {
            let mut view = self.store.view();
            let cut = view.tail.split_off(&from);
            view.tail_bytes -= cut.values().map(|cached| cached.bytes).sum::<usize>();
            if view.next_index() > from {
                let gone = view.next_index() - from;
                view.cut_sizes(gone);
                view.last = last_log_id;
            }
        }
        self.store
            .settle(|done| Job {
                change: Change::Truncate(from, last_log_id),
                done: Some(done),
            })
            .await?;
        // Appends that were queued before have completed by now and cannot raise it again.
        let mut view = self.store.view();
        view.flushed = view.flushed.min(from);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.check()?;
        {
            let mut view = self.store.view();
            let kept = view.tail.split_off(&(log_id.index + 1));
            let gone = std::mem::replace(&mut view.tail, kept);
            view.tail_bytes -= gone.values().map(|cached| cached.bytes).sum::<usize>();
            view.drop_sizes(log_id.index);
            view.purged = view.purged.max(Some(log_id));
            if view.last < Some(log_id) {
                view.last = Some(log_id);
                view.flushed = log_id.index + 1;
            }
        }
        self.store.shared.writer.submit(Job {
            change: Change::Purge(log_id),
            done: None,
        });
        Ok(())
    }
}
