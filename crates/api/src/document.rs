//! The policy document as the OpenAPI document shows it.
//!
//! These types describe; they decide nothing. What is valid and what it means is in the `policy`
//! crate, and a test holds the two together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyValue {
    /// Let through.
    Allow,
    /// Drop or reset.
    Deny,
}

/// Whether denies are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MatchModeValue {
    /// A deny becomes an allow that is recorded.
    Audit,
    /// A deny is a deny.
    Enforce,
}

/// How a flow that is denied later is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDenyValue {
    /// Packets are dropped.
    Drop,
    /// TCP connections are reset to both sides.
    Reset,
}

/// For whom a resolved name opens its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GrantScopeValue {
    /// For the whole source group.
    Group,
    /// For the client that asked.
    Client,
}

/// The policy: one document, always active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// When no source group decides; `deny` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_policy: Option<PolicyValue>,
    /// At most 10,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_groups: Vec<SourceGroupConfig>,
}

/// Clients, and what they may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceGroupConfig {
    /// Unique, not empty.
    pub id: String,
    /// Lower first; its place in the list if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Whether its denies are carried out.
    pub mode: MatchModeValue,
    /// Which clients; not empty.
    pub sources: SourcesConfig,
    /// By priority, then order; the first match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
    /// When no rule matches; the next group decides if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_action: Option<PolicyValue>,
    /// How a live flow that becomes denied is ended; `drop` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_deny: Option<OnDenyValue>,
}

/// Which clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourcesConfig {
    /// IPv4 or IPv6 prefixes; a bare address is that address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// IPv4 or IPv6 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Pods or nodes of an integrated cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<KubernetesSourceConfig>,
}

/// Pods or nodes; exactly one of the selectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSourceConfig {
    /// Name of the integration.
    pub integration: String,
    /// Which pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<KubernetesPodSelectorConfig>,
    /// Which nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<KubernetesNodeSelectorConfig>,
}

/// Which pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesPodSelectorConfig {
    /// Their namespace.
    pub namespace: String,
    /// Labels that all must be there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// Which nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesNodeSelectorConfig {
    /// Labels that all must be there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// What is matched, and what happens then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Unique in its group, not empty.
    pub id: String,
    /// Lower first; its place in the list if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Allow or deny.
    pub action: PolicyValue,
    /// The group's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MatchModeValue>,
    /// For whom a name opens its addresses; `group` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_scope: Option<GrantScopeValue>,
    /// All selectors that are given must hold.
    #[serde(rename = "match")]
    pub selectors: RuleMatchConfig,
}

/// What a rule matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleMatchConfig {
    /// Destination prefixes; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst_cidrs: Vec<String>,
    /// Destination addresses; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst_ips: Vec<String>,
    /// Regular expression for the whole name, case-insensitive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_hostname: Option<String>,
    /// `api.example.com`, `*.example.com` (one more label), `**.example.com` (one or more).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// `any`, `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<ProtoValue>,
    /// Source ports; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub src_ports: Vec<PortSpec>,
    /// Destination ports; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst_ports: Vec<PortSpec>,
    /// ICMP types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp_types: Vec<u8>,
    /// ICMP codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp_codes: Vec<u8>,
    /// TLS selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMatchConfig>,
}

/// A protocol by name or number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ProtoValue {
    /// By number, 0–255.
    Number(u8),
    /// By name.
    Name(String),
}

/// A port or a range `first-last`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PortSpec {
    /// One port.
    Number(u16),
    /// A range, or a port as text.
    Range(String),
}

/// How TLS is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TlsModeValue {
    /// What is visible of the handshake.
    Metadata,
    /// The connection is ended here and begun anew.
    Intercept,
}

/// When a certificate matcher meets TLS 1.3, which encrypts certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tls13UninspectableValue {
    /// Let through.
    Allow,
    /// Deny; the default.
    Deny,
}

/// TLS selectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsMatchConfig {
    /// `metadata` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsModeValue>,
    /// Server name in the ClientHello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<TlsNameMatchConfig>,
    /// Distinguished name of the server certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_dn: Option<String>,
    /// Subject alternative name of the server certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_san: Option<TlsNameMatchConfig>,
    /// Common name of the server certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cn: Option<TlsNameMatchConfig>,
    /// SHA-256 of the server certificate, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fingerprint_sha256: Vec<String>,
    /// Roots of trust; the system's if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_anchors_pem: Vec<String>,
    /// `deny` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls13_uninspectable: Option<Tls13UninspectableValue>,
    /// What the requests inside must be; with `intercept` only, which requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPolicyConfig>,
}

/// A name: a regular expression, a list of names, or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TlsNameMatchConfig {
    /// Regular expression.
    Regex(String),
    /// Exact names.
    Exact(Vec<String>),
    /// Either.
    Both(HttpStringMatcherConfig),
}

/// Exact strings, or a regular expression.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpStringMatcherConfig {
    /// Exact strings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<String>,
    /// Regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// What intercepted requests and responses must be; at least one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpPolicyConfig {
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<HttpRequestPolicyConfig>,
    /// Responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<HttpResponsePolicyConfig>,
}

/// What a request must be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpRequestPolicyConfig {
    /// Its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HttpStringMatcherConfig>,
    /// Its method; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPathMatcherConfig>,
    /// Its query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<HttpQueryMatcherConfig>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HttpHeadersMatcherConfig>,
}

/// What a response must be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpResponsePolicyConfig {
    /// Its headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HttpHeadersMatcherConfig>,
}

/// A request's path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpPathMatcherConfig {
    /// Exact paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<String>,
    /// Prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<String>,
    /// Regular expression, case-sensitive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A request's query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpQueryMatcherConfig {
    /// Keys that must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys_present: Vec<String>,
    /// Values by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub key_values_exact: BTreeMap<String, Vec<String>>,
    /// Regular expression by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub key_values_regex: BTreeMap<String, String>,
}

/// Headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpHeadersMatcherConfig {
    /// Names that must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require_present: Vec<String>,
    /// Names that must not be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_present: Vec<String>,
    /// Values by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exact: BTreeMap<String, Vec<String>>,
    /// Regular expression by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub regex: BTreeMap<String, String>,
}
