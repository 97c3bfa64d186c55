//! Faults of our own making, one each around the real parts: a simulation that does not find them proves nothing.

use std::fmt;

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The disk says that it has synced, and has not.
    SyncSkipped,
    /// A client is told that its write is done as soon as the leader has it.
    AcknowledgedEarly,
    /// A machine that joins anew goes by the id that it had before.
    IdReused,
    /// The replay agent is handed policies when they are proposed.
    EnforcedEarly,
    /// A member that has restarted asks itself what it may have forgotten, and takes that for the others' answers.
    GuardAsleep,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 5] = [
        Mutant::SyncSkipped,
        Mutant::AcknowledgedEarly,
        Mutant::IdReused,
        Mutant::EnforcedEarly,
        Mutant::GuardAsleep,
    ];
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mutant::SyncSkipped => "a sync skipped",
            Mutant::AcknowledgedEarly => "acknowledged before quorum",
            Mutant::IdReused => "an id reused",
            Mutant::EnforcedEarly => "enforced before commit",
            Mutant::GuardAsleep => "nobody asked what was forgotten",
        })
    }
}
