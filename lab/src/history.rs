//! What clients asked of the cluster and what they were told: the record that [`check()`] judges.
//!
//! A history is linearizable when there is one order of all operations that explains every answer, and in which each
//! operation stands somewhere between its call and its return (Herlihy and Wing, 1990). Every key is a register of
//! its own with a revision that each write raises by one, as the policy and every account are; so each key is judged
//! by itself.
//!
//! Nobody may know what became of an operation whose answer was lost: it may have taken effect at any time after its
//! call, also long after its client gave up, or never.

mod check;

pub use check::{Verdict, Violation, check};

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is written; no two writes of a history write the same, so that a read names the write that it saw.
pub type Value = u64;

/// What a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Counts writes.
    pub revision: u64,
    /// What the last one wrote.
    pub value: Value,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tell what the register holds.
    Read,
    /// Hold this, whatever was there.
    Write(Value),
    /// Hold this if the register is still at that revision.
    Replace {
        /// The revision that the client has seen.
        expected: u64,
        /// What it wants there.
        value: Value,
    },
}

/// What it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What the register holds.
    Seen(Version),
    /// The write is now this revision.
    Written(u64),
    /// Another write came first: nothing was done.
    Conflict,
    /// Nothing that says what became of it.
    Unknown,
}

/// One operation on one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// What for.
    pub action: Action,
    /// What it was told.
    pub outcome: Outcome,
    /// When it asked, in nanoseconds since the history began.
    pub called: u64,
    /// When it was told; of no meaning when it was not.
    pub returned: u64,
}

/// All operations on one register, and what it held before.
#[derive(Debug, Clone)]
pub struct Register {
    /// Before the first operation.
    pub start: Version,
    /// In any order.
    pub operations: Vec<Operation>,
}

/// A record that several clients write at once.
#[derive(Debug)]
pub struct History {
    begin: Instant,
    registers: Mutex<BTreeMap<String, Register>>,
}

impl Default for History {
    fn default() -> Self {
        History {
            begin: Instant::now(),
            registers: Mutex::default(),
        }
    }
}

impl History {
    /// Takes up a register, with what it holds now.
    pub fn open(&self, key: &str, start: Version) {
        let register = Register {
            start,
            operations: Vec::new(),
        };
        self.registers().insert(key.to_owned(), register);
    }

    /// The time to give as an operation's call.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes down an operation that was called at `called` and has just ended. One that certainly did nothing, such as
    /// a read without an answer or a refused write, is not to be given here.
    ///
    /// # Panics
    /// When the register was not opened.
    pub fn add(&self, key: &str, client: usize, action: Action, outcome: Outcome, called: u64) {
        let operation = Operation {
            client,
            action,
            outcome,
            called,
            returned: self.now(),
        };
        self.registers()
            .get_mut(key)
            .expect("a register is opened before it is used")
            .operations
            .push(operation);
    }

    /// Every register with its operations.
    #[must_use]
    pub fn into_registers(self) -> BTreeMap<String, Register> {
        self.registers
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn registers(&self) -> MutexGuard<'_, BTreeMap<String, Register>> {
        // Nothing in there can panic half-way.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
