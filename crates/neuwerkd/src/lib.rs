//! The library behind the daemon: configuration, wiring, HTTP, authentication.

#![forbid(unsafe_code)]

pub mod app;
pub mod auth;
pub mod backup;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod decode;
mod dns;
pub mod drain;
pub mod explain;
pub mod grants;
pub mod handover;
pub mod http;
pub mod interfaces;
pub mod member;
pub mod metrics;
pub mod readiness;
mod signals;
mod staleness;
pub mod sysdump;
