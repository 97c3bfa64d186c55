//! A fixed array of plain integers that starts as zero.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use crate::region::Region;

/// Types of which all bytes zero is a value.
///
/// # Safety
/// All bytes zero must be a valid value, the type must need no more than page alignment and have
/// no drop glue.
pub unsafe trait Zeroable {}

// SAFETY: integers are valid whatever their bytes are.
unsafe impl Zeroable for u8 {}
// SAFETY: as above.
unsafe impl Zeroable for u16 {}
// SAFETY: as above.
unsafe impl Zeroable for u32 {}
// SAFETY: as above.
unsafe impl Zeroable for u64 {}
// SAFETY: it has the size, the alignment and the values of the integer.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: an array is valid when its elements are; it needs their alignment.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {}

/// A fixed array of `T`, zero at first, in memory that is touched only as it is used.
#[derive(Debug)]
pub struct Table<T: Zeroable> {
    region: Region,
    len: usize,
    items: PhantomData<T>,
}

impl<T: Zeroable> Table<T> {
    /// A table of `len` zeros.
    ///
    /// # Errors
    /// When the system refuses the address space.
    pub fn new(len: usize) -> io::Result<Table<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Table {
            region: Region::new(bytes)?,
            len,
            items: PhantomData,
        })
    }

    /// Asks the processor to fetch the item; out of range is harmless.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        crate::prefetch(self.at().as_ptr().wrapping_add(index));
    }

    fn at(&self) -> NonNull<T> {
        self.region.start().cast()
    }
}

impl<T: Zeroable> Deref for Table<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the region is page-aligned, holds `len` items, lives as long as `self`, and its
        // bytes, zero or written through `deref_mut`, are valid `T`s by `Zeroable`.
        unsafe { std::slice::from_raw_parts(self.at().as_ptr(), self.len) }
    }
}

impl<T: Zeroable> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access the only one.
        unsafe { std::slice::from_raw_parts_mut(self.at().as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_as_zero_and_keeps_what_is_written() {
        let mut table = Table::<[u16; 32]>::new(100_000).unwrap();
        assert_eq!(table.len(), 100_000);
        assert!(table.iter().all(|line| line.iter().all(|w| *w == 0)));
        table[99_999][31] = 7;
        table.prefetch(99_999);
        table.prefetch(usize::MAX);
        assert_eq!(table[99_999][31], 7);
        assert_eq!(table.as_ptr() as usize % 64, 0);
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Table::<u64>::new(usize::MAX / 2).is_err());
        assert!(Table::<u64>::new(1 << 59).is_err());
    }

    #[test]
    fn empty_is_fine() {
        assert!(Table::<u8>::new(0).unwrap().is_empty());
    }
}
