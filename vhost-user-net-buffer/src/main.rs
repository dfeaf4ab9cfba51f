//! Command line entry of the network card.

use std::process::ExitCode;

use clap::Parser;
use tracing::Level;
use vhost_user_net_buffer::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    let level = [Level::INFO, Level::DEBUG, Level::TRACE][usize::from(args.verbose.min(2))];
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
    let Err(error) = vhost_user_net_buffer::run(&args) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vhost-user-net-buffer: {}", host_kit::error::chain(&error));
    ExitCode::FAILURE
}
