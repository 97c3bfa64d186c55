//! What the policy has denied on one node. `?node=` names the member that answers.

use std::sync::Arc;

use api::audit::{AuditFinding, FindingList};
use axum::Json;
use axum::extract::{RawQuery, State};

use super::App;
use super::dataplane::{number, protocol_name, unknown};
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use crate::dataplane::{Finding, FindingKind, Subject};

/// Findings in one answer.
const DEFAULT_LIMIT: usize = 500;
const MAX_LIMIT: usize = 10_000;

pub(super) static LIST: Doc =
    Doc::new("List what the policy has denied on a node since the node started, newest first")
        .params(&[
            Param {
                name: "finding_type",
                description: "`dns_deny`, `l4_deny` or `icmp_deny`; repeated: any of them",
            },
            Param {
                name: "source_group",
                description: "the source group that decided; repeated: any of them",
            },
            Param {
                name: "since",
                description: "only what was seen at this time or later, seconds since 1970",
            },
            Param {
                name: "until",
                description: "only what was seen at this time or earlier",
            },
            Param {
                name: "limit",
                description: "how many at most; default 500, at most 10000",
            },
        ])
        .answers(&[
            (200, "The findings", Some(openapi::json("FindingList"))),
            (400, "A parameter is not valid", Some(openapi::ERROR)),
        ]);

pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<FindingList>> {
    let dataplane = app.dataplane()?;
    let asked = Asked::read(query.as_deref())?;
    let node_id = app.own_id();
    let findings = dataplane.findings();
    let wanted = findings
        .newest()
        .filter(|(subject, f)| asked.wants(subject, f));
    Ok(Json(FindingList {
        items: wanted
            .take(asked.limit)
            .map(|(subject, finding)| entry(subject, finding, &node_id))
            .collect(),
        lost: dataplane.denials_lost(),
        forgotten: findings.forgotten(),
        node_id,
    }))
}

/// Which findings are asked for.
struct Asked {
    kinds: Vec<FindingKind>,
    groups: Vec<String>,
    since_s: u64,
    until_s: u64,
    limit: usize,
}

impl Asked {
    fn read(query: Option<&str>) -> Answer<Asked> {
        let mut asked = Asked {
            kinds: Vec::new(),
            groups: Vec::new(),
            since_s: 0,
            until_s: u64::MAX,
            limit: DEFAULT_LIMIT,
        };
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let (key, value) = (&*key, &*value);
            match key {
                "finding_type" => asked.kinds.push(kind(value)?),
                "source_group" => asked.groups.push(value.to_owned()),
                "since" => asked.since_s = seconds(key, value)?,
                "until" => asked.until_s = seconds(key, value)?,
                "limit" => asked.limit = number(key, value, 1..=MAX_LIMIT)?,
                // The gate has read it.
                "node" => {}
                key => return Err(unknown(key)),
            }
        }
        Ok(asked)
    }

    fn wants(&self, subject: &Subject, finding: &Finding) -> bool {
        let has_group = |group: &String| subject.group.as_ref() == Some(group);
        (self.kinds.is_empty() || self.kinds.contains(&subject.kind))
            && (self.groups.is_empty() || self.groups.iter().any(has_group))
            && finding.last_seen_s >= self.since_s
            && finding.first_seen_s <= self.until_s
    }
}

fn kind(text: &str) -> Answer<FindingKind> {
    let mut all = FindingKind::ALL.into_iter();
    let found = all.find(|kind| kind.name() == text);
    found.ok_or_else(|| Refused::bad_request("finding_type must be dns_deny, l4_deny or icmp_deny"))
}

fn seconds(key: &str, text: &str) -> Answer<u64> {
    let wrong = || Refused::bad_request(format!("{key} must be a time in seconds since 1970"));
    text.parse().map_err(|_| wrong())
}

fn entry(subject: &Subject, finding: &Finding, node_id: &str) -> AuditFinding {
    AuditFinding {
        finding_type: subject.kind.name().into(),
        would_deny: subject.would_deny,
        source_group: subject.group.clone(),
        rule: subject.rule.clone(),
        revision: finding.revision,
        src_ip: finding.last_source.to_string(),
        hostname: subject.hostname.clone(),
        dst_ip: subject.dst.map(|ip| ip.to_string()),
        dst_port: subject.dst_port,
        proto: subject.proto.map(protocol_name),
        icmp_type: subject.icmp.map(|(kind, _)| kind),
        icmp_code: subject.icmp.map(|(_, code)| code),
        first_seen: finding.first_seen_s,
        last_seen: finding.last_seen_s,
        count: finding.count,
        node_ids: vec![node_id.to_owned()],
    }
}
