//! See `fuzz::delta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::delta::run(input));
