//! Any bytes as the body of a request to the management API.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| neuwerkd::decode::from_a_client(input));
