//! The DPDK backend over drivers that need no hardware. DPDK starts once in a process, so all tests start it alike.

use std::time::{Duration, Instant};

use engine::port::{Idle, Link, Packet, Port};
use io::dpdk::{DeviceConfig, DpdkPort, Eal, EalConfig, Meter, Queue, Selector};
use io::idle::PollIdle;
use io::packet::PacketPort;

use super::frames::{Family, Shape, make};
use super::namespace::{sh, with_namespace};
use super::suite::{self, Wire};

#[test]
fn dpdk_af_packet() {
    with_namespace("dpdk_af_packet", || {
        veth_pair();
        let mut left = port("net_af_packet_l,iface=left,blocksz=65536,framesz=2048,framecnt=8192");
        let mut right = packet("right");
        let wire = Wire {
            silent_loss: true,
            ..Wire::default()
        };
        suite::run(&mut left, &mut right, &wire);
        sh("ip link set left down");
        assert_eq!(left.link(), Link::Down);
        sh("ip link del left");
        assert_eq!(left.link(), Link::Gone);
        assert_eq!(left.rx_burst(&mut Vec::new(), 8), 0);
    });
}

#[test]
fn dpdk_af_xdp() {
    with_namespace("dpdk_af_xdp", || {
        veth_pair();
        let mut left = port("net_af_xdp_l,iface=left");
        let mut right = packet("right");
        let wire = Wire {
            silent_loss: true,
            ..Wire::default()
        };
        suite::run(&mut left, &mut right, &wire);
    });
}

/// Completes checksums and cuts super-packets (of IPv4) on behalf of a device, and has interrupts.
#[test]
fn dpdk_tap() {
    with_namespace("dpdk_tap", || {
        let mut tap = port("net_tap0,iface=tap0");
        sh("ip link set tap0 up");
        assert!(tap.capabilities().tx_checksum && tap.capabilities().tx_gso_tcp);
        let mut host = packet("tap0");
        let wire = Wire {
            silent_loss: true,
            cuts_ipv4_only: true,
            ..Wire::default()
        };
        suite::run(&mut tap, &mut host, &wire);
        sleeps_until_a_frame_comes(&mut tap, &mut host);
    });
}

#[test]
fn dpdk_memif() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("memif.sock");
    let end = |number, role| {
        let socket = socket.display();
        port(&format!(
            "net_memif{number},id=0,role={role},socket={socket},socket-abstract=no"
        ))
    };
    let mut left = end(0, "server");
    let mut right = end(1, "client");
    let give_up = Instant::now() + Duration::from_secs(20);
    while left.link() != Link::Up || right.link() != Link::Up {
        assert!(Instant::now() < give_up, "the two find each other");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The client's buffers are what the server sends into: it hands them over with its first look.
    for end in [&mut left, &mut right] {
        assert_eq!(end.rx_burst(&mut Vec::new(), 64), 0);
    }
    suite::run(&mut left, &mut right, &Wire::default());
}

/// Its own end: what is sent is received. The ring fills, and what it does not take is counted.
#[test]
fn dpdk_ring() {
    let mut ring = port("net_ring0");
    let frame = make(Shape::udp(Family::V6), 1400, 0, false);
    for _ in 0..10 {
        let before = ring.stats();
        let mut burst = Vec::new();
        for _ in 0..2000 {
            let mut packet = ring.alloc(frame.len()).expect("a buffer");
            packet.bytes_mut().copy_from_slice(&frame);
            burst.push(packet);
        }
        let taken = ring.tx_burst(&mut burst);
        let stats = ring.stats();
        assert!((1..2000).contains(&taken), "{taken} fit into the ring");
        assert_eq!(stats.tx_frames - before.tx_frames, taken as u64);
        assert_eq!(stats.tx_dropped - before.tx_dropped, 2000 - taken as u64);
        let mut arrived = 0;
        while ring.rx_burst(&mut burst, 64) > 0 {
            arrived += burst.len();
            assert!(burst.drain(..).all(|packet| packet.bytes() == frame));
        }
        assert_eq!(arrived, taken);
    }
}

/// What a device tells to any thread, and that it tells nothing any more once it is closed.
#[test]
fn dpdk_tells_figures() {
    let config = DeviceConfig {
        queues: 2,
        ..DeviceConfig::default()
    };
    let queues = queues("net_null0,size=60", &config);
    let meter = Meter::of(&queues).expect("a device");
    let mut ports: Vec<DpdkPort> = queues.into_iter().map(DpdkPort::new).collect();
    let frame = make(Shape::udp(Family::V4), 100, 0, false);
    let mut burst = Vec::new();
    for _ in 0..10 {
        let mut packet = ports[1].alloc(frame.len()).expect("a buffer");
        packet.bytes_mut().copy_from_slice(&frame);
        burst.push(packet);
    }
    let read = || {
        let meter = meter.clone();
        let figures = std::thread::spawn(move || meter.read()).join();
        figures.expect("no panic").expect("the device is open")
    };
    let in_use = read().buffers_in_use;
    assert_eq!(ports[1].tx_burst(&mut burst), 10);
    let figures = read();
    assert_eq!(figures.buffers_in_use, in_use - 10, "sent is given back");
    assert_eq!(figures.rx_dropped, [0, 0]);
    let tells = |name: &str| figures.xstats.iter().find(|(known, _)| known == name);
    assert_eq!(
        tells("tx_good_packets"),
        Some(&("tx_good_packets".into(), 10))
    );
    assert_eq!(tells("tx_q1_packets"), Some(&("tx_q1_packets".into(), 10)));
    drop(ports);
    assert_eq!(meter.read(), None);
}

/// What is sent is in the file, and what is in the file is received.
#[test]
#[ignore = "needs root, to read from an interface; make test runs it"]
fn dpdk_pcap() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("frames.pcap");
    let frames: Vec<Vec<u8>> = (0..100)
        .map(|i| make(Shape::udp(Family::V4), 60 + 10 * i as usize, i, false))
        .collect();
    {
        let mut writer = port(&format!(
            "net_pcap_w,rx_iface=lo,tx_pcap={}",
            file.display()
        ));
        let mut burst = Vec::new();
        for bytes in &frames {
            let mut frame = writer.alloc(bytes.len()).expect("a buffer");
            frame.bytes_mut().copy_from_slice(bytes);
            burst.push(frame);
        }
        assert_eq!(writer.tx_burst(&mut burst), frames.len());
    }
    let mut reader = port(&format!("net_pcap_r,rx_pcap={}", file.display()));
    let mut burst = Vec::new();
    while reader.rx_burst(&mut burst, 64) > 0 {}
    let read: Vec<&[u8]> = burst.iter().map(Packet::bytes).collect();
    assert_eq!(read, frames);
}

/// Two queues with a hash configured, and no buffer is lost: far more frames pass than there are buffers.
#[test]
fn dpdk_null() {
    let config = DeviceConfig {
        queues: 2,
        mac: Some([2, 0, 0, 0, 0, 7]),
        ..DeviceConfig::default()
    };
    let mut ports = open("net_null0,size=60", &config);
    assert_eq!(ports.len(), 2);
    for port in &mut ports {
        assert_eq!(port.capabilities().mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(port.wait_fd(), None, "it has to be polled");
        let mut burst = Vec::new();
        for turn in 0..1000 {
            assert_eq!(port.rx_burst(&mut burst, 64), 64);
            assert_eq!(burst[0].bytes().len(), 60);
            burst.truncate(32);
            let made = port.alloc(1000).expect("a buffer");
            assert!(port.alloc(3000).is_none(), "longer than a buffer");
            burst.push(made);
            assert_eq!(port.tx_burst(&mut burst), 33, "turn {turn}");
        }
        let stats = port.stats();
        assert_eq!((stats.rx_frames, stats.tx_frames), (64_000, 33_000));
        assert_eq!((stats.rx_dropped, stats.tx_dropped), (0, 0));
    }
}

#[test]
fn dpdk_says_what_is_wrong() {
    let check = |vdev: &str, config: DeviceConfig, words: &str| {
        let located = Selector::Vdev(vdev.to_owned()).locate().expect("any name");
        let error = Queue::open(eal(), &located, &config)
            .err()
            .expect("refused");
        assert!(error.to_string().contains(words), "{error}");
    };
    let default = DeviceConfig::default;
    check(
        "net_nothing0",
        default(),
        "no driver of DPDK took vdev:net_nothing0",
    );
    check(
        "net_null1",
        DeviceConfig {
            tx_checksum: Some(true),
            ..default()
        },
        "set dpdk.tx_checksum_offload to auto or false",
    );
    check(
        "net_null2",
        DeviceConfig {
            buffers: Some(1 << 24),
            ..default()
        },
        "set dpdk.mbuf_pool_size lower",
    );
    check(
        "net_ring1",
        DeviceConfig {
            queues: 100,
            ..default()
        },
        "set dpdk.workers to ",
    );
    check(
        "net_null3",
        DeviceConfig {
            data_room: Some(1000),
            ..default()
        },
        "set dpdk.mbuf_data_room to 1518 or more",
    );
    // For many, which is nobody's own address.
    check(
        "net_null4",
        DeviceConfig {
            mac: Some([1, 0, 0, 0, 0, 1]),
            ..default()
        },
        "cannot set the hardware address of vdev:net_null4",
    );
    let other = EalConfig {
        memory_mib: 1,
        ..EalConfig::default()
    };
    eal();
    let error = Eal::start(&other).expect_err("once in a process");
    assert!(error.to_string().contains("starts once in a process"));
}

fn sleeps_until_a_frame_comes(tap: &mut DpdkPort, host: &mut PacketPort) {
    let fd = tap.wait_fd().expect("it has an interrupt");
    let mut idle = PollIdle::new().expect("an eventfd");
    let mut burst = Vec::new();
    for _ in 0..3 {
        tap.arm();
        assert_eq!(tap.rx_burst(&mut burst, 64), 0);
        let slept = Instant::now();
        idle.wait(&[fd], Duration::from_millis(50));
        assert!(slept.elapsed() >= Duration::from_millis(50), "nothing came");
        let bytes = make(Shape::udp(Family::V4), 100, 0, false);
        let mut frame = host.alloc(bytes.len()).expect("a buffer");
        frame.bytes_mut().copy_from_slice(&bytes);
        assert_eq!(host.tx_burst(&mut vec![frame]), 1);
        let slept = Instant::now();
        idle.wait(&[fd], Duration::from_secs(10));
        assert!(slept.elapsed() < Duration::from_secs(5), "it is woken");
        // This driver learns by a signal that there is something to read, which may come a moment later.
        while tap.rx_burst(&mut burst, 64) == 0 {
            assert!(slept.elapsed() < Duration::from_secs(5), "it is there");
            std::thread::yield_now();
        }
        assert_eq!(burst.len(), 1);
        burst.clear();
    }
}

fn eal() -> Eal {
    let config = EalConfig {
        memory_mib: 512,
        ..EalConfig::default()
    };
    Eal::start(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn queues(vdev: &str, config: &DeviceConfig) -> Vec<Queue> {
    let located = Selector::Vdev(vdev.to_owned())
        .locate()
        .unwrap_or_else(|error| panic!("{error}"));
    Queue::open(eal(), &located, config).unwrap_or_else(|error| panic!("{error}"))
}

fn open(vdev: &str, config: &DeviceConfig) -> Vec<DpdkPort> {
    let queues = queues(vdev, config);
    queues.into_iter().map(DpdkPort::new).collect()
}

fn port(vdev: &str) -> DpdkPort {
    let mut ports = open(vdev, &DeviceConfig::default());
    ports.pop().expect("one queue")
}

fn packet(interface: &str) -> PacketPort {
    PacketPort::open(&super::config(interface)).expect("the interface opens")
}

/// Without offloads: neither driver is told of a partial checksum.
fn veth_pair() {
    sh("ip link add left type veth peer name right
        ip link set left up
        ip link set right up
        for i in left right; do ethtool -K $i tx off tso off gso off gro off rxvlan off txvlan off; done");
}
