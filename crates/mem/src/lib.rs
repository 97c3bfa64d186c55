//! Prefetch, comparison of many at once, huge-page memory for the packet path, and the heap's settings: a small audited
//! leaf.
//!
//! [`Table`] is a fixed array of plain integers that starts as zero; [`Slab`] a fixed array of
//! values that fills from the front. Both sit in anonymous memory that costs nothing until it is
//! touched, in huge pages where the system has them.

pub mod heap;
pub mod lanes;
mod region;
mod slab;
mod table;

pub use slab::Slab;
pub use table::{Table, Zeroable};

/// Asks the processor to fetch the cache line at `at`. A hint: any address is harmless.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program can observe; SSE is part
    // of the x86-64 baseline.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
