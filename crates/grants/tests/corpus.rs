//! Replays the fuzz corpus of what peers tell, so that what fuzzing once found stays found wherever tests run; and writes
//! what it begins with.

use std::path::{Path, PathBuf};

include!("corpus/grants.rs");
include!("../../../fuzz/decode.rs");

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/grants")
}

#[test]
fn what_peers_tell_is_handled_soundly() {
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus is in the repository") {
        let path = entry.expect("readable").path();
        sound_grants(&decode(&std::fs::read(&path).expect("readable")));
        replayed += 1;
    }
    assert!(replayed >= 6, "only {replayed} inputs");
}

/// The encodings that nodes of this version send and keep: others have to go on reading them.
#[test]
fn encodings_stay_as_they_are() {
    use grants::stream::{Answer, Body, Change, End, Push, VERSION, encode_changes};

    let change = |client: Option<&str>, life_ms| Change {
        group: "web".into(),
        name: "a.example".into(),
        client: client.map(|client| client.parse().expect("a constant")),
        addresses: vec![
            "192.0.2.1".parse().expect("a constant"),
            "2001:db8::1".parse().expect("a constant"),
        ],
        life_ms,
        age_ms: 5,
        asker: client.map(|client| client.parse().expect("a constant")),
        origin: client.map(|_| 9),
    };
    let push = |body| {
        Push {
            version: VERSION,
            incarnation: 77,
            body,
        }
        .encode()
    };
    let changes = |changes| Body::Changes {
        first: 3,
        changes,
        sum: u64::MAX,
    };
    let all = |part, end| Body::All {
        part,
        claims: vec![change(Some("10.0.0.1"), 60_000)],
        end,
    };
    let encodings = [
        ("alive", push(changes(vec![]))),
        ("begins", push(changes(vec![change(None, 480_000)]))),
        ("ends", push(changes(vec![change(Some("10.0.0.1"), 0)]))),
        ("all_first", push(all(0, None))),
        ("all_last", push(all(0, Some(End { next: 4 })))),
        ("all_later", push(all(3, None))),
        ("answer", Answer { wants_all: true }.encode()),
        ("kept", encode_changes(&[change(None, 480_000)])),
    ];
    for (name, bytes) in encodings {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = corpus().join(format!("{name}.hex"));
        if std::env::var_os("GOLDEN").is_some_and(|golden| golden == "write") {
            std::fs::write(&path, format!("{hex}\n")).expect("writable");
        }
        let golden = std::fs::read_to_string(&path).expect("the corpus is in the repository");
        assert_eq!(golden.trim(), hex, "{name} is encoded in another way");
    }
}
