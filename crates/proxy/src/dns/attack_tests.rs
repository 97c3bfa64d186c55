//! Clients that take all they can get, and another one whose queries go on all the same.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::tests::{Scene, Server, answer, answers, query, rcode, short_lived};
use super::*;

const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// Answers all but names that begin with `dead`.
async fn partly_dead() -> Server {
    let answers = |q: &[u8], _| match q[13..17].eq_ignore_ascii_case(b"dead") {
        true => vec![],
        false => vec![answer(q, [192, 0, 2, 1], 1)],
    };
    Server::start(answers, |_| vec![], Duration::ZERO).await
}

/// The other client: a name in the cache, one that is not, and both over TCP.
async fn goes_on(scene: &Scene, fresh: &str) {
    for name in ["cached.example.com", fresh] {
        let got = scene.udp(&query(name, 1)).await.unwrap();
        assert_eq!((rcode(&got), answers(&got)), (0, 1), "{name}");
    }
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    for name in ["cached.example.com", &format!("tcp-{fresh}")] {
        pool::write(&mut stream, &query(name, 1)).await.unwrap();
        let got = pool::read(&mut stream, 65_535).await.unwrap();
        assert_eq!((rcode(&got), answers(&got)), (0, 1), "{name}");
    }
}

async fn attacker() -> UdpSocket {
    UdpSocket::bind((ATTACKER, 0)).await.unwrap()
}

#[tokio::test]
async fn a_client_beyond_its_limit_starves_no_other() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |s| {
        s.client_queries_per_second = 1;
        s.client_burst = 100;
    });
    goes_on(&scene, "before.example.com").await;
    let socket = attacker().await;
    for i in 0..1_000 {
        let asked = query(&format!("h{i}.example.com"), 1);
        socket.send_to(&asked, scene.address).await.unwrap();
        tokio::task::yield_now().await;
    }
    goes_on(&scene, "after.example.com").await;
    // A bucket has filled by one or two meanwhile.
    assert!(upstream.asked() <= 100 + 10 + 4, "{}", upstream.asked());
}

/// Questions that are not answered stay under way until they time out: those of the attacker are a part
/// of what there may be.
#[tokio::test]
async fn ten_thousand_names_at_a_dead_upstream_starve_no_other() {
    let upstream = partly_dead().await;
    let scene = Scene::start(&[&upstream], |s| {
        s.upstream_timeout = Duration::from_secs(600);
    });
    goes_on(&scene, "before.example.com").await;
    let socket = attacker().await;
    let mut buffer = [0; 512];
    let mut failed = 0;
    for i in 0..10_000 {
        let asked = query(&format!("dead{i}.example.com"), 1);
        socket.send_to(&asked, scene.address).await.unwrap();
        tokio::task::yield_now().await;
        while let Ok(read) = socket.try_recv(&mut buffer) {
            assert_eq!(rcode(&buffer[..read]), 2);
            failed += 1;
        }
    }
    assert!(
        failed > 1_000,
        "beyond its part it is told at once: {failed}"
    );
    goes_on(&scene, "after.example.com").await;
    scene.counted("neuwerk_dns_waiting_queries 910");
}

/// Whoever has no place left to wait in gets what has expired.
#[tokio::test]
async fn without_room_to_wait_an_expired_answer_is_served() {
    let short = |q: &[u8], _| match q[13..17].eq_ignore_ascii_case(b"dead") {
        true => vec![],
        false => vec![short_lived(q)],
    };
    let upstream = Server::start(short, |_| vec![], Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |s| {
        s.upstream_timeout = Duration::from_secs(600);
    });
    let asked = query("www.example.com", 1);
    assert_eq!(answers(&scene.udp(&asked).await.unwrap()), 1);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut buffer = [0; 512];
    for i in 0.. {
        let asked = query(&format!("dead{i}.example.com"), 1);
        socket.send_to(&asked, scene.address).await.unwrap();
        tokio::task::yield_now().await;
        if let Ok(read) = socket.try_recv(&mut buffer) {
            assert_eq!(rcode(&buffer[..read]), 2);
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let got = scene.udp(&asked).await.unwrap();
    assert_eq!((rcode(&got), answers(&got)), (0, 1));
    assert_eq!(
        rcode(&scene.udp(&query("new.example.com", 1)).await.unwrap()),
        2
    );
    scene.counted(r#"neuwerk_dns_cache_hits_total{state="stale"} 1"#);
}

#[tokio::test]
async fn connections_that_say_nothing_starve_no_other() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    goes_on(&scene, "before.example.com").await;
    let mut open = Vec::new();
    for i in 0..400 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((ATTACKER, 0).into()).unwrap();
        let mut stream = socket.connect(scene.address).await.unwrap();
        // Half of them begin with a query that has no end.
        if i % 2 == 0 {
            let _ = stream.write_all(&[0, 40, 1]).await;
        }
        open.push(stream);
    }
    goes_on(&scene, "after.example.com").await;
    let mut closed = 0;
    for stream in &mut open[100..] {
        closed += usize::from(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    assert_eq!(
        closed, 300,
        "those beyond the client's part are closed at once"
    );
    let metrics = scene.metrics();
    assert!(
        metrics.contains("neuwerk_dns_refused_connections_total 38"),
        "{metrics}"
    );
}

/// One byte a second is no query: the connection ends when the time for a whole one is over.
#[tokio::test]
async fn connections_that_trickle_end() {
    let upstream = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&upstream], |_| ());
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let asked = [&[0, 40][..], &query("www.example.com", 1)].concat();
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        for byte in asked {
            if writer.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let end = async { reader.read(&mut [0]).await };
    tokio::select! {
        () = trickle => panic!("it is waited for until the end"),
        end = end => assert!(matches!(end, Ok(0) | Err(_))),
    }
}

/// A client that is gone when its answer comes, so that the host says so, and an upstream that is not there.
#[tokio::test]
async fn what_the_network_refuses_ends_nothing() {
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let sound = Server::sound(Duration::ZERO).await;
    let scene = Scene::start(&[&sound], |s| {
        let address = gone.local_addr().unwrap();
        s.upstreams.insert(0, Upstream { address, tls: None });
    });
    drop(gone);
    for i in 0..50 {
        let socket = attacker().await;
        let asked = query(&format!("h{i}.example.com"), 1);
        socket.send_to(&asked, scene.address).await.unwrap();
        socket
            .send_to(&query("bad.example.com", 1), scene.address)
            .await
            .unwrap();
        drop(socket);
        goes_on(&scene, &format!("a{i}.example.com")).await;
    }
    let unreachable = r#"dns_upstream_mismatch_total{reason="unreachable",source_group="web"}"#;
    scene.counted(unreachable);
}
