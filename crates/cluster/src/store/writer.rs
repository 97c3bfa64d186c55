//! The one writer: takes what has queued up, commits it in one transaction, then tells everybody.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Io;
use super::disk::{Change, Disk};
use super::witness::Ledger;

/// Called once, when the job is on disk or can no longer get there.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A change that somebody may be waiting for.
pub(super) struct Job {
    pub(super) change: Change,
    /// None: nobody waits; it goes with the next job, or by itself soon after.
    pub(super) done: Option<Done>,
}

/// How long a job that nobody waits for may stay in memory.
const IDLE_FLUSH: Duration = Duration::from_millis(100);

/// Jobs in one transaction, at most.
const BATCH_JOBS: usize = 1024;

/// The first failure. Set once, never cleared: what the disk holds afterwards is not known.
type Failure = Arc<OnceLock<Arc<io::Error>>>;

pub(super) struct Writer {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    failure: Failure,
    queue: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    backlog: Mutex<Backlog>,
    io: Io,
}

/// What waits for [`Writer::write_queued`], with [`Io::Driven`].
#[derive(Default)]
struct Backlog {
    jobs: Vec<Job>,
    closed: bool,
    waker: Option<Waker>,
}

impl Writer {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the thread comes in"
    )]
    pub(super) fn start(disk: Arc<Disk>, ledger: Arc<Ledger>, io: Io) -> io::Result<Self> {
        let failure = Failure::default();
        let (sender, receiver) = channel();
        let thread = match io {
            Io::Inline | Io::Driven => None,
            Io::Threaded => {
                let (disk, ledger, failure) = (disk.clone(), ledger.clone(), failure.clone());
                Some(
                    std::thread::Builder::new()
                        .name("cluster-log".into())
                        .spawn(move || run(&disk, &ledger, &failure, &receiver))?,
                )
            }
        };
        Ok(Writer {
            disk,
            ledger,
            failure,
            queue: Mutex::new(Some(sender)),
            thread: Mutex::new(thread),
            backlog: Mutex::default(),
            io,
        })
    }

    pub(super) fn failure(&self) -> Option<Arc<io::Error>> {
        self.failure.get().cloned()
    }

    pub(super) fn submit(&self, job: Job) {
        // Held while an inline job is written, so that jobs keep their order.
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(sender) = queue.as_ref() else {
            refuse(job, || io::Error::other("the log store is closed"));
            return;
        };
        match self.io {
            Io::Inline => write(&self.disk, &self.ledger, &self.failure, vec![job]),
            Io::Driven => {
                let mut backlog = self.backlog();
                backlog.jobs.push(job);
                backlog.wake();
            }
            Io::Threaded => {
                if let Err(unsent) = sender.send(job) {
                    refuse(unsent.0, || {
                        io::Error::other("the log store's writer has ended")
                    });
                }
            }
        }
    }

    /// Writes what is queued and takes nothing more.
    pub(super) fn close(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(thread) = thread {
            // A panic there has already closed the queue, which is all that matters here.
            let _ = thread.join();
        }
        self.write_queued();
        let mut backlog = self.backlog();
        backlog.closed = true;
        backlog.wake();
    }

    /// Ready when somebody waits for a job in the backlog (true), or nothing will come any more (false).
    pub(super) fn poll_queued(&self, context: &Context<'_>) -> Poll<bool> {
        let mut backlog = self.backlog();
        if backlog.jobs.iter().any(|job| job.done.is_some()) {
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
        let jobs = std::mem::take(&mut self.backlog().jobs);
        write(&self.disk, &self.ledger, &self.failure, jobs);
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Backlog {
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

fn run(disk: &Disk, ledger: &Ledger, failure: &Failure, queue: &Receiver<Job>) {
    let mut batch = Vec::new();
    loop {
        let next = if batch.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(IDLE_FLUSH)
        };
        match next {
            Ok(job) => batch.push(job),
            Err(RecvTimeoutError::Timeout) => {
                write(disk, ledger, failure, std::mem::take(&mut batch));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                write(disk, ledger, failure, batch);
                return;
            }
        }
        while batch.len() < BATCH_JOBS
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        if batch.len() >= BATCH_JOBS || batch.iter().any(|job| job.done.is_some()) {
            write(disk, ledger, failure, std::mem::take(&mut batch));
        }
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
