//! See `fuzz::net_chains`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::net_chains::run(input));
