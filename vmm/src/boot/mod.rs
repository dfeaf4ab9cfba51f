//! From a kernel image to a vCPU that executes it, and the tables that tell the kernel what machine this is.

pub mod acpi;
pub mod kernel;
pub mod params;
