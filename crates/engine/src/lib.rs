//! The packet engine: headers, flows, NAT, verdicts. Pure: no clock, no I/O, no unsafe code.
#![forbid(unsafe_code)]

pub mod port;
