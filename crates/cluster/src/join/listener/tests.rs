//! Joiners of every kind at a real listener, over pipes with a clock that the test moves, and once over loopback.

use rustls::pki_types::ServerName;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::*;
use crate::identity::NodeKey;
use crate::join::client::{self, JoinError, JoinOptions};
use crate::join::protocol::tests::{application, grant, secret};
use crate::join::secret::Held;

#[tokio::test]
async fn a_joiner_with_the_secret_becomes_a_member() {
    let door = Door::new(&["right"], granting());
    let key = NodeKey::create().expect("makes one");
    let granted = door.knock(&key, "right").await.expect("granted");
    assert_eq!(crate::ca::spki_of(&granted.certificate), Some(key.spki()));
    assert_eq!(door.counts(), [1, 0, 0, 0]);
}

#[tokio::test]
async fn the_same_request_again_is_the_same_request() {
    let (seen, mut requests) = mpsc::unbounded_channel();
    let enrol: Enrol = Arc::new(move |request| {
        seen.send(request.reservation().expect("well formed"))
            .expect("the test listens");
        let granted = grant(&request);
        Box::pin(async move { Ok(granted) })
    });
    let door = Door::new(&["right"], enrol);
    let key = NodeKey::create().expect("makes one");
    for _ in 0..2 {
        door.knock(&key, "right").await.expect("granted");
    }
    let first = requests.recv().await.expect("one");
    assert_eq!(Some(&first), requests.recv().await.as_ref());
    assert_eq!(first.spki, key.spki());
}

#[tokio::test]
async fn a_wrong_secret_is_turned_away_without_a_word() {
    let door = Door::new(&["right"], unreachable());
    let key = NodeKey::create().expect("makes one");
    let error = door.knock(&key, "wrong").await.expect_err("turned away");
    assert!(matches!(
        error,
        JoinError::Protocol(ProtocolError::ClusterUnproved)
    ));
    assert_eq!(door.counts(), [0, 0, 1, 0]);
}

#[tokio::test]
async fn a_refusal_is_told_to_who_has_proved_its_secret() {
    let refusal = EnrolRefusal {
        retry: true,
        reason: "there is no leader now".into(),
    };
    let answer = refusal.clone();
    let door = Door::new(
        &["right"],
        Arc::new(move |_| {
            let answer = answer.clone();
            Box::pin(async move { Err(answer) })
        }),
    );
    let key = NodeKey::create().expect("makes one");
    for _ in 0..10 {
        // Never throttled: it has done nothing wrong.
        let error = door.knock(&key, "right").await.expect_err("refused");
        assert!(matches!(error, JoinError::Refused(told) if told == refusal));
    }
    assert_eq!(door.counts(), [0, 10, 0, 0]);
}

#[tokio::test]
async fn a_secret_out_of_its_time_admits_nobody() {
    let mut expired = secret("right");
    expired.valid_until_ms = Some(1);
    let door = Door::with(vec![expired], unreachable());
    let key = NodeKey::create().expect("makes one");
    assert!(door.knock(&key, "right").await.is_err());
    assert_eq!(door.counts(), [0, 0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn slow_and_silent_peers_are_cut_off() {
    // Before TLS, in the middle of TLS, and after it.
    let door = Door::new(&["right"], unreachable());
    for partial in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(partial).await.expect("room in the pipe");
        door.listener.attend(far, source(1)).await;
    }
    let (near, far) = tokio::io::duplex(1 << 16);
    let (_silent, ()) = tokio::join!(tls(near), door.listener.attend(far, source(2)));
    assert_eq!(door.counts(), [0, 0, 3, 0]);
    assert_eq!(door.listener.slots.available_permits(), MAX_ENROLMENTS);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_answer_holds_no_place_for_ever() {
    let door = Door::new(&["right"], Arc::new(|_| Box::pin(std::future::pending())));
    let key = NodeKey::create().expect("makes one");
    let error = door.knock(&key, "right").await.expect_err("gives up");
    assert!(matches!(error, JoinError::Closed(_)), "{error:?}");
    assert_eq!(door.listener.slots.available_permits(), MAX_ENROLMENTS);
}

#[tokio::test]
async fn garbage_is_turned_away() {
    let door = Door::new(&["right"], unreachable());
    for (number, bytes) in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 20_000]]
        .into_iter()
        .enumerate()
    {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(bytes).await.expect("room in the pipe");
        drop(near);
        let number = u8::try_from(number).expect("few");
        door.listener.attend(far, source(number)).await;
    }
    // TLS, but then no protocol.
    for (number, bytes) in [&b"hello hello"[..], &[0, 0, 0, 0], &[0xff; 20_000]]
        .into_iter()
        .enumerate()
    {
        let (near, far) = tokio::io::duplex(1 << 16);
        let number = u8::try_from(number).expect("few");
        let speak = async {
            let mut stream = tls(near).await;
            // The listener may hang up on the way.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            answer
        };
        let (answer, ()) = tokio::join!(speak, door.listener.attend(far, source(10 + number)));
        assert!(answer.is_empty(), "strangers are told nothing");
    }
    assert_eq!(door.counts(), [0, 0, 6, 0]);
}

#[tokio::test]
async fn other_protocols_are_not_for_this_port() {
    let door = Door::new(&["right"], unreachable());
    for offered in [
        vec![],
        vec![b"h2".to_vec()],
        vec![crate::tls::ALPN_CLUSTER.to_vec()],
    ] {
        let mut config = client::client_config();
        config.alpn_protocols = offered;
        let (near, far) = tokio::io::duplex(1 << 16);
        let connector = TlsConnector::from(Arc::new(config));
        let (_, ()) = tokio::join!(
            connector.connect(name(), near),
            door.listener.attend(far, source(1))
        );
    }
    assert_eq!(door.counts(), [0, 0, 3, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_bounded() {
    let door = Door::new(&["right"], unreachable());
    let mut ends = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (near, far) = tokio::io::duplex(1 << 10);
        ends.push(near);
        let listener = Arc::clone(&door.listener);
        tasks.spawn(async move { listener.attend(far, source(number)).await });
    }
    tokio::task::yield_now().await;
    assert_eq!(door.listener.slots.available_permits(), 0);
    tasks.join_all().await;
    assert_eq!(door.counts(), [0, 0, 4, 96]);
    assert_eq!(door.listener.slots.available_permits(), MAX_ENROLMENTS);

    // One source never takes every place, and waits longer and longer for its failures.
    let one = source(200);
    let held: Vec<_> = (0..3).map(|_| door.listener.open(one.ip())).collect();
    assert_eq!(held.iter().flatten().count(), MAX_PER_SOURCE);
    drop(held);
    let now = Instant::now();
    for _ in 0..8 {
        door.listener.throttle().close(one.ip(), false, now);
    }
    assert!(door.listener.open(one.ip()).is_none());
    assert!(door.listener.open(source(201).ip()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_slow_connections_hold_four_places_for_ten_seconds() {
    let door = Door::new(&["right"], granting());
    let mut ends = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    let started = tokio::time::Instant::now();
    for number in 0..1_000_u32 {
        let (mut near, far) = tokio::io::duplex(256);
        // Half of them say nothing, half begin a handshake that never ends.
        if number % 2 == 0 {
            near.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("room");
        }
        ends.push(near);
        let listener = Arc::clone(&door.listener);
        let [_, a, b, c] = number.to_be_bytes();
        let source = SocketAddr::from(([10, a, b, c], 40_000));
        tasks.spawn(async move { listener.attend(far, source).await });
    }
    tokio::task::yield_now().await;
    assert_eq!(door.listener.slots.available_permits(), 0);
    tasks.join_all().await;
    assert_eq!(started.elapsed(), DEADLINE);
    assert_eq!(door.counts(), [0, 0, 4, 996]);
    // Then the next one is let in as if nothing had been.
    let key = NodeKey::create().expect("makes one");
    door.knock(&key, "right").await.expect("granted");
    assert_eq!(door.listener.slots.available_permits(), MAX_ENROLMENTS);
}

#[tokio::test]
async fn every_refusal_that_is_news_is_told() {
    let (told, mut refusals) = mpsc::unbounded_channel();
    let refused: Enrol = Arc::new(|_| {
        Box::pin(async {
            Err(EnrolRefusal {
                retry: true,
                reason: "the join credential is used up".into(),
            })
        })
    });
    let secrets: Secrets = Arc::new(|| Ok(vec![secret("right")]));
    let on_refusal: OnRefusal = Box::new(move |source, reason| {
        told.send((source, reason)).expect("the test listens");
    });
    let listener = JoinListener::with(secrets, None, refused, Some(on_refusal)).expect("usable");
    let door = Door { listener };
    let key = NodeKey::create().expect("makes one");
    for secret in ["right", "right", "wrong", "wrong"] {
        assert!(door.knock(&key, secret).await.is_err());
    }
    let mut reasons = Vec::new();
    while let Ok((from, reason)) = refusals.try_recv() {
        assert_eq!(from, source(1));
        reasons.push(reason);
    }
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons[0].ends_with("the join credential is used up"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("another bootstrap secret"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("1 other"), "{reasons:?}");
}

#[tokio::test]
async fn a_proof_relayed_over_two_connections_admits_nobody() {
    let door = Door::new(&["right"], unreachable());
    let key = NodeKey::create().expect("makes one");
    let (joiner_end, middle_near) = tokio::io::duplex(1 << 16);
    let (middle_far, listener_end) = tokio::io::duplex(1 << 16);
    let middle = TlsAcceptor::from(Arc::new(server_config().expect("usable")));
    let relay = async {
        let mut near = middle.accept(middle_near).await.expect("a joiner");
        let mut far = tls(middle_far).await;
        // Ends when either side hangs up.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    };
    let connector = connector();
    let joiner = client::enrol(
        &connector,
        joiner_end,
        name(),
        vec![secret("right")],
        application(&key),
    );
    let (outcome, (), ()) =
        tokio::join!(joiner, relay, door.listener.attend(listener_end, source(1)));
    assert!(matches!(
        outcome,
        Err(JoinError::Protocol(ProtocolError::ClusterUnproved))
    ));
    assert_eq!(door.counts(), [0, 0, 1, 0]);
}

#[tokio::test]
async fn joining_goes_on_over_loopback_until_it_succeeds() {
    let door = Door::new(&["right"], granting());
    // A port where nobody answers, a name that is empty, and the listener's, given as the one below it.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(Arc::clone(&door.listener).serve(listener, stop.clone()));
    let key = NodeKey::create().expect("makes one");
    let (failed, mut failures) = mpsc::unbounded_channel();
    let options = JoinOptions {
        addresses: vec![
            "127.0.0.1:1".into(),
            ":1".into(),
            format!("127.0.0.1:{}", port - 1),
        ],
        own: Vec::new(),
        held: Arc::new(|| {
            Ok(Held {
                secrets: vec![secret("right")],
                tokens: Vec::new(),
            })
        }),
        application: application(&key),
        on_failure: Box::new(move |address, error| {
            failed
                .send((address.to_owned(), error.to_string()))
                .expect("the test listens");
        }),
    };
    let granted = client::join(&options).await;
    assert_eq!(crate::ca::spki_of(&granted.certificate), Some(key.spki()));
    let mut told = Vec::new();
    while let Ok((address, error)) = failures.try_recv() {
        assert!(!error.is_empty());
        told.push(address);
    }
    assert!(told.contains(&"127.0.0.1:1".to_owned()), "{told:?}");
    assert!(told.contains(&":1".to_owned()), "{told:?}");
    stop.cancel();
    serving.await.expect("no panic");
}

/// A listener, and a way to it.
struct Door {
    listener: Arc<JoinListener>,
}

impl Door {
    fn new(secrets: &[&str], enrol: Enrol) -> Self {
        Self::with(secrets.iter().map(|name| secret(name)).collect(), enrol)
    }

    fn with(secrets: Vec<Secret>, enrol: Enrol) -> Self {
        let secrets: Secrets = Arc::new(move || Ok(secrets.clone()));
        Door {
            listener: JoinListener::new(secrets, enrol).expect("usable"),
        }
    }

    async fn knock(&self, key: &NodeKey, with: &str) -> Result<EnrolGrant, JoinError> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let connector = connector();
        let (outcome, ()) = tokio::join!(
            client::enrol(
                &connector,
                near,
                name(),
                vec![secret(with)],
                application(key)
            ),
            self.listener.attend(far, source(1))
        );
        outcome
    }

    /// Granted, refused, failed, throttled.
    fn counts(&self) -> [u64; 4] {
        let counters = self.listener.counters();
        let JoinCounters {
            granted,
            refused,
            failed,
            throttled,
        } = &*counters;
        [granted, refused, failed, throttled].map(|count| count.load(Ordering::Relaxed))
    }
}

fn granting() -> Enrol {
    Arc::new(|request| {
        let granted = grant(&request);
        Box::pin(async move { Ok(granted) })
    })
}

fn unreachable() -> Enrol {
    Arc::new(|_| panic!("nobody here has proved a secret"))
}

fn connector() -> TlsConnector {
    TlsConnector::from(Arc::new(client::client_config()))
}

async fn tls(stream: DuplexStream) -> tokio_rustls::client::TlsStream<DuplexStream> {
    connector().connect(name(), stream).await.expect("TLS")
}

fn name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into())
}

fn source(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 40_000))
}
