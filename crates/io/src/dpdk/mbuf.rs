//! A frame in a packet buffer of DPDK, and the pools that they come from.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::port::{Meta, Packet};

use super::ffi;

/// Longest frame that a large buffer holds: the length of a buffer, with 128 bytes of headroom, is 16 bits.
pub(super) const LARGE_ROOM: u16 = u16::MAX - 128;

/// One Ethernet frame in one buffer; dropping it gives the buffer back to its pool.
pub struct Mbuf {
    mbuf: NonNull<ffi::RteMbuf>,
    data: NonNull<u8>,
    len: u32,
    /// Bytes from `data` to the end of the buffer.
    room: u32,
    meta: Meta,
}

impl Mbuf {
    /// Takes over the buffer that `nw_rx_burst` or `nw_alloc` has handed out.
    ///
    /// # Safety
    /// `frame` was filled by one of them, and nobody else owns its buffer.
    #[inline]
    pub(super) unsafe fn from_raw(frame: &ffi::Frame, meta: Meta) -> Self {
        // SAFETY: both functions write only buffers that exist, with data in them.
        let (mbuf, data) = unsafe {
            (
                NonNull::new_unchecked(frame.mbuf),
                NonNull::new_unchecked(frame.data),
            )
        };
        Self {
            mbuf,
            data,
            len: frame.len,
            room: frame.room,
            meta,
        }
    }

    /// Gives the buffer up to whoever takes what is returned.
    #[inline]
    pub(super) fn into_raw(self) -> ffi::Frame {
        let this = std::mem::ManuallyDrop::new(self);
        ffi::Frame {
            mbuf: this.mbuf.as_ptr(),
            data: this.data.as_ptr(),
            len: this.len,
            room: this.room,
            ..ffi::Frame::EMPTY
        }
    }
}

impl Packet for Mbuf {
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` never exceeds `room`, the bytes from `data` to the end of a buffer that this frame alone owns,
        // and memory of a pool is initialised: it comes zeroed from the system.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the frame is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.room as usize;
        if fits {
            self.len = len as u32;
        }
        fits
    }

    #[inline]
    fn meta(&self) -> &Meta {
        &self.meta
    }

    #[inline]
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: this frame alone owns the buffer; its pool is never freed.
        unsafe { ffi::nw_free(self.mbuf.as_ptr()) }
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

/// What a pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolShape {
    /// Buffers.
    pub(super) count: u32,
    /// Bytes of a frame that each holds.
    pub(super) data_room: u16,
    /// NUMA node of its memory; -1 for any.
    pub(super) socket: i32,
    /// Without gaps at the ends of pages.
    pub(super) dense: bool,
}

/// A pool of buffers. A frame may outlive its port, so pools are never freed: what nobody uses any more waits for the
/// next device that wants its like.
pub(super) struct Pool {
    pool: RawPool,
    shape: PoolShape,
}

#[derive(Clone, Copy)]
struct RawPool(NonNull<ffi::RteMempool>);

// SAFETY: DPDK's pools may be used by any number of threads at once, and are never freed.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}

/// Pools that nobody uses.
static UNUSED: Mutex<Vec<(PoolShape, RawPool)>> = Mutex::new(Vec::new());
/// Pools that exist.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Pool {
    /// A pool of this shape; none if there is no memory for it. The environment has been started.
    pub(super) fn take(shape: PoolShape) -> Option<Self> {
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = unused.iter().position(|(other, _)| *other == shape) {
            let (shape, pool) = unused.swap_remove(at);
            return Some(Self { pool, shape });
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("frames{number}")).expect("no zero byte");
        // SAFETY: the name is a C string, of which the function makes a copy.
        let pool = unsafe {
            ffi::nw_pool(
                name.as_ptr(),
                shape.count,
                shape.data_room,
                shape.socket,
                shape.dense,
            )
        };
        let pool = RawPool(NonNull::new(pool)?);
        Some(Self { pool, shape })
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut ffi::RteMempool {
        self.pool.0.as_ptr()
    }

    /// Buffers in all.
    pub(super) fn count(&self) -> u32 {
        self.shape.count
    }

    pub(super) fn data_room(&self) -> u16 {
        self.shape.data_room
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        unused.push((self.shape, self.pool));
    }
}
