//! Reference models and seeded harnesses. Development only.
