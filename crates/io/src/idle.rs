//! How a worker sleeps: `ppoll` on the descriptors of its ports and on an eventfd that wakes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use engine::port::Idle;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Sleeps until a port has a frame, the [`Waker`] is used, or the time is up.
pub struct PollIdle {
    wake: Arc<OwnedFd>,
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
        })
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
        let timeout = Timespec::try_from(timeout).ok();
        let wake = PollFd::new(&self.wake, PollFlags::IN);
        if fds.len() < INLINE {
            let mut set: [PollFd<'_>; INLINE] = std::array::from_fn(|_| wake.clone());
            for (slot, fd) in set[1..].iter_mut().zip(fds) {
                *slot = PollFd::from_borrowed_fd(borrow(*fd), PollFlags::IN);
            }
            self.sleep(&mut set[..=fds.len()], timeout.as_ref());
        } else {
            let mut set = vec![wake];
            set.extend(
                fds.iter()
                    .map(|fd| PollFd::from_borrowed_fd(borrow(*fd), PollFlags::IN)),
            );
            self.sleep(&mut set, timeout.as_ref());
        }
    }
}

impl PollIdle {
    fn sleep(&self, set: &mut [PollFd<'_>], timeout: Option<&Timespec>) {
        // Interrupted, or out of memory: the worker looks at its ports and comes back.
        if poll(set, timeout).is_ok() && set[0].revents().contains(PollFlags::IN) {
            let mut count = [0; 8];
            let _ = rustix::io::read(self.wake.as_fd(), &mut count);
        }
    }
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
    fn the_time_is_up_at_once_for_a_zero_timeout() {
        PollIdle::new().expect("eventfd").wait(&[], Duration::ZERO);
    }
}
