//! TUN and TAP devices as data ports, as the host sees them. Needs root.

#[path = "conformance/namespace.rs"]
mod namespace;

use std::time::{Duration, Instant};

use engine::port::{Idle, Link, Packet, Port};
use io::idle::PollIdle;
use io::packet::OpenError;
use io::tun::{Kind, Tun, TunConfig, TunDevice};
use namespace::{sh, with_namespace};

fn data_port(kind: Kind) -> TunConfig {
    let addresses = ["10.64.0.1/30", "fd64::1/64"].map(|net| net.parse().expect("a constant"));
    TunConfig::data_port("nw0", kind, addresses.to_vec())
}

#[test]
fn a_device_that_is_not_there_is_made_for_the_host_and_goes_with_its_port() {
    with_namespace("a_device_that_is_not_there_is_made", || {
        for kind in [Kind::Tun, Kind::Tap] {
            let port = Tun::open(&data_port(kind)).expect("the device opens");
            wait_for("the link", || port.link() == Link::Up);
            assert_eq!(port.capabilities().mtu, 1500);
            let addresses = sh("ip -o addr show dev nw0");
            for expected in ["10.64.0.1/30", "fd64::1/64"] {
                assert!(addresses.contains(expected), "{addresses}");
            }
            assert_eq!(sh("cat /proc/sys/net/ipv4/conf/nw0/rp_filter").trim(), "0");
            assert_eq!(sh("ip rule | wc -l").trim(), "3", "no rules of ours");
            drop(port);
            assert!(!sh("ip -o link").contains("nw0"));
        }
    });
}

#[test]
fn a_device_that_is_there_is_used_as_it_is_and_stays() {
    with_namespace("a_device_that_is_there_is_used_as_it_is", || {
        for (kind, mode, queues) in [
            (Kind::Tun, "tun", ""),
            (Kind::Tun, "tun", "multi_queue"),
            (Kind::Tap, "tap", ""),
            (Kind::Tap, "tap", "multi_queue vnet_hdr"),
        ] {
            sh(&format!(
                "ip tuntap add nw0 mode {mode} {queues}; ip link set nw0 mtu 9000; ip addr add 10.9.0.1/24 dev nw0"
            ));
            let before = sh("ip -o addr show dev nw0");
            let port = Tun::open(&data_port(kind)).expect("the device opens");
            assert_eq!(port.capabilities().mtu, 9000);
            wait_for("the link", || port.link() == Link::Up);
            let others = |text: String| text.lines().filter(|line| !line.contains("fe80")).count();
            assert_eq!(others(sh("ip -o addr show dev nw0")), others(before));
            drop(port);
            assert!(sh("ip -o link").contains("nw0"), "it stays");
            drop(Tun::open(&data_port(kind)).expect("and opens again"));
            sh("ip link del nw0");
        }
    });
}

#[test]
fn a_device_of_another_kind_or_in_use_is_refused() {
    with_namespace("a_device_of_another_kind_is_refused", || {
        for made in [
            "ip tuntap add nw0 mode tap",
            "ip link add nw0 type veth peer name other",
        ] {
            sh(made);
            let Err(error) = TunDevice::open(&data_port(Kind::Tun)) else {
                panic!("{made}: it opens");
            };
            assert!(matches!(error, OpenError::OtherKind { .. }), "{error}");
            assert!(error.to_string().contains("no TUN device"), "{error}");
            sh("ip link del nw0");
        }
        let _first = TunDevice::open(&data_port(Kind::Tun)).expect("the first opens");
        let Err(error) = TunDevice::open(&data_port(Kind::Tun)) else {
            panic!("it opens twice");
        };
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    });
}

#[test]
fn who_asks_learns_that_a_device_has_a_single_queue() {
    with_namespace("a_device_has_a_single_queue", || {
        let check = |made: &str, expected| {
            sh(made);
            assert_eq!(TunDevice::has_single_queue("nw0"), expected, "{made}");
            sh("ip link del nw0");
        };
        assert!(!TunDevice::has_single_queue("nw0"), "it is not there");
        check("ip tuntap add nw0 mode tun", true);
        check("ip tuntap add nw0 mode tap vnet_hdr", true);
        check("ip tuntap add nw0 mode tun multi_queue", false);
        check("ip link add nw0 type veth peer name other", false);
        let _ours = TunDevice::open(&data_port(Kind::Tun)).expect("the device opens");
        assert!(!TunDevice::has_single_queue("nw0"), "it can be made anew");
    });
}

#[test]
fn the_two_ends_of_a_tap_device_have_addresses_of_their_own() {
    with_namespace("the_two_ends_of_a_tap_device", || {
        let port = Tun::open(&data_port(Kind::Tap)).expect("the device opens");
        let ours = port.capabilities().mac;
        let shown = ours.map(|byte| format!("{byte:02x}")).join(":");
        assert!(!sh("ip -o link show dev nw0").contains(&shown), "{shown}");
        assert_eq!(ours[0] & 3, 2, "local and for one station: {shown}");
    });
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let mut idle = PollIdle::new().expect("eventfd");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        idle.wait(&[], Duration::from_millis(1));
    }
}

/// The host sends one datagram each from several sources: every queue gets some, none is lost.
#[test]
fn the_queues_of_a_device_share_its_packets() {
    with_namespace("the_queues_of_a_device_share_its_packets", || {
        let queues = TunDevice::open_queues(&data_port(Kind::Tun), 3).expect("the device opens");
        let mut ports: Vec<Tun> = queues.into_iter().map(Tun::new).collect();
        let socket = std::net::UdpSocket::bind("10.64.0.1:4000").expect("the host's address");
        for port in 1..=200 {
            socket
                .send_to(b"data", ("10.64.0.2", port))
                .expect("the host sends");
        }
        let mut seen = [0; 3];
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen.iter().sum::<usize>() < 200 {
            for (port, seen) in ports.iter_mut().zip(&mut seen) {
                let mut burst = Vec::new();
                port.rx_burst(&mut burst, 64);
                *seen += burst.iter().filter(|f| f.bytes()[23] == 17).count();
            }
            assert!(Instant::now() < deadline, "{seen:?}");
        }
        assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
    });
}

/// Whoever sleeps on a device that was removed does sleep.
#[test]
fn a_removed_device_lets_its_worker_sleep() {
    with_namespace("a_removed_device_lets_its_worker_sleep", || {
        let mut port = Tun::open(&data_port(Kind::Tun)).expect("the device opens");
        let fds: Vec<i32> = port.wait_fd().into_iter().collect();
        sh("ip link del nw0");
        assert_eq!(port.rx_burst(&mut Vec::new(), 8), 0);
        assert_eq!(port.link(), Link::Gone);
        let begun = Instant::now();
        let mut idle = PollIdle::new().expect("eventfd");
        idle.wait(&fds, Duration::from_millis(50));
        assert!(begun.elapsed() >= Duration::from_millis(50));
        let frame = port.alloc(60).expect("a buffer");
        assert_eq!(port.tx_burst(&mut vec![frame]), 0);
        assert_eq!(port.stats().tx_errors, 1);
    });
}
