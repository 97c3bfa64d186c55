//! From a key's hash to the flows that may have it: buckets of tags and indexes, one cache line
//! each.
//!
//! An entry lives in its first bucket, or, if that was crowded, in its second. A bucket counts how
//! many entries it sent away, so that almost every lookup, miss included, touches one line.

use std::io;

use mem::Table;

/// Entries of one bucket.
const SLOTS: usize = 10;
/// Entries of one bucket on average when the table holds as many as it was made for.
const EXPECTED: usize = 5;
/// From this many on the emptier of both buckets is taken, so that an entry which finds both full
/// is not to be expected in the lifetime of a node.
const CROWDED: usize = 8;

/// Words of a line: tags, then the count of spilled entries, then low and high halves of indexes.
const SPILLED: usize = SLOTS;
const LOW: usize = 12;
const HIGH: usize = LOW + SLOTS;

type Line = [u16; 32];

#[derive(Debug)]
pub(crate) struct Index {
    lines: Table<Line>,
}

/// Where a hash leads.
#[derive(Clone, Copy)]
struct Place {
    tag: u16,
    first: usize,
    hash: u64,
}

impl Index {
    /// An index for `entries` entries.
    pub(crate) fn new(entries: usize) -> io::Result<Index> {
        Ok(Index {
            lines: Table::new((entries / EXPECTED).max(8))?,
        })
    }

    #[inline(always)]
    fn place(&self, hash: u64) -> Place {
        Place {
            // Zero marks a free slot.
            tag: (hash as u16).max(1),
            first: self.scale(hash),
            hash,
        }
    }

    /// The bucket for those that found the first one crowded.
    fn second(&self, place: Place) -> usize {
        let second = self.scale(place.hash.wrapping_mul(0xd6e8_feb8_6659_fd93));
        if second == place.first {
            (second + 1) % self.lines.len()
        } else {
            second
        }
    }

    #[inline(always)]
    fn scale(&self, hash: u64) -> usize {
        (((hash >> 32) * self.lines.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        self.lines.prefetch(self.scale(hash));
    }

    /// Calls `found` with each index that may be the one, until it says yes.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u64, mut found: impl FnMut(u32) -> bool) -> Option<u32> {
        let place = self.place(hash);
        let line = &self.lines[place.first];
        if let Some((_, index)) = find_in(line, place.tag, &mut found) {
            return Some(index);
        }
        if line[SPILLED] == 0 {
            return None;
        }
        self.find_spilled(place, &mut found)
    }

    #[cold]
    fn find_spilled(&self, place: Place, found: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let line = &self.lines[self.second(place)];
        find_in(line, place.tag, &mut |index| found(index)).map(|(_, index)| index)
    }

    /// Adds an entry; false if both its buckets are full.
    pub(crate) fn insert(&mut self, hash: u64, index: u32) -> bool {
        let place = self.place(hash);
        let here = occupied(&self.lines[place.first]);
        if here < CROWDED {
            return put_in(&mut self.lines[place.first], place.tag, index);
        }
        let second = self.second(place);
        if here <= occupied(&self.lines[second]) {
            return put_in(&mut self.lines[place.first], place.tag, index);
        }
        if self.lines[place.first][SPILLED] == u16::MAX {
            return false;
        }
        self.lines[place.first][SPILLED] += 1;
        put_in(&mut self.lines[second], place.tag, index)
    }

    /// Removes an entry that is there.
    pub(crate) fn remove(&mut self, hash: u64, index: u32) {
        let place = self.place(hash);
        let mut same = |i| i == index;
        if let Some((slot, _)) = find_in(&self.lines[place.first], place.tag, &mut same) {
            self.lines[place.first][slot] = 0;
            return;
        }
        let second = self.second(place);
        if let Some((slot, _)) = find_in(&self.lines[second], place.tag, &mut same) {
            self.lines[second][slot] = 0;
            self.lines[place.first][SPILLED] -= 1;
        } else {
            debug_assert!(false, "removed an entry that is not there");
        }
    }
}

#[inline(always)]
fn find_in(line: &Line, tag: u16, found: &mut impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
    let mut matches = among_tags(line, tag);
    while matches != 0 {
        let slot = matches.trailing_zeros() as usize;
        let index = u32::from(line[LOW + slot]) | u32::from(line[HIGH + slot]) << 16;
        if found(index) {
            return Some((slot, index));
        }
        matches &= matches - 1;
    }
    None
}

/// The slots with this tag, a bit each.
#[inline(always)]
fn among_tags(line: &Line, tag: u16) -> u32 {
    // All sixteen first words are compared at once; those behind the tags do not count.
    line.first_chunk()
        .map_or(0, |words| mem::lanes::equal(words, tag))
        & ((1 << SLOTS) - 1)
}

fn occupied(line: &Line) -> usize {
    SLOTS - among_tags(line, 0).count_ones() as usize
}

fn put_in(line: &mut Line, tag: u16, index: u32) -> bool {
    let free = among_tags(line, 0);
    if free == 0 {
        return false;
    }
    let slot = free.trailing_zeros() as usize;
    line[slot] = tag;
    line[LOW + slot] = index as u16;
    line[HIGH + slot] = (index >> 16) as u16;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::key::Random;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn holds_what_it_was_made_for() {
        let mut index = Index::new(100_000).unwrap();
        let mut random = Random::new(3);
        let hashes: Vec<u64> = (0..100_000).map(|_| random.next()).collect();
        let lost = hashes
            .iter()
            .zip(0u32..)
            .filter(|(h, i)| !index.insert(**h, *i))
            .count();
        assert_eq!(lost, 0, "of 100000 found no place");
    }

    proptest! {
        // Few distinct hashes, so that buckets spill and empty again.
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec((any::<bool>(), 0u64..60), 1..400)) {
            let mut index = Index::new(40).unwrap();
            let mut map = HashMap::new();
            let hash = |n: u64| ((n % 7) << 60) | ((n % 3) << 33) | (n % 11);
            for (add, n) in ops {
                let i = n as u32;
                if add {
                    if let std::collections::hash_map::Entry::Vacant(e) = map.entry(i)
                        && index.insert(hash(n), i)
                    {
                        e.insert(hash(n));
                    }
                } else if let Some(h) = map.remove(&i) {
                    index.remove(h, i);
                }
            }
            for n in 0..60u32 {
                let found = index.find(hash(u64::from(n)), |i| i == n);
                prop_assert_eq!(found.is_some(), map.contains_key(&n));
            }
            for (i, h) in map {
                index.remove(h, i);
            }
            prop_assert!(index.lines.iter().all(|l| l[..=SPILLED].iter().all(|w| *w == 0)));
        }
    }
}
