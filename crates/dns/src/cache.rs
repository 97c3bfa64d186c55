//! Answers that are kept for a while, in bounded memory.
//!
//! What goes when there is no room is decided by SIEVE (Zhang et al., NSDI 2024): entries stand in the
//! order in which they came; a hand goes from old to new and drops the first that was not asked for
//! since it last came by. A hit sets one bit and moves nothing.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::accept::Wanted;
use crate::stored::{Age, Stored};

/// For how long an answer is kept past its end, in case no upstream answers, in milliseconds (RFC 8767
/// section 5: one to three days).
pub const STALE_MS: u64 = 86_400_000;
const NONE: u32 = u32::MAX;

/// Answers by question. Times are milliseconds on any clock that does not go backwards.
#[derive(Debug)]
pub struct Cache {
    hasher: RandomState,
    index: HashTable<u32>,
    entries: Vec<Entry>,
    /// The first free entry; each free one names the next in `newer`.
    free: u32,
    newest: u32,
    oldest: u32,
    hand: u32,
    used_bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    stored: Option<Stored>,
    since_ms: u64,
    fresh_until_ms: u64,
    newer: u32,
    older: u32,
    mark: Mark,
    flavour: u8,
    visited: bool,
}

/// What the cache's user remembers of an answer. It goes with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// What it is about; 0: nothing.
    pub tag: u64,
    /// Until when it holds, in milliseconds.
    pub until_ms: u64,
}

/// What the cache has for a question.
#[derive(Debug, Clone, Copy)]
pub struct Found<'c> {
    /// The answer.
    pub stored: &'c Stored,
    /// Its age.
    pub age: Age,
    /// For how long it is fresh, in milliseconds; 0 if it is stale.
    pub fresh_ms: u64,
    /// Until when it is, in milliseconds, which tells it from answers of other times.
    pub fresh_until_ms: u64,
    /// What is remembered of it.
    pub mark: Mark,
}

/// Answers to the same question differ by these.
fn flavour(wanted: &Wanted) -> u8 {
    u8::from(wanted.dnssec_ok) | u8::from(wanted.checking_disabled) << 1
}

impl Cache {
    /// An empty one that takes at most `max_bytes`, as [`Self::cost`] counts them.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            index: HashTable::new(),
            entries: Vec::new(),
            free: NONE,
            newest: NONE,
            oldest: NONE,
            hand: NONE,
            used_bytes: 0,
            max_bytes,
        }
    }

    /// What keeping an answer costs, in bytes: itself, its entry, and its place in the index at worst.
    #[must_use]
    pub fn cost(stored: &Stored) -> usize {
        // The allocator rounds up by some ten per cent; a slot of the index is five bytes, and after
        // growing it is less than half full.
        stored.heap_bytes() + stored.heap_bytes() / 8 + size_of::<Entry>() + 12
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Number of answers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The answer to a question, fresh or stale.
    pub fn lookup(&mut self, wanted: &Wanted, now_ms: u64) -> Option<Found<'_>> {
        let at = self.find(wanted)?;
        if self.entry(at).fresh_until_ms.saturating_add(STALE_MS) <= now_ms {
            self.remove(at);
            return None;
        }
        let entry = self.entry_mut(at);
        entry.visited = true;
        let age = if now_ms < entry.fresh_until_ms {
            let seconds = now_ms.saturating_sub(entry.since_ms) / 1_000;
            Age::Seconds(u32::try_from(seconds).unwrap_or(u32::MAX))
        } else {
            Age::Stale
        };
        let entry = self.entry(at);
        Some(Found {
            stored: entry.stored.as_ref()?,
            age,
            fresh_ms: entry.fresh_until_ms.saturating_sub(now_ms),
            fresh_until_ms: entry.fresh_until_ms,
            mark: entry.mark,
        })
    }

    /// Remembers something of the answer to a question that is fresh until then, if it is still there.
    pub fn mark(&mut self, wanted: &Wanted, fresh_until_ms: u64, mark: Mark) {
        if let Some(at) = self.find(wanted)
            && self.entry_mut(at).fresh_until_ms == fresh_until_ms
        {
            self.entry_mut(at).mark = mark;
        }
    }

    /// Keeps an answer for `ttl_s` seconds, in place of an older one. One with a TTL of 0 is not kept,
    /// and an older one goes all the same.
    pub fn insert(&mut self, wanted: &Wanted, stored: Stored, ttl_s: u32, now_ms: u64) {
        if let Some(at) = self.find(wanted) {
            self.remove(at);
        }
        let cost = Self::cost(&stored);
        if ttl_s == 0 || cost > self.max_bytes {
            return;
        }
        while self.used_bytes + cost > self.max_bytes {
            let Some(at) = self.victim() else { return };
            self.remove(at);
        }
        let entry = Entry {
            stored: Some(stored),
            since_ms: now_ms,
            fresh_until_ms: now_ms.saturating_add(u64::from(ttl_s) * 1_000),
            newer: NONE,
            older: self.newest,
            mark: Mark::default(),
            flavour: flavour(wanted),
            visited: false,
        };
        let at = self.place(entry);
        match self.newest {
            NONE => self.oldest = at,
            newest => self.entry_mut(newest).newer = at,
        }
        self.newest = at;
        self.used_bytes += cost;
        let hash = self.hash(wanted);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index
            .insert_unique(hash, at, |at| rehash(hasher, entries, *at));
    }

    fn place(&mut self, entry: Entry) -> u32 {
        match self.free {
            NONE => {
                let at = u32::try_from(self.entries.len()).expect("memory is bounded far below");
                self.entries.push(entry);
                at
            }
            at => {
                self.free = self.entry(at).newer;
                *self.entry_mut(at) = entry;
                at
            }
        }
    }

    /// The entry that goes next.
    fn victim(&mut self) -> Option<u32> {
        let mut at = match self.hand {
            NONE => self.oldest,
            hand => hand,
        };
        loop {
            if at == NONE {
                at = self.oldest;
            }
            if at == NONE {
                return None;
            }
            let entry = self.entry_mut(at);
            if !entry.visited {
                self.hand = at;
                return Some(at);
            }
            entry.visited = false;
            at = entry.newer;
        }
    }

    fn remove(&mut self, at: u32) {
        let hash = rehash(&self.hasher, &self.entries, at);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        let free = self.free;
        let entry = self.entry_mut(at);
        let (newer, older) = (entry.newer, entry.older);
        let stored = entry.stored.take();
        entry.newer = free;
        self.free = at;
        match newer {
            NONE => self.newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
        if self.hand == at {
            self.hand = newer;
        }
        self.used_bytes -= stored.as_ref().map_or(0, Self::cost);
    }

    fn find(&self, wanted: &Wanted) -> Option<u32> {
        let name = wanted.name.wire();
        let kind = wanted.kind.0.to_be_bytes();
        let flavour = flavour(wanted);
        self.index
            .find(self.hash(wanted), |at| {
                let entry = self.entry(*at);
                let question = entry.stored.as_ref().map_or(&[][..], Stored::question);
                entry.flavour == flavour
                    && question
                        .split_at_checked(name.len())
                        .is_some_and(|(n, rest)| n == name && rest.starts_with(&kind))
            })
            .copied()
    }

    fn hash(&self, wanted: &Wanted) -> u64 {
        hash(
            &self.hasher,
            wanted.name.wire(),
            wanted.kind.0,
            flavour(wanted),
        )
    }

    fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize]
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.entries[at as usize]
    }
}

fn hash(hasher: &RandomState, name: &[u8], kind: u16, flavour: u8) -> u64 {
    hasher.hash_one((name, kind, flavour))
}

fn rehash(hasher: &RandomState, entries: &[Entry], at: u32) -> u64 {
    let entry = &entries[at as usize];
    let question = entry.stored.as_ref().map_or(&[][..], Stored::question);
    let (name, rest) = question.split_at(question.len().saturating_sub(4));
    let kind = crate::u16_at(rest, 0).unwrap_or_default();
    hash(hasher, name, kind, entry.flavour)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::test::{query, wanted};

    /// An answer without records, padded by nothing; `rcode` tells one from another.
    fn stored(name: &str, kind: u16, rcode: u8) -> Stored {
        let mut message = query(name, kind);
        message[2..4].copy_from_slice(&[0x80, 0x80 | rcode]);
        Stored::new(message).unwrap()
    }

    fn look(cache: &mut Cache, wanted: &Wanted, now_ms: u64) -> Option<(u16, Age)> {
        cache
            .lookup(wanted, now_ms)
            .map(|found| (found.stored.rcode(), found.age))
    }

    #[test]
    fn answers_age_and_end() {
        let mut cache = Cache::new(100_000);
        let a = wanted("a.net", 1);
        assert_eq!(look(&mut cache, &a, 0), None);
        cache.insert(&a, stored("a.net", 1, 3), 60, 1_000);
        assert_eq!(look(&mut cache, &a, 1_000), Some((3, Age::Seconds(0))));
        assert_eq!(look(&mut cache, &a, 60_999), Some((3, Age::Seconds(59))));
        assert_eq!(look(&mut cache, &a, 61_000), Some((3, Age::Stale)));
        assert_eq!(
            look(&mut cache, &a, 61_000 + STALE_MS - 1),
            Some((3, Age::Stale))
        );
        assert_eq!(look(&mut cache, &a, 61_000 + STALE_MS), None);
        assert_eq!((cache.len(), cache.used_bytes()), (0, 0));
    }

    #[test]
    fn questions_are_told_apart() {
        let mut cache = Cache::new(100_000);
        let a = wanted("a.net", 1);
        cache.insert(&a, stored("a.net", 1, 0), 60, 0);
        for other in [
            wanted("a.net", 28),
            wanted("b.net", 1),
            wanted("net", 1),
            Wanted {
                dnssec_ok: true,
                ..a
            },
            Wanted {
                checking_disabled: true,
                ..a
            },
        ] {
            assert_eq!(look(&mut cache, &other, 0), None);
        }
        cache.insert(&a, stored("a.net", 1, 3), 60, 0);
        assert_eq!(look(&mut cache, &a, 0), Some((3, Age::Seconds(0))));
        assert_eq!(cache.len(), 1);
        cache.insert(&a, stored("a.net", 1, 3), 0, 0);
        assert!(cache.is_empty());
    }

    #[test]
    fn what_is_remembered_goes_with_the_answer() {
        let mut cache = Cache::new(100_000);
        let a = wanted("a.net", 1);
        let mark = Mark {
            tag: 7,
            until_ms: 9,
        };
        cache.mark(&a, 60_000, mark);
        cache.insert(&a, stored("a.net", 1, 0), 60, 0);
        assert_eq!(cache.lookup(&a, 0).unwrap().mark, Mark::default());
        cache.mark(&a, 59_999, mark);
        assert_eq!(
            cache.lookup(&a, 0).unwrap().mark,
            Mark::default(),
            "it is about the answer before"
        );
        cache.mark(&a, 60_000, mark);
        let found = cache.lookup(&a, 1_000).unwrap();
        assert_eq!((found.mark, found.fresh_ms), (mark, 59_000));
        cache.insert(&a, stored("a.net", 1, 0), 60, 0);
        assert_eq!(cache.lookup(&a, 60_000).unwrap().mark, Mark::default());
        assert_eq!(cache.lookup(&a, 60_000).unwrap().fresh_ms, 0);
    }

    #[test]
    fn what_is_asked_for_stays() {
        let name = |i: u32| format!("n{i:06}.net");
        let cost = Cache::cost(&stored(&name(0), 1, 0));
        let mut cache = Cache::new(100 * cost);
        for i in 0..10_000 {
            if i > 0 {
                assert!(look(&mut cache, &wanted(&name(0), 1), 0).is_some(), "{i}");
            }
            cache.insert(&wanted(&name(i), 1), stored(&name(i), 1, 0), 60, 0);
            assert!(cache.used_bytes() <= 100 * cost);
        }
        assert_eq!(cache.len(), 100);
        assert!(cache.entries.len() <= 101);
        let large = Cache::new(cost - 1);
        let mut large = large;
        large.insert(&wanted(&name(0), 1), stored(&name(0), 1, 0), 60, 0);
        assert!(large.is_empty());
    }

    proptest! {
        /// Against a map that forgets nothing: what is found is the last that was put there.
        #[test]
        fn agrees_with_a_map(
            steps in prop::collection::vec((any::<bool>(), 0_u32..12, 0_u8..6, 0_u32..90, 0_u64..40_000), 1..200),
            room in 1_usize..14,
        ) {
            let name = |i: u32| format!("{i:02}.net");
            let cost = Cache::cost(&stored(&name(0), 1, 0));
            let mut cache = Cache::new(room * cost);
            let mut map = HashMap::new();
            let mut now = 0;
            for (put, i, rcode, ttl, wait) in steps {
                let wanted = wanted(&name(i), 1);
                if put {
                    cache.insert(&wanted, stored(&name(i), 1, rcode), ttl, now);
                    map.insert(i, (rcode, now, ttl));
                } else if let Some((got, age)) = look(&mut cache, &wanted, now) {
                    let (rcode, since, ttl) = map[&i];
                    prop_assert_eq!(got, u16::from(rcode));
                    let passed = now - since;
                    let want = if passed < u64::from(ttl) * 1_000 {
                        Age::Seconds((passed / 1_000) as u32)
                    } else {
                        Age::Stale
                    };
                    prop_assert_eq!(age, want);
                }
                prop_assert!(cache.used_bytes() == cache.len() * cost && cache.len() <= room);
                now += wait;
            }
        }
    }
}
