//! Runs one command: route, request, what is printed.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use serde_json::Value;

use crate::args::{Arguments, Command, FtCommand};
use crate::client::{Client, ClientError};
use crate::{ft, plain, witness};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The request was not done.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration from {name}: {source}")]
    ReadConfig {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not JSON.
    #[error("the configuration in {name} is not JSON: {source}")]
    ParseConfig {
        /// Name of the file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An option of `ft protect`.
    #[error(transparent)]
    Option(#[from] pollux_api::options::OptionError),
    /// A witness's record.
    #[error(transparent)]
    Witness(#[from] witness::RecordError),
    /// Nobody to send the command to.
    #[error("--api-socket PATH is missing: which VMM?")]
    NoSocket,
    /// Protection was not reached.
    #[error("the VM is not protected: {0}")]
    NotProtected(String),
    /// What we print cannot be written.
    #[error("cannot write: {0}")]
    Print(#[from] io::Error),
}

impl CommandError {
    /// Whether the reader of our output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The error for people: several reasons become a list.
    pub fn text(&self) -> String {
        match self {
            Self::Client(ClientError::Refused { reasons, .. }) if is_list(reasons) => {
                format!("{}:\n  - {}", reasons[1], reasons[2..].join("\n  - "))
            }
            _ => self.to_string(),
        }
    }
}

/// The preflight of `ft protect` answers with all reasons, which are not causes of each other.
fn is_list(reasons: &[String]) -> bool {
    reasons.len() > 2 && reasons[1] == "The VM cannot be protected"
}

/// Runs it.
///
/// # Errors
/// Why it was not done.
pub fn run(arguments: Arguments) -> Result<(), CommandError> {
    let command = match arguments.command {
        Command::Witness(command) => return witness::run(&command),
        command => command,
    };
    let client = Client::new(&arguments.api_socket.ok_or(CommandError::NoSocket)?)?;
    let plain = |route: &str| Ok(client.put(route, Vec::new())?);
    match command {
        Command::Ping => show(&client.get("vmm.ping")?),
        Command::Info => show(&client.get("vm.info")?),
        Command::Counters => show(&client.get("vm.counters")?),
        Command::Create { config } => Ok(client.put("vm.create", read_config(&config)?)?),
        Command::Boot => plain("vm.boot"),
        Command::Shutdown => plain("vm.shutdown"),
        Command::Reboot => plain("vm.reboot"),
        Command::Delete => plain("vm.delete"),
        Command::Pause => plain("vm.pause"),
        Command::Resume => plain("vm.resume"),
        Command::PowerButton => plain("vm.power-button"),
        Command::Nmi => plain("vm.nmi"),
        Command::ShutdownVmm => plain("vmm.shutdown"),
        Command::Ft(FtCommand::Protect(protect)) => ft::protect::protect(&client, &protect),
        Command::Ft(FtCommand::Status { json: true }) => show(&client.get("ft.status")?),
        Command::Ft(FtCommand::Status { json: false }) => {
            let status = serde_json::from_value(client.look("ft.status")?).map_err(ClientError::from)?;
            Ok(writeln!(io::stdout(), "{}", ft::status::table(&status))?)
        }
        Command::Ft(FtCommand::Stop) => plain("ft.stop"),
        Command::Ft(FtCommand::Suspend) => plain("ft.suspend"),
        Command::Ft(FtCommand::Resume(shown)) => ft::protect::resume(&client, &shown),
        Command::Ft(FtCommand::Switchover(planned)) => ft::moves::run(&client, "ft.switchover", &planned),
        Command::Ft(FtCommand::TestFailover(planned)) => ft::moves::run(&client, "ft.test-failover", &planned),
        Command::Ft(FtCommand::Events { json, follow }) => ft::events::run(&client, json, follow),
        Command::Witness(command) => witness::run(&command),
    }
}

/// Prints JSON: indented for people, in one line for programs.
pub fn show(value: &Value) -> Result<(), CommandError> {
    let mut out = io::stdout();
    if out.is_terminal() {
        writeln!(out, "{}", plain::json(&format!("{value:#}")))?
    } else {
        writeln!(out, "{}", plain::json(&value.to_string()))?
    }
    Ok(())
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
