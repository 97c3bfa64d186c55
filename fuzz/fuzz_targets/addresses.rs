//! Any bytes as what DHCP servers and routers say to a worker that asks for addresses.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| heard(input));

include!("../hex.rs");
include!("../../crates/engine/tests/corpus/addresses.rs");
include!("../../crates/engine/tests/corpus/checksums.rs");
