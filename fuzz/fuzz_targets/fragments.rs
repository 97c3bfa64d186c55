//! Any way to cut a datagram into pieces, with and without a tunnel around them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pieces::sound(&decode(input)));

include!("../hex.rs");
include!("../../crates/engine/tests/corpus/checksums.rs");
include!("../../crates/engine/tests/corpus/node.rs");
include!("../../crates/engine/tests/corpus/pieces.rs");
