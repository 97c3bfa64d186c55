//! The four rings that an AF_XDP socket shares with the kernel: one side produces, the other consumes, and each only
//! moves its own index (Documentation/networking/af_xdp.rst).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Types that stand in a ring: any bytes are a valid value.
///
/// # Safety
/// As it says, and no padding.
pub(super) unsafe trait Entry: Copy {}
// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: 8 + 4 + 4 bytes of integers.
unsafe impl Entry for libc::xdp_desc {}

/// A ring's mapping and where in it things are.
struct Shared<T> {
    memory: NonNull<u8>,
    len: usize,
    at: libc::xdp_ring_offset,
    /// A power of two.
    size: u32,
    /// Our index, which the other side sees once it is stored.
    ours: u32,
    /// The other side's index when we last looked.
    theirs: u32,
    entry: std::marker::PhantomData<T>,
}

// SAFETY: a mapping of the process, not of a thread; access through `&self` and `&mut self` is all there is.
unsafe impl<T> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    /// Maps the ring at an offset of the socket.
    fn map(
        fd: impl AsFd,
        offset: u64,
        at: libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Shared<T>> {
        assert!(size.is_power_of_two(), "the kernel makes no other rings");
        let len = at.desc as usize + size as usize * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice; it exists as long as it is mapped, also when the
        // socket is closed first.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_fd().as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            memory: NonNull::new(memory.cast()).expect("a mapping is never at address zero"),
            len,
            at,
            size,
            ours: 0,
            theirs: 0,
            entry: std::marker::PhantomData,
        })
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: the kernel said that this 32-bit word is there, within the mapping, which lives as long as `self`;
        // both sides access it atomically only.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(offset as usize).cast()) }
    }

    fn producer(&self) -> &AtomicU32 {
        self.word(self.at.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.word(self.at.consumer)
    }

    fn entry(&self, index: u32) -> *mut T {
        let place = (index & (self.size - 1)) as usize;
        // SAFETY: the place is below the size, so it lies within the mapping's array of entries.
        unsafe {
            self.memory
                .as_ptr()
                .add(self.at.desc as usize)
                .cast::<T>()
                .add(place)
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of which no reference outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}

/// A ring that we fill: buffers to receive into, frames to send.
pub(super) struct Producer<T>(Shared<T>);

/// A ring that we empty: received frames, buffers of frames that have been sent.
pub(super) struct Consumer<T>(Shared<T>);

impl<T: Entry> Producer<T> {
    pub(super) fn map(
        fd: impl AsFd,
        offset: u64,
        at: libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        Shared::map(fd, offset, at, size).map(Self)
    }

    /// How many entries can be pushed; exact only if fewer than `wanted`.
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let ring = &mut self.0;
        let mut room = ring.size - ring.ours.wrapping_sub(ring.theirs);
        if room < wanted {
            // Acquire: the kernel has read what it consumed before we write over it.
            ring.theirs = ring.consumer().load(Ordering::Acquire);
            room = ring.size - ring.ours.wrapping_sub(ring.theirs);
        }
        room
    }

    /// Writes an entry for which there is room; the kernel sees it from [`publish`](Self::publish) on.
    pub(super) fn push(&mut self, value: T) {
        // SAFETY: the entry lies in the mapping and, as there is room, is ours until it is published.
        unsafe { self.0.entry(self.0.ours).write(value) };
        self.0.ours = self.0.ours.wrapping_add(1);
    }

    /// Hands what was pushed to the kernel.
    pub(super) fn publish(&mut self) {
        // Release: the entries are written before the kernel may read them.
        self.0.producer().store(self.0.ours, Ordering::Release);
    }

    /// Takes the last entry back that was pushed. What was published may only be taken back while the kernel is known
    /// not to have looked since.
    pub(super) fn take_back(&mut self) -> T {
        self.0.ours = self.0.ours.wrapping_sub(1);
        // SAFETY: within the mapping; we wrote it, and the kernel never writes to rings that we produce.
        unsafe { self.0.entry(self.0.ours).read() }
    }

    /// Entries that the kernel has not told to have consumed.
    pub(super) fn pending(&self) -> u32 {
        let consumed = self.0.consumer().load(Ordering::Acquire);
        self.0.ours.wrapping_sub(consumed)
    }

    /// Whether the kernel only goes on with this ring after a system call.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.0.word(self.0.at.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

impl<T: Entry> Consumer<T> {
    pub(super) fn map(
        fd: impl AsFd,
        offset: u64,
        at: libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        Shared::map(fd, offset, at, size).map(Self)
    }

    /// How many entries can be popped, as far as we look: none only if there are none.
    pub(super) fn available(&mut self) -> u32 {
        let ring = &mut self.0;
        if ring.theirs == ring.ours {
            // Acquire: the entries were written before the index that covers them.
            ring.theirs = ring.producer().load(Ordering::Acquire);
        }
        ring.theirs.wrapping_sub(ring.ours)
    }

    /// Reads the next entry, which must be available.
    pub(super) fn pop(&mut self) -> T {
        // SAFETY: within the mapping, and any bytes make a `T`.
        let value = unsafe { self.0.entry(self.0.ours).read() };
        self.0.ours = self.0.ours.wrapping_add(1);
        value
    }

    /// Gives the entries that were popped back to the kernel.
    pub(super) fn release(&mut self) {
        // Release: our reads are done before the kernel writes over them.
        self.0.consumer().store(self.0.ours, Ordering::Release);
    }
}
