//! What is done to a node on purpose, or happens to its machine: frames of every kind, clients that hold on, kills in the
//! midst of a change, links and devices that go away.

#![expect(
    clippy::unwrap_used,
    reason = "a step that fails is the test's failure"
)]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use engine::port::{Packet, Port};
use io::packet::{PacketConfig, PacketPort};
use lab::address::{self, FAMILIES, Family};
use lab::client::{Outcome, connect_from};
use lab::cluster::{Cluster, allowed_servers, policy_allowing};
use lab::management::{self, Management};
use lab::netns::Netns;
use lab::server::{PORT, pattern};
use lab::topology::Segment;
use lab::{tool, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const POLICY: &str = "/api/v1/policy";

type Mac = [u8; 6];

#[test]
#[ignore = "needs root; make test runs it"]
fn frames_of_every_kind_on_both_data_ports_do_no_harm() {
    let mut cluster = one_node();
    let lives = FAMILIES.map(|family| cluster.live(1, address::allowed_server(family)).unwrap());
    let counted = || -> anyhow::Result<u64> {
        let page = management::metrics(&cluster.topology.operator, address::metrics(1))?;
        Ok(management::sum(&page, "neuwerk_dp_drops_total{"))
    };
    let before = counted().unwrap();

    let node = mac(cluster.topology.node(1), "in0");
    let client = mac(&cluster.topology.client, "in0");
    let from_client = |family| (address::client(1, family), address::allowed_server(family));
    let mut inside = noisy_frames([node, client], FAMILIES.map(from_client), 1);
    inside.extend(strangers(node, 6_000));
    let node = mac(cluster.topology.node(1), "out0");
    let router = mac(&cluster.topology.internet, "out0");
    let from_server = |family| (address::allowed_server(family), address::outside(1, family));
    let outside = noisy_frames([node, router], FAMILIES.map(from_server), 2);
    let sent = (inside.len() + outside.len()) as u64;
    send_raw(&cluster.topology.client, "in0", &inside);
    send_raw(&cluster.topology.internet, "out0", &outside);

    // Most of it is nothing that may pass, and says so.
    wait::until_true("the frames to be counted", SOON, || {
        Ok(counted()? - before > sent / 2)
    })
    .unwrap();
    cluster.node(1).ensure_running().unwrap();
    cluster.wait_node_ready(1).unwrap();
    for (family, live) in FAMILIES.into_iter().zip(&lives) {
        cluster
            .fetch(1, address::allowed_server(family), 100_000)
            .unwrap();
        assert_eq!(
            cluster.probe(1, address::denied_server(family)),
            Outcome::Silent
        );
        let lines = live.account().lines;
        wait::until_true("more lines", SOON, || Ok(live.account().lines > lines + 20)).unwrap();
        assert_eq!(live.account().ended, None);
    }
}

/// First segments from hundreds of addresses to the service that others use: as many as there are ports, and more.
#[test]
#[ignore = "needs root; make test runs it"]
fn a_flood_keeps_nobody_from_a_server_and_ends_no_connection() {
    let cluster = one_node();
    let lives = FAMILIES.map(|family| cluster.live(1, address::allowed_server(family)).unwrap());
    let node = mac(cluster.topology.node(1), "in0");
    let client = mac(&cluster.topology.client, "in0");
    let IpAddr::V4(server) = address::allowed_server(Family::V4) else {
        unreachable!("asked for IPv4")
    };
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let flood = cluster.topology.client.spawn("flood", move || {
        let mut port = PacketPort::open(&PacketConfig::new("in0")).unwrap();
        let mut sent = 0_u32;
        while !until.load(Ordering::Relaxed) {
            let mut burst: Vec<_> = (sent..sent + 64)
                .map(|number| {
                    let source = Ipv4Addr::new(10, 1, 0, 110 + (number % 80) as u8);
                    let from = 1024 + (number.wrapping_mul(40_503) % 64_512) as u16;
                    let bytes = first_segment([node, client], (source, from), server);
                    let mut frame = port.alloc(bytes.len()).unwrap();
                    frame.bytes_mut().copy_from_slice(&bytes);
                    frame
                })
                .collect();
            port.tx_burst(&mut burst);
            sent += 64;
            // A pace that a debug build keeps up with beside everything else.
            thread::sleep(Duration::from_millis(5));
        }
        sent
    });
    let flood = flood.unwrap();
    let counted = |name: &str| -> anyhow::Result<u64> {
        let page = management::metrics(&cluster.topology.operator, address::metrics(1))?;
        Ok(management::sum(&page, name))
    };
    wait::until_true("the flood to arrive", SOON, || {
        Ok(counted("neuwerk_dp_flow_opens_total ")? > 5_000)
    })
    .unwrap();
    for _ in 0..5 {
        for family in FAMILIES {
            let server = address::allowed_server(family);
            cluster.fetch(1, server, 100_000).unwrap();
        }
    }
    for live in &lives {
        let lines = live.account().lines;
        wait::until_true("more lines", SOON, || Ok(live.account().lines > lines + 20)).unwrap();
        assert_eq!(live.account().ended, None);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() > 5_000);
    for reason in ["nat_ports_exhausted", "flow_table_full", "nat_table_full"] {
        let name = format!(r#"neuwerk_dp_drops_total{{reason="{reason}"}} "#);
        assert_eq!(counted(&name).unwrap(), 0, "{reason}");
    }
}

/// The first segment of a TCP connection (RFC 9293 §3.1) to [`PORT`]; a node does not look at its checksum.
fn first_segment(stations: [Mac; 2], (source, from): (Ipv4Addr, u16), server: Ipv4Addr) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), PORT.to_be_bytes()].concat();
    segment.extend([0, 0, 1, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame(stations, source.into(), server.into(), 6, &segment)
}

#[test]
#[ignore = "needs root; make test runs it"]
fn clients_that_hold_on_do_not_keep_others_from_the_api() {
    let mut cluster = Cluster::start(2).unwrap();
    let token = cluster.node(1).mint_token("elsewhere", "admin").unwrap();
    let ca = cluster.node(1).ca_path();
    let target = address::https(1);
    // Some say nothing, some begin to speak and stop. The node lets one address have 256 connections.
    let held: Vec<_> = cluster.topology.operator.enter(|| {
        let open = |number: usize| {
            let mut stream = connect_from(None, target, Duration::from_secs(2)).ok()?;
            if number.is_multiple_of(2) {
                let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01");
            }
            Some(stream)
        };
        (0..400).filter_map(open).collect()
    });
    assert!(held.len() > 256, "{} connections", held.len());

    let elsewhere = Management::new(cluster.topology.node(2), target, &ca)
        .unwrap()
        .with_token(&token);
    assert_eq!(elsewhere.get(POLICY).unwrap().status, 200);
    let socket = cluster.node(1).dir().join("run/admin.sock");
    let status = ["status", "--control-socket", socket.to_str().unwrap()];
    cluster.node(1).cli(&status).unwrap();
    // Whoever holds on is let go, and then served like anybody else.
    let api = cluster.api(1).unwrap();
    wait::until_true("service for the same address", SOON, || {
        Ok(api.get("/health")?.status == 200)
    })
    .unwrap();
    drop(held);
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_policy_survives_kills_in_the_midst_of_its_change() {
    let mut cluster = one_node();
    let mut acknowledged = revision(&cluster.api(1).unwrap().get_json("/api/v1/stats").unwrap());
    for round in 0..8_u64 {
        let api = cluster.api(1).unwrap();
        let writer = thread::spawn(move || {
            let mut last = 0;
            for number in 0_u64.. {
                let mut policy = policy_allowing(&allowed_servers());
                policy["source_groups"][0]["rules"][0]["id"] = json!(format!("{round}-{number}"));
                match api.send_json("PUT", POLICY, &policy) {
                    Ok(answer) if answer.status == 200 => {
                        last = answer.header("neuwerk-revision").unwrap().parse().unwrap();
                    }
                    _ => return last,
                }
            }
            last
        });
        thread::sleep(Duration::from_millis(40 + 23 * round));
        cluster.node(1).kill().unwrap();
        acknowledged = acknowledged.max(writer.join().unwrap());

        cluster.node(1).start().unwrap();
        cluster.wait_node_ready(1).unwrap();
        let stats = cluster.api(1).unwrap().get_json("/api/v1/stats").unwrap();
        assert!(
            revision(&stats) >= acknowledged,
            "{} of {acknowledged}: {stats}",
            revision(&stats)
        );
        for family in FAMILIES {
            cluster
                .fetch(1, address::allowed_server(family), 1_000)
                .unwrap();
            assert_eq!(
                cluster.probe(1, address::denied_server(family)),
                Outcome::Silent
            );
        }
    }
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_port_without_link_withdraws_the_node_and_a_device_that_has_gone_ends_it() {
    let mut cluster = one_node();
    let api = cluster.api(1).unwrap();
    let live = cluster
        .live(1, address::allowed_server(Family::V4))
        .unwrap();
    let traffic = |status: u16| {
        wait::until_true(&format!("/ready/traffic {status}"), SOON, || {
            Ok(api.status_of("/ready/traffic")? == status)
        })
        .unwrap()
    };
    for segment in [Segment::Outside, Segment::Inside] {
        cluster.topology.set_cable(1, segment, false).unwrap();
        traffic(503);
        assert_eq!(api.status_of("/health").unwrap(), 200);
        cluster.topology.set_cable(1, segment, true).unwrap();
        traffic(200);
        // Before the next: two in a row, with the pauses of TCP between its attempts, count as the connection's end.
        let lines = live.account().lines;
        let more = || {
            let account = live.account();
            anyhow::ensure!(account.ended.is_none(), "{account:?}");
            Ok(account.lines > lines + 50)
        };
        wait::until_true("more lines", SOON, more).unwrap();
    }

    cluster.topology.node(1).ip("link del out0").unwrap();
    let node = cluster.node(1);
    wait::until_true("its end", SOON, || Ok(!node.is_running())).unwrap();
    let log = node.log_tail();
    assert!(
        log.contains("the device of the outside port has gone"),
        "{log}"
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_node_that_drains_stops_at_once_when_it_is_asked_again() {
    let mut cluster = one_node();
    let server = address::allowed_server(Family::V4);
    let api = cluster.api(1).unwrap();
    let _live = cluster.live(1, server).unwrap();
    cluster.node(1).signal(Signal::SIGTERM).unwrap();
    wait::until_true("the drain", SOON, || {
        Ok(api.status_of("/ready/traffic")? == 503)
    })
    .unwrap();
    let node = cluster.node(1);
    node.ensure_running().unwrap();
    node.signal(Signal::SIGTERM).unwrap();
    wait::until_true("its end", Duration::from_secs(2), || Ok(!node.is_running())).unwrap();
    let log = node.log_tail();
    assert!(log.contains("asked to stop a second time"), "{log}");

    cluster.node(1).start().unwrap();
    cluster.wait_node_ready(1).unwrap();
    cluster.fetch(1, server, 1_000).unwrap();
}

/// A single node with the usual policy.
fn one_node() -> Cluster {
    let mut cluster = Cluster::start(1).unwrap();
    cluster
        .api(1)
        .unwrap()
        .put_policy(&policy_allowing(&allowed_servers()))
        .unwrap();
    cluster
}

/// The revision that the first member enforces.
fn revision(stats: &Value) -> u64 {
    stats["cluster"]["nodes"][0]["enforced_revision"]
        .as_u64()
        .unwrap_or_else(|| panic!("{stats}"))
}

fn mac(netns: &Netns, interface: &str) -> Mac {
    let path = format!("/sys/class/net/{interface}/address");
    let text = tool::run(netns.command("cat").arg(path)).unwrap();
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// Puts frames on a link just as they are.
fn send_raw(netns: &Netns, interface: &str, frames: &[Vec<u8>]) {
    netns.enter(|| {
        let mut port = PacketPort::open(&PacketConfig::new(interface)).unwrap();
        for frames in frames.chunks(64) {
            let mut burst: Vec<_> = frames
                .iter()
                .map(|bytes| {
                    let mut frame = port.alloc(bytes.len()).unwrap();
                    frame.bytes_mut().copy_from_slice(bytes);
                    frame
                })
                .collect();
            port.tx_burst(&mut burst);
            // The node shares its processor with the sender.
            thread::sleep(Duration::from_micros(500));
        }
    });
}

/// Packets of every protocol whose payload is noise, then the same with bytes changed and ends cut off, and ARP and
/// neighbour discovery likewise.
fn noisy_frames(stations: [Mac; 2], ends: [(IpAddr, IpAddr); 2], seed: u64) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (source, target) in ends {
        for protocol in 0..=255 {
            for length in [0, 1, 7, 8, 20, 40, 120] {
                let payload = pattern(seed + u64::from(protocol), length);
                frames.push(frame(stations, source, target, protocol, &payload));
            }
        }
    }
    for operation in 0..4 {
        let mut arp = [
            &stations[0][..],
            &stations[1],
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        ]
        .concat();
        arp.extend(pattern(seed, 20));
        frames.push(arp);
    }
    let sound = frames.len();
    let mut noise = pattern(seed ^ 0x5eed, 16 * 6_000)
        .into_iter()
        .map(usize::from);
    let mut number = |below: usize| {
        let (high, low) = (noise.next().unwrap(), noise.next().unwrap());
        (high << 8 | low) % below
    };
    for _ in 0..4_000 {
        let mut bytes = frames[number(sound)].clone();
        for _ in 0..1 + number(3) {
            let at = 12 + number(bytes.len() - 12);
            bytes[at] = number(256) as u8;
        }
        if number(4) == 0 {
            bytes.truncate(14 + number(bytes.len() - 13));
        }
        frames.push(bytes);
    }
    frames
}

/// One packet with a right header and any payload.
fn frame(
    [to, from]: [Mac; 2],
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let length = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![
                0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
            ];
            header.extend(source.octets());
            header.extend(target.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            bytes.extend([8, 0]);
            bytes.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let length = (payload.len() as u16).to_be_bytes();
            bytes.extend([
                0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], protocol, 255,
            ]);
            bytes.extend(source.octets());
            bytes.extend(target.octets());
        }
        _ => panic!("both ends are of one family"),
    }
    bytes.extend(payload);
    bytes
}

/// Solicitations of the node by so many stations that nobody has asked for.
fn strangers(node: Mac, count: u16) -> Vec<Vec<u8>> {
    let IpAddr::V6(target) = address::inside(1, Family::V6) else {
        unreachable!("asked for IPv6")
    };
    let solicitation = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let station = [2, 0x77, 0, 0, high, low];
        let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x77, 0, number);
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([1, 1]);
        message.extend(station);
        let mut summed = [source.octets(), target.octets()].concat();
        summed.extend([0, 0, 0, message.len() as u8, 0, 0, 0, 58]);
        summed.extend(&message);
        message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
        frame([node, station], source.into(), target.into(), 58, &message)
    };
    (0..count).map(solicitation).collect()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
