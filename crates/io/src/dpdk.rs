//! DPDK: network cards driven from this process, in bursts, without the kernel.
//!
//! [`Eal::start`] starts DPDK's environment, once in a process; [`Selector::locate`] finds a device and [`Queue::open`]
//! opens it; a [`DpdkPort`] is one of its queues. What DPDK keeps in inline functions is in `shim.c`, with one call
//! for a burst. A frame is one buffer: those that arrive in several are put together, and a super-packet to send lies in a
//! large one. What a device cannot do (VLAN tags, checksums) is done here.

mod device;
mod eal;
mod ffi;
mod mbuf;
mod meta;
mod meter;
mod select;

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use engine::port::{Capabilities, Link, Meta, Packet, Port, PortStats};
use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::buffer::ETHERNET_LEN;
use device::Device;
pub use device::{DeviceConfig, OpenError, Queue};
pub use eal::{Eal, EalConfig, EalError, Iova};
pub use mbuf::Mbuf;
pub use meter::{Figures, Meter};
pub use select::{Located, SelectError, Selector};

/// One queue of a device, used by one worker.
///
/// Made from a [`Queue`] in the thread of that worker, which DPDK then knows.
pub struct DpdkPort {
    device: Arc<Device>,
    queue: u16,
    /// What crosses the boundary, either way.
    frames: Box<[ffi::Frame; ffi::BURST]>,
    stats: PortStats,
    /// What the device has counted for all its queues: frames lost, and received in error; as last read.
    lost: Cell<[u64; 2]>,
    /// Readable when a frame has come while the interrupt was armed; none for a device without interrupts.
    interrupt: Option<OwnedFd>,
    armed: bool,
    /// Always readable, to keep the worker from sleeping.
    awake: Option<OwnedFd>,
}

impl DpdkPort {
    /// A port of an open queue.
    pub fn new(queue: Queue) -> Self {
        let Queue { device, index } = queue;
        eal::register_thread(device.eal);
        let interrupt = (device.granted & ffi::port::INTERRUPTS != 0)
            .then(|| watch(device.port, index))
            .flatten();
        Self {
            device,
            queue: index,
            frames: Box::new([ffi::Frame::EMPTY; ffi::BURST]),
            stats: PortStats::default(),
            lost: Cell::default(),
            interrupt,
            armed: false,
            awake: None,
        }
    }

    /// Has the worker poll without ever sleeping, which takes a whole core.
    ///
    /// # Errors
    /// The system gives no descriptor.
    pub fn stay_awake(&mut self) -> std::io::Result<()> {
        self.awake = Some(eventfd(1, EventfdFlags::CLOEXEC)?);
        Ok(())
    }

    /// Sends the first `count` frames of the array.
    fn send(&mut self, count: usize) -> usize {
        let mut sent = ffi::Sent::default();
        // SAFETY: `count` frames, each with a buffer of its own, which the call takes over; the queue is this thread's.
        unsafe {
            ffi::nw_tx_burst(
                self.device.port,
                self.queue,
                self.frames.as_mut_ptr(),
                count as u16,
                self.device.granted,
                &raw mut sent,
            );
        }
        self.stats.tx_frames += u64::from(sent.frames);
        self.stats.tx_bytes += sent.bytes;
        self.stats.tx_dropped += u64::from(sent.full);
        self.stats.tx_errors += u64::from(sent.errors);
        sent.frames as usize
    }

    #[cold]
    fn disarm(&mut self) {
        self.armed = false;
        if let Some(interrupt) = &self.interrupt {
            // SAFETY: the queue is open and this thread's.
            unsafe {
                ffi::nw_interrupt_disarm(self.device.port, self.queue, interrupt.as_raw_fd());
            }
        }
    }
}

/// A descriptor that the queue's interrupt makes readable; none if the device has none for it.
fn watch(port: u16, queue: u16) -> Option<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
    // SAFETY: the queue is open; the descriptor is closed after the port has been disarmed.
    let error = unsafe { ffi::nw_interrupt_watch(port, queue, epoll.as_raw_fd()) };
    (error == 0).then_some(epoll)
}

impl Port for DpdkPort {
    type Packet = Mbuf;

    fn rx_burst(&mut self, burst: &mut Vec<Mbuf>, max: usize) -> usize {
        let had = burst.len();
        let max = max.min(ffi::BURST) as u16;
        let large = self.device.large.as_ref();
        let large = large.map_or(std::ptr::null_mut(), |pool| pool.as_ptr());
        // SAFETY: there is room for `max` frames; the queue is this thread's.
        let received = unsafe {
            ffi::nw_rx_burst(
                self.device.port,
                self.queue,
                self.frames.as_mut_ptr(),
                max,
                large,
                &raw mut self.stats.rx_errors,
            )
        };
        for raw in &self.frames[..usize::from(received)] {
            // SAFETY: just filled, and taken over here alone.
            let mut frame = unsafe { Mbuf::from_raw(raw, Meta::default()) };
            if raw.flags != 0 {
                match meta::received(raw, frame.bytes_mut()) {
                    Ok(meta) => *frame.meta_mut() = meta,
                    Err(meta::Unusable) => {
                        self.stats.rx_errors += 1;
                        continue;
                    }
                }
            }
            self.stats.rx_bytes += u64::from(raw.len);
            burst.push(frame);
        }
        let taken = burst.len() - had;
        self.stats.rx_frames += taken as u64;
        if taken > 0 && self.armed {
            self.disarm();
        }
        taken
    }

    fn tx_burst(&mut self, burst: &mut Vec<Mbuf>) -> usize {
        let (mut count, mut taken) = (0, 0);
        for mut frame in burst.drain(..) {
            let mut meta = *frame.meta();
            let mut asked = ffi::Frame::EMPTY;
            let bytes = frame.bytes_mut();
            if bytes.len() < ETHERNET_LEN
                || meta::ask(&mut meta, bytes, self.device.granted, &mut asked).is_err()
            {
                self.stats.tx_errors += 1;
                continue;
            }
            let raw = frame.into_raw();
            self.frames[count] = ffi::Frame {
                mbuf: raw.mbuf,
                data: raw.data,
                len: raw.len,
                room: raw.room,
                ..asked
            };
            count += 1;
            if count == ffi::BURST {
                taken += self.send(count);
                count = 0;
            }
        }
        if count > 0 {
            taken += self.send(count);
        }
        taken
    }

    fn alloc(&mut self, len: usize) -> Option<Mbuf> {
        let device = &self.device;
        let pool = if len <= usize::from(device.pool.data_room()) {
            &device.pool
        } else {
            device.large.as_ref()?
        };
        let mut raw = ffi::Frame::EMPTY;
        // SAFETY: the pool is never freed, and the frame is filled if there is one.
        let mut frame = unsafe {
            if !ffi::nw_alloc(pool.as_ptr(), &raw mut raw) {
                return None;
            }
            Mbuf::from_raw(&raw, Meta::default())
        };
        frame.set_len(len).then_some(frame)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    fn link(&self) -> Link {
        self.device.link()
    }

    fn stats(&self) -> PortStats {
        let mut stats = self.stats;
        // The device counts for all its queues; the first tells.
        if self.queue == 0 {
            let [mut dropped, mut errors] = self.lost.get();
            // Who reads metrics may be asking at the moment; a worker does not wait for that.
            if let Ok(_reading) = self.device.reading.try_lock() {
                // SAFETY: the port is open; writes two numbers.
                unsafe {
                    ffi::nw_port_lost(self.device.port, &raw mut dropped, &raw mut errors);
                }
                self.lost.set([dropped, errors]);
            }
            stats.rx_dropped += dropped;
            stats.rx_errors += errors;
        }
        stats
    }

    fn wait_fd(&self) -> Option<i32> {
        let fd = self.awake.as_ref().or(self.interrupt.as_ref());
        fd.map(AsRawFd::as_raw_fd)
    }

    fn arm(&mut self) {
        if self.armed {
            // Takes back what woke the worker in vain.
            self.disarm();
        }
        if self.awake.is_none() && self.interrupt.is_some() {
            // SAFETY: the queue is open and this thread's.
            let error = unsafe { ffi::nw_interrupt_arm(self.device.port, self.queue) };
            self.armed = error == 0;
        }
    }
}

impl Drop for DpdkPort {
    fn drop(&mut self) {
        if self.armed {
            self.disarm();
        }
    }
}
