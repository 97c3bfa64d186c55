//! Opening an AF_PACKET socket: every option, and several sockets that share one interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use engine::port::{Capabilities, Link};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::ring::RxRing;
use super::steer::Fanout;
use crate::interface::Interface;
use crate::kept::Kept;
use crate::sys;

/// How an interface is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// Name of the interface.
    pub interface: String,
    /// Bytes of frames that do not fit a slot of the ring, with the kernel's overhead, that may wait to be received;
    /// beyond it they are dropped and counted. About 70,000 a super-packet. 64 KiB..=1 GiB.
    pub receive_buffer_bytes: u32,
    /// Frames that may wait to be received, 256..=65,536 in steps of 256. Each takes 2 KiB of memory at once, which holds
    /// frames of a usual size; longer ones need `receive_buffer_bytes` besides.
    pub ring_frames: u32,
    /// Bytes that may wait in the device to be sent. 64 KiB..=1 GiB.
    pub send_buffer_bytes: u32,
    /// Frames that a worker can hold at once. 128..=65,536; each takes 64 KiB of address space,
    /// and of memory what frames fill.
    pub buffers: u32,
    /// Whether frames are handed to the device past its queueing discipline. The kernel then
    /// refuses super-packets that the device cannot cut by itself, which are counted as dropped.
    pub qdisc_bypass: bool,
}

impl PacketConfig {
    /// The defaults for an interface.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interface: interface.into(),
            // Some 200 super-packets: small frames wait in the ring.
            receive_buffer_bytes: 16 << 20,
            ring_frames: 8192,
            send_buffer_bytes: 8 << 20,
            buffers: 1024,
            qdisc_bypass: false,
        }
    }
}

/// An interface could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface {interface}")]
    NoSuchInterface {
        /// The name asked for.
        interface: String,
    },
    /// CAP_NET_RAW or CAP_NET_ADMIN is missing.
    #[error("opening {interface} needs the capabilities CAP_NET_RAW and CAP_NET_ADMIN")]
    NotPermitted {
        /// The name asked for.
        interface: String,
    },
    /// A TUN or TAP device is asked for, and something else has its name.
    #[error(
        "{interface} is there already and is no {kind} device that fits: remove it (ip link del {interface}) or name another"
    )]
    OtherKind {
        /// The name asked for.
        interface: String,
        /// What it should be.
        kind: &'static str,
    },
    /// A TUN or TAP device has another user.
    #[error("{interface} is in use by another process: stop that, or name another device")]
    InUse {
        /// The name asked for.
        interface: String,
    },
    /// The kernel refused a step.
    #[error("cannot {step} {interface}")]
    Refused {
        /// What was tried, as a verb phrase.
        step: &'static str,
        /// The name asked for.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Sorts an error of the kernel.
    pub(crate) fn new(step: &'static str, interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.raw_os_error() {
            Some(libc::ENODEV) => Self::NoSuchInterface { interface },
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { interface },
            _ => Self::Refused {
                step,
                interface,
                source,
            },
        }
    }
}

/// An open queue of an interface. Unlike a port it can be sent to the thread that will use it.
pub struct Socket {
    fd: OwnedFd,
    ring: RxRing,
    interface: Interface,
    capabilities: Capabilities,
    buffers: u32,
}

impl Socket {
    /// Opens an interface with a single queue.
    pub fn open(config: &PacketConfig) -> Result<Self, OpenError> {
        let socket = Self::open_closed(config)?;
        socket.let_in(config)?;
        Ok(socket)
    }

    /// Opens `count` (1..=256) queues of an interface: those that the process before this one has left, if they are as they
    /// would be opened now, with the frames that wait in them. They are `kept` for the next process.
    pub fn open_kept(
        config: &PacketConfig,
        count: usize,
        kept: &Kept,
    ) -> Result<(Vec<Self>, Option<Fanout>), OpenError> {
        let name = config.interface.as_str();
        let resumed = kept.claim(name, config, count).and_then(|left| {
            let resume = |(fd, position)| Self::resume(config, fd, position);
            let resumed: Result<Vec<Self>, OpenError> = left.into_iter().map(resume).collect();
            resumed
                .inspect_err(|error| {
                    let error = error as &dyn std::error::Error;
                    tracing::info!(error, "the sockets before are of no use");
                })
                .ok()
        });
        let (sockets, fanout) = match resumed {
            Some(sockets) => {
                let fanout = Self::fanout_of(&sockets, config)?;
                (sockets, fanout)
            }
            None => Self::open_queues(config, count)?,
        };
        for (number, socket) in sockets.iter().enumerate() {
            let (fd, position) = (socket.as_fd(), socket.ring.position());
            kept.enter(name, config, number, fd, position)
                .map_err(|source| OpenError::new("keep", name, source))?;
        }
        Ok((sockets, fanout))
    }

    /// Goes on with a socket of the process before.
    fn resume(config: &PacketConfig, fd: OwnedFd, position: usize) -> Result<Self, OpenError> {
        let name = config.interface.as_str();
        let step = |source| OpenError::new("go on with the socket of", name, source);
        let interface =
            Interface::by_name(name).map_err(|source| OpenError::new("look up", name, source))?;
        let bound: libc::sockaddr_ll = sys::bound(&fd).map_err(step)?;
        if bound.sll_ifindex != interface.index() as i32 {
            return Err(step(io::ErrorKind::AddrNotAvailable.into()));
        }
        let ring = RxRing::resume(&fd, config.ring_frames, position).map_err(step)?;
        Ok(Self {
            capabilities: capabilities(&interface, name)?,
            fd,
            ring,
            interface,
            buffers: buffers(config),
        })
    }

    /// What tells the kernel how to spread frames over sockets, if there are several.
    fn fanout_of(sockets: &[Self], config: &PacketConfig) -> Result<Option<Fanout>, OpenError> {
        let [first, _, ..] = sockets else {
            return Ok(None);
        };
        let socket = first.fd.try_clone().map_err(|source| {
            OpenError::new(
                "spread frames over the queues of",
                &config.interface,
                source,
            )
        })?;
        Ok(Some(Fanout { socket }))
    }

    /// Opens `count` (1..=256) queues of an interface. All frames come to the first until the
    /// [`Fanout`] knows better.
    pub fn open_queues(
        config: &PacketConfig,
        count: usize,
    ) -> Result<(Vec<Self>, Option<Fanout>), OpenError> {
        let refused = |source| {
            OpenError::new(
                "spread frames over the queues of",
                &config.interface,
                source,
            )
        };
        let sockets: Vec<Self> = (0..count)
            .map(|_| Self::open_closed(config))
            .collect::<Result<_, _>>()?;
        if let [first, others @ ..] = &sockets[..]
            && !others.is_empty()
        {
            // The kernel picks an identifier that is free in this namespace.
            let method = libc::PACKET_FANOUT_CBPF as i32;
            let unique = libc::PACKET_FANOUT_FLAG_UNIQUEID as i32;
            let set = |socket: &Self, value: i32| {
                sys::set_option(&socket.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &value)
            };
            set(first, (method | unique) << 16).map_err(refused)?;
            let group: i32 =
                sys::option(&first.fd, libc::SOL_PACKET, libc::PACKET_FANOUT).map_err(refused)?;
            for other in others {
                set(other, (method << 16) | (group & 0xffff)).map_err(refused)?;
            }
        }
        let fanout = Self::fanout_of(&sockets, config)?;
        for socket in &sockets {
            socket.let_in(config)?;
        }
        Ok((sockets, fanout))
    }

    /// Opens a socket that gets no frame yet: a member of a group would get those of the others
    /// before it has joined.
    fn open_closed(config: &PacketConfig) -> Result<Self, OpenError> {
        let name = config.interface.as_str();
        let step = |step| move |source| OpenError::new(step, name, source);
        let interface = Interface::by_name(name).map_err(step("look up"))?;
        let capabilities = capabilities(&interface, name)?;
        // Protocol 0: nothing is received before it is bound.
        let fd = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|source| OpenError::new("open a packet socket for", name, source.into()))?;
        configure(&fd, config)?;
        let ring = RxRing::map(&fd, config.ring_frames).map_err(step("share a ring with"))?;
        let socket = Self {
            fd,
            ring,
            interface,
            capabilities,
            buffers: buffers(config),
        };
        sys::set_closed(&socket.fd, true).map_err(step("set a filter on"))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: socket.interface.index() as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        sys::bind(&socket.fd, &address).map_err(step("bind to"))?;
        socket
            .interface
            .set_promiscuous(&socket.fd)
            .map_err(step("set promiscuous mode on"))?;
        Ok(socket)
    }

    /// Begins to receive.
    fn let_in(&self, config: &PacketConfig) -> Result<(), OpenError> {
        sys::set_closed(&self.fd, false)
            .map_err(|source| OpenError::new("receive from", &config.interface, source))
    }

    /// The frames that the kernel hands over without a system call.
    pub(crate) fn ring(&self) -> &RxRing {
        &self.ring
    }

    pub(crate) fn ring_mut(&mut self) -> &mut RxRing {
        &mut self.ring
    }

    /// Lays the ring anew: see [`RxRing::renew`].
    pub(crate) fn renew_ring(&mut self) -> io::Result<()> {
        self.ring.renew(&self.fd)
    }

    /// Takes the error that a device leaves behind when it goes down; unread, it would end every sleep at once.
    pub(crate) fn take_error(&self) {
        let _: io::Result<i32> = sys::option(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR);
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Reads the MTU and address of the interface anew; true if one has changed.
    pub(crate) fn refresh(&mut self) -> bool {
        self.interface.refresh(&mut self.capabilities)
    }

    pub(crate) fn buffers(&self) -> u32 {
        self.buffers
    }

    pub(crate) fn link(&self) -> Link {
        self.interface.link()
    }

    /// Frames that found the receive buffer full since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        sys::option(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map_or(0, |stats: libc::tpacket_stats| u64::from(stats.tp_drops))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn capabilities(interface: &Interface, name: &str) -> Result<Capabilities, OpenError> {
    let step = |step| move |source| OpenError::new(step, name, source);
    let (mac, ethernet) = interface.mac().map_err(step("read the address of"))?;
    Ok(Capabilities {
        mtu: interface.mtu().map_err(step("read the MTU of"))?,
        tx_checksum: true,
        tx_gso_tcp: true,
        tx_gso_udp: kernel_at_least(6, 2),
        mac,
        layer3: !ethernet,
    })
}

fn buffers(config: &PacketConfig) -> u32 {
    config.buffers.max(2 * super::BATCH as u32)
}

/// Sets every option that has to stand before the ring is made.
fn configure(fd: &OwnedFd, config: &PacketConfig) -> Result<(), OpenError> {
    let flag = |step, level, option, value: i32| {
        sys::set_option(fd, level, option, &value)
            .map_err(|source| OpenError::new(step, &config.interface, source))
    };
    let bytes = |bytes: u32| i32::try_from(bytes / 2).unwrap_or(i32::MAX);
    flag(
        "ask for offload metadata of",
        libc::SOL_PACKET,
        libc::PACKET_VNET_HDR,
        1,
    )?;
    // In the ring every frame has its tag; this is for those that are read from the queue.
    flag(
        "ask for VLAN tags of",
        libc::SOL_PACKET,
        libc::PACKET_AUXDATA,
        1,
    )?;
    // What we send must not come back to us.
    flag(
        "ignore own frames on",
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        1,
    )?;
    flag(
        "bypass the queueing discipline of",
        libc::SOL_PACKET,
        libc::PACKET_QDISC_BYPASS,
        i32::from(config.qdisc_bypass),
    )?;
    // The kernel doubles both.
    flag(
        "set the receive buffer of",
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        bytes(config.receive_buffer_bytes),
    )?;
    flag(
        "set the send buffer of",
        libc::SOL_SOCKET,
        libc::SO_SNDBUFFORCE,
        bytes(config.send_buffer_bytes),
    )
}

/// Whether the running kernel is at least this version.
fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(have_major), Some(have_minor)) => (have_major, have_minor) >= (major, minor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = Socket::open(&PacketConfig::new("no-such-port0"))
            .err()
            .expect("there is none");
        assert_eq!(error.to_string(), "there is no interface no-such-port0");
    }

    #[test]
    fn the_kernel_is_newer_than_two_and_older_than_a_thousand() {
        assert!(kernel_at_least(2, 6));
        assert!(!kernel_at_least(1000, 0));
    }
}
