//! The rules by name of all groups, as queries and granted addresses ask for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

use crate::classify::{AddressSpans, covers_address};
use crate::document::{GrantScope, Rule};
use crate::name::{NameTable, NameTableBuilder, RegexSet, earlier, lowest};

/// Finds the entries that a name matches, and knows which entries are rules by name.
#[derive(Debug)]
pub(crate) struct Names {
    table: NameTable,
    regexes: Option<RegexSet>,
    /// By entry, ascending.
    rules: Vec<Named>,
    /// For each entry up to the last of these, where among them it is, or [`NONE`].
    places: Vec<u32>,
}

/// The place of what has none.
const NONE: u32 = u32::MAX;

/// An entry that asks for a name.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) entry: u32,
    pub(crate) scope: GrantScope,
    /// Where the name's addresses must lie, if the rule says so.
    destinations: Option<Box<AddressSpans>>,
}

impl Named {
    /// Whether an address of the name is one that the rule takes.
    pub(crate) fn takes(&self, address: IpAddr) -> bool {
        self.destinations
            .as_ref()
            .is_none_or(|spans| covers_address(spans, address))
    }
}

/// Collects the rules by name of a document.
#[derive(Debug)]
pub(crate) struct Builder<'d> {
    table: NameTableBuilder,
    /// Where each distinct expression stands in `regexes`.
    seen: HashMap<&'d str, usize>,
    regexes: Vec<(&'d str, Vec<u32>)>,
    rules: Vec<Named>,
}

impl<'d> Builder<'d> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            table: NameTableBuilder::new(seed),
            seen: HashMap::new(),
            regexes: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// Adds a rule that asks for a name. Entries come in ascending order.
    pub(crate) fn add(&mut self, entry: u32, rule: &'d Rule) {
        for pattern in &rule.matches.dns_names {
            self.table.add(pattern, entry);
        }
        if let Some(text) = rule.matches.dns_hostname.as_deref() {
            let at = *self.seen.entry(text).or_insert_with(|| {
                self.regexes.push((text, Vec::new()));
                self.regexes.len() - 1
            });
            self.regexes[at].1.push(entry);
        }
        let matches = &rule.matches;
        self.rules.push(Named {
            entry,
            scope: rule.grant_scope.unwrap_or_default(),
            destinations: matches
                .has_destination()
                .then(|| Box::new(AddressSpans::new(&matches.dst_cidrs, &matches.dst_ips))),
        });
    }

    pub(crate) fn finish(self) -> Names {
        let mut places = vec![NONE; self.rules.last().map_or(0, |rule| rule.entry as usize + 1)];
        for (at, rule) in (0..).zip(&self.rules) {
            places[rule.entry as usize] = at;
        }
        Names {
            table: self.table.finish(),
            regexes: RegexSet::build(self.regexes),
            rules: self.rules,
            places,
        }
    }
}

impl Names {
    /// The first entry within a range that `name` matches.
    pub(crate) fn first(&self, name: &str, within: &Range<u32>) -> Option<u32> {
        let mut first = None;
        self.matching(name, |entries| {
            first = earlier(first, lowest(entries, within));
        });
        first
    }

    /// All entries within a range that `name` matches, ascending, appended to `out`.
    pub(crate) fn all(&self, name: &str, within: &Range<u32>, out: &mut Vec<u32>) {
        let from = out.len();
        self.matching(name, |entries| {
            let begin = entries.partition_point(|entry| *entry < within.start);
            let after = entries[begin..].partition_point(|entry| *entry < within.end);
            out.extend_from_slice(&entries[begin..begin + after]);
        });
        out[from..].sort_unstable();
        // A rule may name the same name in several ways.
        let mut kept = from;
        for at in from..out.len() {
            if kept == from || out[kept - 1] != out[at] {
                out[kept] = out[at];
                kept += 1;
            }
        }
        out.truncate(kept);
    }

    fn matching<'s>(&'s self, name: &str, mut f: impl FnMut(&'s [u32])) {
        self.table.matching(name, &mut f);
        if let Some(regexes) = &self.regexes {
            regexes.matching(name, f);
        }
    }

    /// The entries that are rules by name, ascending.
    pub(crate) fn entries(&self) -> impl Iterator<Item = u32> {
        self.rules.iter().map(|rule| rule.entry)
    }

    /// Those of them that are in a range.
    pub(crate) fn entries_in(&self, range: Range<u32>) -> impl Iterator<Item = u32> {
        let from = self.rules.partition_point(|rule| rule.entry < range.start);
        let entries = self.rules[from..].iter().map(|rule| rule.entry);
        entries.take_while(move |entry| *entry < range.end)
    }

    /// The rule by name that an entry stands for.
    pub(crate) fn rule(&self, entry: u32) -> Option<&Named> {
        let at = *self.places.get(entry as usize)?;
        self.rules.get(at as usize)
    }

    /// Bytes on the heap, without what threads keep for regular expressions.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
            + self.regexes.as_ref().map_or(0, RegexSet::memory_bytes)
            + self.rules.capacity() * size_of::<Named>()
            + self.places.capacity() * size_of::<u32>()
    }
}
