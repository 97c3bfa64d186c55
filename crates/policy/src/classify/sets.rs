//! Sets of entries as bitmaps of three levels: a root of 32 blocks, a block of 64 words, a word
//! of 64 entries. Only what is not empty is stored, and equal blocks and roots are stored once,
//! so that sets which differ in one entry share nearly all of their memory. A set with one block
//! has no root: its id says where the block is.

use std::collections::HashMap;

const WORDS_PER_BLOCK: usize = 64;
const BLOCKS: usize = 32;
const ENTRIES_PER_BLOCK: usize = 64 * WORDS_PER_BLOCK;

/// Most entries a set can hold.
pub(crate) const MAX_ENTRIES: usize = BLOCKS * ENTRIES_PER_BLOCK;

/// Most memory for all sets together, in words of 8 bytes: 384 MiB.
pub(crate) const MAX_SET_WORDS: usize = 48 << 20;

/// Marks the id of a set that has but one block, and needs no root: below it are which block that is, and where.
const ONE_BLOCK: u32 = 1 << 31;
/// Bits of where a block is.
const AT_BITS: u32 = 26;
const AT: u32 = (1 << AT_BITS) - 1;

const _: () = assert!(MAX_SET_WORDS < AT as usize && BLOCKS << AT_BITS == ONE_BLOCK as usize);

/// The sets would need more memory than they may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooComplex;

/// All sets of a classifier.
#[derive(Debug)]
pub(crate) struct Sets {
    /// Blocks: a summary of which words follow, then those words. The block at 0 is empty.
    blocks: Vec<u64>,
    /// Roots: a summary of which blocks follow, then where they are. The root at 0 is empty.
    roots: Vec<u32>,
}

/// A part of a set: where it begins among the blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Part(u32);

impl Sets {
    /// Which blocks a set has.
    #[inline(always)]
    pub(crate) fn blocks(&self, id: u32) -> u32 {
        match id & ONE_BLOCK {
            0 => self.roots[id as usize],
            _ => 1 << ((id & !ONE_BLOCK) >> AT_BITS),
        }
    }

    /// A block of a set; the empty one if it does not have it.
    #[inline(always)]
    pub(crate) fn part(&self, id: u32, block: u32) -> Part {
        let blocks = self.blocks(id);
        if blocks >> block & 1 == 0 {
            return Part::default();
        }
        match id & ONE_BLOCK {
            0 => Part(self.roots[(id + 1 + before(blocks.into(), block)) as usize]),
            _ => Part(id & AT),
        }
    }

    /// Which words a block has.
    #[inline(always)]
    pub(crate) fn words(&self, part: Part) -> u64 {
        self.blocks[part.0 as usize]
    }

    /// A word of a block; zero if it does not have it.
    #[inline(always)]
    pub(crate) fn word(&self, part: Part, word: u32) -> u64 {
        let words = self.words(part);
        if words >> word & 1 == 0 {
            return 0;
        }
        self.blocks[(part.0 + 1 + before(words, word)) as usize]
    }
}

/// How many bits are set below one that is: of most summaries it is the lowest.
#[inline(always)]
fn before(summary: u64, bit: u32) -> u32 {
    match summary.trailing_zeros() == bit {
        true => 0,
        false => (summary & ((1 << bit) - 1)).count_ones(),
    }
}

/// Calls `f` with each word that a run of entries touches, and the bits of it that are in the run.
pub(crate) fn for_each_word(first: u32, count: u32, mut f: impl FnMut(usize, u64)) {
    let (mut at, end) = (first, first + count);
    while at < end {
        let (word, bit) = (at / 64, at % 64);
        let taken = (64 - bit).min(end - at);
        f(word as usize, (u64::MAX >> (64 - taken)) << bit);
        at += taken;
    }
}

/// Makes sets one after the other, each from the one before.
pub(crate) struct Builder {
    sets: Sets,
    seen_blocks: HashMap<u64, u32>,
    seen_roots: HashMap<u64, u32>,
    /// The set in the making: its words, its blocks as committed, which of them have changed.
    words: Vec<u64>,
    committed: Vec<u32>,
    changed: u32,
    left_words: usize,
}

impl Builder {
    pub(crate) fn new(entries: usize) -> Result<Self, TooComplex> {
        if entries > MAX_ENTRIES {
            return Err(TooComplex);
        }
        let blocks = entries.div_ceil(ENTRIES_PER_BLOCK);
        Ok(Self {
            sets: Sets {
                blocks: vec![0],
                roots: vec![0],
            },
            seen_blocks: HashMap::new(),
            seen_roots: HashMap::new(),
            words: vec![0; blocks * WORDS_PER_BLOCK],
            committed: vec![0; blocks],
            changed: 0,
            left_words: MAX_SET_WORDS,
        })
    }

    /// Adds a run of entries to the set in the making, or takes it out.
    pub(crate) fn change(&mut self, first: u32, count: u32, on: bool) {
        for_each_word(first, count, |word, mask| {
            if on {
                self.words[word] |= mask;
            } else {
                self.words[word] &= !mask;
            }
            self.changed |= 1 << (word / WORDS_PER_BLOCK);
        });
    }

    /// The id of the set as it is now.
    pub(crate) fn commit(&mut self) -> Result<u32, TooComplex> {
        while self.changed != 0 {
            let block = self.changed.trailing_zeros() as usize;
            self.changed &= self.changed - 1;
            self.committed[block] = self.intern_block(block)?;
        }
        self.intern_root()
    }

    /// Empties the set in the making.
    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
        self.committed.fill(0);
        self.changed = 0;
    }

    pub(crate) fn finish(self) -> Sets {
        let mut sets = self.sets;
        sets.blocks.shrink_to_fit();
        sets.roots.shrink_to_fit();
        sets
    }

    fn intern_block(&mut self, block: usize) -> Result<u32, TooComplex> {
        let words = &self.words[block * WORDS_PER_BLOCK..][..WORDS_PER_BLOCK];
        let mut record = [0; 1 + WORDS_PER_BLOCK];
        let mut len = 1;
        for (i, word) in words.iter().enumerate() {
            if *word != 0 {
                record[0] |= 1_u64 << i;
                record[len] = *word;
                len += 1;
            }
        }
        let record = &record[..len];
        let sets = &mut self.sets.blocks;
        intern(record, sets, &mut self.seen_blocks, &mut self.left_words, 1)
    }

    fn intern_root(&mut self) -> Result<u32, TooComplex> {
        let mut record = [0; 1 + BLOCKS];
        let mut len = 1;
        for (i, block) in self.committed.iter().enumerate() {
            if *block != 0 {
                record[0] |= 1_u32 << i;
                record[len] = *block;
                len += 1;
            }
        }
        let record = &record[..len];
        if let [blocks, at] = record {
            return Ok(ONE_BLOCK | blocks.trailing_zeros() << AT_BITS | at);
        }
        let sets = &mut self.sets.roots;
        intern(record, sets, &mut self.seen_roots, &mut self.left_words, 2)
    }
}

/// Where `record` is in `store`, put there if it is new. Two records of equal hash are both kept;
/// only the first is found again.
fn intern<W: Copy + Eq + Into<u64>>(
    record: &[W],
    store: &mut Vec<W>,
    seen: &mut HashMap<u64, u32>,
    left_words: &mut usize,
    per_word: usize,
) -> Result<u32, TooComplex> {
    if record.len() == 1 {
        return Ok(0);
    }
    let hash = record.iter().fold(0_u64, |hash, word| {
        (hash.rotate_left(5) ^ (*word).into()).wrapping_mul(0x517c_c1b7_2722_0a95)
    });
    let known = seen.get(&hash).copied();
    if let Some(at) = known
        && store[at as usize..].starts_with(record)
    {
        return Ok(at);
    }
    *left_words = left_words
        .checked_sub(record.len().div_ceil(per_word))
        .ok_or(TooComplex)?;
    let at = u32::try_from(store.len()).map_err(|_| TooComplex)?;
    store.extend_from_slice(record);
    seen.entry(hash).or_insert(at);
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(sets: &Sets, id: u32, entries: u32) -> BTreeSet<u32> {
        let word = |e: &u32| sets.word(sets.part(id, e / 4096), e / 64 % 64);
        (0..entries)
            .filter(|e| word(e) >> (e % 64) & 1 == 1)
            .collect()
    }

    #[test]
    fn words_of_a_run() {
        #[track_caller]
        fn check(first: u32, count: u32, want: &[(usize, u64)]) {
            let mut got = Vec::new();
            for_each_word(first, count, |word, mask| got.push((word, mask)));
            assert_eq!(got, want);
        }
        check(0, 0, &[]);
        check(3, 2, &[(0, 0b11000)]);
        check(63, 2, &[(0, 1 << 63), (1, 1)]);
        check(64, 64, &[(1, u64::MAX)]);
    }

    #[test]
    fn equal_sets_are_one() {
        let mut builder = Builder::new(10_000).unwrap();
        let empty = builder.commit().unwrap();
        builder.change(5_000, 3, true);
        let three = builder.commit().unwrap();
        builder.change(0, 1, true);
        let four = builder.commit().unwrap();
        builder.change(0, 1, false);
        assert_eq!(builder.commit().unwrap(), three);
        builder.change(5_000, 3, false);
        assert_eq!(builder.commit().unwrap(), empty);
        let sets = builder.finish();
        assert_eq!(members(&sets, empty, 10_000), BTreeSet::new());
        assert_eq!(
            members(&sets, three, 10_000),
            BTreeSet::from([5_000, 5_001, 5_002])
        );
        assert_eq!(
            members(&sets, four, 10_000),
            BTreeSet::from([0, 5_000, 5_001, 5_002])
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut builder = Builder::new(MAX_ENTRIES).unwrap();
        builder.left_words = 100;
        let mut sets = 0;
        while {
            builder.change(sets, 1, true);
            builder.commit().is_ok()
        } {
            sets += 1;
        }
        assert!(sets > 0 && sets < 100);
        assert!(Builder::new(MAX_ENTRIES + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_changes(
            changes in prop::collection::vec((0_u32..9_000, 1_u32..900, any::<bool>()), 1..30),
        ) {
            let mut builder = Builder::new(10_000).unwrap();
            let mut want = BTreeSet::new();
            let mut made = Vec::new();
            for (first, count, on) in changes {
                builder.change(first, count, on);
                for entry in first..first + count {
                    if on { want.insert(entry) } else { want.remove(&entry) };
                }
                made.push((builder.commit().unwrap(), want.clone()));
            }
            let sets = builder.finish();
            for (id, want) in made {
                prop_assert_eq!(members(&sets, id, 10_000), want);
            }
        }
    }
}
