// What must hold for any bytes that an upstream may send. Shared by the fuzz target and the replay of its corpus.

/// Takes the bytes for the answer to the very question that they repeat, so that nothing is refused for another one,
/// and panics if what counts of them is not sound: it can be read, is about the question, has no address that answers
/// may not have, and fits where it has to.
fn sound_answer(message: &[u8]) {
    use dns::accept::{Over, Scrub, Wanted};
    use dns::stored::Age;
    use dns::{Ask, Cache, Kind, Name, Query};

    let Some(name) = message.get(12..).and_then(|from| Name::parse(from).ok()) else {
        return;
    };
    let end = 12 + name.wire().len();
    let Some(kind) = message.get(end..end + 2) else {
        return;
    };
    let wanted = Wanted {
        name,
        kind: Kind(u16::from_be_bytes([kind[0], kind[1]])),
        dnssec_ok: message[0] & 1 == 1,
        checking_disabled: false,
    };
    // Such a question is never asked.
    if wanted.kind.is_meta() {
        return;
    }
    let mut random = [0; 34];
    random[..2].copy_from_slice(&message[..2]);
    let ask = Ask::new(&wanted, &random);
    let mut asked = Vec::new();
    ask.emit(&mut asked);
    let mut plain = message.to_vec();
    plain[12..end].make_ascii_lowercase();
    let scrub = Scrub::default();
    for over in [Over::Datagram, Over::Stream] {
        let Ok(accepted) = ask.accept(&plain, over, &scrub) else {
            continue;
        };
        assert!(accepted.ttl_s <= dns::accept::MAX_TTL_S);
        for address in accepted.stored.addresses() {
            assert_eq!(scrub.addresses.special(address), None, "{address}");
        }
        let query = Query::parse(&asked).expect("what we ask is a query");
        let mut out = Vec::new();
        for limit in [512, 1232, 65_535] {
            for age in [Age::Seconds(0), Age::Seconds(7), Age::Stale] {
                accepted.stored.render(&query, age, limit, &mut out);
                assert!(out.len() <= limit);
                let read = hickory_proto::op::Message::from_vec(&out).expect("it can be read");
                assert_eq!(read.id, query.id);
                assert_eq!(read.queries.len(), 1);
                assert_eq!(out[12..end + 4], *query.question);
            }
        }
        let mut cache = Cache::new(1 << 20);
        cache.insert(&wanted, accepted.stored.clone(), accepted.ttl_s, 0);
        let kept = cache.lookup(&wanted, 0).map(|found| found.stored.clone());
        assert_eq!(kept, (accepted.ttl_s > 0).then_some(accepted.stored));
    }
}
