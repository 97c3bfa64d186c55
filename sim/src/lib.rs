//! Reference models and seeded harnesses. Development only.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod engine;
pub mod frame;
pub mod neighbor;
pub mod packets;
pub mod policy;
