//! Ports of the engine: AF_PACKET, AF_XDP, DPDK, TUN and TAP, capture files, memory.
//!
//! Whatever moves frames between the engine and the machine lives here, with the unsafe code that
//! it takes, and passes one conformance suite (`tests/conformance.rs`).

mod buffer;
mod checksum;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod idle;
pub mod inherited;
mod interface;
pub mod kept;
mod netlink;
pub mod packet;
pub mod pcap;
mod sys;
pub mod tun;
mod vnet;
pub mod xdp;

pub use buffer::{FRAME_LEN_MAX, Frame};
pub use engine::port::memory;
