//! How long flows lasted.

use std::time::Duration;

use super::Counter;
use crate::clock::TICK_SHIFT;
use crate::tcp::{Connection, End, State};

/// Flows by the time from their first to their last packet. Times are counted in steps of 67 ms, and up to
/// 6.5 days: longer ones count as that.
#[derive(Debug, Default)]
pub struct Ages {
    flows: [Counter; Ages::BOUNDS.len() + 1],
    ticks: Counter,
}

impl Ages {
    /// The longest time of the flows of each bucket, seconds; the last bucket has no bound.
    pub const BOUNDS: [f64; 16] = [
        0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0,
        21_600.0, 86_400.0,
    ];

    /// The same in ticks.
    const TICKS: [u32; Ages::BOUNDS.len()] = {
        let mut ticks = [0; Ages::BOUNDS.len()];
        let mut i = 0;
        while i < ticks.len() {
            ticks[i] = (Ages::BOUNDS[i] * 1e9 / (1u64 << TICK_SHIFT) as f64) as u32;
            i += 1;
        }
        ticks
    };

    /// Flows by bucket: each is in one.
    pub fn flows(&self) -> [u64; Ages::BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.flows[bucket].get())
    }

    /// The time of all together.
    pub fn time(&self) -> Duration {
        let nanos = u128::from(self.ticks.get()) << TICK_SHIFT;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(crate) fn note(&self, ticks: u32) {
        let bucket = Self::TICKS.partition_point(|bound| *bound < ticks);
        self.flows[bucket].inc();
        self.ticks.add(u64::from(ticks));
    }
}

/// How far the handshake of a TCP flow had come when the flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Only the client had been heard, or the server had refused the connection.
    Syn,
    /// The server had answered, and the client had not answered that.
    SynAck,
    /// The connection had been open.
    Complete,
    /// One end had reset it after both had been heard.
    Reset,
}

impl Completion {
    /// All, in the order of their discriminants.
    pub const ALL: [Completion; 4] = [
        Completion::Syn,
        Completion::SynAck,
        Completion::Complete,
        Completion::Reset,
    ];

    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Completion::Syn => "syn",
            Completion::SynAck => "syn_ack",
            Completion::Complete => "complete",
            Completion::Reset => "reset",
        }
    }

    pub(crate) fn of(connection: &Connection) -> Completion {
        match connection.state {
            State::SynSent => Completion::Syn,
            State::SynReceived => Completion::SynAck,
            State::Established | State::Closing | State::TimeWait => Completion::Complete,
            State::Reset if connection.next_of(End::Server).is_none() => Completion::Syn,
            State::Reset => Completion::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flow_is_in_the_first_bucket_that_takes_it() {
        let ages = Ages::default();
        // 67 ms, 134 ms, 1.07 s, 400 days.
        for ticks in [0, 1, 2, 16, 515_000_000] {
            ages.note(ticks);
        }
        let mut expected = [0; 17];
        (expected[0], expected[1], expected[3], expected[16]) = (2, 1, 1, 1);
        assert_eq!(ages.flows(), expected);
        assert_eq!(
            ages.time().as_secs(),
            (515_000_019u64 << 26) / 1_000_000_000
        );
    }
}
