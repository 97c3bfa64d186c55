//! Warnings about a valid document: what probably is not meant.

use serde::Serialize;

use crate::document::Document;

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// Where, as in [`crate::Problem::path`].
    pub path: String,
    /// What is odd there.
    pub message: String,
}

impl Document {
    /// What probably is not meant.
    #[must_use]
    pub fn lint(&self) -> Vec<Lint> {
        Vec::new()
    }
}
