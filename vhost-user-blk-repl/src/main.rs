//! `vhost-user-blk-repl`: flags in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use vhost_user_blk_repl::args::Args;
use vhost_user_blk_repl::record::show::{Show, show};
use vhost_user_blk_repl::run::run;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "record") {
        return tell_record();
    }
    device_kit::main("vhost-user-blk-repl", |args: &Args| &args.common, run)
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
