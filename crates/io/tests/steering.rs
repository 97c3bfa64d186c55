//! The kernel gives each queue the frames of its worker, by the rule that the engine has.

#[path = "conformance/namespace.rs"]
mod namespace;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Snapshot;
use engine::port::{Packet, Port};
use engine::snapshot::{PortSettings, Settings, Snat};
use engine::steer::Steering;
use io::packet::{PacketConfig, PacketPort, Socket, Translated};
use namespace::{sh, with_namespace};
use policy::Compiled;

const QUEUES: u16 = 3;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// An Ethernet frame with a TCP or UDP header behind an IP header (with options for odd source ports in IPv4).
fn frame(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend([2, 0, 0, 0, 0, 9]);
    let l4: u16 = if protocol == TCP { 20 } else { 8 };
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let words: u8 = if src.port() % 2 == 1 { 7 } else { 5 };
            f.extend([8, 0, 0x40 | words, 0]);
            f.extend((u16::from(words) * 4 + l4).to_be_bytes());
            f.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            f.extend(a.octets());
            f.extend(b.octets());
            f.extend(vec![1; usize::from(words - 5) * 4]);
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(l4.to_be_bytes());
            f.extend([protocol, 64]);
            f.extend(a.octets());
            f.extend(b.octets());
        }
        _ => panic!("one family"),
    }
    f.extend(src.port().to_be_bytes());
    f.extend(dst.port().to_be_bytes());
    let header = if protocol == TCP {
        vec![0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]
    } else {
        vec![0, 8, 0, 0]
    };
    f.extend(header);
    f.resize(f.len().max(60), 0);
    f
}

fn snapshot() -> Snapshot {
    let settings = Settings {
        ports: vec![PortSettings {
            addresses: ["192.0.2.1/24", "2001:db8::1/64"]
                .map(|net| net.parse().expect("valid by construction"))
                .into(),
            gateways: ["192.0.2.254", "2001:db8::254"]
                .map(|via| via.parse().expect("valid by construction"))
                .into(),
            ..PortSettings::default()
        }],
        internal: vec![
            "10.0.0.0/8".parse().expect("valid by construction"),
            "fd00::/8".parse().expect("valid by construction"),
        ],
        nat66: Some(Snat::Auto),
        ..Settings::default()
    };
    Snapshot::new(1, Arc::new(Compiled::deny_all()), settings).expect("settings that work")
}

#[test]
fn each_queue_gets_the_frames_of_its_worker() {
    with_namespace("each_queue_gets_the_frames_of_its_worker", || {
        sh("ip link add left type veth peer name right; ip link set left up; ip link set right up");
        let mut wire = PacketPort::open(&PacketConfig::new("left")).expect("left opens");
        let (sockets, fanout) =
            Socket::open_queues(&PacketConfig::new("right"), usize::from(QUEUES))
                .expect("right opens");
        let mut queues: Vec<PacketPort> = sockets.into_iter().map(PacketPort::new).collect();
        let snapshot = snapshot();
        let steering = Steering::new(0x5eed, 0, QUEUES);
        fanout
            .expect("several queues")
            .steer(
                &steering,
                &Translated {
                    to: &snapshot.translated(),
                    from: snapshot.translates(),
                },
            )
            .expect("the kernel takes the program");

        let pairs = [
            ("10.0.0.2", "198.51.100.1"),
            // To addresses whose ports tell the worker.
            ("198.51.100.1", "192.0.2.1"),
            ("fd00::2", "2001:db8:1::1"),
            ("2001:db8:1::1", "2001:db8::1"),
        ];
        let clients: [IpAddr; 2] =
            ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().expect("valid by construction"));
        let mut shares = [0; QUEUES as usize];
        for (src, dst) in pairs {
            for (protocol, first) in [(TCP, 40_000), (UDP, 40_000), (UDP, 5_000)] {
                for port in 0..100 {
                    let address = |ip: &str, port| {
                        SocketAddr::new(ip.parse().expect("valid by construction"), port)
                    };
                    let (src, dst) = (address(src, first + port), address(dst, 443 + port));
                    let owner = {
                        let from_inside = src.ip() == clients[usize::from(src.is_ipv6())];
                        steering.worker_of(&snapshot, from_inside, src, dst, protocol)
                    };
                    let bytes = frame(src, dst, protocol);
                    let mut packet = wire.alloc(bytes.len()).expect("a buffer");
                    packet.bytes_mut().copy_from_slice(&bytes);
                    assert_eq!(wire.tx_burst(&mut vec![packet]), 1);
                    assert_eq!(
                        receiver(&mut queues, &bytes),
                        usize::from(owner),
                        "{src} > {dst}"
                    );
                    shares[usize::from(owner)] += 1;
                }
            }
        }
        assert!(shares.iter().all(|n| *n > 100), "{shares:?}");
    });
}

/// The queue that a frame came to.
fn receiver(queues: &mut [PacketPort], bytes: &[u8]) -> usize {
    let end = Instant::now() + Duration::from_secs(5);
    let mut burst = Vec::new();
    while Instant::now() < end {
        for (i, queue) in queues.iter_mut().enumerate() {
            if queue.rx_burst(&mut burst, 1) > 0 {
                assert_eq!(burst[0].bytes(), bytes);
                return i;
            }
        }
    }
    panic!("the frame did not arrive");
}
