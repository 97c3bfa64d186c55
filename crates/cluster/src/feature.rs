//! Feature levels: what a cluster of neighbouring versions may write down.
//!
//! Members of two versions share one log while a cluster is upgraded. A member stops at a command that it does not know
//! ([`TooOld`]), so nothing is proposed before every member reads it: each command has a level ([`Command::level`]), the
//! replicated state has the level in force, and [`Node::propose`](crate::Node::propose) refuses what is above. The
//! leader raises the level by itself once all members have supported the next one for a while, so that until then every
//! node can go back to the version that it came from.
//!
//! A level is needed by whatever an older version would not read, *or would pass over in silence*, since its state would
//! then differ: a new command, a new variant of an enum inside one, a field that is not at its default, and a changed
//! rule in `State::apply` (which looks at [`State::feature_level`] to tell).

use std::sync::{Arc, OnceLock};

use crate::command::{Command, EventKind};
use crate::id::NodeId;
use crate::state::State;

/// The feature level of this version.
pub const FEATURE_LEVEL: u32 = 2;

/// This version, as it is named to operators.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Command {
    /// The feature level that the cluster must have reached before this command may be proposed.
    pub fn level(&self) -> u32 {
        match self {
            Command::Init(_)
            | Command::PutChunk { .. }
            | Command::PutPolicy { .. }
            | Command::AddSigningKey(_)
            | Command::RetireSigningKey { .. }
            | Command::CreateAccount(_)
            | Command::UpdateAccount { .. }
            | Command::DisableAccount { .. }
            | Command::CreateToken { .. }
            | Command::RevokeToken { .. }
            | Command::PutSettings { .. }
            | Command::CreateJoinToken { .. }
            | Command::RevokeJoinToken { .. }
            | Command::ReserveMember(_)
            | Command::ConfirmMember { .. }
            | Command::UpdateMember { .. }
            | Command::RemoveMember { .. }
            | Command::ReleaseMember { .. }
            // Its version is read by all that support the level itself, and applied once all do.
            | Command::RaiseFeatureLevel { .. } => 1,
            Command::SetSuffrage { .. } | Command::DrainMember { .. } => 2,
            Command::RecordEvent { kind, .. } => kind.level(),
            Command::Trust(_) => 2,
        }
    }
}

impl EventKind {
    /// As [`Command::level`].
    pub fn level(self) -> u32 {
        match self {
            EventKind::JoinRefused
            | EventKind::ForeignCluster
            | EventKind::DuplicateIdentity
            | EventKind::BreakGlass => 1,
            EventKind::OutOfDate | EventKind::Recovered => 2,
        }
    }
}

/// The level in force, and what the next one waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// The level in force.
    pub level: u32,
    /// The highest level that this node supports.
    pub supported: u32,
    /// Members that hold back the level which this node supports, each as a sentence for operators.
    pub held_back_by: Vec<String>,
}

impl Features {
    /// What a command of level `needed` waits for, as a sentence.
    pub fn waits_for(&self, needed: u32) -> String {
        let level = self.level;
        match self.held_back_by.as_slice() {
            [] => format!(
                "the cluster is at feature level {level}; {needed} follows by itself now that every member supports it"
            ),
            members => format!(
                "the cluster is at feature level {level}, this needs {needed}: {}",
                members.join("; ")
            ),
        }
    }
}

/// What a member stands for in the question which level all support.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) live: bool,
    pub(crate) supported: u32,
}

impl Candidate {
    /// Why this member does not let the level rise to `wanted`; none: it does.
    ///
    /// One that does not answer may come back as an older version: what it supported once does not count.
    pub(crate) fn objection(&self, wanted: u32) -> Option<String> {
        let name = match self.name.as_str() {
            "" => self.node_id.to_string(),
            name => format!("{} ({name})", self.node_id),
        };
        match (self.supported, self.live) {
            (_, false) => Some(format!("{name} does not answer")),
            (0, true) => Some(format!("{name} has not said yet what it supports")),
            (supported, true) if supported < wanted => {
                let version = match self.version.as_str() {
                    "" => "an older version".into(),
                    version => format!("version {version}"),
                };
                Some(format!("{name} runs {version}, which supports {supported}"))
            }
            _ => None,
        }
    }
}

/// A log or a snapshot that this version cannot go on with: a newer one has written it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooOld {
    /// The level in force is above what this version supports.
    #[error(
        "the cluster is at feature level {level}, and this is version {VERSION}, which supports {supported}: start \
         version {} here",
        newer(version)
    )]
    Level {
        /// The level in force.
        level: u32,
        /// The version whose members raised it; empty if that is not known.
        version: String,
        /// What this version supports.
        supported: u32,
    },
    /// An entry holds what this version does not know.
    #[error(
        "log entry {index} holds a command that version {VERSION} does not know ({what}): start the newer version that \
         wrote it here"
    )]
    Command {
        /// Index of the entry.
        index: u64,
        /// What the decoder says.
        what: String,
    },
}

fn newer(version: &str) -> String {
    match version {
        "" => "that the other members run".into(),
        version => format!("{version} or newer"),
    }
}

impl TooOld {
    /// An error if `state` is at a level above `supported`.
    pub(crate) fn check(state: &State, supported: u32) -> Result<(), TooOld> {
        let level = state.feature_level();
        if level <= supported {
            return Ok(());
        }
        Err(TooOld::Level {
            level,
            version: state.feature_version().to_owned(),
            supported,
        })
    }
}

impl From<TooOld> for std::io::Error {
    fn from(error: TooOld) -> Self {
        std::io::Error::new(std::io::ErrorKind::Unsupported, error)
    }
}

/// Where the state machine leaves why it stopped, for those who only learn that consensus has.
pub(crate) type Verdict = Arc<OnceLock<TooOld>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(supported: u32, live: bool) -> Candidate {
        Candidate {
            node_id: NodeId(0xa1),
            name: "berlin-1".into(),
            version: "0.1.0".into(),
            live,
            supported,
        }
    }

    #[test]
    fn a_member_objects_unless_it_is_there_and_supports_the_level() {
        for (supported, live, says) in [
            (2, true, None),
            (3, true, None),
            (
                1,
                true,
                Some("00000000000000a1 (berlin-1) runs version 0.1.0, which supports 1"),
            ),
            (
                0,
                true,
                Some("00000000000000a1 (berlin-1) has not said yet what it supports"),
            ),
            (
                2,
                false,
                Some("00000000000000a1 (berlin-1) does not answer"),
            ),
        ] {
            let objection = candidate(supported, live).objection(2);
            assert_eq!(objection.as_deref(), says, "{supported} {live}");
        }
    }

    #[test]
    fn what_is_too_old_names_the_version_to_start() {
        let error = TooOld::Level {
            level: 3,
            version: "9.1.0".into(),
            supported: 2,
        };
        let text = error.to_string();
        assert!(
            text.ends_with("start version 9.1.0 or newer here"),
            "{text}"
        );
    }
}
