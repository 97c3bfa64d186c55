//! Any bytes as a DNS client's message.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound_query(&decode(input)));

include!("../hex.rs");
include!("../../crates/dns/tests/corpus/query.rs");
