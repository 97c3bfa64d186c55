//! AF_XDP sockets: one for each queue of an interface, with its rings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::ring::{Consumer, Producer};
use super::umem::{Region, Umem, XdpFrame};
use crate::sys;

// SAFETY: integers that follow each other without a gap (2 + 2 + 4 + 4 + 4 bytes).
unsafe impl sys::Plain for libc::sockaddr_xdp {}
// SAFETY: integers that follow each other without a gap (8 + 8 + 4 * 4 bytes).
unsafe impl sys::Plain for libc::xdp_umem_reg {}
// SAFETY: 64-bit integers alone.
unsafe impl sys::Plain for libc::xdp_mmap_offsets {}
// SAFETY: 64-bit integers alone.
unsafe impl sys::Plain for libc::xdp_statistics {}

/// linux/if_xdp.h, since Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;

/// How long a queue may still be bound to the socket of a program that has just ended.
const RELEASE: Duration = Duration::from_secs(2);

/// Bytes of sent frames that the kernel may hold: more than any ring of them, so that only the ring limits.
const SEND_BUFFER_BYTES: i32 = 64 << 20;

/// How the frames of a queue get into the memory of the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copying {
    /// The device writes them there (`XDP_ZEROCOPY`).
    Device,
    /// The kernel copies them.
    Kernel,
}

/// Sizes of the rings, powers of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) rx: u32,
    pub(super) tx: u32,
}

/// What goes wrong, with the step at which it does.
pub(super) type Step<T> = Result<T, (&'static str, io::Error)>;

fn at<T>(step: &'static str, result: io::Result<T>) -> Step<T> {
    result.map_err(|error| (step, error))
}

/// A bound socket with its rings.
pub(super) struct Queue {
    fd: OwnedFd,
    copying: Copying,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    rx: Consumer<libc::xdp_desc>,
    tx: Producer<libc::xdp_desc>,
    sizes: Sizes,
    /// Chunks that the kernel has to receive into, and those that it has filled.
    stocked: u32,
    /// Frames handed to the kernel that it has not said to be done with.
    unsent: u32,
    /// What the kernel reads next is known to be nothing.
    quiet: bool,
}

/// What became of frames that were handed to the kernel.
#[derive(Default)]
pub(super) struct Sent {
    /// The device did not take so many of them.
    pub(super) lost: u32,
    /// There was no device to take them, and they are not on the ring any more.
    pub(super) refused: bool,
}

impl Queue {
    /// Opens a socket on one queue. `memory` is registered with the first socket of a worker, whose descriptor the
    /// others name.
    pub(super) fn open(
        interface_index: u32,
        queue: u32,
        memory: &Region,
        shared_with: Option<&Queue>,
        copying: Copying,
        sizes: Sizes,
    ) -> Step<Self> {
        let fd = at(
            "open an AF_XDP socket for",
            socket_with(
                AddressFamily::XDP,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(io::Error::from),
        )?;
        let set = |option: i32, size: u32| {
            at(
                "make a ring for",
                sys::set_option(&fd, libc::SOL_XDP, option, &(size as i32)),
            )
        };
        if shared_with.is_none() {
            at(
                "register memory for",
                sys::set_option(
                    &fd,
                    libc::SOL_XDP,
                    libc::XDP_UMEM_REG,
                    &memory.registration(),
                ),
            )?;
        }
        set(libc::XDP_UMEM_FILL_RING, sizes.rx)?;
        set(libc::XDP_UMEM_COMPLETION_RING, sizes.tx)?;
        set(libc::XDP_RX_RING, sizes.rx)?;
        set(libc::XDP_TX_RING, sizes.tx)?;
        // Older kernels send at most 32 frames with one call.
        let _ = set(XDP_MAX_TX_SKB_BUDGET, sizes.tx);
        at(
            "set the send buffer of",
            sys::set_option(
                &fd,
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                &SEND_BUFFER_BYTES,
            ),
        )?;
        let offsets: libc::xdp_mmap_offsets = at(
            "ask for the rings of",
            sys::option(&fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS),
        )?;
        let map = "map a ring of";
        let fill = Producer::map(&fd, libc::XDP_UMEM_PGOFF_FILL_RING, offsets.fr, sizes.rx);
        let completion = Consumer::map(
            &fd,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING,
            offsets.cr,
            sizes.tx,
        );
        let rx = Consumer::map(&fd, libc::XDP_PGOFF_RX_RING as u64, offsets.rx, sizes.rx);
        let tx = Producer::map(&fd, libc::XDP_PGOFF_TX_RING as u64, offsets.tx, sizes.tx);
        let socket = Self {
            fill: at(map, fill)?,
            completion: at(map, completion)?,
            rx: at(map, rx)?,
            tx: at(map, tx)?,
            fd,
            copying,
            sizes,
            stocked: 0,
            unsent: 0,
            quiet: true,
        };
        let mode = match copying {
            Copying::Device => libc::XDP_ZEROCOPY,
            Copying::Kernel => libc::XDP_COPY,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            // One that shares memory has the mode of the one that registered it, and may not name it.
            sxdp_flags: match shared_with {
                None => mode | libc::XDP_USE_NEED_WAKEUP,
                Some(_) => libc::XDP_SHARED_UMEM,
            },
            sxdp_ifindex: interface_index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shared_with.map_or(0, |first| first.fd.as_raw_fd() as u32),
        };
        at("bind to a queue of", bind_released(&socket.fd, &address))?;
        Ok(socket)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Takes at most `max` received frames, and gives the kernel as many chunks in their place.
    pub(super) fn receive(
        &mut self,
        umem: &Rc<Umem>,
        max: usize,
        mut take: impl FnMut(Option<XdpFrame>),
    ) {
        let count = self.rx.available().min(max as u32);
        for _ in 0..count {
            let descriptor = self.rx.pop();
            take(umem.receive(descriptor.addr, descriptor.len));
        }
        if count > 0 {
            self.rx.release();
            self.stocked -= count;
        }
        self.stock(umem);
    }

    /// Lends the kernel chunks until it has as many as its rings hold.
    pub(super) fn stock(&mut self, umem: &Umem) {
        let missing = self.sizes.rx - self.stocked;
        if missing == 0 {
            return;
        }
        let missing = missing.min(self.fill.room(missing));
        let lent = umem.lend(missing, |address| self.fill.push(address));
        if lent == 0 {
            return;
        }
        self.fill.publish();
        self.stocked += lent;
        if self.fill.needs_wakeup() {
            // A device that has run dry only looks again when told to. Nothing is received by the call itself.
            let _ = recv(&self.fd, &mut [0u8; 0][..], RecvFlags::DONTWAIT);
        }
    }

    /// Takes the chunks back of frames that have been sent.
    pub(super) fn reap(&mut self, umem: &Umem) {
        if self.unsent == 0 {
            return;
        }
        loop {
            let count = self.completion.available();
            if count == 0 {
                break;
            }
            for _ in 0..count {
                umem.take_back(self.completion.pop());
            }
            self.completion.release();
            self.unsent = self.unsent.saturating_sub(count);
        }
    }

    /// How many frames can be handed over now, at most `wanted`.
    pub(super) fn tx_room(&mut self, wanted: usize) -> u32 {
        let wanted = wanted as u32;
        // What is sent must find a place on the ring of what was sent.
        let room = self.sizes.tx - self.unsent;
        wanted.min(room).min(self.tx.room(wanted))
    }

    /// Hands a frame over, for which there is room. It leaves with [`kick`](Self::kick).
    pub(super) fn send(&mut self, frame: XdpFrame) {
        self.tx.push(frame.lend());
        self.unsent += 1;
    }

    /// Has the kernel send the `count` frames that were handed over last, and what is left of earlier ones.
    pub(super) fn kick(&mut self, umem: &Umem, count: u32) -> Sent {
        self.tx.publish();
        let mut sent = Sent::default();
        let mut first = true;
        let mut pending = self.tx.pending();
        while self.tx.needs_wakeup() {
            let outcome = send(&self.fd, &[], SendFlags::DONTWAIT);
            match outcome.map_err(|errno| errno.raw_os_error()) {
                Ok(_) => break,
                Err(libc::EINTR) => continue,
                // The device did not take a frame, which is lost; the next ones deserve a try.
                Err(libc::EBUSY) if sent.lost < self.sizes.tx => sent.lost += 1,
                // So much for one call, if it has sent anything at all.
                Err(libc::EAGAIN) => {
                    let left = self.tx.pending();
                    if left == 0 || left == pending {
                        break;
                    }
                    pending = left;
                }
                // The device is down, or has gone. The kernel finds that out before it looks at the ring, and in the
                // mode with copies it only looks within calls: these frames it has not seen.
                Err(libc::ENETDOWN | libc::ENXIO | libc::ENODEV)
                    if first && self.copying == Copying::Kernel =>
                {
                    for _ in 0..count {
                        umem.take_back(self.tx.take_back().addr);
                    }
                    self.tx.publish();
                    self.unsent -= count;
                    sent.refused = true;
                    break;
                }
                Err(_) => break,
            }
            first = false;
        }
        self.quiet = self.tx.pending() == 0;
        sent
    }

    /// Has the kernel go on with what it had no room for before.
    pub(super) fn go_on(&mut self, umem: &Umem) -> Sent {
        if self.quiet {
            return Sent::default();
        }
        self.kick(umem, 0)
    }

    /// Frames that were lost before we could see them, and descriptors that the kernel could not use.
    pub(super) fn lost(&self) -> (u64, u64) {
        sys::option(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS).map_or(
            (0, 0),
            |stats: libc::xdp_statistics| {
                (
                    stats.rx_dropped + stats.rx_ring_full,
                    stats.rx_invalid_descs,
                )
            },
        )
    }
}

/// Binds, and waits for a while if the queue still belongs to a socket that was just closed: the kernel takes its time.
fn bind_released(fd: impl AsFd, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let give_up = Instant::now() + RELEASE;
    loop {
        match sys::bind(&fd, address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}
