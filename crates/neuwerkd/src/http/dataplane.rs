//! The dataplane of one node: its flows and translations. `?node=` names the member that answers.

use std::sync::Arc;
use std::time::Duration;

use api::dataplane::{FlowEntry, FlowList, KilledFlows, NatAddress, NatUse};
use api::error::Reason;
use axum::extract::{RawQuery, State};
use axum::{Extension, Json};
use engine::look::{Filter, FlowState};
use ipnet::IpNet;
use policy::Compiled;

use super::App;
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use crate::auth::Identity;
use crate::dataplane::{Dataplane, Found, LookError, Order, Page, summed, utilization};

/// Flows on one page.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// How many are the first, and how long their rates are measured, unless the request says otherwise.
const DEFAULT_COUNT: usize = 10;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(10);

macro_rules! params {
    ($( $name:literal: $description:literal, )*) => {
        &[
            Param { name: "address", description: "an address or a prefix of either end, before or after translation" },
            Param { name: "from", description: "an address or a prefix of the end that opened the flow" },
            Param { name: "to", description: "an address or a prefix of the end that it was opened to" },
            Param { name: "proto", description: "`tcp`, `udp`, `icmp`, `icmpv6` or a number" },
            Param { name: "port", description: "a port of either end, before or after translation" },
            Param { name: "sport", description: "the port of the end that opened the flow" },
            Param { name: "dport", description: "the port of the end that it was opened to" },
            Param { name: "state", description: "`syn_sent`, `syn_received`, `established`, `closing`, `time_wait`, `reset`, `unanswered`, `answered`" },
            Param { name: "group", description: "the source group that decides" },
            Param { name: "rule", description: "the rule of that group that decides" },
            Param { name: "translated", description: "`true` or `false`: whether the source is translated" },
            $( Param { name: $name, description: $description }, )*
        ]
    };
}

/// Refusals that every route here may give.
const WRONG: (u16, &str, Option<openapi::Media>) =
    (400, "A parameter is not valid", Some(openapi::ERROR));

pub(super) static FLOWS: Doc = Doc::new("List the flows of a node")
    .params(params! {
        "limit": "how many at most; default 100, at most 1000",
        "cursor": "where to go on, as `next` said",
    })
    .answers(&[(200, "The flows", Some(openapi::json("FlowList"))), WRONG]);

pub(super) async fn flows(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<FlowList>> {
    let dataplane = app.dataplane()?;
    let (mut limit, mut from) = (DEFAULT_LIMIT, (0, 0));
    let wanted = filter(&dataplane, query.as_deref(), |key, value| {
        match key {
            "limit" => limit = number(key, value, 1..=MAX_LIMIT)?,
            "cursor" => from = cursor(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let wanted = (wanted.policy, &wanted.flows);
    let page = dataplane.flows(wanted, from, limit).await?;
    Ok(Json(shown(&app, &dataplane, page, None)))
}

pub(super) static TOP: Doc = Doc::new("List the largest flows of a node, largest first")
    .params(params! {
        "by": "`bytes`, `packets` or `rate`, in both directions; default `bytes`",
        "count": "how many; default 10, at most 1000",
        "interval_ms": "how long rates are measured; default 1000, at most 10000",
    })
    .answers(&[(200, "The flows", Some(openapi::json("FlowList"))), WRONG]);

pub(super) async fn top(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<FlowList>> {
    let dataplane = app.dataplane()?;
    let (mut by, mut count, mut interval) = ("bytes".to_owned(), DEFAULT_COUNT, DEFAULT_INTERVAL);
    let longest = usize::try_from(MAX_INTERVAL.as_millis()).expect("ten seconds");
    let wanted = filter(&dataplane, query.as_deref(), |key, value| {
        match key {
            "by" => by = value.to_owned(),
            "count" => count = number(key, value, 1..=MAX_LIMIT)?,
            "interval_ms" => {
                interval = Duration::from_millis(number(key, value, 100..=longest)? as u64);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let order = match by.as_str() {
        "bytes" => Order::Bytes,
        "packets" => Order::Packets,
        "rate" => Order::Rate(interval),
        _ => return Err(Refused::bad_request("by must be bytes, packets or rate")),
    };
    // A rate needs a note of every flow: one request at a time takes that memory.
    let _turn = match order {
        Order::Rate(_) => Some(app.rates().try_acquire().map_err(|_| {
            let text = "rates are being measured for somebody else: try again in a moment";
            Refused::new(http::StatusCode::CONFLICT, text)
        })?),
        Order::Bytes | Order::Packets => None,
    };
    let wanted = (wanted.policy, &wanted.flows);
    let page = dataplane.top(wanted, order, count).await?;
    let measured = matches!(order, Order::Rate(_)).then_some(interval);
    Ok(Json(shown(&app, &dataplane, page, measured)))
}

pub(super) static KILL: Doc =
    Doc::new("End flows of a node; who sends on opens a new one, if the policy lets it")
        .params(params! {
            "all": "`true` if every flow is meant; needed when nothing else says which",
            "reset": "`true` to tell both ends of TCP connections by a reset; default `false`",
        })
        .answers(&[
            (
                200,
                "How many have ended",
                Some(openapi::json("KilledFlows")),
            ),
            WRONG,
        ]);

pub(super) async fn kill(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
) -> Answer<Json<KilledFlows>> {
    let dataplane = app.dataplane()?;
    let (mut all, mut reset) = (false, false);
    let wanted = filter(&dataplane, query.as_deref(), |key, value| {
        match key {
            "all" => all = yes_no(key, value)?,
            "reset" => reset = yes_no(key, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if wanted.flows.is_everything() != all {
        let text = "say which flows by a filter, or all=true and no filter";
        return Err(Refused::bad_request(text));
    }
    let (killed, error) = match dataplane.kill((&wanted.policy, &wanted.flows), reset).await {
        Ok(killed) => (killed, None),
        Err((0, error @ LookError::Busy { .. })) => return Err(error.into()),
        Err((killed, error)) => (killed, Some(error)),
    };
    tracing::info!(killed, reset, subject = %identity.subject, "flows are ended on request");
    if let Some(error) = error {
        let text = format!("{killed} flows have ended, and others may: {error}");
        return Err(Refused::new(http::StatusCode::GATEWAY_TIMEOUT, text));
    }
    Ok(Json(KilledFlows {
        node_id: app.own_id(),
        killed,
    }))
}

pub(super) static NAT: Doc = Doc::new("Read how much of a node's translation addresses is in use")
    .answers(&[(200, "The addresses", Some(openapi::json("NatUse")))]);

pub(super) async fn nat(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<NatUse>> {
    let dataplane = app.dataplane()?;
    only_node(query.as_deref())?;
    let (surveys, _) = dataplane.survey().await?;
    let survey = summed(surveys);
    let counters = dataplane.counters();
    let sum = |read: fn(&engine::WorkerCounters) -> u64| counters.iter().map(|w| read(w)).sum();
    let address = |ports: &engine::look::PortUse| {
        let [tcp_ports, udp_ports, icmp_ids] = ports.used().map(u64::from);
        NatAddress {
            address: ports.address.to_string(),
            bindings: ports.bindings,
            tcp_ports,
            udp_ports,
            icmp_ids,
            utilization: utilization(ports),
        }
    };
    Ok(Json(NatUse {
        node_id: app.own_id(),
        bindings: sum(|worker| worker.nat_active.get()),
        capacity: sum(|worker| worker.nat_capacity.get()),
        addresses: survey
            .iter()
            .flat_map(|all| &all.ports)
            .map(address)
            .collect(),
        elsewhere: survey.as_ref().map_or(0, |all| all.elsewhere),
    }))
}

impl App {
    /// The packet workers.
    pub(super) fn dataplane(&self) -> Answer<Arc<Dataplane>> {
        self.dataplane.load_full().ok_or_else(|| {
            Refused::unavailable(Reason::NotReady, "this node's dataplane does not run")
        })
    }

    /// This node's id; empty before it has one.
    pub(super) fn own_id(&self) -> String {
        let id = self.member().map(|node| node.node_id().to_string());
        id.unwrap_or_default()
    }
}

impl From<LookError> for Refused {
    fn from(error: LookError) -> Refused {
        Refused::unavailable(Reason::NotReady, error.to_string())
    }
}

/// Reads a query: a filter, and what `other` takes. Anything else is refused: a filter that is
/// misspelt must not mean more flows.
pub(super) fn filter(
    dataplane: &Dataplane,
    query: Option<&str>,
    mut other: impl FnMut(&str, &str) -> Answer<bool>,
) -> Answer<Wanted> {
    let mut filter = Filter::default();
    let (mut group, mut rule) = (None, None);
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let (key, value) = (&*key, &*value);
        match key {
            "address" => filter.address = Some(prefix(key, value)?),
            "from" => filter.from = Some(prefix(key, value)?),
            "to" => filter.to = Some(prefix(key, value)?),
            "proto" => filter.proto = Some(protocol(value)?),
            "port" => filter.port = Some(port(key, value)?),
            "sport" => filter.from_port = Some(port(key, value)?),
            "dport" => filter.to_port = Some(port(key, value)?),
            "state" => filter.state = Some(state(value)?),
            "group" => group = Some(value.to_owned()),
            "rule" => rule = Some(value.to_owned()),
            "translated" => filter.translated = Some(yes_no(key, value)?),
            // The gate has read it.
            "node" => {}
            key if other(key, value)? => {}
            key => return Err(unknown(key)),
        }
    }
    let policy = dataplane.policy();
    if let Some(id) = group {
        let groups = 0..u32::try_from(policy.group_count()).unwrap_or(u32::MAX);
        let found = groups
            .into_iter()
            .find(|group| policy.group_id(*group) == Some(&id));
        let wrong = || Refused::bad_request(format!("the policy in force has no group {id:?}"));
        filter.group = Some(found.ok_or_else(wrong)?);
    }
    if let Some(id) = rule {
        let Some(group) = filter.group else {
            return Err(Refused::bad_request(
                "rule needs group: say which group it is in",
            ));
        };
        let mut rules = (0..).map_while(|rule| Some((rule, policy.rule_id(group, rule)?)));
        let found = rules.find(|(_, name)| *name == id);
        let wrong = || Refused::bad_request(format!("that group has no rule {id:?}"));
        filter.rule = Some(found.ok_or_else(wrong)?.0);
    }
    Ok(Wanted {
        policy,
        flows: filter,
    })
}

/// Which flows are wanted.
pub(super) struct Wanted {
    /// The policy whose group and rule are meant, also when another one is in force by the time that they are looked for.
    pub(super) policy: Arc<Compiled>,
    pub(super) flows: Filter,
}

/// A query that may say nothing but which member is to answer.
fn only_node(query: Option<&str>) -> Answer<()> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| key != "node") {
        None => Ok(()),
        Some((key, _)) => Err(unknown(&key)),
    }
}

pub(super) fn unknown(key: &str) -> Refused {
    Refused::bad_request(format!("there is no parameter {key:?}"))
}

fn prefix(key: &str, text: &str) -> Answer<IpNet> {
    let parsed = text
        .parse()
        .or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()));
    parsed.map_err(|_| Refused::bad_request(format!("{key} must be an address or a prefix")))
}

/// The number of a protocol.
pub(super) fn protocol(text: &str) -> Answer<u8> {
    let wrong = || Refused::bad_request("proto must be tcp, udp, icmp, icmpv6 or a number to 255");
    protocol_number(text).ok_or_else(wrong)
}

/// The same, for whoever has other words when there is none.
pub(crate) fn protocol_number(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmp" => Some(1),
        "icmpv6" => Some(58),
        number => number.parse().ok(),
    }
}

/// What a protocol is called.
pub(super) fn protocol_name(proto: u8) -> String {
    match proto {
        6 => "tcp".into(),
        17 => "udp".into(),
        1 => "icmp".into(),
        58 => "icmpv6".into(),
        number => number.to_string(),
    }
}

pub(super) fn port(key: &str, text: &str) -> Answer<u16> {
    let wrong = || Refused::bad_request(format!("{key} must be a port, 0 to 65535"));
    text.parse().map_err(|_| wrong())
}

fn state(text: &str) -> Answer<FlowState> {
    let found = FlowState::ALL
        .into_iter()
        .find(|state| state.name() == text);
    found.ok_or_else(|| {
        let names = FlowState::ALL.map(FlowState::name).join(", ");
        Refused::bad_request(format!("state must be one of {names}"))
    })
}

fn yes_no(key: &str, text: &str) -> Answer<bool> {
    let wrong = || Refused::bad_request(format!("{key} must be true or false"));
    text.parse().map_err(|_| wrong())
}

pub(super) fn number(
    key: &str,
    text: &str,
    range: std::ops::RangeInclusive<usize>,
) -> Answer<usize> {
    let wrong = || {
        let (least, most) = (range.start(), range.end());
        Refused::bad_request(format!("{key} must be between {least} and {most}"))
    };
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(wrong)
}

/// Worker and place, as [`shown`] writes them.
fn cursor(text: &str) -> Answer<(usize, u32)> {
    let parts = text
        .split_once('.')
        .and_then(|(worker, place)| Some((worker.parse().ok()?, place.parse().ok()?)));
    parts.ok_or_else(|| Refused::bad_request("cursor must be what next said"))
}

/// A page as it is answered; with rates if they were measured for some time.
fn shown(app: &App, dataplane: &Dataplane, page: Page, measured: Option<Duration>) -> FlowList {
    let flows = page.flows.iter();
    FlowList {
        node_id: app.own_id(),
        active: dataplane.active_flows(),
        flows: flows
            .map(|found| entry(found, &page.policy, measured))
            .collect(),
        next: page.next.map(|(worker, place)| format!("{worker}.{place}")),
    }
}

fn entry(found: &Found, policy: &Compiled, measured: Option<Duration>) -> FlowEntry {
    let (view, facts) = (&found.view, &found.view.facts);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let group = facts.group;
    let rule = group
        .zip(facts.rule)
        .and_then(|(group, rule)| policy.rule_id(group, rule));
    FlowEntry {
        proto: protocol_name(facts.proto),
        src_ip: facts.src.to_string(),
        src_port: facts.src_port,
        dst_ip: facts.dst.to_string(),
        dst_port: facts.dst_port,
        icmp_type: view.icmp.map(|(kind, _)| kind),
        icmp_code: view.icmp.map(|(_, code)| code),
        nat_ip: view.nat.map(|(ip, _)| ip.to_string()),
        nat_port: view.nat.map(|(_, port)| port),
        state: view.state.name().into(),
        source_group: group
            .and_then(|group| policy.group_id(group))
            .map(Into::into),
        rule: rule.map(Into::into),
        revision: facts.revision,
        allowed: view.allowed,
        idle_ms: ms(view.idle),
        expires_ms: ms(view.expires),
        bytes_out: view.bytes[0],
        bytes_in: view.bytes[1],
        packets_out: view.packets[0].into(),
        packets_in: view.packets[1].into(),
        bytes_per_s: measured.map(|time| view.recent_bytes * 1000 / ms(time).max(1)),
        worker: found.worker as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_names_or_numbers() {
        for text in ["tcp", "udp", "icmp", "icmpv6", "47"] {
            assert_eq!(protocol_name(protocol(text).unwrap()), text);
        }
        for text in ["", "TCP", "256", "-1"] {
            assert!(protocol(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parameters_that_mean_nothing_are_refused() {
        assert_eq!(cursor("1.20").unwrap(), (1, 20));
        for text in ["", "1", "1.", ".1", "1.x", "1.2.3"] {
            assert!(cursor(text).is_err(), "{text}");
        }
        assert_eq!(prefix("to", "10.0.0.7").unwrap().to_string(), "10.0.0.7/32");
        assert!(prefix("to", "10.0.0.0/33").is_err());
        assert!(number("limit", "0", 1..=1000).is_err());
        assert!(only_node(Some("node=1")).is_ok());
        assert!(only_node(Some("node=1&x=2")).is_err());
    }
}
