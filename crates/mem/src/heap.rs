//! The heap of a process that does much at once now and then, and little most of the time.

/// Lets the C library's allocator give memory back soon. Left to itself it keeps an arena for nearly every thread, and
/// once a large block was freed it keeps that much in each of them. To be called before there are threads.
pub fn give_back() {
    /// Blocks from here on are mappings of their own, which go when they are freed.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const LARGE_BYTES: libc::c_int = 256 * 1024;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` changes settings of the allocator and touches nothing that was allocated. What it does not
    // know it refuses, which changes how much memory is used and nothing else.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // Setting either threshold also ends their growth.
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_comes_and_goes_as_before() {
        super::give_back();
        for len in [1, 300 * 1024, 8 << 20] {
            let block = vec![7_u8; len];
            let moved = std::thread::spawn(move || block.iter().filter(|byte| **byte == 7).count());
            assert_eq!(moved.join().unwrap(), len);
        }
    }
}
