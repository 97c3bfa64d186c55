// The corpus is hexadecimal, for people; what is mutated are the bytes that it means.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let bytes = decode(&data[..size]);
    data[..bytes.len()].copy_from_slice(&bytes);
    libfuzzer_sys::fuzzer_mutate(data, bytes.len(), max_size)
});

include!("decode.rs");
