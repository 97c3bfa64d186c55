//! Reference models and seeded harnesses. Development only.

pub mod frame;
pub mod policy;
