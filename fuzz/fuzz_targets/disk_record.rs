//! Any bytes where a record, a snapshot or a backup may stand on a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cluster::decode::from_a_disk(&decode(input)));

include!("../hex.rs");
