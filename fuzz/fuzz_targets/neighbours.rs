//! Any conversation of neighbours, right in every checksum.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| neighbours::sound(&decode(input)));

include!("../hex.rs");
include!("../../crates/engine/tests/corpus/checksums.rs");
include!("../../crates/engine/tests/corpus/node.rs");
include!("../../crates/engine/tests/corpus/neighbours.rs");
