//! How a worker sleeps: `ppoll` on the descriptors of its ports and on an eventfd that wakes it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::port::Idle;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Sleeps until a port has a frame, the [`Waker`] is used, or the time is up.
pub struct PollIdle {
    wake: Arc<OwnedFd>,
    latency: Option<CpuLatency>,
}

/// Where the kernel takes requests for how long processors may take to leave an idle state (PM QoS).
const CPU_DMA_LATENCY: &str = "/dev/cpu_dma_latency";
/// What a request says that asks for nothing, in µs (`PM_QOS_CPU_LATENCY_DEFAULT_VALUE`).
const ANY_LATENCY: i32 = 2_000_000_000;
/// In µs: a processor may halt (C1), and no more.
const HALT: i32 = 2;
/// It may not even halt.
const POLL: i32 = 0;
/// Names what chooses the processors' idle states.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// Keeps all processors out of idle states for a while after each frame that has ended a sleep. Leaving a deep one takes
/// tens of microseconds, and so does leaving any in a virtual machine, whose host must put the processor back; each round
/// trip of a client pays that. The kernel forgets the request when the process ends.
pub struct CpuLatency {
    request: File,
    /// What it asks for, in µs.
    wanted: i32,
    hold: Duration,
    /// While held: until when.
    until: Option<Instant>,
}

impl CpuLatency {
    /// A request that asks for nothing until a frame ends a sleep, and then for `hold`.
    ///
    /// # Errors
    /// The kernel has no PM QoS, or the process may not ask (it takes root, or the device's owner).
    pub fn open(hold: Duration) -> std::io::Result<Self> {
        let driver = std::fs::read_to_string(IDLE_DRIVER).unwrap_or_default();
        // The driver of virtual machines, where to halt is to leave to the host.
        let wanted = if driver.trim() == "haltpoll" {
            POLL
        } else {
            HALT
        };
        Self::at(Path::new(CPU_DMA_LATENCY), wanted, hold)
    }

    fn at(device: &Path, wanted: i32, hold: Duration) -> std::io::Result<Self> {
        Ok(Self {
            request: OpenOptions::new().write(true).open(device)?,
            wanted,
            hold,
            until: None,
        })
    }

    /// A frame has ended a sleep.
    fn extend(&mut self) {
        if self.until.is_none() {
            self.ask_for(self.wanted);
        }
        self.until = Some(Instant::now() + self.hold);
    }

    /// How long it is held yet.
    fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn release(&mut self) {
        if self.until.take().is_some() {
            self.ask_for(ANY_LATENCY);
        }
    }

    fn ask_for(&mut self, us: i32) {
        // Without it a sleep ends a little later.
        let _ = self.request.write_all(&us.to_ne_bytes());
    }
}

/// Wakes one [`PollIdle`], from any thread.
#[derive(Clone)]
pub struct Waker {
    wake: Arc<OwnedFd>,
}

impl PollIdle {
    /// A sleeper with an eventfd of its own.
    pub fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            wake: Arc::new(wake),
            latency: None,
        })
    }

    /// The same sleeper, which keeps the processors awake after each frame that ends a sleep.
    #[must_use]
    pub fn with_latency(self, latency: CpuLatency) -> Self {
        Self {
            latency: Some(latency),
            ..self
        }
    }

    /// A handle that ends the sleep, now or the next time.
    pub fn waker(&self) -> Waker {
        Waker {
            wake: Arc::clone(&self.wake),
        }
    }
}

impl Waker {
    /// Ends the current sleep; if there is none, the next one ends at once.
    pub fn wake(&self) {
        // Full (2^64 - 2 wakes unread) means that it is awake already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Idle for PollIdle {
    fn wait(&mut self, fds: &[i32], timeout: Duration) {
        // A worker has a handful of ports: no allocation below this many.
        const INLINE: usize = 8;
        let wake = Arc::clone(&self.wake);
        let wake = PollFd::new(&wake, PollFlags::IN);
        if fds.len() < INLINE {
            let mut set: [PollFd<'_>; INLINE] = std::array::from_fn(|_| wake.clone());
            for (slot, fd) in set[1..].iter_mut().zip(fds) {
                *slot = PollFd::from_borrowed_fd(borrow(*fd), PollFlags::IN);
            }
            self.sleep(&mut set[..=fds.len()], timeout);
        } else {
            let mut set = vec![wake];
            set.extend(
                fds.iter()
                    .map(|fd| PollFd::from_borrowed_fd(borrow(*fd), PollFlags::IN)),
            );
            self.sleep(&mut set, timeout);
        }
    }

    fn stays_awake(&mut self) {
        if let Some(latency) = &mut self.latency {
            latency.release();
        }
    }
}

impl PollIdle {
    fn sleep(&mut self, set: &mut [PollFd<'_>], mut timeout: Duration) {
        let mut ready = 0;
        if let Some(latency) = &mut self.latency
            && let Some(held) = latency.left()
        {
            ready = ready_within(set, held.min(timeout));
            if ready == 0 && held <= timeout {
                latency.release();
                timeout -= held;
            } else {
                timeout = Duration::ZERO;
            }
        }
        if ready == 0 && !timeout.is_zero() {
            ready = ready_within(set, timeout);
        }
        if ready == 0 {
            return;
        }
        let is_woken = set[0].revents().contains(PollFlags::IN);
        if is_woken {
            let mut count = [0; 8];
            let _ = rustix::io::read(self.wake.as_fd(), &mut count);
        }
        if let Some(latency) = &mut self.latency
            && ready > usize::from(is_woken)
        {
            latency.extend();
        }
    }
}

/// How many of the set are ready; none if the time is up before that, or the sleep is interrupted, or memory is out: the
/// worker looks at its ports and comes back.
fn ready_within(set: &mut [PollFd<'_>], timeout: Duration) -> usize {
    let timeout = Timespec::try_from(timeout).ok();
    poll(set, timeout.as_ref()).unwrap_or(0)
}

/// The descriptors that a [`engine::port::Port`] names by number.
fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: the worker that sleeps owns the ports, so they are open for the length of the call;
    // the descriptor is only polled, so at worst a wrong one ends the sleep early.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_wake_before_the_sleep_is_not_lost_and_counts_once() {
        let mut idle = PollIdle::new().expect("eventfd");
        idle.waker().wake();
        idle.waker().wake();
        idle.wait(&[], LONG);
        let mut count = [0; 8];
        assert!(
            rustix::io::read(&idle.wake, &mut count).is_err(),
            "both wakes were taken"
        );
    }

    #[test]
    fn a_wake_from_another_thread_ends_the_sleep() {
        let mut idle = PollIdle::new().expect("eventfd");
        let waker = idle.waker();
        std::thread::scope(|scope| {
            scope.spawn(move || waker.wake());
            idle.wait(&[], LONG);
        });
    }

    #[test]
    fn a_readable_descriptor_ends_the_sleep() {
        let ready = eventfd(1, EventfdFlags::empty()).expect("eventfd");
        let mut idle = PollIdle::new().expect("eventfd");
        idle.wait(&[ready.as_raw_fd()], LONG);
        idle.wait(&[ready.as_raw_fd(); 20], LONG);
    }

    #[test]
    fn processors_are_kept_awake_after_a_frame_and_no_longer() {
        let dir = tempfile::tempdir().expect("a directory");
        let device = dir.path().join("latency");
        std::fs::write(&device, []).expect("a file");
        // A file keeps all that was written, where the device keeps the last of it.
        let asked = || {
            let bytes = std::fs::read(&device).expect("a file");
            let values = bytes
                .chunks(4)
                .map(|us| i32::from_ne_bytes(us.try_into().expect("whole")));
            values.collect::<Vec<_>>()
        };
        let idle = |hold| {
            let latency = CpuLatency::at(&device, HALT, hold).expect("a file");
            PollIdle::new().expect("eventfd").with_latency(latency)
        };
        let frame = eventfd(1, EventfdFlags::empty()).expect("eventfd");

        let mut long = idle(LONG);
        long.waker().wake();
        long.wait(&[], LONG);
        long.wait(&[], Duration::from_millis(1));
        assert!(asked().is_empty(), "there was no frame");
        long.wait(&[frame.as_raw_fd()], LONG);
        long.wait(&[frame.as_raw_fd()], LONG);
        long.wait(&[], Duration::from_millis(1));
        assert_eq!(asked(), [HALT], "the hold has not ended");
        long.stays_awake();
        long.stays_awake();
        assert_eq!(asked(), [HALT, ANY_LATENCY], "it does not sleep");

        std::fs::write(&device, []).expect("a file");
        let mut short = idle(Duration::from_millis(1));
        short.wait(&[frame.as_raw_fd()], LONG);
        short.wait(&[], Duration::from_millis(20));
        assert_eq!(asked(), [HALT, ANY_LATENCY]);
        short.wait(&[frame.as_raw_fd()], LONG);
        assert_eq!(
            asked(),
            [HALT, ANY_LATENCY, HALT],
            "and for the next one again"
        );
    }

    #[test]
    fn the_time_is_up_at_once_for_a_zero_timeout() {
        PollIdle::new().expect("eventfd").wait(&[], Duration::ZERO);
    }
}
