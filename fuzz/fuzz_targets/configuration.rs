//! Any bytes where a configuration file may stand.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| neuwerkd::decode::from_an_operator(input));
