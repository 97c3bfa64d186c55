//! Two members over loopback, with real TLS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::beats::WAITING;
use super::*;
use crate::tls::tests::{A, B, World, pins};
use crate::transport::ServiceError;

const C: NodeId = NodeId(0xc);
const SOON: Duration = Duration::from_secs(120);

#[tokio::test]
async fn every_kind_of_request_is_answered() {
    let pair = Pair::new(&World::new()).await;
    for number in 1..=u8::MAX {
        let Some(kind) = Kind::from_u8(number) else {
            continue;
        };
        let answer = pair.call(kind, "hello").await.expect("answered");
        assert_eq!(answer, format!("{A} {kind:?} hello"));
    }
    assert_eq!(
        pair.call(Kind::Report, "refuse").await,
        Err(TransportError::Refused("as asked".into()))
    );
}

#[tokio::test]
async fn the_largest_document_fits_and_more_does_not() {
    let pair = Pair::new(&World::new()).await;
    let largest = usize::try_from(MAX_DOCUMENT_BYTES).expect("64-bit");
    let body = "x".repeat(largest);
    let answer = pair.call(Kind::Http, &body).await.expect("fits");
    assert!(answer.len() > largest);
    let body = "x".repeat(MAX_MESSAGE_BYTES);
    assert!(pair.call(Kind::Http, &body).await.is_err());
}

#[tokio::test]
async fn appends_are_answered_in_order_and_end_with_the_sender() {
    let pair = Pair::new(&World::new()).await;
    let (send, requests) = mpsc::unbounded_channel();
    let mut answers = pair.open_append(requests).await.expect("opens");
    for round in 0..3 {
        for number in 0..500 {
            send.send(Bytes::from(format!("{round}/{number}")))
                .expect("open");
        }
        for number in 0..500 {
            let answer = answers.next().await.expect("open").expect("answered");
            assert_eq!(answer, format!("{A} {round}/{number}"));
        }
    }
    send.send(Bytes::from("refuse")).expect("open");
    assert_eq!(
        answers.next().await,
        Some(Err(TransportError::Refused("as asked".into())))
    );
    drop(send);
    assert_eq!(answers.next().await, None);

    // Whoever does not wait for answers any more takes no more requests either.
    let (send, requests) = mpsc::unbounded_channel();
    let mut answers = pair.open_append(requests).await.expect("opens");
    send.send(Bytes::from("one")).expect("open");
    answers.next().await.expect("open").expect("answered");
    drop(answers);
    send.closed().await;
}

#[tokio::test]
async fn a_snapshot_arrives_whole_or_not_at_all() {
    let pair = Pair::new(&World::new()).await;
    let chunks: Vec<_> = (0..9_u8)
        .map(|i| Bytes::from(vec![i; 256 * 1024]))
        .collect();
    let answer = pair
        .transport
        .send_snapshot(&pair.peer, futures::stream::iter(chunks).boxed())
        .await;
    assert_eq!(
        answer,
        Ok(Bytes::from(format!("{A} 9 chunks, {}", 9 * 256 * 1024)))
    );

    // The sender gives up half-way: the receiver learns that what it has is not all.
    let pair = Pair::new(&World::new()).await;
    let (send, chunks) = mpsc::unbounded_channel();
    let chunks = tokio_stream::wrappers::UnboundedReceiverStream::new(chunks);
    let sending = tokio::spawn(pair.transport.send_snapshot(&pair.peer, chunks.boxed()));
    send.send(Bytes::from("half")).expect("open");
    pair.service.received.notified().await;
    sending.abort();
    pair.service.broken.notified().await;
}

#[tokio::test]
async fn a_snapshot_without_its_end_or_with_another_is_lost() {
    let check = async |parts: Vec<wire::snapshot_part::Part>, good: bool| {
        let parts = parts
            .into_iter()
            .map(|part| Ok(wire::SnapshotPart { part: Some(part) }));
        let chunks: Vec<_> = serve::snapshot_chunks(futures::stream::iter(parts).boxed())
            .collect()
            .await;
        assert_eq!(chunks.iter().all(Result::is_ok), good, "{chunks:?}");
    };
    use wire::snapshot_part::Part::{Chunk, End};
    let chunk = |text: &'static str| Chunk(Bytes::from(text));
    let end = |texts: &[&str]| {
        let mut sum = SnapshotSum::default();
        texts.iter().for_each(|text| sum.add(text.as_bytes()));
        End(sum.end())
    };
    check(vec![end(&[])], true).await;
    check(vec![chunk("a"), chunk("b"), end(&["a", "b"])], true).await;
    check(vec![], false).await;
    check(vec![chunk("a")], false).await;
    check(vec![chunk("a"), end(&["a", "b"])], false).await;
    check(vec![chunk("b"), chunk("a"), end(&["a", "b"])], false).await;
    check(vec![chunk("ab"), end(&["a", "b"])], false).await;
}

#[tokio::test]
async fn an_expired_member_is_served() {
    let days = Duration::from_secs(40 * 24 * 60 * 60);
    let pair = Pair::new(&World::new().aged(days)).await;
    pair.call(Kind::Vote, "hello").await.expect("answered");
    assert_eq!(
        pair.server_trust()
            .alerts()
            .out_of_date
            .load(Ordering::Relaxed),
        1
    );
}

#[tokio::test]
async fn strangers_deliver_nothing() {
    let world = World::new();
    let pair = Pair::new(&world).await;
    let trusting = |identity| Trust::new(&identity, pins(&world, &[A, B])).expect("usable");
    for (trust, why) in [
        (trusting(World::new_keys(&world).identity(A)), "another key"),
        (world.member(C).trust, "no member"),
    ] {
        let stranger = GrpcTransport::new(trust);
        let answer = stranger
            .call(&pair.peer, Kind::Vote, Bytes::new(), SOON)
            .await;
        assert!(
            matches!(answer, Err(TransportError::Unreachable(_))),
            "{why}: {answer:?}"
        );
    }
    // And whoever does not even speak TLS.
    for garbage in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0; 512]] {
        let mut plain = TcpStream::connect(pair.peer.address.as_str())
            .await
            .expect("connects");
        plain.write_all(garbage).await.expect("connected");
        let mut answer = Vec::new();
        // Closed or reset, after an alert at most.
        let _ = plain.read_to_end(&mut answer).await;
        assert!(answer.len() < 16, "{answer:?}");
    }
    assert_eq!(pair.service.calls.load(Ordering::Relaxed), 0);
    pair.call(Kind::Vote, "hello").await.expect("still served");
}

#[tokio::test]
async fn a_server_of_another_key_or_name_gets_nothing() {
    let world = World::new();
    let pair = Pair::new(&world).await;
    // Whoever answers at B's address must be B.
    let wrong = Peer {
        node_id: C,
        address: pair.peer.address.clone(),
    };
    let mut knows_c = pins(&world, &[A, B, C]);
    let trust = Trust::new(&world.identity(A), knows_c.clone()).expect("usable");
    let client = GrpcTransport::new(trust);
    let answer = client.call(&wrong, Kind::Vote, Bytes::new(), SOON).await;
    let Err(TransportError::Unreachable(why)) = answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("not as this member"), "{why}");
    let alerts = client.shared.trust.alerts();
    assert_eq!(alerts.misdirected.load(Ordering::Relaxed), 1);

    knows_c.members.insert(B, Digest([0; 32]));
    let trust = Trust::new(&world.identity(A), knows_c).expect("usable");
    let client = GrpcTransport::new(trust);
    let answer = client
        .call(&pair.peer, Kind::Vote, Bytes::new(), SOON)
        .await;
    let Err(TransportError::Unreachable(why)) = answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("joined with"), "{why}");
    assert_eq!(pair.service.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn removal_cuts_what_is_open() {
    let world = World::new();
    let pair = Pair::new(&world).await;
    let (send, requests) = mpsc::unbounded_channel();
    let mut answers = pair.open_append(requests).await.expect("opens");
    send.send(Bytes::from("one")).expect("open");
    answers.next().await.expect("open").expect("answered");
    pair.server_trust()
        .set_pins(pins(&world, &[B]))
        .expect("usable");
    assert!(matches!(
        answers.next().await,
        None | Some(Err(TransportError::Lost(_)))
    ));
    assert_eq!(pair.server_trust().connections(A), 0);
    let before = pair.service.calls.load(Ordering::Relaxed);
    for kind in [Kind::Vote, Kind::Append] {
        assert!(pair.call(kind, "hello").await.is_err());
    }
    assert_eq!(pair.service.calls.load(Ordering::Relaxed), before);
}

#[tokio::test]
async fn a_forgotten_member_is_not_dialled() {
    let pair = Pair::new(&World::new()).await;
    pair.call(Kind::Vote, "hello").await.expect("answered");
    pair.transport.forget(B);
    assert_eq!(
        pair.call(Kind::Vote, "hello").await,
        Err(TransportError::Unreachable("it was removed".into()))
    );
}

#[tokio::test]
async fn heartbeats_share_a_stream_and_one_that_hangs_holds_up_no_other() {
    let pair = Pair::new(&World::new()).await;
    let many = (0..WAITING).map(|number| {
        let pair = &pair;
        async move {
            let answer = pair.call(Kind::Append, &number.to_string()).await;
            assert_eq!(answer, Ok(format!("{A} Append {number}")));
        }
    });
    futures::future::join_all(many).await;
    let stream = |pair: &Pair| {
        let lines = pair.transport.shared.lines();
        lines.by_node[&B].beats[Lane::Urgent as usize]
            .clone()
            .expect("opened")
    };
    let first = stream(&pair);
    assert!(first.is_open() && !first.is_unknown());
    assert_eq!(
        pair.call(Kind::Append, "refuse").await,
        Err(TransportError::Refused("as asked".into()))
    );
    let hang = Bytes::from("hang");
    let moment = Duration::from_millis(20);
    let hanging = pair.transport.call(&pair.peer, Kind::Append, hang, moment);
    assert_eq!(
        hanging.await,
        Err(TransportError::Lost("no answer in time".into()))
    );
    assert!(!first.is_open());
    pair.call(Kind::Append, "hello").await.expect("answered");
    assert!(stream(&pair).is_open());
}

#[tokio::test]
async fn a_peer_that_comes_back_is_found_again() {
    for kind in [Kind::Vote, Kind::Append] {
        comes_back(kind).await;
    }
}

async fn comes_back(kind: Kind) {
    let mut pair = Pair::new(&World::new()).await;
    pair.call(kind, "hello").await.expect("answered");
    pair.stop().await;
    // What was open breaks, and then nobody is there.
    loop {
        match pair.call(kind, "hello").await {
            Err(TransportError::Unreachable(_)) => break,
            Err(_) => tokio::task::yield_now().await,
            Ok(_) => panic!("nobody is there"),
        }
    }
    pair.start().await;
    while pair.call(kind, "hello").await.is_err() {
        tokio::task::yield_now().await;
    }
    // Under another address too.
    pair.stop().await;
    pair.peer.address = "127.0.0.1:0".into();
    pair.start().await;
    while pair.call(kind, "hello").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn whoever_answers_at_an_address_is_found() {
    let mut pair = Pair::new(&World::new()).await;
    let search = |addresses: &[&str], own: &str| Search {
        addresses: addresses.iter().map(|address| (*address).into()).collect(),
        own: own.into(),
        body: Bytes::from("hello"),
        deadline: SOON,
    };
    let address = pair.peer.address.clone();
    // A name that nobody knows, and a port where nobody listens, cost nothing.
    let addresses = ["no-such-name.invalid:9600", "127.0.0.1:1", &address];
    let found = pair.transport.find(search(&addresses, "")).await;
    assert_eq!(found, [(B, Bytes::from(format!("{A} Find hello")))]);
    let found = pair.transport.find(search(&[&address], &address)).await;
    assert_eq!(found, [], "its own address is passed over");

    // From then on the member is dialled where it was found, until its record says otherwise.
    pair.transport.relocate(B, "127.0.0.1:1", &address);
    assert_eq!(pair.transport.relocated(), [(B, address.clone())]);
    pair.peer.address = "127.0.0.1:1".into();
    pair.call(Kind::Vote, "hello").await.expect("answered");
    pair.peer.address = "127.0.0.1:2".into();
    assert!(pair.call(Kind::Vote, "hello").await.is_err());
    assert_eq!(pair.transport.relocated(), []);
}

#[tokio::test]
async fn a_removed_node_is_told_so_and_nobody_else_is() {
    let world = World::new();
    let pair = Pair::new(&world).await;
    pair.call(Kind::Vote, "hello").await.expect("answered");
    // Forgotten without a word: that may be a member which is behind.
    pair.server_trust()
        .set_pins(pins(&world, &[B]))
        .expect("usable");
    while pair.call(Kind::Vote, "hello").await.is_ok() {}
    assert!(!pair.transport.is_removed());
    let mut removed = pins(&world, &[B]);
    removed.removed.insert(A);
    pair.server_trust().set_pins(removed).expect("usable");
    let told = async {
        while !pair.transport.is_removed() {
            let _ = pair.call(Kind::Vote, "hello").await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, told).await.expect("it is told");
    let search = Search {
        addresses: vec![pair.peer.address.clone()],
        own: String::new(),
        body: Bytes::new(),
        deadline: SOON,
    };
    assert_eq!(pair.transport.find(search).await, []);
    // A word that was wrong does not outlive a handshake that succeeds.
    pair.server_trust()
        .set_pins(pins(&world, &[A, B]))
        .expect("usable");
    let let_in = async {
        while pair.call(Kind::Vote, "hello").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, let_in)
        .await
        .expect("it is let in");
    assert!(!pair.transport.is_removed());
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_lost() {
    let pair = Pair::new(&World::new()).await;
    let answer = pair
        .transport
        .call(
            &pair.peer,
            Kind::Report,
            Bytes::from("hang"),
            Duration::from_millis(20),
        )
        .await;
    assert_eq!(
        answer,
        Err(TransportError::Lost("no answer in time".into()))
    );
}

#[tokio::test]
async fn an_unknown_kind_is_refused() {
    let pair = Pair::new(&World::new()).await;
    let mut client = pair
        .transport
        .shared
        .client(&pair.peer, Lane::Bulk)
        .expect("not forgotten");
    let answer = client
        .call(wire::CallRequest {
            kind: 200,
            body: Bytes::new(),
        })
        .await
        .expect("answered");
    let refused = outcome(answer.into_inner()).expect_err("refused");
    assert!(refused.to_string().contains("kind 200"), "{refused}");
}

/// A's transport, and B's server.
struct Pair {
    transport: Arc<GrpcTransport>,
    peer: Peer,
    server: Arc<GrpcTransport>,
    service: Arc<Echo>,
    stop: CancellationToken,
    serving: Option<tokio::task::JoinHandle<Result<(), tonic::transport::Error>>>,
}

impl Pair {
    async fn new(world: &World) -> Self {
        let mut pair = Pair {
            transport: GrpcTransport::new(world.member(A).trust),
            peer: Peer {
                node_id: B,
                address: "127.0.0.1:0".into(),
            },
            server: GrpcTransport::new(world.member(B).trust),
            service: Arc::default(),
            stop: CancellationToken::new(),
            serving: None,
        };
        pair.start().await;
        pair
    }

    async fn start(&mut self) {
        let listener = TcpListener::bind(self.peer.address.as_str())
            .await
            .expect("binds");
        let address: SocketAddr = listener.local_addr().expect("bound");
        self.peer.address = address.to_string();
        self.stop = CancellationToken::new();
        let service = Arc::new(Served(Arc::clone(&self.service)));
        self.serving = Some(tokio::spawn(self.server.serve(
            listener,
            service,
            self.stop.clone(),
        )));
    }

    fn server_trust(&self) -> &Trust {
        &self.server.shared.trust
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        let serving = self.serving.take().expect("it was started");
        serving.await.expect("no panic").expect("a clean end");
    }

    async fn call(&self, kind: Kind, body: &str) -> Result<String, TransportError> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let answer = self.transport.call(&self.peer, kind, body, SOON).await?;
        Ok(String::from_utf8(answer.to_vec()).expect("text"))
    }

    async fn open_append(
        &self,
        requests: mpsc::UnboundedReceiver<Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(requests);
        self.transport
            .open_append(&self.peer, requests.boxed(), SOON)
            .await
    }
}

/// Says who asked and what.
#[derive(Default)]
struct Echo {
    calls: AtomicUsize,
    /// A chunk of a snapshot has come.
    received: tokio::sync::Notify,
    /// A snapshot has broken off.
    broken: tokio::sync::Notify,
}

/// A handle on it that a server can own.
struct Served(Arc<Echo>);

impl Service for Served {
    fn handle(
        &self,
        from: NodeId,
        kind: Kind,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match body.as_ref() {
                b"refuse" => Err(ServiceError("as asked".into())),
                b"hang" => std::future::pending().await,
                body => {
                    let said = format!("{from} {kind:?} ");
                    Ok(Bytes::from([said.as_bytes(), body].concat()))
                }
            }
        })
    }

    fn handle_append(
        &self,
        from: NodeId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, ServiceError>> {
        let answers = requests.map(move |body| match body.as_ref() {
            b"refuse" => Err(ServiceError("as asked".into())),
            body => {
                let said = format!("{from} ");
                Ok(Bytes::from([said.as_bytes(), body].concat()))
            }
        });
        answers.boxed()
    }

    fn handle_snapshot(
        &self,
        from: NodeId,
        chunks: BoxStream<'static, Result<Bytes, TransportError>>,
    ) -> BoxFuture<'static, Result<Bytes, ServiceError>> {
        let this = Arc::clone(&self.0);
        Box::pin(async move {
            let (mut count, mut bytes) = (0, 0);
            let mut chunks = chunks;
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok(chunk) => {
                        count += 1;
                        bytes += chunk.len();
                        this.received.notify_one();
                    }
                    Err(error) => {
                        this.broken.notify_one();
                        return Err(ServiceError(error.to_string()));
                    }
                }
            }
            Ok(Bytes::from(format!("{from} {count} chunks, {bytes}")))
        })
    }
}
