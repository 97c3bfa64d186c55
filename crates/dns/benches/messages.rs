//! What a query that is answered from the cache costs without its system calls: read it, write its name
//! for the policy, find the answer, make it the client's. And what an entry takes. `cargo bench -p dns`.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use dns::accept::{Ask, Over, Scrub, Wanted};
use dns::reply::{self, Denial, Extended, ExtendedCode};
use dns::{Cache, Query};

const ROUNDS: usize = 2_000_000;

/// As `dnsperf` and stub resolvers send it: EDNS with 1232 bytes.
fn query(i: usize) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in [
        format!("host{i}"),
        format!("zone{}", i % 997),
        "example".into(),
        "com".into(),
    ] {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    out
}

/// An upstream's answer with two addresses.
fn answer(ask: &Ask) -> Vec<u8> {
    let mut out = Vec::new();
    ask.emit(&mut out);
    out.truncate(out.len() - 11);
    out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0]);
    for last in [1, 2] {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, last]);
    }
    out
}

fn each(rounds: usize, mut f: impl FnMut(usize)) -> Duration {
    let started = Instant::now();
    for i in 0..rounds {
        f(i);
    }
    started.elapsed() / rounds as u32
}

fn main() {
    for entries in [1_000, 1_000_000] {
        let queries: Vec<Vec<u8>> = (0..entries).map(query).collect();
        let scrub = Scrub::default();
        let mut cache = Cache::new(1 << 30);
        let started = Instant::now();
        for message in &queries {
            let wanted = Wanted::of(&Query::parse(message).expect("a query"));
            let ask = Ask::new(&wanted, &[7; 34]);
            let accepted = ask
                .accept(&answer(&ask), Over::Datagram, &scrub)
                .expect("an answer");
            cache.insert(&wanted, accepted.stored, accepted.ttl_s, 0);
        }
        let accept = started.elapsed() / entries as u32;
        let (mut text, mut out) = (String::new(), Vec::new());
        // A step that visits all entries in no order that the processor could foresee.
        let at = |i: usize| i.wrapping_mul(0x9e37_79b1) % entries;
        let parse = each(ROUNDS, |i| {
            black_box(Query::parse(black_box(&queries[at(i)])).expect("a query"));
        });
        let hit = each(ROUNDS, |i| {
            let query = Query::parse(&queries[at(i)]).expect("a query");
            query.name.write_text(&mut text);
            black_box(&text);
            let found = cache
                .lookup(&Wanted::of(&query), 1_000)
                .expect("it is there");
            found
                .stored
                .render(&query, found.age, query.udp_limit(), &mut out);
            black_box(&out);
        });
        let denied = each(ROUNDS, |i| {
            let query = Query::parse(&queries[at(i)]).expect("a query");
            query.name.write_text(&mut text);
            let reason = Extended {
                code: ExtendedCode::Blocked,
                text: "no rule by name of group web matches",
            };
            reply::denied(&query, Denial::NxDomain, reason, &mut out);
            black_box(&out);
        });
        println!(
            "{entries:>9} entries: {} B each; parse {} ns, hit {} ns, denied {} ns, ask and accept {} ns",
            cache.used_bytes() / cache.len(),
            parse.as_nanos(),
            hit.as_nanos(),
            denied.as_nanos(),
            accept.as_nanos(),
        );
    }
}
