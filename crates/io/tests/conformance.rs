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
use io::tun::{Kind, Tun, TunConfig};
use io::xdp::{Attach, XdpConfig, XdpPort};
use namespace::{sh, with_namespace};
use suite::Wire;

fn config(interface: &str) -> PacketConfig {
    PacketConfig {
        receive_buffer_bytes: 4 << 20,
        ..PacketConfig::new(interface)
    }
}

/// What can be done to an interface.
fn wire(interface: &str) -> Wire<'static> {
    let (interface, same) = (interface.to_owned(), interface.to_owned());
    let set_link = move |up| {
        let state = if up { "up" } else { "down" };
        sh(&format!("ip link set {same} {state}"));
    };
    let remove = move || {
        sh(&format!("ip link del {interface}"));
    };
    Wire {
        set_link: Some(Box::new(set_link)),
        remove: Some(Box::new(remove)),
    }
}

fn packet_pair(name: &'static str, set_up: &'static str) {
    with_namespace(name, move || {
        sh("ip link add left type veth peer name right; ip link set left up; ip link set right up");
        sh(set_up);
        let mut left = PacketPort::open(&config("left")).expect("left opens");
        let mut right = PacketPort::open(&config("right")).expect("right opens");
        suite::run(&mut left, &mut right, &wire("left"));
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

fn xdp_pair(name: &'static str, attach: Attach, set_up: &'static str) {
    with_namespace(name, move || {
        sh("ip link add left type veth peer name right");
        sh(set_up);
        sh("ip link set left up; ip link set right up");
        let config = XdpConfig {
            attach,
            ..XdpConfig::default()
        };
        let mut left = XdpPort::open("left", &config).expect("left opens");
        let mut right = XdpPort::open("right", &config).expect("right opens");
        suite::run(&mut left, &mut right, &wire("left"));
    });
}

#[test]
fn xdp() {
    xdp_pair("xdp", Attach::Native, "true");
}

#[test]
fn xdp_behind_the_driver() {
    xdp_pair("xdp_behind_the_driver", Attach::Generic, "true");
}

#[test]
fn xdp_with_long_frames() {
    xdp_pair(
        "xdp_with_long_frames",
        Attach::Native,
        "for i in left right; do ip link set $i mtu 3400; done",
    );
}

/// The other end has the offloads that a host has: checksums are left to the device.
#[test]
fn xdp_from_a_packet_socket() {
    with_namespace("xdp_from_a_packet_socket", || {
        sh("ip link add left type veth peer name right; ip link set left up; ip link set right up");
        let mut left = XdpPort::open("left", &XdpConfig::default()).expect("left opens");
        let mut right = PacketPort::open(&config("right")).expect("right opens");
        suite::run(&mut left, &mut right, &wire("left"));
    });
}

/// The other end is a packet socket on the device, in the place of the host's stack.
fn device(name: &'static str, config: TunConfig) {
    with_namespace(name, move || {
        let mut ours = Tun::open(&config).expect("the device opens");
        let mut host = PacketPort::open(&self::config(&config.name)).expect("its host side opens");
        suite::run(&mut ours, &mut host, &wire(&config.name));
    });
}

#[test]
fn tun_as_host_lane() {
    device("tun_as_host_lane", TunConfig::host_lane(Vec::new()));
}

#[test]
fn tun() {
    device("tun", TunConfig::data_port("nw0", Kind::Tun, Vec::new()));
}

#[test]
fn tap() {
    device("tap", TunConfig::data_port("nw0", Kind::Tap, Vec::new()));
}

#[test]
fn tun_and_tap_with_long_packets() {
    for (kind, mtu) in [(Kind::Tun, 65_535), (Kind::Tap, 65_521)] {
        let config = TunConfig {
            mtu,
            ..TunConfig::data_port("nw0", kind, Vec::new())
        };
        device("tun_and_tap_with_long_packets", config);
    }
}

#[test]
fn memory() {
    let (mut left, mut right) = wired::memory_pair();
    suite::run(&mut left, &mut right, &Wire::default());
}
