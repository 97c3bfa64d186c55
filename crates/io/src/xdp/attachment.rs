//! What turns an interface into a data port of AF_XDP as long as it lives: the program, promiscuous mode, and offloads
//! that hide from XDP what is on the wire.

use std::io;
use std::os::fd::OwnedFd;

use engine::port::{Capabilities, Link};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::program::{Program, SocketMap};
use super::umem::MTU_MAX;
use super::{Attach, OpenError};
use crate::interface::Interface;

// linux/ethtool.h
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// An interface with the program on it.
pub(super) struct Attachment {
    interface: Interface,
    capabilities: Capabilities,
    queues: u32,
    native: bool,
    sockets: SocketMap,
    /// Held open for what ends with them: the link of the program, and promiscuous mode.
    _open: [OwnedFd; 2],
    /// The offloads as they were.
    offloads: Offloads,
}

impl Attachment {
    /// Looks the interface up and attaches the program. Every frame is dropped until its queue has a socket.
    pub(super) fn open(name: &str, attach: Attach) -> Result<Self, OpenError> {
        let step = |step| move |source| OpenError::new(step, name, source);
        let interface = Interface::by_name(name).map_err(step("look up"))?;
        let (mac, ethernet) = interface.mac().map_err(step("read the address of"))?;
        if !ethernet {
            return Err(OpenError::NotEthernet {
                interface: name.to_owned(),
            });
        }
        let mtu = interface.mtu().map_err(step("read the MTU of"))?;
        if mtu > MTU_MAX {
            return Err(OpenError::MtuTooLarge {
                interface: name.to_owned(),
                mtu,
            });
        }
        let capabilities = Capabilities {
            mtu,
            tx_checksum: false,
            tx_gso_tcp: false,
            tx_gso_udp: false,
            mac,
            layer3: false,
        };
        let queues = queues(&interface);
        let sockets = SocketMap::new(queues).map_err(|source| OpenError::of_map(name, source))?;
        let program = Program::load(&sockets).map_err(step("load an XDP program for"))?;
        let mut offloads = Offloads::default();
        offloads.hide_nothing(&interface);
        let attached = program.attach_as(interface.index(), attach);
        let (link, native) = match attached {
            Ok(attached) => attached,
            Err(source) => {
                offloads.restore(&interface);
                return Err(OpenError::new("attach an XDP program to", name, source));
            }
        };
        if !native {
            offloads.merge_nothing(&interface);
        }
        let promiscuous = promiscuous(&interface);
        Ok(Self {
            interface,
            capabilities,
            queues,
            native,
            sockets,
            _open: [link, promiscuous.map_err(step("set promiscuous mode on"))?],
            offloads,
        })
    }

    pub(super) fn index(&self) -> u32 {
        self.interface.index()
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(super) fn queues(&self) -> u32 {
        self.queues
    }

    /// Whether the program runs in the driver.
    pub(super) fn is_native(&self) -> bool {
        self.native
    }

    pub(super) fn sockets(&self) -> &SocketMap {
        &self.sockets
    }

    pub(super) fn link(&self) -> Link {
        self.interface.link()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.offloads.restore(&self.interface);
    }
}

/// A packet socket that receives nothing and keeps the interface promiscuous.
fn promiscuous(interface: &Interface) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    interface.set_promiscuous(&socket)?;
    Ok(socket)
}

/// Queues that frames arrive on; one where the driver does not tell.
fn queues(interface: &Interface) -> u32 {
    let mut words = [0; 9];
    words[0] = ETHTOOL_GCHANNELS;
    // After the command: four maxima, then the numbers now of rx, tx, other and combined.
    interface
        .ethtool(words)
        .map_or(1, |[_, _, _, _, _, rx, _, _, combined]| {
            rx.saturating_add(combined).clamp(1, 1024)
        })
}

/// Offloads that were on and have been switched off. What a killed process switched off stays off.
#[derive(Default)]
struct Offloads {
    flags: Option<u32>,
    gro: bool,
}

impl Offloads {
    /// Leaves VLAN tags in the frames, and frames as they came: XDP sees neither the tag that a device took out nor
    /// where one was joined.
    fn hide_nothing(&mut self, interface: &Interface) {
        if let Ok([_, flags]) = interface.ethtool([ETHTOOL_GFLAGS, 0]) {
            let without = flags & !(ETH_FLAG_RXVLAN | ETH_FLAG_LRO);
            if without != flags && interface.ethtool([ETHTOOL_SFLAGS, without]).is_ok() {
                self.flags = Some(flags);
            }
        }
    }

    /// Behind the driver, frames have been merged already when XDP sees them, unless this is off.
    fn merge_nothing(&mut self, interface: &Interface) {
        if let Ok([_, 1]) = interface.ethtool([ETHTOOL_GGRO, 0]) {
            self.gro = interface.ethtool([ETHTOOL_SGRO, 0]).is_ok();
        }
    }

    fn restore(&mut self, interface: &Interface) {
        // The device may have gone, and its settings with it.
        if let Some(flags) = self.flags.take() {
            let _ = interface.ethtool([ETHTOOL_SFLAGS, flags]);
        }
        if std::mem::take(&mut self.gro) {
            let _ = interface.ethtool([ETHTOOL_SGRO, 1]);
        }
    }
}
