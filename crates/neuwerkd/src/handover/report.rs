//! What became of what the process before this one left.

use engine::Imported;

use super::format::Section;
use super::{ADDRESSES, ADDRESSES_VERSION, FLOWS, ORIGIN, SEED, SEED_VERSION};

/// Sections and flows, by their fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Sections that were taken over.
    pub taken: u64,
    /// Sections that this version does not know, or not in this version of theirs.
    pub unknown: u64,
    /// Sections whose bytes are not those that were written.
    pub damaged: u64,
    /// Times that the rest could not be read at all.
    pub lost: u64,
    /// The flows.
    pub flows: Imported,
}

impl Report {
    /// Names and numbers of sections by outcome, for the metric.
    pub fn sections(&self) -> [(&'static str, u64); 4] {
        [
            ("taken", self.taken),
            ("unknown", self.unknown),
            ("damaged", self.damaged),
            ("lost", self.lost),
        ]
    }

    /// Names and numbers of flows by outcome, for the metric.
    pub fn flows(&self) -> [(&'static str, u64); 3] {
        [
            ("taken", self.flows.taken),
            ("expired", self.flows.expired),
            ("refused", self.flows.refused),
        ]
    }

    /// Counts and tells of a section that is not taken over.
    pub(super) fn note(&mut self, section: &Section<'_>) {
        match section {
            Section::Sound { name: ORIGIN, .. }
            | Section::Sound {
                name: SEED,
                version: SEED_VERSION,
                ..
            }
            | Section::Sound {
                name: ADDRESSES,
                version: ADDRESSES_VERSION,
                ..
            } => {}
            Section::Sound { name, version, .. } => {
                self.unknown += 1;
                tracing::warn!(
                    section = name,
                    version,
                    "what the process before this one left is of a version that is not known here; it is passed over"
                );
            }
            Section::Damaged { name } => {
                self.damaged += 1;
                let flows = *name == FLOWS;
                tracing::error!(
                    section = name,
                    flows,
                    "a part of what the process before this one left is damaged; it is passed over"
                );
            }
            Section::Lost => {
                self.lost += 1;
                tracing::error!(
                    "what the process before this one left is damaged; the rest of it is lost"
                );
            }
        }
    }

    pub(super) fn add_sections(&mut self, other: &Report) {
        self.taken += other.taken;
        self.unknown += other.unknown;
        self.damaged += other.damaged;
        self.lost += other.lost;
    }
}
