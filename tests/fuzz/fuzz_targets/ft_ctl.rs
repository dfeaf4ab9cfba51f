//! See `fuzz::ft_ctl`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::ft_ctl::run(input));
