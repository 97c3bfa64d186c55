//! Answers of upstreams, sound and hostile, and what is left of them.

use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint, Mandatory};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, SOA};
use proptest::prelude::*;

use super::*;
use crate::stored::Age;
use crate::test::{hex, query, wire};

fn wanted(name: &str, kind: Kind) -> Wanted {
    Wanted {
        name: Name::parse(&wire(name)).unwrap(),
        kind,
        dnssec_ok: false,
        checking_disabled: false,
    }
}

fn ask(name: &str, kind: Kind) -> Ask {
    Ask::new(&wanted(name, kind), &[0x5a; 34])
}

fn name(text: &str) -> WireName {
    WireName::from_ascii(text).unwrap()
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn a(owner: &str, ip: &str) -> Record {
    record(owner, 60, RData::A(A(ip.parse().unwrap())))
}

fn aaaa(owner: &str, ip: &str) -> Record {
    record(owner, 60, RData::AAAA(AAAA(ip.parse().unwrap())))
}

fn cname(owner: &str, target: &str) -> Record {
    record(owner, 300, RData::CNAME(CNAME(name(target))))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns."), name("host."), 1, 2, 3, 4, minimum);
    record(owner, ttl, RData::SOA(data))
}

/// An answer to a question, as an upstream writes it.
fn answer(ask: &Ask, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut asked = Vec::new();
    ask.emit(&mut asked);
    let mut message = Message::from_vec(&asked).unwrap();
    message.metadata.message_type = MessageType::Response;
    change(&mut message);
    message.to_vec().unwrap()
}

fn scrub() -> Scrub {
    Scrub::default()
}

/// What a client gets, each record in a line.
fn shown(accepted: &Accepted) -> Vec<String> {
    let message = Message::from_vec(accepted.stored.message()).unwrap();
    assert!(message.additionals.is_empty() && message.edns.is_none());
    message
        .answers
        .iter()
        .chain(&message.authorities)
        .map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data))
        .collect()
}

#[track_caller]
fn check(ask: &Ask, records: Vec<Record>, want: &[&str]) {
    let bytes = answer(ask, |m| m.answers = records);
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(shown(&accepted), want);
    assert!(accepted.ttl_s > 0 || want.is_empty());
}

#[track_caller]
fn refused(ask: &Ask, bytes: &[u8], want: Rejected) {
    let got = ask.accept(bytes, Over::Datagram, &scrub());
    assert_eq!(got.map(|a| shown(&a)), Err(want));
}

#[test]
fn the_question_is_repeated_to_the_letter() {
    let ask = ask("www.example.com", Kind::A);
    let good = answer(&ask, |m| {
        m.answers = vec![a("www.example.com.", "192.0.2.1")]
    });
    assert!(
        good.windows(4).any(|w| w == b"\x03wWw" || w == b"\x03WwW"),
        "letters are mixed"
    );
    assert!(ask.accept(&good, Over::Datagram, &scrub()).is_ok());
    let patched = |at: usize, change: fn(u8) -> u8| {
        let mut bytes = good.clone();
        bytes[at] = change(bytes[at]);
        bytes
    };
    refused(&ask, &patched(0, |b| b ^ 1), Rejected::Mismatch);
    refused(&ask, &patched(2, |b| b & 0x7f), Rejected::Mismatch);
    refused(&ask, &patched(2, |b| b | 8), Rejected::Mismatch);
    refused(&ask, &patched(5, |_| 2), Rejected::Mismatch);
    refused(&ask, &patched(13, |b| b ^ 0x20), Rejected::Case);
    refused(&ask, &patched(13, |_| b'x'), Rejected::Mismatch);
    refused(&ask, &good[..20], Rejected::Mismatch);
    refused(&ask, &[], Rejected::Mismatch);
    refused(&ask, &good[..good.len() - 20], Rejected::Malformed);
    refused(&ask, &patched(2, |b| b | 2), Rejected::Truncated);
    let truncated = patched(2, |b| b | 2);
    let got = ask.accept(&truncated, Over::Stream, &scrub());
    assert_eq!(got.map(|_| ()), Err(Rejected::Malformed));
    refused(&ask, &patched(3, |b| b | 2), Rejected::Failed(2));
    let bare = [&good[..3], &hex("81 0000 0000 0000 0000")[..]].concat();
    refused(&ask, &bare, Rejected::Failed(1));
}

#[test]
fn what_follows_from_the_question_is_kept() {
    let asked = ask("www.example.com", Kind::A);
    check(
        &asked,
        vec![
            a("other.example.com.", "192.0.2.9"),
            a("B.example.net.", "192.0.2.1"),
            cname("a.example.net.", "b.Example.net."),
            cname("WWW.example.com.", "a.example.net."),
            a("www.example.com.evil.net.", "192.0.2.9"),
            aaaa("b.example.net.", "2001:db8::1"),
            record("b.example.net.", 9, RData::MX(MX::new(1, name("x.")))),
        ],
        &[
            "www.example.com. 300 CNAME a.example.net.",
            "a.example.net. 300 CNAME b.Example.net.",
            "b.example.net. 60 A 192.0.2.1",
        ],
    );
    // An address of the name itself beside a CNAME does not follow.
    check(
        &asked,
        vec![
            cname("www.example.com.", "a.net."),
            a("www.example.com.", "192.0.2.1"),
            a("a.net.", "192.0.2.2"),
        ],
        &["www.example.com. 300 CNAME a.net.", "a.net. 60 A 192.0.2.2"],
    );
    check(
        &ask("www.example.com", Kind::CNAME),
        vec![
            cname("www.example.com.", "a.net."),
            cname("a.net.", "b.net."),
        ],
        &["www.example.com. 300 CNAME a.net."],
    );
}

#[test]
fn chains_that_lead_nowhere() {
    let ask = ask("a.net", Kind::A);
    let chain = |records: Vec<Record>| answer(&ask, |m| m.answers = records);
    let refused_chain = |records| refused(&ask, &chain(records), Rejected::Chain);
    refused_chain(vec![cname("a.net.", "A.net.")]);
    refused_chain(vec![cname("a.net.", "b.net."), cname("b.net.", "a.net.")]);
    refused_chain(vec![
        cname("a.net.", "b.net."),
        cname("a.net.", "c.net."),
        a("b.net.", "192.0.2.1"),
    ]);
    let long = |links: usize| {
        let owner = |i: usize| {
            if i == 0 {
                "a.net.".to_owned()
            } else {
                format!("{i}.net.")
            }
        };
        let mut records: Vec<Record> = (0..links)
            .map(|i| cname(&owner(i), &owner(i + 1)))
            .collect();
        records.push(a(&owner(links), "192.0.2.1"));
        records
    };
    refused_chain(long(MAX_CHAIN + 1));
    let accepted = ask
        .accept(&chain(long(MAX_CHAIN)), Over::Stream, &scrub())
        .unwrap();
    assert_eq!(accepted.stored.addresses().count(), 1);
    // The same record twice does no harm.
    let twice = chain(vec![
        cname("a.net.", "b.net."),
        cname("a.net.", "b.net."),
        a("b.net.", "192.0.2.1"),
    ]);
    assert!(ask.accept(&twice, Over::Stream, &scrub()).is_ok());
}

#[test]
fn an_answer_has_only_so_many_addresses() {
    let ask = ask("a.net", Kind::A);
    let address = |n: u16| a("a.net.", &format!("93.184.{}.{}", n >> 8, n & 0xff));
    let bytes = answer(&ask, |m| m.answers = (0..600).map(address).collect());
    let accepted = ask.accept(&bytes, Over::Stream, &scrub()).unwrap();
    assert_eq!(shown(&accepted).len(), MAX_ADDRESSES);
    let filtered = accepted.filtered;
    assert_eq!(filtered.len(), 600 - MAX_ADDRESSES);
    assert!(filtered.iter().all(|(_, why)| *why == Special::Excess));
}

#[test]
fn special_addresses_are_left_out() {
    let ask = ask("a.net", Kind::A);
    let bytes = answer(&ask, |m| {
        m.answers = vec![
            a("a.net.", "10.0.0.1"),
            a("a.net.", "192.0.2.1"),
            a("a.net.", "169.254.169.254"),
        ];
    });
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(shown(&accepted), ["a.net. 60 A 192.0.2.1"]);
    let filtered: Vec<Special> = accepted
        .filtered
        .iter()
        .map(|(_, special)| *special)
        .collect();
    assert_eq!(filtered, [Special::Private, Special::LinkLocal]);
    assert_eq!(accepted.ttl_s, 60);

    let bytes = answer(&ask, |m| m.answers = vec![a("a.net.", "127.0.0.1")]);
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(
        (
            shown(&accepted).len(),
            accepted.ttl_s,
            accepted.filtered.len()
        ),
        (0, 0, 1)
    );

    let ask = super::tests::ask("a.net", Kind::AAAA);
    let bytes = answer(&ask, |m| {
        m.answers = vec![
            aaaa("a.net.", "::ffff:10.0.0.1"),
            aaaa("a.net.", "2001:db8::1"),
        ]
    });
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(shown(&accepted), ["a.net. 60 AAAA 2001:db8::1"]);
}

#[test]
fn absences() {
    #[track_caller]
    fn check(records: Vec<Record>, soas: Vec<Record>, ttl: u32, shows: usize) {
        let ask = ask("www.example.com", Kind::A);
        let bytes = answer(&ask, |m| {
            m.metadata.response_code = ResponseCode::NXDomain;
            m.answers = records;
            m.authorities = soas;
        });
        let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
        assert_eq!((accepted.ttl_s, shown(&accepted).len()), (ttl, shows));
        assert_eq!(accepted.stored.rcode(), 3);
    }
    check(vec![], vec![soa("example.com.", 900, 600)], 600, 1);
    check(vec![], vec![soa("com.", 300, 600)], 300, 1);
    check(
        vec![],
        vec![soa(".", 100_000, 100_000)],
        MAX_NEGATIVE_TTL_S,
        1,
    );
    check(vec![], vec![], 0, 0);
    check(vec![], vec![soa("example.net.", 900, 600)], 0, 0);
    check(vec![], vec![soa("x.www.example.com.", 900, 600)], 0, 0);
    check(
        vec![],
        vec![soa("com.", 900, 600), soa("com.", 900, 600)],
        600,
        1,
    );
    let chain = vec![cname("www.example.com.", "a.net.")];
    check(chain.clone(), vec![soa("net.", 900, 600)], 300, 2);
    check(chain, vec![soa("example.com.", 900, 600)], 0, 1);
}

#[test]
fn a_found_record_outweighs_the_code() {
    let ask = ask("a.net", Kind::A);
    let bytes = answer(&ask, |m| {
        m.metadata.response_code = ResponseCode::NXDomain;
        m.answers = vec![a("a.net.", "192.0.2.1")];
    });
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(accepted.stored.rcode(), 0);
}

#[test]
fn times_to_live_are_bounded() {
    let ask = ask("a.net", Kind::A);
    let ttl = |ttl| {
        let bytes = answer(&ask, |m| {
            m.answers = vec![a("a.net.", "192.0.2.1")];
            m.answers[0].ttl = ttl;
        });
        ask.accept(&bytes, Over::Datagram, &scrub()).unwrap().ttl_s
    };
    assert_eq!(ttl(0), 0);
    assert_eq!(ttl(u32::MAX), 0);
    assert_eq!(ttl(i32::MAX as u32), MAX_TTL_S);
}

#[test]
fn bindings_lose_keys_and_hints() {
    let ask = ask("a.net", Kind::HTTPS);
    let binding = SVCB::new(
        1,
        name("."),
        vec![
            (
                SvcParamKey::Mandatory,
                SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::EchConfigList])),
            ),
            (
                SvcParamKey::Alpn,
                SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()])),
            ),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![A::new(192, 0, 2, 1)])),
            ),
            (
                SvcParamKey::EchConfigList,
                SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3])),
            ),
        ],
    );
    let bytes = answer(&ask, |m| {
        m.answers = vec![record("a.net.", 60, RData::HTTPS(HTTPS(binding)))];
    });
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert!(accepted.ech_stripped);
    assert_eq!(shown(&accepted), ["a.net. 60 HTTPS 1 . alpn=h2,"]);
    let allowing = Scrub {
        allow_ech: true,
        ..scrub()
    };
    let accepted = ask.accept(&bytes, Over::Datagram, &allowing).unwrap();
    assert!(!accepted.ech_stripped);
    let shown = shown(&accepted).join("");
    assert!(
        shown.contains("ech=") && shown.contains("mandatory") && !shown.contains("hint"),
        "{shown}"
    );
}

#[test]
fn signatures_go_to_who_wants_them() {
    let signature = |owner: &str, of: u16| {
        let mut data = of.to_be_bytes().to_vec();
        data.extend([0; 20]);
        record(
            owner,
            60,
            RData::Unknown {
                code: RecordType::from(Kind::RRSIG.0),
                rdata: hickory_proto::rr::rdata::NULL::with(data),
            },
        )
    };
    let count = |dnssec_ok, address| {
        let ask = Ask::new(
            &Wanted {
                dnssec_ok,
                ..wanted("www.net", Kind::A)
            },
            &[1; 34],
        );
        let bytes = answer(&ask, |m| {
            m.answers = vec![
                cname("www.net.", "a.net."),
                signature("www.net.", 5),
                a("a.net.", address),
                a("a.net.", "192.0.2.2"),
                signature("a.net.", 1),
                signature("b.net.", 1),
                signature("a.net.", 28),
            ];
        });
        let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
        shown(&accepted).len()
    };
    assert_eq!(count(false, "192.0.2.1"), 3);
    assert_eq!(count(true, "192.0.2.1"), 5);
    // One address was taken out, so the signature of the rest no longer holds.
    assert_eq!(count(true, "10.0.0.1"), 3);
}

#[test]
fn a_client_gets_it_in_its_own_letters() {
    let ask = ask("www.example.com", Kind::A);
    let bytes = answer(&ask, |m| {
        m.answers = vec![a("wWw.eXample.com.", "192.0.2.1")]
    });
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    let asked = query("WWW.Example.COM", 1);
    let mut out = Vec::new();
    let query = crate::Query::parse(&asked).unwrap();
    accepted
        .stored
        .render(&query, Age::Seconds(7), 512, &mut out);
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(message.answers[0].name.to_string(), "WWW.Example.COM.");
    assert_eq!(message.answers[0].ttl, 53);
}

#[test]
fn mixed_letters_are_not_seen_by_clients() {
    let ask = ask("www.example.com", Kind::CNAME);
    let bytes = answer(&ask, |m| {
        let asked = m.queries[0].name.clone();
        m.answers = vec![record(
            "www.example.com.",
            60,
            RData::CNAME(CNAME(asked.base_name().prepend_label("a").unwrap())),
        )];
    });
    let mixed = |w: &[u8]| w.eq_ignore_ascii_case(b"example") && w != b"example";
    assert!(bytes.windows(7).any(mixed), "{bytes:?}");
    let accepted = ask.accept(&bytes, Over::Datagram, &scrub()).unwrap();
    assert_eq!(
        shown(&accepted),
        ["www.example.com. 60 CNAME a.example.com."]
    );
}

proptest! {
    /// Whatever an upstream sends behind the right question: no panic, and what is kept can be read.
    #[test]
    fn any_answer(
        rest in prop::collection::vec(any::<u8>(), 0..120),
        counts in prop::array::uniform3(0_u16..4),
        flags in any::<u8>(),
        kind in prop_oneof![Just(1_u16), Just(28), Just(65), Just(5), Just(16), any::<u16>()],
    ) {
        let ask = ask("a.net", Kind(kind));
        let mut bytes = Vec::new();
        ask.emit(&mut bytes);
        bytes.truncate(HEADER_BYTES + ask.question.len());
        bytes[2] = 0x81;
        bytes[3] = flags & 0xf3;
        for (i, count) in counts.iter().enumerate() {
            bytes[6 + 2 * i..8 + 2 * i].copy_from_slice(&count.to_be_bytes());
        }
        bytes.extend(rest);
        if let Ok(accepted) = ask.accept(&bytes, Over::Datagram, &scrub()) {
            prop_assert!(Message::from_vec(accepted.stored.message()).is_ok());
        }
    }

    /// Records drawn from few names: each one that is kept is on the chain from the question, and no
    /// special address ever is.
    #[test]
    fn what_is_kept_follows(
        records in prop::collection::vec((0_usize..6, 0_usize..6, 0_usize..6), 0..12),
    ) {
        let names = ["a.net.", "b.net.", "c.net.", "d.a.net.", "net.", "x.org."];
        let addresses = ["192.0.2.1", "10.0.0.1", "127.0.0.1", "198.51.100.7"];
        let ask = ask("a.net", Kind::A);
        let bytes = answer(&ask, |m| {
            m.answers = records
                .iter()
                .map(|(owner, what, which)| match addresses.get(*what) {
                    Some(address) => a(names[*owner], address),
                    None => cname(names[*owner], names[*which]),
                })
                .collect();
        });
        let Ok(accepted) = ask.accept(&bytes, Over::Datagram, &scrub()) else { return Ok(()) };
        let message = Message::from_vec(accepted.stored.message()).unwrap();
        let mut at = name("a.net.");
        for record in &message.answers {
            prop_assert_eq!(&record.name, &at);
            if let RData::CNAME(target) = &record.data {
                at = target.0.to_lowercase();
            }
        }
        for address in accepted.stored.addresses() {
            prop_assert_eq!(scrub().addresses.special(address), None);
        }
    }
}
