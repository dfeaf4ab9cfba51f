//! From a kernel image to a vCPU that executes it.

pub mod kernel;
pub mod params;
