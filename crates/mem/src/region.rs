//! A stretch of anonymous memory, zero until written, huge pages if there are any.

use std::io;
use std::ptr::NonNull;

const PAGE: usize = 4096;

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
        let len = bytes
            .max(1)
            .checked_next_multiple_of(PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        if len < HUGE_PAGE {
            return Region::map(len);
        }
        // Begins with a huge page and ends with a small one, so that no huge page lies in two regions, of which one may
        // never be touched.
        let around = Region::map(
            len.checked_add(HUGE_PAGE)
                .ok_or(io::ErrorKind::OutOfMemory)?,
        )?;
        let region = around.cut(len);
        // SAFETY: advice about the mapping made above. Whether it is taken changes speed only, so the result is of no
        // interest.
        unsafe { libc::madvise(region.start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(region)
    }

    /// Maps `len` bytes, a multiple of a page.
    fn map(len: usize) -> io::Result<Region> {
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
        let start = NonNull::new(at.cast()).expect("mmap returned a mapping, which is never at 0");
        Ok(Region { start, len })
    }

    /// The first `len` bytes from a huge page's beginning on, of a region that is longer by a huge page; the rest is given
    /// back.
    fn cut(self, len: usize) -> Region {
        let whole = std::mem::ManuallyDrop::new(self);
        let start = whole.start.as_ptr();
        let before = start.align_offset(HUGE_PAGE);
        let behind = whole.len - before - len;
        // SAFETY: `before` is less than a huge page, so that `before + len` lies within the mapping.
        let (first, end) = unsafe { (start.add(before), start.add(before + len)) };
        for (at, bytes) in [(start, before), (end, behind)] {
            if bytes > 0 {
                // SAFETY: a part of the mapping made in `map`, in whole pages, to which nothing refers.
                unsafe { libc::munmap(at.cast(), bytes) };
            }
        }
        Region {
            start: NonNull::new(first).expect("it lies within a mapping"),
            len,
        }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: what is left of the mapping made in `map`, whole, and nothing can refer to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_region_begins_with_a_huge_page_and_can_be_written_to_its_end() {
        for bytes in [
            HUGE_PAGE,
            HUGE_PAGE + 1,
            5 * HUGE_PAGE - PAGE,
            3 * HUGE_PAGE + 5000,
        ] {
            let regions: Vec<Region> = (0..4).map(|_| Region::new(bytes).unwrap()).collect();
            for region in &regions {
                assert!(region.start().cast::<u8>().as_ptr().align_offset(HUGE_PAGE) == 0);
                for at in [0, bytes / 2, bytes - 1] {
                    // SAFETY: `at` lies within the region, which nobody else has.
                    unsafe {
                        let byte = region.start().add(at);
                        assert_eq!(byte.read(), 0);
                        byte.write(7);
                    }
                }
            }
        }
        assert!(Region::new(usize::MAX).is_err());
        assert!(Region::new(usize::MAX - 2 * HUGE_PAGE).is_err());
    }
}
