//! Ports that outlive the process: what comes while nobody reads waits, in order, and comes once. Needs root.

#[path = "conformance/namespace.rs"]
mod namespace;

use std::net::IpAddr;

use engine::port::{Packet, Port};
use io::kept::Kept;
use io::packet::{PacketConfig, PacketPort, Socket};
use io::tun::{Tun, TunConfig, TunDevice};
use namespace::{sh, with_namespace};

/// What the next process finds.
fn handed_over(kept: &Kept) -> Kept {
    kept.keep();
    let mut left = kept.leave().into_iter().collect();
    Kept::take(&mut left)
}

fn send(port: &mut PacketPort, numbers: std::ops::Range<u32>, len: usize) {
    for number in numbers {
        let mut frame = port.alloc(len).expect("a buffer");
        let bytes = frame.bytes_mut();
        bytes.fill(0);
        bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
        bytes[14..18].copy_from_slice(&number.to_be_bytes());
        assert_eq!(port.tx_burst(&mut vec![frame]), 1);
    }
}

fn receive(port: &mut PacketPort) -> Vec<u32> {
    let (mut burst, mut numbers) = (Vec::new(), Vec::new());
    while port.rx_burst(&mut burst, 32) > 0 {
        numbers.extend(burst.drain(..).filter_map(|frame| {
            let bytes = frame.bytes();
            let number = bytes.get(14..18)?.first_chunk().copied()?;
            (bytes[12..14] == [0x88, 0xb5]).then_some(u32::from_be_bytes(number))
        }));
    }
    numbers
}

#[test]
#[ignore = "needs root; make test runs it"]
fn frames_that_come_between_two_processes_wait_for_the_second() {
    with_namespace("frames_wait", || {
        sh("ip link add left type veth peer name right
            ip link set left mtu 9000; ip link set right mtu 9000
            ip link set left up; ip link set right up");
        let mut left = PacketPort::open(&PacketConfig::new("left")).expect("left opens");
        let config = PacketConfig {
            ring_frames: 256,
            ..PacketConfig::new("right")
        };
        let open = |kept: &Kept| {
            let (mut sockets, fanout) = Socket::open_kept(&config, 1, kept).expect("right opens");
            assert!(fanout.is_none());
            PacketPort::new(sockets.remove(0))
        };
        let mut kept = Kept::default();
        let mut right = open(&kept);
        let (mut sent, mut received) = (0, 0);
        // The ring is read up to another place each time, with frames that fit it and others.
        for (read, left_over) in [(0, 5), (100, 0), (300, 250), (1, 1)] {
            for len in [60, 4_000] {
                for _ in 0..read {
                    send(&mut left, sent..sent + 1, len);
                    sent += 1;
                    assert_eq!(receive(&mut right), [received]);
                    received += 1;
                }
                kept = handed_over(&kept);
                drop(right);
                send(&mut left, sent..sent + left_over, len);
                sent += left_over;
                right = open(&kept);
                let expected: Vec<u32> = (received..sent).collect();
                assert_eq!(receive(&mut right), expected, "{read} {left_over} {len}");
                received = sent;
            }
        }
        // Of another configuration it is opened anew, and the one before is closed.
        kept = handed_over(&kept);
        drop(right);
        send(&mut left, sent..sent + 5, 60);
        let other = PacketConfig::new("right");
        let (mut sockets, _) = Socket::open_kept(&other, 1, &kept).expect("right opens");
        let mut right = PacketPort::new(sockets.remove(0));
        assert_eq!(receive(&mut right), [0; 0]);
        send(&mut left, 7..8, 60);
        assert_eq!(receive(&mut right), [7]);
        // So it is if the interface is another one by now.
        kept = handed_over(&kept);
        drop((right, left));
        sh(
            "ip link del left; ip link add left type veth peer name right
            ip link set left up; ip link set right up",
        );
        let mut left = PacketPort::open(&PacketConfig::new("left")).expect("left opens");
        let (mut sockets, _) = Socket::open_kept(&other, 1, &kept).expect("right opens");
        let mut right = PacketPort::new(sockets.remove(0));
        send(&mut left, 9..10, 60);
        assert_eq!(receive(&mut right), [9]);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn several_queues_go_on_together() {
    with_namespace("several_queues", || {
        sh("ip link add left type veth peer name right; ip link set left up; ip link set right up");
        let mut left = PacketPort::open(&PacketConfig::new("left")).expect("left opens");
        let config = PacketConfig::new("right");
        let kept = Kept::default();
        let first = Socket::open_kept(&config, 3, &kept).expect("right opens");
        assert!(first.1.is_some());
        let kept = handed_over(&kept);
        drop(first);
        send(&mut left, 0..50, 60);
        let (sockets, fanout) = Socket::open_kept(&config, 3, &kept).expect("right opens");
        assert!(fanout.is_some());
        let ports = sockets.into_iter().map(PacketPort::new);
        let mut all: Vec<u32> = ports.flat_map(|mut port| receive(&mut port)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn the_host_lane_stays_as_it_is_or_is_laid_anew() {
    with_namespace("the_host_lane_stays", || {
        let index = || sh("ip -o link show dev svc0 | cut -d: -f1");
        let rules = || sh("ip rule; ip -6 rule");
        let before = rules();
        let config = |last| TunConfig::host_lane(vec![IpAddr::from([10, 9, 8, last])]);
        let kept = Kept::default();
        let lane = Tun::new(TunDevice::open_kept(&config(7), &kept).expect("the lane opens"));
        let (device, laid) = (index(), rules());
        assert_ne!(laid, before);
        let kept = handed_over(&kept);
        drop(lane);
        assert_eq!((index(), rules()), (device.clone(), laid.clone()));
        let lane = Tun::new(TunDevice::open_kept(&config(7), &kept).expect("the lane opens"));
        assert_eq!((index(), rules()), (device.clone(), laid));

        let kept = handed_over(&kept);
        drop(lane);
        let lane = Tun::new(TunDevice::open_kept(&config(6), &kept).expect("the lane opens"));
        assert_ne!(index(), device);
        assert!(rules().contains("10.9.8.6") && !rules().contains("10.9.8.7"));
        // A process that goes for good leaves nothing.
        kept.close();
        drop(lane);
        assert_eq!(rules(), before);
        assert!(!sh("ip -o link").contains("svc0"));
    });
}
