//! What judging a query by its name costs as documents grow: building, memory, and a lookup. Half of
//! the queries are for names that the document has, half for none. `cargo bench -p policy --bench names`.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use policy::{Compiled, Document};

const LOOKUPS: usize = 1_000_000;
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Names as lists have them: words and numbers in front of a few thousand domains.
fn name(i: usize) -> String {
    let mixed = i.wrapping_mul(0x9e37_79b9) as u32;
    format!(
        "h{mixed:x}.svc{}.example{}.{}",
        i % 97,
        i % 5_003,
        ["com", "net", "org"][i % 3]
    )
}

fn group(rules: &str) -> String {
    format!(
        "{{\"source_groups\":[{{\"id\":\"g\",\"mode\":\"enforce\",\
         \"sources\":{{\"cidrs\":[\"10.0.0.0/8\"]}},\"rules\":[{rules}]}}]}}"
    )
}

/// A document whose rules have a thousand names each.
fn names(count: usize) -> String {
    let mut rules = String::new();
    for start in (0..count).step_by(1_000) {
        let list: Vec<String> = (start..count.min(start + 1_000))
            .map(|i| {
                let wildcard = ["", "*.", "**."][i % 3];
                format!("\"{wildcard}{}\"", name(i))
            })
            .collect();
        let comma = if start > 0 { "," } else { "" };
        write!(
            rules,
            "{comma}{{\"id\":\"r{start}\",\"action\":\"allow\",\"match\":{{\"dns_names\":[{}]}}}}",
            list.join(",")
        )
        .expect("a string grows");
    }
    group(&rules)
}

/// A document of one regular expression a rule.
fn regexes(count: usize, regex: impl Fn(usize) -> String) -> String {
    let rules: Vec<String> = (0..count)
        .map(|i| {
            let regex = regex(i).replace('\\', "\\\\");
            format!("{{\"id\":\"r{i}\",\"action\":\"allow\",\"match\":{{\"dns_hostname\":\"{regex}\"}}}}")
        })
        .collect();
    group(&rules.join(","))
}

fn shapes() -> Vec<(&'static str, String)> {
    vec![
        ("10 names", names(10)),
        ("1,000 names", names(1_000)),
        ("100,000 names", names(100_000)),
        ("1,000,000 names", names(1_000_000)),
        (
            "10 regexes",
            regexes(10, |i| format!(r"^(.*\.)?example{i}\.com$")),
        ),
        (
            "1,000 regexes, a domain each",
            regexes(1_000, |i| format!(r"^(.*\.)?example{i}\.com$")),
        ),
        (
            "1,000 regexes, a pattern each",
            regexes(1_000, |i| {
                format!(r"h[0-9a-f]+\.svc[0-9]{{1,2}}\.example{i}\.(com|net|org)")
            }),
        ),
        (
            "1,000 regexes, a word anywhere",
            regexes(1_000, |i| format!(r".*h{i:x}.*")),
        ),
        (
            "10,000 regexes, a domain each",
            regexes(10_000, |i| format!(r"^(.*\.)?example{i}\.com$")),
        ),
    ]
}

fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

fn per_lookup(compiled: &Compiled, queries: &[String]) -> Duration {
    let started = Instant::now();
    for name in queries.iter().cycle().take(LOOKUPS) {
        black_box(compiled.evaluate_name(SOURCE, black_box(name)));
    }
    started.elapsed() / LOOKUPS as u32
}

fn main() {
    println!(
        "{:32} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "read", "compile", "heap KiB", "few", "many", "slowest", "peak MiB"
    );
    // A name in turn from 64 stays in the processor's cache; one from 2^18 does not.
    let few: Vec<String> = (0..64).map(|i| name(i * 31 % 1_000)).collect();
    let many: Vec<String> = (0..1 << 18).map(|i| name(i * 8)).collect();
    for (shape, json) in shapes() {
        let started = Instant::now();
        let document = Document::parse_json(json.as_bytes()).expect("the shapes are valid");
        let read = started.elapsed();
        let started = Instant::now();
        let compiled = Compiled::compile(&document, 1).expect("the shapes compile");
        let compile = started.elapsed();
        let slowest = many
            .iter()
            .map(|name| {
                let started = Instant::now();
                black_box(compiled.evaluate_name(SOURCE, black_box(name)));
                started.elapsed()
            })
            .max()
            .unwrap_or_default();
        println!(
            "{shape:32} {:>7}ms {:>7}ms {:>9} {:>7}ns {:>7}ns {:>7}us {:>9}",
            read.as_millis(),
            compile.as_millis(),
            compiled.name_memory_bytes() >> 10,
            per_lookup(&compiled, &few).as_nanos(),
            per_lookup(&compiled, &many).as_nanos(),
            slowest.as_micros(),
            peak_mib().unwrap_or_default()
        );
    }
}
