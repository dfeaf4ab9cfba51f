//! See `fuzz::mirror`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::mirror::run(input));
