//! Attempts with a join token: the cluster proves with its CA's key, the joiner with the key of its token.

use super::*;

/// A cluster with one token, and a joiner that was given it.
struct Tokened {
    token: Token,
    ca: Arc<Ca>,
}

impl Tokened {
    fn new() -> Self {
        let ca = Ca::create(Purpose::Members, CLUSTER, SystemTime::UNIX_EPOCH).expect("creates");
        let authority = ca::spki_of(ca.certificate()).expect("a certificate");
        Tokened {
            token: Token::new(CLUSTER, Uuid::from_u128(5), authority, [6; 32]),
            ca: Arc::new(ca),
        }
    }

    /// An attempt of a joiner with `token` at a member that knows `known`, whose public half is `public`.
    fn attempt(
        &self,
        token: &Token,
        known: Uuid,
        public: [u8; 32],
        authority: &Arc<Ca>,
    ) -> Attempt {
        let mut attempt = Attempt::new("right");
        let binding = attempt.joiner.binding;
        attempt.joiner = Joiner::new(
            Presented::Token(token.clone()),
            attempt.application.clone(),
            binding,
        );
        let ca = Arc::clone(authority);
        let tokens: Tokens = Arc::new(move |id| {
            if id == known {
                let authorities = vec![Arc::clone(&ca)];
                Ok(TokenOffer {
                    public,
                    authorities,
                })
            } else {
                Err("no such token".into())
            }
        });
        attempt.acceptor =
            Acceptor::new(vec![secret("right")], attempt.acceptor.binding).with_tokens(tokens);
        attempt
    }

    fn sound(&self) -> Attempt {
        self.attempt(&self.token, self.token.id, self.token.public(), &self.ca)
    }
}

#[test]
fn a_joiner_with_a_token_is_let_in() {
    for piece in [usize::MAX, 1, 7] {
        let world = Tokened::new();
        let mut attempt = world.sound();
        attempt.piece = piece;
        let request = attempt.request().expect("proved").expect("whole");
        let id = world.token.id;
        assert_eq!(request.credential, Credential::Token { id });
        let grant = grant(&request);
        attempt.acceptor.answer(Ok(grant.clone()));
        assert_eq!(
            attempt.outcome(),
            Ok(Some(Outcome::Granted(Box::new(grant))))
        );
    }
}

#[test]
fn the_cluster_proves_first_with_the_key_that_the_token_names() {
    let world = Tokened::new();
    let other = Tokened::new();
    let mut attempt = world.attempt(
        &world.token,
        world.token.id,
        world.token.public(),
        &other.ca,
    );
    assert_eq!(attempt.request(), Err(ProtocolError::AuthorityUnproved));
    assert!(
        attempt.joiner.poll_transmit().is_none(),
        "it says nothing more"
    );
    // The right certificate is no proof without its key.
    let mut attempt = world.sound();
    let hello = attempt.joiner.poll_transmit().expect("begins");
    attempt.acceptor.handle_input(&hello).expect("a hello");
    let challenge = attempt.acceptor.poll_transmit().expect("a challenge");
    let mut forged = wire::Challenge::decode(&challenge[4..]).expect("our own");
    forged.authorities[0].signature = other.ca.sign(b"anything").expect("signs");
    assert_eq!(
        attempt.joiner.handle_input(&frame(&forged)),
        Err(ProtocolError::AuthorityUnproved)
    );
}

#[test]
fn whoever_knows_a_tokens_name_only_is_not_let_in() {
    let world = Tokened::new();
    let guessed = Token::new(CLUSTER, world.token.id, world.token.authority, [7; 32]);
    let mut attempt = world.attempt(&guessed, world.token.id, world.token.public(), &world.ca);
    assert_eq!(attempt.request(), Err(ProtocolError::JoinerUnproved));
    assert!(attempt.acceptor.poll_transmit().is_none());
}

#[test]
fn a_token_that_nobody_knows_is_named_to_both() {
    let world = Tokened::new();
    let mut attempt = world.attempt(
        &world.token,
        Uuid::from_u128(99),
        world.token.public(),
        &world.ca,
    );
    let hello = attempt.joiner.poll_transmit().expect("begins");
    assert_eq!(
        attempt.acceptor.handle_input(&hello),
        Err(ProtocolError::UnknownToken("no such token".into()))
    );
    let challenge = attempt.acceptor.poll_transmit().expect("the reason");
    let refusal = EnrolRefusal {
        retry: true,
        reason: "no such token".into(),
    };
    assert_eq!(
        attempt.joiner.handle_input(&challenge),
        Ok(Some(Outcome::Refused(refusal)))
    );
}

#[test]
fn relayed_and_replayed_proofs_are_worth_nothing() {
    let world = Tokened::new();
    // Over another connection, the cluster's proof does not fit.
    let mut attempt = world.sound();
    attempt.acceptor.binding.exporter = [0xee; 32];
    assert_eq!(attempt.request(), Err(ProtocolError::AuthorityUnproved));
    // Nor does the joiner's, even from one that skips its check.
    let mut near = world.sound();
    let enrol = near.pass_to_enrol();
    for change in [
        |binding: &mut Binding| binding.exporter = [0xee; 32],
        |binding: &mut Binding| binding.nonce = [0xaa; 32],
    ] {
        let mut far = world.sound().acceptor;
        change(&mut far.binding);
        far.handle_input(&near.hello).expect("a hello");
        assert_eq!(far.handle_input(&enrol), Err(ProtocolError::JoinerUnproved));
    }
    // The proof for one token is none for another, and none of the cluster's is one of the joiner's.
    let transcript = Transcript {
        joiner_nonce: [1; 32],
        cluster_nonce: [2; 32],
        csr: Digest([3; 32]),
        exporter: [4; 32],
    };
    let messages = [
        transcript.message(Uuid::from_u128(1), Side::Joiner),
        transcript.message(Uuid::from_u128(2), Side::Joiner),
        transcript.message(Uuid::from_u128(1), Side::Cluster),
    ];
    assert!(messages[0] != messages[1] && messages[0] != messages[2]);
}

#[test]
fn a_grant_of_another_cluster_is_not_taken() {
    let world = Tokened::new();
    let elsewhere = Token::new(
        ClusterId([9; 16]),
        world.token.id,
        world.token.authority,
        [6; 32],
    );
    let mut attempt = world.attempt(&elsewhere, elsewhere.id, elsewhere.public(), &world.ca);
    let request = attempt.request().expect("proved").expect("whole");
    attempt.acceptor.answer(Ok(grant(&request)));
    assert_eq!(attempt.outcome(), Err(ProtocolError::Issued));
}
