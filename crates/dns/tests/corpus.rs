//! Replays the fuzz corpora of DNS messages, so that what fuzzing once found stays found wherever tests run.

#![expect(clippy::disallowed_methods, reason = "the corpora are in files")]

use std::path::Path;

include!("corpus/query.rs");
include!("corpus/answer.rs");
include!("../../../fuzz/decode.rs");

fn replay(corpus: &str, sound: fn(&[u8]), least: usize) {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpora.join(corpus)).expect("the corpus is in the repository") {
        let path = entry.expect("readable").path();
        sound(&decode(&std::fs::read(&path).expect("readable")));
        replayed += 1;
    }
    assert!(replayed >= least, "only {replayed} inputs");
}

#[test]
fn queries_are_handled_soundly() {
    replay("dns_query", sound_query, 8);
}

#[test]
fn answers_are_handled_soundly() {
    replay("dns_answer", sound_answer, 8);
}
