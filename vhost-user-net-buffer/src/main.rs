//! Command line entry of the network card.

use std::process::ExitCode;

use vhost_user_net_buffer::args::Args;
use vhost_user_net_buffer::run;

fn main() -> ExitCode {
    device_kit::main("vhost-user-net-buffer", |args: &Args| &args.common, run)
}
