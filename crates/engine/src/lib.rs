//! The packet engine: headers, flows, NAT, verdicts. Pure: no clock, no I/O, no unsafe code.
//!
//! A [`Worker`] owns one queue of each [`port::Port`] and runs bursts of frames through
//! parse → hash and prefetch → lookup → (new flow: policy, NAT) → rewrite → transmit. Time is an
//! argument ([`Now`]); configuration arrives as one immutable [`Snapshot`]; what happened leaves
//! as counters ([`WorkerCounters`]) and [`Event`]s.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod acquire;
mod address;
mod autoconf;
mod clock;
pub mod counters;
mod dhcp;
mod drop_reason;
pub mod event;
mod flow;
pub mod foresee;
mod fragment;
pub mod grant;
mod limit;
pub mod look;
pub mod mesh;
mod nat;
mod neighbor;
mod outbox;
pub mod overlay;
mod parse;
mod pipeline;
pub mod port;
mod rewrite;
mod route;
pub mod snapshot;
pub mod steer;
mod tally;
pub mod tap;
mod tcp;
mod verdict;
mod wire;
mod worker;

pub use clock::Now;
pub use counters::WorkerCounters;
pub use drop_reason::DropReason;
pub use event::Event;
pub use pipeline::handover::{FLOWS_VERSION, Imported, MalformedFlows};
#[cfg(feature = "stages")]
pub use pipeline::stages;
pub use rewrite::complete_checksum;
pub use snapshot::Snapshot;
pub use tally::NodeTally;
pub use verdict::Verdict;
pub use worker::{BURST, Worker, WorkerConfig};
