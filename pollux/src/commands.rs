//! Runs one command: route, request, what is printed.

use std::io::{self, Read, Write};
use std::path::Path;

use pollux_api::Route;
use serde_json::Value;

use crate::args::{Arguments, Command, FtCommand};
use crate::client::{Client, ClientError};
use crate::error::CommandError;
use crate::print::show;
use crate::{audit, ft, pair, witness};

/// Runs it.
///
/// # Errors
/// Why it was not done.
pub fn run(arguments: Arguments) -> Result<(), CommandError> {
    let command = match arguments.command {
        Command::Witness(command) => return witness::run(&command),
        Command::Audit(command) => return audit::run(&command),
        Command::Pair(command) => return pair::run(command),
        command => command,
    };
    let client = Client::new(&arguments.api_socket.ok_or(CommandError::NoSocket)?)?;
    let plain = |route: Route| Ok(client.put(route, Vec::new())?);
    match command {
        Command::Ping => show(&client.get(Route::VmmPing)?),
        Command::Info => show(&client.get(Route::VmInfo)?),
        Command::Counters => show(&client.get(Route::VmCounters)?),
        Command::Create { config } => Ok(client.put(Route::VmCreate, read_config(&config)?)?),
        Command::Boot => plain(Route::VmBoot),
        Command::Shutdown => plain(Route::VmShutdown),
        Command::Reboot => plain(Route::VmReboot),
        Command::Delete => plain(Route::VmDelete),
        Command::Pause => plain(Route::VmPause),
        Command::Resume => plain(Route::VmResume),
        Command::PowerButton => plain(Route::VmPowerButton),
        Command::Nmi => plain(Route::VmNmi),
        Command::ShutdownVmm => plain(Route::VmmShutdown),
        Command::Ft(FtCommand::Protect(protect)) => ft::protect::protect(&client, &protect),
        Command::Ft(FtCommand::Status { json: true }) => show(&client.get(Route::FtStatus)?),
        Command::Ft(FtCommand::Status { json: false }) => {
            let status = serde_json::from_value(client.look(Route::FtStatus)?).map_err(ClientError::from)?;
            Ok(writeln!(io::stdout(), "{}", ft::status::table(&status))?)
        }
        Command::Ft(FtCommand::Stop) => plain(Route::FtStop),
        Command::Ft(FtCommand::Suspend) => plain(Route::FtSuspend),
        Command::Ft(FtCommand::Resume(shown)) => ft::protect::resume(&client, &shown),
        Command::Ft(FtCommand::Switchover(planned)) => ft::moves::run(&client, Route::FtSwitchover, &planned),
        Command::Ft(FtCommand::TestFailover(planned)) => ft::moves::run(&client, Route::FtTestFailover, &planned),
        Command::Ft(FtCommand::Events { json, follow }) => ft::events::run(&client, json, follow),
        Command::Witness(command) => witness::run(&command),
        Command::Audit(command) => audit::run(&command),
        Command::Pair(command) => pair::run(command),
    }
}

fn read_config(path: &Path) -> Result<Vec<u8>, CommandError> {
    let name = || if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let read = |source| CommandError::ReadConfig { name: name(), source };
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).map_err(read)?;
        text
    } else {
        std::fs::read(path).map_err(read)?
    };
    let config: Value =
        serde_json::from_slice(&text).map_err(|source| CommandError::ParseConfig { name: name(), source })?;
    Ok(config.to_string().into_bytes())
}
