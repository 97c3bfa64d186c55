//! Warnings about a valid document: what probably is not meant, and where the published system
//! read it more widely.
//!
//! A rule is called shadowed when one single rule before it covers it; rules that cover it only
//! together are not looked for. The search for such pairs is bounded, so in a very large document
//! some may stay unnoticed.

use std::collections::HashMap;

use ipnet::IpNet;
use serde::Serialize;

use crate::classify::{AddressSpans, Span, covers};
use crate::compile::{byte_spans, port_spans, protocols};
use crate::document::{Action, Document, Match, Mode, Rule, SourceGroup, protocol};
use crate::name::{Reach, looks_at_both_ends, plain_name};

/// Warnings listed one by one; those beyond are only counted, in one last entry.
const MAX_LINTS: usize = 1_000;

/// Spans compared in the search for what covers what, over the whole document.
const MAX_COMPARISONS: usize = 10_000_000;

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// Where, as in [`crate::Problem::path`].
    pub path: String,
    /// What is odd there, as a clause without a full stop.
    pub message: String,
}

impl Document {
    /// What probably is not meant, in the order of the document; at most 1,001 entries.
    #[must_use]
    pub fn lint(&self) -> Vec<Lint> {
        let mut linter = Linter {
            comparisons_left: MAX_COMPARISONS,
            ..Linter::default()
        };
        let closed = linter.closed_groups(self);
        for (i, group) in self.source_groups.iter().enumerate() {
            match closed[i] {
                Some(by) => linter.add(
                    format!("source_groups[{i}]"),
                    format!(
                        "never reached: group {:?} before it decides for all of its sources",
                        self.source_groups[by].id
                    ),
                ),
                None => linter.group(i, group),
            }
        }
        linter.finish()
    }
}

#[derive(Default)]
struct Linter {
    lints: Vec<Lint>,
    beyond: usize,
    comparisons_left: usize,
}

impl Linter {
    fn add(&mut self, path: String, message: impl Into<String>) {
        if self.lints.len() < MAX_LINTS {
            self.lints.push(Lint {
                path,
                message: message.into(),
            });
        } else {
            self.beyond += 1;
        }
    }

    fn finish(mut self) -> Vec<Lint> {
        if self.beyond > 0 {
            self.lints.push(Lint {
                path: String::new(),
                message: format!("{} more warnings are not listed", self.beyond),
            });
        }
        self.lints
    }

    /// Whether there is allowance left to compare this many spans.
    fn may_compare(&mut self, spans: usize) -> bool {
        let cost = 1 + spans;
        let may = self.comparisons_left >= cost;
        self.comparisons_left = self.comparisons_left.saturating_sub(cost);
        may
    }

    /// For each group, a group before it that decides every packet of all its sources.
    fn closed_groups(&mut self, document: &Document) -> Vec<Option<usize>> {
        let mut closed = vec![None; document.source_groups.len()];
        let mut closing = CoverIndex::default();
        let mut spans_of = HashMap::new();
        for index in document.groups_in_order() {
            let group = &document.source_groups[index];
            let spans = AddressSpans::new(&group.sources.cidrs, &group.sources.ips);
            let nets = nets(&group.sources.cidrs, &group.sources.ips);
            if group.sources.kubernetes.is_empty()
                && let Some(first) = nets.first()
            {
                closed[index] = closing.candidates(Some(*first)).into_iter().find(|by| {
                    let outer: &AddressSpans = &spans_of[by];
                    self.may_compare(spans.v4.len() + spans.v6.len()) && outer.covers(&spans)
                });
            }
            let decides_all = |rule: &Rule| rule.matches == Match::default();
            if group.default_action.is_some() || group.rules.iter().any(decides_all) {
                closing.insert(index, Some(&nets));
                spans_of.insert(index, spans);
            }
        }
        closed
    }

    fn group(&mut self, index: usize, group: &SourceGroup) {
        let path = format!("source_groups[{index}]");
        let denies = |rule: &Rule| rule.action == Action::Deny && rule.mode.is_none();
        if group.mode == Mode::Audit
            && group.default_action != Some(Action::Deny)
            && !group.rules.iter().any(denies)
        {
            self.add(
                format!("{path}.mode"),
                "audit has no effect: nothing in this group denies",
            );
        }
        let shadows = self.shadows(group);
        let families = Families::of_sources(group);
        let has_name_rules = group
            .rules
            .iter()
            .any(|rule| rule.action == Action::Allow && rule.matches.has_name());
        for (i, rule) in group.rules.iter().enumerate() {
            let path = format!("{path}.rules[{i}]");
            if let Some(by) = shadows[i] {
                self.add(
                    path.clone(),
                    format!(
                        "shadowed: rule {:?} before it matches everything it matches",
                        group.rules[by].id
                    ),
                );
            } else if !families.meet(Families::of_match(&rule.matches)) {
                self.add(
                    path.clone(),
                    "never matches: no packet of these sources has such a destination and protocol",
                );
            }
            if rule.mode == Some(Mode::Audit) && rule.action == Action::Allow {
                self.add(
                    format!("{path}.mode"),
                    "audit has no effect on a rule that allows",
                );
            }
            if has_name_rules && rule.action == Action::Allow && opens_all(&rule.matches) {
                self.add(
                    path.clone(),
                    "allows these ports to every address, so the rules by name in this group \
                     restrict nothing there",
                );
            }
            if rule.action == Action::Deny && looks_beyond_names(&rule.matches) {
                self.add(
                    path.clone(),
                    "denies every query for these names too, whatever its other selectors, so that \
                     nothing of theirs is reached; to keep the rest open, allow the names with the \
                     ports and protocols that are wanted instead",
                );
            }
            self.names(&path, &rule.matches);
        }
    }

    fn names(&mut self, path: &str, matches: &Match) {
        for (i, name) in matches.dns_names.iter().enumerate() {
            if name.reach() != Reach::Exact && !name.base().contains('.') {
                self.add(
                    format!("{path}.match.dns_names[{i}]"),
                    format!("{name} takes in every name under a public suffix"),
                );
            }
        }
        let Some(pattern) = &matches.dns_hostname else {
            return;
        };
        let path = format!("{path}.match.dns_hostname");
        if let Some(name) = plain_name(pattern) {
            self.add(
                path.clone(),
                format!("a plain name as a regular expression; dns_names: [{name}] says the same"),
            );
        }
        if !looks_at_both_ends(pattern) {
            self.add(
                path.clone(),
                "matched against the whole name; before, it was enough to occur somewhere in it",
            );
        }
        let bound = Match {
            dns_hostname: None,
            ..matches.clone()
        };
        if bound != Match::default() {
            self.add(
                path,
                "the other selectors hold for this name's addresses only; before, they opened \
                 those ports to every address",
            );
        }
    }

    /// For each rule, a rule before it that covers it.
    fn shadows(&mut self, group: &SourceGroup) -> Vec<Option<usize>> {
        let mut shadows = vec![None; group.rules.len()];
        let mut before = CoverIndex::default();
        let extents: Vec<Extent> = group.rules.iter().map(|r| Extent::of(&r.matches)).collect();
        for index in group.rules_in_order() {
            let matches = &group.rules[index].matches;
            let nets = matches
                .has_destination()
                .then(|| nets(&matches.dst_cidrs, &matches.dst_ips));
            let first = nets.as_ref().and_then(|nets| nets.first().copied());
            shadows[index] = before.candidates(first).into_iter().find(|by| {
                self.may_compare(extents[index].size())
                    && extents[*by].covers(&extents[index])
                    && covers_beyond_packets(&group.rules[*by].matches, matches)
            });
            // What is itself covered covers nothing that its cover does not.
            if shadows[index].is_none() {
                before.insert(index, nets.as_deref());
            }
        }
        shadows
    }
}

/// Whether the selectors that look beyond packets let the cover stand. A rule by name also answers
/// queries, which no rule without that name does for it.
fn covers_beyond_packets(outer: &Match, inner: &Match) -> bool {
    outer.dns_hostname == inner.dns_hostname
        && outer.dns_names == inner.dns_names
        && (outer.tls.is_none() || outer.tls == inner.tls)
}

/// Whether the rule has a name, and selectors of packets beside it.
fn looks_beyond_names(matches: &Match) -> bool {
    matches.has_name()
        && Match::default()
            != Match {
                dns_hostname: None,
                dns_names: Vec::new(),
                ..matches.clone()
            }
}

/// Whether the rule opens TCP or UDP ports to every address of a family.
fn opens_all(matches: &Match) -> bool {
    let everywhere =
        !matches.has_destination() || matches.dst_cidrs.iter().any(|net| net.prefix_len() == 0);
    let ports = match protocols(matches) {
        None => true,
        Some(spans) => [protocol::TCP, protocol::UDP]
            .iter()
            .any(|number| covers(&spans, &byte_spans(&[*number]))),
    };
    everywhere && ports && !matches.has_name() && matches.tls.is_none()
}

fn nets(cidrs: &[IpNet], ips: &[std::net::IpAddr]) -> Vec<IpNet> {
    let ips = ips.iter().map(|ip| IpNet::from(*ip));
    cidrs.iter().copied().chain(ips).collect()
}

/// Which of IPv4 and IPv6 are possible.
#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn of_nets(nets: &[IpNet]) -> Self {
        Self {
            v4: nets.iter().any(|net| matches!(net, IpNet::V4(_))),
            v6: nets.iter().any(|net| matches!(net, IpNet::V6(_))),
        }
    }

    fn of_sources(group: &SourceGroup) -> Self {
        if group.sources.kubernetes.is_empty() {
            Self::of_nets(&nets(&group.sources.cidrs, &group.sources.ips))
        } else {
            Self { v4: true, v6: true }
        }
    }

    fn of_match(matches: &Match) -> Self {
        let destination = if matches.has_destination() {
            Self::of_nets(&nets(&matches.dst_cidrs, &matches.dst_ips))
        } else {
            Self { v4: true, v6: true }
        };
        let only =
            |number: u8| protocols(matches).is_some_and(|spans| spans == byte_spans(&[number]));
        Self {
            v4: destination.v4 && !only(protocol::ICMPV6),
            v6: destination.v6 && !only(protocol::ICMP),
        }
    }

    fn meet(self, other: Self) -> bool {
        self.v4 && other.v4 || self.v6 && other.v6
    }
}

/// What a match takes in, dimension by dimension; none is everything.
struct Extent {
    destination: Option<AddressSpans>,
    ranges: [Option<Vec<Span<u16>>>; 5],
}

impl Extent {
    fn of(matches: &Match) -> Self {
        let icmp = matches.icmp();
        Self {
            destination: matches
                .has_destination()
                .then(|| AddressSpans::new(&matches.dst_cidrs, &matches.dst_ips)),
            ranges: [
                protocols(matches),
                (!matches.src_ports.is_empty()).then(|| port_spans(&matches.src_ports)),
                (!matches.dst_ports.is_empty()).then(|| port_spans(&matches.dst_ports)),
                (!icmp.types.is_empty()).then(|| byte_spans(icmp.types)),
                (!icmp.codes.is_empty()).then(|| byte_spans(icmp.codes)),
            ],
        }
    }

    fn size(&self) -> usize {
        self.ranges.iter().flatten().map(Vec::len).sum::<usize>()
            + self
                .destination
                .as_ref()
                .map_or(0, |spans| spans.v4.len() + spans.v6.len())
    }

    fn covers(&self, other: &Self) -> bool {
        let ranges = self.ranges.iter().zip(&other.ranges);
        let mut all = ranges.map(|pair| match pair {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => covers(outer, inner),
        });
        all.all(|covered| covered)
            && match (&self.destination, &other.destination) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(outer), Some(inner)) => outer.covers(inner),
            }
    }
}

/// Finds what could cover a network without asking everything: what has one of the networks that
/// contain it, or is not restricted at all.
#[derive(Default)]
struct CoverIndex {
    unrestricted: Vec<usize>,
    by_net: HashMap<IpNet, Vec<usize>>,
}

impl CoverIndex {
    fn insert(&mut self, index: usize, nets: Option<&[IpNet]>) {
        match nets {
            None => self.unrestricted.push(index),
            Some(nets) => {
                for net in nets {
                    let list = self.by_net.entry(*net).or_default();
                    if list.last() != Some(&index) {
                        list.push(index);
                    }
                }
            }
        }
    }

    fn candidates(&self, net: Option<IpNet>) -> Vec<usize> {
        let mut found = self.unrestricted.clone();
        let mut containing = net;
        while let Some(net) = containing {
            found.extend(self.by_net.get(&net).into_iter().flatten());
            containing = net.supernet();
        }
        found
    }
}

#[cfg(test)]
mod tests;
