//! The memory that all sockets of one worker share (UMEM), and the frames in it. A frame that came in at one port
//! leaves by another without being copied.

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use engine::port::{Meta, Packet};

use crate::buffer::{ETHERNET_LEN, HEADROOM, TAG_LEN, TPID_8021Q};

/// What the kernel itself leaves free at the front of each chunk (`XDP_PACKET_HEADROOM`).
const KERNEL_HEADROOM: usize = 256;

/// The two sizes of a chunk: half a page, and the page that the kernel does not go beyond.
const CHUNKS: [usize; 2] = [2048, 4096];

/// Bytes of the longest frame, tag included, that a chunk can hold.
fn room(chunk_len: usize) -> usize {
    chunk_len - KERNEL_HEADROOM - HEADROOM
}

/// Largest MTU that fits a chunk.
pub(super) const MTU_MAX: u16 =
    (CHUNKS[1] - KERNEL_HEADROOM - HEADROOM - ETHERNET_LEN - TAG_LEN) as u16;

/// The memory, before and while it is used by one thread.
pub(super) struct Region {
    memory: NonNull<u8>,
    /// A power of two.
    chunk_len: usize,
    count: u32,
}

// SAFETY: a mapping of the process, not of a thread; whoever has the only `Region` has all of it.
unsafe impl Send for Region {}

impl Region {
    /// Maps `count` chunks for frames of an MTU of at most [`MTU_MAX`].
    pub(super) fn map(count: u32, mtu: u16) -> io::Result<Self> {
        let frame_len = usize::from(mtu) + ETHERNET_LEN + TAG_LEN;
        let chunk_len = CHUNKS
            .into_iter()
            .find(|chunk_len| frame_len <= room(*chunk_len))
            .ok_or(io::ErrorKind::InvalidInput)?;
        // A whole number of pages.
        let count = count.next_multiple_of(2);
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count as usize * chunk_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self {
            memory: NonNull::new(memory.cast()).expect("a mapping is never at address zero"),
            chunk_len,
            count,
        };
        // SAFETY: advice on exactly the mapping; it changes no content. Without huge pages it is refused, which is fine.
        unsafe { libc::madvise(memory, region.len(), libc::MADV_HUGEPAGE) };
        Ok(region)
    }

    fn len(&self) -> usize {
        self.count as usize * self.chunk_len
    }

    /// What the kernel is told of it.
    pub(super) fn registration(&self) -> libc::xdp_umem_reg {
        libc::xdp_umem_reg {
            addr: self.memory.as_ptr() as u64,
            len: self.len() as u64,
            chunk_size: self.chunk_len as u32,
            headroom: HEADROOM as u32,
            flags: 0,
            tx_metadata_len: 0,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, to which nothing refers any more. Pages that the kernel still uses are
        // pinned, and live on without it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len()) };
    }
}

/// The memory with its free chunks; each other chunk is a [`XdpFrame`]'s or the kernel's.
pub(super) struct Umem {
    region: Region,
    /// A stack, so that the chunk used next is the one that is still in the cache.
    free: RefCell<Vec<u32>>,
}

impl Umem {
    pub(super) fn new(region: Region) -> Rc<Self> {
        let free = RefCell::new((0..region.count).rev().collect());
        Rc::new(Self { region, free })
    }

    /// An empty chunk as a frame of `len` unspecified bytes; none if there is none, or it would not fit.
    pub(super) fn take(self: &Rc<Self>, len: usize) -> Option<XdpFrame> {
        if len > room(self.region.chunk_len) {
            return None;
        }
        Some(XdpFrame {
            chunk: self.free.borrow_mut().pop()?,
            umem: Rc::clone(self),
            first: (KERNEL_HEADROOM + HEADROOM) as u16,
            len: len as u16,
            meta: Meta::default(),
        })
    }

    /// Lends at most `count` chunks to the kernel, by the address that it knows them by.
    pub(super) fn lend(&self, count: u32, mut to: impl FnMut(u64)) -> u32 {
        let mut free = self.free.borrow_mut();
        let kept = free.len().saturating_sub(count as usize);
        let lent = free.len() - kept;
        for chunk in free.drain(kept..).rev() {
            to(u64::from(chunk) * self.region.chunk_len as u64);
        }
        lent as u32
    }

    /// The chunk in which an address of the kernel's lies, and the offset there.
    fn place(&self, address: u64) -> Option<(u32, usize)> {
        let chunk = u32::try_from(address / self.region.chunk_len as u64).ok()?;
        let offset = (address % self.region.chunk_len as u64) as usize;
        (chunk < self.region.count).then_some((chunk, offset))
    }

    /// Takes a chunk back from the kernel.
    pub(super) fn take_back(&self, address: u64) {
        if let Some((chunk, _)) = self.place(address) {
            self.free.borrow_mut().push(chunk);
        }
    }

    /// Takes a frame over that the kernel has received into a chunk lent to it; none if it does not lie in one.
    pub(super) fn receive(self: &Rc<Self>, address: u64, len: u32) -> Option<XdpFrame> {
        let (chunk, first) = self.place(address)?;
        if first < TAG_LEN || first + len as usize > self.region.chunk_len {
            self.free.borrow_mut().push(chunk);
            return None;
        }
        Some(XdpFrame {
            umem: Rc::clone(self),
            chunk,
            first: first as u16,
            len: len as u16,
            meta: Meta::default(),
        })
    }
}

/// One Ethernet frame in a chunk of the worker's memory; dropping it gives the chunk back.
pub struct XdpFrame {
    umem: Rc<Umem>,
    chunk: u32,
    /// Where in the chunk the frame begins: at [`TAG_LEN`] or later.
    first: u16,
    len: u16,
    meta: Meta,
}

impl XdpFrame {
    /// The first byte of the chunk.
    fn chunk(&self) -> *mut u8 {
        let offset = self.chunk as usize * self.umem.region.chunk_len;
        // SAFETY: `chunk` is below the region's count, so the offset stays inside its mapping.
        unsafe { self.umem.region.memory.as_ptr().add(offset) }
    }

    /// Whether the frame lies in this memory.
    pub(super) fn is_in(&self, umem: &Rc<Umem>) -> bool {
        Rc::ptr_eq(&self.umem, umem)
    }

    pub(super) fn set_meta(&mut self, meta: Meta) {
        self.meta = meta;
    }

    /// Takes the tag, if there is one, out of the frame.
    pub(super) fn take_tag(&mut self) -> Option<u16> {
        let bytes = self.bytes_mut();
        if bytes.len() < ETHERNET_LEN + TAG_LEN || bytes[12..14] != TPID_8021Q.to_be_bytes() {
            return None;
        }
        let tci = u16::from_be_bytes([bytes[14], bytes[15]]);
        bytes.copy_within(..12, TAG_LEN);
        self.first += TAG_LEN as u16;
        self.len -= TAG_LEN as u16;
        Some(tci)
    }

    /// Puts a tag into the frame, which is at least an Ethernet header long.
    pub(super) fn put_tag(&mut self, tci: u16) {
        self.first -= TAG_LEN as u16;
        self.len += TAG_LEN as u16;
        let bytes = self.bytes_mut();
        bytes.copy_within(TAG_LEN..TAG_LEN + 12, 0);
        bytes[12..14].copy_from_slice(&TPID_8021Q.to_be_bytes());
        bytes[14..16].copy_from_slice(&tci.to_be_bytes());
    }

    /// Lends the frame to the kernel, to be sent; [`Umem::take_back`] ends that.
    pub(super) fn lend(self) -> libc::xdp_desc {
        let chunk = u64::from(self.chunk) * self.umem.region.chunk_len as u64;
        let descriptor = libc::xdp_desc {
            addr: chunk + u64::from(self.first),
            len: u32::from(self.len),
            options: 0,
        };
        let mut frame = std::mem::ManuallyDrop::new(self);
        // SAFETY: the reference is released here in place of the drop that will not happen, and not used again.
        unsafe { std::ptr::drop_in_place(&raw mut frame.umem) };
        descriptor
    }
}

impl Packet for XdpFrame {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`; a shared borrow of the only owner.
        unsafe {
            std::slice::from_raw_parts(
                self.chunk().add(usize::from(self.first)),
                usize::from(self.len),
            )
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `first + len` never exceeds the chunk; the memory is initialised (mapped zeroed); and this frame alone
        // owns the chunk, which neither another frame has nor a ring of the kernel's.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.chunk().add(usize::from(self.first)),
                usize::from(self.len),
            )
        }
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = usize::from(self.first) + len <= self.umem.region.chunk_len;
        if fits {
            self.len = len as u16;
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

impl Drop for XdpFrame {
    fn drop(&mut self) {
        self.umem.free.borrow_mut().push(self.chunk);
    }
}

impl std::fmt::Debug for XdpFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpFrame")
            .field("len", &self.len)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn umem(count: u32, mtu: u16) -> Rc<Umem> {
        Umem::new(Region::map(count, mtu).expect("memory"))
    }

    #[test]
    fn chunks_are_apart_and_come_back() {
        let umem = umem(4, 1500);
        let longest = room(2048);
        let mut frames: Vec<_> = (0..4)
            .map(|_| umem.take(longest).expect("four chunks"))
            .collect();
        assert!(umem.take(60).is_none(), "all are taken");
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.bytes_mut().fill(i as u8);
        }
        for (i, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|byte| *byte == i as u8));
        }
        drop(frames);
        assert_eq!(umem.lend(9, |_| ()), 4);
    }

    #[test]
    fn a_chunk_is_as_long_as_the_mtu_asks_for() {
        assert_eq!(umem(2, 1500).region.chunk_len, 2048);
        assert_eq!(umem(2, MTU_MAX).region.chunk_len, 4096);
        assert!(Region::map(2, MTU_MAX + 1).is_err());
    }

    #[test]
    fn what_is_lent_is_taken_back_once() {
        let umem = umem(2, 1500);
        let descriptor = umem.take(60).expect("free").lend();
        assert_eq!(descriptor.len, 60);
        assert_eq!(umem.free.borrow().len(), 1);
        umem.take_back(descriptor.addr);
        assert_eq!(umem.free.borrow().len(), 2);
        assert_eq!(Rc::strong_count(&umem), 1, "no frame is left behind");
    }

    #[test]
    fn a_descriptor_beyond_its_chunk_is_no_frame() {
        let umem = umem(2, 1500);
        let mut lent = Vec::new();
        umem.lend(2, |address| lent.push(address));
        for (address, len) in [
            (lent[0], 60),
            (lent[0] + 2000, 49),
            (2 * 2048, 60),
            (u64::MAX, 1),
        ] {
            assert!(umem.receive(address, len).is_none(), "{address} {len}");
        }
        assert_eq!(umem.free.borrow().len(), 2, "those that are ours came back");
    }

    #[test]
    fn a_tag_goes_in_and_comes_out() {
        let umem = umem(2, 1500);
        let mut frame = umem.take(60).expect("free");
        for (i, byte) in frame.bytes_mut().iter_mut().enumerate() {
            *byte = i as u8;
        }
        let before = frame.bytes().to_vec();
        assert_eq!(frame.take_tag(), None);
        frame.put_tag(0x2064);
        assert_eq!(frame.bytes().len(), 64);
        assert_eq!(frame.bytes()[12..18], [0x81, 0x00, 0x20, 0x64, 12, 13]);
        assert_eq!(frame.take_tag(), Some(0x2064));
        assert_eq!(frame.bytes(), before);
    }
}
