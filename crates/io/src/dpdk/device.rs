//! Opening a device: its buffers, its queues, and what it can do for us.

use std::ffi::{CStr, CString};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use engine::port::{Capabilities, Link};

use super::eal::{self, Eal};
use super::ffi;
use super::mbuf::{LARGE_ROOM, Pool, PoolShape};
use super::select::{Located, Place};
use crate::buffer::{ETHERNET_LEN, TAG_LEN};
use crate::interface::Interface;

/// How a device is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Queues, each for one worker. Where there are several, frames are spread over them by a hash that is the same for
    /// both directions of a flow.
    pub queues: u16,
    /// Descriptors of a receive queue; the nearest that the device can have.
    pub rx_ring: u16,
    /// Descriptors of a transmit queue; the nearest that the device can have.
    pub tx_ring: u16,
    /// Largest packet, bytes; what the device is set to if none.
    pub mtu: Option<u16>,
    /// Its hardware address; its own if none.
    pub mac: Option<[u8; 6]>,
    /// Buffers in all; as many as fill the rings and a worker's queues if none.
    pub buffers: Option<u32>,
    /// Bytes of a frame in one buffer; enough for the largest packet if none.
    pub data_room: Option<u16>,
    /// Whether the device completes checksums; where it can, if none.
    pub tx_checksum: Option<bool>,
    /// Whether a worker can sleep until the device's interrupt, where it has one.
    pub interrupts: bool,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            queues: 1,
            rx_ring: 1024,
            tx_ring: 1024,
            mtu: None,
            mac: None,
            buffers: None,
            data_room: None,
            tx_checksum: None,
            interrupts: true,
        }
    }
}

/// Frames that a worker may hold beside those in the rings: bursts, and what waits for next hops.
const HELD: u32 = 1024;
/// Bytes of a usual buffer.
const DATA_ROOM: u16 = 2048;
/// Buffers for super-packets.
const LARGE_BUFFERS: u32 = 255;
/// What DPDK adds to each buffer: headroom, its descriptor, the pool's header; bytes.
const OVERHEAD: u64 = 512;

impl DeviceConfig {
    fn buffers(&self) -> u32 {
        let rings = u32::from(self.queues) * (u32::from(self.rx_ring) + u32::from(self.tx_ring));
        let wanted = rings + u32::from(self.queues) * HELD;
        // One less than a power of two: what a pool's ring holds.
        self.buffers.unwrap_or(wanted.next_power_of_two() - 1)
    }

    fn data_room(&self, mtu: u16) -> u16 {
        let frame = mtu.saturating_add((ETHERNET_LEN + 2 * TAG_LEN) as u16);
        self.data_room
            .unwrap_or(frame.max(DATA_ROOM))
            .min(LARGE_ROOM)
    }

    /// Memory that a device of this configuration may need, MiB.
    pub fn memory_mib(&self) -> u32 {
        let room = u64::from(self.data_room(self.mtu.unwrap_or(0)));
        let small = u64::from(self.buffers()) * (room + OVERHEAD);
        let large = u64::from(LARGE_BUFFERS) * (u64::from(LARGE_ROOM) + OVERHEAD);
        // Rings and the like are small beside them.
        ((small + large) >> 20) as u32 + 32
    }
}

/// A device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No driver took it.
    #[error("no driver of DPDK took {device}{}", eal::in_brackets(.said))]
    NoDriver {
        /// As the operator named it.
        device: String,
        /// DPDK's last complaint, if it made one.
        said: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// A step failed.
    #[error("cannot {step} {device}{}", eal::in_brackets(.said))]
    Refused {
        /// What was tried, as a verb phrase.
        step: String,
        /// As the operator named it.
        device: String,
        /// DPDK's last complaint, if it made one.
        said: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// There are fewer queues than workers.
    #[error(
        "{device} has {queues} queues and {wanted} are wanted: set dpdk.workers to {queues} or less"
    )]
    TooFewQueues {
        /// As the operator named it.
        device: String,
        /// Queues that it can have.
        queues: u16,
        /// Queues that were asked for.
        wanted: u16,
    },
    /// No memory for buffers.
    #[error(
        "there is no memory for {count} buffers of {device}: give the system more huge pages (sysctl vm.nr_hugepages) \
         or set dpdk.mbuf_pool_size lower"
    )]
    NoMemory {
        /// As the operator named it.
        device: String,
        /// How many were wanted.
        count: u32,
    },
    /// Packets of that size do not fit a buffer.
    #[error(
        "{device} has packets of {mtu} bytes, which its buffers do not hold: set dpdk.mbuf_data_room to {needed} or more"
    )]
    BufferTooSmall {
        /// As the operator named it.
        device: String,
        /// Its largest packet, bytes.
        mtu: u16,
        /// The least that does, bytes.
        needed: usize,
    },
    /// It was told to complete checksums, and cannot.
    #[error(
        "{device} ({driver}) cannot complete checksums: set dpdk.tx_checksum_offload to auto or false"
    )]
    NoChecksum {
        /// As the operator named it.
        device: String,
        /// Its driver.
        driver: String,
    },
}

/// Devices come and go one at a time.
static CONTROL: Mutex<()> = Mutex::new(());

/// An open device. It is closed with its last queue.
pub(super) struct Device {
    pub(super) eal: Eal,
    pub(super) port: u16,
    /// What was granted: the constants of [`ffi::port`].
    pub(super) granted: u16,
    driver: String,
    pub(super) capabilities: Capabilities,
    pub(super) pool: Pool,
    /// For frames that are longer than the others' buffers.
    pub(super) large: Option<Pool>,
    /// Held while the driver is asked for what it has counted.
    pub(super) reading: Mutex<()>,
    /// The kernel's side of it, which knows more of the link.
    interface: Option<Interface>,
}

/// One queue of a device. Unlike a port it can be sent to the thread that will use it.
pub struct Queue {
    pub(super) device: Arc<Device>,
    pub(super) index: u16,
}

impl Queue {
    /// Opens a device with all its queues.
    ///
    /// # Errors
    /// No driver takes the device, or it refuses a setting.
    pub fn open(
        eal: Eal,
        located: &Located,
        config: &DeviceConfig,
    ) -> Result<Vec<Self>, OpenError> {
        let _control = CONTROL.lock().unwrap_or_else(PoisonError::into_inner);
        eal::forget_complaint();
        let port = find(located)?;
        let device = Device::start(eal, port, located, config).inspect_err(|error| {
            // It stays for another try with fewer.
            if !matches!(error, OpenError::TooFewQueues { .. }) {
                // SAFETY: the port exists, and no queue of it does.
                unsafe { ffi::nw_port_close(port) }
            }
        })?;
        let device = Arc::new(device);
        let queue = |index| Self {
            device: Arc::clone(&device),
            index,
        };
        Ok((0..config.queues).map(queue).collect())
    }

    /// What a port of this queue will be able to do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    /// The device's driver, for people.
    pub fn driver(&self) -> &str {
        &self.device.driver
    }

    /// What the device does for us, for people: empty or a list of words.
    pub fn offloads(&self) -> String {
        let words = [
            (ffi::port::TX_CHECKSUM, "tx-checksum"),
            (ffi::port::TX_TSO, "tx-segmentation"),
            (ffi::port::TX_VLAN, "tx-vlan"),
            (ffi::port::RX_CHECKSUM, "rx-checksum"),
            (ffi::port::RX_VLAN, "rx-vlan"),
            (ffi::port::RX_LRO, "rx-merge"),
            (ffi::port::RX_SCATTER, "rx-scatter"),
            (ffi::port::RSS, "rss"),
        ];
        let granted = words
            .iter()
            .filter(|(flag, _)| self.device.granted & flag != 0);
        granted.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    }
}

impl Device {
    fn start(
        eal: Eal,
        port: u16,
        located: &Located,
        config: &DeviceConfig,
    ) -> Result<Self, OpenError> {
        let device = || located.name.clone();
        // SAFETY: only asks.
        let queues = unsafe { ffi::nw_port_queues(port) };
        if config.queues > queues {
            return Err(OpenError::TooFewQueues {
                device: device(),
                queues,
                wanted: config.queues,
            });
        }
        let interface = located
            .interface()
            .and_then(|name| Interface::by_name(name).ok());
        let mtu = config
            .mtu
            .or_else(|| interface.as_ref()?.mtu().ok())
            .unwrap_or_else(|| current_mtu(port));
        let shape = PoolShape {
            count: config.buffers(),
            data_room: config.data_room(mtu),
            // SAFETY: only asks.
            socket: unsafe { ffi::nw_port_socket(port) },
            dense: located.wants_dense_buffers(),
        };
        let no_memory = |shape: PoolShape| OpenError::NoMemory {
            device: device(),
            count: shape.count,
        };
        let pool = Pool::take(shape).ok_or_else(|| no_memory(shape))?;
        let mut wish = ffi::port::TX_TSO
            | ffi::port::TX_VLAN
            | ffi::port::RX_CHECKSUM
            | ffi::port::RX_VLAN
            | ffi::port::RX_LRO
            | ffi::port::RX_SCATTER;
        if config.interrupts {
            wish |= ffi::port::INTERRUPTS;
        }
        if config.tx_checksum != Some(false) {
            wish |= ffi::port::TX_CHECKSUM;
        }
        if config.queues > 1 {
            wish |= ffi::port::RSS;
        }
        let mut started = ffi::Port {
            port,
            flags: wish,
            queues: config.queues,
            rx_ring: config.rx_ring,
            tx_ring: config.tx_ring,
            mtu,
            mac: config.mac.unwrap_or_default(),
            data_room: shape.data_room,
            step: std::ptr::null(),
            driver: [0; 32],
            socket: shape.socket,
        };
        // SAFETY: the structure is complete, and the pool outlives the port.
        let error = unsafe { ffi::nw_port_start(&raw mut started, pool.as_ptr()) };
        // SAFETY: the shim ends it with a zero byte.
        let driver = unsafe { CStr::from_ptr(started.driver.as_ptr()) };
        let driver = driver.to_string_lossy().into_owned();
        if error != 0 {
            return Err(refused(&started, located, error));
        }
        let granted = started.flags;
        let able = |flag| granted & flag != 0;
        if config.tx_checksum == Some(true) && !able(ffi::port::TX_CHECKSUM) {
            let device = device();
            return Err(OpenError::NoChecksum { device, driver });
        }
        let needed = usize::from(started.mtu) + ETHERNET_LEN + TAG_LEN;
        if needed > usize::from(shape.data_room) && !able(ffi::port::RX_SCATTER) {
            return Err(OpenError::BufferTooSmall {
                device: device(),
                mtu: started.mtu,
                needed,
            });
        }
        let long_frames = ffi::port::TX_TSO | ffi::port::RX_LRO | ffi::port::RX_SCATTER;
        let large = able(long_frames)
            .then(|| {
                let shape = PoolShape {
                    count: LARGE_BUFFERS,
                    data_room: LARGE_ROOM,
                    ..shape
                };
                Pool::take(shape).ok_or_else(|| no_memory(shape))
            })
            .transpose()?;
        let device = Self {
            eal,
            port,
            granted,
            driver,
            capabilities: Capabilities {
                mtu: started.mtu,
                tx_checksum: able(ffi::port::TX_CHECKSUM),
                tx_gso_tcp: able(ffi::port::TX_TSO),
                tx_gso_udp: false,
                mac: started.mac,
                layer3: false,
            },
            pool,
            large,
            reading: Mutex::default(),
            interface,
        };
        Ok(device)
    }

    pub(super) fn link(&self) -> Link {
        if let Some(interface) = &self.interface {
            return interface.link();
        }
        // SAFETY: the port is open as long as `self` lives.
        match unsafe { ffi::nw_port_link(self.port) } {
            0 => Link::Down,
            1 => Link::Up,
            _ => Link::Gone,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _control = CONTROL.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: this was the last that knew of the port.
        unsafe { ffi::nw_port_close(self.port) }
    }
}

fn refused(started: &ffi::Port, located: &Located, error: i32) -> OpenError {
    let step = if started.step.is_null() {
        "start".into()
    } else {
        // SAFETY: the shim sets it to string constants only.
        unsafe { CStr::from_ptr(started.step) }.to_string_lossy()
    };
    OpenError::Refused {
        step: step.into_owned(),
        device: located.name.clone(),
        said: eal::complaint(),
        source: io::Error::from_raw_os_error(error),
    }
}

fn current_mtu(port: u16) -> u16 {
    let mut mtu = 0;
    // SAFETY: only writes the number.
    match unsafe { ffi::nw_port_mtu(port, &raw mut mtu) } {
        0 if mtu > 0 => mtu,
        _ => 1500,
    }
}

/// The port of a device, which is made if it is one of DPDK's own.
fn find(located: &Located) -> Result<u16, OpenError> {
    let failed = |error: i32| OpenError::NoDriver {
        device: located.name.clone(),
        said: eal::complaint(),
        source: io::Error::from_raw_os_error(error),
    };
    let probe = |arguments: &str| {
        let devargs = CString::new(arguments).map_err(|_| failed(libc::EINVAL))?;
        // SAFETY: a C string, of which DPDK makes a copy.
        match unsafe { ffi::nw_probe(devargs.as_ptr()) } {
            0 => Ok(()),
            error => Err(failed(error)),
        }
    };
    let by_name = |name: &str| {
        let name = CString::new(name).map_err(|_| failed(libc::EINVAL))?;
        let mut port = 0;
        // SAFETY: the name is a C string, and the number is written to.
        match unsafe { ffi::nw_port_by_name(name.as_ptr(), &raw mut port) } {
            0 => Ok(port),
            error => Err(failed(error)),
        }
    };
    match &located.place {
        // It is there from the start, unless it was closed since.
        Place::Pci(address) => by_name(address).or_else(|_| {
            probe(address)?;
            by_name(address)
        }),
        Place::Vdev(arguments) => {
            let name = arguments.split(',').next().unwrap_or_default();
            by_name(name).or_else(|_| {
                probe(arguments)?;
                by_name(name)
            })
        }
        Place::Mac(mac) => by_mac(*mac)
            .or_else(|| {
                // Those that are there already, and those that are not its like, do not matter.
                let _ = located.pci().iter().try_for_each(|address| probe(address));
                by_mac(*mac)
            })
            .ok_or_else(|| failed(libc::ENODEV)),
    }
}

fn by_mac(mac: [u8; 6]) -> Option<u16> {
    ports().find(|port| {
        let mut found = [0; 6];
        // SAFETY: writes six bytes.
        unsafe { ffi::nw_port_mac(*port, &raw mut found) == 0 && found == mac }
    })
}

/// All ports that DPDK has found.
fn ports() -> impl Iterator<Item = u16> {
    let next = |from: u16| {
        // SAFETY: only asks.
        let port = unsafe { ffi::nw_port_next(from) };
        (port != u16::MAX).then_some(port)
    };
    std::iter::successors(next(0), move |port| next(port + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpdk::{EalConfig, Selector};

    /// The only test of this program that starts DPDK, which it does once in a process.
    #[test]
    fn a_device_is_found_by_its_address_while_it_is_open() {
        let config = EalConfig {
            memory_mib: 512,
            ..EalConfig::default()
        };
        let eal = Eal::start(&config).unwrap();
        let located = Selector::Vdev("net_null_mac".to_owned()).locate().unwrap();
        let mac = [2, 0, 0, 0, 0x4e, 0x57];
        let config = DeviceConfig {
            mac: Some(mac),
            ..DeviceConfig::default()
        };
        let queues = Queue::open(eal, &located, &config).unwrap();
        assert_eq!(by_mac(mac), Some(queues[0].device.port));
        assert_eq!(by_mac([2, 0, 0, 0, 0x4e, 0x58]), None);
        drop(queues);
        assert_eq!(by_mac(mac), None);
    }
}
