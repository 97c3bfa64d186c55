//! The library behind the daemon: configuration, wiring, HTTP, authentication.

#![forbid(unsafe_code)]

pub mod config;
