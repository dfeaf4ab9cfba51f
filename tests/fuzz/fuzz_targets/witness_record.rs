//! See `fuzz::witness_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::witness_record::run(input));
