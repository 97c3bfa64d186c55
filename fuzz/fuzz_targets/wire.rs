//! Any bytes as a frame on every port of a worker.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound(input));

include!("../../crates/engine/tests/corpus/sound.rs");
