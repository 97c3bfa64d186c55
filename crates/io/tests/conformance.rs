//! Every backend passes the same suite. Those that need a device run as root, each in a network
//! namespace of its own.

#[path = "conformance/frames.rs"]
mod frames;
#[path = "conformance/namespace.rs"]
mod namespace;
#[path = "conformance/suite.rs"]
mod suite;
#[path = "conformance/wired.rs"]
mod wired;

use io::packet::{PacketConfig, PacketPort};
use io::tun::{Tun, TunConfig};
use namespace::{sh, with_namespace};
use suite::Wire;

fn config(interface: &str) -> PacketConfig {
    PacketConfig {
        receive_buffer_bytes: 4 << 20,
        ..PacketConfig::new(interface)
    }
}

fn packet_pair(name: &'static str, set_up: &'static str) {
    with_namespace(name, move || {
        sh("ip link add left type veth peer name right; ip link set left up; ip link set right up");
        sh(set_up);
        let mut left = PacketPort::open(&config("left")).expect("left opens");
        let mut right = PacketPort::open(&config("right")).expect("right opens");
        let wire = Wire {
            set_link: Some(&|up| {
                sh(&format!(
                    "ip link set left {}",
                    if up { "up" } else { "down" }
                ));
            }),
            remove: Some(&|| {
                sh("ip link del left");
            }),
        };
        suite::run(&mut left, &mut right, &wire);
    });
}

#[test]
fn packet() {
    packet_pair("packet", "true");
}

#[test]
fn packet_without_offloads() {
    packet_pair(
        "packet_without_offloads",
        "for i in left right; do ethtool -K $i tx off tso off gso off gro off rxvlan off txvlan off; done",
    );
}

#[test]
fn packet_with_long_frames() {
    packet_pair(
        "packet_with_long_frames",
        "for i in left right; do ip link set $i mtu 65535; done",
    );
}

/// The other end is a packet socket on the device, in the place of the host's stack.
#[test]
#[ignore = "needs root; make test runs it"]
fn tun() {
    with_namespace("tun", || {
        let mut lane = Tun::open(&TunConfig::host_lane(Vec::new())).expect("the device opens");
        let mut host = PacketPort::open(&config("svc0")).expect("svc0 opens");
        let wire = Wire {
            set_link: Some(&|up| {
                sh(&format!(
                    "ip link set svc0 {}",
                    if up { "up" } else { "down" }
                ));
            }),
            remove: Some(&|| {
                sh("ip link del svc0");
            }),
        };
        suite::run(&mut lane, &mut host, &wire);
    });
}

#[test]
fn memory() {
    let (mut left, mut right) = wired::memory_pair();
    suite::run(&mut left, &mut right, &Wire::default());
}
