//! The table of routes: what there is, who may use it, and who answers it.
//!
//! The router, the OpenAPI document and the access test are made from this table, so that a route
//! cannot exist without its row.

use std::sync::Arc;

use axum::routing::{MethodRouter, delete, get, post, put};
use http::Method;

use super::openapi::Doc;
use super::{
    App, account, backup, ca, changes, dataplane, findings, health, history, joining, key, members,
    names, openapi, policy, preflight, session, stats, sysdump, watch,
};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Any valid credential.
    Any,
    /// A credential with the role `admin`.
    Admin,
    /// Root on this node, over the control socket.
    Node,
}

/// Which node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The node that was asked, from what it has; consistency does not apply.
    Here,
    /// The member that `?node=` names, from what it has; else the node that was asked.
    Named,
    /// The node that was asked, unless `?consistency=linearizable`.
    LocalRead,
    /// The leader, after it has made sure that it is one, unless `?consistency=local`.
    LinearizableRead,
    /// The leader.
    Write,
}

/// How large a body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// [`SMALL_BODY_BYTES`].
    Small,
    /// [`POLICY_BODY_BYTES`].
    Policy,
}

/// Largest body of any request but a policy: 2 MiB.
pub const SMALL_BODY_BYTES: usize = 2 * 1024 * 1024;
/// Largest policy document: 64 MiB.
pub const POLICY_BODY_BYTES: usize = 64 * 1024 * 1024;

impl Body {
    /// The limit in bytes.
    pub fn limit_bytes(self) -> usize {
        match self {
            Body::Small => SMALL_BODY_BYTES,
            Body::Policy => POLICY_BODY_BYTES,
        }
    }
}

/// One route.
pub struct Row {
    /// Method.
    pub method: Method,
    /// Path, with parameters in braces.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// Which node answers.
    pub answered: Answered,
    /// How large its body may be.
    pub body: Body,
    /// Name of the operation, unique.
    pub name: &'static str,
    /// Its handler.
    pub handler: fn() -> MethodRouter<Arc<App>>,
    /// What the OpenAPI document says of it.
    pub doc: &'static Doc,
}

use Access::{Admin, Any, Node, Public};
use Answered::{Here, LinearizableRead, LocalRead, Named, Write};

/// Every route of the management API.
#[rustfmt::skip] // A table reads better in columns.
pub static ROUTES: &[Row] = &[
    row(Method::GET,    api::paths::HEALTH,                 Public, Here,             "health",               || get(health::health),               &health::HEALTH),
    row(Method::GET,    api::paths::READY,                  Public, Here,             "ready",                || get(health::ready),                &health::READY),
    row(Method::GET,    api::paths::READY_TRAFFIC,          Public, Here,             "readyTraffic",         || get(health::ready_traffic),        &health::READY_TRAFFIC),
    row(Method::GET,    api::paths::OPENAPI,                Public, Here,             "openapi",              || get(openapi::serve),               &openapi::SERVE),
    row(Method::POST,   api::paths::TOKEN_LOGIN,            Public, Here,             "tokenLogin",           || post(session::login),              &session::LOGIN),
    row(Method::POST,   api::paths::LOGOUT,                 Public, Here,             "logout",               || post(session::logout),             &session::LOGOUT),
    row(Method::GET,    api::paths::WHOAMI,                 Any,    Here,             "whoami",               || get(session::whoami),              &session::WHOAMI),
    row(Method::POST,   api::paths::MINT,                   Node,   Here,             "mintToken",            || post(session::mint),               &session::MINT),
    row(Method::GET,    api::paths::KEYS,                   Any,    LinearizableRead, "listSigningKeys",      || get(key::list),                  &key::LIST),
    row(Method::POST,   api::paths::KEYS,                   Admin,  Write,            "rotateSigningKey",     || post(key::rotate),               &key::ROTATE),
    row(Method::DELETE, api::paths::KEY,                    Admin,  Write,            "retireSigningKey",     || delete(key::retire),             &key::RETIRE),
    row(Method::GET,    api::paths::POLICY,                 Any,    LocalRead,        "getPolicy",            || get(policy::read),                 &policy::READ),
    row(Method::PUT,    api::paths::POLICY,                 Admin,  Write,            "putPolicy",            || put(policy::replace),              &policy::REPLACE).with(Body::Policy),
    row(Method::GET,    api::paths::POLICY_REVISIONS,       Any,    LocalRead,        "listPolicyRevisions",  || get(history::list),              &history::LIST),
    row(Method::GET,    api::paths::POLICY_REVISION,        Any,    LocalRead,        "getPolicyRevision",    || get(history::read),              &history::READ),
    row(Method::GET,    api::paths::STATS,                  Any,    LocalRead,        "stats",                || get(stats::read),                  &stats::READ),
    row(Method::GET,    api::paths::FLOWS,                  Any,    Named,            "listFlows",            || get(dataplane::flows),            &dataplane::FLOWS),
    row(Method::GET,    api::paths::FLOWS_TOP,              Any,    Named,            "topFlows",             || get(dataplane::top),              &dataplane::TOP),
    row(Method::POST,   api::paths::FLOWS_KILL,             Admin,  Named,            "killFlows",            || post(dataplane::kill),            &dataplane::KILL),
    row(Method::GET,    api::paths::NAT,                    Any,    Named,            "natUse",               || get(dataplane::nat),              &dataplane::NAT),
    row(Method::GET,    api::paths::FINDINGS,               Any,    Named,            "auditFindings",        || get(findings::list),              &findings::LIST),
    row(Method::GET,    api::paths::EXPLAIN,                Any,    Named,            "explainPacket",        || get(watch::explain),              &watch::EXPLAIN),
    row(Method::GET,    api::paths::TRACE,                  Admin,  Named,            "tracePackets",         || get(watch::trace),                &watch::TRACE),
    row(Method::GET,    api::paths::DROPS,                  Admin,  Named,            "watchDrops",           || get(watch::drops),                &watch::DROPS),
    row(Method::GET,    api::paths::DNS_CACHE,              Any,    Named,            "listDnsCache",         || get(names::cache),                &names::CACHE),
    row(Method::GET,    api::paths::DNS_GRANTS,             Any,    Named,            "listGrants",           || get(names::list),                 &names::GRANTS),
    row(Method::GET,    api::paths::DNS_EXPLAIN,            Any,    Named,            "explainName",          || get(names::explain),              &names::EXPLAIN),
    row(Method::GET,    api::paths::MEMBERS,                Any,    LocalRead,        "clusterMembers",       || get(members::list),                &members::LIST),
    row(Method::POST,   api::paths::MEMBER_APPROVAL,        Admin,  Write,            "approveMember",        || post(joining::approve),           &joining::APPROVE),
    row(Method::GET,    api::paths::JOIN_SETTINGS,          Any,    LocalRead,        "getJoinSettings",      || get(joining::read),               &joining::READ),
    row(Method::PUT,    api::paths::JOIN_SETTINGS,          Admin,  Write,            "putJoinSettings",      || put(joining::change),             &joining::CHANGE),
    row(Method::POST,   api::paths::BOOTSTRAP_ROTATION,     Admin,  Write,            "rotateBootstrapSecret",|| post(joining::rotate),            &joining::ROTATE),
    row(Method::GET,    api::paths::JOIN_TOKENS,            Any,    LinearizableRead, "listJoinTokens",       || get(joining::list_tokens),        &joining::LIST_TOKENS),
    row(Method::POST,   api::paths::JOIN_TOKENS,            Admin,  Write,            "createJoinToken",      || post(joining::create_token),      &joining::CREATE_TOKEN),
    row(Method::DELETE, api::paths::JOIN_TOKEN,             Admin,  Write,            "revokeJoinToken",      || delete(joining::revoke_token),    &joining::REVOKE_TOKEN),
    row(Method::GET,    api::paths::CLUSTER_CA,             Any,    LinearizableRead, "getClusterCa",         || get(ca::read),                    &ca::READ),
    row(Method::POST,   api::paths::CA_ROTATION,            Admin,  Write,            "rotateClusterCa",      || post(ca::rotate),                 &ca::ROTATE),
    row(Method::DELETE, api::paths::CA_ROTATION,            Admin,  Write,            "abortCaRotation",      || delete(ca::abort),                &ca::ABORT),
    row(Method::GET,    api::paths::CHANGES,                Any,    LocalRead,        "clusterChanges",       || get(changes::list),              &changes::LIST),
    row(Method::POST,   api::paths::SYSDUMP_NODE,           Admin,  Here,             "sysdumpNode",          || post(sysdump::node),             &sysdump::NODE),
    row(Method::POST,   api::paths::SYSDUMP_CLUSTER,        Admin,  Here,             "sysdumpCluster",       || post(sysdump::cluster),          &sysdump::CLUSTER),
    row(Method::POST,   api::paths::BACKUP,                 Admin,  Here,             "makeBackup",           || post(backup::make),               &backup::MAKE),
    row(Method::POST,   api::paths::REJOIN,                 Node,   Here,             "rejoin",               || post(backup::rejoin),             &backup::REJOIN),
    row(Method::GET,    api::paths::VOTERS,                 Any,    LocalRead,        "getVoters",            || get(members::voters),             &members::VOTERS),
    row(Method::PUT,    api::paths::VOTERS,                 Admin,  Write,            "setVoters",            || put(members::set_voters),          &members::SET_VOTERS),
    row(Method::POST,   api::paths::MEMBER_REMOVE,          Admin,  Write,            "removeMember",         || post(members::remove),             &members::REMOVE),
    row(Method::POST,   api::paths::MEMBER_PROMOTE,         Admin,  Write,            "promoteMember",        || post(members::promote),            &members::PROMOTE),
    row(Method::POST,   api::paths::MEMBER_DEMOTE,          Admin,  Write,            "demoteMember",         || post(members::demote),             &members::DEMOTE),
    row(Method::POST,   api::paths::MEMBER_DRAIN,           Admin,  Write,            "drainMember",          || post(members::drain),              &members::DRAIN),
    row(Method::POST,   api::paths::MEMBER_UNDRAIN,         Admin,  Write,            "undrainMember",        || post(members::undrain),            &members::UNDRAIN),
    row(Method::POST,   api::paths::TRANSFER,               Admin,  Write,            "transferLeader",       || post(members::transfer),           &members::TRANSFER),
    row(Method::POST,   api::paths::PREFLIGHT,              Admin,  Here,             "preflight",            || post(preflight::connect),          &preflight::CONNECT),
    row(Method::GET,    api::paths::SERVICE_ACCOUNTS,       Any,    LinearizableRead, "listServiceAccounts",  || get(account::list),                &account::LIST),
    row(Method::POST,   api::paths::SERVICE_ACCOUNTS,       Admin,  Write,            "createServiceAccount", || post(account::create),             &account::CREATE),
    row(Method::GET,    api::paths::SERVICE_ACCOUNT,        Any,    LinearizableRead, "readServiceAccount",   || get(account::read),              &account::READ),
    row(Method::PUT,    api::paths::SERVICE_ACCOUNT,        Admin,  Write,            "updateServiceAccount", || put(account::update),              &account::UPDATE),
    row(Method::DELETE, api::paths::SERVICE_ACCOUNT,        Admin,  Write,            "disableServiceAccount",|| delete(account::disable),          &account::DISABLE),
    row(Method::GET,    api::paths::SERVICE_ACCOUNT_TOKENS, Any,    LinearizableRead, "listTokens",           || get(account::list_tokens),         &account::LIST_TOKENS),
    row(Method::POST,   api::paths::SERVICE_ACCOUNT_TOKENS, Admin,  Write,            "createToken",          || post(account::create_token),       &account::CREATE_TOKEN),
    row(Method::DELETE, api::paths::SERVICE_ACCOUNT_TOKEN,  Admin,  Write,            "revokeToken",          || delete(account::revoke_token),     &account::REVOKE_TOKEN),
];

const fn row(
    method: Method,
    path: &'static str,
    access: Access,
    answered: Answered,
    name: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
    doc: &'static Doc,
) -> Row {
    Row {
        method,
        path,
        access,
        answered,
        body: Body::Small,
        name,
        handler,
        doc,
    }
}

impl Row {
    const fn with(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_route_and_no_name_stands_twice() {
        let routes: BTreeSet<_> = ROUTES
            .iter()
            .map(|row| (row.path, row.method.as_str()))
            .collect();
        assert_eq!(routes.len(), ROUTES.len());
        let names: BTreeSet<_> = ROUTES.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROUTES.len());
    }

    #[test]
    fn only_admins_and_this_node_change_records() {
        for row in ROUTES {
            if row.answered == Write {
                assert_eq!(row.access, Admin, "{}", row.name);
                assert_ne!(row.method, Method::GET, "{}", row.name);
            }
        }
    }
}
