//! Judging a DNS query by its name, and packets by the addresses that names were found to have.
//!
//! DNS is stricter than packets: the first group that has the source decides, and in it the first
//! rule by name that matches; if none does, the query is denied. Nothing is left to later groups or
//! to the document's default.
//!
//! What is learned from an answer is kept as grants: this address, for this rule. A rule by name
//! matches a packet only if the packet's destination is granted to it, and its other selectors hold.

use std::net::IpAddr;

use super::{Decision, Facts, Step, point};
use crate::classify::{Classifier, Dimension, Selected};
use crate::compile::Compiled;
use crate::document::GrantScope;

/// Most rules that one name's addresses are granted to in one group; further ones in evaluation order
/// get none.
pub const MAX_RULES_PER_NAME: usize = 64;

/// The verdict on a query and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameDecision {
    /// Whether it is asked and answered.
    pub allow: bool,
    /// It is allowed only because the group or the rule is in audit mode.
    pub would_deny: bool,
    /// Position in the document of the group that decided; none if no group has the source.
    pub group: Option<u32>,
    /// Position in its group of the rule that decided; none if no rule by name matched.
    pub rule: Option<u32>,
}

impl NameDecision {
    const NO_GROUP: Self = Self {
        allow: false,
        would_deny: false,
        group: None,
        rule: None,
    };
}

/// A rule by name, as one compiled document knows it. Rules compare as they are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameRule(u32);

impl NameRule {
    pub(super) fn new(entry: u32) -> Self {
        Self(entry)
    }
}

impl Compiled {
    /// Judges a query for `name` by the client `source`. The name is in lower case and without the
    /// final dot; octets other than letters, digits, `-` and `_` stand in it as `\DDD` (RFC 1035
    /// section 5.1), so that each dot is one between labels.
    #[must_use]
    pub fn evaluate_name(&self, source: IpAddr, name: &str) -> NameDecision {
        let Some(group) = self.first_group(source) else {
            return NameDecision::NO_GROUP;
        };
        let entries = &self.order[group];
        match self.names.first(name, &(entries.first..entries.end)) {
            Some(entry) => {
                let decision = &self.decisions[entry as usize];
                NameDecision {
                    allow: decision.allow,
                    would_deny: decision.would_deny,
                    group: decision.group,
                    rule: decision.rule,
                }
            }
            None => NameDecision {
                allow: entries.audited,
                would_deny: entries.audited,
                group: Some(entries.group),
                rule: None,
            },
        }
    }

    /// The rules that the addresses of `name` are to be granted to when a client of the group at a
    /// position of the document has resolved it: each rule by name that matches, whatever its action
    /// and its other selectors, in evaluation order; [`MAX_RULES_PER_NAME`] at most. `out` is
    /// overwritten.
    pub fn rules_by_name(&self, group: u32, name: &str, out: &mut Vec<NameRule>) {
        out.clear();
        let Some(entries) = self.group_entries(group) else {
            return;
        };
        let mut found = Vec::new();
        self.names
            .all(name, &(entries.first..entries.end), &mut found);
        out.extend(found.into_iter().take(MAX_RULES_PER_NAME).map(NameRule));
    }

    /// All rules by name in evaluation order.
    pub fn name_rules(&self) -> impl Iterator<Item = NameRule> {
        self.names.entries().map(NameRule)
    }

    /// Positions in the document of a rule's group, and of the rule in it.
    #[must_use]
    pub fn name_rule_position(&self, rule: NameRule) -> Option<(u32, u32)> {
        let decision = self.decisions.get(rule.0 as usize)?;
        Some((decision.group?, decision.rule?))
    }

    /// Whom a rule's addresses are granted to.
    #[must_use]
    pub fn grant_scope(&self, rule: NameRule) -> GrantScope {
        self.names
            .rule(rule.0)
            .map(|named| named.scope)
            .unwrap_or_default()
    }

    /// Judges a packet whose destination is granted to some rules by name, given in ascending order; and which of these it
    /// was that decided, if one did. Those that are not rules of a group that has the source count for nothing.
    #[must_use]
    pub fn evaluate_granted(
        &self,
        facts: &Facts,
        granted: &[NameRule],
    ) -> (Decision, Option<NameRule>) {
        let selected = self.classifier.select(&point(facts));
        let plain = self.classifier.first(&selected);
        match self.first_entry(facts, &selected, plain, granted) {
            Some(entry) => {
                let decided = (Some(entry) != plain).then_some(NameRule(entry));
                (self.decisions[entry as usize], decided)
            }
            None => (self.fallback, None),
        }
    }

    /// Whether a packet that is denied, though its destination is granted to some rules by name, given in ascending order,
    /// would pass if that were granted to another one: a rule by name of the first group that has the source, since no other
    /// has anything granted by what this client asks for. The first 64 of the group are looked at; where
    /// there are more, it might.
    #[must_use]
    pub fn might_be_granted(&self, facts: &Facts, granted: &[NameRule]) -> bool {
        let Some(group) = self.first_group(facts.src) else {
            return false;
        };
        let entries = &self.order[group];
        let selected = self.classifier.select(&point(facts));
        let plain = self.classifier.first(&selected);
        let decides = self.first_entry(facts, &selected, plain, granted);
        let end = decides.map_or(entries.end, |decides| decides.min(entries.end));
        let mut rules = self.names.entries_in(entries.first..end);
        let passes = |entry: u32| {
            self.decisions[entry as usize].allow && self.named_holds(facts, &selected, entry)
        };
        rules.by_ref().take(MAX_RULES_LOOKED_AT).any(passes) || rules.next().is_some()
    }

    /// The first of the entry found without grants and those of granted rules.
    pub(super) fn first_entry(
        &self,
        facts: &Facts,
        selected: &Selected,
        plain: Option<u32>,
        granted: &[NameRule],
    ) -> Option<u32> {
        granted
            .iter()
            .map(|rule| rule.0)
            .take_while(|entry| plain.is_none_or(|plain| *entry < plain))
            .find(|entry| self.named_holds(facts, selected, *entry))
            .or(plain)
    }

    /// Whether an entry is a rule by name whose selectors all hold, the name taken for granted.
    fn named_holds(&self, facts: &Facts, selected: &Selected, entry: u32) -> bool {
        self.names.rule(entry).is_some_and(|named| {
            named.takes(facts.dst)
                && BESIDE_NAMES
                    .iter()
                    .all(|d| self.classifier.holds(selected, *d, entry))
        })
    }

    /// The walk by which [`Self::evaluate_name`] comes to its decision, in words that stand alone.
    #[must_use]
    pub fn explain_name(&self, source: IpAddr, name: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        let decides = self.first_group(source);
        for (at, entries) in self.order.iter().enumerate() {
            let group = self.group_id(entries.group).unwrap_or_default().to_owned();
            if decides != Some(at) {
                steps.push(Step::OtherSources { group });
                continue;
            }
            steps.push(Step::Group { group });
            let hit = self.names.first(name, &(entries.first..entries.end));
            for entry in entries.first..entries.end {
                if self.names.rule(entry).is_none() {
                    continue;
                }
                let decision = &self.decisions[entry as usize];
                let rule = decision
                    .rule
                    .and_then(|rule| self.rule_id(entries.group, rule));
                let rule = rule.unwrap_or_default().to_owned();
                if hit == Some(entry) {
                    steps.push(Step::Matched {
                        rule,
                        action: super::action_of(decision),
                        audited: decision.would_deny,
                    });
                    return steps;
                }
                steps.push(Step::Differs {
                    rule,
                    selectors: vec![super::Selector::Name],
                });
            }
            steps.push(Step::NoRuleByName {
                audited: entries.audited,
            });
            return steps;
        }
        steps.push(Step::NoGroup);
        steps
    }

    /// Bytes on the heap for finding names, without what threads keep for regular expressions.
    #[must_use]
    pub fn name_memory_bytes(&self) -> usize {
        self.names.memory_bytes()
    }

    /// Where in the evaluation order the first group that has the source stands.
    fn first_group(&self, source: IpAddr) -> Option<usize> {
        let entry = self.classifier.first_with_source(source)?;
        Some(self.order.partition_point(|entries| entries.end < entry))
    }
}

/// Rules by name of a group that [`Compiled::might_be_granted`] looks at.
const MAX_RULES_LOOKED_AT: usize = 64;

/// The dimensions of a rule by name other than its destination, which grants stand for.
const BESIDE_NAMES: [Dimension; 6] = [
    Dimension::Source,
    Dimension::Protocol,
    Dimension::SourcePort,
    Dimension::DestinationPort,
    Dimension::IcmpType,
    Dimension::IcmpCode,
];

impl Classifier {
    /// The lowest entry that has a source.
    fn first_with_source(&self, source: IpAddr) -> Option<u32> {
        self.lowest(self.select_source(source))
    }
}

#[cfg(test)]
mod tests;
