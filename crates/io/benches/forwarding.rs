//! Forwarding through the whole engine, compared with the kernel's own in the same run.
//!
//! `cargo bench -p io --bench forwarding` (root), or `make bench`. Three network namespaces in a
//! row, joined by veth pairs: source, forwarder, sink. The forwarder is in turn the kernel, with
//! connection tracking, a set of 100,000 addresses and source NAT (`forwarding/kernel.nft`), and
//! a worker of the engine on two ports of each backend, with the same policy and SNAT. Each turn floods 256
//! UDP flows of 64-byte frames, one in 64 of them to a denied address, and then lets iperf3 send
//! one TCP stream with all offloads. The sink counts what arrived with the translated source,
//! and the run fails if anything arrived untranslated or denied. Then wrk asks nginx (`forwarding/sink.nginx`) as often as
//! it can, over a new connection each time, and `ping` measures the round trip through a forwarder that is idle. Turns are interleaved and
//! repeated; medians are compared.
//!
//! By itself the kernel forwards on the core that sends, the sender's time included, while the
//! engine has a core of its own; so the kernel is also measured with its part moved to that core
//! (RPS). The ratio that is aimed at is the one to the kernel as it comes.
//!
//! A veth pair has a queue for each core that sends, and so reorders what a host sends from two of them: TCP's sender, from
//! its own core and, where acknowledgments arrive, from the one that brings them, which is the engine's. No network card
//! does that. While the source sends in bulk, what it receives is therefore led to its own core, behind all forwarders. The
//! kernel by itself brings acknowledgments on that core anyway and only pays for being led there, so its rate without is
//! measured and shown too.
//!
//! `--attacks` measures something else: what others keep while somebody attacks (`forwarding/attack.rs`), by the first
//! backend; `--rate N` is the attacks' rate, in packets per second (200,000). That result goes to `target/bench/attack.json`.
//!
//! `--seconds N` is the length of each measurement (3), `--repetitions N` their number (3), `--backend NAME` the only
//! backend that is measured. Without it all are, in turn, each compared with the same turns of the kernel; on a machine whose
//! kernel has no AF_XDP, the others. A target that is missed is marked and fails nothing.
//! The result goes to `target/bench/forwarding.json`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "forwarding/attack.rs"]
mod attack;
#[path = "forwarding/evidence.rs"]
mod evidence;
#[path = "forwarding/forwarder.rs"]
mod forwarder;
#[path = "engine/frame.rs"]
mod frame;
#[path = "engine/report.rs"]
mod report;
#[path = "forwarding/space.rs"]
mod space;
#[path = "forwarding/traffic.rs"]
mod traffic;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use forwarder::{Backend, Engine, Kernel};
use io::xdp::OpenError;
use report::{Line, Target, median};
use space::Space;
use traffic::{
    CONGESTION_CONTROL, Connections, Echo, Flood, Transfer, connections, echo, flood, in_order,
    transfer,
};

/// The forwarders, in the order of their turns.
const KERNEL: usize = 0;
const KERNEL_SPREAD: usize = 1;
/// The engine's backends come after the two: name, backend, and what is wanted of it, as multiples of the kernel's.
const BACKENDS: [(&str, Backend, Wanted); 2] = [
    (
        "packet",
        Backend::Packet,
        Wanted {
            flood: Some(Target::AtLeast(1.5)),
            transfer: Some(Target::AtLeast(1.0)),
            connections: Some(Target::AtLeast(1.0)),
            echo: Some(Target::AtMost(2.5)),
        },
    ),
    (
        "xdp",
        Backend::Xdp,
        Wanted {
            flood: Some(Target::AtLeast(1.7)),
            // It has no super-packets.
            transfer: None,
            connections: None,
            echo: None,
        },
    ),
];

/// What is wanted of a backend.
#[derive(Clone, Copy)]
struct Wanted {
    /// Small frames per second.
    flood: Option<Target>,
    /// Rate of a bulk transfer.
    transfer: Option<Target>,
    /// Connections per second.
    connections: Option<Target>,
    /// Round trip of an echo.
    echo: Option<Target>,
}

/// What one turn of a forwarder gave.
struct Turn {
    flood: Flood,
    transfer: Transfer,
    /// Without what keeps the source's segments in order, by the kernel as it comes.
    loose_transfer: Option<Transfer>,
    connections: Connections,
    echo: Echo,
}

const FORWARDERS: usize = 2 + BACKENDS.len();

fn main() -> Result<()> {
    let Some(options) = Options::from_arguments()? else {
        // `cargo test --benches` runs it too, without `--bench`.
        return Ok(());
    };
    traffic::install()?;
    let links = Links::lay()?;
    if options.attacks {
        return attack::run(&links, options.length, options.repetitions, options.rate);
    }
    let mut takes_part = [false; FORWARDERS];
    for (turn, takes_part) in takes_part.iter_mut().enumerate() {
        *takes_part = options.wants(turn) && links.can_run(turn, options.backend.is_none())?;
    }
    let mut turns: [Vec<Turn>; FORWARDERS] = Default::default();
    for repetition in 1..=options.repetitions {
        for turn in (0..FORWARDERS).filter(|turn| takes_part[*turn]) {
            let measured = links.measure(turn, options.length)?;
            println!(
                "{repetition}/{} {:<12} {:>8.0} packets/s of {:>8.0} offered, {:>5.2} µs of processor each; \
                 {:>6.2} Gbit/s, {} retransmits, {:.2} cores; {:>6.0} connections/s, {} failed; echo in {:>5.0} µs",
                options.repetitions,
                name(turn),
                measured.flood.packets_per_s,
                measured.flood.offered_per_s,
                measured.flood.cpu_us_per_packet,
                measured.transfer.gbit_per_s,
                measured.transfer.retransmits,
                measured.transfer.cores,
                measured.connections.per_s,
                measured.connections.failed,
                measured.echo.rtt_us,
            );
            turns[turn].push(measured);
        }
    }
    let lines: Vec<Line> = (0..BACKENDS.len())
        .filter(|backend| takes_part[2 + backend])
        .flat_map(|backend| compare(backend, &turns))
        .collect();
    report::publish("forwarding", ["engine", "kernel"], &lines)
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
    attacks: bool,
    rate: u64,
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
            attacks: false,
            rate: 200_000,
        };
        let mut wanted = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--backend" {
                let named = arguments.next().context("a name follows the option")?;
                ensure!(
                    BACKENDS.iter().any(|(name, ..)| *name == named),
                    "there is no backend {named}"
                );
                options.backend = Some(named);
                continue;
            }
            let mut number = || -> Result<u64> {
                let value = arguments.next().context("a number follows the option")?;
                Ok(value.parse()?)
            };
            match argument.as_str() {
                "--bench" => wanted = true,
                "--attacks" => options.attacks = true,
                "--rate" => options.rate = number()?.max(1),
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
        source.sh(&format!(
            "ip addr add 10.1.0.1/24 dev source
             ip link set source up
             ip route add default via 10.1.0.254 congctl {CONGESTION_CONTROL}"
        ))?;
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

    /// The engine, as the forwarder.
    fn start_engine(&self, backend: Backend) -> Result<Engine> {
        let state_dir = self.state.path().to_owned();
        Engine::start(&self.forwarder, self.core, state_dir, backend)
    }

    /// Whether a forwarder can run on this machine. One that the kernel lacks something for is said to be left out if it
    /// `may_lack`, else that is an error, as everything else is.
    fn can_run(&self, turn: usize, may_lack: bool) -> Result<bool> {
        if turn < 2 {
            return Ok(true);
        }
        match self.start_engine(BACKENDS[turn - 2].1) {
            Ok(engine) => {
                engine.stop()?;
                Ok(true)
            }
            Err(error) => match error.downcast_ref() {
                Some(OpenError::NoKernelSupport { .. }) if may_lack => {
                    println!("{} is left out: {error:#}", name(turn));
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }

    /// Measures one forwarder.
    fn measure(&self, turn: usize, length: Duration) -> Result<Turn> {
        let run = || -> Result<Turn> {
            Ok(Turn {
                flood: flood(&self.source, &self.sink, length)?,
                transfer: in_order(&self.source, || transfer(&self.source, &self.sink, length))?,
                loose_transfer: (turn == KERNEL)
                    .then(|| transfer(&self.source, &self.sink, length))
                    .transpose()?,
                connections: connections(&self.source, &self.sink, length)?,
                echo: echo(&self.source)?,
            })
        };
        if turn < 2 {
            let spread_to = (turn == KERNEL_SPREAD).then_some(self.core);
            let _kernel = Kernel::start(&self.forwarder, spread_to)?;
            return run();
        }
        let engine = self.start_engine(BACKENDS[turn - 2].1)?;
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

fn compare(backend: usize, turns: &[Vec<Turn>; FORWARDERS]) -> Vec<Line> {
    let (name, _, wanted) = BACKENDS[backend];
    let line = |what: &str, unit, target, kernel: usize, pick: fn(&Turn) -> f64| {
        let of = |turn: usize| median(turns[turn].iter().map(pick).collect());
        let suffix = match kernel {
            KERNEL_SPREAD => ", kernel with RPS",
            _ => "",
        };
        Line {
            what: format!("{name}: {what}{suffix}"),
            value: of(2 + backend),
            yardstick: of(kernel),
            unit,
            target,
        }
    };
    let small = |turn: &Turn| turn.flood.packets_per_s / 1e3;
    let bulk = |turn: &Turn| turn.transfer.gbit_per_s;
    let loose = |turn: &Turn| Some(turn.loose_transfer.as_ref()?.gbit_per_s);
    let fresh = |turn: &Turn| turn.connections.per_s / 1e3;
    let time = |turn: &Turn| turn.flood.cpu_us_per_packet;
    let (flood, transfer) = ("UDP, 64-byte frames", "TCP, one stream with offloads");
    let connections = "TCP, a connection for each request";
    vec![
        line(flood, "kpackets/s", wanted.flood, KERNEL, small),
        line(flood, "kpackets/s", None, KERNEL_SPREAD, small),
        line(
            "processor time, source to sink",
            "µs/packet",
            None,
            KERNEL,
            time,
        ),
        line(transfer, "Gbit/s", wanted.transfer, KERNEL, bulk),
        line(transfer, "Gbit/s", None, KERNEL_SPREAD, bulk),
        Line {
            what: format!("{name}: {transfer}, kernel unsteered"),
            value: median(turns[2 + backend].iter().map(bulk).collect()),
            yardstick: median(turns[KERNEL].iter().filter_map(loose).collect()),
            unit: "Gbit/s",
            target: None,
        },
        line(connections, "k/s", wanted.connections, KERNEL, fresh),
        line("echo, idle", "µs", wanted.echo, KERNEL, |turn| {
            turn.echo.rtt_us
        }),
    ]
}
