//! The policy document as its authors write it: the published schema plus `dns_names`,
//! `grant_scope`, `on_deny`, IPv6 and ICMPv6.
//!
//! A [`Document`] is only made by [`Document::parse_json`] and [`Document::parse_yaml`], which
//! refuse with every problem at once what is not valid; so whoever holds one need not check again.
//! Values are kept in one normal form (host bits masked, names in lower case, single ports as
//! numbers), which makes [`Document::to_json`] canonical: equal documents give equal bytes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde::ser::Serializer;

mod decode;
mod scalar;
pub mod tls;

pub use crate::name::NamePattern;
use crate::problem::Invalid;
use crate::tree;
use tls::TlsMatch;

/// Most source groups in a document.
pub const MAX_GROUPS: usize = 10_000;
/// Most rules in a document, over all groups.
pub const MAX_RULES: usize = 100_000;
/// Most names in a document: `dns_names`, `dns_hostname` and the exact names of TLS matchers.
pub const MAX_NAMES: usize = 1_000_000;

/// IANA protocol numbers that the schema gives a meaning of its own.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// The protocols whose header begins with a source and a destination port. A rule with port
    /// selectors matches packets of these protocols only.
    pub const WITH_PORTS: [u8; 5] = [TCP, UDP, DCCP, SCTP, UDP_LITE];
}

/// A whole policy. Evaluation order is `priority`, then position.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Document {
    /// What happens to a packet that no group decides. Absent means deny.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_policy: Option<Action>,
    /// The source groups, in the order written.
    pub source_groups: Vec<SourceGroup>,
}

/// Rules for the packets of some sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SourceGroup {
    /// Unique in the document, not empty.
    pub id: String,
    /// Lower goes first. Absent means the group's position, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Whether denies of this group are enforced or only recorded.
    pub mode: Mode,
    /// What a denied TCP flow of this group sees. Absent means drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_deny: Option<OnDeny>,
    /// Which packets the group is for; never empty.
    pub sources: Sources,
    /// The rules, in the order written.
    pub rules: Vec<Rule>,
    /// What happens to a packet of this group that no rule decides. Absent means that later
    /// groups, then the document's default, decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_action: Option<Action>,
}

impl SourceGroup {
    /// What a denied flow of this group sees.
    #[must_use]
    pub fn on_deny(&self) -> OnDeny {
        self.on_deny.unwrap_or_default()
    }
}

/// The sources of a group: the union of its members.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Sources {
    /// Networks, host bits masked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<IpNet>,
    /// Single addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Pods or nodes of a Kubernetes cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<KubernetesSource>,
}

/// Addresses of the pods or the nodes that carry some labels. Exactly one selector is set.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KubernetesSource {
    /// Name of the integration that knows the cluster.
    pub integration: String,
    /// Pods of a namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<PodSelector>,
    /// Nodes of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
}

/// Pods of one namespace that carry all the labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PodSelector {
    /// The namespace.
    pub namespace: String,
    /// Labels that must all be equal.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

/// Nodes that carry all the labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NodeSelector {
    /// Labels that must all be equal.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

/// One rule: what it matches and what then happens.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rule {
    /// Unique in its group, not empty.
    pub id: String,
    /// Lower goes first. Absent means the rule's position, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// What happens to a packet that matches.
    pub action: Action,
    /// Overrides the group's mode for this rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Whom an address learned for this rule's name is opened to. Absent means the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_scope: Option<GrantScope>,
    /// The selectors; all that are set must hold.
    #[serde(rename = "match")]
    pub matches: Match,
}

/// The selectors of a rule. An empty or absent one holds for everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Match {
    /// Destination networks, host bits masked; a union with `dst_ips`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dst_cidrs: Vec<IpNet>,
    /// Destination addresses; a union with `dst_cidrs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dst_ips: Vec<IpAddr>,
    /// Regular expression for the whole queried name, ASCII case ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_hostname: Option<String>,
    /// Names and wildcards; not together with `dns_hostname`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<NamePattern>,
    /// IANA protocol number; absent means any.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "scalar::serialize_proto"
    )]
    pub proto: Option<u8>,
    /// Source ports; hold only for protocols with ports, see [`protocol::WITH_PORTS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub src_ports: Vec<PortRange>,
    /// Destination ports; hold only for protocols with ports, see [`protocol::WITH_PORTS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dst_ports: Vec<PortRange>,
    /// ICMP types. Without a `proto` they are those of ICMP for IPv4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub icmp_types: Vec<u8>,
    /// ICMP codes. Without a `proto` they are those of ICMP for IPv4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub icmp_codes: Vec<u8>,
    /// What the TLS handshake, or the HTTP requests inside it, must show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMatch>,
}

/// ICMP types and codes that a rule asks for; an empty list holds for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpSelector<'a> {
    /// Types.
    pub types: &'a [u8],
    /// Codes.
    pub codes: &'a [u8],
}

impl Match {
    /// Whether any destination is set.
    #[must_use]
    pub fn has_destination(&self) -> bool {
        !self.dst_cidrs.is_empty() || !self.dst_ips.is_empty()
    }

    /// Whether a port is set.
    #[must_use]
    pub fn has_ports(&self) -> bool {
        !self.src_ports.is_empty() || !self.dst_ports.is_empty()
    }

    /// Whether a name is set.
    #[must_use]
    pub fn has_name(&self) -> bool {
        self.dns_hostname.is_some() || !self.dns_names.is_empty()
    }

    /// The ICMP types and codes in force: those written or, for `proto: icmp` and
    /// `proto: icmpv6` with neither, a default set.
    ///
    /// For ICMP that is the published default (types 0, 3, 11 and codes 0, 4): echo replies and
    /// the errors that path MTU discovery and traceroute need, but no echo request. For ICMPv6
    /// it is the same idea in that protocol's numbers: the errors that RFC 4890 section 4.3.1
    /// forbids to drop (1 unreachable, 2 packet too big, 3 time exceeded, 4 parameter problem)
    /// and echo replies (129), with any code, because the codes of ICMPv6 errors do not line up
    /// with those of ICMP.
    #[must_use]
    pub fn icmp(&self) -> IcmpSelector<'_> {
        let unset = self.icmp_types.is_empty() && self.icmp_codes.is_empty();
        match self.proto {
            Some(protocol::ICMP) if unset => IcmpSelector {
                types: &[0, 3, 11],
                codes: &[0, 4],
            },
            Some(protocol::ICMPV6) if unset => IcmpSelector {
                types: &[1, 2, 3, 4, 129],
                codes: &[],
            },
            _ => IcmpSelector {
                types: &self.icmp_types,
                codes: &self.icmp_codes,
            },
        }
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

/// Whether a deny is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Denies become allows that are recorded as would-deny.
    Audit,
    /// Denies hold.
    Enforce,
}

/// What the two ends of a denied flow see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeny {
    /// Nothing: packets are dropped.
    #[default]
    Drop,
    /// A TCP reset.
    Reset,
}

/// Whom an address learned from DNS is opened to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantScope {
    /// Every source of the group.
    #[default]
    Group,
    /// The client that asked.
    Client,
}

/// Ports from `start` to `end`, both included; `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub start: u16,
    /// Last port.
    pub end: u16,
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.start == self.end {
            serializer.serialize_u16(self.start)
        } else {
            serializer.collect_str(&format_args!("{}-{}", self.start, self.end))
        }
    }
}

impl Document {
    /// The document that denies everything.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            default_policy: Some(Action::Deny),
            source_groups: Vec::new(),
        }
    }

    /// Reads a document from JSON (RFC 8259).
    ///
    /// # Errors
    /// [`Invalid`] with everything that is wrong with it.
    pub fn parse_json(input: &[u8]) -> Result<Self, Invalid> {
        decode::document(&tree::parse_json(input)?)
    }

    /// Reads a document from YAML 1.2.
    ///
    /// # Errors
    /// [`Invalid`] with everything that is wrong with it.
    pub fn parse_yaml(input: &[u8]) -> Result<Self, Invalid> {
        decode::document(&tree::parse_yaml(input)?)
    }

    /// The canonical JSON: the published shape, keys in schema order, values in normal form, no
    /// whitespace. Unset selectors are left out.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and no serializer here fails")
    }

    /// The same as YAML.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("keys are strings and no serializer here fails")
    }

    /// What is in force where no group decides.
    #[must_use]
    pub fn default_policy(&self) -> Action {
        self.default_policy.unwrap_or(Action::Deny)
    }

    /// Indices of the groups in evaluation order: by priority, then position.
    #[must_use]
    pub fn groups_in_order(&self) -> Vec<usize> {
        in_order(self.source_groups.iter().map(|g| g.priority))
    }
}

impl SourceGroup {
    /// Indices of the rules in evaluation order: by priority, then position.
    #[must_use]
    pub fn rules_in_order(&self) -> Vec<usize> {
        in_order(self.rules.iter().map(|r| r.priority))
    }
}

fn in_order(priorities: impl Iterator<Item = Option<u32>>) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = priorities
        .enumerate()
        .map(|(i, priority)| (priority.map_or(i as u64, u64::from), i))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, i)| i).collect()
}

#[cfg(test)]
mod tests;
