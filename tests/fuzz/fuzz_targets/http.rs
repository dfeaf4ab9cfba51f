//! See `fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::http::run(input));
