//! The library behind the daemon: configuration, wiring, HTTP, authentication.

#![forbid(unsafe_code)]

pub mod auth;
pub mod config;
pub mod http;
pub mod metrics;
pub mod readiness;
