//! The `pollux-vmm` command: puts the parts together and turns their outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pollux_vmm::run::run(std::env::args_os())
}
