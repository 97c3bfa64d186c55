//! Random queries at the proxy, over real sockets, beside a naive model of what each is answered: the policy as
//! `sim::policy` reads it, and upstream answers as [`Zone`] makes them. Some 20,000 queries; `PROPTEST_CASES` is for more,
//! 80 for each.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use dns::reply::Denial;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use policy::{Compiled, Document};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use proxy::dns::{Proxy, Settings, Upstream};
use serde_json::json;
use sim::policy::evaluate_name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const QUERIES: usize = 80;
const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const CAA: u16 = 257;
const ANY: u16 = 255;
const TTL_S: u32 = 300;

/// First labels; what the upstream does with each is its name.
const SCRIPTS: [&str; 12] = [
    "one", "many", "chain", "circle", "private", "mixed", "foreign", "none", "empty", "fails",
    "spoofed", "text",
];
const ZONES: [&str; 3] = ["example.com", "a.example.com", "example.net"];

/// What an upstream says of a name, before anyone has judged it.
#[derive(Default)]
struct Zone {
    rcode: u8,
    /// Owner (none for the name asked for), type, data.
    answers: Vec<(Option<&'static str>, u16, Vec<u8>)>,
    soa: bool,
}

fn v4(last: u8) -> Vec<u8> {
    vec![192, 0, 2, last]
}

fn zone(script: &str, kind: u16) -> Zone {
    let answers = |answers: Vec<(Option<&'static str>, u16, Vec<u8>)>| Zone {
        answers,
        ..Zone::default()
    };
    let nothing = || Zone {
        soa: true,
        ..Zone::default()
    };
    match (script, kind) {
        ("none", _) => Zone {
            rcode: 3,
            soa: true,
            ..Zone::default()
        },
        ("fails", _) => Zone {
            rcode: 2,
            ..Zone::default()
        },
        ("circle", A) => answers(vec![
            (None, CNAME, wire("circle.example.org")),
            (
                Some("circle.example.org"),
                CNAME,
                wire("circle.example.org"),
            ),
        ]),
        ("one" | "spoofed", A) => answers(vec![(None, A, v4(1))]),
        ("one", AAAA) => answers(vec![(
            None,
            AAAA,
            vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
        )]),
        ("many", A) => answers((0..60).map(|i| (None, A, v4(i))).collect()),
        ("chain", A) => answers(vec![
            (None, CNAME, wire("x.example.org")),
            (Some("x.example.org"), CNAME, wire("y.example.org")),
            (Some("y.example.org"), A, v4(3)),
        ]),
        ("private", A) => answers(vec![(None, A, vec![10, 0, 0, 1])]),
        ("mixed", A) => answers(vec![
            (None, A, vec![169, 254, 169, 254]),
            (None, A, v4(4)),
            (None, A, vec![127, 0, 0, 1]),
        ]),
        ("foreign", A) => answers(vec![(Some("other.example.org"), A, v4(5))]),
        ("text", TXT) => answers(vec![(None, TXT, b"\x05hello".to_vec())]),
        ("one", CAA) => answers(vec![(None, CAA, b"\x00\x05issueca.test".to_vec())]),
        _ => nothing(),
    }
}

fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// The upstream's answer on the wire.
fn emit(query: &[u8]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let first = 13 + usize::from(query[12]);
    let script = String::from_utf8(query[13..first].to_ascii_lowercase()).unwrap();
    let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
    let zone = zone(&script, kind);
    let mut out = query[..end].to_vec();
    let counts = [zone.answers.len() as u8, u8::from(zone.soa)];
    out[2..12].copy_from_slice(&[
        0x81,
        0x80 | zone.rcode,
        0,
        1,
        0,
        counts[0],
        0,
        counts[1],
        0,
        0,
    ]);
    let mut record = |owner: Option<&str>, kind: u16, data: &[u8]| {
        out.extend(owner.map_or(vec![0xc0, 12], wire));
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(TTL_S.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    };
    for (owner, kind, data) in &zone.answers {
        record(*owner, *kind, data);
    }
    if zone.soa {
        let mut soa = [wire("ns.test"), wire("root.test")].concat();
        soa.extend([1, 2, 3, 4, TTL_S].map(u32::to_be_bytes).concat());
        // The zone of every name here but `circle`'s, which has no such answer.
        let apex = match String::from_utf8_lossy(&query[12..end - 5]).to_lowercase() {
            name if name.ends_with("net") => "example.net",
            _ => "example.com",
        };
        record(Some(apex), SOA, &soa);
    }
    out
}

struct World {
    runtime: Runtime,
    upstream: SocketAddr,
}

/// One upstream for all cases, over UDP and TCP.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let upstream = runtime.block_on(async {
        let (listener, socket) = loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, socket);
            }
        };
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((read, from)) = socket.recv_from(&mut buffer).await {
                let mut answer = emit(&buffer[..read]);
                if buffer[12..].starts_with(b"\x07") {
                    let mut spoofed = answer.clone();
                    spoofed[1] ^= 1;
                    socket.send_to(&spoofed, from).await.unwrap();
                }
                if answer.len() > 1_232 {
                    answer.truncate(12);
                    answer.extend_from_slice(&emit(&buffer[..read])[12..]);
                    answer[2] |= 2;
                    answer.truncate(512);
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        let answer = emit(&query);
                        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
                        stream.write_all(&framed).await.unwrap();
                    }
                });
            }
        });
        address
    });
    World { runtime, upstream }
});

/// A query, and what is odd about it.
#[derive(Debug, Clone)]
struct Asked {
    client: u8,
    tcp: bool,
    script: &'static str,
    zone: &'static str,
    upper: bool,
    kind: u16,
    /// The payload size that EDNS says, if there is EDNS.
    edns: Option<u16>,
    oddity: Oddity,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Oddity {
    None,
    Response,
    Opcode,
    TwoQuestions,
    NoQuestion,
    Class,
    NoRecursion,
    Trailing,
    EdnsVersion,
    CheckingDisabled,
}

fn asked() -> impl Strategy<Value = Asked> {
    use Oddity::*;
    let kinds = prop_oneof![
        12 => Just(A),
        2 => Just(AAAA),
        2 => Just(TXT),
        1 => Just(CNAME),
        1 => prop::sample::select(vec![CAA, ANY, 252, 251, 41, 10, 249, 0]),
    ];
    let oddity = prop_oneof![
        12 => Just(None),
        1 => prop::sample::select(vec![
            Response, Opcode, TwoQuestions, NoQuestion, Class, NoRecursion, Trailing, EdnsVersion, CheckingDisabled,
        ]),
    ];
    let edns = prop::option::of(prop::sample::select(vec![0, 512, 1_000, 1_232, 4_096]));
    (
        (1_u8..5, prop::bool::weighted(0.1), any::<bool>()),
        prop::sample::select(SCRIPTS.to_vec()),
        prop::sample::select(ZONES.to_vec()),
        kinds,
        edns,
        oddity,
    )
        .prop_map(
            |((client, tcp, upper), script, zone, kind, edns, oddity)| Asked {
                client,
                tcp,
                script,
                zone,
                upper,
                kind,
                edns,
                oddity,
            },
        )
}

impl Asked {
    fn name(&self) -> String {
        format!("{}.{}", self.script, self.zone)
    }

    fn client(&self) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, self.client).into()
    }

    fn emit(&self, id: u16) -> Vec<u8> {
        let mut out = id.to_be_bytes().to_vec();
        out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let name = match self.upper {
            true => self.name().to_uppercase(),
            false => self.name(),
        };
        out.extend(wire(&name));
        out.extend(self.kind.to_be_bytes());
        out.extend([0, 1]);
        let class = out.len() - 1;
        match self.oddity {
            Oddity::None | Oddity::Trailing | Oddity::EdnsVersion => {}
            Oddity::Response => out[2] |= 0x80,
            Oddity::Opcode => out[2] |= 0x20,
            Oddity::TwoQuestions => out[5] = 2,
            Oddity::NoQuestion => out[5] = 0,
            Oddity::Class => out[class] = 3,
            Oddity::NoRecursion => out[2] = 0,
            Oddity::CheckingDisabled => out[3] = 0x10,
        }
        if let Some(size) = self.payload() {
            out[11] = 1;
            out.extend([0, 0, 41]);
            out.extend(size.to_be_bytes());
            out.extend([0, u8::from(self.oddity == Oddity::EdnsVersion), 0, 0, 0, 0]);
        }
        if self.oddity == Oddity::Trailing {
            out.push(0);
        }
        out
    }

    fn payload(&self) -> Option<u16> {
        match self.oddity {
            Oddity::EdnsVersion => Some(1_232),
            _ => self.edns,
        }
    }
}

/// What is answered: the response code, and the data of the answers; or that they do not fit.
#[derive(Debug, PartialEq)]
enum Expected {
    Silence,
    Code(u16),
    Answers(u16, BTreeSet<String>),
    Truncated,
}

/// The model: each rule in turn, as the documentation has them.
fn expected(document: &Document, asked: &Asked) -> Expected {
    match asked.oddity {
        Oddity::Response => return Expected::Silence,
        Oddity::Opcode => return Expected::Code(4),
        Oddity::TwoQuestions | Oddity::NoQuestion => return Expected::Code(1),
        _ => {}
    }
    if matches!(asked.kind, 251 | 252) {
        return Expected::Code(5);
    }
    match asked.oddity {
        Oddity::EdnsVersion => return Expected::Code(16),
        Oddity::Trailing => return Expected::Code(1),
        Oddity::Class => return Expected::Code(5),
        _ => {}
    }
    if matches!(asked.kind, 0 | 41 | 128..=254) {
        return Expected::Code(4);
    }
    if asked.oddity == Oddity::NoRecursion {
        return Expected::Code(5);
    }
    if !evaluate_name(document, asked.client(), &asked.name()).allow {
        return Expected::Code(3);
    }
    if asked.kind == ANY {
        return Expected::Code(0);
    }
    if asked.kind == 10 {
        return Expected::Code(5);
    }
    let zone = zone(asked.script, asked.kind);
    if zone.rcode == 2 || asked.script == "circle" && asked.kind == A {
        return Expected::Code(2);
    }
    // What follows from the question by names, and is no special address.
    let mut at = None;
    let mut kept = BTreeSet::new();
    for (owner, kind, data) in &zone.answers {
        if *owner != at {
            continue;
        }
        if *kind == CNAME {
            at = match data.as_slice() {
                name if name == wire("x.example.org") => Some("x.example.org"),
                _ => Some("y.example.org"),
            };
        }
        if *kind == A && data[0] != 192 {
            continue;
        }
        kept.insert(format!("{kind} {data:?}"));
    }
    let limit = match (asked.tcp, asked.payload()) {
        (true, _) => 65_535,
        (false, None) => 512,
        (false, Some(size)) => size.clamp(512, 1_232),
    };
    // Sixteen bytes each, behind the question.
    let question = 12 + wire(&asked.name()).len() + 4;
    let edns = if asked.payload().is_some() { 11 } else { 0 };
    if asked.script == "many" && asked.kind == A && question + 60 * 16 + edns > limit.into() {
        return Expected::Truncated;
    }
    Expected::Answers(zone.rcode.into(), kept)
}

/// What was answered, in the model's terms.
fn got(asked: &Asked, query: &[u8], answer: &[u8]) -> Expected {
    let read = Message::from_vec(answer).unwrap();
    assert_eq!(read.id, u16::from_be_bytes([query[0], query[1]]));
    let code = u16::from(read.response_code);
    if read.truncation {
        assert!(read.answers.is_empty());
        return Expected::Truncated;
    }
    if let Some(size) = asked.payload()
        && !asked.tcp
    {
        assert!(answer.len() <= usize::from(size.clamp(512, 1_232)));
    }
    if read.queries.len() == 1 && asked.oddity != Oddity::TwoQuestions {
        let end = 12 + wire(&asked.name()).len() + 4;
        assert_eq!(answer[12..end], query[12..end], "letters are the client's");
    }
    assert!(
        read.answers
            .iter()
            .all(|record| record.ttl <= TTL_S || asked.kind == ANY)
    );
    let answers = read.answers.iter().map(|record| match &record.data {
        RData::A(ip) => format!("{A} {:?}", ip.octets()),
        RData::AAAA(ip) => format!("{AAAA} {:?}", ip.octets()),
        RData::CNAME(name) => format!("{CNAME} {:?}", wire(&name.to_string())),
        RData::TXT(_) => format!("{TXT} {:?}", b"\x05hello"),
        RData::CAA(_) => format!("{CAA} {:?}", b"\x00\x05issueca.test"),
        other => format!("{} {other:?}", u16::from(record.record_type())),
    });
    Expected::Answers(code, answers.collect())
}

fn document() -> impl Strategy<Value = serde_json::Value> {
    let pattern = (
        prop::sample::select(SCRIPTS.to_vec()),
        prop::sample::select(ZONES.to_vec()),
        0..4,
    )
        .prop_map(|(script, zone, how)| match how {
            0 => format!("{script}.{zone}"),
            1 => format!("*.{zone}"),
            2 => format!("**.{zone}"),
            _ => "**.com".to_owned(),
        });
    let action = prop::sample::select(vec!["allow", "allow", "deny"]);
    let rule = (
        action,
        prop::collection::vec(pattern, 1..4),
        prop::option::of(0_u32..4),
    );
    let sources = prop::sample::select(vec!["127.0.0.1/32", "127.0.0.2/31", "127.0.0.0/8"]);
    let group = (
        sources,
        prop::sample::select(vec!["enforce", "enforce", "audit"]),
        prop::collection::vec(rule, 0..5),
    );
    prop::collection::vec(group, 0..4).prop_map(|groups| {
        let groups: Vec<_> = groups
            .into_iter()
            .enumerate()
            .map(|(g, (source, mode, rules))| {
                let rules: Vec<_> = rules
                    .into_iter()
                    .enumerate()
                    .map(|(r, (action, names, priority))| {
                        let mut rule = json!({"id": format!("r{r}"), "action": action, "match": {"dns_names": names}});
                        if let Some(priority) = priority {
                            rule["priority"] = json!(priority);
                        }
                        rule
                    })
                    .collect();
                json!({"id": format!("g{g}"), "mode": mode, "sources": {"cidrs": [source]}, "rules": rules})
            })
            .collect();
        json!({"source_groups": groups})
    })
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 4_096];
    let read = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer));
    let read = read.await.expect("there is an answer").unwrap();
    buffer.truncate(read);
    buffer
}

/// A query that is always answered comes behind one that is not.
async fn over_udp(socket: &UdpSocket, query: &[u8]) -> Option<Vec<u8>> {
    socket.send(query).await.unwrap();
    let silent = query[2] & 0x80 != 0;
    if silent {
        socket
            .send(b"\xff\xff\x28\0\0\0\0\0\0\0\0\0")
            .await
            .unwrap();
    }
    let answer = receive(socket).await;
    (!silent || answer[..2] != [0xff, 0xff]).then_some(answer)
}

async fn over_tcp(client: IpAddr, to: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((client, 0).into()).unwrap();
    let mut stream: TcpStream = socket.connect(to).await.unwrap();
    let framed = [&(query.len() as u16).to_be_bytes()[..], query].concat();
    stream.write_all(&framed).await.unwrap();
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    Some(answer)
}

async fn run(document: &Document, queries: &[Asked]) {
    let compiled = Arc::new(Compiled::compile(document, 1).unwrap());
    let settings = Settings {
        upstreams: vec![Upstream {
            address: WORLD.upstream,
            tls: None,
        }],
        upstream_timeout: Duration::from_secs(20),
        allow_private_answers: vec![],
        own_addresses: Arc::new(Vec::new),
        allow_ech: false,
        more_kinds: vec![dns::Kind(CAA)],
        denial: Denial::NxDomain,
        // A few dozen answers, so that some have to go.
        cache_bytes: 64 << 10,
        client_queries_per_second: 0,
        client_burst: 1,
    };
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let policy = Box::new(move || Arc::clone(&compiled));
    let proxy = Proxy::new(
        settings,
        policy,
        std::sync::Arc::new(proxy::dns::NoGrants),
        &mut Registry::default(),
    );
    let address = proxy
        .listen((Ipv4Addr::LOCALHOST, 0).into(), 1, &stop)
        .unwrap();
    let mut sockets = Vec::new();
    for client in 0..5 {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, client.max(1)), 0))
            .await
            .unwrap();
        socket.connect(address).await.unwrap();
        sockets.push(socket);
    }
    for (id, asked) in (1..).zip(queries) {
        let query = asked.emit(id);
        let answer = match asked.tcp {
            true => over_tcp(asked.client(), address, &query).await,
            false => over_udp(&sockets[usize::from(asked.client)], &query).await,
        };
        let want = expected(document, asked);
        let got = answer.map_or(Expected::Silence, |answer| got(asked, &query, &answer));
        match (&want, got) {
            (Expected::Code(want), Expected::Answers(code, answers)) => {
                assert_eq!(code, *want, "{asked:?}");
                assert!(answers.is_empty() || asked.kind == ANY, "{asked:?}");
            }
            (_, got) => assert_eq!(got, want, "{asked:?}"),
        }
    }
}

proptest! {
    #[test]
    fn the_proxy_answers_as_the_model(
        json in document(),
        queries in prop::collection::vec(asked(), QUERIES),
    ) {
        let document = Document::parse_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        WORLD.runtime.block_on(run(&document, &queries));
    }
}
