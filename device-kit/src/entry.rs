//! `main` of a device process: arguments, log, panic policy, exit code.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};
use std::sync::Mutex;

use clap::Parser;
use host_kit::core_dump;
use host_kit::log_writer::LogWriter;
use host_kit::sandbox::{self, Needs};
use nix::sys::stat::{Mode, umask};
use tracing::Level;

use crate::args::Common;
use crate::error::ProcessError;

/// Parses the arguments, of which `common` are those that all devices have, and runs the device. `name`
/// begins its error message.
pub fn main<A: Parser, E: Error>(
    name: &'static str,
    common: impl FnOnce(&A) -> &Common,
    run: impl FnOnce(&A) -> Result<(), E>,
) -> ExitCode {
    let args = A::parse();
    let common = common(&args);
    log(name, common.verbose);
    abort_on_panic();
    // Sockets and records are for our user alone.
    umask(Mode::from_bits_truncate(0o077));
    core_dump::leave_out_shared_memory();
    if let Err(error) = sandbox::start(name, common.seccomp, libc::STDERR_FILENO).and_then(|()| confine()) {
        return failed(name, &ProcessError::Host { what: "system calls cannot be filtered", source: error });
    }
    match run(&args) {
        // Not by return: the library's threads may be in the middle of something, and nothing of it counts
        // any more.
        Ok(()) => process::exit(0),
        Err(error) => failed(name, &error),
    }
}

fn failed(name: &str, error: &dyn Error) -> ExitCode {
    // Whoever would read it may be gone.
    let _ = writeln!(std::io::stderr(), "{name}: {}", host_kit::error::chain(error));
    ExitCode::FAILURE
}

/// What is needed to open what the arguments name, and all that a device's threads need after that.
fn confine() -> io::Result<()> {
    sandbox::confine(Needs::all() - Needs::KVM - Needs::VCPU - Needs::CHILDREN - Needs::NAMES - Needs::TERMINAL)
}

/// To standard error, from where the VMM passes it on.
fn log(name: &'static str, verbose: u8) {
    let level = [Level::INFO, Level::DEBUG, Level::TRACE][usize::from(verbose.min(2))];
    let writer = Mutex::new(LogWriter::new(name, std::io::stderr()));
    let to = tracing_subscriber::fmt().with_writer(writer).with_target(false).log_internal_errors(false);
    to.with_ansi(std::io::stderr().is_terminal()).with_max_level(level).init();
}

/// A device with a dead thread would hang its guest in silence; a dead process is noticed. The first process
/// of a namespace ends by SIGSEGV here: no signal that it sends itself has any effect.
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        process::abort();
    }));
}
