//! What others keep while somebody attacks: the same victims through the engine, left alone and under each attack.
//!
//! The victims ask for less than the machine can carry, and the attack comes at a stated rate: generator, victims, sink and
//! node share two cores or more, and what a saturated machine does to all of them says nothing about the node. The yardstick
//! is what the same victims had in the same run while nobody attacked. An attack counts only if it has taken place, else the
//! run fails: it came at the rate that was asked for, its frames are found in what the sink was sent and in what the node
//! dropped, and they did in the node what the attack is named for. Where it lives by flows, these are there before anything is
//! measured. And while nobody attacks, the node counts nothing of the kind.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::port::{Packet, Port};
use engine::{DropReason, WorkerCounters};
use io::packet::{PacketConfig, PacketPort};
use serde_json::Value;

use crate::evidence::{FRAGMENTS, Seen, Sent, check_calm};
use crate::forwarder::{Account, Backend, FLOWS, WARM_UP};
use crate::frame::{LEN, udp};
use crate::report::{self, Line, Target};
use crate::space::{Space, pin};
use crate::traffic::{counters, gateway};
use crate::{Links, median};

/// What the victims offer.
const DATAGRAMS_PER_S: u64 = 30_000;
const TRANSFER: &str = "300M";
const CONNECTIONS_PER_S: u64 = 200;
/// A connection that has not been made and answered by then has failed: three attempts of a client's kernel.
const PATIENCE: Duration = Duration::from_secs(4);
/// What they are to keep.
const KEPT: Target = Target::AtLeast(0.9);

const SERVER: [u8; 4] = [10, 2, 0, 1];
const DENIED: [u8; 4] = [10, 2, 0, 66];
/// Where the victims open connections, and an attacker too.
const SERVICE: u16 = 8081;
/// Sent by attackers alone, so that the sink knows them and answers nothing (`sink.nft`).
const WINDOW: u16 = 17;
/// UDP ports that only attackers send to, in `sink.nft` too.
const PORTS: std::ops::Range<u16> = 40_000..40_064;

/// Ports that NAT gives out towards one server: all but the well-known ones, which it only keeps.
const NAT_PORTS: u64 = 65_536 - 1024;
/// Client ports in [`spread`].
const SPREAD: u64 = 1 << 15;
/// Flows of the client that uses many.
const MANY: u64 = 100_000;

/// Somebody who makes trouble.
struct Attack {
    name: &'static str,
    /// The frame with this number.
    frame: fn(u64) -> [u8; LEN],
    /// Flows that it keeps in the node: before anything is measured, and at the end.
    flows: u64,
    /// Whether the node has had of it what its name says.
    took_place: fn(&Seen) -> Result<()>,
}

const ATTACKS: [Attack; 6] = [
    Attack {
        name: "a SYN flood from 248 addresses to the victims' service",
        frame: |n| syn(spoofed(n), spread(n), SERVER, SERVICE),
        // The last free ports are found by chance.
        flows: NAT_PORTS * 9 / 10,
        took_place: |seen| seen.opens_flows(),
    },
    Attack {
        name: "a SYN flood from one address, ports used again and again",
        frame: |n| syn([10, 1, 0, 9], spread(n), SERVER, SERVICE),
        flows: SPREAD,
        took_place: |seen| seen.uses_flows_again(),
    },
    Attack {
        name: "a flood of fragments that never make a datagram",
        frame: |n| fragment(spoofed(n), n),
        flows: 0,
        took_place: |seen| seen.is_refused(&FRAGMENTS),
    },
    Attack {
        name: "a scan of a denied address's ports",
        frame: |n| syn([10, 1, 0, 9], 50_000, DENIED, n as u16),
        flows: 0,
        took_place: |seen| seen.is_refused(&[DropReason::PolicyDenied]),
    },
    Attack {
        name: "a table full of datagrams' flows, and more of them",
        frame: |n| {
            let port = PORTS.start + (n >> 14) as u16 % PORTS.len() as u16;
            datagram(spoofed(n), spread(n), port)
        },
        flows: FLOWS as u64,
        took_place: |seen| seen.opens_flows(),
    },
    Attack {
        name: "a client with 100,000 flows that it all uses",
        frame: |n| {
            let n = n % MANY;
            datagram(
                [10, 1, 0, 9],
                10_000 + (n % 50_000) as u16,
                PORTS.start + (n / 50_000) as u16,
            )
        },
        flows: MANY,
        took_place: |seen| seen.uses_flows_again(),
    },
];

/// What the victims had.
#[derive(Clone, Copy)]
struct Kept {
    datagrams_per_s: f64,
    gbit_per_s: f64,
    connections_per_s: f64,
}

type Pick = fn(&Kept) -> f64;

/// Measures all of it, so many times; `rate` is that of the attacks, in packets per second.
pub(crate) fn run(links: &Links, length: Duration, repetitions: usize, rate: u64) -> Result<()> {
    println!(
        "{} cores for generator, victims, sink and node; attacks at {rate} packets/s; victims: {DATAGRAMS_PER_S} \
         datagrams/s, {TRANSFER}bit/s by one TCP connection, {CONNECTIONS_PER_S} new TCP connections/s",
        std::thread::available_parallelism()?
    );
    let mut calm = Vec::new();
    let mut under: Vec<Vec<Kept>> = ATTACKS.iter().map(|_| Vec::new()).collect();
    for repetition in 1..=repetitions {
        println!("{repetition}/{repetitions}");
        calm.push(measure(links, length, None, rate)?);
        for (attack, kept) in ATTACKS.iter().zip(&mut under) {
            kept.push(measure(links, length, Some(attack), rate)?);
        }
    }
    let pick: [(&str, &str, Pick); 3] = [
        ("datagrams", "kpackets/s", |kept| kept.datagrams_per_s / 1e3),
        ("transfer", "Gbit/s", |kept| kept.gbit_per_s),
        ("connections", "1/s", |kept| kept.connections_per_s),
    ];
    let mut lines = Vec::new();
    for (attack, kept) in ATTACKS.iter().zip(&under) {
        for (what, unit, pick) in pick {
            let of = |kept: &[Kept]| median(kept.iter().map(pick).collect());
            lines.push(Line {
                what: format!("{}: {what}", attack.name),
                value: of(kept),
                yardstick: of(&calm),
                unit,
                target: Some(KEPT),
            });
        }
    }
    report::publish("attack", ["attacked", "calm"], &lines)
}

fn measure(
    links: &Links,
    length: Duration,
    attack: Option<&'static Attack>,
    rate: u64,
) -> Result<Kept> {
    let engine = links.start_engine(Backend::Packet)?;
    let gateway = gateway(&links.source)?;
    let before = counters(&links.sink)?;
    let stop = Arc::new(AtomicBool::new(false));
    let attacker = attack
        .map(|attack| {
            let (counters, stop) = (engine.counters(), Arc::clone(&stop));
            Attacker::start(&links.source, gateway, attack, rate, counters, stop)
        })
        .transpose()?;
    let measured = victims(&links.source, &links.sink, gateway, length);
    stop.store(true, Ordering::Relaxed);
    let sent = attacker.map_or(Ok(Sent::default()), Attacker::join)?;
    let after = counters(&links.sink)?;
    let account = engine.stop()?;
    let kept = measured?;
    ensure!(
        after.leaked == 0,
        "{} packets were not translated",
        after.leaked
    );
    ensure!(after.denied == 0, "{} denied packets arrived", after.denied);
    let name = attack.map_or("nobody attacks", |attack| attack.name);
    println!(
        "  {name}\n    victims: {:.0} datagrams/s, {:.3} Gbit/s, {:.0} connections/s",
        kept.datagrams_per_s, kept.gbit_per_s, kept.connections_per_s
    );
    let passed = after.attack - before.attack;
    if attack.is_some() {
        let dropped: u64 = account.drops.iter().map(|(_, packets)| packets).sum();
        println!(
            "    attack: {} sent, {:.0}/s of {rate}/s while victims were measured; {passed} went on to the sink, {dropped} \
             dropped by the node",
            sent.packets,
            sent.per_s()
        );
    }
    print(&account);
    match attack {
        None => check_calm(passed, &account)?,
        Some(attack) => Seen {
            sent,
            passed,
            account: &account,
        }
        .check(rate, attack.flows, attack.took_place)
        .with_context(|| format!("{} did not take place", attack.name))?,
    }
    Ok(kept)
}

fn print(account: &Account) {
    println!(
        "    node: {} flows opened, {} at the end, {} gave way to others",
        account.opened, account.active, account.evicted
    );
    for (reason, packets) in &account.drops {
        println!("    dropped for {}: {packets}", reason.name());
    }
    let [left, right] = account.ports;
    let lost = left.rx_dropped + right.rx_dropped;
    if lost > 0 {
        println!("    lost before the node: {lost}");
    }
}

struct Attacker(JoinHandle<Result<Sent>>);

impl Attacker {
    /// Begins, and comes back when the node has the flows that the attack keeps there.
    fn start(
        source: &Space,
        gateway: [u8; 6],
        attack: &'static Attack,
        rate: u64,
        counters: Arc<WorkerCounters>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        /// Frames for each flow, after which there is no hope: what is lost before the node is sent again, in a manner.
        const MOST: u64 = 8;
        let (begun, ready) = std::sync::mpsc::channel();
        let thread = source.spawn(move || {
            pin(0)?;
            let mut sender = Sender::open(gateway)?;
            let mut send = |until: &dyn Fn(u64) -> bool, first: u64| {
                let started = Instant::now();
                let mut sent = 0;
                while !until(first + sent) {
                    sent += sender.keep_up(started, rate, sent, |n| (attack.frame)(first + n))?;
                }
                anyhow::Ok((sent, started.elapsed().as_secs_f64()))
            };
            let flows = || counters.flows_active.get();
            let most = attack.flows * MOST;
            let (first, _) = send(&|sent| flows() >= attack.flows || sent >= most, 0)?;
            ensure!(
                flows() >= attack.flows,
                "{first} frames of the attack brought {} flows into the table, of {} that it keeps there",
                flows(),
                attack.flows
            );
            let _ = begun.send(());
            let (paced, seconds) = send(&|_| stop.load(Ordering::Relaxed), first)?;
            Ok(Sent {
                packets: first + paced,
                paced,
                seconds,
            })
        })?;
        if ready.recv().is_err() {
            thread.join().ok().context("the attacker panicked")??;
            bail!("the attack ended before it began");
        }
        Ok(Self(thread))
    }

    fn join(self) -> Result<Sent> {
        self.0.join().ok().context("the attacker panicked")?
    }
}

/// Puts frames on the source's link.
struct Sender {
    port: PacketPort,
    stations: [[u8; 6]; 2],
}

impl Sender {
    fn open(gateway: [u8; 6]) -> Result<Self> {
        let port = PacketPort::open(&PacketConfig::new("source"))?;
        let stations = [port.capabilities().mac, gateway];
        Ok(Self { port, stations })
    }

    fn send(&mut self, frames: impl Iterator<Item = [u8; LEN]>) -> Result<()> {
        let mut burst = Vec::with_capacity(64);
        for mut bytes in frames {
            bytes[..6].copy_from_slice(&self.stations[1]);
            bytes[6..12].copy_from_slice(&self.stations[0]);
            let mut packet = self.port.alloc(LEN).context("a buffer is free")?;
            packet.bytes_mut().copy_from_slice(&bytes);
            burst.push(packet);
        }
        self.port.tx_burst(&mut burst);
        Ok(())
    }

    /// Sends what is due by now, at most a burst, and returns how much that was; waits if that was nothing.
    fn keep_up(
        &mut self,
        started: Instant,
        rate: u64,
        sent: u64,
        frame: impl Fn(u64) -> [u8; LEN],
    ) -> Result<u64> {
        let due = (started.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        let count = due.saturating_sub(sent).min(64);
        if count < 16 {
            std::thread::sleep(Duration::from_micros(100));
            return Ok(0);
        }
        self.send((sent..sent + count).map(frame))?;
        Ok(count)
    }
}

/// Everything that the victims do, at the same time, and what they have of it.
fn victims(source: &Space, sink: &Space, gateway: [u8; 6], length: Duration) -> Result<Kept> {
    let stop = Arc::new(AtomicBool::new(false));
    let _service = Service::start(sink)?;
    let datagrams = {
        let stop = Arc::clone(&stop);
        source.spawn(move || {
            pin(0)?;
            let mut sender = Sender::open(gateway)?;
            let started = Instant::now();
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let frame = |n: u64| {
                    let from = SocketAddrV4::new([10, 1, 0, 1].into(), 20_000 + (n % 64) as u16);
                    udp([[0; 6]; 2], from, SocketAddrV4::new(SERVER.into(), 9))
                };
                sent += sender.keep_up(started, DATAGRAMS_PER_S, sent, frame)?;
            }
            anyhow::Ok(())
        })?
    };
    let made = Arc::new(AtomicU64::new(0));
    let connections = {
        let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
        source.spawn(move || connect(&stop, &made))?
    };
    std::thread::sleep(WARM_UP);
    let measured = (|| {
        let before = (
            counters(sink)?,
            made.load(Ordering::Relaxed),
            Instant::now(),
        );
        let gbit_per_s = stream(source, sink, length)?;
        let seconds = before.2.elapsed().as_secs_f64();
        let after = counters(sink)?;
        Ok(Kept {
            datagrams_per_s: (after.udp_natted - before.0.udp_natted) as f64 / seconds,
            gbit_per_s,
            connections_per_s: (made.load(Ordering::Relaxed) - before.1) as f64 / seconds,
        })
    })();
    stop.store(true, Ordering::Relaxed);
    datagrams.join().ok().context("the sender panicked")??;
    connections.join().ok().context("the client panicked")??;
    measured
}

/// One TCP connection that sends so much a second.
fn stream(source: &Space, sink: &Space, length: Duration) -> Result<f64> {
    let server = sink.spawn(|| crate::space::sh("iperf3 -s -1 -B 10.2.0.1 -p 5201 >/dev/null"))?;
    let seconds = length.as_secs().max(1);
    let output = source.sh(&format!(
        "for try in 1 2 3 4 5; do
             sleep 0.2
             if report=$(iperf3 -J -c 10.2.0.1 -p 5201 -t {seconds} -b {TRANSFER} -C cubic --connect-timeout 4000); then
                 echo \"$report\"
                 exit 0
             fi
         done
         echo \"$report\" >&2
         exit 1"
    ))?;
    server.join().ok().context("iperf3's server panicked")??;
    let report: Value = serde_json::from_str(&output)?;
    let received = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(received.context("iperf3 reported no rate")? / 1e9)
}

/// Opens connections at the victims' rate and counts those over which an answer came.
fn connect(stop: &AtomicBool, made: &Arc<AtomicU64>) -> Result<()> {
    // One thread for each that may be waiting at a time would do nothing else; a few share the rate.
    const CLIENTS: u64 = 8;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let started = Instant::now();
                let mut asked = 0;
                while !stop.load(Ordering::Relaxed) {
                    let due =
                        started.elapsed().as_millis() as u64 * CONNECTIONS_PER_S / CLIENTS / 1000;
                    if asked >= due {
                        std::thread::sleep(Duration::from_millis(2));
                        continue;
                    }
                    // Those that were late are not made up for.
                    asked = due;
                    if ask().is_ok() {
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok(())
}

fn ask() -> std::io::Result<()> {
    let to = SocketAddr::from((SERVER, SERVICE));
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    // The client is the first to end it: the port is free again for the service.
    Ok(())
}

/// Answers every connection with what it is sent first, until dropped.
struct Service<'a> {
    sink: &'a Space,
    stop: Arc<AtomicBool>,
}

impl<'a> Service<'a> {
    fn start(sink: &'a Space) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = sink.run(|| TcpListener::bind(SocketAddr::from((SERVER, SERVICE))))??;
        let until = Arc::clone(&stop);
        sink.spawn(move || {
            for stream in listener.incoming() {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                let mut question = [0];
                if stream.read_exact(&mut question).is_ok() {
                    let _ = stream.write_all(&question);
                }
            }
        })?;
        Ok(Self { sink, stop })
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for one more.
        let _ = self
            .sink
            .run(|| TcpStream::connect(SocketAddr::from((SERVER, SERVICE))));
    }
}

/// 248 addresses of the inside that nobody has.
fn spoofed(n: u64) -> [u8; 4] {
    [10, 1, 0, 2 + (n % 248) as u8]
}

/// All client ports, in an order without a pattern that the table could like.
fn spread(n: u64) -> u16 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16 | 1
}

fn datagram(from: [u8; 4], port: u16, to: u16) -> [u8; LEN] {
    let (from, to) = (
        SocketAddrV4::new(from.into(), port),
        SocketAddrV4::new(SERVER.into(), to),
    );
    udp([[0; 6]; 2], from, to)
}

/// The first segment of a TCP connection (RFC 9293 §3.1). A router does not look at its checksum.
fn syn(from: [u8; 4], port: u16, to: [u8; 4], service: u16) -> [u8; LEN] {
    let (from, to) = (
        SocketAddrV4::new(from.into(), port),
        SocketAddrV4::new(to.into(), service),
    );
    let mut frame = udp([[0; 6]; 2], from, to);
    set_header(&mut frame, |header| header[9] = 6);
    frame[38..54].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0, 0x50, 2, 0, WINDOW as u8, 0, 0, 0, 0]);
    frame
}

/// A piece from the middle of a datagram (RFC 791 §3.2), each of another datagram.
fn fragment(from: [u8; 4], n: u64) -> [u8; LEN] {
    let mut frame = datagram(from, 1, PORTS.start);
    set_header(&mut frame, |header| {
        header[4..6].copy_from_slice(&(n as u16).to_be_bytes());
        header[6..8].copy_from_slice(&[0x20, 3]);
        // 24 bytes of payload: a multiple of eight.
        header[2..4].copy_from_slice(&44u16.to_be_bytes());
    });
    frame
}

/// Changes the IPv4 header and its checksum.
fn set_header(frame: &mut [u8; LEN], change: impl FnOnce(&mut [u8])) {
    let header = &mut frame[14..34];
    change(header);
    header[10..12].fill(0);
    let words = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}
