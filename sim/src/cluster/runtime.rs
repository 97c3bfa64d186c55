//! The async runtime of a simulated world: openraft's simulated clock and channels, and a scheduler of our own.
//!
//! openraft-rt-sim polls tasks in the order in which they became ready. Real schedulers do not, so here the seed picks
//! one of those that are ready, whatever woke them in whatever order; that also keeps the random wake-up order of
//! tokio's channels out of the story. Every task belongs to a process, so that a process can be killed at any await,
//! or stopped and continued, as by signals.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::AsyncRuntime;
use openraft::Instant as _;
use openraft_rt_sim::{Elapsed, SimInstant, SimJoinError, SimRuntime, SimSleep, SimTimeout};
use tokio::sync::oneshot;

use super::random::{Random, mix};

/// Tasks that belong together and die together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(u64);

/// What is not a node: the story itself, its clients, the network's cables.
pub const WORLD: Process = Process(0);

/// The future that was passed to [`run`].
const MAIN: u64 = 0;

/// Polls while time stands still, before a loop is assumed.
const MAX_POLLS_PER_INSTANT: u32 = 200_000;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Scheduler>>> = const { RefCell::new(None) };
}

/// The scheduler of the world that runs on this thread.
pub fn scheduler() -> Arc<Scheduler> {
    CURRENT.with(|current| current.borrow().clone().expect("called inside of a world"))
}

/// Virtual time since the world began.
pub fn now() -> Duration {
    SimInstant::now().elapsed_since_start()
}

/// Runs `main` in a world of its own. `after_step` is called after every poll with the process whose task it was.
pub fn run<T>(seed: u64, after_step: impl FnMut(Process), main: impl Future<Output = T>) -> T {
    let scheduler = Arc::new(Scheduler {
        inner: Mutex::new(Inner {
            random: Random::new(seed).fork(1),
            tasks: BTreeMap::new(),
            ready: BTreeSet::from([MAIN]),
            stalled: BTreeSet::new(),
            next_task: MAIN + 1,
            next_process: WORLD.0 + 1,
            current: WORLD,
            outer: None,
            trace: 0,
            polls: 0,
            instant: Duration::ZERO,
            panics: Vec::new(),
        }),
    });
    CURRENT.with(|current| *current.borrow_mut() = Some(scheduler.clone()));
    let mut runtime = SimRuntime::with_seed(mix(seed));
    let waker = scheduler.waker(MAIN);
    let mut main = std::pin::pin!(main);
    let mut after_step = after_step;
    let output = runtime.block_on(std::future::poll_fn(|context| {
        scheduler.inner().outer = Some(context.waker().clone());
        while let Some(id) = scheduler.next() {
            if id == MAIN {
                if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    scheduler.drop_tasks(|_| true);
                    return Poll::Ready(output);
                }
                after_step(WORLD);
            } else if let Some(process) = scheduler.poll(id) {
                after_step(process);
            }
        }
        Poll::Pending
    }));
    CURRENT.with(|current| *current.borrow_mut() = None);
    output
}

/// Decides who runs next.
pub struct Scheduler {
    inner: Mutex<Inner>,
}

struct Inner {
    random: Random,
    tasks: BTreeMap<u64, Task>,
    ready: BTreeSet<u64>,
    stalled: BTreeSet<Process>,
    next_task: u64,
    next_process: u64,
    current: Process,
    /// Wakes the runtime below when one of our tasks becomes ready while all slept.
    outer: Option<Waker>,
    trace: u64,
    polls: u32,
    instant: Duration,
    panics: Vec<String>,
}

struct Task {
    process: Process,
    /// None while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Waker,
}

struct TaskWaker {
    id: u64,
    scheduler: Weak<Scheduler>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let Some(scheduler) = self.scheduler.upgrade() else {
            return;
        };
        let outer = {
            let mut inner = scheduler.inner();
            if self.id != MAIN && !inner.tasks.contains_key(&self.id) {
                return;
            }
            inner.ready.insert(self.id);
            inner.outer.clone()
        };
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}

impl Scheduler {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that can panic runs under this lock.
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn waker(self: &Arc<Self>, id: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker {
            id,
            scheduler: Arc::downgrade(self),
        }))
    }

    /// One of those that are ready and not stalled, picked by the seed.
    fn next(&self) -> Option<u64> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let runs = |id: &&u64| {
            **id == MAIN
                || inner
                    .tasks
                    .get(id)
                    .is_some_and(|task| !inner.stalled.contains(&task.process))
        };
        let id = if inner.stalled.is_empty() {
            let chosen = inner.random.index(inner.ready.len());
            *inner.ready.iter().nth(chosen)?
        } else {
            let able: Vec<u64> = inner.ready.iter().filter(runs).copied().collect();
            *able.get(inner.random.index(able.len()))?
        };
        inner.ready.remove(&id);
        let instant = now();
        if instant != inner.instant {
            (inner.instant, inner.polls) = (instant, 0);
        }
        inner.polls += 1;
        assert!(
            inner.polls < MAX_POLLS_PER_INSTANT,
            "task {id} loops without time passing"
        );
        inner.note(u64::try_from(instant.as_nanos()).unwrap_or(u64::MAX));
        inner.note(id);
        Some(id)
    }

    fn poll(&self, id: u64) -> Option<Process> {
        let (process, mut future, waker) = {
            let mut inner = self.inner();
            let task = inner.tasks.get_mut(&id)?;
            let taken = (task.process, task.future.take()?, task.waker.clone());
            inner.current = taken.0;
            taken
        };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        let mut inner = self.inner();
        inner.current = WORLD;
        match polled {
            Ok(Poll::Pending) => {
                // It is gone if its process was killed meanwhile.
                if let Some(task) = inner.tasks.get_mut(&id) {
                    task.future = Some(future);
                    return Some(process);
                }
            }
            Ok(Poll::Ready(())) => {
                inner.tasks.remove(&id);
            }
            Err(payload) => {
                let message = payload
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| {
                        payload
                            .downcast_ref::<&str>()
                            .map(|text| (*text).to_owned())
                    })
                    .unwrap_or_else(|| "a panic without a message".into());
                inner.panics.push(message);
                inner.tasks.remove(&id);
            }
        }
        drop(inner);
        // Outside of the lock: whatever it owned may wake others.
        drop(future);
        Some(process)
    }

    fn spawn(self: &Arc<Self>, process: Option<Process>, future: BoxFuture<'static, ()>) {
        let mut inner = self.inner();
        let id = inner.next_task;
        inner.next_task += 1;
        let task = Task {
            process: process.unwrap_or(inner.current),
            future: Some(future),
            waker: self.waker(id),
        };
        inner.tasks.insert(id, task);
        inner.ready.insert(id);
        if let Some(outer) = inner.outer.clone() {
            drop(inner);
            outer.wake();
        }
    }

    /// A process without tasks yet.
    pub fn new_process(&self) -> Process {
        let mut inner = self.inner();
        inner.next_process += 1;
        Process(inner.next_process - 1)
    }

    /// Ends every task of a process between two awaits, as SIGKILL does. Not from within it.
    pub fn kill(&self, process: Process) {
        self.inner().stalled.remove(&process);
        self.drop_tasks(|owner| owner == process);
    }

    /// Stops a process where it stands, or lets it go on: SIGSTOP, SIGCONT.
    pub fn stall(&self, process: Process, stalled: bool) {
        let mut inner = self.inner();
        if stalled {
            inner.stalled.insert(process);
        } else {
            inner.stalled.remove(&process);
        }
    }

    fn drop_tasks(&self, which: impl Fn(Process) -> bool) {
        // Dropping a task may start others, as a last wish.
        loop {
            let gone: Vec<Task> = {
                let mut inner = self.inner();
                let ids: Vec<u64> = inner
                    .tasks
                    .iter()
                    .filter(|(_, task)| which(task.process))
                    .map(|(id, _)| *id)
                    .collect();
                ids.iter()
                    .filter_map(|id| {
                        inner.ready.remove(id);
                        inner.tasks.remove(id)
                    })
                    .collect()
            };
            if gone.is_empty() {
                return;
            }
        }
    }

    /// Adds something that happened to the trace.
    pub fn note(&self, event: u64) {
        self.inner().note(event);
    }

    /// Everything that happened so far, as one number: who was polled when, and what was noted.
    pub fn trace(&self) -> u64 {
        self.inner().trace
    }

    /// What tasks have panicked with since the last call.
    pub fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().panics)
    }
}

impl Inner {
    fn note(&mut self, event: u64) {
        self.trace = mix(self.trace.rotate_left(5) ^ event);
    }
}

/// Starts a task of `process`.
pub fn spawn_in<T: Send + 'static>(
    process: Process,
    future: impl Future<Output = T> + Send + 'static,
) -> Handle<T> {
    start(Some(process), future)
}

fn start<T: Send + 'static>(
    process: Option<Process>,
    future: impl Future<Output = T> + Send + 'static,
) -> Handle<T> {
    let (sender, receiver) = oneshot::channel();
    let task = async move {
        // The handle may have been dropped: the task is detached then.
        let _ = sender.send(future.await);
    };
    scheduler().spawn(process, Box::pin(task));
    Handle { receiver }
}

/// Ends with a task's result, or with [`SimJoinError::Cancelled`] when its process was killed or it panicked.
pub struct Handle<T> {
    receiver: oneshot::Receiver<T>,
}

impl<T> Future for Handle<T> {
    type Output = Result<T, SimJoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().receiver)
            .poll(context)
            .map_err(|_| SimJoinError::Cancelled)
    }
}

/// The runtime, as the cluster's code and openraft know it.
#[derive(Debug)]
pub struct Sim {
    seed: u64,
}

impl AsyncRuntime for Sim {
    type JoinError = SimJoinError;
    type JoinHandle<T: Send + 'static> = Handle<T>;
    type Sleep = SimSleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = SimTimeout<T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Handle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        start(None, future)
    }

    fn sleep(duration: Duration) -> SimSleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: SimInstant) -> SimSleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> SimTimeout<F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: SimInstant,
        future: F,
    ) -> SimTimeout<F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &SimJoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(_threads: usize) -> Self {
        Sim { seed: 0 }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        run(self.seed, |_| {}, future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten tasks that take turns, and the order in which they did.
    fn order(seed: u64) -> Vec<usize> {
        let order = Arc::new(Mutex::new(Vec::new()));
        run(seed, |_| {}, async {
            let tasks: Vec<_> = (0..10)
                .map(|n| {
                    let order = order.clone();
                    Sim::spawn(async move {
                        for _ in 0..3 {
                            order.lock().expect("no panic").push(n);
                            Sim::sleep(Duration::from_millis(1)).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("ends");
            }
        });
        Arc::into_inner(order)
            .expect("all ended")
            .into_inner()
            .expect("no panic")
    }

    #[test]
    fn the_seed_shuffles_what_is_ready() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_ne!(order(1)[..10], order(1)[10..20]);
    }

    #[test]
    fn a_killed_process_ends_at_once_and_a_stalled_one_goes_on() {
        run(3, |_| {}, async {
            let scheduler = scheduler();
            let (doomed, slow) = (scheduler.new_process(), scheduler.new_process());
            let killed = spawn_in(doomed, async { Sim::sleep(Duration::from_secs(1)).await });
            let stalled = spawn_in(slow, async {
                Sim::sleep(Duration::from_secs(1)).await;
                now()
            });
            scheduler.stall(slow, true);
            Sim::sleep(Duration::from_millis(1)).await;
            scheduler.kill(doomed);
            assert_eq!(killed.await, Err(SimJoinError::Cancelled));
            Sim::sleep(Duration::from_secs(5)).await;
            scheduler.stall(slow, false);
            // It first ran when it was let go: its second begins then.
            let end = stalled.await.expect("ends");
            assert!(end > Duration::from_secs(5), "{end:?}");
        });
    }

    #[test]
    fn panics_are_kept() {
        run(3, |_| {}, async {
            let broken = Sim::spawn(async { panic!("broken") });
            assert!(broken.await.is_err());
            assert_eq!(scheduler().take_panics(), ["broken"]);
        });
    }
}
