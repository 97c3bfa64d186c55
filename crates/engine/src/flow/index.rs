//! From a key's hash to the flows that may have it: buckets of tags and indexes, one cache line
//! each.
//!
//! An entry lives in its first bucket, or, if that was crowded, in its second. A bucket counts how
//! many entries it sent away, so that almost every lookup, miss included, touches one line.

use std::io;

use mem::Table;

/// Entries of one bucket.
const SLOTS: usize = 12;
/// Entries of one bucket on average when the table holds as many as it was made for.
const EXPECTED: usize = 7;
/// From this many on the emptier of both buckets is taken, so that an entry which finds both full
/// is not to be expected in the lifetime of a node: none did in 170 million insertions into a full table.
const CROWDED: usize = 10;

/// Words of a line: entries, an index with [`FINE`] on top each; then a byte of tag for each; then how many entries
/// were sent away.
const TAGS: usize = SLOTS;
const SPILLED: usize = 15;

/// Bits of an index.
const INDEX_BITS: u32 = 26;
const INDEX: u32 = (1 << INDEX_BITS) - 1;
/// More bits of the hash, in an entry.
const FINE: u32 = !INDEX;

type Line = [u32; 16];

#[derive(Debug)]
pub(crate) struct Index {
    lines: Table<Line>,
}

/// Where a hash leads.
#[derive(Clone, Copy)]
struct Place {
    /// Zero marks a free slot.
    tag: u8,
    fine: u32,
    first: usize,
    hash: u64,
}

impl Index {
    /// An index for `entries` entries, each less than 2^26.
    pub(crate) fn new(entries: usize) -> io::Result<Index> {
        Ok(Index {
            lines: Table::new((entries / EXPECTED).max(8))?,
        })
    }

    #[inline(always)]
    fn place(&self, hash: u64) -> Place {
        Place {
            tag: (hash as u8).max(1),
            fine: (hash as u32) << 16 & FINE,
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
        if let Some((_, index)) = find_in(line, place, &mut found) {
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
        find_in(line, place, &mut |index| found(index)).map(|(_, index)| index)
    }

    /// Adds an entry; false if both its buckets are full.
    pub(crate) fn insert(&mut self, hash: u64, index: u32) -> bool {
        let place = self.place(hash);
        let line = &mut self.lines[place.first];
        let free = free_in(line);
        if has_more_than(free, SLOTS - CROWDED) {
            return put_in(line, free, place, index);
        }
        self.insert_crowded(place, index)
    }

    #[cold]
    fn insert_crowded(&mut self, place: Place, index: u32) -> bool {
        let second = self.second(place);
        let (here, there) = (
            free_in(&self.lines[place.first]),
            free_in(&self.lines[second]),
        );
        if here.count_ones() >= there.count_ones() {
            return put_in(&mut self.lines[place.first], here, place, index);
        }
        self.lines[place.first][SPILLED] += 1;
        put_in(&mut self.lines[second], there, place, index)
    }

    /// Removes an entry that is there.
    pub(crate) fn remove(&mut self, hash: u64, index: u32) {
        let place = self.place(hash);
        let mut same = |i| i == index;
        if let Some((slot, _)) = find_in(&self.lines[place.first], place, &mut same) {
            set_tag(&mut self.lines[place.first], slot, 0);
            return;
        }
        let second = self.second(place);
        if let Some((slot, _)) = find_in(&self.lines[second], place, &mut same) {
            set_tag(&mut self.lines[second], slot, 0);
            self.lines[place.first][SPILLED] -= 1;
        } else {
            debug_assert!(false, "removed an entry that is not there");
        }
    }
}

#[inline(always)]
fn find_in(line: &Line, place: Place, found: &mut impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
    let mut matches = among_tags(line, place.tag);
    while matches != 0 {
        let slot = matches.trailing_zeros() as usize;
        let entry = line[slot];
        if entry & FINE == place.fine && found(entry & INDEX) {
            return Some((slot, entry & INDEX));
        }
        matches &= matches - 1;
    }
    None
}

/// The slots with this tag, a bit each.
#[inline(always)]
fn among_tags(line: &Line, tag: u8) -> u32 {
    let tags = line.last_chunk();
    // The last four bytes are no tags.
    tags.map_or(0, |tags| mem::lanes::equal(tags, tag)) & ((1 << SLOTS) - 1)
}

/// The free slots, a bit each.
#[inline(always)]
fn free_in(line: &Line) -> u32 {
    among_tags(line, 0)
}

/// Whether more than `few` bits are set, without counting them.
#[inline(always)]
fn has_more_than(mut bits: u32, few: usize) -> bool {
    for _ in 0..few {
        bits &= bits.wrapping_sub(1);
    }
    bits != 0
}

/// Puts an entry into one of the free slots; false if there is none.
#[inline(always)]
fn put_in(line: &mut Line, free: u32, place: Place, index: u32) -> bool {
    debug_assert!(index <= INDEX, "{index} is no index");
    if free == 0 {
        return false;
    }
    let slot = free.trailing_zeros() as usize;
    line[slot] = place.fine | index;
    set_tag(line, slot, place.tag);
    true
}

fn set_tag(line: &mut Line, slot: usize, tag: u8) {
    let shift = 8 * (slot % 4);
    let word = &mut line[TAGS + slot / 4];
    *word = *word & !(0xff << shift) | u32::from(tag) << shift;
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
            prop_assert!(index.lines.iter().all(|l| l[TAGS..=SPILLED].iter().all(|w| *w == 0)));
        }
    }
}
