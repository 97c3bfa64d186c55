//! Replicated control-plane state: commands, state, log store, network, join, membership, replay.

#![forbid(unsafe_code)]

pub mod ca;
pub mod command;
pub mod durable;
pub mod id;
pub mod identity;
pub mod join;
pub mod pem;
pub mod replay;
pub mod state;
pub mod status;
pub mod tls;
pub mod transport;
mod wire;

pub use command::{Command, Refusal, Response, Stamped};
pub use id::{ClusterId, Digest, Lineage, NodeId};
pub use state::State;
pub use status::{MemberRole, MemberStatus, NoLeader, NodeReport, PolicyMark, Role, Status};
