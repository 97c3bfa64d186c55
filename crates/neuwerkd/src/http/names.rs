//! What clients have resolved, what they may reach by it, and what would become of a query.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::dns::{DnsCacheEntry, DnsCacheResponse, GrantEntry, GrantList, NameExplanation};
use axum::Json;
use axum::extract::{RawQuery, State};
use grants::{Grant, Wanted};

use super::App;
use super::dataplane::{number, unknown};
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use crate::explain;

/// Grants in an answer.
const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 100_000;
/// Grants that an explanation shows.
const SHOWN: usize = 100;

const WRONG: (u16, &str, Option<openapi::Media>) =
    (400, "A parameter is not valid", Some(openapi::ERROR));

pub(super) static CACHE: Doc = Doc::new(
    "List the names that clients of the cluster have resolved and may use",
)
.answers(&[(200, "The names", Some(openapi::json("DnsCacheResponse")))]);

pub(super) async fn cache(State(app): State<Arc<App>>) -> Answer<Json<DnsCacheResponse>> {
    let dataplane = app.dataplane()?;
    let now_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let grants = Arc::clone(dataplane.grants());
    let entries = aside(move || {
        let mut names: BTreeMap<Arc<str>, (Vec<IpAddr>, u64)> = BTreeMap::new();
        grants.each(&Wanted::default(), |grant, now_ms| {
            let (ips, seen_s) = names.entry(grant.name).or_default();
            ips.push(grant.address);
            let age_s = now_ms.saturating_sub(grant.seen_ms) / 1_000;
            *seen_s = (*seen_s).max(now_s.saturating_sub(age_s));
        });
        let entries = names.into_iter().map(|(hostname, (mut ips, seen_s))| {
            ips.sort_unstable();
            ips.dedup();
            DnsCacheEntry {
                hostname: hostname.to_string(),
                ips: ips.iter().map(IpAddr::to_string).collect(),
                last_seen: i64::try_from(seen_s).unwrap_or(i64::MAX),
            }
        });
        entries.collect()
    });
    let entries = entries.await?;
    Ok(Json(DnsCacheResponse { entries }))
}

/// Runs what may take a while where nobody waits for it.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| {
        let text = "it failed; the node's log says why";
        Refused::new(http::StatusCode::INTERNAL_SERVER_ERROR, text)
    })
}

pub(super) static GRANTS: Doc = Doc::new("List what clients may reach by name, as a node has it")
    .params(&[
        Param {
            name: "name",
            description: "the name",
        },
        Param {
            name: "address",
            description: "the address",
        },
        Param {
            name: "group",
            description: "the source group",
        },
        Param {
            name: "client",
            description: "the only client that may use it",
        },
        Param {
            name: "limit",
            description: "how many at most; default 1000, at most 100000",
        },
    ])
    .answers(&[(200, "The grants", Some(openapi::json("GrantList"))), WRONG]);

pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<GrantList>> {
    let dataplane = app.dataplane()?;
    let (mut name, mut group) = (None, None);
    let (mut address, mut client): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let mut limit = DEFAULT_LIMIT;
    for (key, value) in pairs(query.as_deref()) {
        match key.as_str() {
            "name" => name = Some(canonical(&value)),
            "group" => group = Some(value),
            "address" => address = Some(ip(&key, &value)?),
            "client" => client = Some(ip(&key, &value)?),
            "limit" => limit = number(&key, &value, 1..=MAX_LIMIT)?,
            "node" => {}
            key => return Err(unknown(key)),
        }
    }
    let grants = Arc::clone(dataplane.grants());
    let total = grants.read(|store, _now_ms| store.len() as u64);
    let found = aside(move || {
        let wanted = Wanted {
            group: group.as_deref(),
            name: name.as_deref(),
            address,
            client,
        };
        first(&grants, &wanted, limit + 1)
    });
    let mut found = found.await?;
    let truncated = found.len() > limit;
    found.truncate(limit);
    Ok(Json(GrantList {
        node_id: app.own_id(),
        total,
        grants: found.iter().map(|grant| entry(&app, grant)).collect(),
        truncated,
    }))
}

pub(super) static EXPLAIN: Doc =
    Doc::new("Say what a node would answer a client that asks for a name, and what that grants")
        .params(&[
            Param {
                name: "name",
                description: "the name",
            },
            Param {
                name: "from",
                description: "the client's address",
            },
        ])
        .answers(&[
            (
                200,
                "What would become of the query",
                Some(openapi::json("NameExplanation")),
            ),
            WRONG,
        ]);

pub(super) async fn explain(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<NameExplanation>> {
    let dataplane = app.dataplane()?;
    let (mut name, mut from) = (None, None);
    for (key, value) in pairs(query.as_deref()) {
        match key.as_str() {
            "name" => name = Some(canonical(&value)),
            "from" => from = Some(ip(&key, &value)?),
            "node" => {}
            key => return Err(unknown(key)),
        }
    }
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refused::bad_request("name is needed: the name that is asked for"))?;
    let from = from.ok_or_else(|| Refused::bad_request("from is needed: the client's address"))?;
    let _turn = app.explanations().acquire().await;
    let policy = dataplane.policy();
    let explained = {
        let name = name.clone();
        tokio::task::spawn_blocking(move || explain::name_by_policy(&policy, from, &name)).await
    };
    let mut explained = explained.map_err(|_| {
        let text = "the explanation failed";
        Refused::new(http::StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    let group = explained.source_group.clone().unwrap_or_default();
    let grants = Arc::clone(dataplane.grants());
    let found = aside(move || {
        let wanted = Wanted {
            group: Some(&group),
            name: Some(&name),
            ..Wanted::default()
        };
        let mut found = first(&grants, &wanted, MAX_LIMIT);
        found.retain(|grant| grant.client.is_none_or(|client| client == from));
        found.truncate(SHOWN);
        found
    });
    let found = found.await?;
    explained.grants = found.iter().map(|grant| entry(&app, grant)).collect();
    explained.node_id = Some(app.own_id());
    Ok(Json(explained))
}

/// The first grants of those that are wanted, in order, `count` at most.
fn first(grants: &crate::grants::Grants, wanted: &Wanted<'_>, count: usize) -> Vec<Grant> {
    let mut found: Vec<Grant> = Vec::new();
    let cut = |found: &mut Vec<Grant>| {
        found.sort_by(|a, b| order(a).cmp(&order(b)));
        found.truncate(count);
    };
    grants.each(wanted, |grant, _now_ms| {
        found.push(grant);
        if found.len() >= 2 * count + 1_024 {
            cut(&mut found);
        }
    });
    cut(&mut found);
    found
}

fn order(grant: &Grant) -> impl Ord + '_ {
    (
        &grant.name,
        grant.address,
        &grant.group,
        &grant.rule,
        grant.client,
    )
}

fn entry(app: &App, grant: &Grant) -> GrantEntry {
    let node = |origin: &u64| match *origin {
        grants::OWN => app.own_id(),
        id => cluster::NodeId(id).to_string(),
    };
    GrantEntry {
        source_group: grant.group.to_string(),
        rule: grant.rule.as_deref().map(Into::into),
        name: grant.name.to_string(),
        address: grant.address.to_string(),
        client: grant.client.map(|client| client.to_string()),
        asked_by: grant.asker.map(|client| client.to_string()),
        nodes: grant.origins.iter().map(node).collect(),
        state: match grant.state() {
            grants::State::Used => "used",
            grants::State::Idle => "idle",
            grants::State::Inert => "inert",
        }
        .into(),
        expires_in_secs: grant.life_ms / 1_000,
        uses: grant.uses,
    }
}

fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .into_owned()
        .collect()
}

fn ip(key: &str, text: &str) -> Answer<IpAddr> {
    let parsed = text.parse().map(|address: IpAddr| address.to_canonical());
    parsed.map_err(|_| Refused::bad_request(format!("{key} must be an address")))
}

/// A name as queries are judged by it.
fn canonical(text: &str) -> String {
    text.trim().trim_end_matches('.').to_ascii_lowercase()
}
