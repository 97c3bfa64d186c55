//! Forwarding through the whole engine, compared with the kernel's own in the same run.
//!
//! `cargo bench -p io --bench forwarding` (root), or `make bench`. Three network namespaces in a
//! row, joined by veth pairs: source, forwarder, sink. The forwarder is in turn the kernel, with
//! connection tracking, a set of 100,000 addresses and source NAT (`forwarding/kernel.nft`), and
//! a worker of the engine on two ports of each backend, with the same policy and SNAT. Each turn floods 256
//! UDP flows of 64-byte frames, one in 64 of them to a denied address, and then lets iperf3 send
//! one TCP stream with all offloads. The sink counts what arrived with the translated source,
//! and the run fails if anything arrived untranslated or denied. Turns are interleaved and
//! repeated; medians are compared.
//!
//! By itself the kernel forwards on the core that sends, the sender's time included, while the
//! engine has a core of its own; so the kernel is also measured with its part moved to that core
//! (RPS). The ratio that is aimed at is the one to the kernel as it comes.
//!
//! `--seconds N` is the length of each measurement (3), `--repetitions N` their number (3), `--backend NAME` the only
//! backend that is measured (all of them).
//! The result goes to `target/bench/forwarding.json`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "forwarding/forwarder.rs"]
mod forwarder;
#[path = "forwarding/report.rs"]
mod report;
#[path = "forwarding/space.rs"]
mod space;
#[path = "forwarding/traffic.rs"]
mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use forwarder::{Backend, Engine, Kernel};
use report::{Line, heading, median};
use serde_json::{Value, json};
use space::Space;
use traffic::{Flood, Transfer, flood, transfer};

/// The forwarders, in the order of their turns.
const KERNEL: usize = 0;
const KERNEL_SPREAD: usize = 1;
/// The engine's backends come after the two: name, backend, and what is wanted of its rate of small frames and of its
/// bulk transfer, as a multiple of the kernel's.
const BACKENDS: [(&str, Backend, [Option<f64>; 2]); 2] = [
    ("packet", Backend::Packet, [Some(1.5), Some(1.0)]),
    // No super-packets, so no bulk transfer to speak of.
    ("xdp", Backend::Xdp, [Some(1.7), None]),
];
const FORWARDERS: usize = 2 + BACKENDS.len();

fn main() -> Result<()> {
    let Some(options) = Options::from_arguments()? else {
        // `cargo test --benches` runs it too, without `--bench`.
        return Ok(());
    };
    let links = Links::lay()?;
    let mut floods: [Vec<Flood>; FORWARDERS] = Default::default();
    let mut transfers: [Vec<Transfer>; FORWARDERS] = Default::default();
    for repetition in 1..=options.repetitions {
        for turn in (0..FORWARDERS).filter(|turn| options.wants(*turn)) {
            let (flood, transfer) = links.measure(turn, options.length)?;
            println!(
                "{repetition}/{} {:<12} {:>8.0} packets/s of {:>8.0} offered, {:>5.2} µs of processor each; \
                 {:>6.2} Gbit/s, {} retransmits, {:.2} cores",
                options.repetitions,
                name(turn),
                flood.packets_per_s,
                flood.offered_per_s,
                flood.cpu_us_per_packet,
                transfer.gbit_per_s,
                transfer.retransmits,
                transfer.cores,
            );
            floods[turn].push(flood);
            transfers[turn].push(transfer);
        }
    }
    let lines: Vec<Line> = (0..BACKENDS.len())
        .filter(|backend| options.wants(2 + backend))
        .flat_map(|backend| compare(backend, &floods, &transfers))
        .collect();
    println!("\n{}", heading());
    for line in &lines {
        println!("{}", line.to_text());
    }
    let path = result_path();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let result: Vec<Value> = lines.iter().map(Line::to_json).collect();
    fs::write(&path, format!("{:#}\n", json!(result)))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// What a turn measures.
fn name(turn: usize) -> &'static str {
    match turn {
        KERNEL => "kernel",
        KERNEL_SPREAD => "kernel, RPS",
        _ => BACKENDS[turn - 2].0,
    }
}

struct Options {
    length: Duration,
    repetitions: usize,
    backend: Option<String>,
}

impl Options {
    fn wants(&self, turn: usize) -> bool {
        let only = self.backend.as_deref();
        turn < 2 || only.is_none_or(|only| only == name(turn))
    }

    fn from_arguments() -> Result<Option<Self>> {
        let mut options = Self {
            length: Duration::from_secs(3),
            repetitions: 3,
            backend: None,
        };
        let mut wanted = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--backend" {
                options.backend = Some(arguments.next().context("a name follows the option")?);
                continue;
            }
            let mut number = || -> Result<u64> {
                let value = arguments.next().context("a number follows the option")?;
                Ok(value.parse()?)
            };
            match argument.as_str() {
                "--bench" => wanted = true,
                "--seconds" => options.length = Duration::from_secs(number()?.max(1)),
                "--repetitions" => options.repetitions = number()?.max(1) as usize,
                other => bail!("unknown argument {other}"),
            }
        }
        Ok(wanted.then_some(options))
    }
}

/// The namespaces and the links between them.
struct Links {
    source: Space,
    forwarder: Space,
    sink: Space,
    /// Where the engine notes what it holds.
    state: tempfile::TempDir,
    /// The core that forwards: the last one; the first one sends.
    core: usize,
}

impl Links {
    fn lay() -> Result<Self> {
        let (source, forwarder, sink) = (Space::new()?, Space::new()?, Space::new()?);
        forwarder.sh(&format!(
            "ip link add left type veth peer name source netns {}
             ip link add right type veth peer name sink netns {}
             ip addr add 10.1.0.254/24 dev left
             ip addr add 10.2.0.254/24 dev right
             ip link set left up
             ip link set right up",
            source.thread_id(),
            sink.thread_id()
        ))?;
        source.sh("ip addr add 10.1.0.1/24 dev source
             ip link set source up
             ip route add default via 10.1.0.254")?;
        let state = tempfile::tempdir()?;
        let ruleset = state.path().join("sink.nft");
        fs::write(&ruleset, include_str!("forwarding/sink.nft"))?;
        sink.sh(&format!(
            "ip addr add 10.2.0.1/24 dev sink
             ip addr add 10.2.0.66/24 dev sink
             ip link set sink up
             nft -f {}",
            ruleset.display()
        ))?;
        let core = std::thread::available_parallelism()?.get() - 1;
        Ok(Self {
            source,
            forwarder,
            sink,
            state,
            core,
        })
    }

    /// Measures one forwarder.
    fn measure(&self, turn: usize, length: Duration) -> Result<(Flood, Transfer)> {
        let run = || -> Result<(Flood, Transfer)> {
            let flood = flood(&self.source, &self.sink, length)?;
            Ok((flood, transfer(&self.source, &self.sink, length)?))
        };
        if turn < 2 {
            let spread_to = (turn == KERNEL_SPREAD).then_some(self.core);
            let _kernel = Kernel::start(&self.forwarder, spread_to)?;
            return run();
        }
        let state_dir = self.state.path().to_owned();
        let backend = BACKENDS[turn - 2].1;
        let engine = Engine::start(&self.forwarder, self.core, state_dir, backend)?;
        let measured = run();
        let account = engine.stop()?;
        for (name, stats) in ["inside", "outside"].iter().zip(account.ports) {
            println!(
                "    {name}: {} received, {} lost before, {} unusable; {} sent, {} refused, {} failed",
                stats.rx_frames,
                stats.rx_dropped,
                stats.rx_errors,
                stats.tx_frames,
                stats.tx_dropped,
                stats.tx_errors
            );
        }
        for (reason, packets) in account.drops {
            println!("    dropped for {reason:?}: {packets}");
        }
        measured
    }
}

fn compare(
    backend: usize,
    floods: &[Vec<Flood>; FORWARDERS],
    transfers: &[Vec<Transfer>; FORWARDERS],
) -> Vec<Line> {
    let (name, _, [flood_target, transfer_target]) = BACKENDS[backend];
    let engine = 2 + backend;
    let of_floods =
        |turn: usize, pick: fn(&Flood) -> f64| median(floods[turn].iter().map(pick).collect());
    let of_transfers = |turn: usize, pick: fn(&Transfer) -> f64| {
        median(transfers[turn].iter().map(pick).collect())
    };
    let mut lines = Vec::new();
    for (kernel, suffix) in [(KERNEL, ""), (KERNEL_SPREAD, ", kernel with RPS")] {
        let wanted = |target: Option<f64>| target.filter(|_| kernel == KERNEL);
        lines.push(Line {
            what: format!("{name}: UDP, 64-byte frames{suffix}"),
            value: of_floods(engine, |f| f.packets_per_s / 1e3),
            unit: "kpackets/s",
            yardstick: of_floods(kernel, |f| f.packets_per_s / 1e3),
            target: wanted(flood_target),
        });
        lines.push(Line {
            what: format!("{name}: TCP, one stream with offloads{suffix}"),
            value: of_transfers(engine, |t| t.gbit_per_s),
            unit: "Gbit/s",
            yardstick: of_transfers(kernel, |t| t.gbit_per_s),
            target: wanted(transfer_target),
        });
    }
    lines.push(Line {
        what: format!("{name}: processor time, source to sink"),
        value: of_floods(engine, |f| f.cpu_us_per_packet),
        unit: "µs/packet",
        yardstick: of_floods(KERNEL, |f| f.cpu_us_per_packet),
        target: None,
    });
    lines
}

/// `bench/forwarding.json` where cargo builds.
fn result_path() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    built.join("bench/forwarding.json")
}
