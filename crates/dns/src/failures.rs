//! Questions to which no upstream gave a usable answer a moment ago.
//!
//! They are not asked again for each client that comes (RFC 9520), and where there is an answer that has
//! expired nobody waits for a newer one (RFC 8767 section 5). They stand in a table of fixed size, four to
//! a set chosen by a keyed hash; a new one takes the place of the oldest of its set. Forgetting one only
//! has it asked again.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::accept::Wanted;

/// For how long a question that failed is not asked again, in milliseconds (RFC 9520 section 3.2: a second
/// at least). RFC 8767 has 30 seconds in mind, for the servers of others; these here are the operator's.
pub const FAILED_MS: u64 = 5_000;
const WAYS: usize = 4;

/// Times are milliseconds on any clock that does not go backwards.
#[derive(Debug)]
pub struct Failures {
    hasher: RandomState,
    sets: Vec<[Slot; WAYS]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Tells questions of one set apart; 0 if there is none.
    tag: u64,
    until_ms: u64,
}

/// What is known of a question that failed and has not been answered since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failed {
    /// It is too soon to ask it again.
    Lately,
    /// It may be asked again.
    Before,
}

impl Failures {
    /// Remembers about as many `questions`.
    #[must_use]
    pub fn new(questions: usize) -> Self {
        let sets = questions.div_ceil(WAYS).next_power_of_two();
        Self {
            hasher: RandomState::default(),
            sets: vec![[Slot::default(); WAYS]; sets],
        }
    }

    /// Notes that a question failed, or that it is being asked again.
    pub fn note(&mut self, wanted: &Wanted, now_ms: u64) {
        let (set, tag) = self.place(wanted);
        let slots = &mut self.sets[set];
        let own = slots.iter().position(|slot| slot.tag == tag);
        let at = own.or_else(|| (0..WAYS).min_by_key(|at| slots[*at].until_ms));
        slots[at.unwrap_or_default()] = Slot {
            tag,
            until_ms: now_ms.saturating_add(FAILED_MS),
        };
    }

    /// Notes that it has been answered.
    pub fn forget(&mut self, wanted: &Wanted) {
        let (set, tag) = self.place(wanted);
        for slot in &mut self.sets[set] {
            if slot.tag == tag {
                *slot = Slot::default();
            }
        }
    }

    /// What is known of a question; none if it is not known to fail.
    #[must_use]
    pub fn lookup(&self, wanted: &Wanted, now_ms: u64) -> Option<Failed> {
        let (set, tag) = self.place(wanted);
        let slot = self.sets[set].iter().find(|slot| slot.tag == tag)?;
        Some(match now_ms < slot.until_ms {
            true => Failed::Lately,
            false => Failed::Before,
        })
    }

    fn place(&self, wanted: &Wanted) -> (usize, u64) {
        let hash = self.hasher.hash_one(wanted);
        ((hash >> 32) as usize & (self.sets.len() - 1), hash | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::wanted;

    #[test]
    fn a_question_is_known_to_fail_until_it_is_answered() {
        let mut failures = Failures::new(100);
        let (a, b) = (wanted("a.net", 1), wanted("a.net", 28));
        assert_eq!(failures.lookup(&a, 0), None);
        failures.note(&a, 1_000);
        assert_eq!(failures.lookup(&a, 5_999), Some(Failed::Lately));
        assert_eq!(failures.lookup(&a, 6_000), Some(Failed::Before));
        assert_eq!(failures.lookup(&b, 1_000), None);
        failures.note(&a, 6_000);
        assert_eq!(failures.lookup(&a, 10_999), Some(Failed::Lately));
        failures.forget(&a);
        assert_eq!(failures.lookup(&a, 6_000), None);
    }

    #[test]
    fn memory_is_bounded_and_the_latest_are_known() {
        let mut failures = Failures::new(4);
        for i in 0..100 {
            let wanted = wanted(&format!("n{i}.net"), 1);
            failures.note(&wanted, i);
            assert_eq!(failures.lookup(&wanted, i), Some(Failed::Lately));
        }
        let known = (0..100).filter(|i| {
            let wanted = wanted(&format!("n{i}.net"), 1);
            failures.lookup(&wanted, 100).is_some()
        });
        assert_eq!(known.collect::<Vec<_>>(), [96, 97, 98, 99]);
    }
}
