//! A network interface by index: its address, MTU and state.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use engine::port::{Capabilities, Link};
use rustix::net::netdevice;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::sys;

/// An interface in the network namespace of the thread that looked it up.
pub(crate) struct Interface {
    /// Carries the requests; stays in its namespace.
    control: OwnedFd,
    index: u32,
}

fn control() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Interface {
    /// Looks up an interface by name.
    pub(crate) fn by_name(name: &str) -> io::Result<Self> {
        let control = control()?;
        let index = netdevice::name_to_index(&control, name)?;
        Ok(Self { control, index })
    }

    /// The interface that has, or had, this index.
    pub(crate) fn by_index(index: u32) -> io::Result<Self> {
        let control = control()?;
        Ok(Self { control, index })
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Its name now: an interface can be renamed while it is used.
    pub(crate) fn name(&self) -> io::Result<String> {
        Ok(netdevice::index_to_name(&self.control, self.index)?)
    }

    fn ioctl(&self, request: libc::c_ulong, value: &[u8]) -> io::Result<[u8; 16]> {
        sys::interface_ioctl(
            self.control.as_fd(),
            request as libc::Ioctl,
            &self.name()?,
            value,
        )
    }

    /// The link-layer address, and whether frames carry an Ethernet header at all.
    pub(crate) fn mac(&self) -> io::Result<([u8; 6], bool)> {
        // A sockaddr: two bytes of family (here the link's type) before the address.
        let [x, y, a, b, c, d, e, f, ..] = self.ioctl(libc::SIOCGIFHWADDR as _, &[])?;
        let ethernet = matches!(
            u16::from_ne_bytes([x, y]),
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK
        );
        Ok(([a, b, c, d, e, f], ethernet))
    }

    /// Largest payload of a frame, bytes; 65,535 for what allows more.
    pub(crate) fn mtu(&self) -> io::Result<u16> {
        let [a, b, c, d, ..] = self.ioctl(libc::SIOCGIFMTU as _, &[])?;
        let mtu = i32::from_ne_bytes([a, b, c, d]);
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Takes over the MTU and, where frames have one, the link-layer address as they are now; true if one has changed.
    /// What cannot be read is as it was.
    pub(crate) fn refresh(&self, capabilities: &mut Capabilities) -> bool {
        let mtu = self.mtu().unwrap_or(capabilities.mtu);
        let mac = match self.mac() {
            Ok((mac, _)) if !capabilities.layer3 => mac,
            _ => capabilities.mac,
        };
        let changed = (mtu, mac) != (capabilities.mtu, capabilities.mac);
        if changed {
            (capabilities.mtu, capabilities.mac) = (mtu, mac);
            let interface = self.name().unwrap_or_default();
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            tracing::info!(interface, mtu, mac, "a data port has changed");
        }
        changed
    }

    fn flags(&self) -> io::Result<i32> {
        let [a, b, ..] = self.ioctl(libc::SIOCGIFFLAGS as _, &[])?;
        Ok(i32::from(u16::from_ne_bytes([a, b])))
    }

    /// Whether it is administratively up.
    pub(crate) fn is_up(&self) -> io::Result<bool> {
        Ok(self.flags()? & libc::IFF_UP != 0)
    }

    /// Sets it administratively up or down.
    pub(crate) fn set_up(&self, up: bool) -> io::Result<()> {
        let flags = self.flags()?;
        let wanted = if up {
            flags | libc::IFF_UP
        } else {
            flags & !libc::IFF_UP
        };
        if wanted != flags {
            self.ioctl(libc::SIOCSIFFLAGS as _, &(wanted as u16).to_ne_bytes())?;
        }
        Ok(())
    }

    /// Has it let frames in for any address, since the engine's own is not always the interface's, as long as this
    /// packet socket is open: it ends with the socket, whatever becomes of the process.
    pub(crate) fn set_promiscuous(&self, packet_socket: impl AsFd) -> io::Result<()> {
        let membership = libc::packet_mreq {
            mr_ifindex: self.index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        sys::set_option(
            packet_socket,
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            &membership,
        )
    }

    /// Asks ethtool's interface of the kernel; see [`sys::ethtool`].
    pub(crate) fn ethtool<const N: usize>(&self, words: [u32; N]) -> io::Result<[u32; N]> {
        sys::ethtool(&self.control, &self.name()?, words)
    }

    /// Whether frames can pass.
    pub(crate) fn link(&self) -> Link {
        const READY: i32 = libc::IFF_UP | libc::IFF_RUNNING;
        match self.flags() {
            Ok(flags) if flags & READY == READY => Link::Up,
            Ok(_) => Link::Down,
            Err(_) => Link::Gone,
        }
    }
}
