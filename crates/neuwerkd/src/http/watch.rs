//! What a node would do with a packet, and what it does with those that pass: an explanation, and
//! streams of packets, a line of JSON each, that end with the request.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::dataplane::{Explanation, Stage, TraceEnd, TraceLine, TracedPacket};
use api::error::Reason;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse as _;
use axum::{Extension, Json};
use bytes::Bytes;
use engine::port::PortId;
use engine::snapshot::Settings;
use engine::tap::{Ends, MAX_SNAP, Record};
use engine::{DropReason, Verdict, WorkerCounters};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use policy::Compiled;
use tokio::sync::mpsc::{Receiver, Sender};

use super::dataplane::{Wanted, filter, number, port, protocol, protocol_name, unknown};
use super::error::{Answer, Refused};
use super::openapi::{self, Doc, Param};
use super::policy::parse_timeout;
use super::{App, Origin};
use crate::auth::Identity;
use crate::dataplane::{Dataplane, Interest, PORT_NAMES, Watch, monotonic};
use crate::explain::{self, Packet};

/// Packets of one stream, at most.
const MAX_COUNT: usize = 1_000_000;
const DEFAULT_COUNT: usize = 1_000;
/// How long a stream goes on unless the request says otherwise; no longer than another member waits that is not told.
const DEFAULT_TIME: Duration = Duration::from_secs(10);
/// Bytes of an answer that another member passes on in one.
const MAX_WHOLE_BYTES: usize = 4 * 1024 * 1024;
/// How long beyond its end a stream waits to be read.
const READ_LIMIT: Duration = Duration::from_secs(5);

const WRONG: (u16, &str, Option<openapi::Media>) =
    (400, "A parameter is not valid", Some(openapi::ERROR));

pub(super) static EXPLAIN: Doc =
    Doc::new("Say what a node would do with a packet that begins a flow, and why; it is not sent")
        .params(&[
            Param {
                name: "from",
                description: "source address",
            },
            Param {
                name: "to",
                description: "destination address",
            },
            Param {
                name: "proto",
                description: "`tcp`, `udp`, `icmp`, `icmpv6` or a number; default `tcp`",
            },
            Param {
                name: "sport",
                description: "source port; default 49152",
            },
            Param {
                name: "dport",
                description: "destination port; needed for tcp and udp",
            },
            Param {
                name: "icmp_type",
                description: "ICMP type; default an echo request",
            },
            Param {
                name: "icmp_code",
                description: "ICMP code; default 0",
            },
            Param {
                name: "port",
                description: "`inside` or `outside`: the port that it comes from; default `inside`",
            },
        ])
        .answers(&[
            (
                200,
                "What would become of it",
                Some(openapi::json("Explanation")),
            ),
            WRONG,
        ]);

pub(super) async fn explain(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Answer<Json<Explanation>> {
    let dataplane = app.dataplane()?;
    let snapshot = dataplane.snapshot();
    let (from_port, packet) = packet(query.as_deref())?;
    if usize::from(from_port.0) >= snapshot.arms() {
        return Err(Refused::bad_request(
            "this node has one data port: leave port out",
        ));
    }
    let facts = packet
        .facts()
        .map_err(|error| Refused::bad_request(error.to_string()))?;
    let limits = limits(&dataplane, snapshot.settings());
    // A walk through a large policy takes a while, and memory.
    let _turn = app.explanations().acquire().await;
    let explained = tokio::task::spawn_blocking(move || {
        explain::by_node(&snapshot, monotonic(), from_port, facts)
    });
    let explained = explained.await.map_err(std::io::Error::other).flatten();
    let mut explanation = explained.map_err(|error| {
        let text = format!("there is no memory to find out: {error}");
        Refused::unavailable(Reason::NotReady, text)
    })?;
    explanation.node_id = Some(app.own_id());
    let mut stage = |stage: &str, text: String| {
        explanation.stages.push(Stage {
            stage: stage.into(),
            text,
        });
    };
    stage("limits", limits);
    let same = dataplane
        .flows(
            (dataplane.policy(), &explain::same_flow(&packet, &facts)),
            (0, 0),
            1,
        )
        .await?;
    let flow = match same.flows.first() {
        None => "none has these ends: the packet would begin one".to_owned(),
        Some(found) => {
            let view = &found.view;
            let judged = if view.allowed {
                "its packets pass without being judged again"
            } else {
                "the policy in force denies it: it ends with its next packet"
            };
            let from = match packet.dport {
                Some(_) => format!(" from port {}", view.facts.src_port),
                None => String::new(),
            };
            format!(
                "there is one already{from}, {}: {judged}",
                view.state.name()
            )
        }
    };
    stage("flow", flow);
    Ok(Json(explanation))
}

/// What the limits say about another flow, as far as that is known without its source.
fn limits(dataplane: &Dataplane, settings: &Settings) -> String {
    let limits = &settings.limits;
    let counters = dataplane.counters();
    let full = |worker: &Arc<WorkerCounters>| worker.flows_active.get() >= limits.max_flows.into();
    if counters.iter().any(full) {
        return "the flow table is full: one that was never answered, or is over, would have to give way".into();
    }
    let mut text = "there is room for another flow".to_owned();
    let by_source = limits
        .max_flows_per_source
        .or(limits.new_flows_per_source_per_s);
    if by_source.or(limits.max_flows_per_group).is_some() {
        text.push_str("; those by source and source group are not asked");
    }
    text
}

fn packet(query: Option<&str>) -> Answer<(PortId, Packet)> {
    let (mut from, mut to, mut proto) = (None, None, 6);
    let (mut sport, mut dport, mut kind, mut code) = (None, None, None, None);
    let mut entry = PortId(0);
    let address = |key: &str, value: &str| -> Answer<std::net::IpAddr> {
        let wrong = || Refused::bad_request(format!("{key} must be an address"));
        let parsed: std::net::IpAddr = value.parse().map_err(|_| wrong())?;
        // No packet has an IPv4 address in an IPv6 one.
        Ok(parsed.to_canonical())
    };
    let byte = |key: &str, value: &str| -> Answer<u8> {
        let wrong = || Refused::bad_request(format!("{key} must be a number to 255"));
        value.parse().map_err(|_| wrong())
    };
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*key {
            "from" => from = Some(address(&key, &value)?),
            "to" => to = Some(address(&key, &value)?),
            "proto" => proto = protocol(&value)?,
            "sport" => sport = Some(port(&key, &value)?),
            "dport" => dport = Some(port(&key, &value)?),
            "icmp_type" => kind = Some(byte(&key, &value)?),
            "icmp_code" => code = Some(byte(&key, &value)?),
            "port" => match &*value {
                "inside" | "data" => entry = PortId(0),
                "outside" => entry = PortId(1),
                _ => return Err(Refused::bad_request("port must be inside or outside")),
            },
            "node" => {}
            key => return Err(unknown(key)),
        }
    }
    let (Some(from), Some(to)) = (from, to) else {
        return Err(Refused::bad_request("from and to are needed"));
    };
    if kind.is_none() && code.is_some() {
        return Err(Refused::bad_request("icmp_code needs icmp_type"));
    }
    let icmp = kind.map(|kind| (kind, code.unwrap_or(0)));
    let packet = Packet {
        from,
        to,
        proto,
        sport,
        dport,
        icmp,
    };
    Ok((entry, packet))
}

macro_rules! stream_params {
    ($( $name:literal: $description:literal, )*) => {
        &[
            Param { name: "address", description: "an address or a prefix of either end, before or after translation" },
            Param { name: "from", description: "an address or a prefix of the end that opened the flow; of a packet without a flow, its source" },
            Param { name: "to", description: "the same of the end that it was opened to" },
            Param { name: "proto", description: "`tcp`, `udp`, `icmp`, `icmpv6` or a number" },
            Param { name: "port", description: "a port of either end, before or after translation" },
            Param { name: "sport", description: "the port of the end that opened the flow" },
            Param { name: "dport", description: "the port of the end that it was opened to" },
            Param { name: "count", description: "end after so many packets; default 1000, at most 1000000" },
            Param { name: "timeout", description: "end after this time, as `60s`; default 10s, at most 300s" },
            Param { name: "snap", description: "bytes of each frame to show; default 0, at most 2048" },
            $( Param { name: $name, description: $description }, )*
        ]
    };
}

pub(super) static TRACE: Doc =
    Doc::new("Follow packets as they pass, live; with `node`, when the time is over")
        .params(stream_params!())
        .answers(&[
            (
                200,
                "A line for each packet, and one for the end",
                Some(openapi::NDJSON),
            ),
            (409, "Others watch already", Some(openapi::ERROR)),
            WRONG,
        ]);

pub(super) async fn trace(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
) -> Answer {
    stream(&app, &origin, &identity, query.as_deref(), false).await
}

pub(super) static DROPS: Doc = Doc::new(
    "Follow frames that are dropped, with the reason, live; with `node`, when the time is over",
)
.params(stream_params! {
    "reason": "only those that are dropped for this reason, as metrics name it",
})
.answers(&[
    (
        200,
        "A line for each frame, and one for the end",
        Some(openapi::NDJSON),
    ),
    (409, "Others watch already", Some(openapi::ERROR)),
    WRONG,
]);

pub(super) async fn drops(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
) -> Answer {
    stream(&app, &origin, &identity, query.as_deref(), true).await
}

async fn stream(
    app: &App,
    origin: &Origin,
    identity: &Identity,
    query: Option<&str>,
    drops_only: bool,
) -> Answer {
    let dataplane = app.dataplane()?;
    let (mut count, mut time, mut snap, mut reason) = (DEFAULT_COUNT, DEFAULT_TIME, 0, None);
    let Wanted { flows: filter, .. } = filter(&dataplane, query, |key, value| {
        match key {
            "count" => count = number(key, value, 1..=MAX_COUNT)?,
            "timeout" => time = parse_timeout(value)?,
            "snap" => snap = number(key, value, 0..=MAX_SNAP)?,
            "reason" if drops_only => reason = Some(drop_reason(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if filter.has_more_than_ends() {
        return Err(Refused::bad_request(
            "packets are chosen by their ends and protocol only",
        ));
    }
    let interest = Interest {
        filter,
        drops_only,
        reason,
        snap,
        count: count as u64,
        time,
    };
    let names = PORT_NAMES[dataplane.snapshot().arms() - 1];
    let Some(watch) = dataplane.watch(interest).await? else {
        let text = "as many watch packets already as may: try again when one of them has ended";
        return Err(Refused::new(StatusCode::CONFLICT, text));
    };
    tracing::info!(
        drops_only,
        snap,
        seconds = time.as_secs(),
        subject = %identity.subject,
        "packets are followed on request"
    );
    // Another member waits for the whole answer.
    let room = match origin {
        Origin::Member { .. } => Some(MAX_WHOLE_BYTES),
        _ => None,
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(pass_on(watch, names, room, sender));
    let body = Body::from_stream(futures::stream::unfold(
        receiver,
        async |mut receiver: Receiver<Bytes>| {
            let lines = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(lines), receiver))
        },
    ));
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

/// Passes on what a watch sees until it is over, or whoever reads is gone. One who does not read any more must not keep
/// the watch from others.
async fn pass_on(
    mut watch: Watch,
    names: &'static [&'static str],
    mut room: Option<usize>,
    sender: Sender<Bytes>,
) {
    let late = watch.until() + READ_LIMIT;
    loop {
        let next = tokio::select! {
            next = lines(&mut watch, names, &mut room) => next,
            () = sender.closed() => return,
        };
        let (text, is_last) = next;
        let sent = tokio::time::timeout_at(late, sender.send(text)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// The next lines of a stream, and whether they are the last.
async fn lines(
    watch: &mut Watch,
    names: &'static [&'static str],
    room: &mut Option<usize>,
) -> (Bytes, bool) {
    let read = |record: &Record, policy: Option<&Compiled>| {
        let (now, wall) = (monotonic(), SystemTime::now());
        let age = Duration::from_nanos(now.0.saturating_sub(record.at.0));
        let at = wall.checked_sub(age).unwrap_or(wall);
        TraceLine::Packet(Box::new(traced(record, policy, names, at)))
    };
    let mut text = Vec::new();
    let (mut found, mut is_full) = (watch.next(read).await.unwrap_or_default(), false);
    let mut is_last = found.is_empty();
    let mut cut_off = found.len() as u64;
    for line in found.drain(..) {
        let start = text.len();
        put(&line, &mut text);
        let len = text.len() - start;
        match room {
            Some(left) if *left < len => {
                text.truncate(start);
                (is_full, is_last) = (true, true);
                break;
            }
            Some(left) => *left -= len,
            None => {}
        }
        cut_off -= 1;
    }
    if is_last {
        let (shown, lost) = watch.tally();
        let end = TraceEnd {
            shown: shown.saturating_sub(cut_off),
            lost,
            is_full,
        };
        put(&TraceLine::End(end), &mut text);
    }
    (text.into(), is_last)
}

fn put(line: &TraceLine, text: &mut Vec<u8>) {
    serde_json::to_writer(&mut *text, line).expect("memory takes what has string keys");
    text.push(b'\n');
}

fn traced(
    record: &Record,
    policy: Option<&Compiled>,
    names: &[&str],
    at: SystemTime,
) -> TracedPacket {
    let name = |port: PortId| {
        names
            .get(usize::from(port.0))
            .map(|name| (*name).to_owned())
    };
    let headers = record.headers.as_ref();
    let ends = headers.map(|headers| shown(&headers.ends));
    let sent = record.sent.as_ref().map(shown);
    let ruling = record.ruling;
    let group = ruling.and_then(|ruling| ruling.group);
    let rule = group.zip(ruling.and_then(|ruling| ruling.rule));
    let (verdict, reason, out) = match record.verdict {
        Verdict::Forward(out) => ("forward", None, Some(out)),
        Verdict::Local => ("local", None, None),
        Verdict::Reply => ("reply", None, None),
        Verdict::Drop(reason) => ("drop", Some(reason), None),
    };
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    TracedPacket {
        time: time(at),
        worker: record.worker.into(),
        port: match (record.port, record.from_host) {
            (Some(port), _) => name(port),
            (None, true) => Some("host".into()),
            (None, false) => None,
        },
        network: record.network,
        length: record.len.into(),
        fragments: (record.pieces > 0).then(|| record.pieces.into()),
        proto: headers.map(|headers| protocol_name(headers.proto)),
        src: ends.as_ref().map(|(src, _)| src.clone()),
        dst: ends.map(|(_, dst)| dst),
        ttl: headers.map(|headers| headers.ttl),
        tcp_flags: headers.and_then(|headers| headers.tcp_flags).map(flags),
        icmp: headers
            .and_then(|headers| headers.icmp)
            .map(|(kind, code)| format!("{kind}/{code}")),
        flow_from: record
            .hit
            .map(|hit| if hit.from_client { "client" } else { "server" }.into()),
        flow_state: record.hit.map(|hit| hit.state.name().into()),
        rejudged: record.hit.is_some_and(|hit| hit.stale),
        source_group: group
            .and_then(|group| policy?.group_id(group))
            .map(Into::into),
        rule: rule
            .and_then(|(group, rule)| policy?.rule_id(group, rule))
            .map(Into::into),
        revision: ruling.map(|ruling| ruling.revision),
        verdict: verdict.into(),
        reason: reason.map(|reason| reason.name().into()),
        reason_text: reason.map(|reason| reason.description().trim().into()),
        sent_src: sent.as_ref().map(|(src, _)| src.clone()),
        sent_dst: sent.map(|(_, dst)| dst),
        out_port: out.and_then(name),
        next_hop: record.next_hop.map(mac),
        waits: record.waits,
        handed_to: record.handed_to.map(Into::into),
        answers: record.answers.into(),
        frame: (!record.frame.is_empty()).then(|| hex(&record.frame)),
    }
}

fn shown(ends: &Ends) -> (String, String) {
    let shown = |end: (std::net::IpAddr, u16)| std::net::SocketAddr::from(end).to_string();
    (shown(ends.src), shown(ends.dst))
}

/// TCP flags as letters, in the order in which they are usually read.
fn flags(flags: u8) -> String {
    let letters = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (32, 'U'), (16, 'A')];
    let set = letters.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, letter)| letter).collect()
}

fn drop_reason(text: &str) -> Answer<DropReason> {
    let mut all = DropReason::ALL.iter().copied();
    all.find(|reason| reason.name() == text).ok_or_else(|| {
        let text = format!("there is no reason {text:?}; docs/metrics.md lists them");
        Refused::bad_request(text)
    })
}

/// RFC 3339 in UTC, to the microsecond.
fn time(at: SystemTime) -> String {
    let nanoseconds = time::OffsetDateTime::from(at).unix_timestamp_nanos();
    let whole = nanoseconds - nanoseconds.rem_euclid(1_000);
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(whole).ok();
    let text = at.and_then(|at| {
        at.format(&time::format_description::well_known::Rfc3339)
            .ok()
    });
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_letters() {
        assert_eq!(
            [0x02, 0x12, 0x11, 0x04, 0x18].map(flags),
            ["S", "SA", "FA", "R", "PA"]
        );
    }

    #[test]
    fn times_are_short() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_001_500);
        assert_eq!(time(at), "1970-01-01T00:00:01.000001Z");
    }

    #[test]
    fn packets_are_asked_about_by_name() {
        let (port, asked) = packet(Some("from=10.0.0.2&to=1.1.1.1&dport=443")).unwrap();
        assert_eq!((port, asked.proto, asked.dport), (PortId(0), 6, Some(443)));
        for query in [
            "from=10.0.0.2",
            "from=a&to=1.1.1.1",
            "from=10.0.0.2&to=1.1.1.1&port=2",
            "from=10.0.0.2&to=1.1.1.1&icmp_code=0",
            "from=10.0.0.2&to=1.1.1.1&port=inside&x=1",
        ] {
            assert!(packet(Some(query)).is_err(), "{query}");
        }
        assert!(drop_reason("policy_denied").is_ok());
        assert!(drop_reason("Policy").is_err());
    }
}
