//! Any bytes as what a peer tells of its grants.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound_grants(&decode(input)));

include!("../hex.rs");
include!("../../crates/grants/tests/corpus/grants.rs");
