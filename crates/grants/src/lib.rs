//! Which addresses names were found to have, for whom, and for how long.
//!
//! A **grant** lets clients of a source group, or one client, reach an address by the rules that a name matches. What is
//! kept and told to peers is (group id, name, client?, address); the rules follow from it by the policy that is in force
//! here, so a grant of a group or a rule that this node's policy does not know yet is inert until that policy arrives, and a
//! policy edit ends no grant whose name some rule still matches.
//!
//! Each node that has learned a grant, or has live flows that use it, has a **claim** on it with a time of its own. A grant
//! is in force while anybody has one. A node tells its peers of its own claims in an ordered stream ([`stream`]); each of
//! them knows at every place of it the sum over all of that node's claims, and asks for all of them anew if its own differs.
//!
//! Times are milliseconds on a clock of the caller's that does not go backwards; what travels or is stored is the life that
//! remains.

mod claims;
mod counted;
mod store;
pub mod stream;

pub use store::{Asked, Grant, Learned, Settings, State, Store, Tally, Wanted};

/// Who has a claim: a node's id, or [`OWN`].
pub type Origin = u64;

/// This node, in its own store. No node has this id.
pub const OWN: Origin = 0;

/// Shortest time to live that an answer is taken to have, in seconds.
pub const MIN_TTL_S: u32 = 60;
/// Longest time to live that an answer is taken to have, in seconds.
pub const MAX_TTL_S: u32 = 86_400;
