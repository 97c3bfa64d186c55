//! Any bytes as an upstream's answer to a DNS question.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound_answer(&decode(input)));

include!("../hex.rs");
include!("../../crates/dns/tests/corpus/answer.rs");
