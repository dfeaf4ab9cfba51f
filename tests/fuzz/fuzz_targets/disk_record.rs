//! See `fuzz::disk_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::disk_record::run(input));
