//! Questions to the agent inside the guest: one line, its output, then `=STATUS`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::namespace::Namespace;
use crate::topology::GUEST;
use crate::{Error, Result, wait};

const PORT: u16 = 7000;

/// What tells one boot of the guest from another.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    /// The kernel's random id of this boot.
    pub id: String,
    /// Seconds since boot, by the guest's own clock.
    pub uptime_s: f64,
}

/// Runs one line of shell in the guest and gives back what it prints.
///
/// # Errors
/// When the guest cannot be reached or the line fails.
pub fn ask(client: &Namespace, line: &str) -> Result<String> {
    ask_within(client, line, Duration::from_secs(20))
}

/// As [`ask`], for a line that may take `limit`.
///
/// # Errors
/// As `ask`.
pub fn ask_within(client: &Namespace, line: &str, limit: Duration) -> Result<String> {
    let server = SocketAddr::from((GUEST, PORT));
    let stream = client.run(|| {
        TcpStream::connect_timeout(&server, Duration::from_secs(2)).map_err(Error::io("cannot reach the guest's agent"))
    })?;
    stream.set_read_timeout(Some(limit)).map_err(Error::io("cannot set a time limit"))?;
    (&stream).write_all(format!("{line}\n").as_bytes()).map_err(Error::io("cannot ask the agent"))?;
    let mut output = String::new();
    for answer in BufReader::new(&stream).lines() {
        let answer = answer.map_err(Error::io("the agent does not answer"))?;
        match answer.strip_prefix('=') {
            Some("0") => return Ok(output),
            Some(status) => {
                return Err(Error::Command { command: format!("guest: {line}"), status: status.into(), output });
            }
            None => {
                output.push_str(&answer);
                output.push('\n');
            }
        }
    }
    Err(Error::Protocol { from: "agent".into(), answer: output })
}

/// Which boot of the guest is running.
///
/// # Errors
/// When the agent cannot be asked.
pub fn boot(client: &Namespace) -> Result<Boot> {
    let id = ask(client, "boot-id")?.trim().to_owned();
    let uptime = ask(client, "uptime")?;
    let uptime_s = uptime.trim().parse().map_err(|_| Error::Protocol { from: "agent".into(), answer: uptime })?;
    Ok(Boot { id, uptime_s })
}

/// As [`boot`], as soon as the agent answers.
///
/// # Errors
/// When it does not within `limit`.
pub fn await_boot(client: &Namespace, limit: Duration) -> Result<Boot> {
    wait::until("answer of the guest's agent", limit, || boot(client).map(Some))
}
