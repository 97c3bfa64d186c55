//! What is sent through the forwarder and what is seen behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::port::{Packet, Port};
use io::packet::{PacketConfig, PacketPort};
use serde_json::Value;

use crate::forwarder::WARM_UP;
use crate::space::{Space, pin};

/// Flows of the flood, told apart by their source port.
const FLOWS: u16 = 256;
/// One frame in so many is for a destination that the policy denies.
const DENIED_EVERY: u64 = 64;
/// How TCP's sender reacts to loss: Debian's default. BBR, to which some machines are set, sends at the rate of its own
/// model of the path, whatever the path could carry.
const CONGESTION_CONTROL: &str = "cubic";
/// 64 bytes on a wire: 60 and the check sequence.
const FRAME_LEN: usize = 60;

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
    // Forwarders share their link's address, but each has to answer for itself.
    let gateway = source.sh("ip neigh flush dev source
         ping -c 1 -W 2 10.2.0.1 >/dev/null
         ip neigh get 10.1.0.254 dev source")?;
    let gateway = mac(&gateway).context("the forwarder does not answer ARP")?;
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
        let frames: Vec<[u8; FRAME_LEN]> = (0..FLOWS)
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
                let mut packet = port.alloc(FRAME_LEN).context("a buffer is free")?;
                packet.bytes_mut().copy_from_slice(bytes);
                burst.push(packet);
            }
            port.tx_burst(&mut burst);
        }
        Ok(())
    })
}

fn frame(mac: [u8; 6], gateway: [u8; 6], port: u16, to: [u8; 4]) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&gateway);
    frame[6..12].copy_from_slice(&mac);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&[10, 1, 0, 1]);
    frame[30..34].copy_from_slice(&to);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    // Discard; no UDP checksum, which IPv4 allows.
    frame[36..42].copy_from_slice(&[0, 9, 0, 26, 0, 0]);
    frame
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

struct Counters {
    udp_natted: u64,
    tcp_natted: u64,
    leaked: u64,
    denied: u64,
}

fn counters(sink: &Space) -> Result<Counters> {
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
