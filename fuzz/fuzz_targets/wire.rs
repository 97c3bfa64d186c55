//! Any bytes as a frame on every port of a worker.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound(input));

// The corpus is hexadecimal, for people; what is mutated is the frame that it means. Three times out of four it
// gets right checksums, without which nothing behind them is looked at.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let frame = decode(&data[..size]);
    data[..frame.len()].copy_from_slice(&frame);
    let size = libfuzzer_sys::fuzzer_mutate(data, frame.len(), max_size);
    if !seed.is_multiple_of(4)
        && let Some(packet) = data[..size].get_mut(14..)
    {
        right_checksums(packet);
    }
    size
});

include!("../../crates/engine/tests/corpus/sound.rs");
include!("../../crates/engine/tests/corpus/checksums.rs");
