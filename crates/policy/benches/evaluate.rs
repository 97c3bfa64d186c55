//! What judging a packet costs as documents grow, and what compiling them costs.
//!
//! Every document is measured on the same packets, half of which hit the ten rules that are in all of them. Those of
//! 100,000 rules or networks are compared with that of nothing but the ten, in turns, once with packets to a few
//! destinations and once with packets to destinations all over what the rules are about; the result goes to
//! `target/bench/evaluate.json`. Then all shapes, the worst ones too. `cargo bench -p policy --bench evaluate`;
//! `-- --compare` for the comparison alone, which is a part of `make bench-dataplane`.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

#[path = "../../io/benches/engine/report.rs"]
mod report;

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use policy::{Compiled, Document, Facts};
use report::{Line, Target};

const EVALUATIONS: usize = 2_000_000;

/// Turns that the documents take in the comparison; the best of each counts.
const TURNS: usize = 7;

/// Destinations, from 203.0.0.0 on, among which the rules are that packets are not about.
const SPREAD: u32 = 3_200_000;

/// A rule by its number, as JSON.
fn rule(out: &mut String, number: usize, matches: &str) {
    let separator = if out.ends_with('[') { "" } else { "," };
    write!(
        out,
        "{separator}{{\"id\":\"r{number}\",\"action\":\"allow\",\"match\":{{{matches}}}}}"
    )
    .expect("a string grows");
}

/// The ten rules that the packets are about.
fn ten(out: &mut String) {
    for i in 0..10 {
        let matches = format!(
            "\"dst_cidrs\":[\"198.51.100.{}/28\"],\"proto\":\"tcp\",\"dst_ports\":[443]",
            i * 16
        );
        rule(out, 1_000_000 + i, &matches);
    }
}

/// A document of one group for 10.0.0.0/8, the ten rules after those written by `more`.
fn one_group(more: impl FnOnce(&mut String)) -> String {
    let mut json = String::from(
        "{\"source_groups\":[{\"id\":\"g\",\"mode\":\"enforce\",\
         \"sources\":{\"cidrs\":[\"10.0.0.0/8\"]},\"rules\":[",
    );
    more(&mut json);
    ten(&mut json);
    json + "]}]}"
}

fn address(i: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xcb00_0000 + i as u32)
}

/// 100,000 networks with gaps between them, as a list in JSON.
fn networks() -> String {
    let list: Vec<String> = (0..100_000)
        .map(|i| format!("\"{}/28\"", address(i * 32)))
        .collect();
    list.join(",")
}

/// The ten rules, and what is compared with them.
fn compared() -> Vec<(&'static str, String)> {
    let n = 99_990;
    vec![
        ("10 rules", one_group(|_| ())),
        (
            "100,000 rules, an address each",
            one_group(|out| {
                for i in 0..n {
                    rule(
                        out,
                        i,
                        &format!("\"dst_ips\":[\"{}\"],\"dst_ports\":[443]", address(i * 7)),
                    );
                }
            }),
        ),
        (
            "100,000 rules, nested networks, ports",
            one_group(|out| {
                for i in 0..n {
                    let matches = format!(
                        "\"dst_cidrs\":[\"{}/{}\"],\"proto\":\"tcp\",\"dst_ports\":[{}]",
                        address(i * 13),
                        8 + i % 25,
                        i % 400
                    );
                    rule(out, i, &matches);
                }
            }),
        ),
        (
            "one rule with 100,000 CIDRs",
            one_group(|out| rule(out, 0, &format!("\"dst_cidrs\":[{}]", networks()))),
        ),
        (
            "a source group with 100,000 CIDRs",
            one_group(|_| ()).replace(
                "[\"10.0.0.0/8\"]",
                &format!("[\"10.0.0.0/8\",{}]", networks()),
            ),
        ),
    ]
}

fn shapes() -> Vec<(&'static str, String)> {
    let n = 99_990;
    let mut shapes = compared();
    shapes.extend([
        (
            "100,000 rules by port alone, then by address alone",
            one_group(|out| {
                for i in 0..n / 2 {
                    rule(
                        out,
                        i,
                        &format!("\"proto\":\"udp\",\"src_ports\":[{}]", i + 1),
                    );
                }
                for i in n / 2..n {
                    rule(out, i, &format!("\"dst_ips\":[\"{}\"]", address(i)));
                }
            }),
        ),
        ("10,000 groups of 10 rules", {
            let mut json = String::from("{\"source_groups\":[");
            for g in 0..9_999 {
                write!(
                    json,
                    "{{\"id\":\"g{g}\",\"mode\":\"enforce\",\"sources\":{{\"cidrs\":[\"172.16.{}.{}/32\"]}},\"rules\":[",
                    g / 250,
                    g % 250
                )
                .expect("a string grows");
                ten(&mut json);
                json += "]},";
            }
            json + &one_group(|_| ())["{\"source_groups\":[".len()..]
        }),
        ("10,000 groups of any source, 9 rules each", {
            let mut json = String::from("{\"source_groups\":[");
            for g in 0..9_999 {
                write!(
                    json,
                    "{{\"id\":\"g{g}\",\"mode\":\"enforce\",\"sources\":{{\"cidrs\":[\"0.0.0.0/0\"]}},\"rules\":["
                )
                .expect("a string grows");
                for i in 0..9 {
                    rule(
                        &mut json,
                        i,
                        &format!("\"dst_ips\":[\"{}\"]", address(g * 9 + i)),
                    );
                }
                json += "]},";
            }
            json + &one_group(|_| ())["{\"source_groups\":[".len()..]
        }),
        (
            "one rule with 1,000,000 addresses",
            one_group(|out| {
                let list: Vec<String> = (0..1_000_000)
                    .map(|i| format!("\"{}\"", address(i * 2)))
                    .collect();
                rule(out, 0, &format!("\"dst_ips\":[{}]", list.join(",")));
            }),
        ),
        (
            "worst: address and port rules that always alternate",
            one_group(|out| {
                for i in 0..n / 2 {
                    rule(
                        out,
                        2 * i,
                        &format!(
                            "\"dst_cidrs\":[\"198.51.100.0/24\"],\"dst_ports\":[{}]",
                            i % 440
                        ),
                    );
                    rule(
                        out,
                        2 * i + 1,
                        &format!("\"dst_ips\":[\"{}\"],\"dst_ports\":[443]", address(i)),
                    );
                }
            }),
        ),
        (
            "worst: 100,000 overlapping ranges of ports and addresses",
            one_group(|out| {
                for i in 0..n {
                    let matches = format!(
                        "\"dst_cidrs\":[\"{}/{}\"],\"src_ports\":[\"{}-{}\"],\"dst_ports\":[\"{}-{}\"],\"proto\":\"udp\"",
                        address(i * 7919 % 0xff_ffff),
                        8 + i % 25,
                        i * 31 % 30_000,
                        30_000 + i * 17 % 30_000,
                        i * 13 % 30_000,
                        30_000 + i * 19 % 30_000,
                    );
                    rule(out, i, &matches);
                }
            }),
        ),
        (
            "worst: 100,000 rules of 20 networks each, at random",
            one_group(|out| {
                let mut state = 1_u64;
                for i in 0..n {
                    let list: Vec<String> = (0..20)
                        .map(|_| {
                            state = state
                                .wrapping_mul(6_364_136_223_846_793_005)
                                .wrapping_add(1);
                            let address = Ipv4Addr::from((state >> 32) as u32);
                            format!("\"{address}/{}\"", 4 + (state >> 20) % 29)
                        })
                        .collect();
                    rule(
                        out,
                        i,
                        &format!("\"dst_cidrs\":[{}],\"proto\":\"udp\"", list.join(",")),
                    );
                }
            }),
        ),
        ("worst: 10,000 groups of 100 networks each, at random", {
            let mut json = String::from("{\"source_groups\":[");
            let mut state = 1_u64;
            for g in 0..9_999 {
                let list: Vec<String> = (0..100)
                    .map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let address = Ipv4Addr::from((state >> 32) as u32);
                        format!("\"{address}/{}\"", 3 + (state >> 20) % 30)
                    })
                    .collect();
                write!(
                    json,
                    "{{\"id\":\"g{g}\",\"mode\":\"enforce\",\"sources\":{{\"cidrs\":[{}]}},\"rules\":[",
                    list.join(",")
                )
                .expect("a string grows");
                for i in 0..9 {
                    rule(
                        &mut json,
                        i,
                        &format!("\"dst_ips\":[\"{}\"]", address(g * 9 + i)),
                    );
                }
                json += "]},";
            }
            json + &one_group(|_| ())["{\"source_groups\":[".len()..]
        }),
    ]);
    shapes
}

/// Packets to 80 destinations that the ten rules have, and to as many that no rule has.
fn packets() -> Vec<Facts> {
    (0..1024_u32)
        .map(|i| packet(i, 0xc633_6400 + i * 37 % 160 + (i & 1) * 0x1_0000))
        .collect()
}

/// Packets of which every other one has a destination of its own, somewhere among what the rules are about.
fn spread() -> Vec<Facts> {
    let mut random = 1_u64;
    (0..65_536_u32)
        .map(|i| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let far = 0xcb00_0000 + (random >> 33) as u32 % SPREAD;
            packet(
                i,
                if i & 1 == 0 {
                    0xc633_6400 + i * 37 % 160
                } else {
                    far
                },
            )
        })
        .collect()
}

fn packet(number: u32, dst: u32) -> Facts {
    Facts {
        src: Ipv4Addr::from(0x0a00_0000 + number % 1024 * 7919).into(),
        dst: Ipv4Addr::from(dst).into(),
        proto: 6,
        src_port: 20_000 + (number % 1024) as u16,
        dst_port: 443,
        icmp: None,
    }
}

/// Nanoseconds for each packet.
fn per_packet(compiled: &Compiled, packets: &[Facts]) -> f64 {
    let started = Instant::now();
    for facts in packets.iter().cycle().take(EVALUATIONS) {
        black_box(compiled.evaluate(black_box(facts)));
    }
    started.elapsed().as_secs_f64() * 1e9 / EVALUATIONS as f64
}

/// What packets cost with large documents, beside what the same cost with ten rules.
fn compare() -> Result<Vec<Line>> {
    let documents = compared()
        .into_iter()
        .map(|(name, json)| {
            let document = Document::parse_json(json.as_bytes()).context(name)?;
            Ok((name, Compiled::compile(&document, 1).context(name)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut lines = Vec::new();
    for (traffic, packets) in [("few", packets()), ("many", spread())] {
        for (name, compiled) in &documents {
            let hit = packets.iter().step_by(2);
            let allowed = hit.filter(|facts| compiled.evaluate(facts).allow).count();
            ensure!(
                allowed == packets.len() / 2,
                "{name}: {allowed} packets hit the ten rules"
            );
        }
        let mut best = vec![f64::INFINITY; documents.len()];
        for _ in 0..TURNS {
            for (best, (_, compiled)) in best.iter_mut().zip(&documents) {
                *best = best.min(per_packet(compiled, &packets));
            }
        }
        lines.extend(
            documents
                .iter()
                .zip(&best)
                .skip(1)
                .map(|((name, _), time)| Line {
                    what: format!("{name}, {traffic} destinations"),
                    value: *time,
                    yardstick: best[0],
                    unit: "ns",
                    target: Some(Target::AtMost(1.5)),
                }),
        );
    }
    Ok(lines)
}

/// Most memory this process has held, in MiB.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

fn main() -> Result<()> {
    let mut all = true;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => {}
            "--compare" => all = false,
            other => bail!("unknown argument {other}"),
        }
    }
    report::publish("evaluate", ["large", "10 rules"], &compare()?)?;
    if all {
        table();
    }
    Ok(())
}

/// Every shape, one after the other.
fn table() {
    let packets = packets();
    println!(
        "\n{:58} {:>9} {:>9} {:>9} {:>9}",
        "", "read", "compile", "packet", "peak MiB"
    );
    for (name, json) in shapes() {
        let started = Instant::now();
        let document = Document::parse_json(json.as_bytes()).expect("the shapes are valid");
        let read = started.elapsed();
        let started = Instant::now();
        match Compiled::compile(&document, 1) {
            Ok(compiled) => {
                let compile = started.elapsed();
                let packet = per_packet(&compiled, &packets);
                println!(
                    "{name:58} {:>7}ms {:>7}ms {packet:>7.0}ns {:>9}",
                    read.as_millis(),
                    compile.as_millis(),
                    peak_mib().unwrap_or_default()
                );
            }
            Err(error) => println!("{name:58} {error} ({}ms)", started.elapsed().as_millis()),
        }
    }
}
