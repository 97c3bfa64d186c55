//! Any bytes where a record, a snapshot or a backup may stand on a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let bytes = decode(input);
    cluster::decode::from_a_disk(&bytes);
    neuwerkd::decode::from_a_disk(&bytes);
});

include!("../hex.rs");
