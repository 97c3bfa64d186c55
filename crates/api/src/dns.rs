//! What clients have resolved, and what they may reach by it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Names that clients have resolved, with the addresses that they may reach by them, on any node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsCacheResponse {
    /// By name, ascending.
    pub entries: Vec<DnsCacheEntry>,
}

/// A name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsCacheEntry {
    /// The name, in lower case.
    pub hostname: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// When a client was told of it last, seconds since 1970.
    pub last_seen: i64,
}

/// Grants, as one node has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantList {
    /// The node that has them.
    pub node_id: String,
    /// How many addresses of names it has in all, whatever was asked for.
    pub total: u64,
    /// Those that were asked for, by name, address, group and rule.
    pub grants: Vec<GrantEntry>,
    /// There are more than were asked for.
    pub truncated: bool,
}

/// An address of a name, granted to a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantEntry {
    /// The source group.
    pub source_group: String,
    /// The rule; absent if the policy in force there has none for the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The name.
    pub name: String,
    /// The address.
    pub address: String,
    /// The only client that may use it; absent if the whole group may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The client that has resolved it first, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
    /// The nodes whose clients have resolved it, or use it.
    pub nodes: Vec<String>,
    /// `used` (by live flows of the node that has it), `idle`, or `inert` (no rule).
    pub state: String,
    /// How much longer it lasts if no flow uses it, in seconds.
    pub expires_in_secs: u64,
    /// Live flows of the node that use it.
    pub uses: u32,
}

/// What would become of a query, and of packets to what it is answered with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameExplanation {
    /// The node that was asked; absent if only a policy was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Whether it is answered only since audit mode records the deny.
    pub would_deny: bool,
    /// The source group that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_group: Option<String>,
    /// The rule that decides; absent for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policy's revision.
    pub revision: u64,
    /// How the policy comes to its decision, a line for each step.
    pub walk: Vec<String>,
    /// The rules that the name's addresses are granted to.
    pub grants_to: Vec<String>,
    /// What is granted for the name now.
    pub grants: Vec<GrantEntry>,
}
