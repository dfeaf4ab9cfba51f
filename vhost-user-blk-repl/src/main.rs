//! `vhost-user-blk-repl`: flags in, exit code out.

use std::io::IsTerminal;
use std::process::{self, ExitCode};

use clap::Parser;
use tracing::Level;
use vhost_user_blk_repl::args::Args;
use vhost_user_blk_repl::record::show::{Show, show};
use vhost_user_blk_repl::run::run;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "record") {
        return tell_record();
    }
    let args = Args::parse();
    let level = if args.verbose { Level::DEBUG } else { Level::INFO };
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(ansi).with_max_level(level).init();
    end_on_panic();
    match run(&args) {
        // Not by return: the library's threads may be in the middle of something, and nothing of it counts any more.
        Ok(()) => process::exit(0),
        Err(e) => {
            eprintln!("vhost-user-blk-repl: {}", host_kit::error::chain(&e));
            ExitCode::FAILURE
        }
    }
}

fn tell_record() -> ExitCode {
    let Show { image, record, json } = Show::parse_from(std::env::args_os().skip(1));
    match show(&image, record.as_deref(), json) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("vhost-user-blk-repl: cannot read the record of {}: {e}", image.display());
            ExitCode::FAILURE
        }
    }
}

/// A disk with a dead thread would hang its guest in silence; a dead process is noticed.
fn end_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        process::abort();
    }));
}
