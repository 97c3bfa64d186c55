//! Flows and translations over the API, from packet workers with ports in memory.

use std::sync::{Mutex, PoisonError};

use engine::look::Filter;
use engine::port::memory::{MemoryPacket, MemoryPort};
use engine::port::{Capabilities, Link, Port, PortStats};
use engine::snapshot::{PortSettings, Settings};
use policy::{Compiled, Document};

use super::*;
use crate::dataplane::{Dataplane, Interest, Opened};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A UDP packet of 10.0.0.2 to port 53 of 198.51.100.1.
fn datagram(src_port: u16) -> MemoryPacket {
    datagram_to(src_port, 53)
}

fn datagram_to(src_port: u16, dst_port: u16) -> MemoryPacket {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 0x99], &[8, 0]].concat();
    let mut ip = [
        69, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 198, 51, 100, 1,
    ];
    let words = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(src_port.to_be_bytes());
    frame.extend(dst_port.to_be_bytes());
    frame.extend([0, 13, 0, 0]);
    frame.extend(b"hello");
    MemoryPacket::new(frame)
}

/// Frames that a port is to receive.
type Feed = Arc<Mutex<Vec<MemoryPacket>>>;

/// A port in memory that can be fed while it is polled.
struct Fed(MemoryPort, Feed);

impl Port for Fed {
    type Packet = MemoryPacket;

    fn rx_burst(&mut self, burst: &mut Vec<MemoryPacket>, max: usize) -> usize {
        let mut feed = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.rx.extend(feed.drain(..));
        self.0.rx_burst(burst, max)
    }

    fn tx_burst(&mut self, burst: &mut Vec<MemoryPacket>) -> usize {
        self.0.tx_burst(burst)
    }

    fn alloc(&mut self, len: usize) -> Option<MemoryPacket> {
        self.0.alloc(len)
    }

    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    fn link(&self) -> Link {
        self.0.link()
    }

    fn stats(&self) -> PortStats {
        self.0.stats()
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }
}

/// Packet workers that have seen datagrams from these ports.
fn dataplane(ports: &'static [u16]) -> Arc<Dataplane> {
    fed(ports, Feed::default())
}

/// The same, whose inside port can be fed further.
fn fed(ports: &'static [u16], feed: Feed) -> Arc<Dataplane> {
    let document = r#"{"default_policy":"deny","source_groups":[{"id":"clients","mode":"enforce",
        "sources":{"cidrs":["10.0.0.0/8"]},
        "rules":[{"id":"dns","action":"allow","match":{"proto":"udp","dst_ports":[53]}}]}]}"#;
    let document = Document::parse_json(document.as_bytes()).unwrap();
    let policy = Arc::new(Compiled::compile(&document, 1).unwrap());
    let port = |address: &str, gateway: Option<&str>| PortSettings {
        addresses: vec![address.parse().unwrap()],
        gateways: gateway.iter().map(|via| via.parse().unwrap()).collect(),
        ..PortSettings::default()
    };
    let settings = Settings {
        ports: vec![
            port("10.0.0.1/24", None),
            port("192.0.2.1/24", Some("192.0.2.254")),
        ],
        ..Settings::default()
    };
    let open = move || {
        let mut inside = MemoryPort::new(MAC, 1500);
        inside.rx.extend(ports.iter().map(|port| datagram(*port)));
        let outside = MemoryPort::new([2, 0, 0, 0, 0, 2], 1500);
        Ok(Opened::<_, MemoryPort> {
            ports: vec![Fed(inside, feed), Fed(outside, Feed::default())],
            lane: None,
            cpu: None,
            latency: None,
        })
    };
    let nothing = Arc::new(crate::handover::Received::nothing());
    let grants = crate::grants::Grants::nothing();
    let judging = crate::dataplane::Judging { policy, grants };
    Arc::new(Dataplane::start(settings, judging, 1024, None, vec![open], &nothing).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_replaced_is_freed_once_every_worker_has_the_next() {
    let dataplane = dataplane(&[]);
    for revision in 2..5 {
        let before = Arc::downgrade(&dataplane.policy());
        let document = Document::parse_json(br#"{"source_groups":[]}"#).unwrap();
        let next = Arc::new(Compiled::compile(&document, revision).unwrap());
        dataplane.set_policy(next).await.unwrap();
        assert!(before.upgrade().is_none(), "revision {}", revision - 1);
    }
    dataplane.stop();
}

#[test]
fn a_stuck_worker_does_not_keep_the_node_from_stopping() {
    let feed = Feed::default();
    let dataplane = fed(&[], Arc::clone(&feed));
    let held = feed.lock().unwrap();
    // Until it is in its port, and waits there.
    while dataplane.fault().is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!dataplane.stop());
    drop(held);
    assert!(fed(&[], Feed::default()).stop());
}

async fn looked_at(cluster: &Cluster, n: usize, ports: &'static [u16]) -> Arc<Dataplane> {
    let dataplane = dataplane(ports);
    cluster.app(n).set_dataplane(&dataplane);
    let opened = || dataplane.active_flows() as usize == ports.len();
    cluster.wait("the flows are there", |_| opened()).await;
    dataplane
}

/// Source ports of the flows in an answer.
fn ports(answer: &Value) -> Vec<u64> {
    let flows = answer["flows"].as_array().unwrap().iter();
    let mut ports: Vec<_> = flows
        .map(|flow| flow["src_port"].as_u64().unwrap())
        .collect();
    ports.sort_unstable();
    ports
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_listed_page_by_page_and_by_filter() {
    let cluster = Cluster::one().await;
    let _dataplane = looked_at(&cluster, 0, &[5001, 5002, 5003]).await;
    let get = async |query: &str| {
        let path = format!("{}{query}", api::paths::FLOWS);
        cluster.get(0, &path).expect(StatusCode::OK).await.json()
    };
    let all = get("").await;
    assert_eq!(ports(&all), [5001, 5002, 5003]);
    let flow = &all["flows"][0];
    let facts = ["proto", "dst_ip", "nat_ip", "source_group", "rule", "state"];
    let facts = facts.map(|name| flow[name].as_str().unwrap());
    let expected = [
        "udp",
        "198.51.100.1",
        "192.0.2.1",
        "clients",
        "dns",
        "unanswered",
    ];
    assert_eq!(facts, expected);

    let first = get("?limit=2").await;
    assert_eq!(ports(&first).len(), 2);
    let rest = get(&format!(
        "?limit=2&cursor={}",
        first["next"].as_str().unwrap()
    ))
    .await;
    assert_eq!((ports(&rest).len(), rest.get("next")), (1, None));
    for (query, expected) in [
        ("?sport=5002", &[5002][..]),
        ("?from=10.0.0.0%2F8&port=5003", &[5003]),
        ("?to=10.0.0.2", &[]),
        ("?group=clients&rule=dns&proto=udp", &[5001, 5002, 5003]),
        ("?state=established", &[]),
    ] {
        assert_eq!(ports(&get(query).await), expected, "{query}");
    }
    for query in [
        "?sprt=1",
        "?group=none",
        "?rule=dns",
        "?limit=0",
        "?cursor=x",
        "?proto=foo",
    ] {
        let path = format!("{}{query}", api::paths::FLOWS);
        cluster.get(0, &path).expect(StatusCode::BAD_REQUEST).await;
    }
    for by in ["bytes", "packets", "rate&interval_ms=100"] {
        let path = format!("{}?count=2&by={by}", api::paths::FLOWS_TOP);
        let top = cluster.get(0, &path).expect(StatusCode::OK).await.json();
        assert_eq!(ports(&top).len(), 2, "{by}");
    }
    let nat = cluster
        .get(0, api::paths::NAT)
        .expect(StatusCode::OK)
        .await
        .json();
    assert_eq!(nat["addresses"][0]["address"], "192.0.2.1");
    assert_eq!(
        (&nat["bindings"], &nat["addresses"][0]["udp_ports"]),
        (&3.into(), &3.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stats_tell_the_share_of_the_ports_in_use() {
    let cluster = Cluster::one().await;
    let stats = async || {
        let answer = cluster.get(0, api::paths::STATS).expect(StatusCode::OK);
        answer.await.json()["dataplane"].clone()
    };
    assert_eq!(stats().await["nat_port_utilization"], 0.0);
    let dataplane = looked_at(&cluster, 0, &[5001, 5002, 5003]).await;
    dataplane.look_over().await;
    let stats = stats().await;
    let of_ports = 3.0 / f64::from(engine::look::PORTS_PER_ADDRESS);
    assert_eq!(
        (&stats["nat_port_utilization"], &stats["active_nat_entries"]),
        (&of_ports.into(), &3.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_counted_by_worker_and_source_group() {
    let cluster = Cluster::one().await;
    let _dataplane = looked_at(&cluster, 0, &[5001, 5002, 5003]).await;
    let mut registry = prometheus_client::registry::Registry::default();
    let app = Arc::clone(cluster.app(0));
    crate::metrics::flows::FlowsCollector::register(&mut registry, app);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"dp_flow_opens_total{proto="udp",source_group="clients"} 3"#,
        r#"dp_flow_lifecycle_events_total{worker="0",event="opened",reason="new"} 3"#,
        r#"dp_nat_port_scan_steps_bucket{le="1.0",worker="0",result="found"} 3"#,
        r#"dp_nat_port_scan_steps_count{worker="0",result="found"} 3"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_end_when_an_administrator_says_which() {
    let cluster = Cluster::one().await;
    let dataplane = looked_at(&cluster, 0, &[5001, 5002, 5003]).await;
    let kill = |query: &str, role: &str| {
        let path = format!("{}{query}", api::paths::FLOWS_KILL);
        let ask = cluster.ask(0, Method::POST, &path);
        ask.token(&cluster.token(&[role]))
    };
    kill("?sport=5001", "readonly")
        .expect(StatusCode::FORBIDDEN)
        .await;
    for query in [
        "",
        "?all=false",
        "?sport=5001&all=true",
        "?srcport=5001",
        "?sport=5001&reset=1",
    ] {
        kill(query, "admin").expect(StatusCode::BAD_REQUEST).await;
    }
    assert_eq!(dataplane.active_flows(), 3);
    let killed = kill("?sport=5001", "admin").expect(StatusCode::OK).await;
    assert_eq!(
        (killed.json()["killed"].as_u64(), dataplane.active_flows()),
        (Some(1), 2)
    );
    let killed = kill("?all=true&reset=true", "admin")
        .expect(StatusCode::OK)
        .await;
    assert_eq!(
        (killed.json()["killed"].as_u64(), dataplane.active_flows()),
        (Some(2), 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_answer_may_have_ended_flows() {
    let cluster = Cluster::one().await;
    let feed = Feed::default();
    let dataplane = fed(&[5001], Arc::clone(&feed));
    cluster.app(0).set_dataplane(&dataplane);
    cluster
        .wait("the flow is there", |_| dataplane.active_flows() == 1)
        .await;
    // Until it is let go, the worker is in its port and waits there.
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (told, holds) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let _held = feed.lock().unwrap();
        told.send(()).unwrap();
        let _ = held.recv();
    });
    holds.recv().unwrap();
    let path = format!("{}?all=true", api::paths::FLOWS_KILL);
    let ask = cluster.ask(0, Method::POST, &path);
    let ask = ask.token(&cluster.token(&["admin"]));
    let answer = ask.expect(StatusCode::GATEWAY_TIMEOUT).await.json();
    let text = answer["error"].as_str().unwrap();
    assert!(
        text.starts_with("0 flows have ended, and others may"),
        "{text}"
    );
    drop(let_go);
    holder.join().unwrap();
    let is_empty = |_: &_| dataplane.active_flows() == 0;
    cluster.wait("it has ended by then", is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_answers_for_any_other() {
    let cluster = Cluster::three().await;
    let _dataplanes = [
        looked_at(&cluster, 0, &[5001]).await,
        looked_at(&cluster, 1, &[5002, 5003]).await,
    ];
    let of = |n: usize| cluster.node(n).node_id();
    let path = |n: usize| format!("{}?node={}", api::paths::FLOWS, of(n));
    for (asked, named, expected) in [
        (0, 0, &[5001][..]),
        (0, 1, &[5002, 5003]),
        (2, 1, &[5002, 5003]),
    ] {
        let ask = cluster.get(asked, &path(named));
        let answer = ask.expect(StatusCode::OK).await.json();
        assert_eq!(ports(&answer), expected, "{asked} about {named}");
        assert_eq!(answer["node_id"], of(named).to_string());
    }
    // Root at one member, who has no token.
    let root = cluster.ask(2, Method::GET, &path(0)).by_root();
    assert_eq!(ports(&root.expect(StatusCode::OK).await.json()), [5001]);
    // The member's own refusal comes back; so does that of who may not ask at all.
    cluster
        .get(0, &path(2))
        .expect(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    let unknown = format!("{}?node=00000000000000ff", api::paths::FLOWS);
    cluster.get(0, &unknown).expect(StatusCode::NOT_FOUND).await;
    cluster
        .ask(0, Method::GET, &path(1))
        .expect(StatusCode::UNAUTHORIZED)
        .await;
    let path = format!("{}?node={}&all=true", api::paths::FLOWS_KILL, of(1));
    let ask = cluster
        .ask(0, Method::POST, &path)
        .token(&cluster.token(&["readonly"]));
    ask.expect(StatusCode::FORBIDDEN).await;

    cluster.cut_off(1);
    let late = cluster.get(0, &format!("{}?node={}", api::paths::FLOWS, of(1)));
    late.expect(StatusCode::GATEWAY_TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_denies_is_found() {
    let cluster = Cluster::one().await;
    let feed = Feed::default();
    let dataplane = fed(&[5001], Arc::clone(&feed));
    cluster.app(0).set_dataplane(&dataplane);
    let denied = [
        datagram_to(5001, 80),
        datagram_to(5002, 80),
        datagram_to(5001, 81),
    ];
    feed.lock().unwrap().extend(denied);
    let dropped = || -> u64 {
        let workers = dataplane.counters();
        let denied = engine::DropReason::PolicyDenied;
        workers
            .iter()
            .map(|w| w.dropped(denied).packets.get())
            .sum()
    };
    cluster.wait("all are denied", |_| dropped() == 3).await;
    dataplane.gather();
    let get = async |query: &str| {
        let path = format!("{}{query}", api::paths::FINDINGS);
        cluster.get(0, &path).expect(StatusCode::OK).await.json()
    };
    let all = get("").await;
    let items = all["items"].as_array().unwrap();
    let told = items.iter().map(|item| {
        let texts = ["finding_type", "src_ip", "dst_ip", "proto"];
        let texts = texts.map(|name| item[name].as_str().unwrap_or_default());
        assert_eq!(texts, ["l4_deny", "10.0.0.2", "198.51.100.1", "udp"]);
        assert_eq!(item["node_ids"][0], all["node_id"]);
        (
            item["dst_port"].as_u64().unwrap(),
            item["count"].as_u64().unwrap(),
        )
    });
    assert_eq!(told.collect::<Vec<_>>(), [(81, 1), (80, 2)]);
    for (query, expected) in [
        ("?limit=1", 1),
        ("?finding_type=icmp_deny", 0),
        ("?finding_type=icmp_deny&finding_type=l4_deny", 2),
        ("?source_group=clients", 0),
        ("?until=5", 0),
        ("?since=5", 2),
    ] {
        let found = get(query).await;
        assert_eq!(
            found["items"].as_array().unwrap().len(),
            expected,
            "{query}"
        );
    }
    for query in ["?limit=0", "?finding_type=deny", "?since=now", "?policy=1"] {
        let path = format!("{}{query}", api::paths::FINDINGS);
        cluster.get(0, &path).expect(StatusCode::BAD_REQUEST).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_are_explained_without_being_sent() {
    let cluster = Cluster::one().await;
    let dataplane = looked_at(&cluster, 0, &[5001]).await;
    let explain = async |query: &str| {
        let path = format!("{}?{query}", api::paths::EXPLAIN);
        cluster.get(0, &path).expect(StatusCode::OK).await.json()
    };
    let allowed = explain("from=10.0.0.2&to=198.51.100.1&proto=udp&dport=53&sport=5001").await;
    let facts = ["verdict", "source_group", "rule", "port", "out_port"];
    let facts = facts.map(|name| allowed[name].as_str().unwrap_or_default());
    assert_eq!(facts, ["forward", "clients", "dns", "inside", "outside"]);
    let stages = allowed["stages"].to_string();
    for text in [
        "router 192.0.2.254",
        "becomes 192.0.2.1",
        "there is one already",
    ] {
        assert!(stages.contains(text), "{text}: {stages}");
    }
    let denied = explain("from=10.0.0.2&to=198.51.100.1&dport=443").await;
    assert_eq!(
        (&denied["verdict"], &denied["reason"]),
        (&"drop".into(), &"policy_denied".into())
    );
    assert_eq!(denied["walk"].as_array().unwrap().len(), 4, "{denied}");
    let begun = explain("from=198.51.100.1&to=10.0.0.2&dport=443&port=outside").await;
    assert_eq!(begun["reason"], "from_outside");
    assert_eq!(dataplane.active_flows(), 1, "nothing was opened");
    for query in [
        "from=10.0.0.2",
        "from=10.0.0.2&to=fd00::1&dport=1",
        "from=10.0.0.2&to=10.0.0.3",
    ] {
        let path = format!("{}?{query}", api::paths::EXPLAIN);
        cluster.get(0, &path).expect(StatusCode::BAD_REQUEST).await;
    }
}

/// A watch of all packets that nobody ends.
fn everything() -> Interest {
    Interest {
        filter: Filter::default(),
        drops_only: false,
        reason: None,
        snap: 64,
        count: u64::MAX,
        time: Duration::from_secs(60),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_are_followed_as_they_pass_and_as_they_are_dropped() {
    let cluster = Cluster::one().await;
    let feed = Feed::default();
    let dataplane = fed(&[], Arc::clone(&feed));
    cluster.app(0).set_dataplane(&dataplane);
    let admin = cluster.token(&["admin"]);
    let follow = async |path: String| -> Vec<Value> {
        let asking = cluster.ask(0, Method::GET, &path).token(&admin);
        let feeding = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let frames = [datagram_to(6001, 53), datagram_to(6002, 54)];
                feed.lock().unwrap().extend(frames);
            }
        };
        let answered = tokio::select! {
            answered = asking.expect(StatusCode::OK) => answered,
            () = feeding => unreachable!("it never ends"),
        };
        let lines = answered.text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let lines = follow(format!(
        "{}?dport=53&count=3&timeout=30s",
        api::paths::TRACE
    ))
    .await;
    let facts = [
        "src",
        "dst",
        "sent_src",
        "source_group",
        "rule",
        "verdict",
        "out_port",
    ];
    let facts = facts.map(|name| lines[0][name].as_str().unwrap_or_default());
    let expected = [
        "10.0.0.2:6001",
        "198.51.100.1:53",
        "192.0.2.1:6001",
        "clients",
        "dns",
        "forward",
        "outside",
    ];
    assert_eq!(
        (facts, lines.len(), &lines[3]["shown"]),
        (expected, 4, &3.into())
    );

    let path = format!("{}?reason=policy_denied&count=1&snap=20", api::paths::DROPS);
    let lines = follow(path).await;
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["src"]),
        (&"policy_denied".into(), &"10.0.0.2:6002".into())
    );
    assert_eq!(lines[0]["frame"].as_str().unwrap().len(), 40);
    let lines = follow(format!("{}?dport=99&timeout=100ms", api::paths::TRACE)).await;
    assert_eq!((lines.len(), &lines[0]["shown"]), (1, &0.into()));

    // Four at once; when one is over and the worker has given back what is its, the next may.
    let mut watches = Vec::new();
    while watches.len() < 4 {
        watches.extend(dataplane.watch(everything()).await.unwrap());
        tokio::task::yield_now().await;
    }
    let ask = |time: &str| {
        let path = format!("{}?dport=99&timeout={time}", api::paths::TRACE);
        cluster.ask(0, Method::GET, &path).token(&admin)
    };
    ask("100ms").expect(StatusCode::CONFLICT).await;
    drop(watches);
    let admitted = async |time: &str| loop {
        let answered = ask(time).send().await;
        if answered.status != StatusCode::CONFLICT {
            assert_eq!(answered.status, StatusCode::OK, "{}", answered.text);
            return answered;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(30), admitted("100ms"));
    again.await.unwrap();

    for query in [
        "reason=none",
        "group=clients",
        "state=reset",
        "count=0",
        "snap=5000",
        "timeout=9",
    ] {
        let path = format!("{}?{query}", api::paths::DROPS);
        let ask = cluster.ask(0, Method::GET, &path).token(&admin);
        ask.expect(StatusCode::BAD_REQUEST).await;
    }
    for path in [api::paths::TRACE, api::paths::DROPS] {
        cluster.get(0, path).expect(StatusCode::FORBIDDEN).await;
    }

    // A node that stops waits for nobody who looks on.
    let begun = std::time::Instant::now();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        dataplane.stop_watches();
    };
    let (ended, ()) = tokio::join!(admitted("60s"), stop);
    assert!(ended.text.contains(r#""shown":0"#), "{}", ended.text);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// An answer that another member waits for holds so much and no more.
#[tokio::test(flavor = "multi_thread")]
async fn packets_are_followed_by_way_of_another_member() {
    let cluster = Cluster::three().await;
    let feed = Feed::default();
    let dataplane = fed(&[], Arc::clone(&feed));
    cluster.app(1).set_dataplane(&dataplane);
    let admin = cluster.token(&["admin"]);
    let id = cluster.node(1).node_id();
    let path = format!(
        "{}?node={id}&count=100000&timeout=20s&snap=2048",
        api::paths::TRACE
    );
    let asking = cluster.ask(0, Method::GET, &path).token(&admin);
    let feeding = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let frames = (0..200).map(|port| datagram_to(7000 + port, 53));
            feed.lock().unwrap().extend(frames);
        }
    };
    let answered = tokio::select! {
        answered = asking.expect(StatusCode::OK) => answered,
        () = feeding => unreachable!("it never ends"),
    };
    let last: Value = serde_json::from_str(answered.text.lines().last().unwrap()).unwrap();
    assert_eq!(last["is_full"], true, "{last}");
    assert!(answered.text.len() <= 4 * 1024 * 1024 + 200);
}
