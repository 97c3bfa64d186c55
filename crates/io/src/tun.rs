//! A TUN device: the lane between the engine and the host's own stack.
//!
//! What is meant for the host leaves the engine here, and comes back the same way. Packets pass
//! with a virtio header, so that partial checksums and super-packets need not be finished on so
//! short a way. The wire carries no Ethernet header; frames get a synthetic one.

mod lane;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use engine::port::{Capabilities, Link, Packet, Port, PortStats};
use ipnet::IpNet;

use crate::buffer::{ETHERNET_LEN, FRAME_LEN_MAX, Frame, Pool};
use crate::interface::Interface;
use crate::packet::OpenError;
use crate::{sys, vnet};
use lane::Lane;

/// Where the virtio header of a frame begins: its last bytes take the place of the first of the
/// packet.
const VNET_AT: isize = ETHERNET_LEN as isize - vnet::LEN as isize;

/// A device and what the host has on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Name of the device.
    pub name: String,
    /// Largest packet, bytes; 1280..=65,535.
    pub mtu: u16,
    /// The host's addresses on the link, with the length of the link's prefix.
    pub addresses: Vec<IpNet>,
    /// Addresses that the host answers for over this device only: what comes from them goes back
    /// into the device.
    pub target_ips: Vec<IpAddr>,
    /// Packets that the engine can hold at once, 64..=65,536.
    pub buffers: u32,
}

impl TunConfig {
    /// The host lane: `svc0` with the host at 169.254.255.1 and fd6e:7765::1.
    pub fn host_lane(target_ips: Vec<IpAddr>) -> Self {
        Self {
            name: "svc0".to_owned(),
            mtu: 1500,
            addresses: vec![
                IpNet::new_assert(IpAddr::from([169, 254, 255, 1]), 30),
                IpNet::new_assert(IpAddr::from([0xfd6e, 0x7765, 0, 0, 0, 0, 0, 1]), 126),
            ],
            target_ips,
            buffers: 256,
        }
    }
}

/// An open device, configured. Unlike a port it can be sent to the thread that will use it.
/// The device goes with it.
pub struct TunDevice {
    file: File,
    lane: Lane,
    capabilities: Capabilities,
    buffers: u32,
}

impl TunDevice {
    /// Makes the device, with addresses, routes and rules, and sets it up.
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        let name = config.name.as_str();
        let step = |step| move |source| OpenError::new(step, name, source);
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(step("open /dev/net/tun for"))?;
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        sys::interface_ioctl(&file, libc::TUNSETIFF, name, &flags.to_ne_bytes())
            .map_err(step("make"))?;
        let always = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        // UDP segmentation came with Linux 6.2.
        let tx_gso_udp = sys::number_ioctl(&file, libc::TUNSETOFFLOAD, always | udp).is_ok();
        if !tx_gso_udp {
            sys::number_ioctl(&file, libc::TUNSETOFFLOAD, always).map_err(step("offload to"))?;
        }
        let interface = Interface::by_name(name).map_err(step("look up"))?;
        let lane = Lane::set_up(interface, config).map_err(step("configure"))?;
        Ok(Self {
            file,
            lane,
            capabilities: Capabilities {
                mtu: config.mtu,
                tx_checksum: true,
                tx_gso_tcp: true,
                tx_gso_udp,
                mac: [0; 6],
                layer3: true,
            },
            buffers: config.buffers.max(64),
        })
    }
}

/// What the host may hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// Super-packets, for data ports that can cut them.
    Super,
    /// Packets of the device's MTU, for those that cannot.
    Plain,
}

impl TunDevice {
    /// Says what the host may hand over; super-packets, unless told otherwise.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_segments(&self, segments: Segments) -> io::Result<()> {
        match segments {
            Segments::Super => Ok(()),
            Segments::Plain => sys::number_ioctl(&self.file, libc::TUNSETOFFLOAD, libc::TUN_F_CSUM),
        }
    }
}

/// The engine's end of a TUN device.
pub struct Tun {
    device: TunDevice,
    pool: Rc<Pool>,
    /// The buffer to read into next.
    empty: Option<Frame>,
    stats: PortStats,
}

impl Tun {
    /// Makes the device and its port.
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        Ok(Self::new(TunDevice::open(config)?))
    }

    /// Makes a port of an open device, with a pool of buffers of this thread.
    pub fn new(device: TunDevice) -> Self {
        Self {
            pool: Pool::new(device.buffers),
            device,
            empty: None,
            stats: PortStats::default(),
        }
    }

    /// Reads one packet; none if there is none, or no buffer.
    fn read(&mut self) -> Option<Frame> {
        loop {
            let mut frame = self.empty.take().or_else(|| self.pool.take(0))?;
            frame.set_len(FRAME_LEN_MAX);
            let len = match self.device.file.read(frame.bytes_from_mut(VNET_AT)) {
                Ok(len) => len,
                Err(error) => {
                    self.empty = Some(frame);
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return None;
                }
            };
            frame.set_len((len + ETHERNET_LEN).saturating_sub(vnet::LEN));
            let mut header = [0; vnet::LEN];
            header.copy_from_slice(&frame.bytes_from_mut(VNET_AT)[..vnet::LEN]);
            match vnet::parse(header, frame.bytes(), ETHERNET_LEN) {
                Ok(meta) if frame.put_synthetic_ethernet() => {
                    frame.set_meta(meta);
                    self.stats.rx_frames += 1;
                    self.stats.rx_bytes += frame.bytes().len() as u64;
                    return Some(frame);
                }
                _ => {
                    self.stats.rx_errors += 1;
                    self.empty = Some(frame);
                }
            }
        }
    }

    /// Writes one packet; counts it if it is not taken.
    fn write(&mut self, frame: &mut Frame) -> bool {
        if frame.bytes().len() <= ETHERNET_LEN {
            self.stats.tx_errors += 1;
            return false;
        }
        let len = frame.bytes().len() as u64;
        frame.put_vnet(ETHERNET_LEN);
        let written = loop {
            match self.device.file.write(frame.bytes_from_mut(VNET_AT)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match written {
            Ok(_) => {
                self.stats.tx_frames += 1;
                self.stats.tx_bytes += len;
                true
            }
            Err(error) => {
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => self.stats.tx_dropped += 1,
                    _ => self.stats.tx_errors += 1,
                }
                false
            }
        }
    }
}

impl Port for Tun {
    type Packet = Frame;

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        for count in 0..max {
            match self.read() {
                Some(frame) => burst.push(frame),
                None => return count,
            }
        }
        max
    }

    fn tx_burst(&mut self, burst: &mut Vec<Frame>) -> usize {
        let mut taken = 0;
        for mut frame in burst.drain(..) {
            taken += usize::from(self.write(&mut frame));
        }
        taken
    }

    fn alloc(&mut self, len: usize) -> Option<Frame> {
        self.pool.take(len)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    fn link(&self) -> Link {
        self.device.lane.link()
    }

    fn stats(&self) -> PortStats {
        PortStats {
            rx_dropped: self.device.lane.dropped(),
            ..self.stats
        }
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.device.file.as_raw_fd())
    }
}
