//! Replicated control-plane state: commands, state, log store, network, join, membership, replay.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests run on tokio's runtime and the machine's clock"
    )
)]

pub mod aside;
pub mod backup;
pub mod ca;
pub mod command;
pub mod decode;
pub mod durable;
pub mod enrol;
pub mod event;
pub mod feature;
pub mod forward;
#[cfg(test)]
mod golden;
pub mod id;
pub mod identity;
pub mod join;
pub mod keyring;
pub mod lkg;
pub mod meta;
pub mod node;
pub mod peers;
pub mod pem;
mod raft;
pub mod recovery;
pub mod replay;
pub mod state;
pub mod status;
pub mod store;
mod throttle;
pub mod tls;
pub mod transport;
pub mod voucher;
mod wire;

pub use command::{Command, Refusal, Response, Stamped};
pub use event::{Event, EventError};
pub use feature::{Features, TooOld};
pub use forward::{ForwardError, HttpRequest, HttpResponse};
pub use id::{ClusterId, Digest, Lineage, NodeId};
pub use node::{Applied, Environment, Failure, Node, NodeConfig, ProposeError, Retry, Timing};
pub use state::State;
pub use status::{
    MemberRole, MemberStatus, NoLeader, NodeReport, PolicyMark, Position, Role, Status, TrustReport,
};
