//! The signals by which a node is asked to stop (SIGTERM, SIGINT) or to restart (SIGUSR2).
//!
//! They are blocked in every thread. One that nobody waits for yet is kept by the kernel, also while one program takes the
//! place of another: the mask and what is pending outlive `execve(2)`, so that the next program gets it.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    ToStop,
    ToRestart,
}

/// Those signals, blocked.
pub(crate) struct Signals {
    to_stop: SigSet,
    all: SigSet,
}

impl Signals {
    /// Blocks them. Threads inherit that, so it is to be called before there are any.
    pub(crate) fn block() -> io::Result<Self> {
        let to_stop: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        let mut all = to_stop;
        all.add(Signal::SIGUSR2);
        all.thread_block()?;
        Ok(Self { to_stop, all })
    }

    /// Waits for the next one.
    pub(crate) fn wait(&self) -> io::Result<Asked> {
        match self.all.wait()? {
            Signal::SIGUSR2 => Ok(Asked::ToRestart),
            _ => Ok(Asked::ToStop),
        }
    }

    /// Waits for a request to stop.
    pub(crate) fn wait_for_stop(&self) -> io::Result<()> {
        self.to_stop.wait()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::raise;

    #[test]
    fn a_signal_that_comes_before_anybody_waits_is_kept() {
        let signals = Signals::block().expect("a mask can be set");
        for (signal, asked) in [
            (Signal::SIGTERM, Asked::ToStop),
            (Signal::SIGUSR2, Asked::ToRestart),
            (Signal::SIGINT, Asked::ToStop),
        ] {
            // To this thread alone, whose mask it is.
            raise(signal).expect("sent");
            assert_eq!(signals.wait().expect("it was sent"), asked);
        }
        raise(Signal::SIGUSR2).expect("sent");
        raise(Signal::SIGTERM).expect("sent");
        signals.wait_for_stop().expect("it was sent");
        assert_eq!(signals.wait().expect("it was sent"), Asked::ToRestart);
    }
}
