//! Reference models and seeded harnesses. Development only.

pub mod policy;
