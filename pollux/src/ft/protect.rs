//! `ft protect` and `ft resume`: ask, then show the copy until the VM is protected or it is clear that it
//! will not be.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use pollux_api::options::ProtectRequest;
use pollux_api::status::{CopyState, State};
use pollux_api::{Route, Status};
use serde_json::Value;

use crate::args::{Protect, Shown};
use crate::client::{Client, ClientError};
use crate::error::CommandError;
use crate::print::show;

/// Interval between two reads of the status.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long the copy may take to begin.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Protects the VM.
///
/// # Errors
/// Every reason why it cannot be protected, or why the copy did not complete.
pub fn protect(client: &Client, protect: &Protect) -> Result<(), CommandError> {
    let request = match &protect.options {
        Some(options) => ProtectRequest::parse(options)?.to_json().map_err(ClientError::from)?.to_string().into_bytes(),
        None => Vec::new(),
    };
    client.put(Route::FtProtect, request)?;
    follow(client, &protect.shown)
}

/// Protects the VM again after a suspension.
///
/// # Errors
/// When there was none, every reason why the VM cannot be protected, or why the copy did not complete.
pub fn resume(client: &Client, shown: &Shown) -> Result<(), CommandError> {
    client.put(Route::FtResume, Vec::new())?;
    follow(client, shown)
}

fn follow(client: &Client, shown: &Shown) -> Result<(), CommandError> {
    let last = if shown.no_wait { client.look(Route::FtStatus)? } else { wait(client)? };
    if shown.json {
        return show(&last);
    }
    let state = last["state"].as_str().unwrap_or_default();
    Ok(writeln!(io::stdout(), "{state}")?)
}

/// What a status means for a caller that waits for protection.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    Wait,
    Protected,
    Failed(String),
}

/// Judges a status. `begun`: a copy has been seen. `waited`: since the request.
fn judge(status: &Status, begun: bool, waited: Duration) -> Outlook {
    let reason = || status.last_error.clone().unwrap_or_else(|| format!("its state is {}", status.state));
    match status.state {
        State::Protected => Outlook::Protected,
        State::Syncing => Outlook::Wait,
        State::Fenced => Outlook::Failed(reason()),
        _ if begun => Outlook::Failed(reason()),
        _ if waited > START_LIMIT => Outlook::Failed(format!("the first copy has not begun, {}", reason())),
        _ => Outlook::Wait,
    }
}

fn wait(client: &Client) -> Result<Value, CommandError> {
    let started = Instant::now();
    let mut bars = Bars::default();
    let mut begun = false;
    loop {
        let raw = client.look(Route::FtStatus)?;
        let status: Status = serde_json::from_value(raw.clone()).map_err(ClientError::from)?;
        begun |= status.state == State::Syncing;
        bars.show(&status);
        match judge(&status, begun, started.elapsed()) {
            Outlook::Protected => {
                bars.finish();
                return Ok(raw);
            }
            Outlook::Failed(reason) => {
                bars.finish();
                return Err(CommandError::NotProtected(reason));
            }
            Outlook::Wait => std::thread::sleep(INTERVAL),
        }
    }
}

/// A bar for memory and one for each disk; on standard error, and only if that is a terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: HashMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, status: &Status) {
        if let Some(copy) = status.memory_sync {
            self.set("memory", copy.done, copy.total);
        }
        for disk in status.disks.iter().filter(|disk| disk.state == CopyState::Copying) {
            self.set(&disk.id, disk.done, disk.total);
        }
    }

    fn set(&mut self, name: &str, done: u64, total: u64) {
        let bar = self.bars.entry(name.to_owned()).or_insert_with(|| {
            let template = "{prefix:>10} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = self.all.add(ProgressBar::new(total).with_style(style.progress_chars("=> ")));
            bar.set_prefix(name.to_owned());
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    fn finish(&self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_stop_waiting() {
        let status = |state: State, error: Option<&str>| Status {
            state,
            last_error: error.map(str::to_owned),
            ..Status::default()
        };
        let now = Duration::ZERO;
        assert_eq!(judge(&status(State::Protected, None), false, now), Outlook::Protected);
        assert_eq!(judge(&status(State::Syncing, Some("old news")), true, START_LIMIT * 9), Outlook::Wait);
        assert_eq!(judge(&status(State::Unprotected, None), false, now), Outlook::Wait);
        assert_eq!(
            judge(&status(State::Solo, Some("standby lost")), true, now),
            Outlook::Failed("standby lost".to_owned())
        );
        assert_eq!(judge(&status(State::Fenced, None), false, now), Outlook::Failed("its state is fenced".to_owned()));
        assert!(matches!(judge(&status(State::Unprotected, None), false, START_LIMIT * 2), Outlook::Failed(_)));
    }
}
