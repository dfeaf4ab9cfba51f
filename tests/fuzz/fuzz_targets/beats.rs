//! See `fuzz::beats`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::beats::run(input));
