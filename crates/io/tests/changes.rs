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

/// A guest may send what virtio knows and AF_PACKET cannot say: datagrams to be cut into fragments (UFO).
#[test]
#[ignore = "needs root; make test runs it"]
fn a_frame_that_the_kernel_cannot_describe_does_not_silence_the_port() {
    const UFO: u8 = 3;
    with_namespace("a_frame_that_the_kernel_cannot_describe", || {
        let guest = Guest::with_tap("tap0");
        let mut port = PacketPort::open(&PacketConfig::new("tap0")).expect("the port opens");
        for _ in 0..3 {
            guest.send(0, 200);
            assert_eq!(receive(&mut port, 1), 1);
        }
        guest.send(UFO, 3000);
        let mut lost = 0;
        while {
            guest.send(0, 200);
            receive(&mut port, 1) == 0
        } {
            port.refresh();
            lost += 1;
            assert!(lost < 100, "the port is silent: {:?}", port.stats());
        }
        assert!(port.stats().rx_dropped > 0, "{:?}", port.stats());
        for _ in 0..5000 {
            guest.send(0, 200);
            assert_eq!(receive(&mut port, 1), 1);
        }
    });
}

/// Frames that come within some turns, `wanted` at least if there are so many.
fn receive(port: &mut PacketPort, wanted: usize) -> usize {
    let mut burst = Vec::new();
    for _ in 0..1000 {
        port.rx_burst(&mut burst, 64);
        if burst.len() >= wanted {
            break;
        }
    }
    burst.len()
}

/// The user of a TAP device, whose frames come from it.
struct Guest(std::fs::File);

impl Guest {
    fn with_tap(name: &str) -> Guest {
        const IFF: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let device = std::fs::File::options();
        let device = { device }.read(true).write(true).open("/dev/net/tun");
        let device = device.expect("the machine has TUN");
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF as i16).to_ne_bytes());
        // SAFETY: the request is a `struct ifreq`, which the kernel reads and writes within its 40 bytes.
        let made = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&device),
                libc::TUNSETIFF,
                request.as_mut_ptr(),
            )
        };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        sh(&format!("ip link set {name} up"));
        Guest(device)
    }

    /// Sends a UDP datagram in a frame of `len` bytes, to be cut in this way.
    fn send(&self, gso: u8, len: usize) {
        let mut frame = vec![0; 10 + len];
        if gso != 0 {
            // The checksum is to be completed; headers of 42 bytes, pieces of 1400.
            (frame[0], frame[1]) = (1, gso);
            for (at, value) in [(2, 42_u16), (4, 1400), (6, 34), (8, 6)] {
                frame[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
        }
        let ethernet = &mut frame[10..];
        ethernet[..6].copy_from_slice(&[0xff; 6]);
        ethernet[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        ethernet[12..14].copy_from_slice(&[0x08, 0x00]);
        ethernet[14] = 0x45;
        ethernet[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
        ethernet[22..24].copy_from_slice(&[64, 17]);
        ethernet[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        ethernet[38..40].copy_from_slice(&(len as u16 - 34).to_be_bytes());
        std::io::Write::write_all(&mut &self.0, &frame).expect("the device takes it");
    }
}
