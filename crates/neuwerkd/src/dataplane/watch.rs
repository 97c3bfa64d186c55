//! Watching packets on all workers at once, for one reader.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::Snapshot;
use engine::look::{Filter, Task};
use engine::tap::{Reader, Record, Wish, tap};
use policy::Compiled;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{Dataplane, LookError, monotonic};

/// Records that one worker and the reader have between them.
const RECORDS: usize = 256;

/// How often the reader looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long workers watch beyond the reader's own time, so that its end is the reader's.
const GRACE: Duration = Duration::from_millis(500);

/// How long to wait for what workers give back when a watch has ended. A sleeping one turns several times a second.
const RETURN_LIMIT: Duration = Duration::from_secs(2);

/// What is to be watched, and for how long.
#[derive(Clone, Debug)]
pub struct Interest {
    /// Which packets.
    pub filter: Filter,
    /// Only those that are dropped.
    pub drops_only: bool,
    /// Only those that are dropped for this reason.
    pub reason: Option<engine::DropReason>,
    /// Bytes of each frame to keep.
    pub snap: usize,
    /// End after so many.
    pub count: u64,
    /// End after this time.
    pub time: Duration,
}

/// A watch that goes on. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    readers: Vec<Reader>,
    /// The reader to begin with, so that a busy worker does not hide the others.
    first: usize,
    published: Arc<ArcSwap<Snapshot>>,
    /// The policy in force when was last looked, and the one before.
    policies: [Arc<Compiled>; 2],
    left: u64,
    seen: u64,
    until: tokio::time::Instant,
    /// The node stops.
    stop: CancellationToken,
    turn: Option<OwnedSemaphorePermit>,
}

impl Dataplane {
    /// Watches packets from now on; none if as many watch already as may.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn watch(&self, interest: Interest) -> Result<Option<Watch>, LookError> {
        let Ok(turn) = Arc::clone(&self.watches).try_acquire_owned() else {
            return Ok(None);
        };
        let policy = self.policy();
        let mut watch = Watch {
            readers: Vec::new(),
            first: 0,
            published: Arc::clone(&self.published),
            policies: [Arc::clone(&policy), Arc::clone(&policy)],
            left: interest.count,
            seen: 0,
            until: tokio::time::Instant::now() + interest.time,
            stop: self.watches_stop.clone(),
            turn: Some(turn),
        };
        for worker in 0..self.workers.len() {
            let wish = Wish {
                filter: interest.filter.clone(),
                drops_only: interest.drops_only,
                reason: interest.reason,
                snap: interest.snap,
                until: monotonic() + interest.time + GRACE,
            };
            let (tap, reader) = tap(wish, RECORDS);
            let task = Task::Watch(Some(tap));
            let answer = self.ask(worker, &Filter::default(), &policy, task).await?;
            if let Task::Watch(Some(_)) = answer {
                return Ok(None);
            }
            watch.readers.push(reader);
        }
        Ok(Some(watch))
    }

    /// Ends all watches, and every later one as it begins: the node stops.
    pub fn stop_watches(&self) {
        self.watches_stop.cancel();
    }
}

impl Watch {
    /// When it ends at the latest.
    pub fn until(&self) -> tokio::time::Instant {
        self.until
    }

    /// What has been seen since the last call, oldest first, each handed to `read` with the policy that decided about it,
    /// if that is still known; waits until there is something. None: it is over.
    pub async fn next<T>(
        &mut self,
        read: impl Fn(&Record, Option<&Compiled>) -> T,
    ) -> Option<Vec<T>> {
        loop {
            let ends = self.left == 0
                || tokio::time::Instant::now() >= self.until
                || self.stop.is_cancelled()
                || self.readers.iter_mut().all(Reader::is_over);
            if ends {
                self.readers.iter().for_each(Reader::close);
            }
            let found = self.take(&read);
            if !found.is_empty() {
                return Some(found);
            }
            if ends {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// At most [`RECORDS`] at a time.
    fn take<T>(&mut self, read: &impl Fn(&Record, Option<&Compiled>) -> T) -> Vec<T> {
        let snapshot = self.published.load();
        if !Arc::ptr_eq(snapshot.policy(), &self.policies[0]) {
            self.policies.swap(0, 1);
            self.policies[0] = Arc::clone(snapshot.policy());
        }
        let mut found = Vec::new();
        self.first = (self.first + 1) % self.readers.len().max(1);
        let (late, early) = self.readers.split_at(self.first);
        for reader in early.iter().chain(late) {
            while self.left > 0
                && found.len() < RECORDS
                && let Some(value) = reader.read(|record| {
                    let revision = record.ruling.map(|ruling| ruling.revision);
                    let policies = self.policies.iter();
                    let mut same = policies.filter(|p| Some(p.revision()) == revision);
                    (record.at, read(record, same.next().map(|policy| &**policy)))
                })
            {
                self.left -= 1;
                self.seen += 1;
                found.push(value);
            }
        }
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// Records that were handed over, and packets that were meant but passed unseen since the reader
    /// was too slow.
    pub fn tally(&self) -> (u64, u64) {
        (self.seen, self.readers.iter().map(Reader::lost).sum())
    }
}

impl Drop for Watch {
    /// Waits elsewhere for what the workers give back, so that none of them has to free it; until then nobody else has its
    /// turn.
    fn drop(&mut self) {
        let (mut readers, turn) = (std::mem::take(&mut self.readers), self.turn.take());
        readers.iter().for_each(Reader::close);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let returned = async {
                while !readers.iter_mut().all(Reader::is_over) {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            let _ = tokio::time::timeout(RETURN_LIMIT, returned).await;
            drop((readers, turn));
        });
    }
}
