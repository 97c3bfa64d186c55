//! Any bytes as what is behind the UDP header of a tunnel.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sound_in_tunnel(&decode(input)));

include!("../decode.rs");
include!("../../crates/engine/tests/corpus/tunnel.rs");
include!("../../crates/engine/tests/corpus/checksums.rs");
