//! Real sockets on the loopback interface, and upstreams that do as a test says.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use policy::Document;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

const POLICY: &str = r#"{"source_groups":[{"id":"web","mode":"enforce","sources":{"cidrs":["127.0.0.0/8"]},
    "rules":[{"id":"bad","action":"deny","match":{"dns_names":["bad.example.com"]}},
             {"id":"ok","action":"allow","match":{"dns_names":["**.example.com"]}}]}]}"#;

pub(super) fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

pub(super) fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend(wire(name));
    out.extend([kind.to_be_bytes(), [0, 1]].concat());
    out
}

/// The answer to a query without its EDNS: `count` addresses of the question's name.
pub(super) fn answer(query: &[u8], address: [u8; 4], count: u16) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
    let mut out = query[..end].to_vec();
    out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count as u8, 0, 0, 0, 0]);
    for i in 0..count {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend([address[0], address[1], address[2], address[3] + i as u8]);
    }
    out
}

/// A scripted upstream over UDP and TCP on one port.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// `udp` and `tcp` make the messages that are sent back for a query, given how many came before.
    pub(super) async fn start(
        udp: impl Fn(&[u8], usize) -> Vec<Vec<u8>> + Send + 'static,
        tcp: impl Fn(&[u8]) -> Vec<u8> + Send + Clone + 'static,
        delay: Duration,
    ) -> Self {
        let (listener, socket) = loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, socket);
            }
        };
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let socket = Arc::new(socket);
            let mut buffer = [0; 2048];
            loop {
                let Ok((read, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                let answers = udp(&buffer[..read], count.fetch_add(1, Ordering::SeqCst));
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    for answer in answers {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let tcp = tcp.clone();
                tokio::spawn(async move {
                    while let Ok(query) = pool::read(&mut stream, 65_535).await {
                        if pool::write(&mut stream, &tcp(&query)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, asked }
    }

    pub(super) async fn sound(delay: Duration) -> Self {
        let one = |q: &[u8]| answer(q, [192, 0, 2, 1], 1);
        Self::start(move |q, _| vec![one(q)], one, delay).await
    }

    pub(super) async fn silent() -> Self {
        Self::start(|_, _| vec![], |_| vec![], Duration::ZERO).await
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

pub(super) struct Scene {
    pub(super) address: SocketAddr,
    registry: Registry,
    proxy: Proxy,
    stop: tokio_util::sync::DropGuard,
}

impl Scene {
    pub(super) fn start(upstreams: &[&Server], change: impl FnOnce(&mut Settings)) -> Self {
        Self::granting(upstreams, change, Arc::new(NoGrants))
    }

    fn granting(
        upstreams: &[&Server],
        change: impl FnOnce(&mut Settings),
        granting: Arc<dyn Granting>,
    ) -> Self {
        let mut settings = Settings {
            upstreams: upstreams
                .iter()
                .map(|server| Upstream {
                    address: server.address,
                    tls: None,
                })
                .collect(),
            // Longer than a busy machine holds anything up.
            upstream_timeout: Duration::from_secs(20),
            allow_private_answers: vec![],
            own_addresses: Arc::new(Vec::new),
            allow_ech: false,
            more_kinds: vec![],
            denial: Denial::NxDomain,
            cache_bytes: 1 << 20,
            client_queries_per_second: 0,
            client_burst: 0,
        };
        change(&mut settings);
        let document = Document::parse_json(POLICY.as_bytes()).unwrap();
        let compiled = Arc::new(Compiled::compile(&document, 1).unwrap());
        let mut registry = Registry::default();
        let proxy = Proxy::new(
            settings,
            Box::new(move || Arc::clone(&compiled)),
            granting,
            &mut registry,
        );
        let stop = CancellationToken::new();
        let address = proxy
            .listen((Ipv4Addr::LOCALHOST, 0).into(), 1, &stop)
            .unwrap();
        Self {
            address,
            registry,
            proxy,
            stop: stop.drop_guard(),
        }
    }

    pub(super) async fn udp(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(self.address).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await??;
        buffer.truncate(read);
        Ok(buffer)
    }

    pub(super) fn service(&self) -> Arc<Service> {
        Arc::clone(&self.proxy.service)
    }

    pub(super) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    #[track_caller]
    pub(super) fn counted(&self, line: &str) {
        let metrics = self.metrics();
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

pub(super) fn rcode(answer: &[u8]) -> u8 {
    answer[3] & 0xf
}

pub(super) fn answers(answer: &[u8]) -> u8 {
    answer[7]
}

#[tokio::test]
async fn allowed_names_are_answered_once_from_upstream_and_then_from_the_cache() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    for _ in 0..3 {
        let got = scene.udp(&query("Www.Example.COM", 1)).await.unwrap();
        assert_eq!((rcode(&got), answers(&got)), (0, 1));
        assert_eq!(&got[12..29], &wire("Www.Example.COM")[..]);
    }
    assert_eq!(upstream.asked(), 1);
    scene.counted(r#"dns_queries_total{result="allow",reason="policy",source_group="web"} 3"#);
    scene.counted(r#"neuwerk_dns_cache_hits_total{state="fresh"} 2"#);
    scene.counted("neuwerk_dns_cache_entries 1");
    scene.counted(r#"neuwerk_dns_wait_seconds_count{stage="upstream"} 1"#);
    scene.counted(r#"neuwerk_dns_wait_seconds_count{stage="peers"} 0"#);
}

#[tokio::test]
async fn denied_names_never_reach_an_upstream() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    for name in ["bad.example.com", "example.org", "www.example.com.evil.net"] {
        let got = scene.udp(&query(name, 1)).await.unwrap();
        assert_eq!((rcode(&got), answers(&got)), (3, 0), "{name}");
    }
    let got = scene.udp(&query("www.example.com", 10)).await.unwrap();
    assert_eq!(rcode(&got), 5);
    assert_eq!(upstream.asked(), 0);
    scene.counted(r#"dns_nxdomain_total{source="policy"} 3"#);
    let refusing = Scene::start(&[&upstream], |s| s.denial = Denial::Refused);
    assert_eq!(
        rcode(&refusing.udp(&query("example.org", 1)).await.unwrap()),
        5
    );
    // A refusal does not say that there is no such name.
    let nxdomain = r#"dns_nxdomain_total{source="policy"} "#;
    assert!(!refusing.metrics().contains(nxdomain));
}

/// Writes down what is denied.
#[derive(Default)]
struct Clerk(std::sync::Mutex<Vec<String>>);

impl Granting for Clerk {
    fn grant(&self, told: &Told<'_>) -> Granted {
        NoGrants.grant(told)
    }

    fn denied(&self, denied: &Denied<'_>) {
        let by = (denied.group, denied.rule, denied.revision);
        let line = format!(
            "{} {} {by:?} {}",
            denied.client, denied.name, denied.would_deny
        );
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn denied_names_are_told() {
    let upstream = Server::sound(Duration::ZERO).await;
    let clerk = Arc::new(Clerk::default());
    let scene = Scene::granting(&[&upstream], |_| (), Arc::clone(&clerk) as _);
    for name in ["bad.example.com", "www.example.com", "example.org"] {
        scene.udp(&query(name, 1)).await.unwrap();
    }
    let told = clerk.0.lock().unwrap();
    assert_eq!(
        *told,
        [
            r#"127.0.0.1 bad.example.com (Some("web"), Some("bad"), 1) false"#,
            r#"127.0.0.1 example.org (Some("web"), None, 1) false"#,
        ]
    );
}

/// The cache drops an answer that is too old even to be served when none is to be had, and counts it no more.
#[tokio::test]
async fn what_the_cache_holds_is_what_is_told() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let mut asked = query("www.example.com", 1);
    for id in [1, 64, 2, 128] {
        asked[..2].copy_from_slice(&u16::to_be_bytes(id));
        scene.udp(&asked).await.unwrap();
    }
    scene.counted("neuwerk_dns_cache_entries 1\n");
    assert!(!scene.metrics().contains("neuwerk_dns_cache_bytes 0\n"));
    scene.counted(r#"neuwerk_dns_work_seconds_count{stage="cache"} 2"#);
    scene.counted(r#"neuwerk_dns_work_seconds_count{stage="grant"} 2"#);
    let query = ::dns::Query::parse(&asked).unwrap();
    scene.service().outlive(&::dns::accept::Wanted::of(&query));
    scene.counted("neuwerk_dns_cache_entries 0\n");
    scene.counted("neuwerk_dns_cache_bytes 0\n");
}

#[tokio::test]
async fn a_slow_question_delays_no_other() {
    // It never answers questions for names that begin with `h`.
    let some = |q: &[u8], _| match q[13].eq_ignore_ascii_case(&b'h') {
        true => vec![],
        false => vec![answer(q, [192, 0, 2, 1], 1)],
    };
    let upstream = Server::start(some, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for i in 0..50 {
        let asked = query(&format!("h{i}.example.com"), 1);
        socket.send_to(&asked, scene.address).await.unwrap();
    }
    // Meanwhile others are answered, by policy, by the upstream, and from the cache.
    let denied = scene.udp(&query("example.org", 1)).await.unwrap();
    assert_eq!(rcode(&denied), 3);
    for _ in 0..2 {
        let got = scene.udp(&query("www.example.com", 1)).await.unwrap();
        assert_eq!(answers(&got), 1);
    }
    scene.counted("neuwerk_dns_waiting_queries 50");
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let upstream = Server::sound(Duration::from_millis(200)).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let asked = query("www.example.com", 1);
    let (a, b, c) = tokio::join!(scene.udp(&asked), scene.udp(&asked), scene.udp(&asked));
    for got in [a, b, c] {
        assert_eq!(answers(&got.unwrap()), 1);
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_is_silent_or_fails() {
    let (silent, sound) = (Server::silent().await, Server::sound(Duration::ZERO).await);
    let failing = |q: &[u8], _| {
        let mut failed = answer(q, [0; 4], 0);
        failed[3] |= 2;
        vec![failed]
    };
    let failing = Server::start(failing, |_| vec![], Duration::ZERO).await;
    let soon = |s: &mut Settings| s.upstream_timeout = Duration::from_millis(500);
    let scene = Scene::start(&[&failing, &silent, &sound], soon);
    let got = scene.udp(&query("www.example.com", 1)).await.unwrap();
    assert_eq!((rcode(&got), answers(&got)), (0, 1));
    scene.counted(r#"dns_upstream_mismatch_total{reason="rcode",source_group="web"} 1"#);
    let scene = Scene::start(&[&silent], soon);
    let got = scene.udp(&query("www.example.com", 1)).await.unwrap();
    assert_eq!(rcode(&got), 2);
    scene.counted(r#"dns_upstream_mismatch_total{reason="timeout",source_group="web"} 1"#);
}

/// An answer that expires after a second.
pub(super) fn short_lived(query: &[u8]) -> Vec<u8> {
    let mut out = answer(query, [192, 0, 2, 1], 1);
    let ttl = out.len() - 7;
    out[ttl] = 1;
    out
}

#[tokio::test]
async fn what_has_expired_is_served_at_once_after_a_failure_and_asked_for_behind() {
    let once = |q: &[u8], before| match before {
        0 => vec![short_lived(q)],
        1 => vec![],
        _ => vec![answer(q, [192, 0, 2, 1], 2)],
    };
    let upstream = Server::start(once, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |s| {
        s.upstream_timeout = Duration::from_millis(300);
    });
    let asked = query("www.example.com", 1);
    assert_eq!(answers(&scene.udp(&asked).await.unwrap()), 1);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    // The first waits for the upstream, the others for nothing.
    for _ in 0..50 {
        let got = scene.udp(&asked).await.unwrap();
        assert_eq!((rcode(&got), answers(&got)), (0, 1));
    }
    assert_eq!(upstream.asked(), 2);
    scene.counted(r#"neuwerk_dns_wait_seconds_count{stage="upstream"} 2"#);
    scene.counted(r#"neuwerk_dns_cache_hits_total{state="stale"} 50"#);
    let newer = async {
        while answers(&scene.udp(&asked).await.unwrap()) == 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let newer = tokio::time::timeout(Duration::from_secs(30), newer).await;
    assert!(newer.is_ok(), "it is not asked for again");
    scene.counted(r#"neuwerk_dns_wait_seconds_count{stage="upstream"} 2"#);
}

#[tokio::test]
async fn a_question_that_failed_is_not_asked_again_at_once() {
    let failing = |q: &[u8], _| {
        let mut failed = answer(q, [0; 4], 0);
        failed[3] |= 2;
        vec![failed]
    };
    let upstream = Server::start(failing, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let mut asked = query("www.example.com", 1);
    asked[11] = 1;
    asked.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let first = scene.udp(&asked).await.unwrap();
    let second = scene.udp(&asked).await.unwrap();
    assert_eq!((rcode(&first), rcode(&second)), (2, 2));
    assert_eq!(upstream.asked(), 1);
    let extended = |got: &[u8], code: u8| {
        got.windows(6)
            .any(|w| w[..2] == [0, 15] && w[4..] == [0, code])
    };
    assert!(
        extended(&first, 22) && extended(&second, 13),
        "{first:?} {second:?}"
    );
    // Another type of the same name is another question.
    scene.udp(&query("www.example.com", 28)).await.unwrap();
    assert_eq!(upstream.asked(), 2);
}

/// One that swallows three questions is asked behind the other one, until it answers one that it gets by the way.
#[tokio::test]
async fn an_upstream_that_is_overtaken_is_passed_over_until_it_answers_again() {
    let some = |q: &[u8], before| match before < 3 {
        true => vec![],
        false => vec![answer(q, [192, 0, 2, 1], 1)],
    };
    let dead = Server::start(some, |_| vec![], Duration::ZERO).await;
    let sound = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&dead, &sound], |_| ());
    let ask = async |i| {
        let got = scene.udp(&query(&format!("n{i}.example.com"), 1)).await;
        assert_eq!(answers(&got.unwrap()), 1);
    };
    let suspect = |is: u8| {
        let address = dead.address;
        format!("neuwerk_dns_upstream_suspect{{upstream=\"{address}\"}} {is}\n")
    };
    scene.counted(&suspect(0));
    for i in 0..3 {
        ask(i).await;
    }
    scene.counted(&suspect(1));
    let (dead_at, sound_at) = (dead.address, sound.address);
    scene.counted(&format!(
        r#"neuwerk_dns_upstream_failures_total{{upstream="{dead_at}",reason="slow"}} 3"#
    ));
    scene.counted(&format!(
        r#"neuwerk_dns_upstream_seconds_count{{upstream="{sound_at}"}} 3"#
    ));
    let back = async {
        for i in 3.. {
            ask(i).await;
            if scene.metrics().contains(&suspect(0)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), back).await;
    assert!(waited.is_ok(), "it does not come back");
}

#[tokio::test]
async fn spoofed_answers_are_passed_over() {
    let spoofing = |q: &[u8], _| {
        let good = answer(q, [192, 0, 2, 1], 1);
        let mut other_id = answer(q, [198, 51, 100, 6], 2);
        other_id[1] ^= 1;
        let mut other_name = answer(q, [198, 51, 100, 6], 2);
        other_name[13] = b'x';
        vec![other_id, other_name, vec![], vec![0; 3], good]
    };
    let upstream = Server::start(spoofing, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let got = scene.udp(&query("www.example.com", 1)).await.unwrap();
    assert_eq!(answers(&got), 1);
}

#[tokio::test]
async fn what_is_truncated_or_too_long_or_loses_its_letters_is_asked_over_tcp() {
    for what in ["truncated", "letters", "long"] {
        let udp = move |q: &[u8], _| {
            let mut out = answer(q, [198, 51, 100, 6], 1);
            match what {
                "truncated" => out[2] |= 2,
                // Beyond the size that was asked for.
                "long" => out = answer(q, [198, 51, 100, 6], 80),
                _ => out[12..].make_ascii_lowercase(),
            }
            vec![out]
        };
        let tcp = |q: &[u8]| answer(q, [192, 0, 2, 1], 80);
        let upstream = Server::start(udp, tcp, Duration::ZERO).await;
        let scene = Scene::start(&[&upstream], |_| ());
        let asked = query("www.example.com", 1);
        // Over UDP it is truncated for the client too, who then comes over TCP.
        let got = scene.udp(&asked).await.unwrap();
        assert_eq!((got[2] & 2, answers(&got)), (2, 0), "{what}");
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        for _ in 0..2 {
            pool::write(&mut stream, &asked).await.unwrap();
            assert_eq!(answers(&pool::read(&mut stream, 65_535).await.unwrap()), 80);
        }
    }
}

/// As when the program is replaced just after a client has connected.
#[tokio::test]
async fn what_is_on_its_way_over_tcp_at_the_stop_is_answered() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let asked = query("www.example.com", 1);
    pool::write(&mut stream, &asked).await.unwrap();
    pool::read(&mut stream, 512).await.unwrap();
    let Scene { stop, proxy, .. } = scene;
    drop(stop);
    pool::write(&mut stream, &asked).await.unwrap();
    let got = pool::read(&mut stream, 512).await.unwrap();
    assert_eq!((rcode(&got), answers(&got)), (0, 1));
    // Though the client would stay.
    proxy.stopped().await;
    let ended = pool::read(&mut stream, 512).await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn special_addresses_are_not_passed_on() {
    let rebinding = |q: &[u8], _| vec![answer(q, [169, 254, 169, 254], 1)];
    let upstream = Server::start(rebinding, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let got = scene.udp(&query("www.example.com", 1)).await.unwrap();
    assert_eq!((rcode(&got), answers(&got)), (0, 0));
    scene.counted(r#"neuwerk_dns_filtered_addresses_total{reason="link_local"} 1"#);
    scene.counted("neuwerk_dns_cache_entries 0");
}

#[tokio::test]
async fn nonsense_ends_nothing() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for length in 0..200 {
        socket
            .send_to(&vec![0xc0; length], scene.address)
            .await
            .unwrap();
    }
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
    assert_eq!(
        answers(&scene.udp(&query("www.example.com", 1)).await.unwrap()),
        1
    );
}

#[tokio::test]
async fn clients_are_limited() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |s| {
        s.client_queries_per_second = 1;
        s.client_burst = 3;
    });
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for _ in 0..10 {
        socket
            .send_to(&query("example.org", 1), scene.address)
            .await
            .unwrap();
    }
    let mut got = 0;
    let mut buffer = [0; 512];
    while let Ok(Ok(_)) =
        tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await
    {
        got += 1;
    }
    // One more for each second that a busy machine takes over it.
    assert!((3..9).contains(&got), "{got}");
    scene.counted(&format!(
        r#"dns_queries_total{{result="drop",reason="rate_limit",source_group="default"}} {}"#,
        10 - got
    ));
}

/// Writes down what is granted, and lets answers leave as it is told.
struct Notary {
    told: std::sync::Mutex<Vec<String>>,
    /// Answers may leave.
    open: tokio::sync::watch::Sender<bool>,
}

impl Granting for Notary {
    fn grant(&self, told: &Told<'_>) -> Granted {
        let line = format!(
            "{} {} {} {:?} {}",
            told.group, told.client, told.name, told.addresses, told.ttl_s
        );
        self.told.lock().unwrap().push(line);
        let mut open = self.open.subscribe();
        let is_open = *open.borrow();
        let wait = (!is_open).then(|| {
            Box::pin(async move {
                open.wait_for(|open| *open).await.unwrap();
            }) as _
        });
        Granted {
            for_ms: 60_000,
            wait,
        }
    }
}

#[tokio::test]
async fn no_answer_leaves_before_what_it_tells_is_granted() {
    let upstream = Server::sound(Duration::ZERO).await;
    let notary = Arc::new(Notary {
        told: std::sync::Mutex::default(),
        open: tokio::sync::watch::Sender::new(false),
    });
    let scene = Scene::granting(&[&upstream], |_| (), Arc::clone(&notary) as _);
    let ask = query("www.example.com", 1);
    let early = tokio::time::timeout(Duration::from_millis(200), scene.udp(&ask)).await;
    assert!(early.is_err(), "an answer from upstream left too early");
    let early = tokio::time::timeout(Duration::from_millis(200), scene.udp(&ask)).await;
    assert!(early.is_err(), "an answer from the cache left too early");
    // What tells no address waits for nothing.
    assert_eq!(
        rcode(&scene.udp(&query("example.org", 1)).await.unwrap()),
        3
    );
    notary.open.send_replace(true);
    for _ in 0..3 {
        assert_eq!(answers(&scene.udp(&ask).await.unwrap()), 1);
    }
    scene.counted(r#"neuwerk_dns_wait_seconds_count{stage="peers"} 2"#);
    let told = notary.told.lock().unwrap();
    let line = "web 127.0.0.1 www.example.com [192.0.2.1] ";
    assert!(told.iter().all(|told| told.starts_with(line)), "{told:?}");
    // Two that waited, and one that was then remembered.
    assert_eq!(told.len(), 3, "{told:?}");
}
