//! Network namespaces without names: each is a thread that runs what it is given, and ends with
//! the program however that ends.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::{Pid, gettid};

type Job = Box<dyn FnOnce() + Send>;

/// A namespace with its own interfaces, firewall and `/sys`.
pub(crate) struct Space {
    jobs: Sender<Job>,
    thread_id: Pid,
    _thread: JoinHandle<()>,
}

impl Space {
    pub(crate) fn new() -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (answer, answered) = channel();
        let thread = std::thread::spawn(move || {
            let entered = enter();
            let failed = entered.is_err();
            if answer.send(entered.map(|()| gettid())).is_err() || failed {
                return;
            }
            for job in todo {
                job();
            }
        });
        let thread_id = answered
            .recv()
            .context("the thread of a namespace ended")??;
        Ok(Self {
            jobs,
            thread_id,
            _thread: thread,
        })
    }

    /// How `ip link` names it.
    pub(crate) fn thread_id(&self) -> Pid {
        self.thread_id
    }

    /// Runs a function inside and returns what it returns.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let job = Box::new(move || {
            let _ = answer.send(function());
        });
        self.jobs
            .send(job)
            .ok()
            .context("the thread of a namespace has ended")?;
        answered.recv().context("a job in a namespace panicked")
    }

    /// Runs a shell script inside and returns what it prints.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        let script = script.to_owned();
        self.run(move || sh(&script))?
    }

    /// Starts a function in a thread of its own, inside.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        // Threads inherit their parent's namespaces.
        self.run(move || std::thread::spawn(function))
    }
}

fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("a network namespace needs root")?;
    sh("mount --make-rslave / && mount -t sysfs sysfs /sys && ip link set lo up")?;
    Ok(())
}

/// Runs a shell script in the namespaces of this thread.
pub(crate) fn sh(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    if !output.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Keeps this thread on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    Ok(())
}
