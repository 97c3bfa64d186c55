//! Attempts on a wire that the test controls: cut, relayed, replayed, forged.

mod token;

use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::ca::{Ca, Purpose};
use crate::identity::NodeKey;

const CLUSTER: ClusterId = ClusterId([3; 16]);

#[test]
fn a_joiner_with_the_secret_is_let_in() {
    let mut attempt = Attempt::new("right");
    let request = attempt.request().expect("proved").expect("whole");
    assert_eq!(request.csr, attempt.application.csr);
    assert_eq!(request.addresses, attempt.application.addresses);
    assert_eq!(
        request.credential,
        Credential::Bootstrap { kid: "k".into() }
    );
    let grant = grant(&request);
    attempt.acceptor.answer(Ok(grant.clone()));
    assert_eq!(
        attempt.outcome(),
        Ok(Some(Outcome::Granted(Box::new(grant))))
    );
}

#[test]
fn messages_may_come_in_any_pieces() {
    for size in [1, 2, 3, 5, 7, 100] {
        let mut attempt = Attempt::new("right");
        attempt.piece = size;
        let request = attempt.request().expect("proved").expect("whole");
        attempt.acceptor.answer(Ok(grant(&request)));
        assert!(matches!(attempt.outcome(), Ok(Some(Outcome::Granted(_)))));
    }
}

#[test]
fn any_of_several_secrets_will_do() {
    for (joiner, acceptor) in [
        (&["right"][..], &["old", "right"][..]),
        (&["old", "right"], &["right", "new"]),
        (&["new", "old"], &["old"]),
    ] {
        let mut attempt = Attempt::with(joiner, acceptor);
        let request = attempt.request().expect("proved").expect("whole");
        let shared = joiner.iter().find(|name| acceptor.contains(name));
        let text = shared.expect("one is shared");
        let index = acceptor.iter().position(|name| name == text);
        assert_eq!(attempt.acceptor.secrets[index.expect("is there")].kid, "k");
        assert!(matches!(request.credential, Credential::Bootstrap { .. }));
    }
}

#[test]
fn the_cluster_proves_first_and_a_joiner_with_another_secret_says_nothing_more() {
    for acceptor in [&["other"][..], &[]] {
        let mut attempt = Attempt::with(&["right"], acceptor);
        assert_eq!(attempt.request(), Err(ProtocolError::ClusterUnproved));
        assert!(attempt.joiner.poll_transmit().is_none());
        assert!(attempt.acceptor.has_proved());
    }
}

#[test]
fn a_joiner_without_the_secret_is_not_let_in() {
    let mut attempt = Attempt::new("right");
    let hello = attempt.joiner.poll_transmit().expect("begins");
    attempt.acceptor.handle_input(&hello).expect("a hello");
    // It has seen the cluster's proof, and can only guess its own.
    let challenge = attempt.acceptor.poll_transmit().expect("a challenge");
    let seen = wire::Challenge::decode(&challenge[4..]).expect("our own");
    for proof in [seen.proofs[0].clone(), Vec::new(), vec![0; 32], vec![0; 33]] {
        let mut acceptor = Attempt::new("right").acceptor;
        acceptor.handle_input(&hello).expect("a hello");
        let enrol = wire::Enrol {
            proof,
            csr: attempt.application.csr.clone(),
            ..Default::default()
        };
        assert_eq!(
            acceptor.handle_input(&frame(&enrol)),
            Err(ProtocolError::JoinerUnproved)
        );
        assert!(acceptor.poll_transmit().is_some(), "the challenge");
        acceptor.answer(Err(refusal()));
        assert!(acceptor.poll_transmit().is_none(), "and nothing else");
    }
}

#[test]
fn a_relayed_proof_is_worth_nothing() {
    // Somebody in the middle holds a connection with each side, and passes everything on.
    let mut attempt = Attempt::new("right");
    attempt.acceptor.binding.exporter = [0xee; 32];
    assert_eq!(attempt.request(), Err(ProtocolError::ClusterUnproved));

    // Even a joiner that skips its check gives a proof that fits its own connection only.
    let mut near = Attempt::new("right");
    let request = near.pass_to_enrol();
    let mut far = Attempt::new("right").acceptor;
    far.binding.exporter = [0xee; 32];
    far.handle_input(&near.hello).expect("a hello");
    assert_eq!(
        far.handle_input(&request),
        Err(ProtocolError::JoinerUnproved)
    );
}

#[test]
fn a_replayed_transcript_is_worth_nothing() {
    let mut attempt = Attempt::new("right");
    let enrol = attempt.pass_to_enrol();
    // The same connection even: a new nonce alone is enough.
    let mut again = Attempt::new("right").acceptor;
    again.binding.nonce = [0xaa; 32];
    again.handle_input(&attempt.hello).expect("a hello");
    assert_eq!(
        again.handle_input(&enrol),
        Err(ProtocolError::JoinerUnproved)
    );
    // And a challenge replayed to a joiner with a new nonce.
    let mut joiner = Attempt::new("right").joiner;
    joiner.binding.nonce = [0xaa; 32];
    assert_eq!(
        joiner.handle_input(&attempt.challenge),
        Err(ProtocolError::ClusterUnproved)
    );
}

#[test]
fn a_request_for_another_key_is_worth_nothing() {
    let mut attempt = Attempt::new("right");
    let enrol = attempt.pass_to_enrol();
    let mut swapped = wire::Enrol::decode(&enrol[4..]).expect("our own");
    swapped.csr = NodeKey::create().expect("makes one").request().to_vec();
    assert_eq!(
        attempt.acceptor.handle_input(&frame(&swapped)),
        Err(ProtocolError::Request)
    );
}

#[test]
fn only_p256_requests_of_bounded_text_are_taken() {
    let check = |change: &dyn Fn(&mut Application), error: ProtocolError| {
        let mut attempt = Attempt::new("right");
        change(&mut attempt.application);
        let (presented, binding) = (attempt.joiner.presented.clone(), attempt.joiner.binding);
        attempt.joiner = Joiner::new(presented, attempt.application.clone(), binding);
        assert_eq!(attempt.request(), Err(error));
    };
    check(&|a| a.csr = b"hello".to_vec(), ProtocolError::Request);
    check(&|a| a.csr.push(0), ProtocolError::Request);
    check(&|a| a.csr.truncate(50), ProtocolError::Request);
    let long = ProtocolError::Malformed("a text is too long");
    check(&|a| a.name = "x".repeat(257), long.clone());
    check(&|a| a.addresses.cluster = "x".repeat(257), long);
    let large = ProtocolError::TooLarge {
        limit: MAX_REQUEST_BYTES,
    };
    check(&|a| a.name = "x".repeat(16 * 1024), large);
}

#[test]
fn too_large_is_refused_before_it_is_read() {
    let large = Err(ProtocolError::TooLarge {
        limit: MAX_REQUEST_BYTES,
    });
    for prefix in [u32::MAX, 1 << 20, 16 * 1024 - 3] {
        let mut acceptor = Attempt::new("right").acceptor;
        assert_eq!(acceptor.handle_input(&prefix.to_be_bytes()), large);
    }
    let mut acceptor = Attempt::new("right").acceptor;
    let fits = u32::try_from(MAX_REQUEST_BYTES - 4).expect("small");
    assert_eq!(acceptor.handle_input(&fits.to_be_bytes()), Ok(None));
    assert_eq!(acceptor.handle_input(&vec![0; MAX_REQUEST_BYTES]), large);
}

#[test]
fn truncation_waits_and_garbage_ends() {
    let hello = Attempt::new("right")
        .joiner
        .poll_transmit()
        .expect("begins");
    for end in 0..hello.len() {
        let mut acceptor = Attempt::new("right").acceptor;
        assert_eq!(acceptor.handle_input(&hello[..end]), Ok(None), "{end}");
        assert!(acceptor.poll_transmit().is_none());
        assert!(!acceptor.has_proved());
    }
    for garbage in [
        &b"\0\0\0\x04\xff\xff\xff\xff"[..],
        b"\0\0\0\0",
        b"\0\0\0\x02\x0a\x00",
    ] {
        let mut acceptor = Attempt::new("right").acceptor;
        assert!(matches!(
            acceptor.handle_input(garbage),
            Err(ProtocolError::Malformed(_))
        ));
        assert!(acceptor.poll_transmit().is_none());
    }
}

#[test]
fn nothing_may_follow_the_last_message() {
    let mut attempt = Attempt::new("right");
    let mut enrol = attempt.pass_to_enrol();
    enrol.push(0);
    assert_eq!(
        attempt.acceptor.handle_input(&enrol),
        Err(ProtocolError::Trailing)
    );
}

#[test]
fn a_join_token_is_refused_where_none_are_taken() {
    let hello = wire::Hello {
        nonce: vec![1; 32],
        csr_sha256: vec![2; 32],
        credential: Some(wire::hello::Credential::Token(wire::JoinToken {
            id: vec![3; 16],
        })),
    };
    assert!(matches!(
        Attempt::new("right").acceptor.handle_input(&frame(&hello)),
        Err(ProtocolError::UnknownToken(_))
    ));
}

#[test]
fn a_refusal_reaches_who_has_proved_its_secret() {
    let mut attempt = Attempt::new("right");
    attempt.request().expect("proved").expect("whole");
    attempt.acceptor.answer(Err(refusal()));
    assert_eq!(attempt.outcome(), Ok(Some(Outcome::Refused(refusal()))));
}

#[test]
fn a_grant_for_another_key_or_node_is_not_taken() {
    let check = |spoil: &dyn Fn(&mut EnrolGrant), error: ProtocolError| {
        let mut attempt = Attempt::new("right");
        let request = attempt.request().expect("proved").expect("whole");
        let mut spoiled = grant(&request);
        spoil(&mut spoiled);
        attempt.acceptor.answer(Ok(spoiled));
        assert_eq!(attempt.outcome(), Err(error));
    };
    check(&|g| g.node_id = NodeId(1), ProtocolError::Issued);
    check(
        &|g| g.cluster_id = ClusterId([0; 16]),
        ProtocolError::Issued,
    );
    check(&|g| g.authorities.clear(), ProtocolError::Issued);
    check(&|g| g.certificate = vec![1, 2, 3], ProtocolError::Issued);
    let other = EnrolRequest {
        csr: NodeKey::create().expect("makes one").request().to_vec(),
        name: String::new(),
        addresses: Addresses::default(),
        version: String::new(),
        feature_level: 0,
        credential: Credential::Bootstrap { kid: String::new() },
    };
    let foreign = grant(&other);
    check(
        &|g| g.certificate = foreign.certificate.clone(),
        ProtocolError::Issued,
    );
}

proptest! {
    #[test]
    fn no_bytes_upset_an_acceptor(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..600) {
        let mut acceptor = Attempt::new("right").acceptor;
        let cut = cut.min(bytes.len());
        let first = acceptor.handle_input(&bytes[..cut]);
        prop_assert!(!matches!(first, Ok(Some(_))));
        if first.is_ok() {
            prop_assert!(!matches!(acceptor.handle_input(&bytes[cut..]), Ok(Some(_))));
        }
    }

    #[test]
    fn a_spoiled_enrol_never_admits(at in 0usize..400, bit in 0u8..8) {
        let mut attempt = Attempt::new("right");
        let good = attempt.pass_to_enrol();
        let mut spoiled = good.clone();
        let at = at % good.len();
        spoiled[at] ^= 1 << bit;
        // What is not covered by the proof is covered by TLS; key and proof must not change unnoticed even so.
        if let Ok(Some(request)) = attempt.acceptor.handle_input(&spoiled) {
            prop_assert_eq!(request.csr, attempt.application.csr);
        }
    }
}

fn refusal() -> EnrolRefusal {
    EnrolRefusal {
        retry: true,
        reason: "there is no leader now".into(),
    }
}

/// What a leader would grant.
pub(crate) fn grant(request: &EnrolRequest) -> EnrolGrant {
    let now = SystemTime::UNIX_EPOCH;
    let ca = Ca::create(Purpose::Members, CLUSTER, now).expect("creates");
    let node_id = NodeId(0x77);
    let issued = request.issue(&ca, CLUSTER, node_id, now).expect("issues");
    EnrolGrant {
        cluster_id: CLUSTER,
        lineage: Lineage(5),
        node_id,
        certificate: issued.der,
        authorities: vec![ca.certificate().to_vec().into()],
        members: vec![KnownMember {
            node_id: NodeId(1),
            cluster_address: "192.0.2.1:9600".into(),
            join_address: "192.0.2.1:9601".into(),
            spki: Digest([4; 32]),
        }],
    }
}

/// A secret with this name.
pub(crate) fn secret(name: &str) -> Secret {
    Secret::new("k", format!("{name:-<32}")).expect("long enough")
}

pub(crate) fn application(key: &NodeKey) -> Application {
    Application {
        csr: key.request().to_vec(),
        name: "fw-3".into(),
        addresses: Addresses {
            cluster: "192.0.2.3:9600".into(),
            join: "192.0.2.3:9601".into(),
            http: String::new(),
        },
        version: "0.1.0".into(),
        feature_level: 1,
    }
}

/// One attempt over one connection.
struct Attempt {
    joiner: Joiner,
    acceptor: Acceptor,
    application: Application,
    /// Bytes are passed on in pieces of this size.
    piece: usize,
    hello: Vec<u8>,
    challenge: Vec<u8>,
}

impl Attempt {
    fn new(secret: &str) -> Self {
        Self::with(&[secret], &[secret])
    }

    fn with(joiner: &[&str], acceptor: &[&str]) -> Self {
        let secrets = |names: &[&str]| names.iter().map(|name| secret(name)).collect::<Vec<_>>();
        let binding = |nonce| Binding {
            nonce: [nonce; 32],
            exporter: [9; 32],
        };
        let application = application(&NodeKey::create().expect("makes one"));
        Attempt {
            joiner: Joiner::new(secrets(joiner), application.clone(), binding(1)),
            acceptor: Acceptor::new(secrets(acceptor), binding(2)),
            application,
            piece: usize::MAX,
            hello: Vec::new(),
            challenge: Vec::new(),
        }
    }

    /// Passes messages on until the acceptor has the whole request.
    fn request(&mut self) -> Result<Option<EnrolRequest>, ProtocolError> {
        let enrol = self.try_pass_to_enrol()?;
        let mut request = None;
        for piece in enrol.chunks(self.piece) {
            request = self.acceptor.handle_input(piece)?;
        }
        Ok(request)
    }

    /// Passes messages on until the joiner's last one, which is returned.
    fn pass_to_enrol(&mut self) -> Vec<u8> {
        self.try_pass_to_enrol().expect("both hold the secret")
    }

    fn try_pass_to_enrol(&mut self) -> Result<Vec<u8>, ProtocolError> {
        self.hello = self.joiner.poll_transmit().expect("begins");
        for piece in self.hello.chunks(self.piece) {
            assert_eq!(self.acceptor.handle_input(piece)?, None);
        }
        self.challenge = self.acceptor.poll_transmit().expect("a challenge");
        for piece in self.challenge.chunks(self.piece) {
            assert_eq!(self.joiner.handle_input(piece)?, None);
        }
        Ok(self.joiner.poll_transmit().expect("an enrol"))
    }

    /// Passes the answer on.
    fn outcome(&mut self) -> Result<Option<Outcome>, ProtocolError> {
        let answer = self.acceptor.poll_transmit().expect("an answer");
        let mut outcome = None;
        for piece in answer.chunks(self.piece) {
            outcome = self.joiner.handle_input(piece)?;
        }
        Ok(outcome)
    }
}
