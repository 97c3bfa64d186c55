//! The host's side of the lane: what comes from a target address goes back into the device, and
//! nothing stays behind. Needs root.

#[path = "conformance/namespace.rs"]
mod namespace;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use engine::port::{Idle, Packet, Port};
use io::idle::PollIdle;
use io::kept::Kept;
use io::tun::{Tun, TunConfig, TunDevice};
use namespace::{sh, with_namespace};

const TARGET: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

fn targets() -> Vec<IpAddr> {
    vec![
        TARGET.into(),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]),
    ]
}

/// An ICMP echo request from the client to the target, with a synthetic Ethernet header.
fn echo_request() -> Vec<u8> {
    let mut frame = vec![0; 42];
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1]);
    frame[26..30].copy_from_slice(&CLIENT.octets());
    frame[30..34].copy_from_slice(&TARGET.octets());
    frame[34..42].copy_from_slice(&[8, 0, 0, 0, 0, 1, 0, 1]);
    for (at, range) in [(24, 14..34), (36, 34..42)] {
        let sum: u32 = frame[range]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_answer_from_a_target_address_comes_back_through_the_device() {
    with_namespace("an_answer_from_a_target_address_comes_back", || {
        // Elsewhere is the way to the client, if not for the rule; and a strict path check.
        sh("ip link add mgmt type veth peer name peer
            ip addr add 192.0.2.1/24 dev mgmt
            ip link set mgmt up; ip link set peer up
            ip route add default via 192.0.2.254
            sysctl -qw net.ipv4.conf.default.rp_filter=1");
        let mut lane = Tun::open(&TunConfig::host_lane(targets())).expect("the device opens");
        let request = echo_request();
        let mut frame = lane.alloc(request.len()).expect("a buffer");
        frame.bytes_mut().copy_from_slice(&request);
        assert_eq!(lane.tx_burst(&mut vec![frame]), 1);

        let mut idle = PollIdle::new().expect("eventfd");
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut burst = Vec::new();
        loop {
            lane.rx_burst(&mut burst, 8);
            let answered = burst.iter().any(|frame| {
                let bytes = frame.bytes();
                bytes[12..14] == [8, 0]
                    && bytes[26..30] == TARGET.octets()
                    && bytes[30..34] == CLIENT.octets()
                    && bytes[34] == 0
            });
            if answered {
                break;
            }
            assert!(Instant::now() < deadline, "no answer: {:?}", lane.stats());
            let fds: Vec<i32> = lane.wait_fd().into_iter().collect();
            idle.wait(&fds, Duration::from_millis(20));
        }
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn the_lane_is_laid_again_over_what_a_killed_process_left_and_leaves_nothing() {
    with_namespace("the_lane_leaves_nothing", || {
        let rules = || sh("ip rule; ip -6 rule");
        let before = rules();
        let device = || sh("ip -o addr show dev svc0");
        // The rules outlive a killed process, its device does not.
        sh("ip rule add from 10.1.1.1 lookup 28279 prio 1000
            ip -6 rule add from 2001:db8::99 lookup 28279 prio 1000");
        let lane = Tun::open(&TunConfig::host_lane(targets())).expect("the device opens");
        let held = rules();
        assert!(held.contains("from 10.9.8.7 lookup 28279"), "{held}");
        assert!(held.contains("from 2001:db8::7 lookup 28279"), "{held}");
        assert!(!held.contains("10.1.1.1") && !held.contains("2001:db8::99"));
        let addresses = device();
        for expected in [
            "169.254.255.1/30",
            "fd6e:7765::1/126",
            "10.9.8.7/32",
            "2001:db8::7/128",
        ] {
            assert!(addresses.contains(expected), "{addresses}");
        }
        assert!(!addresses.contains("fe80"), "{addresses}");
        for family in ["-4", "-6"] {
            let table = sh(&format!("ip {family} route show table 28279"));
            assert!(table.contains("default dev svc0"), "{table}");
        }
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/svc0/rp_filter").trim(), "0");
        drop(lane);
        assert_eq!(rules(), before);
        assert!(!sh("ip -o link").contains("svc0"));
    });
}

/// All that the host has of the lane.
fn laid() -> String {
    sh("ip rule; ip -6 rule
        ip -o addr show dev svc0 | sed 's/valid_lft.*//' | sort
        ip route show table 28279; ip -6 route show table 28279")
}

/// What a machine's own configuration of its network does to what is not its own.
const CLEARED: [&str; 4] = [
    "ip link set svc0 down; ip link set svc0 up",
    "ip rule del from 10.9.8.7; ip -6 rule del from 2001:db8::7",
    "ip addr flush dev svc0; ip route flush table 28279",
    "ip rule add from 10.1.1.1 lookup 28279 prio 1000; ip rule del from 10.9.8.7",
];

#[test]
#[ignore = "needs root; make test runs it"]
fn what_others_take_from_the_lane_is_laid_again() {
    with_namespace("what_others_take_from_the_lane", || {
        let config = TunConfig::host_lane(targets());
        let device = TunDevice::open(&config).expect("the device opens");
        let upkeep = device.upkeep(config).expect("netlink");
        let before = laid();
        assert!(!upkeep.lay_again().expect("it is up"), "nothing is missing");
        for cleared in CLEARED {
            sh(cleared);
            assert_ne!(laid(), before, "{cleared}");
            assert!(upkeep.lay_again().expect("it is up"), "{cleared}");
            assert_eq!(laid(), before, "{cleared}");
            assert!(!upkeep.lay_again().expect("it is up"), "{cleared}");
        }
        // Whoever takes the device down means it.
        sh("ip link set svc0 down");
        assert!(!upkeep.lay_again().expect("it is left alone"));
        assert!(!upkeep.has_gone());
        sh("ip link del svc0");
        assert!(upkeep.has_gone());
        assert!(!upkeep.lay_again().expect("it is left alone"));
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_lane_that_is_taken_over_has_everything_again() {
    with_namespace("a_lane_that_is_taken_over", || {
        let config = TunConfig::host_lane(targets());
        let kept = Kept::default();
        let device = TunDevice::open_kept(&config, &kept).expect("the device opens");
        let before = laid();
        kept.keep();
        let mut left = kept.leave().into_iter().collect();
        drop(device);
        sh(
            "ip rule del from 10.9.8.7; ip route flush table 28279; ip link set svc0 down
            sysctl -qw net.ipv6.conf.svc0.disable_ipv6=1",
        );
        let device = TunDevice::open_kept(&config, &Kept::take(&mut left));
        assert_eq!(laid(), before);
        drop(device);
    });
}
