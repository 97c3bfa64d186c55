//! Many name patterns as one trie over labels, last label first.
//!
//! Labels are interned and the edges of all nodes share one hash table, so a lookup is two hash
//! probes a label whether there are ten names or a million. Each node keeps, for each reach, the
//! lowest value inserted there: values are rule positions and the first match decides.

use std::collections::HashMap;

use super::{NamePattern, Reach};

const NONE: u32 = u32::MAX;

/// Maps name patterns to the lowest value given for them.
#[derive(Debug, Clone)]
pub struct NameTrie {
    labels: HashMap<Box<str>, u32>,
    edges: HashMap<(u32, u32), u32>,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    exact: u32,
    one_label: u32,
    any_depth: u32,
}

impl Node {
    const EMPTY: Self = Self {
        exact: NONE,
        one_label: NONE,
        any_depth: NONE,
    };
}

impl Default for NameTrie {
    fn default() -> Self {
        Self {
            labels: HashMap::new(),
            edges: HashMap::new(),
            nodes: vec![Node::EMPTY],
        }
    }
}

impl NameTrie {
    /// An empty trie.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pattern; of several values for the same one the lowest stays. `value` is below
    /// `u32::MAX`.
    pub fn insert(&mut self, pattern: &NamePattern, value: u32) {
        debug_assert!(value < NONE);
        let mut at = 0;
        for label in pattern.base().rsplit('.') {
            let next_label = u32::try_from(self.labels.len()).expect("bounded by MAX_NAMES");
            let label = match self.labels.get(label) {
                Some(label) => *label,
                None => {
                    self.labels.insert(label.into(), next_label);
                    next_label
                }
            };
            let next_node =
                u32::try_from(self.nodes.len()).expect("bounded by the document's size");
            at = *self.edges.entry((at, label)).or_insert(next_node);
            if at == next_node {
                self.nodes.push(Node::EMPTY);
            }
        }
        let node = &mut self.nodes[at as usize];
        let slot = match pattern.reach() {
            Reach::Exact => &mut node.exact,
            Reach::OneLabel => &mut node.one_label,
            Reach::AnyDepth => &mut node.any_depth,
        };
        *slot = value.min(*slot);
    }

    /// The lowest value whose pattern matches `name`, which is in lower case and without the
    /// final dot.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<u32> {
        let mut best = NONE;
        let mut at = Some(0);
        let mut labels = name.rsplit('.').peekable();
        while let Some(label) = labels.next() {
            at = at
                .and_then(|at: u32| Some((at, *self.labels.get(label)?)))
                .and_then(|edge| self.edges.get(&edge).copied());
            let Some(at) = at else { break };
            let node = &self.nodes[at as usize];
            match labels.peek() {
                None => best = best.min(node.exact),
                Some(_) => {
                    best = best.min(node.any_depth);
                    let mut ahead = labels.clone();
                    ahead.next();
                    if ahead.next().is_none() {
                        best = best.min(node.one_label);
                    }
                }
            }
        }
        (best != NONE).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trie(patterns: &[&str]) -> NameTrie {
        let mut trie = NameTrie::new();
        for (value, text) in (0..).zip(patterns) {
            trie.insert(&NamePattern::parse(text).unwrap(), value);
        }
        trie
    }

    /// The meaning, straight from the words of the pattern.
    fn matches(pattern: &NamePattern, name: &str) -> bool {
        let below = name
            .strip_suffix(pattern.base())
            .and_then(|rest| rest.strip_suffix('.'));
        match pattern.reach() {
            Reach::Exact => name == pattern.base(),
            Reach::OneLabel => below.is_some_and(|b| !b.is_empty() && !b.contains('.')),
            Reach::AnyDepth => below.is_some_and(|b| !b.is_empty()),
        }
    }

    #[test]
    fn wildcards_reach_as_far_as_they_say() {
        let trie = trie(&[
            "api.example.com",
            "*.example.com",
            "**.example.com",
            "*.b.example.com",
        ]);
        #[track_caller]
        fn check(trie: &NameTrie, name: &str, want: Option<u32>) {
            assert_eq!(trie.lookup(name), want, "{name}");
        }
        check(&trie, "api.example.com", Some(0));
        check(&trie, "www.example.com", Some(1));
        check(&trie, "a.b.example.com", Some(2));
        check(&trie, "b.example.com", Some(1));
        check(&trie, "example.com", None);
        check(&trie, "com", None);
        check(&trie, "badexample.com", None);
        check(&trie, "api.example.com.evil.net", None);
        check(&trie, "", None);
        check(&NameTrie::new(), "example.com", None);
    }

    proptest! {
        #[test]
        fn agrees_with_the_words(
            patterns in prop::collection::vec("(\\*\\.|\\*\\*\\.)?[ab](\\.[ab]){0,3}", 1..12),
            name in "[ab](\\.[ab]){0,4}",
        ) {
            let parsed: Vec<NamePattern> =
                patterns.iter().map(|p| NamePattern::parse(p).unwrap()).collect();
            let texts: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let want = parsed.iter().position(|p| matches(p, &name)).map(|i| i as u32);
            prop_assert_eq!(trie(&texts).lookup(&name), want);
        }
    }
}
