//! Ports of the engine: AF_PACKET, TUN and memory.
//!
//! Whatever moves frames between the engine and the machine lives here, with the unsafe code that
//! it takes, and passes one conformance suite (`tests/conformance.rs`).

mod buffer;
pub mod idle;
mod interface;
pub mod packet;
mod sys;
mod vnet;

pub use buffer::{FRAME_LEN_MAX, Frame};
