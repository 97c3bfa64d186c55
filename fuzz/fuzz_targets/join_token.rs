//! Any text in a bootstrap token file: as a join token, and as what is on the command line.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound_token(input));

include!("../../crates/cluster/tests/join_corpus/sound_token.rs");
