//! What the engine itself costs: one worker, on ports that cost next to nothing.
//!
//! `cargo bench -p io --bench engine`, or `make bench-dataplane`. Needs no root. Times are those of the thread
//! (`CLOCK_THREAD_CPUTIME_ID`), so that what else runs on the machine counts only by the caches that it dirties.
//!
//! - **Established flows**: UDP packets of 60 bytes in shuffled order, so that each meets a flow that the caches have
//!   forgotten; translated to the outside address, forwarded, and checked.
//! - **New flows**: each packet opens one, is judged by the policy and gets a port; with 10,000 rules by a name each, to the
//!   10,000 servers that have these names; and to one server with 10, 10,000 and 100,000 rules and with 100,000 networks.
//! - **A million flows**: the memory that they take, the time to hand them to the next process, and the longest turn of the worker while all expire.
//! - **A new policy** of 10,000 rules under load: packets lost by it, and the longest turn of the worker.
//!
//! `--quick` measures a tenth as long and without the ten million flows. The result goes to `target/bench/engine.json`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "engine/frame.rs"]
mod frame;
#[path = "engine/looped.rs"]
mod looped;
#[path = "engine/report.rs"]
mod report;
#[path = "engine/scene.rs"]
mod scene;

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use engine::Now;
use report::{Line, Target};
use scene::{Rules, Scene};

const SECOND: u64 = 1_000_000_000;

fn main() -> Result<()> {
    let mut quick = false;
    let mut wanted = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => wanted = true,
            "--quick" => quick = true,
            other => bail!("unknown argument {other}"),
        }
    }
    if !wanted {
        // `cargo test --benches` runs it too, without `--bench`.
        return Ok(());
    }
    let packets = if quick { 2_000_000 } else { 20_000_000 };
    let mut lines = Vec::new();
    for (flows, name, limit) in [
        (65_536, "64 k", 60.0),
        (1_000_000, "1 M", 90.0),
        (10_000_000, "10 M", 120.0),
    ] {
        if !(quick && flows > 1_000_000) {
            lines.push(Line::alone(
                format!("established flow, {name} flows, per packet"),
                established(&Rules::few(), flows, packets)?,
                "ns",
                Target::AtMost(limit),
            ));
        }
    }
    let flows = if quick { 200_000 } else { 1_000_000 };
    lines.push(Line::alone(
        "established flow over IPv6, per packet".into(),
        established(&Rules::few_ipv6(), flows, packets)?,
        "ns",
        Target::AtMost(90.0),
    ));
    let few = new_flows(&Rules::few(), flows)?;
    let many = new_flows(&Rules::many(), flows)?;
    lines.push(Line::alone(
        "new flow, 10,000 rules by 10,000 names".into(),
        new_flows(&Rules::named(), flows)?,
        "ns",
        Target::AtMost(500.0),
    ));
    lines.push(Line::alone(
        "new flow over IPv6, 10 rules".into(),
        new_flows(&Rules::few_ipv6(), flows)?,
        "ns",
        Target::AtMost(500.0),
    ));
    for (name, value) in [
        ("10,000 rules", many),
        ("100,000 rules", new_flows(&Rules::of(100_000), flows)?),
        ("100,000 CIDRs", new_flows(&Rules::networks(), flows)?),
    ] {
        lines.push(Line {
            what: format!("new flow, {name} ÷ 10 rules"),
            value,
            yardstick: few,
            unit: "ns",
            target: Some(Target::AtMost(1.5)),
        });
    }
    lines.push(Line {
        what: "new flow to 32,000 servers, 100,000 CIDRs ÷ 10 rules".into(),
        value: new_flows(&Rules::networks_spread(), flows)?,
        yardstick: new_flows(&Rules::few_spread(), flows)?,
        unit: "ns",
        target: Some(Target::AtMost(1.5)),
    });
    lines.push(Line {
        what: "new flow to a server to which all ports are taken, each time instead of another"
            .into(),
        value: exhausted(flows / 2)?,
        yardstick: f64::NAN,
        unit: "ns",
        target: None,
    });
    lines.extend(million()?);
    lines.extend(swap(if quick { 5 } else { 50 })?);
    report::publish("engine", ["engine", "yardstick"], &lines)
}

/// Nanoseconds for each packet of flows that exist.
fn established(rules: &Rules, flows: u32, packets: u64) -> Result<f64> {
    let mut scene = Scene::new(rules, flows)?;
    scene.open_all()?;
    scene.check_round()?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let rounds = packets.max(u64::from(flows));
        let before = scene.sent();
        let time = scene.poll_packets(rounds);
        let taken = time.packets;
        ensure!(
            scene.sent() - before == taken,
            "{} of {taken} packets were forwarded",
            scene.sent() - before
        );
        best = best.min(time.cpu_ns as f64 / taken as f64);
    }
    scene.check_round()?;
    Ok(best)
}

/// Nanoseconds for each packet that opens a flow.
fn new_flows(rules: &Rules, flows: u32) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let mut scene = Scene::new(rules, flows)?;
        let time = scene.open_all()?;
        best = best.min(time.cpu_ns as f64 / f64::from(flows));
        scene.check_round()?;
    }
    Ok(best)
}

/// Nanoseconds for each packet that opens a flow to a server's port to which flows have all ports already that nobody has
/// answered.
fn exhausted(flows: u32) -> Result<f64> {
    const PORTS: u32 = 65_536 - 1024;
    let mut scene = Scene::new(&Rules::one_port(), flows)?;
    scene.resume();
    // Ports are sought for longer the fewer are free.
    scene.poll_packets(u64::from(PORTS + PORTS / 4));
    let before = (scene.active(), scene.sent());
    let time = scene.poll_packets(u64::from(flows / 2));
    ensure!(
        before.0 > u64::from(PORTS - PORTS / 50) && scene.active() <= u64::from(PORTS),
        "{} flows, then {}",
        before.0,
        scene.active()
    );
    ensure!(
        scene.sent() - before.1 == time.packets,
        "some were not sent"
    );
    Ok(time.cpu_ns as f64 / time.packets as f64)
}

/// A scene with all flows, and the bytes of memory that each of them takes.
fn filled(rules: &Rules, flows: u32) -> Result<(Scene, f64)> {
    let frames = Scene::frames(rules, flows);
    let before = resident_bytes()?;
    let mut scene = Scene::with_frames(rules, flows, frames)?;
    scene.open_all()?;
    let memory = resident_bytes()?.saturating_sub(before);
    Ok((scene, memory as f64 / f64::from(flows)))
}

/// Memory of a million flows, and the worker's longest turn while they expire: the longest of all, each taken as the
/// shortest of three.
fn million() -> Result<Vec<Line>> {
    const FLOWS: u32 = 1_000_000;
    let (mut scene, memory) = filled(&Rules::few(), FLOWS)?;
    let [export, import] = scene.hand_over()?;
    // What comes at the same turn each time is the worker's; the rest is the machine's: interrupts, and who else runs.
    let mut turns = expire(&mut scene)?;
    println!("a million flows expired in {} turns", turns.len());
    let mut disturbed = vec![turns.iter().max().copied().unwrap_or_default()];
    drop(scene);
    for _ in 0..2 {
        let mut scene = Scene::new(&Rules::few(), FLOWS)?;
        scene.open_all()?;
        let again = expire(&mut scene)?;
        ensure!(
            turns.len() == again.len(),
            "{} turns, then {}",
            turns.len(),
            again.len()
        );
        disturbed.extend(again.iter().max());
        for (turn, again) in turns.iter_mut().zip(again) {
            *turn = again.min(*turn);
        }
    }
    let longest = turns.iter().max().copied().unwrap_or_default();
    println!("the longest turns of three expiries, with what disturbed them: {disturbed:?} ns");
    let (_, memory_ipv6) = filled(&Rules::few_ipv6(), FLOWS)?;
    let told = |what: &str, value| Line {
        what: what.into(),
        value,
        yardstick: f64::NAN,
        unit: "ms",
        target: None,
    };
    Ok(vec![
        told("1 M flows written for the next process", export),
        told("1 M flows taken over by it", import),
        Line::alone(
            "memory per flow, 1 M flows".into(),
            memory,
            "bytes",
            Target::AtMost(128.0),
        ),
        Line::alone(
            "memory per flow over IPv6, 1 M flows".into(),
            memory_ipv6,
            "bytes",
            Target::AtMost(128.0),
        ),
        Line::alone(
            "longest turn while 1 M flows expire".into(),
            longest as f64 / 1e3,
            "µs",
            Target::AtMost(100.0),
        ),
    ])
}

/// Has all flows of a scene expire, and tells how long each of the worker's turns took, in nanoseconds.
fn expire(scene: &mut Scene) -> Result<Vec<u64>> {
    scene.silence();
    // Every flow is idle now, and nothing else is to be done. A turn each tenth of a millisecond, as under load.
    let mut now = scene.clock() + 400 * SECOND;
    let mut turns = Vec::new();
    while scene.active() > 0 {
        ensure!(
            turns.len() < 10_000_000,
            "{} flows never expire",
            scene.active()
        );
        turns.push(scene.turn(Now(now)));
        now += SECOND / 10_000;
    }
    Ok(turns)
}

/// Packets that new policies lose, and how much longer the longest of 2,048 turns is because of one than usually: the turn
/// that meets it, and those in which flows are judged anew. Of the longest turns of all swaps the median counts, since some
/// meet an interrupt.
fn swap(times: u32) -> Result<[Line; 2]> {
    const TURNS: usize = 2048;
    let mut scene = Scene::new(&Rules::many(), 65_536)?;
    scene.open_all()?;
    scene.check_round()?;
    let (given, sent) = (scene.given(), scene.sent());
    let (mut usual, mut judging, mut meeting) = (Vec::new(), Vec::new(), Vec::new());
    for revision in 2..2 + times {
        // As a node does, which frees the one before when no worker holds it any more.
        let before = scene.publish(&Rules::many(), u64::from(revision))?;
        let mut longest = |turns: usize| {
            let turns = (0..turns).map(|_| {
                let now = scene.now();
                scene.turn(now)
            });
            turns.max().unwrap_or_default()
        };
        meeting.push(longest(1));
        judging.push(longest(TURNS));
        usual.push(longest(TURNS));
        ensure!(
            Arc::strong_count(&before) == 1,
            "the worker holds the last policy"
        );
    }
    let lost = (scene.given() - given) - (scene.sent() - sent);
    scene.check_round()?;
    ensure!(
        scene.rejudged() >= u64::from(times) * 65_536,
        "only {} flows were judged anew",
        scene.rejudged()
    );
    let median = |mut times: Vec<u64>| {
        times.sort_unstable();
        times[times.len() / 2] as f64 / 1e3
    };
    let [usual, judging, meeting] = [usual, judging, meeting].map(median);
    println!(
        "longest turn: usually {usual:.1} µs, judging flows anew {judging:.1} µs, meeting a new policy {meeting:.1} µs"
    );
    Ok([
        Line::alone(
            "packets lost by new policies".into(),
            lost as f64,
            "packets",
            Target::AtMost(0.0),
        ),
        Line::alone(
            "pause by a new policy of 10,000 rules".into(),
            (judging.max(meeting) - usual).max(0.0),
            "µs",
            Target::AtMost(50.0),
        ),
    ])
}

/// What this process holds in memory.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.split_whitespace().next());
    let kib: u64 = kib.context("the kernel does not say")?.parse()?;
    Ok(kib * 1024)
}
