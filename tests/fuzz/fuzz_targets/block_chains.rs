//! See `fuzz::block_chains`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::block_chains::run(input));
