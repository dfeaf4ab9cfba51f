//! What the test guest and the tests outside agree on: datagrams, and the patterns in memory and on disk.
//!
//! Pure: no I/O, no state, no allocation, so that the guest (no std) and the tests share the very same code.

#![no_std]
#![forbid(unsafe_code)]

pub mod pattern;
pub mod wire;
