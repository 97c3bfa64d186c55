//! Replays the fuzz corpus of join requests, so that what fuzzing once found stays found wherever tests run.

use std::path::Path;

include!("join_corpus/sound.rs");
include!("join_corpus/sound_token.rs");

#[test]
fn the_corpus_of_join_tokens_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/join_token");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("readable").path();
        sound_token(&std::fs::read(&path).expect("readable"));
        replayed += 1;
    }
    assert!(replayed >= 8, "only {replayed} inputs");
}

#[test]
fn the_corpus_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/join_request");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("readable").path();
        sound(&std::fs::read(&path).expect("readable"));
        replayed += 1;
    }
    assert!(replayed >= 10, "only {replayed} inputs");
}

#[test]
fn a_request_that_can_be_certified_is_among_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/join_request");
    let der = std::fs::read(corpus.join("csr_p256.der")).expect("readable");
    Csr::parse(&der).expect("an ECDSA P-256 request");
}
