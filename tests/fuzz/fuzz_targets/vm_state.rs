//! See `fuzz::vm_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::vm_state::run(input));
