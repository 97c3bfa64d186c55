//! Any bytes as a frame on every port of a worker.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound(input));

// The corpus is hexadecimal, for people; what is mutated is the frame that it means. Three times out of four its IPv4
// header gets a right checksum, without which nothing behind it is looked at.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let frame = decode(&data[..size]);
    data[..frame.len()].copy_from_slice(&frame);
    let size = libfuzzer_sys::fuzzer_mutate(data, frame.len(), max_size);
    if !seed.is_multiple_of(4) {
        right_ipv4_checksum(&mut data[..size]);
    }
    size
});

/// Makes the checksum of an IPv4 header good, if there is one.
fn right_ipv4_checksum(frame: &mut [u8]) {
    let Some((ethernet, packet)) = frame.split_at_mut_checked(14) else {
        return;
    };
    let header_len = packet
        .first()
        .map_or(0, |first| usize::from(first & 0xf) * 4);
    if ethernet[12..] != [8, 0] || header_len < 20 || packet.len() < header_len {
        return;
    }
    packet[10..12].fill(0);
    let words = packet[..header_len].chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

include!("../../crates/engine/tests/corpus/sound.rs");
