//! Replays the fuzz corpus of frames, so that what fuzzing once found stays found without a
//! nightly compiler.

#![expect(clippy::disallowed_methods, reason = "the corpus is in files")]

use std::path::Path;

include!("corpus/sound.rs");
include!("corpus/addresses.rs");
include!("corpus/tunnel.rs");
include!("corpus/checksums.rs");
include!("corpus/node.rs");
include!("corpus/pieces.rs");
include!("corpus/neighbours.rs");

#[test]
fn the_corpus_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/wire");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the corpus can be listed").path();
        let bytes = std::fs::read(&path).expect("a corpus file can be read");
        assert_ne!(decode(&bytes), bytes, "{} is hexadecimal", path.display());
        sound(&bytes);
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} files in the corpus");
}

#[test]
fn what_servers_and_routers_say_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/addresses");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the corpus can be listed").path();
        let bytes = std::fs::read(&path).expect("a corpus file can be read");
        assert_ne!(decode(&bytes), bytes, "{} is hexadecimal", path.display());
        heard(&bytes);
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} files in the corpus");
}

#[test]
fn the_corpus_of_tunnels_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/overlay_decap");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the corpus can be listed").path();
        let bytes = std::fs::read(&path).expect("a corpus file can be read");
        sound_in_tunnel(&decode(&bytes));
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} files in the corpus");
}

#[test]
fn datagrams_in_pieces_are_handled_soundly() {
    replay("fragments", pieces::sound);
}

#[test]
fn whatever_neighbours_say_is_handled_soundly() {
    replay("neighbours", neighbours::sound);
}

fn replay(corpus: &str, sound: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(corpus);
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the corpus can be listed").path();
        let bytes = std::fs::read(&path).expect("a corpus file can be read");
        assert_ne!(decode(&bytes), bytes, "{} is hexadecimal", path.display());
        sound(&decode(&bytes));
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} files in the corpus");
}
