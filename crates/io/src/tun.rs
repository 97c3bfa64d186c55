//! TUN and TAP devices: the lane between the engine and the host's own stack, and data ports for
//! machines whose traffic the host itself routes (or bridges) into the node.
//!
//! Packets pass with a virtio header, so that partial checksums and super-packets need not be
//! finished on so short a way. The wire of a TUN device carries no Ethernet header; its frames get
//! a synthetic one. A TAP device is an Ethernet link with the host at its other end.

mod host;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use engine::port::{Capabilities, Link, Packet, Port, PortStats};
use ipnet::IpNet;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{DupFlags, Errno, dup3};

use crate::buffer::{ETHERNET_LEN, FRAME_LEN_MAX, Frame, Pool};
use crate::interface::Interface;
use crate::kept::{Kept, Position};
use crate::packet::OpenError;
use crate::{sys, vnet};
use host::HostSide;
pub use host::Upkeep;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IP packets.
    Tun,
    /// Ethernet frames.
    Tap,
}

impl Kind {
    /// Bytes of the Ethernet header that the wire does not carry.
    fn synthetic(self) -> usize {
        match self {
            Kind::Tun => ETHERNET_LEN,
            Kind::Tap => 0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Tun => "TUN",
            Kind::Tap => "TAP",
        }
    }
}

/// A device and what the host has on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Name of the device.
    pub name: String,
    /// What it carries.
    pub kind: Kind,
    /// Largest packet, bytes; 1280..=65,535 (65,521 for TAP).
    pub mtu: u16,
    /// The host's addresses on the link, with the length of the link's prefix.
    pub addresses: Vec<IpNet>,
    /// Addresses that the host answers for over this device only: what comes from them goes back
    /// into the device. Some, even if empty, for the one host lane; none for a data port.
    pub target_ips: Option<Vec<IpAddr>>,
    /// Packets that the engine can hold at once, 64..=65,536.
    pub buffers: u32,
}

impl TunConfig {
    /// The host lane: `svc0` with the host at 169.254.255.1 and fd6e:7765::1.
    pub fn host_lane(target_ips: Vec<IpAddr>) -> Self {
        Self {
            name: "svc0".to_owned(),
            kind: Kind::Tun,
            mtu: 1500,
            addresses: vec![
                IpNet::new_assert(IpAddr::from([169, 254, 255, 1]), 30),
                IpNet::new_assert(IpAddr::from([0xfd6e, 0x7765, 0, 0, 0, 0, 0, 1]), 126),
            ],
            target_ips: Some(target_ips),
            buffers: 256,
        }
    }

    /// A data port. A device of this name that is there already is used as it is; otherwise it is
    /// made, with these addresses for the host.
    pub fn data_port(name: impl Into<String>, kind: Kind, addresses: Vec<IpNet>) -> Self {
        Self {
            name: name.into(),
            kind,
            mtu: 1500,
            addresses,
            target_ips: None,
            buffers: 1024,
        }
    }
}

/// One queue of an open device. Unlike a port it can be sent to the thread that will use it.
/// A device that we have made goes with its last queue; one that was there stays.
pub struct TunDevice {
    fd: OwnedFd,
    host: HostSide,
    kind: Kind,
    capabilities: Capabilities,
    buffers: u32,
    /// Whether this queue tells what the device as a whole has lost.
    is_first: bool,
}

impl TunDevice {
    /// Opens a device with a single queue.
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        Self::open_kept(config, &Kept::default())
    }

    /// The same for a single queue as [`open_queues_kept`](Self::open_queues_kept).
    pub fn open_kept(config: &TunConfig, kept: &Kept) -> Result<Self, OpenError> {
        let mut queues = Self::open_queues_kept(config, 1, kept)?;
        Ok(queues.remove(0))
    }

    /// Opens a device with `count` (1..=256) queues: makes it, with addresses, routes and rules,
    /// unless it is a data port that is there already, and sets it up. The kernel hands the
    /// packets of a flow to the queue that wrote its last packet.
    pub fn open_queues(config: &TunConfig, count: usize) -> Result<Vec<Self>, OpenError> {
        Self::open_queues_kept(config, count, &Kept::default())
    }

    /// The same, with the queues that the process before this one has left, if the device is to be as it was, and the
    /// packets that wait in them. They are `kept` for the next process.
    pub fn open_queues_kept(
        config: &TunConfig,
        count: usize,
        kept: &Kept,
    ) -> Result<Vec<Self>, OpenError> {
        let name = config.name.as_str();
        let step = |step| move |source| OpenError::new(step, name, source);
        let left = kept.claim(name, config, count);
        // One that was removed meanwhile is of no use.
        let left = left.filter(|left| {
            let is_attached = |fd| sys::interface_ioctl(fd, libc::TUNGETIFF, name, &[]).is_ok();
            left.iter().all(|(fd, _)| is_attached(fd))
        });
        let resumes = left.is_some();
        let mut left = left.into_iter().flatten().map(|(fd, _)| fd);
        let is_there = config.target_ips.is_none() && Interface::by_name(name).is_ok();
        let mut devices = Vec::with_capacity(count);
        for number in 0..count {
            let fd = match left.next() {
                Some(fd) => fd,
                None => attach(config, is_there, count > 1)?,
            };
            kept.enter(name, config, number, fd.as_fd(), Position::default())
                .map_err(step("keep"))?;
            // A persistent device may have got another length from its last user.
            sys::pointed_ioctl(&fd, libc::TUNSETVNETHDRSZ, vnet::LEN as i32)
                .map_err(step("set the header of"))?;
            let tx_gso_udp = offload(&fd).map_err(step("offload to"))?;
            let interface = Interface::by_name(name).map_err(step("look up"))?;
            let is_first = devices.is_empty();
            let mut host = HostSide::new(interface, kept.leaving()).map_err(step("configure"))?;
            if is_first && resumes {
                host.resume(config).map_err(step("configure"))?;
            } else if is_first && !is_there {
                host.set_up(config).map_err(step("configure"))?;
            } else if is_first {
                host.interface().set_up(true).map_err(step("set up"))?;
            }
            let mtu = host.interface().mtu().map_err(step("read the MTU of"))?;
            let mac = match config.kind {
                Kind::Tun => [0; 6],
                Kind::Tap => {
                    let host = host.interface().mac();
                    our_mac(host.map_err(step("read the address of"))?.0)
                }
            };
            devices.push(Self {
                fd,
                host,
                kind: config.kind,
                capabilities: Capabilities {
                    mtu,
                    tx_checksum: true,
                    tx_gso_tcp: true,
                    tx_gso_udp,
                    mac,
                    layer3: config.kind == Kind::Tun,
                },
                buffers: config.buffers.max(64),
                is_first,
            });
        }
        Ok(devices)
    }
}

impl TunDevice {
    /// Whether a device of this name is there to stay and was made for a single queue.
    pub fn has_single_queue(name: &str) -> bool {
        host::has_single_queue(name).unwrap_or(false)
    }

    /// What keeps the host's side of an open device as it was laid by this `config`.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn upkeep(&self, config: TunConfig) -> io::Result<Upkeep> {
        Upkeep::new(self.host.interface().index(), config)
    }
}

/// Makes a device, or attaches to one that is there.
fn attach(config: &TunConfig, is_there: bool, many: bool) -> Result<OwnedFd, OpenError> {
    let name = config.name.as_str();
    let kind = match config.kind {
        Kind::Tun => libc::IFF_TUN,
        Kind::Tap => libc::IFF_TAP,
    };
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // A device of many queues is only to be had as one of many, also for a single one.
    let tries: &[i32] = match (is_there, many) {
        (_, true) => &[libc::IFF_MULTI_QUEUE],
        (true, false) => &[0, libc::IFF_MULTI_QUEUE],
        (false, false) => &[0],
    };
    let mut last = None;
    for queues in tries {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| OpenError::new("open /dev/net/tun for", name, source))?;
        let flags = ((flags | queues) as u16).to_ne_bytes();
        match sys::interface_ioctl(&file, libc::TUNSETIFF, name, &flags) {
            Ok(_) => return Ok(file.into()),
            Err(error) => {
                let may_fit_otherwise = error.raw_os_error() == Some(libc::EINVAL);
                last = Some(error);
                if !may_fit_otherwise {
                    break;
                }
            }
        }
    }
    let source = last.expect("there was a try");
    let interface = name.to_owned();
    Err(match source.raw_os_error() {
        Some(libc::EINVAL) if is_there => OpenError::OtherKind {
            interface,
            kind: config.kind.name(),
        },
        Some(libc::EBUSY) => OpenError::InUse { interface },
        _ => OpenError::new("make", name, source),
    })
}

/// What the host may hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// Super-packets, for data ports that can cut them.
    Super,
    /// Those of TCP alone.
    Tcp,
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
            Segments::Tcp => sys::number_ioctl(&self.fd, libc::TUNSETOFFLOAD, OFFLOADS),
            Segments::Plain => sys::number_ioctl(&self.fd, libc::TUNSETOFFLOAD, libc::TUN_F_CSUM),
        }
    }
}

/// Checksums and segmentation of TCP are left to us.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// Has the kernel leave checksums and segmentation to us. Returns whether it does so for UDP.
fn offload(fd: &OwnedFd) -> io::Result<bool> {
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // UDP segmentation came with Linux 6.2.
    let with_udp = sys::number_ioctl(fd, libc::TUNSETOFFLOAD, OFFLOADS | udp).is_ok();
    if !with_udp {
        sys::number_ioctl(fd, libc::TUNSETOFFLOAD, OFFLOADS)?;
    }
    Ok(with_udp)
}

/// Our address on a TAP device, which follows from the host's: administered locally, one bit apart.
fn our_mac(mut host: [u8; 6]) -> [u8; 6] {
    host[0] = (host[0] ^ 0x04) & !0x01 | 0x02;
    host
}

/// The engine's end of a TUN or TAP device.
pub struct Tun {
    device: TunDevice,
    pool: Rc<Pool>,
    /// The buffer to read into next.
    empty: Option<Frame>,
    has_gone: bool,
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
            has_gone: false,
            stats: PortStats::default(),
        }
    }

    /// Reads one packet; none if there is none, or no buffer.
    fn read(&mut self) -> Option<Frame> {
        let synthetic = self.device.kind.synthetic();
        let first = synthetic as isize - vnet::LEN as isize;
        loop {
            let mut frame = self.empty.take().or_else(|| self.pool.take(0))?;
            frame.set_len(FRAME_LEN_MAX);
            let len = match rustix::io::read(&self.device.fd, frame.bytes_from_mut(first)) {
                Ok(len) => len,
                Err(error) => {
                    self.empty = Some(frame);
                    match error {
                        Errno::INTR => continue,
                        Errno::BADFD => self.note_gone(),
                        _ => {}
                    }
                    return None;
                }
            };
            frame.set_len((len + synthetic).saturating_sub(vnet::LEN));
            if accept(&mut frame, synthetic).is_ok() {
                self.stats.rx_frames += 1;
                self.stats.rx_bytes += frame.bytes().len() as u64;
                return Some(frame);
            }
            self.stats.rx_errors += 1;
            self.empty = Some(frame);
        }
    }

    /// The device was removed: its descriptor would be readable for ever, and whoever sleeps on it
    /// never sleep. One that is never readable takes its place and number.
    fn note_gone(&mut self) {
        if let Ok(silent) = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC) {
            self.has_gone = dup3(&silent, &mut self.device.fd, DupFlags::CLOEXEC).is_ok();
        }
    }

    /// Writes one packet; counts it if it is not taken.
    fn write(&mut self, frame: &mut Frame) -> bool {
        if frame.bytes().len() <= ETHERNET_LEN || self.has_gone {
            self.stats.tx_errors += 1;
            return false;
        }
        let len = frame.bytes().len() as u64;
        let synthetic = self.device.kind.synthetic();
        let first = frame.vnet_at(synthetic);
        frame.put_vnet(synthetic);
        let written = loop {
            match rustix::io::write(&self.device.fd, frame.bytes_from_mut(first)) {
                Err(Errno::INTR) => {}
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
                match error {
                    Errno::AGAIN | Errno::NOBUFS => self.stats.tx_dropped += 1,
                    _ => self.stats.tx_errors += 1,
                }
                false
            }
        }
    }
}

/// Makes a frame with metadata of what was read.
fn accept(frame: &mut Frame, synthetic: usize) -> Result<(), vnet::Unusable> {
    let first = synthetic as isize - vnet::LEN as isize;
    let mut header = [0; vnet::LEN];
    header.copy_from_slice(
        frame
            .bytes_from_mut(first)
            .get(..vnet::LEN)
            .ok_or(vnet::Unusable)?,
    );
    let mut meta = vnet::parse(header, frame.bytes_mut(), synthetic)?;
    if synthetic > 0 {
        if !frame.put_synthetic_ethernet() {
            return Err(vnet::Unusable);
        }
    } else if frame.bytes().len() < ETHERNET_LEN {
        return Err(vnet::Unusable);
    } else {
        frame.strip_tag(&mut meta);
    }
    frame.set_meta(meta);
    Ok(())
}

impl Port for Tun {
    type Packet = Frame;

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        if self.has_gone {
            return 0;
        }
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

    fn refresh(&mut self) -> bool {
        // Our address is our own.
        let capabilities = &mut self.device.capabilities;
        let mtu = self.device.host.interface().mtu();
        let mtu = mtu.unwrap_or(capabilities.mtu);
        std::mem::replace(&mut capabilities.mtu, mtu) != mtu
    }

    fn link(&self) -> Link {
        self.device.host.interface().link()
    }

    fn stats(&self) -> PortStats {
        let rx_dropped = match self.device.is_first {
            true => self.device.host.dropped(),
            false => 0,
        };
        PortStats {
            rx_dropped,
            ..self.stats
        }
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.device.fd.as_raw_fd())
    }
}
