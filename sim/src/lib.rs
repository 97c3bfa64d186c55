//! Reference models and seeded harnesses. Development only.

pub mod cluster;
pub mod engine;
pub mod frame;
pub mod policy;
