//! The one writer: takes what has queued up, commits it in one transaction, then tells everybody.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Io;
use super::disk::{Change, Disk};
use super::witness::Ledger;
use crate::node::locked;
use crate::node::tempo::Least;

/// Called once, when the job is on disk or can no longer get there.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A change that somebody may be waiting for.
pub(super) struct Job {
    pub(super) change: Change,
    /// None: nobody waits; it goes with the next job, or by itself soon after.
    pub(super) done: Option<Done>,
}

/// How long a job that nobody waits for may stay in memory. Under load the committed index is written that often, too:
/// with every batch it would cost a tenth of the pages.
const IDLE_FLUSH: Duration = Duration::from_millis(100);

/// Jobs in one transaction, at most.
const BATCH_JOBS: usize = 1024;

/// The first failure. Set once, never cleared: what the disk holds afterwards is not known.
type Failure = Arc<OnceLock<Arc<io::Error>>>;

pub(super) struct Writer {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    failure: Failure,
    queue: Arc<Queue>,
    took: Arc<Mutex<Least>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    io: Io,
}

/// What is to be written, in order.
#[derive(Default)]
struct Queue {
    backlog: Mutex<Backlog>,
    /// For [`Io::Threaded`].
    arrived: Condvar,
}

#[derive(Default)]
struct Backlog {
    jobs: Vec<Job>,
    closed: bool,
    /// The thread looks again within [`IDLE_FLUSH`]: a job that nobody waits for need not wake it.
    watched: bool,
    /// When the committed index was last taken along; none: never.
    noted: Option<std::time::Instant>,
    /// For [`Io::Driven`].
    waker: Option<Waker>,
}

impl Writer {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the thread comes in"
    )]
    pub(super) fn start(disk: Arc<Disk>, ledger: Arc<Ledger>, io: Io) -> io::Result<Self> {
        let failure = Failure::default();
        let queue = Arc::new(Queue::default());
        let took = Arc::<Mutex<Least>>::default();
        let thread = match io {
            Io::Inline | Io::Driven => None,
            Io::Threaded => {
                let (disk, ledger, failure) = (disk.clone(), ledger.clone(), failure.clone());
                let (queue, took) = (queue.clone(), took.clone());
                Some(
                    std::thread::Builder::new()
                        .name("cluster-log".into())
                        .spawn(move || run(&disk, &ledger, &failure, &queue, &took))?,
                )
            }
        };
        Ok(Writer {
            disk,
            ledger,
            failure,
            queue,
            took,
            thread: Mutex::new(thread),
            io,
        })
    }

    pub(super) fn failure(&self) -> Option<Arc<io::Error>> {
        self.failure.get().cloned()
    }

    /// The least time of the last few commits by the thread.
    pub(super) fn sync_us(&self) -> Option<u64> {
        locked(&self.took).micros()
    }

    pub(super) fn submit(&self, job: Job) {
        // Held while an inline job is written, so that jobs keep their order.
        let mut backlog = self.queue.backlog();
        if backlog.closed {
            drop(backlog);
            refuse(job, || io::Error::other("the log store is closed"));
            return;
        }
        match self.io {
            Io::Inline => write(&self.disk, &self.ledger, &self.failure, vec![job]),
            Io::Driven => {
                backlog.jobs.push(job);
                backlog.wake();
            }
            Io::Threaded => {
                let wakes = job.done.is_some() || !backlog.watched;
                backlog.jobs.push(job);
                if wakes {
                    backlog.watched = true;
                    drop(backlog);
                    self.queue.arrived.notify_one();
                }
            }
        }
    }

    /// Writes what is queued and takes nothing more.
    pub(super) fn close(&self) {
        self.queue.close();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic there has already closed the queue, which is all that matters here.
            let _ = thread.join();
        }
        self.write_queued();
    }

    /// Ready when somebody waits for a job in the backlog (true), or nothing will come any more (false).
    pub(super) fn poll_queued(&self, context: &Context<'_>) -> Poll<bool> {
        let mut backlog = self.queue.backlog();
        if backlog.is_awaited() {
            return Poll::Ready(true);
        }
        if backlog.closed {
            return Poll::Ready(false);
        }
        backlog.waker = Some(context.waker().clone());
        Poll::Pending
    }

    pub(super) fn write_queued(&self) {
        // Taken out first: those who are told may queue the next job at once.
        let jobs = std::mem::take(&mut self.queue.backlog().jobs);
        write(&self.disk, &self.ledger, &self.failure, jobs);
    }
}

impl Queue {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut backlog = self.backlog();
        backlog.closed = true;
        backlog.wake();
        drop(backlog);
        self.arrived.notify_one();
    }

    /// The next jobs, as soon as somebody waits for one of them or [`IDLE_FLUSH`] is over; none: it is closed and empty.
    fn next(&self) -> Option<Vec<Job>> {
        let mut backlog = self.backlog();
        backlog.watched = true;
        while !backlog.is_awaited() && !backlog.closed {
            if !backlog.watched {
                backlog = self
                    .arrived
                    .wait(backlog)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (held, waited) = self
                .arrived
                .wait_timeout(backlog, IDLE_FLUSH)
                .unwrap_or_else(PoisonError::into_inner);
            backlog = held;
            if waited.timed_out() {
                if !backlog.jobs.is_empty() {
                    break;
                }
                backlog.watched = false;
            }
        }
        Some(backlog.take()).filter(|jobs| !jobs.is_empty())
    }
}

impl Backlog {
    fn is_awaited(&self) -> bool {
        self.jobs.iter().any(|job| job.done.is_some())
    }

    /// The next batch. Between entries only the newest committed index counts, and it stays behind while an earlier one
    /// is young enough; with anything else all keeps its order.
    #[expect(
        clippy::disallowed_methods,
        reason = "the thread's, with the machine's clock"
    )]
    fn take(&mut self) -> Vec<Job> {
        let batch = self.jobs.len().min(BATCH_JOBS);
        let mut jobs: Vec<Job> = self.jobs.drain(..batch).collect();
        let is_hint = |job: &Job| matches!(job.change, Change::Committed(_));
        let is_entries = |job: &Job| matches!(job.change, Change::Entries(..));
        if self.closed || !jobs.iter().all(|job| is_hint(job) || is_entries(job)) {
            return jobs;
        }
        let Some(hint) = jobs.iter().rposition(is_hint).map(|at| jobs.remove(at)) else {
            return jobs;
        };
        jobs.retain(|job| !is_hint(job));
        let young = self.noted.is_some_and(|at| at.elapsed() < IDLE_FLUSH);
        if young && !jobs.is_empty() {
            self.jobs.insert(0, hint);
        } else {
            self.noted = Some(std::time::Instant::now());
            jobs.push(hint);
        }
        jobs
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

fn refuse(job: Job, error: impl FnOnce() -> io::Error) {
    if let Some(done) = job.done {
        done(Err(error()));
    }
}

/// Closes the queue when the thread ends, if by a panic: whoever waits must be told.
struct Ended<'a>(&'a Queue);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.close();
        let jobs = std::mem::take(&mut self.0.backlog().jobs);
        for job in jobs {
            refuse(job, || io::Error::other("the log store's writer has ended"));
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, with the machine's clock"
)]
fn run(disk: &Disk, ledger: &Ledger, failure: &Failure, queue: &Queue, took: &Mutex<Least>) {
    let _ended = Ended(queue);
    while let Some(jobs) = queue.next() {
        let begun = std::time::Instant::now();
        write(disk, ledger, failure, jobs);
        locked(took).enter(begun.elapsed());
    }
}

fn write(disk: &Disk, ledger: &Ledger, failure: &Failure, jobs: Vec<Job>) {
    if jobs.is_empty() {
        return;
    }
    if failure.get().is_none()
        && let Err(error) = disk
            .commit(jobs.iter().map(|job| &job.change))
            .and_then(|()| ledger.enter(jobs.iter().map(|job| &job.change)))
    {
        tracing::error!(%error, "the log store failed; the control plane must restart from disk");
        // Only this thread (or, without one, whoever drives the writer) writes, so the slot is free.
        let _ = failure.set(Arc::new(error));
    }
    for job in jobs {
        if let Some(done) = job.done {
            done(match failure.get() {
                None => Ok(()),
                Some(error) => Err(io::Error::new(error.kind(), error.clone())),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::raft::{LeaderId, LogId, Vote};
    use openraft::vote::RaftLeaderIdExt;

    fn queue(backlog: &mut Backlog, change: Change) {
        backlog.jobs.push(Job { change, done: None });
    }

    fn committed(index: u64) -> Change {
        let leader = <LeaderId as RaftLeaderIdExt>::new_committed(1, NodeId(1));
        Change::Committed(Some(LogId::new(leader, index)))
    }

    /// What is taken next, in letters: entries, vote, and committed with its index.
    fn taken(backlog: &mut Backlog) -> String {
        let jobs = backlog.take();
        let letters = jobs.iter().map(|job| match &job.change {
            Change::Entries(..) => "e".into(),
            Change::Vote(_) => "v".into(),
            Change::Committed(Some(id)) => format!("c{}", id.index),
            _ => "?".into(),
        });
        letters.collect::<Vec<String>>().join(" ")
    }

    #[test]
    fn the_committed_index_does_not_go_with_every_batch() {
        let entries = || Change::Entries(Vec::new(), None);
        let mut backlog = Backlog::default();
        for change in [entries(), committed(1), entries(), committed(2)] {
            queue(&mut backlog, change);
        }
        assert_eq!(taken(&mut backlog), "e e c2");
        for change in [committed(3), entries(), committed(4)] {
            queue(&mut backlog, change);
        }
        assert_eq!(taken(&mut backlog), "e");
        queue(&mut backlog, entries());
        queue(&mut backlog, Change::Vote(Vote::new(2, NodeId(1))));
        assert_eq!(taken(&mut backlog), "c4 e v", "before what changes more");
        queue(&mut backlog, committed(5));
        assert_eq!(taken(&mut backlog), "c5", "nothing to go with");
        queue(&mut backlog, committed(6));
        queue(&mut backlog, entries());
        backlog.closed = true;
        assert_eq!(taken(&mut backlog), "c6 e", "at the end all of it");
    }
}
