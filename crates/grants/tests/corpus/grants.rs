// What must hold for any bytes that a peer may send. Shared by the fuzz target and the replay of its corpus.

/// Panics if a message, or what was kept on disk, is not handled soundly: nothing is kept beyond the bounds, what was taken
/// can be told to others, and in the end it is gone.
fn sound_grants(message: &[u8]) {
    use grants::stream::{End, Push};

    const CAPACITY: usize = 64;
    let mut store = grants::Store::new(grants::Settings {
        grace_ms: 420_000,
        capacity: CAPACITY,
        silent_ms: 60_000,
        incarnation: 1,
    });
    if let Ok(changes) = grants::stream::decode_changes(message) {
        store.restore(&changes, 1_000, 5_000);
    }
    if let Ok(push) = Push::decode(message) {
        assert_eq!(Push::decode(&push.encode()).expect("our own can be read"), push);
        for _ in 0..2 {
            store.take(7, 8, &push, 5_000);
            assert!(store.len() <= CAPACITY);
        }
    }
    let end = End {
        next: store.next_place(),
    };
    let (told, next) = store.everything(0, 0, 2 * CAPACITY, end, 6_000);
    assert_eq!(next, None);
    let mut other = grants::Store::new(grants::Settings {
        grace_ms: 420_000,
        capacity: 8 * CAPACITY,
        silent_ms: 60_000,
        incarnation: 2,
    });
    other.take(8, 9, &told, 6_000);
    assert_eq!(other.len(), store.len());
    for day in 1..=3 {
        for store in [&mut store, &mut other] {
            store.sweep(0, 8 * CAPACITY, day * 86_400_000 + 600_000);
        }
    }
    assert!(store.is_empty() && other.is_empty());
}
