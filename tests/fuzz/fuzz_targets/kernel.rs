//! See `fuzz::kernel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::kernel::run(input));
