//! The whole engine under DPDK, over devices that cost next to nothing.
//!
//! `cargo bench -p io --features dpdk --bench dpdk`, or `make bench-dataplane`. Two `net_null` devices, inside and outside.
//! What arrives inside is filled with the next of 64 k prepared frames (60 bytes, UDP, each of another flow, in a shuffled
//! order), and that is part of what is measured. Every frame is parsed, found in the flow table, translated, addressed and
//! sent; afterwards the engine's own counters must say so, nothing may have been dropped, and a last round of all flows is
//! looked at frame by frame.
//!
//! With two workers each has a queue of either device and the flows that are its own by the node's rule, as a network card
//! would deal them out; they are joined by the rings for what is another's. The yardstick is DPDK's own `dpdk-testpmd` over
//! the same devices, which writes new station addresses and sends; and, to tell what the driver and the filling take, our own loop
//! without the engine. All take turns, and medians are compared. Packets are counted by seconds of processor time, of which a
//! worker takes all that its core has: what else runs on the machine counts only by the caches that it dirties.
//!
//! `--seconds N` is the length of each measurement (2), `--repetitions N` their number (5). The result goes to
//! `target/bench/dpdk.json`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "dpdk/filled.rs"]
mod filled;
#[path = "engine/frame.rs"]
mod frame;
#[path = "engine/report.rs"]
mod report;
#[path = "dpdk/scene.rs"]
mod scene;
#[path = "dpdk/testpmd.rs"]
mod testpmd;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use report::{Line, Target, median};
use scene::{Loop, measure};

fn main() -> Result<()> {
    let Some((length, repetitions)) = options()? else {
        // `cargo test --benches` runs it too, without `--bench`.
        return Ok(());
    };
    testpmd::install()?;
    // By number of workers, one and two.
    let (mut engine, mut bare, mut testpmd) =
        ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    for repetition in 1..=repetitions {
        for i in 0..2 {
            let workers = i + 1;
            testpmd[i].push(testpmd::measure(workers, length)?);
            bare[i].push(measure(Loop::Bare, workers, length)?);
            engine[i].push(measure(Loop::Engine, workers, length)?);
            println!(
                "{repetition}/{repetitions}, workers: {workers}; million packets/s: {:.2}, without the engine {:.2}, \
                 testpmd {:.2}",
                engine[i][repetition - 1],
                bare[i][repetition - 1],
                testpmd[i][repetition - 1],
            );
        }
    }
    let [engine, bare, testpmd] = [engine, bare, testpmd].map(|figures| figures.map(median));
    let alone =
        |what: &str, value| Line::alone(what.into(), value, "Mpackets/s", Target::AtLeast(8.0));
    let beside = |what: &str, value, yardstick, target| Line {
        what: what.into(),
        value,
        yardstick,
        unit: "Mpackets/s",
        target,
    };
    let twice = Some(Target::AtLeast(1.8));
    let lines = [
        alone("64 k flows, SNAT, one worker", engine[0]),
        alone("64 k flows, SNAT, two workers, each", engine[1] / 2.0),
        beside("two workers, beside one", engine[1], engine[0], twice),
        beside(
            "testpmd with two cores, beside one",
            testpmd[1],
            testpmd[0],
            None,
        ),
        beside("one worker, beside testpmd", engine[0], testpmd[0], None),
        beside("two workers, beside testpmd", engine[1], testpmd[1], None),
        beside(
            "one worker, beside its loop without engine",
            engine[0],
            bare[0],
            None,
        ),
        beside(
            "two workers, beside their loops without engine",
            engine[1],
            bare[1],
            None,
        ),
    ];
    report::publish("dpdk", ["engine", "yardstick"], &lines)
}

fn options() -> Result<Option<(Duration, usize)>> {
    let (mut length, mut repetitions, mut wanted) = (2, 5, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64> {
            let value = arguments.next().context("a number follows the option")?;
            Ok(value.parse::<u64>()?.max(1))
        };
        match argument.as_str() {
            "--bench" => wanted = true,
            "--seconds" => length = number()?,
            "--repetitions" => repetitions = number()?,
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(wanted.then_some((Duration::from_secs(length), repetitions as usize)))
}
