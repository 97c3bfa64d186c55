//! From a document to the form that judges packets.
//!
//! The rules of all groups become one list of entries in evaluation order. Each group ends with an
//! entry of its own: its default action, or, if it has none, one that nothing matches, so that
//! every group is present in the source dimension. What each entry decides is worked out here,
//! audit included, so that judging a packet is finding its first entry ([`crate::classify`]).

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::classify::{AddressSpans, Classifier, Restriction, Restrictions, Span, merge};
use crate::document::tls::TlsMode;
use crate::document::{
    Action, Document, Match, Mode, OnDeny, PortRange, Rule, SourceGroup, protocol,
};
use crate::evaluate::{Cause, Decision};
use crate::problem::{MAX_PROBLEMS, Path, Problem};

/// Why a document was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It needs parts of Neuwerk that this version does not have. Displays one place a line.
    #[error("{}", lines(.0))]
    NotBuilt(Vec<Problem>),
    /// Its rules overlap so much that judging packets would need more memory than allowed.
    #[error(
        "the document's rules overlap in too many ways: telling them apart would need more than \
         {} MiB; join networks that always go together, or split fewer ranges",
        crate::classify::sets::MAX_SET_WORDS >> 17
    )]
    TooComplex,
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

mod names;
mod told;

use names::{Builder as NamesBuilder, Names};
use told::Told;

/// A document in the form that judges packets and queries. Immutable; any number of threads may read it.
#[derive(Debug)]
pub struct Compiled {
    pub(crate) classifier: Classifier,
    pub(crate) names: Names,
    pub(crate) told: Told,
    /// What each entry decides.
    pub(crate) decisions: Vec<Decision>,
    /// The groups in evaluation order, with their entries.
    pub(crate) order: Vec<GroupEntries>,
    /// Where each group of the document stands in `order`.
    places: Vec<u32>,
    pub(crate) fallback: Decision,
    groups: Vec<GroupIds>,
    /// Positions in the document, by id.
    by_id: HashMap<Arc<str>, u32>,
    revision: u64,
    hash: [u8; 32],
}

/// The entries of a group, its rules in evaluation order and then its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupEntries {
    /// Position in the document.
    pub(crate) group: u32,
    pub(crate) first: u32,
    /// The entry that stands for its default action, or for having none.
    pub(crate) end: u32,
    /// Denies of the group are only recorded, where a rule does not say otherwise.
    pub(crate) audited: bool,
}

#[derive(Debug)]
struct GroupIds {
    id: Arc<str>,
    rules: Vec<Box<str>>,
}

impl Compiled {
    /// Compiles a document. `revision` is carried along and handed out again.
    ///
    /// # Errors
    /// [`CompileError::NotBuilt`] if it needs parts that this version does not have,
    /// [`CompileError::TooComplex`] if it would need too much memory.
    pub fn compile(document: &Document, revision: u64) -> Result<Self, CompileError> {
        let missing = not_built(document);
        if !missing.is_empty() {
            return Err(CompileError::NotBuilt(missing));
        }
        let hash: [u8; 32] = Sha256::digest(document.to_json()).into();
        let (seed, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
        let mut flat = Flat::new(u64::from_le_bytes(*seed));
        for index in document.groups_in_order() {
            flat.group(index, &document.source_groups[index]);
        }
        let told = Told::by(&flat.restrictions);
        let classifier = Classifier::build(flat.decisions.len(), flat.restrictions)
            .map_err(|_| CompileError::TooComplex)?;
        let mut places = vec![0; flat.order.len()];
        for (place, entries) in (0..).zip(&flat.order) {
            places[entries.group as usize] = place;
        }
        let groups: Vec<GroupIds> = document
            .source_groups
            .iter()
            .map(|group| GroupIds {
                id: group.id.as_str().into(),
                rules: group
                    .rules
                    .iter()
                    .map(|rule| rule.id.as_str().into())
                    .collect(),
            })
            .collect();
        let ids = groups.iter().map(|group| Arc::clone(&group.id));
        Ok(Self {
            classifier,
            names: flat.names.finish(),
            told,
            places,
            decisions: flat.decisions,
            order: flat.order,
            fallback: Decision {
                allow: document.default_policy() == Action::Allow,
                would_deny: false,
                group: None,
                rule: None,
                on_deny: OnDeny::Drop,
                cause: Cause::DefaultPolicy,
            },
            by_id: ids.zip(0..).collect(),
            groups,
            revision,
            hash,
        })
    }

    /// What is in force before there is any policy: everything is denied. Revision 0.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::compile(&Document::deny_all(), 0).expect("it has no groups")
    }

    /// The revision it was compiled as.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// SHA-256 of the document's canonical JSON.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The id of the group at a position of the document.
    #[must_use]
    pub fn group_id(&self, group: u32) -> Option<&str> {
        self.groups.get(group as usize).map(|g| &*g.id)
    }

    /// The same to keep.
    #[must_use]
    pub fn shared_group_id(&self, group: u32) -> Option<&Arc<str>> {
        self.groups.get(group as usize).map(|g| &g.id)
    }

    /// The id of the rule at a position of the group at a position of the document.
    #[must_use]
    pub fn rule_id(&self, group: u32, rule: u32) -> Option<&str> {
        let rules = &self.groups.get(group as usize)?.rules;
        rules.get(rule as usize).map(|id| &**id)
    }

    /// Position in the document of the group with an id.
    #[must_use]
    pub fn group_by_id(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// The entries of the group at a position of the document.
    pub(crate) fn group_entries(&self, group: u32) -> Option<&GroupEntries> {
        let place = self.places.get(group as usize)?;
        self.order.get(*place as usize)
    }

    /// Number of source groups.
    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }
}

/// One sentence for each place that needs a part which does not exist yet.
fn not_built(document: &Document) -> Vec<Problem> {
    let mut missing = Vec::new();
    let mut beyond = 0_usize;
    let mut add = |path: &Path<'_>, reason: &str| {
        if missing.len() < MAX_PROBLEMS {
            missing.push(Problem {
                path: path.to_string(),
                reason: reason.to_owned(),
                suggestion: None,
            });
        } else {
            beyond += 1;
        }
    };
    let groups = Path::Root.key("source_groups");
    for (i, group) in document.source_groups.iter().enumerate() {
        let path = groups.index(i);
        if !group.sources.kubernetes.is_empty() {
            add(&path.key("sources").key("kubernetes"), NEEDS_KUBERNETES);
        }
        for (j, rule) in group.rules.iter().enumerate() {
            let rules = path.key("rules");
            let rule_path = rules.index(j);
            let path = rule_path.key("match");
            match rule.matches.tls.as_ref().map(|tls| tls.mode()) {
                Some(TlsMode::Metadata) => add(&path.key("tls"), NEEDS_TLS),
                Some(TlsMode::Intercept) => add(&path.key("tls"), NEEDS_INTERCEPT),
                None => {}
            }
        }
    }
    if beyond > 0 {
        missing.push(Problem {
            path: String::new(),
            reason: format!("{beyond} more places need parts that this version does not have"),
            suggestion: None,
        });
    }
    missing
}

const NEEDS_KUBERNETES: &str =
    "sources from Kubernetes need the Kubernetes integration, which this version does not have yet";
const NEEDS_TLS: &str =
    "rules by TLS handshake need TLS inspection, which this version does not have yet";
const NEEDS_INTERCEPT: &str =
    "rules by HTTP request need TLS interception, which this version does not have yet";

/// The entries as they are laid out one behind the other.
struct Flat<'d> {
    decisions: Vec<Decision>,
    order: Vec<GroupEntries>,
    restrictions: Restrictions,
    names: NamesBuilder<'d>,
}

impl<'d> Flat<'d> {
    fn new(seed: u64) -> Self {
        Self {
            decisions: Vec::new(),
            order: Vec::new(),
            restrictions: Restrictions::default(),
            names: NamesBuilder::new(seed),
        }
    }

    fn group(&mut self, index: usize, group: &'d SourceGroup) {
        let group_index = u32::try_from(index).expect("bounded by MAX_GROUPS");
        let first = self.next_entry();
        for rule_index in group.rules_in_order() {
            let rule = &group.rules[rule_index];
            let entry = self.next_entry();
            self.rule(entry, rule);
            self.decisions.push(decide(
                group,
                group_index,
                Some(u32::try_from(rule_index).expect("bounded by MAX_RULES")),
                rule.action,
                rule.mode.unwrap_or(group.mode),
            ));
        }
        let end = self.next_entry();
        let action = group.default_action.unwrap_or_else(|| {
            // Restricted to no destination at all.
            self.no_destination(end);
            Action::Deny
        });
        self.decisions
            .push(decide(group, group_index, None, action, group.mode));
        let sources = AddressSpans::new(&group.sources.cidrs, &group.sources.ips);
        let entries = end + 1 - first;
        restrict(&mut self.restrictions.source_v4, first, entries, sources.v4);
        restrict(&mut self.restrictions.source_v6, first, entries, sources.v6);
        self.order.push(GroupEntries {
            group: group_index,
            first,
            end,
            audited: group.mode == Mode::Audit,
        });
    }

    fn next_entry(&self) -> u32 {
        u32::try_from(self.decisions.len()).expect("bounded by MAX_RULES and MAX_GROUPS")
    }

    /// Restricts an entry to no destination at all.
    fn no_destination(&mut self, entry: u32) {
        let wanted = &mut self.restrictions;
        restrict(&mut wanted.destination_v4, entry, 1, Vec::new());
        restrict(&mut wanted.destination_v6, entry, 1, Vec::new());
    }

    fn rule(&mut self, entry: u32, rule: &'d Rule) {
        let matches = &rule.matches;
        if matches.has_name() {
            // No destination is its own but those granted to it.
            self.names.add(entry, rule);
            self.no_destination(entry);
        }
        let wanted = &mut self.restrictions;
        if matches.has_destination() && !matches.has_name() {
            let spans = AddressSpans::new(&matches.dst_cidrs, &matches.dst_ips);
            restrict(&mut wanted.destination_v4, entry, 1, spans.v4);
            restrict(&mut wanted.destination_v6, entry, 1, spans.v6);
        }
        if let Some(protocols) = protocols(matches) {
            restrict(&mut wanted.protocol, entry, 1, protocols);
        }
        if !matches.src_ports.is_empty() {
            restrict(
                &mut wanted.source_port,
                entry,
                1,
                port_spans(&matches.src_ports),
            );
        }
        if !matches.dst_ports.is_empty() {
            restrict(
                &mut wanted.destination_port,
                entry,
                1,
                port_spans(&matches.dst_ports),
            );
        }
        let icmp = matches.icmp();
        if !icmp.types.is_empty() {
            restrict(&mut wanted.icmp_type, entry, 1, byte_spans(icmp.types));
        }
        if !icmp.codes.is_empty() {
            restrict(&mut wanted.icmp_code, entry, 1, byte_spans(icmp.codes));
        }
    }
}

fn restrict<K>(
    wanted: &mut Vec<Restriction<K>>,
    first_entry: u32,
    entries: u32,
    spans: Vec<Span<K>>,
) {
    wanted.push(Restriction {
        first_entry,
        entries,
        spans,
    });
}

/// The protocols a rule can match, if it cannot match all: those it names, else those that have
/// what its other selectors look at.
pub(crate) fn protocols(matches: &Match) -> Option<Vec<Span<u16>>> {
    if let Some(number) = matches.proto {
        return Some(byte_spans(&[number]));
    }
    if matches.tls.is_some() {
        return Some(byte_spans(&[protocol::TCP]));
    }
    if matches.has_ports() {
        return Some(byte_spans(&protocol::WITH_PORTS));
    }
    if !matches.icmp_types.is_empty() || !matches.icmp_codes.is_empty() {
        return Some(byte_spans(&[protocol::ICMP]));
    }
    None
}

pub(crate) fn port_spans(ranges: &[PortRange]) -> Vec<Span<u16>> {
    let mut spans = ranges.iter().map(|r| (r.start, r.end)).collect();
    merge(&mut spans);
    spans
}

pub(crate) fn byte_spans(values: &[u8]) -> Vec<Span<u16>> {
    let mut spans = values.iter().map(|v| ((*v).into(), (*v).into())).collect();
    merge(&mut spans);
    spans
}

fn decide(
    group: &SourceGroup,
    group_index: u32,
    rule: Option<u32>,
    action: Action,
    mode: Mode,
) -> Decision {
    let denied = action == Action::Deny;
    let audited = mode == Mode::Audit;
    Decision {
        allow: !denied || audited,
        would_deny: denied && audited,
        group: Some(group_index),
        rule,
        on_deny: group.on_deny(),
        cause: match rule {
            Some(_) => Cause::Rule,
            None => Cause::GroupDefault,
        },
    }
}

const _: () = assert!(
    crate::document::MAX_RULES + crate::document::MAX_GROUPS <= crate::classify::sets::MAX_ENTRIES,
    "each rule and each group's end is an entry"
);

#[cfg(test)]
mod tests;
