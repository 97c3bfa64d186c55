//! Where everything is. Paths below [`BASE`] are relative to it in the OpenAPI document's server.

/// Prefix of the versioned API.
pub const BASE: &str = "/api/v1";

/// Liveness.
pub const HEALTH: &str = "/health";
/// Readiness of the whole node.
pub const READY: &str = "/ready";
/// Whether the node enforces and forwards: what load balancers ask.
pub const READY_TRAFFIC: &str = "/ready/traffic";
/// Prometheus text; on the metrics listener only.
pub const METRICS: &str = "/metrics";

/// The OpenAPI document.
pub const OPENAPI: &str = "/api/v1/openapi.json";
/// Exchanges a bearer token for a cookie.
pub const TOKEN_LOGIN: &str = "/api/v1/auth/token-login";
/// Clears the cookie.
pub const LOGOUT: &str = "/api/v1/auth/logout";
/// Who the caller is.
pub const WHOAMI: &str = "/api/v1/auth/whoami";
/// Mints a token outside the accounts; on the control socket only.
pub const MINT: &str = "/api/v1/auth/mint";
/// The keys that sign API tokens.
pub const KEYS: &str = "/api/v1/auth/keys";
/// One of them.
pub const KEY: &str = "/api/v1/auth/keys/{kid}";
/// The policy document.
pub const POLICY: &str = "/api/v1/policy";
/// The revisions of the policy that are kept.
pub const POLICY_REVISIONS: &str = "/api/v1/policy/revisions";
/// One of them.
pub const POLICY_REVISION: &str = "/api/v1/policy/revisions/{revision}";
/// Counters and the state of the cluster.
pub const STATS: &str = "/api/v1/stats";
/// Flows of a node.
pub const FLOWS: &str = "/api/v1/dataplane/flows";
/// The largest of them.
pub const FLOWS_TOP: &str = "/api/v1/dataplane/flows/top";
/// Ends flows.
pub const FLOWS_KILL: &str = "/api/v1/dataplane/flows/kill";
/// Translation addresses and their ports.
pub const NAT: &str = "/api/v1/dataplane/nat";
/// What the policy has denied on a node.
pub const FINDINGS: &str = "/api/v1/audit/findings";
/// What a node would do with a packet.
pub const EXPLAIN: &str = "/api/v1/dataplane/explain";
/// Names that clients have resolved.
pub const DNS_CACHE: &str = "/api/v1/dns-cache";
/// What they may reach by them.
pub const DNS_GRANTS: &str = "/api/v1/dns/grants";
/// What would become of a query.
pub const DNS_EXPLAIN: &str = "/api/v1/dns/explain";
/// Packets as they pass.
pub const TRACE: &str = "/api/v1/dataplane/trace";
/// Frames that are dropped, as they are dropped.
pub const DROPS: &str = "/api/v1/dataplane/drops";
/// The cluster's members.
pub const MEMBERS: &str = "/api/v1/cluster/members";
/// Lets a node in that waits for approval.
pub const MEMBER_APPROVAL: &str = "/api/v1/cluster/members/{node_id}/approve";
/// How new members are let in.
pub const JOIN_SETTINGS: &str = "/api/v1/cluster/join";
/// Replaces the bootstrap secret.
pub const BOOTSTRAP_ROTATION: &str = "/api/v1/cluster/join/rotate";
/// Join tokens.
pub const JOIN_TOKENS: &str = "/api/v1/cluster/tokens";
/// One join token.
pub const JOIN_TOKEN: &str = "/api/v1/cluster/tokens/{id}";
/// The cluster's CA.
pub const CLUSTER_CA: &str = "/api/v1/cluster/ca";
/// The rotation of the cluster's CA.
pub const CA_ROTATION: &str = "/api/v1/cluster/ca/rotation";
/// The change log.
pub const CHANGES: &str = "/api/v1/cluster/changes";
/// A support archive of one node.
pub const SYSDUMP_NODE: &str = "/api/v1/support/sysdump/node";
/// A support archive of every member that can be reached.
pub const SYSDUMP_CLUSTER: &str = "/api/v1/support/sysdump/cluster";
/// Makes a backup.
pub const BACKUP: &str = "/api/v1/cluster/backup";
/// Puts a node's data aside and joins anew; on the control socket only.
pub const REJOIN: &str = "/api/v1/cluster/rejoin";
/// The members that vote.
pub const VOTERS: &str = "/api/v1/cluster/members/voters";
/// Takes a member out of the cluster.
pub const MEMBER_REMOVE: &str = "/api/v1/cluster/members/{node_id}/remove";
/// Has a member vote.
pub const MEMBER_PROMOTE: &str = "/api/v1/cluster/members/{node_id}/promote";
/// Has a member vote no more.
pub const MEMBER_DEMOTE: &str = "/api/v1/cluster/members/{node_id}/demote";
/// Has a member refuse new flows.
pub const MEMBER_DRAIN: &str = "/api/v1/cluster/members/{node_id}/drain";
/// Has a member take new flows again.
pub const MEMBER_UNDRAIN: &str = "/api/v1/cluster/members/{node_id}/undrain";
/// Hands leadership over.
pub const TRANSFER: &str = "/api/v1/cluster/transfer";
/// Has a member look at a node that is to join.
pub const PREFLIGHT: &str = "/api/v1/cluster/preflight";
/// Service accounts.
pub const SERVICE_ACCOUNTS: &str = "/api/v1/service-accounts";
/// One service account.
pub const SERVICE_ACCOUNT: &str = "/api/v1/service-accounts/{id}";
/// Tokens of a service account.
pub const SERVICE_ACCOUNT_TOKENS: &str = "/api/v1/service-accounts/{id}/tokens";
/// One token of a service account.
pub const SERVICE_ACCOUNT_TOKEN: &str = "/api/v1/service-accounts/{id}/tokens/{token_id}";
