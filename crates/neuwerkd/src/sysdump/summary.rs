//! `summary/*.json` and `http/*`: what the node knows, through types that have no place for a secret.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use api::changes::ChangeView;
use cluster::state::{Standing, State};
use serde::Serialize;
use serde_json::{Value, json};

use super::Source;
use super::archive::Archive;
use crate::config::Config;
use crate::http::{App, rfc3339};

/// The policy in force is left out if it is larger.
const POLICY_BYTES: u64 = 4 * 1024 * 1024;

pub(super) fn add(source: &Source, archive: &mut Archive<File>) -> io::Result<()> {
    if let Some(config) = &source.config {
        archive.json("summary/configuration.json", &configuration(config))?;
        archive.json("summary/integrations.json", &integrations(config))?;
    }
    let Some(app) = &source.app else {
        archive.leave_out("summary", "the daemon does not run");
        return Ok(());
    };
    archive.json("http/health.json", &json!({"status": "ok"}))?;
    archive.json("http/ready.json", &app.ready())?;
    archive.json("http/ready-traffic.json", &app.ready_traffic())?;
    match app.scrape() {
        Some(text) => archive.text("http/metrics.txt", &text)?,
        None => archive.leave_out("http/metrics.txt", "there is no metrics listener"),
    }
    let Some(node) = app.member() else {
        archive.leave_out(
            "summary",
            "the control plane does not run; http/ready.json says why",
        );
        return Ok(());
    };
    let stats = app.stats(&node);
    archive.json("summary/metrics.json", &stats)?;
    archive.json("http/stats.json", &stats)?;
    archive.json("summary/cluster.json", &membership(app, &stats))?;
    let state = node.state();
    archive.json("summary/state.json", &StateView::of(&state))?;
    archive.json("summary/policies.json", &policies(&state))?;
    archive.json("summary/service-accounts.json", &accounts(&state))?;
    let changes: Vec<ChangeView> = state
        .changes()
        .map(|change| crate::http::changes::view(change))
        .collect();
    archive.json("summary/audit.json", &json!({"changes": changes}))
}

/// The settings that were given, by their keys. The file itself is not in the archive: it may hold comments.
fn configuration(config: &Config) -> Value {
    let given: BTreeMap<&str, String> = config
        .given
        .iter()
        .map(|(key, value)| (key, without_userinfo(value)))
        .collect();
    json!({
        "hash": config.hash(),
        "cluster_mode": config.cluster_mode,
        "without_effect": config.without_effect,
        "given": given,
    })
}

/// An address without the name and password that may stand in front of its host.
fn without_userinfo(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    // What follows a question mark may be a key as well.
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn integrations(config: &Config) -> Value {
    json!({"mode": config.integration.mode.to_string()})
}

fn membership(app: &App, stats: &api::stats::StatsSnapshot) -> Value {
    json!({
        "ready": app.ready(),
        "ready_traffic": app.ready_traffic(),
        "cluster": stats.cluster,
        "mints_untold": app.minted().pending(),
    })
}

/// The replicated state by what it counts and names.
#[derive(Serialize)]
struct StateView {
    index: u64,
    time: String,
    cluster_id: Option<String>,
    lineage: Option<String>,
    feature_level: u32,
    cluster_name: Option<String>,
    bootstrap_join: Option<bool>,
    policy_revisions: usize,
    service_accounts: usize,
    changes: usize,
    signing_keys: Vec<api::auth::SigningKeyView>,
    join_tokens: Vec<JoinTokenView>,
    members: Vec<MemberView>,
    removed: Vec<String>,
}

#[derive(Serialize)]
struct JoinTokenView {
    id: String,
    expires_at: String,
    uses_left: u32,
    revoked: bool,
}

#[derive(Serialize)]
struct MemberView {
    node_id: String,
    name: String,
    cluster: String,
    join: String,
    http: String,
    key_sha256: String,
    certificate_serial: Option<String>,
    certificate_expires_at: Option<String>,
    joined_at: String,
    feature_level: u32,
    standing: &'static str,
}

impl StateView {
    fn of(state: &State) -> Self {
        let settings = state.settings().map(|(settings, _)| settings);
        let active = state.active_signing_key();
        let active = active.map_or("", |record| record.key.kid.as_str());
        Self {
            index: state.index(),
            time: rfc3339(state.time_ms()),
            cluster_id: state.cluster_id().map(|id| id.to_string()),
            lineage: state.lineage().map(|lineage| lineage.to_string()),
            feature_level: state.feature_level(),
            cluster_name: settings.map(|settings| settings.cluster_name.clone()),
            bootstrap_join: settings.map(|settings| settings.bootstrap_join),
            policy_revisions: state.policy_history().count(),
            service_accounts: state.accounts().count(),
            changes: state.changes().count(),
            signing_keys: state
                .signing_keys()
                .map(|record| crate::http::key::view(record, active))
                .collect(),
            join_tokens: state
                .join_tokens()
                .map(|token| JoinTokenView {
                    id: token.id.to_string(),
                    expires_at: rfc3339(token.expires_ms),
                    uses_left: token.uses_left,
                    revoked: token.revoked_ms.is_some(),
                })
                .collect(),
            members: state
                .members()
                .map(|member| MemberView::of(member))
                .collect(),
            removed: state.removed_ids().map(|id| id.to_string()).collect(),
        }
    }
}

impl MemberView {
    fn of(member: &cluster::state::Member) -> Self {
        let certificate = member.certificate.as_ref();
        Self {
            node_id: member.node_id.to_string(),
            name: member.name.clone(),
            cluster: member.addresses.cluster.clone(),
            join: member.addresses.join.clone(),
            http: member.addresses.http.clone(),
            key_sha256: member.spki.to_string(),
            certificate_serial: certificate.map(|certificate| hex(&certificate.serial)),
            certificate_expires_at: certificate
                .map(|certificate| rfc3339(certificate.not_after_ms)),
            joined_at: rfc3339(member.joined_ms),
            feature_level: member.feature_level,
            standing: match member.standing {
                Standing::Joining => "joining",
                Standing::Member => "member",
                Standing::Leaving => "leaving",
            },
        }
    }
}

fn policies(state: &State) -> Value {
    let history: Vec<_> = state
        .policy_history()
        .map(|policy| {
            json!({
                "revision": policy.revision,
                "sha256": policy.hash.to_string(),
                "bytes": policy.len,
                "index": policy.index,
                "time": rfc3339(policy.time_ms),
                "author": policy.author.subject,
            })
        })
        .collect();
    let current = state
        .policy()
        .filter(|policy| policy.len <= POLICY_BYTES)
        .and_then(|policy| state.document(policy))
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .map(|mut document| {
            blank_http(&mut document);
            document
        });
    json!({"history": history, "current": current})
}

/// Rules about HTTP may name the value of a header or of a parameter, which may be a credential: only their keys stay.
fn blank_http(value: &mut Value) {
    fn blank(value: &mut Value) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(blank),
            Value::Array(items) => items.iter_mut().for_each(blank),
            Value::String(text) => *text = "(redacted)".into(),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if key == "http" {
                    blank(field);
                } else {
                    blank_http(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank_http),
        _ => {}
    }
}

/// Accounts and their tokens, without what people wrote about them.
fn accounts(state: &State) -> Value {
    let accounts: Vec<_> = state
        .accounts()
        .map(|account| {
            let tokens: Vec<_> = state
                .tokens(account.id)
                .map(|token| {
                    json!({
                        "id": token.id.to_string(),
                        "kid": token.spec.kid,
                        "created_at": rfc3339(token.created_ms),
                        "expires_at": token.expires_ms().map(rfc3339),
                        "revoked": token.revoked_ms.is_some(),
                    })
                })
                .collect();
            json!({
                "id": account.id.to_string(),
                "name": account.spec.name,
                "role": crate::auth::role_name(account.spec.role),
                "status": format!("{:?}", account.spec.status).to_lowercase(),
                "revision": account.revision,
                "created_at": rfc3339(account.created_ms),
                "tokens": tokens,
            })
        })
        .collect();
    json!({"service_accounts": accounts})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_go() {
        for (value, expected) in [
            ("https://me:pass@host:8443/a?key=1#x", "https://host:8443/a"),
            ("https://host", "https://host"),
            ("10.0.0.1:53", "10.0.0.1:53"),
        ] {
            assert_eq!(without_userinfo(value), expected);
        }
    }

    #[test]
    fn header_values_go_and_header_names_stay() {
        let mut document = json!({"source_groups": [{"rules": [{"match": {
            "dns_hostname": "api.example.com",
            "tls": {"http": {"request": {"headers": {"exact": {"authorization": ["Bearer s3cret"]}}}}},
        }}]}]});
        blank_http(&mut document);
        let text = document.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        assert!(
            text.contains("authorization") && text.contains("api.example.com"),
            "{text}"
        );
    }
}
