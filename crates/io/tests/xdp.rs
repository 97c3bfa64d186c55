//! AF_XDP beside what the conformance suite asks of every backend: queues, what the kernel sees, and refusals.

#[path = "conformance/namespace.rs"]
mod namespace;

use engine::port::{Packet, Port};
use io::packet::{PacketConfig, PacketPort};
use io::xdp::{Attach, OpenError, WorkerQueues, XdpConfig, XdpPort, ZeroCopy};
use namespace::{sh, with_namespace};

fn pair(queues: u32) {
    sh(&format!(
        "ip link add left numrxqueues {queues} numtxqueues {queues} type veth \
         peer name right numrxqueues {queues} numtxqueues {queues}
         ip link set left up
         ip link set right up"
    ));
}

fn open(interface: &str, config: &XdpConfig) -> Result<XdpPort, OpenError> {
    XdpPort::open(interface, config)
}

fn refused(interface: &str, config: &XdpConfig, words: &str) {
    let error = open(interface, config).err().expect("it is refused");
    assert!(error.to_string().contains(words), "{error}");
}

/// A frame of a protocol that no kernel answers to, told apart by its last byte.
fn frame<P: Port>(port: &mut P, last: u8) -> P::Packet {
    let mut frame = port.alloc(60).expect("a buffer");
    let bytes = frame.bytes_mut();
    bytes.fill(0);
    bytes[..6].fill(0xff);
    bytes[6] = 2;
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[59] = last;
    frame
}

fn receive<P: Port>(port: &mut P) -> Vec<u8> {
    let mut burst = Vec::new();
    port.rx_burst(&mut burst, 64);
    burst.iter().map(|f| f.bytes()[59]).collect()
}

#[test]
fn every_queue_is_bound_and_workers_share_them() {
    with_namespace("every_queue_is_bound_and_workers_share_them", || {
        pair(3);
        let names = ["left".to_owned(), "right".to_owned()];
        let config = XdpConfig::default();
        let workers = WorkerQueues::open(&names, 2, &config).expect("two workers on three queues");
        assert_eq!(workers.len(), 2);
        let mut workers: Vec<Vec<XdpPort>> = workers
            .into_iter()
            .map(|worker| worker.into_ports().expect("descriptors"))
            .collect();
        // What a worker takes in at one port it sends by the other from the same memory.
        for round in 0..3 {
            for (worker, ports) in workers.iter_mut().enumerate() {
                let left = &mut ports[0];
                let mut burst = vec![frame(left, round * 2 + worker as u8)];
                assert_eq!(left.tx_burst(&mut burst), 1);
            }
        }
        let mut arrived = Vec::new();
        for ports in &mut workers {
            let right = &mut ports[1];
            let mut burst = Vec::new();
            right.rx_burst(&mut burst, 64);
            arrived.extend(burst.iter().map(|f| f.bytes()[59]));
            let count = burst.len();
            assert_eq!(
                right.tx_burst(&mut burst),
                count,
                "back out of the same memory"
            );
        }
        arrived.sort_unstable();
        assert_eq!(arrived, [0, 1, 2, 3, 4, 5]);
        drop(workers);
        let error = WorkerQueues::open(&names, 4, &config)
            .err()
            .expect("three queues");
        assert!(
            error.to_string().contains("has 3 queues, too few for 4"),
            "{error}"
        );
    });
}

#[test]
fn the_kernel_sees_no_frame_and_has_its_interface_back_at_the_end() {
    with_namespace("the_kernel_sees_no_frame", || {
        pair(1);
        let features = || sh("ethtool -k left; ip -d link show left");
        let before = features();
        let mut stack = PacketPort::open(&PacketConfig::new("left")).expect("a packet socket");
        let mut peer = PacketPort::open(&PacketConfig::new("right")).expect("the other end");
        let mut port = open("left", &XdpConfig::default()).expect("left opens");
        let mut send = |last| {
            let mut burst = vec![frame(&mut peer, last)];
            assert_eq!(peer.tx_burst(&mut burst), 1);
        };
        send(1);
        assert_eq!(receive(&mut port), [1]);
        assert!(receive(&mut stack).is_empty());
        drop(port);
        send(2);
        assert_eq!(receive(&mut stack), [2]);
        drop((stack, peer));
        let strip = |text: String| text.replace("promiscuity 1 ", "promiscuity 0 ");
        assert_eq!(strip(features()), strip(before));
    });
}

#[test]
fn what_cannot_be_opened_is_refused_with_a_remedy() {
    with_namespace("what_cannot_be_opened_is_refused_with_a_remedy", || {
        pair(1);
        let auto = XdpConfig::default();
        refused("nothing0", &auto, "there is no interface nothing0");
        let zero_copy = XdpConfig {
            zero_copy: ZeroCopy::On,
            ..auto.clone()
        };
        refused("left", &zero_copy, "cannot write frames into the memory");
        sh("ip link add wide type bridge; ip link set wide mtu 9000; ip link set wide up");
        refused("wide", &auto, "the MTU of wide is 9000");
        sh("ip link set wide mtu 1500");
        let native = XdpConfig {
            attach: Attach::Native,
            ..auto.clone()
        };
        refused(
            "wide",
            &native,
            "the driver of wide cannot run an XDP program",
        );
        open("wide", &auto).expect("behind the driver it works");
        sh("ip link set right mtu 9000");
        refused("left", &native, "takes no XDP program with an MTU as large");
        sh("ip link set right mtu 1500");
        let _first = open("left", &auto).expect("left opens");
        refused("left", &auto, "has an XDP program");
    });
}

/// What does not fit the ring is counted, by the kernel that drops it.
#[test]
fn frames_beyond_the_ring_are_counted() {
    with_namespace("frames_beyond_the_ring_are_counted", || {
        pair(1);
        let config = XdpConfig {
            rx_frames: 64,
            ..XdpConfig::default()
        };
        let mut left = open("left", &config).expect("left opens");
        let mut right = open("right", &XdpConfig::default()).expect("right opens");
        for _ in 0..20 {
            let mut burst: Vec<_> = (0..10).map(|i| frame(&mut right, i)).collect();
            assert_eq!(right.tx_burst(&mut burst), 10);
        }
        let arrived = receive(&mut left).len() as u64;
        let stats = left.stats();
        assert_eq!((arrived, stats.rx_frames), (64, 64));
        assert_eq!(stats.rx_dropped, 200 - 64);
    });
}
