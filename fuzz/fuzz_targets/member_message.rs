//! Any bytes where a member's message or certificate may stand.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cluster::decode::from_a_member(&decode(input)));

include!("../hex.rs");
