//! AF_XDP: a data port whose frames the kernel hands over before it makes anything of them.
//!
//! A small XDP program on the interface hands every frame to a socket of ours, one for each queue of the device; none
//! reaches the kernel's stack. All queues of a worker, on all its ports, share one memory (UMEM), so that what comes in
//! at one port leaves by another as it is. Where the driver can, the device itself writes frames there; elsewhere the
//! kernel copies them, at which it is still cheaper than a packet socket.
//!
//! Frames are plain: no super-packets, and no word about checksums. Those that a sender left unfinished are recognised
//! (`partial`), and the engine finishes them. [`Hold`](crate::packet::Hold) keeps the kernel's part of the interface
//! quiet meanwhile, as for packet sockets.

mod attachment;
mod partial;
mod program;
mod ring;
mod socket;
mod umem;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use engine::port::{Capabilities, Checksum, Link, Meta, Packet, Port, PortStats};
use rustix::event::epoll;

use crate::buffer::{ETHERNET_LEN, TAG_LEN};
use attachment::Attachment;
use socket::{Copying, Queue, Sizes};
pub use umem::XdpFrame;
use umem::{MTU_MAX, Region, Umem};

/// Where the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// In the driver if it can, else behind it.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// Behind the driver, which any can.
    Generic,
}

/// Whether the device writes frames into the worker's memory itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// If the drivers of all ports can.
    #[default]
    Auto,
    /// It must.
    On,
    /// The kernel copies.
    Off,
}

/// How interfaces are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpConfig {
    /// Where the program runs.
    pub attach: Attach,
    /// Who moves the frames.
    pub zero_copy: ZeroCopy,
    /// Frames that may wait to be received on each queue: a power of two, 64..=32,768. Each takes 2 KiB of memory at
    /// once (4 KiB with an MTU above 1756).
    pub rx_frames: u32,
    /// Frames that may wait in each queue until they have left: a power of two, 64..=32,768, at the same price.
    pub tx_frames: u32,
    /// Frames that a worker can hold at once, at the same price.
    pub buffers: u32,
}

impl Default for XdpConfig {
    fn default() -> Self {
        Self {
            attach: Attach::Auto,
            zero_copy: ZeroCopy::Auto,
            rx_frames: 2048,
            tx_frames: 1024,
            buffers: 1024,
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
    /// Capabilities are missing.
    #[error(
        "opening {interface} by AF_XDP needs the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF, and memory that \
         may be locked (LimitMEMLOCK=infinity in a systemd unit, or CAP_IPC_LOCK)"
    )]
    NotPermitted {
        /// The name asked for.
        interface: String,
    },
    /// The kernel has no AF_XDP, or no BPF.
    #[error(
        "this kernel has no AF_XDP to open {interface} by: it takes Linux 5.11 with CONFIG_XDP_SOCKETS and \
         CONFIG_BPF_SYSCALL; use the mode packet"
    )]
    NoKernelSupport {
        /// The name asked for.
        interface: String,
    },
    /// The interface has no driver for what the configuration insists on.
    #[error(
        "the driver of {interface} cannot {what}; leave the choice to the node (auto), or use the mode packet"
    )]
    NoDriverSupport {
        /// The name asked for.
        interface: String,
        /// What it cannot.
        what: &'static str,
    },
    /// Another XDP program or AF_XDP socket is there.
    #[error(
        "{interface} has an XDP program or an AF_XDP socket of another process (`ip link show {interface}` names the \
         program); end that process, or use the mode packet"
    )]
    Busy {
        /// The name asked for.
        interface: String,
    },
    /// The interface carries no Ethernet.
    #[error("{interface} carries no Ethernet frames, which AF_XDP needs; use the mode packet")]
    NotEthernet {
        /// The name asked for.
        interface: String,
    },
    /// Frames of the interface may be longer than what AF_XDP can hold.
    #[error(
        "the MTU of {interface} is {mtu}, and AF_XDP holds frames of {MTU_MAX} at most; lower it \
         (`ip link set {interface} mtu {MTU_MAX}`), or use the mode packet"
    )]
    MtuTooLarge {
        /// The name asked for.
        interface: String,
        /// What it is set to, bytes.
        mtu: u16,
    },
    /// The driver takes no program while the MTU, its own or the peer's, is what it is.
    #[error(
        "the driver of {interface} takes no XDP program with an MTU as large as it or its peer has (1500 always \
         works); lower it, or use the mode packet"
    )]
    MtuRefused {
        /// The name asked for.
        interface: String,
    },
    /// Each worker needs a queue of its own.
    #[error(
        "{interface} has {queues} queues, too few for {workers} workers; `ethtool -L {interface}` gives it more"
    )]
    TooFewQueues {
        /// The name asked for.
        interface: String,
        /// Queues that it has.
        queues: u32,
        /// Workers that want one.
        workers: u32,
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
    fn new(step: &'static str, interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.raw_os_error() {
            Some(libc::ENODEV) => Self::NoSuchInterface { interface },
            // Too little memory may be locked: ENOBUFS is what the registration of memory says then.
            Some(libc::EPERM | libc::EACCES | libc::ENOBUFS) => Self::NotPermitted { interface },
            Some(libc::ENOSYS | libc::EAFNOSUPPORT) => Self::NoKernelSupport { interface },
            Some(libc::EBUSY | libc::EEXIST) => Self::Busy { interface },
            Some(libc::ERANGE) => Self::MtuRefused { interface },
            Some(libc::EOPNOTSUPP) => Self::NoDriverSupport {
                interface,
                what: "do that",
            },
            _ => Self::Refused {
                step,
                interface,
                source,
            },
        }
    }

    /// Sorts what the kernel says of a map of sockets. One that knows no such map, since it was built without AF_XDP, finds
    /// fault with the argument.
    fn of_map(interface: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EINVAL) => Self::NoKernelSupport {
                interface: interface.to_owned(),
            },
            _ => Self::new("make a BPF map for", interface, source),
        }
    }

    /// Names what a driver cannot do, where it says no more than that.
    fn of(self, what: &'static str) -> Self {
        match self {
            Self::NoDriverSupport { interface, .. } => Self::NoDriverSupport { interface, what },
            other => other,
        }
    }
}

/// The open queues of one worker, on all its ports. Unlike ports they can be sent to the thread that will use them.
pub struct WorkerQueues {
    region: Region,
    ports: Vec<(Arc<Attachment>, Vec<Queue>)>,
    copying: Copying,
}

impl WorkerQueues {
    /// Opens every queue of the interfaces, and shares them among `workers` (1 or more).
    ///
    /// # Errors
    /// One for each thing that a user can do about it.
    pub fn open(
        interfaces: &[String],
        workers: usize,
        config: &XdpConfig,
    ) -> Result<Vec<Self>, OpenError> {
        let attached = interfaces
            .iter()
            .map(|name| {
                let attachment = Attachment::open(name, config.attach)
                    .map_err(|error| error.of("run an XDP program"))?;
                Ok((name.as_str(), Arc::new(attachment)))
            })
            .collect::<Result<Vec<_>, OpenError>>()?;
        for (name, attachment) in &attached {
            let (queues, workers) = (attachment.queues(), workers as u32);
            if queues < workers {
                return Err(OpenError::TooFewQueues {
                    interface: (*name).to_owned(),
                    queues,
                    workers,
                });
            }
        }
        let open = |copying| -> Result<Vec<Self>, OpenError> {
            (0..workers)
                .map(|worker| Self::open_one(&attached, worker, workers, copying, config))
                .collect()
        };
        let native = attached.iter().all(|(_, a)| a.is_native());
        let opened = match config.zero_copy {
            ZeroCopy::Off => open(Copying::Kernel),
            ZeroCopy::On => open(Copying::Device)
                .map_err(|error| error.of("write frames into the memory of a process (zero copy)")),
            ZeroCopy::Auto if native => open(Copying::Device).or_else(|_| open(Copying::Kernel)),
            ZeroCopy::Auto => open(Copying::Kernel),
        }?;
        for (name, attachment) in &attached {
            tracing::info!(
                interface = name,
                native = attachment.is_native(),
                zero_copy = opened.iter().all(|w| w.copying == Copying::Device),
                queues = attachment.queues(),
                "AF_XDP is open"
            );
        }
        Ok(opened)
    }

    fn open_one(
        attached: &[(&str, Arc<Attachment>)],
        worker: usize,
        workers: usize,
        copying: Copying,
        config: &XdpConfig,
    ) -> Result<Self, OpenError> {
        let sizes = Sizes {
            rx: config.rx_frames.next_power_of_two().clamp(64, 1 << 15),
            tx: config.tx_frames.next_power_of_two().clamp(64, 1 << 15),
        };
        let own = |attachment: &Attachment| (worker as u32..attachment.queues()).step_by(workers);
        let queues: usize = attached.iter().map(|(_, a)| own(a).count()).sum();
        let chunks = queues as u32 * (sizes.rx + sizes.tx) + config.buffers.max(128);
        let mtu = attached.iter().map(|(_, a)| a.capabilities().mtu).max();
        let first = attached.first().map_or("", |(name, _)| name);
        let region = Region::map(chunks, mtu.unwrap_or(0))
            .map_err(|source| OpenError::new("map memory for", first, source))?;
        let mut opened = Self {
            region,
            ports: Vec::new(),
            copying,
        };
        for (name, attachment) in attached {
            let mut own_queues = Vec::new();
            for queue in own(attachment) {
                let earlier = opened.ports.iter().flat_map(|(_, queues)| queues).next();
                let socket = Queue::open(
                    attachment.index(),
                    queue,
                    &opened.region,
                    earlier.or(own_queues.first()),
                    copying,
                    sizes,
                )
                .map_err(|(step, source)| OpenError::new(step, name, source))?;
                attachment
                    .sockets()
                    .set(queue, socket.fd())
                    .map_err(|source| OpenError::new("hand frames over from", name, source))?;
                own_queues.push(socket);
            }
            opened.ports.push((Arc::clone(attachment), own_queues));
        }
        Ok(opened)
    }

    /// Makes ports of them, in the order of the interfaces.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn into_ports(self) -> io::Result<Vec<XdpPort>> {
        let umem = Umem::new(self.region);
        let mut ports = Vec::new();
        for (attachment, mut queues) in self.ports {
            for queue in &mut queues {
                queue.stock(&umem);
            }
            ports.push(XdpPort {
                wait: wait_for_any(&queues)?,
                // Frames from a wire are complete; those that a device of the machine hands on may not be.
                recognise_partial: self.copying == Copying::Kernel,
                longest: usize::from(attachment.capabilities().mtu) + ETHERNET_LEN,
                umem: Rc::clone(&umem),
                attachment,
                queues,
                next: 0,
                stats: PortStats::default(),
            });
        }
        Ok(ports)
    }
}

/// A descriptor that is readable when any of several queues is; none for a single one.
fn wait_for_any(queues: &[Queue]) -> io::Result<Option<OwnedFd>> {
    if queues.len() == 1 {
        return Ok(None);
    }
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for queue in queues {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&all, queue.fd(), data, epoll::EventFlags::IN)?;
    }
    Ok(Some(all))
}

/// The queues of one interface that belong to one worker.
pub struct XdpPort {
    attachment: Arc<Attachment>,
    queues: Vec<Queue>,
    umem: Rc<Umem>,
    /// The queue that is asked first, so that none waits behind another for good.
    next: usize,
    wait: Option<OwnedFd>,
    recognise_partial: bool,
    /// Bytes of the longest frame, without a tag.
    longest: usize,
    stats: PortStats,
}

impl XdpPort {
    /// Opens all queues of an interface for one worker that has no other port.
    ///
    /// # Errors
    /// As [`WorkerQueues::open`].
    pub fn open(interface: &str, config: &XdpConfig) -> Result<Self, OpenError> {
        let ports = Self::open_all(&[interface.to_owned()], config)?;
        Ok(ports
            .into_iter()
            .next()
            .expect("one port for one interface"))
    }

    /// Opens all queues of several interfaces for one worker.
    ///
    /// # Errors
    /// As [`WorkerQueues::open`].
    pub fn open_all(interfaces: &[String], config: &XdpConfig) -> Result<Vec<Self>, OpenError> {
        let first = interfaces.first().map_or("", String::as_str);
        let mut workers = WorkerQueues::open(interfaces, 1, config)?;
        let worker = workers.pop().expect("one worker was asked for");
        worker
            .into_ports()
            .map_err(|source| OpenError::new("wait for frames from", first, source))
    }

    /// The frame as it can leave from this worker's memory; none, and counted, if it cannot.
    fn sendable(&mut self, frame: XdpFrame) -> Option<XdpFrame> {
        let meta = frame.meta();
        let plain = meta.gso.is_none() && !matches!(meta.checksum, Checksum::Partial { .. });
        let len = frame.bytes().len();
        if !plain || len < ETHERNET_LEN || len > self.longest {
            self.stats.tx_errors += 1;
            return None;
        }
        let mut frame = if frame.is_in(&self.umem) {
            frame
        } else {
            let Some(mut copy) = self.umem.take(len) else {
                self.stats.tx_dropped += 1;
                return None;
            };
            copy.bytes_mut().copy_from_slice(frame.bytes());
            copy.set_meta(*frame.meta());
            copy
        };
        if let Some(tci) = frame.meta().vlan {
            frame.put_tag(tci);
        }
        Some(frame)
    }
}

impl Port for XdpPort {
    type Packet = XdpFrame;

    fn rx_burst(&mut self, burst: &mut Vec<XdpFrame>, max: usize) -> usize {
        let had = burst.len();
        let count = self.queues.len();
        let first = self.next;
        self.next = if first + 1 < count { first + 1 } else { 0 };
        for turn in 0..count {
            let queue = &mut self.queues[(first + turn) % count];
            let (stats, recognise) = (&mut self.stats, self.recognise_partial);
            let room = max - (burst.len() - had);
            queue.receive(&self.umem, room, |frame| {
                let Some(mut frame) = frame else {
                    stats.rx_errors += 1;
                    return;
                };
                stats.rx_frames += 1;
                let vlan = frame.take_tag();
                let checksum = if recognise {
                    partial::checksum(frame.bytes())
                } else {
                    Checksum::Unknown
                };
                frame.set_meta(Meta {
                    checksum,
                    vlan,
                    ..Meta::default()
                });
                stats.rx_bytes += frame.bytes().len() as u64;
                burst.push(frame);
            });
            self.stats.tx_dropped += u64::from(queue.go_on(&self.umem).lost);
        }
        burst.len() - had
    }

    fn tx_burst(&mut self, burst: &mut Vec<XdpFrame>) -> usize {
        // One queue, so that the frames of a flow stay in order.
        self.queues[0].reap(&self.umem);
        let room = self.queues[0].tx_room(burst.len());
        let (mut count, mut bytes) = (0, 0);
        for frame in burst.drain(..) {
            if count == room {
                self.stats.tx_dropped += 1;
            } else if let Some(frame) = self.sendable(frame) {
                count += 1;
                let tag = frame.meta().vlan.map_or(0, |_| TAG_LEN);
                bytes += (frame.bytes().len() - tag) as u64;
                self.queues[0].send(frame);
            }
        }
        if count == 0 {
            return 0;
        }
        let sent = self.queues[0].kick(&self.umem, count);
        if sent.refused {
            self.stats.tx_errors += u64::from(count);
            return 0;
        }
        // The kernel does not tell which ones the device refused.
        let lost = sent.lost.min(count);
        self.stats.tx_dropped += u64::from(sent.lost);
        self.stats.tx_frames += u64::from(count - lost);
        self.stats.tx_bytes += bytes * u64::from(count - lost) / u64::from(count);
        (count - lost) as usize
    }

    fn alloc(&mut self, len: usize) -> Option<XdpFrame> {
        self.umem.take(len)
    }

    fn capabilities(&self) -> &Capabilities {
        self.attachment.capabilities()
    }

    fn link(&self) -> Link {
        self.attachment.link()
    }

    fn stats(&self) -> PortStats {
        let mut stats = self.stats;
        for queue in &self.queues {
            let (dropped, errors) = queue.lost();
            stats.rx_dropped += dropped;
            stats.rx_errors += errors;
        }
        stats
    }

    fn wait_fd(&self) -> Option<i32> {
        let all = self.wait.as_ref().map(AsRawFd::as_raw_fd);
        all.or_else(|| Some(self.queues[0].fd().as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_knows_no_map_of_sockets_has_no_af_xdp() {
        let of_map = |errno| OpenError::of_map("eth0", io::Error::from_raw_os_error(errno));
        for errno in [libc::EINVAL, libc::ENOSYS] {
            assert!(matches!(
                of_map(errno),
                OpenError::NoKernelSupport { interface } if interface == "eth0"
            ));
        }
        assert!(matches!(
            of_map(libc::EPERM),
            OpenError::NotPermitted { .. }
        ));
        assert!(matches!(of_map(libc::E2BIG), OpenError::Refused { .. }));
    }
}
