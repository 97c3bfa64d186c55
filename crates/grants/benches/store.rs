//! What grants cost: memory for each, and the time in which nothing else can change them.
//!
//! `cargo bench -p grants --bench store`. A table for people, and `target/bench/grants.json`.

#[path = "../../io/benches/engine/report.rs"]
mod report;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use grants::{Asked, Settings, Store};
use policy::{Compiled, Document, Facts};
use report::{Line, Target};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Grants that are there, one name each.
const COUNTS: [u32; 3] = [10_000, 100_000, 1_000_000];

fn main() -> Result<()> {
    let mut lines = Vec::new();
    for count in COUNTS {
        measure(count, &mut lines)?;
    }
    report::publish("grants", ["neuwerk", "yardstick"], &lines)
}

fn measure(count: u32, lines: &mut Vec<Line>) -> Result<()> {
    let before = resident()?;
    let mut store = store(1);
    store.install(policy(1)?, 0);
    let learned = timed(|| (0..count).for_each(|n| learn(&mut store, n)));
    ensure!(store.len() == count as usize, "all are granted");
    let bytes = resident()?.saturating_sub(before) as f64 / f64::from(count);

    let policy = policy(2)?;
    let installed = timed(|| drop(store.install(Arc::clone(&policy), 1)));
    let table = store.table();
    let allowed = (0..count)
        .filter(|n| {
            let facts = Facts {
                src: CLIENT.into(),
                dst: address(*n),
                proto: 6,
                src_port: 50_000,
                dst_port: 443,
                icmp: None,
            };
            table.judge(&policy, &facts).0.allow
        })
        .count();
    ensure!(allowed == count as usize, "all are judged by");

    let mut other = self::store(2);
    let mut longest = Duration::ZERO;
    let mut from = Some(0);
    while let Some(at) = from {
        let mut then = None;
        let took = timed(|| {
            let (kept, next) = store.kept(at, usize::MAX >> 1, 1);
            other.restore(&kept, 0, 1);
            then = next;
        });
        longest = longest.max(took);
        from = then;
    }
    ensure!(other.len() == count as usize, "all are restored");

    let mut line = |what: &str, value: f64, unit: &'static str, target: Option<Target>| {
        lines.push(Line {
            what: format!("{what}, {count} grants"),
            value,
            yardstick: f64::NAN,
            unit,
            target,
        });
    };
    let each = |took: Duration| took.as_secs_f64() * 1e9 / f64::from(count);
    line("memory per grant", bytes, "bytes", None);
    line("a new grant", each(learned), "ns", None);
    line("a new policy", installed.as_secs_f64() * 1e3, "ms", None);
    line(
        "a part of all, written and read",
        longest.as_secs_f64() * 1e3,
        "ms",
        None,
    );
    Ok(())
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn store(incarnation: u64) -> Store {
    Store::new(Settings {
        grace_ms: 420_000,
        capacity: 1 << 20,
        silent_ms: 60_000,
        incarnation,
    })
}

fn learn(store: &mut Store, n: u32) {
    store.learn(
        &Asked {
            group: "web",
            client: CLIENT.into(),
            name: &format!("host{n}.zone{}.example", n % 97),
            addresses: &[address(n)],
            ttl_s: 300,
        },
        0,
    );
}

fn address(n: u32) -> IpAddr {
    IpAddr::from((u32::from(Ipv4Addr::new(198, 0, 0, 0)) + n).to_be_bytes())
}

/// A thousand rules by name in a group, the last of which has all of these names.
fn policy(revision: u64) -> Result<Arc<Compiled>> {
    let rules: Vec<String> = (0..1_000)
        .map(|n| {
            format!(r#"{{"id":"r{n}","action":"allow","match":{{"dns_names":["**.z{n}.test"]}}}}"#)
        })
        .chain([r#"{"id":"all","action":"allow","match":{"dns_names":["**.example"]}}"#.to_owned()])
        .collect();
    let document = format!(
        r#"{{"source_groups":[{{"id":"web","mode":"enforce","sources":{{"cidrs":["10.0.0.0/8"]}},"rules":[{}]}}]}}"#,
        rules.join(",")
    );
    let document = Document::parse_json(document.as_bytes())?;
    Ok(Arc::new(Compiled::compile(&document, revision)?))
}

/// Memory of this process, in bytes.
fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).context("no second figure")?;
    Ok(pages.parse::<usize>()? * rustix::param::page_size())
}
