//! Instructions for each packet through the whole engine, by callgrind: the same on every machine, nearly.
//!
//! `cargo bench -p io --bench instructions` compares them with `instructions.json` and fails where one has grown by more
//! than 5 %. A change that is worth it says why, and writes the new figures with `-- --write`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "engine/frame.rs"]
mod frame;
#[path = "engine/looped.rs"]
mod looped;
#[path = "engine/scene.rs"]
#[allow(dead_code, reason = "it is shared with the bench of times")]
mod scene;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use scene::{Rules, Scene};

/// How much a figure may grow.
const TOLERANCE: f64 = 1.05;

/// Packets of each workload.
const PACKETS: u32 = 16_384;

const WORKLOADS: [&str; 6] = [
    "established",
    "established-ipv6",
    "opened",
    "opened-10000-rules",
    "opened-10000-names",
    "denied",
];

/// What takes memory from the system, as callgrind names it: no packet may.
const ALLOCATORS: [&str; 5] = [
    "malloc",
    "calloc",
    "realloc",
    "aligned_alloc",
    "posix_memalign",
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--workload", name] => work(name),
        ["--bench"] => compare(&measure()?),
        ["--write", "--bench"] => write(&measure()?),
        // `cargo test --benches` runs it too, without `--bench`.
        [] => Ok(()),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

/// What callgrind watches.
#[inline(never)]
fn watched(scene: &mut Scene) -> u64 {
    scene.poll_packets(PACKETS.into()).packets
}

fn work(name: &str) -> Result<()> {
    let mut scene = match name {
        "established" | "established-ipv6" => {
            let rules = match name {
                "established" => Rules::few(),
                _ => Rules::few_ipv6(),
            };
            let mut scene = Scene::new(&rules, PACKETS)?;
            scene.open_all()?;
            scene
        }
        "opened" => Scene::new(&Rules::few(), PACKETS)?,
        "opened-10000-rules" => Scene::new(&Rules::many(), PACKETS)?,
        "opened-10000-names" => Scene::new(&Rules::named(), PACKETS)?,
        "denied" => Scene::new(&Rules::none(), PACKETS)?,
        _ => bail!("no workload {name}"),
    };
    let (sent, lost) = (scene.sent(), scene.lost());
    scene.resume();
    ensure!(watched(&mut scene) == u64::from(PACKETS));
    let done = if name == "denied" {
        scene.lost() - lost
    } else {
        scene.sent() - sent
    };
    ensure!(
        done == u64::from(PACKETS),
        "{done} packets went as they should"
    );
    Ok(())
}

/// Instructions for each packet, by workload.
fn measure() -> Result<BTreeMap<String, f64>> {
    let program = std::env::current_exe()?;
    let directory = tempfile::tempdir()?;
    WORKLOADS
        .iter()
        .map(|name| {
            let out = directory.path().join(name);
            let ended = Command::new("valgrind")
                .args(["--quiet", "--tool=callgrind", "--toggle-collect=*watched*"])
                .arg(format!("--callgrind-out-file={}", out.display()))
                .arg(&program)
                .args(["--workload", name])
                .status()
                .context("cannot start valgrind: apt-get install valgrind")?;
            ensure!(ended.success(), "{name}: {ended}");
            let text = std::fs::read_to_string(&out)?;
            let allocates = text.lines().find(|line| {
                let called = line
                    .split_once("fn=(")
                    .and_then(|(_, rest)| rest.split_once(") "));
                called.is_some_and(|(_, name)| ALLOCATORS.contains(&name))
            });
            // The bench's port allocates its frames anew where they are dropped.
            ensure!(
                allocates.is_none() || *name == "denied",
                "{name} allocates memory: {allocates:?}"
            );
            let totals = text.lines().find_map(|line| line.strip_prefix("totals:"));
            let all: f64 = totals.context("callgrind says no total")?.trim().parse()?;
            ensure!(all > 0.0, "callgrind has seen nothing of {name}");
            Ok((
                (*name).to_owned(),
                (all / f64::from(PACKETS) * 10.0).round() / 10.0,
            ))
        })
        .collect()
}

fn committed() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

fn write(measured: &BTreeMap<String, f64>) -> Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(measured)?);
    Ok(std::fs::write(committed(), text)?)
}

fn compare(measured: &BTreeMap<String, f64>) -> Result<()> {
    let before: BTreeMap<String, f64> =
        serde_json::from_str(&std::fs::read_to_string(committed())?)?;
    println!(
        "{:<24} {:>10} {:>10}",
        "instructions per packet", "now", "committed"
    );
    let mut grown = Vec::new();
    for (name, now) in measured {
        let before = before
            .get(name)
            .with_context(|| format!("instructions.json has no {name}: -- --write"))?;
        println!("{name:<24} {now:>10.1} {before:>10.1}");
        if *now > before * TOLERANCE {
            grown.push(name.as_str());
        }
    }
    ensure!(
        grown.is_empty(),
        "more instructions than before: {}; if that is worth it, write the new figures with `-- --write` and say why",
        grown.join(", ")
    );
    Ok(())
}
