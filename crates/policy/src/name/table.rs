//! Many name patterns, found by the ends of a name.
//!
//! What a trie over reversed labels would hold in its nodes stands here in one hash table, each node
//! under the suffix that it stands for, and only those nodes that a pattern ends at. A lookup is one
//! probe for each label of the name, whether there are ten patterns or a million, and the memory is
//! the text plus some twenty bytes a pattern.
//!
//! Each pattern has a list of values, in ascending order. Values are rules in evaluation order, and
//! those of one source group are neighbours, so the first rule of a group is found by bisection
//! however many other groups name the same.

use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{NamePattern, Reach};

/// Maps name patterns to values.
#[derive(Debug)]
pub(crate) struct NameTable {
    hasher: FixedState,
    /// Indices into `nodes`, by the hash of their text.
    index: HashTable<u32>,
    /// One more than there are texts: each ends where the next begins.
    nodes: Vec<Node>,
    text: Vec<u8>,
    values: Vec<u32>,
    /// Most labels that a text has: longer ends of a name need not be looked for.
    most_labels: usize,
}

/// A name, or what follows a wildcard.
#[derive(Debug, Clone, Copy)]
struct Node {
    text: u32,
    /// Where the values of each reach begin, in the order of [`Reach`].
    values: [u32; 3],
}

/// Collects patterns for a [`NameTable`].
#[derive(Debug)]
pub(crate) struct Builder {
    hasher: FixedState,
    index: HashTable<u32>,
    /// Where each text ends.
    ends: Vec<u32>,
    text: Vec<u8>,
    given: Vec<(u32, Reach, u32)>,
    most_labels: usize,
}

impl Builder {
    /// `seed` decides how texts are spread over the table; it changes no answer.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            hasher: FixedState::with_seed(seed),
            index: HashTable::new(),
            ends: Vec::new(),
            text: Vec::new(),
            given: Vec::new(),
            most_labels: 0,
        }
    }

    /// Adds a value for a pattern.
    pub(crate) fn add(&mut self, pattern: &NamePattern, value: u32) {
        let base = pattern.base().as_bytes();
        let hash = self.hasher.hash_one(base);
        let (ends, text) = (&self.ends, &self.text);
        let found = self
            .index
            .find(hash, |node| text_of(ends, text, *node) == base);
        let node = match found {
            Some(node) => *node,
            None => {
                let node = u32::try_from(self.ends.len()).expect("bounded by MAX_NAMES");
                self.text.extend_from_slice(base);
                self.ends
                    .push(u32::try_from(self.text.len()).expect("bounded by the document's size"));
                let (ends, text, hasher) = (&self.ends, &self.text, &self.hasher);
                self.index.insert_unique(hash, node, |node| {
                    hasher.hash_one(text_of(ends, text, *node))
                });
                let labels = 1 + base.iter().filter(|b| **b == b'.').count();
                self.most_labels = self.most_labels.max(labels);
                node
            }
        };
        self.given.push((node, pattern.reach(), value));
    }

    pub(crate) fn finish(mut self) -> NameTable {
        self.given.sort_unstable();
        self.given.dedup();
        let mut nodes = Vec::with_capacity(self.ends.len() + 1);
        let mut at = 0;
        let position = |at: usize| u32::try_from(at).expect("bounded by MAX_NAMES");
        for node in 0..position(self.ends.len()) {
            let values = [Reach::Exact, Reach::OneLabel, Reach::AnyDepth].map(|reach| {
                let begins = position(at);
                while self
                    .given
                    .get(at)
                    .is_some_and(|g| (g.0, g.1) == (node, reach))
                {
                    at += 1;
                }
                begins
            });
            nodes.push(Node {
                text: match node {
                    0 => 0,
                    _ => self.ends[node as usize - 1],
                },
                values,
            });
        }
        nodes.push(Node {
            text: position(self.text.len()),
            values: [position(at); 3],
        });
        self.text.shrink_to_fit();
        NameTable {
            hasher: self.hasher,
            index: self.index,
            nodes,
            text: self.text,
            values: self.given.into_iter().map(|(_, _, value)| value).collect(),
            most_labels: self.most_labels,
        }
    }
}

fn text_of<'t>(ends: &[u32], text: &'t [u8], node: u32) -> &'t [u8] {
    let begin = match node {
        0 => 0,
        _ => ends[node as usize - 1],
    };
    &text[begin as usize..ends[node as usize] as usize]
}

impl NameTable {
    /// Calls `f` with the values, in ascending order, of each pattern that matches `name`, which is
    /// in lower case and without the final dot.
    pub(crate) fn matching<'t>(&'t self, name: &str, mut f: impl FnMut(&'t [u32])) {
        let name = name.as_bytes();
        let dots = name.iter().filter(|b| **b == b'.').count();
        let mut rest = name;
        for above in 0..=dots {
            // `rest` is what follows the first `above` labels.
            if above > 0 {
                let dot = rest.iter().position(|b| *b == b'.');
                rest = &rest[dot.expect("counted above") + 1..];
            }
            if dots + 1 - above > self.most_labels {
                continue;
            }
            let Some(node) = self.find(rest) else {
                continue;
            };
            match above {
                0 => f(self.values(node, Reach::Exact)),
                1 => {
                    f(self.values(node, Reach::OneLabel));
                    f(self.values(node, Reach::AnyDepth));
                }
                _ => f(self.values(node, Reach::AnyDepth)),
            }
        }
    }

    fn find(&self, text: &[u8]) -> Option<usize> {
        let hash = self.hasher.hash_one(text);
        self.index
            .find(hash, |node| {
                let node = *node as usize;
                let (begin, end) = (self.nodes[node].text, self.nodes[node + 1].text);
                &self.text[begin as usize..end as usize] == text
            })
            .map(|node| *node as usize)
    }

    fn values(&self, node: usize, reach: Reach) -> &[u32] {
        let begins = &self.nodes[node].values;
        let next = self.nodes[node + 1].values[0];
        let (begin, end) = match reach {
            Reach::Exact => (begins[0], begins[1]),
            Reach::OneLabel => (begins[1], begins[2]),
            Reach::AnyDepth => (begins[2], next),
        };
        &self.values[begin as usize..end as usize]
    }

    /// Bytes on the heap.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.allocation_size()
            + self.text.capacity()
            + self.nodes.capacity() * size_of::<Node>()
            + self.values.capacity() * size_of::<u32>()
    }
}

/// The lowest of ascending values that lies within a range.
pub(crate) fn lowest(values: &[u32], within: &Range<u32>) -> Option<u32> {
    let at = values.partition_point(|value| *value < within.start);
    values.get(at).copied().filter(|value| *value < within.end)
}

/// The lower of two, if there are any.
pub(crate) fn earlier(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(patterns: &[&str]) -> NameTable {
        let mut builder = Builder::new(7);
        for (value, text) in (0..).zip(patterns) {
            builder.add(&NamePattern::parse(text).unwrap(), value);
        }
        builder.finish()
    }

    /// The lowest value within a range whose pattern matches a name.
    fn first(table: &NameTable, name: &str, within: Range<u32>) -> Option<u32> {
        let mut first = None;
        table.matching(name, |values| {
            first = earlier(first, lowest(values, &within));
        });
        first
    }

    #[test]
    fn wildcards_reach_as_far_as_they_say() {
        let patterns = [
            "api.example.com",
            "*.example.com",
            "**.example.com",
            "*.b.example.com",
        ];
        #[track_caller]
        fn check(patterns: &[&str], name: &str, want: Option<u32>) {
            let table = table(patterns);
            assert_eq!(first(&table, name, 0..u32::MAX), want, "{name}");
        }
        check(&patterns, "api.example.com", Some(0));
        check(&patterns, "www.example.com", Some(1));
        check(&patterns, "a.b.example.com", Some(2));
        check(&patterns, "b.example.com", Some(1));
        check(&patterns, "example.com", None);
        check(&patterns, "com", None);
        check(&patterns, "badexample.com", None);
        check(&patterns, ".example.com", Some(1));
        check(&patterns, "api.example.com.evil.net", None);
        check(&patterns, "", None);
        check(&[], "example.com", None);
        check(&["com"], "com", Some(0));
    }

    #[test]
    fn values_of_other_groups_are_passed_over() {
        let table = table(&["a.b", "**.b", "a.b", "*.b", "a.b"]);
        assert_eq!(first(&table, "a.b", 0..5), Some(0));
        assert_eq!(first(&table, "a.b", 1..5), Some(1));
        assert_eq!(first(&table, "a.b", 2..3), Some(2));
        assert_eq!(first(&table, "a.b", 3..5), Some(3));
        assert_eq!(first(&table, "c.b", 2..3), None);
        assert_eq!(first(&table, "a.b", 5..9), None);
    }

    proptest! {
        #[test]
        fn agrees_with_the_words(
            patterns in prop::collection::vec("(\\*\\.|\\*\\*\\.)?[ab](\\.[ab]){0,3}", 1..12),
            name in "[ab](\\.[ab]){0,4}",
            from in 0_u32..6,
            to in 0_u32..12,
        ) {
            let parsed: Vec<NamePattern> =
                patterns.iter().map(|p| NamePattern::parse(p).unwrap()).collect();
            let texts: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let matching: Vec<u32> =
                (0..).zip(&parsed).filter(|(_, p)| p.matches(&name)).map(|(i, _)| i).collect();
            let table = table(&texts);
            let want = matching.iter().copied().find(|i| (from..to).contains(i));
            prop_assert_eq!(first(&table, &name, from..to), want);
            let mut all = Vec::new();
            table.matching(&name, |values| all.extend_from_slice(values));
            all.sort_unstable();
            prop_assert_eq!(all, matching);
        }
    }
}
