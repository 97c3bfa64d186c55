//! Replays the fuzz corpus of policy documents, so that what fuzzing once found stays found
//! wherever tests run.

#![expect(clippy::disallowed_methods, reason = "the corpus is in files")]

use std::path::Path;

include!("corpus/sound.rs");

#[test]
fn the_corpus_is_handled_soundly() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/policy_document");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
        let path = entry.expect("readable").path();
        sound(&std::fs::read(&path).expect("readable"));
        replayed += 1;
    }
    assert!(replayed >= 10, "only {replayed} inputs");
}
