//! What is sent through the forwarder and what is seen behind it.

#![expect(clippy::print_stdout, reason = "it says what it installs")]

use std::net::SocketAddrV4;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::port::{Packet, Port};
use io::packet::{PacketConfig, PacketPort};
use serde_json::Value;

use crate::forwarder::WARM_UP;
use crate::frame::{LEN, udp};
use crate::median;
use crate::space::{Space, pin};

/// Flows of the flood, told apart by their source port.
const FLOWS: u16 = 256;
/// One frame in so many is for a destination that the policy denies.
const DENIED_EVERY: u64 = 64;
/// How TCP's sender reacts to loss: Debian's default. BBR, to which some machines are set, sends at the rate of its own
/// model of the path, whatever the path could carry. It is an attribute of the route as well: iperf3 chooses it only once
/// the connection stands, which by then keeps to BBR's pace for good.
pub(crate) const CONGESTION_CONTROL: &str = "cubic";

/// What one run through a forwarder gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// Packets per second that arrived, allowed and translated.
    pub(crate) packets_per_s: f64,
    /// Packets per second that were offered, of the allowed kind.
    pub(crate) offered_per_s: f64,
    /// Processor time, all cores, of the sender, the forwarder and the sink, per packet that
    /// arrived.
    pub(crate) cpu_us_per_packet: f64,
}

/// Floods the forwarder with small UDP packets for a while.
pub(crate) fn flood(source: &Space, sink: &Space, length: Duration) -> Result<Flood> {
    let gateway = gateway(source)?;
    let stop = Arc::new(AtomicBool::new(false));
    let generator = generate(source, gateway, Arc::clone(&stop))?;
    std::thread::sleep(WARM_UP);
    let measured = (|| {
        let before = (counters(sink)?, sent(source)?, Instant::now(), busy_s()?);
        std::thread::sleep(length);
        let after = (counters(sink)?, sent(source)?, Instant::now(), busy_s()?);
        anyhow::Ok((before, after))
    })();
    stop.store(true, Ordering::Relaxed);
    generator.join().ok().context("the generator panicked")??;
    let (before, after) = measured?;
    ensure!(
        after.0.leaked == 0,
        "{} packets were not translated",
        after.0.leaked
    );
    ensure!(
        after.0.denied == 0,
        "{} denied packets arrived",
        after.0.denied
    );
    let seconds = (after.2 - before.2).as_secs_f64();
    let arrived = (after.0.udp_natted - before.0.udp_natted) as f64;
    ensure!(arrived > 0.0, "nothing arrived");
    Ok(Flood {
        packets_per_s: arrived / seconds,
        offered_per_s: (after.1 - before.1) as f64 / seconds * (DENIED_EVERY - 1) as f64
            / DENIED_EVERY as f64,
        cpu_us_per_packet: (after.3 - before.3) * 1e6 / arrived,
    })
}

/// The station that forwards: all share their link's address, but each has to answer for itself.
pub(crate) fn gateway(source: &Space) -> Result<[u8; 6]> {
    let gateway = source.sh("ip neigh flush dev source
         ping -c 1 -W 2 10.2.0.1 >/dev/null
         ip neigh get 10.1.0.254 dev source")?;
    mac(&gateway).context("the forwarder does not answer ARP")
}

/// Sends as fast as one core can, until told to stop.
fn generate(
    source: &Space,
    gateway: [u8; 6],
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<Result<()>>> {
    source.spawn(move || {
        pin(0)?;
        let mut port = PacketPort::open(&PacketConfig::new("source"))?;
        let mac = port.capabilities().mac;
        let frames: Vec<[u8; LEN]> = (0..FLOWS)
            .map(|flow| frame(mac, gateway, 20_000 + flow, [10, 2, 0, 1]))
            .collect();
        let denied = frame(mac, gateway, 30_000, [10, 2, 0, 66]);
        let mut burst = Vec::new();
        let mut count = 0u64;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                count += 1;
                let bytes = if count.is_multiple_of(DENIED_EVERY) {
                    &denied
                } else {
                    &frames[(count % u64::from(FLOWS)) as usize]
                };
                let mut packet = port.alloc(LEN).context("a buffer is free")?;
                packet.bytes_mut().copy_from_slice(bytes);
                burst.push(packet);
            }
            port.tx_burst(&mut burst);
        }
        Ok(())
    })
}

fn frame(mac: [u8; 6], gateway: [u8; 6], port: u16, to: [u8; 4]) -> [u8; LEN] {
    // Discard.
    let from = SocketAddrV4::new([10, 1, 0, 1].into(), port);
    udp([mac, gateway], from, SocketAddrV4::new(to.into(), 9))
}

/// The address in the answer of `ip neigh`.
fn mac(neighbour: &str) -> Option<[u8; 6]> {
    let text = neighbour
        .split("lladdr ")
        .nth(1)?
        .split_whitespace()
        .next()?;
    let bytes: Vec<u8> = text
        .split(':')
        .map_while(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes.try_into().ok()
}

pub(crate) struct Counters {
    pub(crate) udp_natted: u64,
    tcp_natted: u64,
    pub(crate) leaked: u64,
    pub(crate) denied: u64,
    /// What attackers have sent, translated.
    pub(crate) attack: u64,
}

pub(crate) fn counters(sink: &Space) -> Result<Counters> {
    let listed: Value = serde_json::from_str(&sink.sh("nft -j list counters table netdev sink")?)?;
    let packets = |name: &str| {
        listed["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["counter"]["name"] == name)
            .and_then(|entry| entry["counter"]["packets"].as_u64())
            .with_context(|| format!("the sink has no counter {name}"))
    };
    Ok(Counters {
        udp_natted: packets("udp_natted")?,
        tcp_natted: packets("tcp_natted")?,
        leaked: packets("leaked")?,
        denied: packets("denied")?,
        attack: packets("attack")?,
    })
}

/// Frames that the source has sent.
fn sent(source: &Space) -> Result<u64> {
    let text = source.sh("cat /sys/class/net/source/statistics/tx_packets")?;
    Ok(text.trim().parse()?)
}

/// Processor time that the machine has spent on anything, all cores, seconds.
fn busy_s() -> Result<f64> {
    const TICKS_PER_S: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    ensure!(fields.len() >= 8, "/proc/stat is not understood");
    // user, nice, system, irq, softirq; idle, iowait and stolen time are not work.
    let busy: u64 = [0, 1, 2, 5, 6].into_iter().map(|i| fields[i]).sum();
    Ok(busy as f64 / TICKS_PER_S)
}

/// What one TCP transfer through a forwarder gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// Payload that arrived, Gbit/s.
    pub(crate) gbit_per_s: f64,
    /// Segments that were sent again.
    pub(crate) retransmits: u64,
    /// Processor time, all cores, of both ends and the forwarder, per second.
    pub(crate) cores: f64,
}

/// One bulk TCP connection with all offloads of the links. Its sender has the core that the flood's has.
pub(crate) fn transfer(source: &Space, sink: &Space, length: Duration) -> Result<Transfer> {
    let before = counters(sink)?.tcp_natted;
    let server = sink.spawn(|| crate::space::sh("iperf3 -s -1 -B 10.2.0.1 -p 5201 >/dev/null"))?;
    let (started, busy) = (Instant::now(), busy_s()?);
    let seconds = length.as_secs().max(1);
    // The server needs a moment until it listens.
    let output = source.sh(&format!(
        "for try in 1 2 3 4 5; do
             sleep 0.2
             if report=$(taskset -c 0 iperf3 -J -c 10.2.0.1 -p 5201 -t {seconds} -C {CONGESTION_CONTROL} \\
                 --connect-timeout 1000); then
                 echo \"$report\"
                 exit 0
             fi
         done
         echo \"$report\" >&2
         exit 1"
    ));
    let cores = (busy_s()? - busy) / started.elapsed().as_secs_f64();
    let output = output?;
    server.join().ok().context("iperf3's server panicked")??;
    let report: Value = serde_json::from_str(&output)?;
    let arrived = counters(sink)?;
    ensure!(arrived.tcp_natted > before, "no translated segment arrived");
    ensure!(
        arrived.leaked == 0,
        "{} segments were not translated",
        arrived.leaked
    );
    Ok(Transfer {
        gbit_per_s: report["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3 reported no rate")?
            / 1e9,
        retransmits: report["end"]["sum_sent"]["retransmits"]
            .as_u64()
            .unwrap_or(0),
        cores,
    })
}

/// Runs what sends in bulk while all that the source receives is led to the core that sends.
pub(crate) fn in_order<T>(source: &Space, send: impl FnOnce() -> Result<T>) -> Result<T> {
    const CORES: &str = "/sys/class/net/source/queues/rx-0/rps_cpus";
    source.sh(&format!("echo 1 > {CORES}"))?;
    let sent = send();
    source.sh(&format!("echo 0 > {CORES}"))?;
    sent
}

/// What a forwarder that is idle otherwise makes of single packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo {
    /// Median round trip, microseconds.
    pub(crate) rtt_us: f64,
}

/// A few hundred echo requests, one after the other.
pub(crate) fn echo(source: &Space) -> Result<Echo> {
    const REQUESTS: usize = 500;
    let output = source.sh(&format!(
        "ping -c 5 -i 0.01 -W 2 -q 10.2.0.1 > /dev/null
         ping -c {REQUESTS} -i 0.005 -W 2 10.2.0.1"
    ))?;
    let times: Vec<f64> = output
        .lines()
        .filter_map(|line| line.split_once("time="))
        .filter_map(|(_, time)| time.strip_suffix(" ms")?.parse().ok())
        .collect();
    ensure!(
        times.len() == REQUESTS,
        "{} of {REQUESTS} requests were answered",
        times.len()
    );
    Ok(Echo {
        rtt_us: median(times) * 1e3,
    })
}

/// What a forwarder makes of connections that carry one request each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connections {
    /// Requests that were answered, each over a connection of its own, per second.
    pub(crate) per_s: f64,
    /// Connections that failed.
    pub(crate) failed: u64,
}

/// Opens connections to a web server as fast as wrk's 64 clients can.
pub(crate) fn connections(source: &Space, sink: &Space, length: Duration) -> Result<Connections> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("nginx.conf");
    let text = include_str!("sink.nginx");
    let text = text.replace("@directory@", &directory.path().to_string_lossy());
    std::fs::write(&path, text)?;
    let mut server = sink.run(move || {
        Command::new("nginx")
            .arg("-c")
            .arg(path)
            .stdout(Stdio::null())
            .spawn()
    })??;
    let before = counters(sink)?.tcp_natted;
    // Every port for the client: the range that is the default would be used up within two seconds. And those of
    // connections that the client was the first to end after a second and not a minute (RFC 6191): else it runs out of
    // them, and looks for one longer than anything else takes, behind every forwarder.
    let output = source.sh(&format!(
        "sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1
         for try in 1 2 3 4 5 6 7 8 9 10; do
             curl -s -o /dev/null --max-time 1 http://10.2.0.1:8080/ && break
             sleep 0.2
         done
         taskset -c 0 wrk -t 1 -c 64 -d {} -H 'Connection: close' http://10.2.0.1:8080/",
        length.as_secs().max(1)
    ));
    server.kill()?;
    server.wait()?;
    let output = output?;
    let after = counters(sink)?;
    ensure!(after.tcp_natted > before, "no translated segment arrived");
    ensure!(
        after.leaked == 0,
        "{} segments were not translated",
        after.leaked
    );
    let number = |text: &str| text.trim().trim_end_matches(',').parse::<f64>().ok();
    let line = |name: &str| {
        output
            .lines()
            .find_map(|line| line.trim().strip_prefix(name))
    };
    let errors = line("Socket errors:").unwrap_or_default();
    let failed = errors.split_whitespace().filter_map(number).sum::<f64>()
        + line("Non-2xx or 3xx responses:")
            .and_then(number)
            .unwrap_or(0.0);
    Ok(Connections {
        per_s: line("Requests/sec:")
            .and_then(number)
            .context("wrk reported no rate")?,
        failed: failed as u64,
    })
}

/// Installs the web server and its client if they are missing; Debian's unit of the server stays off.
pub(crate) fn install() -> Result<()> {
    let present = |program: &str| Command::new(program).arg("-v").output().is_ok();
    if present("nginx") && present("wrk") {
        return Ok(());
    }
    println!("installing: nginx-light wrk (the unit stays off)");
    crate::space::sh(
        "mkdir -p /etc/systemd/system
         [ -e /etc/systemd/system/nginx.service ] || ln -sf /dev/null /etc/systemd/system/nginx.service
         export DEBIAN_FRONTEND=noninteractive
         apt-get update -qq
         apt-get install -y -qq --no-install-recommends nginx-light wrk",
    )?;
    Ok(())
}
