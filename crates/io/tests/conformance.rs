//! Every backend passes the same suite. Those that need a device run as root, each in a network
//! namespace of its own.

#[cfg(feature = "dpdk")]
#[path = "conformance/dpdk.rs"]
mod dpdk;
#[path = "conformance/frames.rs"]
mod frames;
#[path = "conformance/namespace.rs"]
mod namespace;
#[path = "conformance/suite.rs"]
mod suite;
#[path = "conformance/wired.rs"]
mod wired;

use std::path::Path;

use engine::port::Link;
use engine::port::faulty::{Faults, Faulty};
use io::packet::{PacketConfig, PacketPort};
use io::pcap::{CaptureReader, CaptureWriter, LinkType, Pace, PcapConfig, PcapPort};
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
        ..Wire::default()
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

/// Each end reads what the other writes.
#[test]
fn pcap() {
    for link_type in [LinkType::Ethernet, LinkType::Raw] {
        let directory = tempfile::tempdir().expect("a directory");
        let files = ["left", "right"].map(|name| directory.path().join(name));
        let [written_left, written_right] =
            [0, 1].map(|i| CaptureWriter::create(&files[i], link_type).expect("it is made"));
        let port = |written, read: &Path| {
            let config = PcapConfig {
                pace: Pace::Unpaced,
                link_type,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 65_521,
                buffers: 256,
            };
            let input = CaptureReader::open(read).expect("it is a capture");
            PcapPort::new(Some(input), Some(written), config).expect("it fits")
        };
        let mut left = port(written_left, &files[1]);
        let mut right = port(written_right, &files[0]);
        let wire = Wire {
            is_boundless: true,
            ..Wire::default()
        };
        suite::run(&mut left, &mut right, &wire);
    }
}

#[test]
fn memory() {
    let (mut left, mut right) = wired::memory_pair(1500);
    let (link, gone) = (left.carrier(), left.carrier());
    let wire = Wire {
        set_link: Some(Box::new(move |up| {
            link.set(if up { Link::Up } else { Link::Down });
        })),
        remove: Some(Box::new(move || gone.set(Link::Gone))),
        ..Wire::default()
    };
    suite::run(&mut left, &mut right, &wire);
}

#[test]
fn memory_with_long_frames() {
    let (mut left, mut right) = wired::memory_pair(65_535);
    suite::run(&mut left, &mut right, &Wire::default());
}

/// Without faults, a port in faults is the port inside.
#[test]
fn faulty() {
    let (left, right) = wired::memory_pair(1500);
    let [mut left, mut right] = [left, right].map(|port| Faulty::new(port, 1, Faults::default()));
    suite::run(&mut left, &mut right, &Wire::default());
}
