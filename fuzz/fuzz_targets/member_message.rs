//! Any bytes where a member's message or certificate may stand.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let bytes = decode(input);
    cluster::decode::from_a_member(&bytes);
    neuwerkd::decode::from_a_member(&bytes);
});

include!("../hex.rs");
