//! Any bytes at the join protocol, in every place where they may stand.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound(input));

include!("../../crates/cluster/tests/join_corpus/sound.rs");
