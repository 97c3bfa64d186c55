//! The receive ring that AF_PACKET shares with us (`PACKET_RX_RING`, TPACKET_V2; packet(7)): small frames come without a
//! system call and without the lock of the socket's queue.
//!
//! Each frame takes one slot, in order. One that does not fit its slot (a super-packet, a jumbo frame) has its first
//! bytes there, and all of it waits in the socket's queue: the slot says so, and keeps its place among the others.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::kept::Position;
use crate::sys;
use crate::vnet;

/// Bytes of a slot: a frame of 1514 bytes, a tag and what the kernel puts in front.
const SLOT_LEN: usize = 2048;
/// Slots of one block, which the kernel allocates in one piece if it can.
const SLOTS_A_BLOCK: usize = 256;

/// Copied to user space beside the slot: `PACKET_COPY_THRESH` only knows zero and not zero.
const COPY_WHAT_DOES_NOT_FIT: i32 = 1;

// SAFETY: four 32-bit integers.
unsafe impl sys::Plain for libc::tpacket_req {}

/// The slots, and which of them is due next.
pub(crate) struct RxRing {
    memory: NonNull<u8>,
    slots: usize,
    next: usize,
    /// `next`, for a process that takes over.
    position: Position,
}

// SAFETY: a mapping of the process, not of a thread; access through `&self` and `&mut self` is all there is.
unsafe impl Send for RxRing {}

/// What stands in the slot that is due.
pub(crate) enum Slot<'a> {
    /// A whole frame: its bytes, virtio header and tag (TCI, protocol).
    Frame {
        bytes: &'a [u8],
        vnet: [u8; vnet::LEN],
        vlan: Option<(u16, u16)>,
    },
    /// The socket's queue holds the next frame.
    Queued,
    /// The frame did not fit, and the socket's queue was full.
    Lost,
}

impl RxRing {
    /// Gives an open socket, whose virtio headers are switched on, a ring of at least `frames` (rounded up to whole
    /// blocks) slots.
    ///
    /// # Errors
    /// Those of the kernel, above all for memory.
    pub(crate) fn map(fd: impl AsFd, frames: u32) -> io::Result<Self> {
        let blocks = blocks(frames);
        let version = libc::tpacket_versions::TPACKET_V2 as i32;
        sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        sys::set_option(
            &fd,
            libc::SOL_PACKET,
            libc::PACKET_COPY_THRESH,
            &COPY_WHAT_DOES_NOT_FIT,
        )?;
        request(&fd, blocks)?;
        Self::share(&fd, blocks * SLOTS_A_BLOCK, 0)
    }

    /// Lays the ring anew, from its first slot on; the frames in it are lost. For one that the kernel fills no more: when
    /// it cannot describe a frame in a virtio header (UDP fragmentation offload, segments of SCTP), it has marked the slot
    /// as being filled and leaves it so, and drops whatever comes after it (`tpacket_rcv`).
    ///
    /// # Errors
    /// Those of the kernel, above all for memory. The ring then stays empty, and this may be tried again.
    pub(crate) fn renew(&mut self, fd: impl AsFd) -> io::Result<()> {
        // A ring can be replaced only while it is mapped nowhere. Zeroes in its place belong to the kernel: nothing is due.
        self.replace(map(
            libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
            -1,
            self.slots,
        )?);
        self.next = 0;
        self.position.set(0);
        request(&fd, 0)?;
        request(&fd, self.slots / SLOTS_A_BLOCK)?;
        self.replace(map(libc::MAP_SHARED, fd.as_fd().as_raw_fd(), self.slots)?);
        Ok(())
    }

    fn replace(&mut self, memory: NonNull<u8>) {
        let old = std::mem::replace(&mut self.memory, memory);
        // SAFETY: a mapping of `map`; `&mut self` says that there is no reference into it.
        unsafe { libc::munmap(old.as_ptr().cast(), self.slots * SLOT_LEN) };
    }

    /// Whether the slot that is due is the kernel's.
    pub(crate) fn is_empty(&self) -> bool {
        self.status(self.next).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0
    }

    /// Goes on with the ring that a socket has been given before, with as many `frames`, and that was read up to `position`.
    ///
    /// # Errors
    /// It has another size.
    pub(crate) fn resume(fd: impl AsFd, frames: u32, position: usize) -> io::Result<Self> {
        let slots = blocks(frames) * SLOTS_A_BLOCK;
        if position >= slots {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::share(&fd, slots, position)
    }

    fn share(fd: &impl AsFd, slots: usize, next: usize) -> io::Result<Self> {
        Ok(Self {
            // It exists as long as it is mapped, also when the socket is closed first.
            memory: map(libc::MAP_SHARED, fd.as_fd().as_raw_fd(), slots)?,
            slots,
            next,
            position: Position::new(next),
        })
    }

    /// The header at the front of slot `index`, which is below `slots`.
    fn header(&self, index: usize) -> *mut libc::tpacket2_hdr {
        // SAFETY: the index is below the number of slots, so the offset lies within the mapping. Slots are aligned far
        // beyond the header's needs.
        unsafe { self.memory.as_ptr().add(index * SLOT_LEN).cast() }
    }

    /// The word that says whose the slot is.
    fn status(&self, index: usize) -> &AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as `self`; aligned; both sides only access it atomically
        // while the slot may be the kernel's.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.header(index)).tp_status) }
    }

    /// How many slots from the one that is due on, at most `max`, hold nothing but a frame's beginning, whose whole
    /// waits in the socket's queue.
    pub(crate) fn queued(&self, max: usize) -> usize {
        let queued = |ahead: &usize| {
            let status = self
                .status((self.next + ahead) % self.slots)
                .load(Ordering::Acquire);
            status & libc::TP_STATUS_USER != 0 && status & libc::TP_STATUS_COPY != 0
        };
        (0..max.min(self.slots)).take_while(queued).count()
    }

    /// What is due, if anything; [`release`](Self::release) goes on to the next.
    pub(crate) fn peek(&self) -> Option<Slot<'_>> {
        // Acquire: what the kernel wrote before it gave the slot away is seen.
        let status = self.status(self.next).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        if status & libc::TP_STATUS_COPY != 0 {
            return Some(Slot::Queued);
        }
        let header = self.header(self.next);
        // SAFETY: the slot is ours until it is released, which takes `&mut self`, so nobody writes to it.
        let header = unsafe { &*header };
        let (start, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        if header.tp_len != header.tp_snaplen || start < vnet::LEN || start + len > SLOT_LEN {
            return Some(Slot::Lost);
        }
        // SAFETY: `start - vnet::LEN .. start + len` lies within the slot, by the check above; ours as before.
        let bytes = unsafe {
            let slot = self.memory.as_ptr().add(self.next * SLOT_LEN);
            std::slice::from_raw_parts(slot.add(start - vnet::LEN), vnet::LEN + len)
        };
        let (front, bytes) = bytes.split_at(vnet::LEN);
        let mut vnet = [0; vnet::LEN];
        vnet.copy_from_slice(front);
        let vlan = (status & libc::TP_STATUS_VLAN_VALID != 0)
            .then_some((header.tp_vlan_tci, header.tp_vlan_tpid));
        Some(Slot::Frame { bytes, vnet, vlan })
    }

    /// Gives the next `count` slots, all of which were ours, back to the kernel.
    pub(crate) fn release(&mut self, count: usize) {
        for _ in 0..count {
            // Release: our reads of the slot are done before it is given away.
            self.status(self.next)
                .store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % self.slots;
        }
        self.position.set(self.next);
    }

    /// How far it has been read, whenever it is asked.
    pub(crate) fn position(&self) -> Position {
        self.position.clone()
    }
}

/// Maps so many slots at an address of the kernel's choice.
fn map(flags: i32, fd: i32, slots: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping, which no other is in the way of.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            slots * SLOT_LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(memory.cast()).expect("a mapping is never at address zero"))
}

/// Asks for a ring of so many blocks; none takes away the one that is there.
fn request(fd: impl AsFd, blocks: usize) -> io::Result<()> {
    let request = match blocks {
        // The kernel wants all of it to be zero then.
        0 => libc::tpacket_req {
            tp_block_size: 0,
            tp_block_nr: 0,
            tp_frame_size: 0,
            tp_frame_nr: 0,
        },
        _ => libc::tpacket_req {
            tp_block_size: (SLOTS_A_BLOCK * SLOT_LEN) as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: SLOT_LEN as u32,
            tp_frame_nr: (blocks * SLOTS_A_BLOCK) as u32,
        },
    };
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
}

fn blocks(frames: u32) -> usize {
    (frames as usize).div_ceil(SLOTS_A_BLOCK).max(1)
}

impl Drop for RxRing {
    fn drop(&mut self) {
        // SAFETY: a mapping of `map`, of which no reference outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.slots * SLOT_LEN) };
    }
}
