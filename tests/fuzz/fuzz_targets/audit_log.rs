//! See `fuzz::audit_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::audit_log::run(input));
