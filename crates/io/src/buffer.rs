//! Pooled frame buffers: one pool for each port, owned by its worker's thread.
//!
//! Every buffer is large enough for a 64 KiB super-packet, but lies in memory that the kernel only
//! backs once it is touched, so a node that sees small frames pays for small frames. The free list
//! is a stack, so the buffer used next is the one that is still in the cache.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use engine::port::{Checksum, Meta, Packet};

use crate::vnet;

/// Longest frame: Ethernet, one VLAN tag and the largest IP packet, bytes.
pub const FRAME_LEN_MAX: usize = ETHERNET_LEN + TAG_LEN + 65_535;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Bytes of a VLAN tag.
pub(crate) const TAG_LEN: usize = 4;
/// Protocol of the tag that a [`Meta`] carries (IEEE 802.1Q).
pub(crate) const TPID_8021Q: u16 = 0x8100;

/// Bytes in front of a frame, for what the kernel wants there (a virtio header) and a VLAN tag.
/// 18 puts the IP header at byte 32, so that Ethernet, IPv4 and ports share one cache line.
pub(crate) const HEADROOM: usize = 18;

/// Distance between two buffers. 256 more than a multiple of 4096, so that the first lines of
/// sixteen neighbours fall into different sets of the first-level cache.
const STRIDE: usize = 16 * 4096 + 256;
const _: () = assert!(HEADROOM + FRAME_LEN_MAX <= STRIDE);

/// Bytes of a cache line; every buffer begins with one.
const CACHE_LINE: usize = 64;

/// The buffers of one port.
pub(crate) struct Pool {
    memory: NonNull<u8>,
    layout: Layout,
    /// The first buffer: `memory` rounded up to a cache line.
    first: NonNull<u8>,
    free: RefCell<Vec<u32>>,
}

impl Pool {
    /// A pool of `count` buffers. Memory is reserved now and used as frames fill it.
    pub(crate) fn new(count: u32) -> Rc<Self> {
        let count = count.max(1);
        // No more alignment than the allocator gives anyway: beyond it, zeroed memory is memory that was written, and
        // all of it would be in use from the start.
        let layout = Layout::from_size_align(count as usize * STRIDE + CACHE_LINE, 16)
            .expect("64 KiB times a 32-bit count is below the address space");
        // SAFETY: the layout's size is not zero (count is at least 1).
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        let up = memory.as_ptr().align_offset(CACHE_LINE);
        // SAFETY: `up` is less than the cache line by which the allocation is longer than its buffers.
        let first = unsafe { memory.add(up) };
        Rc::new(Self {
            memory,
            layout,
            first,
            free: RefCell::new((0..count).rev().collect()),
        })
    }

    /// A free buffer as a frame of `len` unspecified bytes; none if the pool is empty or `len`
    /// exceeds [`FRAME_LEN_MAX`].
    pub(crate) fn take(self: &Rc<Self>, len: usize) -> Option<Frame> {
        if len > FRAME_LEN_MAX {
            return None;
        }
        let index = self.free.borrow_mut().pop()?;
        Some(Frame {
            pool: Rc::clone(self),
            index,
            len: len as u32,
            meta: Meta::default(),
        })
    }

    #[cfg(test)]
    fn free_count(&self) -> usize {
        self.free.borrow().len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: `memory` came from `alloc_zeroed` with this layout, and every frame holds a
        // reference to the pool, so none is left.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// One Ethernet frame in a pooled buffer; dropping it gives the buffer back.
pub struct Frame {
    pool: Rc<Pool>,
    index: u32,
    len: u32,
    meta: Meta,
}

impl Frame {
    /// The whole buffer: headroom, then room for the longest frame.
    fn buffer(&self) -> *mut u8 {
        // SAFETY: `index` is below the pool's count, so the offset stays inside its allocation.
        unsafe { self.pool.first.as_ptr().add(self.index as usize * STRIDE) }
    }

    /// The frame from byte `from` on: negative to have headroom in front of it (down to
    /// -[`HEADROOM`]), positive to leave out a synthetic Ethernet header.
    pub(crate) fn bytes_from_mut(&mut self, from: isize) -> &mut [u8] {
        let first = HEADROOM
            .checked_add_signed(from)
            .expect("no more headroom than there is");
        let end = HEADROOM + self.len as usize;
        assert!(first <= end, "no byte beyond the frame's end");
        // SAFETY: first..end lies within the stride (`len` never exceeds FRAME_LEN_MAX), the
        // memory is initialised (allocated zeroed), and this frame alone owns the buffer `index`.
        unsafe { std::slice::from_raw_parts_mut(self.buffer().add(first), end - first) }
    }

    /// Where the virtio header of a frame to send begins: in front of the tag to insert, if any,
    /// and in place of the `synthetic` bytes that the wire does not carry.
    pub(crate) fn vnet_at(&self, synthetic: usize) -> isize {
        let tag = if self.meta.vlan.is_some() && synthetic == 0 {
            TAG_LEN
        } else {
            0
        };
        synthetic as isize - (vnet::LEN + tag) as isize
    }

    /// Writes the virtio header of a frame to send, and inserts its tag. The frame is at least
    /// [`ETHERNET_LEN`] long; a wire without Ethernet header (`synthetic` > 0) carries no tag.
    pub(crate) fn put_vnet(&mut self, synthetic: usize) {
        let meta = self.meta;
        let first = self.vnet_at(synthetic);
        let bytes = self.bytes_from_mut(first);
        let (header, frame) = bytes.split_at_mut(vnet::LEN);
        let mut moved = -(synthetic as i32);
        if synthetic == 0
            && let Some(tci) = meta.vlan
        {
            // The two addresses move to the front, the tag goes where they ended.
            frame.copy_within(TAG_LEN..TAG_LEN + 12, 0);
            frame[12..14].copy_from_slice(&TPID_8021Q.to_be_bytes());
            frame[14..16].copy_from_slice(&tci.to_be_bytes());
            moved = TAG_LEN as i32;
        }
        header.copy_from_slice(&vnet::emit(&meta, moved));
    }

    /// Writes the Ethernet header that the wire did not carry: zero addresses and the protocol
    /// of the IP version. False if that is neither 4 nor 6.
    pub(crate) fn put_synthetic_ethernet(&mut self) -> bool {
        let bytes = self.bytes_mut();
        let Some(version) = bytes.get(ETHERNET_LEN).map(|first| first >> 4) else {
            return false;
        };
        bytes[..12].fill(0);
        let protocol: u16 = match version {
            4 => 0x0800,
            6 => 0x86dd,
            _ => return false,
        };
        bytes[12..14].copy_from_slice(&protocol.to_be_bytes());
        true
    }

    /// Moves the VLAN tag of a received frame, at least [`ETHERNET_LEN`] long, to its metadata,
    /// whose offsets counted it.
    pub(crate) fn strip_tag(&mut self, meta: &mut Meta) {
        let bytes = self.bytes_mut();
        if bytes[12..14] != TPID_8021Q.to_be_bytes() || bytes.len() < ETHERNET_LEN + TAG_LEN {
            return;
        }
        meta.vlan = Some(u16::from_be_bytes([bytes[14], bytes[15]]));
        bytes.copy_within(12 + TAG_LEN.., 12);
        let len = bytes.len() - TAG_LEN;
        self.set_len(len);
        let tag = TAG_LEN as u16;
        if let Checksum::Partial { start, .. } = &mut meta.checksum {
            *start = start.saturating_sub(tag);
        }
        if let Some(gso) = &mut meta.gso {
            gso.header_len = gso.header_len.saturating_sub(tag);
        }
    }

    pub(crate) fn set_meta(&mut self, meta: Meta) {
        self.meta = meta;
    }
}

impl Packet for Frame {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_from_mut`; a shared borrow of the only owner.
        unsafe { std::slice::from_raw_parts(self.buffer().add(HEADROOM), self.len as usize) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes_from_mut(0)
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= FRAME_LEN_MAX;
        if fits {
            self.len = len as u32;
        }
        fits
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.index);
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_apart_and_come_back() {
        let pool = Pool::new(3);
        let mut frames: Vec<Frame> = (0..3)
            .map(|_| pool.take(FRAME_LEN_MAX).expect("three buffers"))
            .collect();
        assert!(pool.take(60).is_none(), "the pool is empty");
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.bytes_from_mut(-(HEADROOM as isize)).fill(i as u8 + 1);
        }
        for (i, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|b| *b == i as u8 + 1));
        }
        frames.pop();
        assert_eq!(pool.free_count(), 1);
        drop(frames);
        assert_eq!(pool.free_count(), 3);
    }

    #[test]
    fn memory_is_used_only_as_frames_fill_it() {
        let resident_pages = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
            let resident = statm.split(' ').nth(1).expect("the second field");
            resident.parse::<usize>().expect("a number")
        };
        let before = resident_pages();
        let pool = Pool::new(4096);
        let touched = (resident_pages().saturating_sub(before)) * 4096;
        assert!(
            touched < 64 << 20,
            "{touched} bytes of a pool of 256 MiB in use"
        );
        assert_eq!(pool.free_count(), 4096);
    }

    #[test]
    fn the_buffer_last_freed_is_used_next() {
        let pool = Pool::new(8);
        let a = pool.take(60).expect("free");
        let _b = pool.take(60).expect("free");
        let index = a.index;
        drop(a);
        assert_eq!(pool.take(60).expect("free").index, index);
    }

    #[test]
    fn a_frame_outlives_its_port() {
        let pool = Pool::new(1);
        let mut frame = pool.take(60).expect("free");
        drop(pool);
        frame.bytes_mut().fill(7);
        assert_eq!(frame.bytes(), [7; 60]);
    }

    #[test]
    fn a_tag_and_a_virtio_header_go_in_front() {
        let pool = Pool::new(1);
        let mut frame = pool.take(60).expect("free");
        for (i, byte) in frame.bytes_mut().iter_mut().enumerate() {
            *byte = i as u8;
        }
        frame.meta_mut().vlan = Some(0x2064);
        frame.put_vnet(0);
        let first = frame.vnet_at(0);
        let sent = &frame.bytes_from_mut(first)[vnet::LEN..];
        assert_eq!(sent.len(), 64);
        assert_eq!(sent[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(sent[12..16], [0x81, 0x00, 0x20, 0x64]);
        assert_eq!(sent[16..20], [12, 13, 14, 15]);
    }

    #[test]
    fn a_synthetic_ethernet_header_names_the_ip_version() {
        let check = |first: u8, len: usize, expected: Option<[u8; 2]>| {
            let pool = Pool::new(1);
            let mut frame = pool.take(len).expect("free");
            if let Some(byte) = frame.bytes_mut().get_mut(14) {
                *byte = first;
            }
            assert_eq!(frame.put_synthetic_ethernet(), expected.is_some());
            if let Some(protocol) = expected {
                assert_eq!(frame.bytes()[12..14], protocol);
            }
        };
        check(0x45, 34, Some([0x08, 0x00]));
        check(0x60, 54, Some([0x86, 0xdd]));
        check(0x00, 34, None);
        check(0x45, 14, None);
    }

    #[test]
    fn length_is_bounded_by_the_buffer() {
        let pool = Pool::new(1);
        assert!(pool.take(FRAME_LEN_MAX + 1).is_none());
        let mut frame = pool.take(0).expect("free");
        assert!(!frame.set_len(FRAME_LEN_MAX + 1));
        assert_eq!(frame.bytes().len(), 0);
        assert!(frame.set_len(FRAME_LEN_MAX));
        assert_eq!(frame.bytes().len(), FRAME_LEN_MAX);
    }
}
