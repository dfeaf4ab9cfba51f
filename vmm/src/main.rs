//! The `pollux-vmm` command.

fn main() {}
