//! Judging a packet, and saying why.
//!
//! [`Compiled::evaluate`] finds the packet's first entry and returns what was worked out for it
//! when the document was compiled: no allocation, no lock, no scan. [`Compiled::explain`] uses
//! the same selection and the same first entry, and then asks in which dimension each entry
//! before it fell short.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::classify::{Dimension, NO_ICMP, Point};
use crate::compile::Compiled;
use crate::document::{Action, OnDeny};

mod name;

pub use name::{MAX_RULES_PER_NAME, NameDecision, NameRule};

/// What is known of a packet. IPv4 addresses are given as such, never as IPv4-mapped IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IANA protocol number; for IPv6 that of the upper layer.
    pub proto: u8,
    /// Source port; 0 for protocols without ports.
    pub src_port: u16,
    /// Destination port; 0 for protocols without ports.
    pub dst_port: u16,
    /// Type and code, if it is ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A rule matched.
    Rule,
    /// No rule of the group matched, and the group has a default action.
    GroupDefault,
    /// No group decided.
    DefaultPolicy,
}

/// The verdict on a packet and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it passes.
    pub allow: bool,
    /// It passes only because the group or the rule is in audit mode.
    pub would_deny: bool,
    /// Position in the document of the group that decided.
    pub group: Option<u32>,
    /// Position in its group of the rule that decided.
    pub rule: Option<u32>,
    /// What a denied flow sees; that of the group that decided, else drop.
    pub on_deny: OnDeny,
    /// What decided.
    pub cause: Cause,
}

impl Compiled {
    /// Judges a packet.
    #[must_use]
    pub fn evaluate(&self, facts: &Facts) -> Decision {
        let selected = self.classifier.select(&point(facts));
        match self.classifier.first(&selected) {
            Some(entry) => self.decisions[entry as usize],
            None => self.fallback,
        }
    }

    /// Whether a group tells this source from the rest of the world. A group that has the first and the last address of a
    /// family tells nothing by it (it is for everyone, or for what nobody has), and nor do groups that have both together.
    #[must_use]
    pub fn tells_source(&self, source: IpAddr) -> bool {
        self.told.has(source)
    }

    /// The walk by which [`Self::evaluate`] comes to its decision, in words that stand alone.
    /// Its length grows with the number of rules; it is meant for people.
    #[must_use]
    pub fn explain(&self, facts: &Facts) -> Vec<Step> {
        self.explain_granted(facts, &[])
    }

    /// The walk by which [`Self::evaluate_granted`] comes to its decision.
    #[must_use]
    pub fn explain_granted(&self, facts: &Facts, granted: &[NameRule]) -> Vec<Step> {
        let selected = self.classifier.select(&point(facts));
        let plain = self.classifier.first(&selected);
        let hit = self.first_entry(facts, &selected, plain, granted);
        let holds = |dimension, entry| self.classifier.holds(&selected, dimension, entry);
        let mut steps = Vec::new();
        for entries in &self.order {
            let id = || self.group_id(entries.group).unwrap_or_default().to_owned();
            if !holds(Dimension::Source, entries.end) {
                steps.push(Step::OtherSources { group: id() });
                continue;
            }
            steps.push(Step::Group { group: id() });
            for entry in entries.first..=entries.end {
                let decision = &self.decisions[entry as usize];
                let action = action_of(decision);
                let rule = decision.rule.map(|rule| {
                    let id = self.rule_id(entries.group, rule);
                    id.unwrap_or_default().to_owned()
                });
                if hit == Some(entry) {
                    let audited = decision.would_deny;
                    steps.push(match rule {
                        Some(rule) => Step::Matched {
                            rule,
                            action,
                            audited,
                        },
                        None => Step::GroupDefault { action, audited },
                    });
                    return steps;
                }
                steps.push(match rule {
                    Some(rule) => Step::Differs {
                        rule,
                        selectors: self.differing(facts, entry, granted, holds),
                    },
                    None => Step::NextGroup,
                });
            }
        }
        steps.push(Step::DefaultPolicy {
            action: if self.fallback.allow {
                Action::Allow
            } else {
                Action::Deny
            },
        });
        steps
    }
}

impl Compiled {
    /// The selectors of a rule that do not hold.
    fn differing(
        &self,
        facts: &Facts,
        entry: u32,
        granted: &[NameRule],
        holds: impl Fn(Dimension, u32) -> bool,
    ) -> Vec<Selector> {
        let named = self.names.rule(entry);
        let name = named.is_some() && !granted.contains(&NameRule::new(entry));
        let differs = |dimension| match (named, dimension) {
            (Some(named), Dimension::Destination) => !named.takes(facts.dst),
            _ => !holds(dimension, entry),
        };
        let others = SELECTORS
            .iter()
            .filter(|(dimension, _)| differs(*dimension))
            .map(|(_, selector)| *selector);
        name.then_some(Selector::Name)
            .into_iter()
            .chain(others)
            .collect()
    }
}

fn action_of(decision: &Decision) -> Action {
    if decision.allow && !decision.would_deny {
        Action::Allow
    } else {
        Action::Deny
    }
}

fn point(facts: &Facts) -> Point {
    let (icmp_type, icmp_code) = match facts.icmp {
        Some((kind, code)) => (kind.into(), code.into()),
        None => (NO_ICMP, NO_ICMP),
    };
    Point {
        source: facts.src,
        destination: facts.dst,
        protocol: facts.proto,
        source_port: facts.src_port,
        destination_port: facts.dst_port,
        icmp_type,
        icmp_code,
    }
}

/// A selector of a rule, as `explain` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// `dns_names` or `dns_hostname`: of a query its name, of a packet that its destination is granted.
    Name,
    /// `dst_cidrs` and `dst_ips`.
    Destination,
    /// `proto`, or the protocols that have what the other selectors look at.
    Protocol,
    /// `src_ports`.
    SourcePort,
    /// `dst_ports`.
    DestinationPort,
    /// `icmp_types`.
    IcmpType,
    /// `icmp_codes`.
    IcmpCode,
}

const SELECTORS: [(Dimension, Selector); 6] = [
    (Dimension::Destination, Selector::Destination),
    (Dimension::Protocol, Selector::Protocol),
    (Dimension::SourcePort, Selector::SourcePort),
    (Dimension::DestinationPort, Selector::DestinationPort),
    (Dimension::IcmpType, Selector::IcmpType),
    (Dimension::IcmpCode, Selector::IcmpCode),
];

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Destination => "destination",
            Self::Protocol => "protocol",
            Self::SourcePort => "source port",
            Self::DestinationPort => "destination port",
            Self::IcmpType => "ICMP type",
            Self::IcmpCode => "ICMP code",
        })
    }
}

/// One step of the walk to a decision. The last one decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// A group that does not have the source.
    OtherSources {
        /// Its id.
        group: String,
    },
    /// A group that has the source; what follows is about its rules.
    Group {
        /// Its id.
        group: String,
    },
    /// A rule that does not match.
    Differs {
        /// Its id.
        rule: String,
        /// The selectors that do not hold.
        selectors: Vec<Selector>,
    },
    /// The rule that decides.
    Matched {
        /// Its id.
        rule: String,
        /// Its action.
        action: Action,
        /// The deny is only recorded.
        audited: bool,
    },
    /// No rule matched and the group's default action decides.
    GroupDefault {
        /// The action.
        action: Action,
        /// The deny is only recorded.
        audited: bool,
    },
    /// No rule matched and the group has no default action.
    NextGroup,
    /// No rule by name matched the query, which is a deny.
    NoRuleByName {
        /// The deny is only recorded.
        audited: bool,
    },
    /// No group has the source of the query, which is a deny.
    NoGroup,
    /// No group decided and the document's default does.
    DefaultPolicy {
        /// The action.
        action: Action,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |action: &Action, audited: &bool| match (action, audited) {
            (Action::Allow, _) => "allow",
            (Action::Deny, false) => "deny",
            (Action::Deny, true) => "deny, which audit mode only records: allow",
        };
        match self {
            Self::OtherSources { group } => {
                write!(f, "group {group}: does not have this source")
            }
            Self::Group { group } => write!(f, "group {group}: has this source"),
            Self::Differs { rule, selectors } => {
                write!(f, "  rule {rule}: differs in ")?;
                for (i, selector) in selectors.iter().enumerate() {
                    write!(f, "{}{selector}", if i > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            Self::Matched {
                rule,
                action,
                audited,
            } => write!(f, "  rule {rule}: matches: {}", verb(action, audited)),
            Self::GroupDefault { action, audited } => {
                write!(f, "  default action: {}", verb(action, audited))
            }
            Self::NextGroup => f.write_str("  no default action: on to the next group"),
            Self::NoRuleByName { audited } => {
                write!(
                    f,
                    "  no rule by name matches: {}",
                    verb(&Action::Deny, audited)
                )
            }
            Self::NoGroup => f.write_str("no group has this source: deny"),
            Self::DefaultPolicy { action } => {
                write!(f, "default policy: {}", verb(action, &false))
            }
        }
    }
}

#[cfg(test)]
mod tests;
