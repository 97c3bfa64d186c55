//! A fixed array of values that fills from the front.

use std::io;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};
use std::ptr::NonNull;

use crate::region::Region;

/// Up to `capacity` values of `T` at stable indices, in memory that is touched only as it fills.
/// Values are never removed; the owner reuses their places.
#[derive(Debug)]
pub struct Slab<T: Copy> {
    region: Region,
    len: usize,
    capacity: usize,
    items: PhantomData<T>,
}

impl<T: Copy> Slab<T> {
    /// An empty slab.
    ///
    /// # Errors
    /// When the system refuses the address space.
    pub fn new(capacity: usize) -> io::Result<Slab<T>> {
        const { assert!(align_of::<T>() <= 4096, "the region is aligned to a page") }
        let bytes = capacity
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Slab {
            region: Region::new(bytes)?,
            len: 0,
            capacity,
            items: PhantomData,
        })
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many values it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends a value and returns its index; none when the slab is full.
    pub fn push(&mut self, value: T) -> Option<usize> {
        if self.len == self.capacity {
            return None;
        }
        let index = self.len;
        // SAFETY: `index < capacity`, so the place lies within the region, which is aligned for
        // `T`; `&mut self` makes the access the only one. `T: Copy` has no drop glue.
        unsafe { self.at().add(index).write(value) };
        self.len += 1;
        Some(index)
    }

    /// Asks the processor to fetch the whole value; out of range is harmless.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        let at = self.at().as_ptr().wrapping_add(index).cast::<[u8; 64]>();
        for line in 0..size_of::<T>().div_ceil(64) {
            crate::prefetch(at.wrapping_add(line));
        }
    }

    fn at(&self) -> NonNull<T> {
        self.region.start().cast()
    }
}

impl<T: Copy> Index<usize> for Slab<T> {
    type Output = T;
    #[inline(always)]
    fn index(&self, index: usize) -> &T {
        assert!(index < self.len, "no such place in the slab");
        // SAFETY: places below `len` have been written by `push` and lie within the region.
        unsafe { self.at().add(index).as_ref() }
    }
}

impl<T: Copy> IndexMut<usize> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, index: usize) -> &mut T {
        assert!(index < self.len, "no such place in the slab");
        // SAFETY: as in `index`; `&mut self` makes the access the only one.
        unsafe { self.at().add(index).as_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(64))]
    struct Entry([u8; 100]);

    #[test]
    fn fills_from_the_front_up_to_its_capacity() {
        let mut slab = Slab::new(3).unwrap();
        for i in 0..3u8 {
            assert_eq!(slab.push(Entry([i; 100])), Some(usize::from(i)));
        }
        assert_eq!(slab.push(Entry([9; 100])), None);
        slab[1] = Entry([7; 100]);
        slab.prefetch(2);
        slab.prefetch(1 << 40);
        assert_eq!([slab[0].0[99], slab[1].0[0], slab[2].0[5]], [0, 7, 2]);
        assert_eq!((slab.len(), slab.capacity()), (3, 3));
    }

    #[test]
    #[should_panic(expected = "no such place")]
    fn places_not_yet_filled_cannot_be_read() {
        let slab = Slab::<u64>::new(8).unwrap();
        let _ = slab[0];
    }
}
