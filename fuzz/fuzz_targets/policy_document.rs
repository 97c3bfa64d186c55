//! Any bytes as a policy document, in JSON and in YAML.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound(input));

include!("../../crates/policy/tests/corpus/sound.rs");
