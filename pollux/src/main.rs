//! The `pollux` command: talks to the API socket of a running `pollux-vmm`, as `ch-remote` does, and controls
//! its fault tolerance; shows and creates the record of a witness, makes pairs of hosts, and checks audit
//! logs, by itself.
//!
//! Exit code 0: done; 1: not, with the reasons on standard error.
#![forbid(unsafe_code)]

mod args;
mod audit;
mod client;
mod commands;
mod error;
mod ft;
mod pair;
mod place;
mod plain;
mod print;
mod renewal;
mod witness;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(shown) => {
            // Nobody to tell when the terminal is gone.
            let _ = shown.print();
            let asked = matches!(shown.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads us has read enough: `pollux ft events | head`.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "pollux: {}", plain::lines(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}
