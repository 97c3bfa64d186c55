//! Any bytes as what the process before has left.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: &[u8]| neuwerkd::decode::from_the_process_before(&decode(input))
);

include!("../hex.rs");
