//! Queries a second from the cache, beside Debian's dnsdist (packet cache on) and unbound (forwarding, cache on).
//!
//! `cargo bench -p proxy --bench serve` (root; Debian's packages dnsperf, dnsdist and unbound). Each server is in a network
//! namespace of its own, joined by a veth pair to that of `dnsperf`, and has one core. Each is asked for the same 10,000
//! names: once, which fills its cache from an upstream at its side; then as often as it answers (queries/s), by two threads
//! of `dnsperf` on both cores, since one alone takes longer over a query than the servers; then 10,000 times a second, for
//! the latency, by one thread on the other core. Turns are interleaved and repeated; medians are compared. The
//! yardsticks' configurations are beside this file.
//!
//! `--seconds N` is the length of each measurement (2), `--repetitions N` their number (3).
//! The result goes to `target/bench/names.json`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../../io/benches/engine/report.rs"]
mod report;
#[expect(dead_code, reason = "the other bench needs more of it")]
#[path = "../../io/benches/forwarding/space.rs"]
mod space;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dns::reply::Denial;
use policy::{Compiled, Document};
use prometheus_client::registry::Registry;
use proxy::dns::{NoGrants, Proxy, Settings, Upstream};
use report::{Line, Target};
use space::{Space, pin};
use tokio_util::sync::CancellationToken;

/// Names that are asked for.
const NAMES: usize = 10_000;
/// Queries a second while latency is measured: what each of them does with ease.
const PACE: &str = "10000";
/// The cores.
const SERVER: usize = 1;
const CLIENT: &str = "0";
const BOTH: &str = "0,1";
const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5300);

/// The servers, in the order of their turns.
const TURNS: [&str; 4] = [
    "neuwerk, 10 names",
    "neuwerk, 100,000 names",
    "dnsdist",
    "unbound",
];
const FEW: usize = 0;
const MANY: usize = 1;
const DNSDIST: usize = 2;
const UNBOUND: usize = 3;

fn main() -> Result<()> {
    let (mut seconds, mut repetitions, mut wanted) = (2_u32, 3_usize, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .and_then(|n| n.parse().ok())
                .context("a number")
        };
        match argument.as_str() {
            "--bench" => wanted = true,
            "--seconds" => seconds = number()?,
            "--repetitions" => repetitions = number()? as usize,
            other => bail!("unknown argument {other}"),
        }
    }
    if !wanted {
        // `cargo test --benches` runs it too, without `--bench`.
        return Ok(());
    }
    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/../../lab/install-tools");
    space::sh(&format!(
        "{install} dnsperf:dnsperf dnsdist:dnsdist && PATH=$PATH:/usr/sbin && \
         command -v dnsperf && command -v dnsdist && command -v unbound"
    ))
    .context("the bench needs dnsperf, dnsdist and unbound")?;
    let files = Files::write()?;
    let client = Space::new()?;
    let places = (1..=3)
        .map(|at| Place::lay(&client, at))
        .collect::<Result<Vec<_>>>()?;
    let mut figures: [Vec<Figures>; 4] = Default::default();
    let mut entry_bytes = f64::NAN;
    for repetition in 1..=repetitions {
        for (turn, name) in TURNS.iter().enumerate() {
            // Ours has one place for both of its turns.
            let place = &places[turn.saturating_sub(1)];
            let server = match turn {
                FEW => Server::ours(place, 10)?,
                MANY => Server::ours(place, 100_000)?,
                DNSDIST => Server::theirs(
                    place,
                    &[
                        "dnsdist",
                        "--supervised",
                        "--disable-syslog",
                        "-C",
                        &files.dnsdist,
                    ],
                )?,
                _ => Server::theirs(place, &["/usr/sbin/unbound", "-d", "-c", &files.unbound])?,
            };
            let measured = measure(&client, place, &server, &files.queries, seconds)
                .with_context(|| format!("{name} does not do"))?;
            println!(
                "{repetition}/{repetitions} {name:<24} {:>8.0} queries/s, {} lost, {:>5.2} µs of processor each; {:>6.0} µs median, {:>6.0} µs p99",
                measured.per_s, measured.lost, measured.cpu_us, measured.median_us, measured.p99_us
            );
            figures[turn].push(measured);
            if let Some(bytes) = server.entry_bytes() {
                entry_bytes = bytes;
            }
            drop(server);
        }
    }
    let per_s = |turn: usize| median(figures[turn].iter().map(|f| f.per_s));
    let p99 = |turn: usize| median(figures[turn].iter().map(|f| f.p99_us));
    let cpu = |turn: usize| median(figures[turn].iter().map(|f| f.cpu_us));
    let line = |what: &str, value, yardstick, unit, target| Line {
        what: what.to_owned(),
        value,
        yardstick,
        unit,
        target: Some(target),
    };
    let at_least = Target::AtLeast(1.0);
    let at_most = Target::AtMost(1.0);
    let lines = [
        line(
            "cache hits, beside dnsdist",
            per_s(FEW),
            per_s(DNSDIST),
            "queries/s",
            at_least,
        ),
        line(
            "cache hits, beside unbound",
            per_s(FEW),
            per_s(UNBOUND),
            "queries/s",
            at_least,
        ),
        line(
            "100,000 names in the policy, beside 10",
            per_s(MANY),
            per_s(FEW),
            "queries/s",
            Target::AtLeast(0.9),
        ),
        line(
            "p99 at 10,000 queries/s, beside dnsdist",
            p99(FEW),
            p99(DNSDIST),
            "µs",
            at_most,
        ),
        line(
            "p99 at 10,000 queries/s, beside unbound",
            p99(FEW),
            p99(UNBOUND),
            "µs",
            at_most,
        ),
        Line {
            what: "processor time per query, beside dnsdist".to_owned(),
            value: cpu(FEW),
            yardstick: cpu(DNSDIST),
            unit: "µs",
            target: None,
        },
        Line {
            what: "processor time per query, beside unbound".to_owned(),
            value: cpu(FEW),
            yardstick: cpu(UNBOUND),
            unit: "µs",
            target: None,
        },
        Line {
            what: "memory per answer that is kept".to_owned(),
            value: entry_bytes,
            yardstick: f64::NAN,
            unit: "bytes",
            target: None,
        },
    ];
    report::publish("names", ["neuwerk", "yardstick"], &lines)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn name(i: usize) -> String {
    format!("host{i}.zone{}.example.com", i % 97)
}

/// A policy that allows the names asked for, beside `more` others.
fn policy(more: usize) -> Result<Arc<Compiled>> {
    let mut json = String::from(
        r#"{"source_groups":[{"id":"g","mode":"enforce","sources":{"cidrs":["10.77.0.0/16"]},"rules":["#,
    );
    for start in (0..more).step_by(1_000) {
        let list: Vec<String> = (start..more.min(start + 1_000))
            .map(|i| format!("\"h{i}.svc{}.example.net\"", i % 5_003))
            .collect();
        let list = list.join(",");
        write!(
            json,
            r#"{{"id":"r{start}","action":"allow","match":{{"dns_names":[{list}]}}}},"#
        )?;
    }
    json += r#"{"id":"ok","action":"allow","match":{"dns_names":["**.example.com"]}}]}]}"#;
    let document = Document::parse_json(json.as_bytes())?;
    Ok(Arc::new(Compiled::compile(&document, 1)?))
}

/// What the programs read.
struct Files {
    _directory: tempfile::TempDir,
    queries: String,
    dnsdist: String,
    unbound: String,
}

impl Files {
    fn write() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let write = |name: &str, text: &str| -> Result<String> {
            let path = directory.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let queries: String = (0..NAMES).map(|i| name(i) + " A\n").collect();
        Ok(Self {
            queries: write("queries", &queries)?,
            dnsdist: write("dnsdist.lua", include_str!("serve/dnsdist.lua"))?,
            unbound: write("unbound.conf", include_str!("serve/unbound.conf"))?,
            _directory: directory,
        })
    }
}

/// The namespace of a server, with an upstream in it.
struct Place {
    space: Space,
    address: Ipv4Addr,
}

impl Place {
    fn lay(client: &Space, at: u8) -> Result<Self> {
        let space = Space::new()?;
        client.sh(&format!(
            "ip link add s{at} type veth peer name eth0 netns {}\n\
             ip address add 10.77.{at}.1/24 dev s{at}\nip link set s{at} up",
            space.thread_id()
        ))?;
        space.sh(&format!(
            "ip address add 10.77.{at}.2/24 dev eth0\nip link set eth0 up"
        ))?;
        let socket = space.run(|| UdpSocket::bind(UPSTREAM))??;
        std::thread::spawn(move || upstream(&socket));
        Ok(Self {
            space,
            address: Ipv4Addr::new(10, 77, at, 2),
        })
    }
}

/// Answers every question with one address that lives for an hour.
fn upstream(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((read, from)) = socket.recv_from(&mut buffer) {
        let Some(end) = buffer[12..read].iter().position(|byte| *byte == 0) else {
            continue;
        };
        let mut out = buffer[..12 + end + 5].to_vec();
        out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
        let _ = socket.send_to(&out, from);
    }
}

/// A server that runs, and ends with this.
enum Server {
    Ours {
        registry: Registry,
        stop: CancellationToken,
        runtime: Option<tokio::runtime::Runtime>,
    },
    Theirs(Child),
}

impl Server {
    fn ours(place: &Place, names: usize) -> Result<Self> {
        let compiled = policy(names)?;
        let address = SocketAddr::from((place.address, 53));
        place.space.run(move || -> Result<Self> {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .on_thread_start(|| pin(SERVER).unwrap_or_else(|error| println!("{error}")))
                .enable_all()
                .build()?;
            let settings = Settings {
                upstreams: vec![Upstream {
                    address: UPSTREAM,
                    tls: None,
                }],
                upstream_timeout: Duration::from_secs(2),
                allow_private_answers: vec![],
                own_addresses: Arc::new(Vec::new),
                allow_ech: false,
                more_kinds: vec![],
                denial: Denial::NxDomain,
                cache_bytes: 64 << 20,
                // One address asks more than any client.
                client_queries_per_second: 0,
                client_burst: 1,
            };
            let mut registry = Registry::default();
            let stop = CancellationToken::new();
            let policy = Box::new(move || Arc::clone(&compiled));
            let proxy = Proxy::new(settings, policy, Arc::new(NoGrants), &mut registry);
            {
                let _entered = runtime.enter();
                proxy.listen(address, 1, &stop)?;
            }
            Ok(Self::Ours {
                registry,
                stop,
                runtime: Some(runtime),
            })
        })?
    }

    fn theirs(place: &Place, command: &[&str]) -> Result<Self> {
        let mut program = Command::new("taskset");
        program
            .args(["-c", &SERVER.to_string()])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = place.space.run(move || program.spawn())??;
        std::thread::sleep(Duration::from_secs(1));
        Ok(Self::Theirs(child))
    }

    /// Processor time that it has used so far; the benchmark's own, which waits otherwise, if it is in here.
    fn cpu_us(&self) -> Result<f64> {
        let process = match self {
            Self::Ours { .. } => "self".to_owned(),
            Self::Theirs(child) => child.id().to_string(),
        };
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no such process")?;
        // In hundredths of a second, of the program and of the kernel for it (proc(5)).
        let ticks = fields.split_whitespace().skip(11).take(2);
        Ok(ticks
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            * 1e4)
    }

    /// Memory of an answer, as the proxy counts it.
    fn entry_bytes(&self) -> Option<f64> {
        let Self::Ours { registry, .. } = self else {
            return None;
        };
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).ok()?;
        let value = |name: &str| -> Option<f64> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        Some(value("neuwerk_dns_cache_bytes ")? / value("neuwerk_dns_cache_entries ")?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self {
            Self::Ours { stop, runtime, .. } => {
                stop.cancel();
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_timeout(Duration::from_secs(1));
                }
            }
            Self::Theirs(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What one turn gave.
struct Figures {
    per_s: f64,
    lost: u64,
    /// Processor time of the server.
    cpu_us: f64,
    median_us: f64,
    p99_us: f64,
}

fn measure(
    client: &Space,
    place: &Place,
    server: &Server,
    queries: &str,
    seconds: u32,
) -> Result<Figures> {
    let dnsperf = |cores: &str, arguments: &str| {
        client.sh(&format!(
            "taskset -c {cores} dnsperf -s {} -d {queries} -c 8 {arguments}",
            place.address
        ))
    };
    let filled = dnsperf(CLIENT, "-n 1 -q 50 -t 2")?;
    let lost = figure(&filled, "Queries lost:")?;
    ensure!(
        lost < NAMES as f64 / 100.0,
        "the cache was not filled:\n{filled}"
    );
    let before = server.cpu_us()?;
    let full = dnsperf(BOTH, &format!("-T 2 -l {seconds} -q 200 -t 1"))?;
    let cpu_us = server.cpu_us()? - before;
    let paced = dnsperf(CLIENT, &format!("-l {seconds} -Q {PACE} -t 1 -v"))?;
    // `> NOERROR NAME TYPE SECONDS`
    let mut latencies: Vec<f64> = paced
        .lines()
        .filter_map(|line| line.strip_prefix("> NOERROR ")?.rsplit_once(' '))
        .filter_map(|(_, seconds)| seconds.parse::<f64>().ok())
        .map(|seconds| seconds * 1e6)
        .collect();
    ensure!(
        latencies.len() > 1_000,
        "too few answers:\n{}",
        &paced[..paced.len().min(2_000)]
    );
    latencies.sort_by(f64::total_cmp);
    Ok(Figures {
        per_s: figure(&full, "Queries per second:")?,
        lost: figure(&full, "Queries lost:")? as u64,
        cpu_us: cpu_us / figure(&full, "Queries completed:")?,
        median_us: latencies[latencies.len() / 2],
        p99_us: latencies[latencies.len() * 99 / 100],
    })
}

/// A number that dnsperf says at its end.
fn figure(text: &str, what: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(what));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("dnsperf does not say {what}\n{text}"))
}
