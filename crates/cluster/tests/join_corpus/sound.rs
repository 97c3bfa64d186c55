// What must hold for any bytes at the join protocol. Shared by the fuzz target and the replay of its corpus.

use cluster::ca::Csr;
use cluster::command::Addresses;
use cluster::join::protocol::{
    Acceptor, Application, BINDING_BYTES, Binding, Joiner, MAX_REQUEST_BYTES, ProtocolError,
};
use cluster::join::secret::Secret;

/// Panics if the bytes are not handled soundly, in any of the places where they may stand.
fn sound(input: &[u8]) {
    from_a_stranger(input);
    from_a_stranger_in_pieces(input);
    from_somebody_in_between(input);
    from_a_joiner_with_the_secret(input);
}

/// Instead of anything a joiner would say: it is never let in, and told the cluster's proof at most.
fn from_a_stranger(input: &[u8]) {
    let mut acceptor = Acceptor::new(secrets(), binding(2));
    match acceptor.handle_input(input) {
        Ok(request) => assert!(request.is_none(), "let in without a proof"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let told = acceptor.poll_transmit().unwrap_or_default();
    assert!(told.len() < 256, "a stranger is told {} bytes", told.len());
}

/// The same in pieces: no more is kept than may come.
fn from_a_stranger_in_pieces(input: &[u8]) {
    let mut acceptor = Acceptor::new(secrets(), binding(2));
    let size = input.first().map_or(1, |byte| usize::from(*byte) + 1);
    let mut taken = 0;
    for piece in input.chunks(size) {
        match acceptor.handle_input(piece) {
            Ok(request) => assert!(request.is_none(), "let in without a proof"),
            Err(_) => return,
        }
        taken += piece.len();
        assert!(taken <= 2 * MAX_REQUEST_BYTES, "took {taken} bytes");
    }
}

/// Instead of anything the cluster would say: the joiner says nothing more, and joins nothing.
fn from_somebody_in_between(input: &[u8]) {
    let mut joiner = Joiner::new(secrets(), application(b"request", ""), binding(1));
    joiner.poll_transmit().expect("a joiner speaks first");
    match joiner.handle_input(input) {
        Ok(outcome) => assert_eq!(outcome, None, "joined without a proof"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(joiner.poll_transmit(), None, "proved itself to a stranger");
}

/// As the certificate request and the texts of somebody who can prove the secret.
fn from_a_joiner_with_the_secret(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut joiner = Joiner::new(secrets(), application(input, &text), binding(1));
    let mut acceptor = Acceptor::new(secrets(), binding(2));
    let hello = joiner.poll_transmit().expect("a joiner speaks first");
    assert_eq!(acceptor.handle_input(&hello), Ok(None));
    let challenge = acceptor.poll_transmit().expect("the cluster proves first");
    assert_eq!(joiner.handle_input(&challenge), Ok(None));
    let enrol = joiner.poll_transmit().expect("both hold the secret");
    match acceptor.handle_input(&enrol) {
        Ok(Some(request)) => {
            assert_eq!(request.csr, input);
            let csr = Csr::parse(input).expect("it was let in with this request");
            let reservation = request.reservation().expect("it was let in with this request");
            assert_eq!((reservation.spki, reservation.csr), (csr.spki(), csr.digest()));
        }
        Ok(None) => panic!("a whole message is not understood"),
        Err(ProtocolError::JoinerUnproved) => panic!("a right proof is refused"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn secrets() -> Vec<Secret> {
    let secret = Secret::new("k", "0123456789abcdef0123456789abcdef");
    vec![secret.expect("long enough")]
}

fn binding(nonce: u8) -> Binding {
    Binding {
        nonce: [nonce; BINDING_BYTES],
        exporter: [9; BINDING_BYTES],
    }
}

fn application(csr: &[u8], text: &str) -> Application {
    Application {
        csr: csr.to_vec(),
        name: text.into(),
        addresses: Addresses {
            cluster: "192.0.2.1:9600".into(),
            ..Addresses::default()
        },
        version: String::new(),
        feature_level: 1,
    }
}
