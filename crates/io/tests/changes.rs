//! What changes of a device while it is a data port. Needs root.

#[path = "conformance/namespace.rs"]
mod namespace;

use engine::port::Port;
use io::packet::{PacketConfig, PacketPort};
use io::tun::{Kind, Tun, TunConfig};
use namespace::{sh, with_namespace};

#[test]
#[ignore = "needs root; make test runs it"]
fn an_interface_is_looked_at_anew() {
    with_namespace("an_interface_is_looked_at_anew", || {
        sh(
            "ip link add port0 address 02:00:00:00:00:01 type veth peer name peer0; ip link set port0 up",
        );
        let mut port = PacketPort::open(&PacketConfig::new("port0")).expect("the port opens");
        let seen = |port: &PacketPort| (port.capabilities().mac, port.capabilities().mtu);
        assert!(!port.refresh());
        assert_eq!(seen(&port), ([2, 0, 0, 0, 0, 1], 1500));
        sh("ip link set port0 mtu 9000");
        assert!(port.refresh());
        assert_eq!(seen(&port), ([2, 0, 0, 0, 0, 1], 9000));
        sh("ip link set port0 address 02:00:00:00:00:02");
        assert!(port.refresh() && !port.refresh());
        assert_eq!(seen(&port), ([2, 0, 0, 0, 0, 2], 9000));
        sh("ip link del port0");
        assert!(!port.refresh(), "one that has gone is as it was");
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_soft_device_carries_what_the_host_says() {
    with_namespace("a_soft_device_carries_what_the_host_says", || {
        for kind in [Kind::Tun, Kind::Tap] {
            let config = TunConfig::data_port("nw0", kind, Vec::new());
            let mut port = Tun::open(&config).expect("the device opens");
            let ours = port.capabilities().mac;
            assert!(!port.refresh());
            sh("ip link set nw0 mtu 1400");
            assert!(port.refresh() && !port.refresh());
            let caps = port.capabilities();
            assert_eq!((caps.mac, caps.mtu), (ours, 1400));
        }
    });
}
