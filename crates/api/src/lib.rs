//! Request and response types, paths and a typed client of the management API. No server.
//!
//! The shapes are the published ones; what this system adds to them are further fields, so that a
//! client of the published API reads its own and ignores the rest.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod account;
pub mod audit;
pub mod auth;
pub mod changes;
pub mod client;
pub mod cluster;
pub mod dataplane;
pub mod dns;
pub mod document;
pub mod duration;
pub mod error;
pub mod headers;
pub mod health;
pub mod joining;
pub mod paths;
pub mod policy;
pub mod recovery;
pub mod stats;

pub use client::{Client, Endpoint};
pub use error::ErrorBody;
