//! A stretch of anonymous memory, zero until written, huge pages if there are any.

use std::io;
use std::ptr::NonNull;

/// Below this size huge pages would cost more memory than they save time.
const HUGE_PAGE: usize = 2 << 20;

/// An owned mapping. Its bytes read as zero until they are written.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and not bound to a thread.
unsafe impl Send for Region {}
// SAFETY: a shared `Region` hands out nothing but its address.
unsafe impl Sync for Region {}

impl Region {
    /// Maps at least `bytes` bytes, page-aligned.
    ///
    /// # Errors
    /// What `mmap` says, usually that the address space or the limit is exhausted.
    pub(crate) fn new(bytes: usize) -> io::Result<Region> {
        let len = bytes.max(1);
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if len >= HUGE_PAGE {
            // SAFETY: advice about the mapping made above. Whether it is taken changes speed
            // only, so the result is of no interest.
            unsafe { libc::madvise(at, len, libc::MADV_HUGEPAGE) };
        }
        let start = NonNull::new(at.cast()).expect("mmap returned a mapping, which is never at 0");
        Ok(Region { start, len })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, whole, and nothing can refer to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
