//! AF_PACKET: a data port on any Linux interface, in batches and with super-packets.
//!
//! The kernel hands frames over with a virtio header, so that partial checksums and segments of
//! up to 64 KiB pass through uncut, and takes them back the same way. [`Hold`] keeps the kernel's
//! own stack off the interface meanwhile.

mod batch;
mod hold;
mod ring;
mod socket;
mod steer;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use engine::port::{Capabilities, Link, Packet, Port, PortStats};

use crate::buffer::{ETHERNET_LEN, Frame, Pool, TPID_8021Q};
use crate::vnet;
use batch::{Received, RxBatch, TxBatch};
pub use hold::{Changes, Hold, HoldConfig, HoldError};
use ring::Slot;
pub use socket::{OpenError, PacketConfig, Socket};
pub use steer::{Fanout, Translated};

/// Most frames in one system call.
const BATCH: usize = 64;

/// Empty turns between two looks for an error of the socket: as many as a worker spins before it sleeps.
const TURNS_A_LOOK: u32 = 64;

/// One queue of an interface, used by one worker.
///
/// Made from a [`Socket`] in the thread of that worker, since the buffers belong to it.
pub struct PacketPort {
    socket: Socket,
    pool: Rc<Pool>,
    rx: RxBatch,
    tx: TxBatch,
    /// Bytes of the Ethernet header that the wire does not carry.
    synthetic: usize,
    stats: PortStats,
    /// The kernel resets its count whenever it is read.
    kernel_dropped: Cell<u64>,
    /// Frames that fitted neither their slot nor the socket's queue.
    ring_lost: u64,
    /// Turns since a frame came.
    empty_turns: u32,
    /// What the kernel had dropped at the last look, if nothing has come since.
    dropped_before: Option<u64>,
}

impl PacketPort {
    /// Opens an interface with a single queue.
    pub fn open(config: &PacketConfig) -> Result<Self, OpenError> {
        Ok(Self::new(Socket::open(config)?))
    }

    /// Makes a port of an open socket, with a pool of buffers of this thread.
    pub fn new(socket: Socket) -> Self {
        let synthetic = if socket.capabilities().layer3 {
            ETHERNET_LEN
        } else {
            0
        };
        Self {
            pool: Pool::new(socket.buffers()),
            socket,
            rx: RxBatch::new(BATCH, synthetic),
            tx: TxBatch::new(BATCH),
            synthetic,
            stats: PortStats::default(),
            kernel_dropped: Cell::new(0),
            ring_lost: 0,
            empty_turns: 0,
            dropped_before: None,
        }
    }

    /// Receives what is due in the ring, at most `max` frames.
    fn receive(&mut self, burst: &mut Vec<Frame>, max: usize) {
        let had = burst.len();
        while burst.len() - had < max {
            let room = max - (burst.len() - had);
            let received = match self.socket.ring().peek() {
                None => break,
                Some(Slot::Queued) => {
                    if !self.receive_queued(burst, room) {
                        break;
                    }
                    continue;
                }
                Some(Slot::Lost) => {
                    self.ring_lost += 1;
                    None
                }
                Some(Slot::Frame { bytes, vnet, vlan }) => {
                    let Some(mut frame) = self.pool.take(self.synthetic + bytes.len()) else {
                        break;
                    };
                    frame
                        .bytes_from_mut(self.synthetic as isize)
                        .copy_from_slice(bytes);
                    let truncated = false;
                    Some((
                        frame,
                        Received {
                            vnet,
                            truncated,
                            vlan,
                        },
                    ))
                }
            };
            self.socket.ring_mut().release(1);
            if let Some((frame, with)) = received {
                self.accept(burst, frame, &with);
            }
        }
    }

    /// Receives frames whose whole waits in the socket's queue, at most `max`. False if there is no buffer for them.
    fn receive_queued(&mut self, burst: &mut Vec<Frame>, max: usize) -> bool {
        let due = self.socket.ring().queued(max.min(BATCH));
        // The first call may only tell that the device went down meanwhile, and takes nothing then.
        let received = match self.rx.receive(self.socket.as_fd(), &self.pool, due) {
            Err(_) => self.rx.receive(self.socket.as_fd(), &self.pool, due),
            received => received,
        };
        let released = match received {
            Ok(0) => return false,
            Ok(received) => received,
            // The device went down once more: nothing was taken, and slots and queue must stay in step.
            Err(error) if is_down(&error) => return false,
            // What is left over is a frame that the kernel could not describe: it is lost.
            Err(_) => {
                self.stats.rx_errors += 1;
                1
            }
        };
        self.socket.ring_mut().release(released);
        for i in 0..received.unwrap_or(0) {
            let Some((frame, with)) = self.rx.take(i) else {
                break;
            };
            self.accept(burst, frame, &with);
        }
        true
    }

    /// Lays the ring anew if the kernel drops what comes though there is room, and so fills it no more.
    fn look_after_ring(&mut self) {
        let dropped = self.count_dropped();
        let before = self.dropped_before.replace(dropped);
        if !self.socket.ring().is_empty() || before.is_none_or(|before| before == dropped) {
            return;
        }
        self.dropped_before = None;
        match self.socket.renew_ring() {
            Ok(()) => tracing::warn!("a port had stopped receiving: its ring is laid anew"),
            Err(error) => tracing::error!(%error, "a port has stopped receiving"),
        }
    }

    /// Frames that the kernel has dropped.
    fn count_dropped(&self) -> u64 {
        let dropped = self.kernel_dropped.get() + self.socket.take_dropped();
        self.kernel_dropped.set(dropped);
        dropped
    }

    /// Hands a received frame on, unless it is of no use.
    fn accept(&mut self, burst: &mut Vec<Frame>, mut frame: Frame, with: &Received) {
        let synthetic = self.synthetic;
        let vlan = match with.vlan {
            None => Ok(None),
            Some((tci, TPID_8021Q)) => Ok(Some(tci)),
            Some(_) => Err(vnet::Unusable),
        };
        let meta = vnet::parse(with.vnet, frame.bytes_mut(), synthetic);
        match (meta, vlan) {
            (Ok(mut meta), Ok(vlan))
                if !with.truncated && (synthetic == 0 || frame.put_synthetic_ethernet()) =>
            {
                meta.vlan = vlan;
                frame.set_meta(meta);
                self.stats.rx_frames += 1;
                self.stats.rx_bytes += frame.bytes().len() as u64;
                burst.push(frame);
            }
            _ => self.stats.rx_errors += 1,
        }
    }

    /// Counts a frame that was not taken, for the error that the kernel gave. Returns whether
    /// the next frame deserves a try.
    fn refuse(&mut self, error: &io::Error, left: u64) -> bool {
        match error.raw_os_error() {
            // The device's queue is full: the next frame may find room.
            Some(libc::ENOBUFS) => {
                self.stats.tx_dropped += 1;
                true
            }
            // The socket's buffer is full: no frame will fit before some have left.
            Some(libc::EAGAIN) => {
                self.stats.tx_dropped += left;
                false
            }
            _ if is_down(error) => {
                self.stats.tx_errors += left;
                false
            }
            _ => {
                self.stats.tx_errors += 1;
                true
            }
        }
    }
}

/// Whether an error tells that the device is, or was, down or gone.
fn is_down(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV)
    )
}

impl Port for PacketPort {
    type Packet = Frame;

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        let had = burst.len();
        self.receive(burst, max);
        let received = burst.len() - had;
        if received > 0 {
            self.empty_turns = 0;
            self.dropped_before = None;
        } else {
            self.empty_turns = self.empty_turns.wrapping_add(1);
            if self.empty_turns.is_multiple_of(TURNS_A_LOOK) {
                self.socket.take_error();
            }
        }
        received
    }

    fn tx_burst(&mut self, burst: &mut Vec<Frame>) -> usize {
        let synthetic = self.synthetic;
        burst.retain_mut(|frame| {
            let sound = frame.bytes().len() >= ETHERNET_LEN;
            if sound {
                frame.put_vnet(synthetic);
            } else {
                self.stats.tx_errors += 1;
            }
            sound
        });
        let first = |frame: &Frame| frame.vnet_at(synthetic);
        let mut taken = 0;
        let mut at = 0;
        let mut told_down = false;
        while at < burst.len() {
            match self.tx.send(self.socket.as_fd(), &mut burst[at..], first) {
                Ok(sent) => {
                    for frame in &burst[at..at + sent] {
                        self.stats.tx_bytes += frame.bytes().len() as u64;
                    }
                    taken += sent;
                    at += sent;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // It may only tell, once, that the device was down since the last call.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) && !told_down => {
                    told_down = true;
                }
                Err(error) => {
                    if !self.refuse(&error, (burst.len() - at) as u64) {
                        break;
                    }
                    at += 1;
                }
            }
        }
        self.stats.tx_frames += taken as u64;
        burst.clear();
        taken
    }

    fn alloc(&mut self, len: usize) -> Option<Frame> {
        self.pool.take(len)
    }

    fn capabilities(&self) -> &Capabilities {
        self.socket.capabilities()
    }

    fn refresh(&mut self) -> bool {
        self.look_after_ring();
        self.socket.refresh()
    }

    fn link(&self) -> Link {
        self.socket.link()
    }

    fn stats(&self) -> PortStats {
        PortStats {
            rx_dropped: self.count_dropped() + self.ring_lost,
            ..self.stats
        }
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.socket.as_fd().as_raw_fd())
    }
}
