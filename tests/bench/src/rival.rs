//! The same guest under another fault-tolerant system, in the same run.
//!
//! In: a set-up. Out: records of the other system, or a record that says why there is none. Each part is
//! measured by a process of its own with a time limit: what crashes or hangs there is a result, and leaves
//! nothing behind.

mod colo;
mod qmp;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use engine_tests::{Machine, die_with_us};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::load::Effort;
use crate::record::{Record, Report, System};
use crate::setup::Setup;

/// What one part of a measurement may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A system to compare with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Rival {
    /// QEMU's COLO: both hosts run the guest, a checkpoint is taken when their packets differ
    Colo,
}

/// What is measured at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// Latency of requests
    Latency,
    /// Speed of a page writer, and stalls
    Writer,
}

impl Part {
    fn metric(self) -> &'static str {
        match self {
            Self::Latency => "latency_added",
            Self::Writer => "writer_protected",
        }
    }
}

/// Measures `parts`, each in a process of its own.
pub fn measure(setup: &Setup, quick: bool, parts: &[Part], report: &mut Report) {
    for &part in parts {
        match run(setup, quick, part) {
            Ok(records) => report.extend(records),
            Err(reason) => report.add_failure(System::QemuColo, setup, part.metric(), &reason),
        }
    }
}

/// What that process does: prints its records, one a line.
pub fn child(setup: &Setup, effort: &Effort, part: Part) -> std::io::Result<()> {
    let mut report = Report::of(System::QemuColo);
    match part {
        Part::Latency => colo::latency(setup, effort, &mut report),
        Part::Writer => colo::writer(setup, effort, &mut report),
    }
    for record in report.records() {
        println!("{}", serde_json::to_string(record)?);
    }
    Ok(())
}

fn run(setup: &Setup, quick: bool, part: Part) -> Result<Vec<Record>, String> {
    let machine = Machine::claim();
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    let part = part.to_possible_value().expect("a part that has a name");
    command.args(["--rival-part", part.get_name(), "--pages", &setup.pages.to_string()]);
    command.args(["--vcpus", &setup.vcpus.to_string(), "--memory", &setup.mem_mib.to_string()]);
    command.args(quick.then_some("--quick"));
    // Its files are in a folder of ours, and go with it however it ends.
    command
        .env("TMPDIR", machine.dir())
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    die_with_us(&mut command);
    let output = output(command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return said.lines().map(serde_json::from_str).collect::<Result<_, _>>().map_err(|error| error.to_string());
    }
    let mut reason = last_words(&String::from_utf8_lossy(&output.stderr));
    for log in logs(machine.dir()) {
        reason = format!("{reason}; QEMU: {log}");
    }
    Err(reason)
}

/// Waits for the end of `command`, up to the limit; nothing of its process group is left then.
fn output(mut command: Command) -> Result<Output, String> {
    let child = command.spawn().map_err(|error| error.to_string())?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || _ = sender.send(child.wait_with_output()));
    let output = receiver.recv_timeout(LIMIT);
    // Gone already: fine. Its QEMU processes are of its group.
    let _ = killpg(group, Signal::SIGKILL);
    waiter.join().map_err(|_| "lost a process".to_owned())?;
    let output = output.map_err(|_| format!("no result after {} s", LIMIT.as_secs()))?;
    output.map_err(|error| error.to_string())
}

/// The last line that a process printed, without what the standard library adds to a panic.
fn last_words(text: &str) -> String {
    let added = |line: &&str| !line.is_empty() && !line.starts_with("note: ") && !line.starts_with("thread '");
    text.lines().map(str::trim).rfind(added).unwrap_or("it ended without a word").to_owned()
}

/// The last line of each log of a QEMU process below `dir`.
fn logs(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(logs(&path));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            found.extend(text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_a_panic_says() {
        let text = "thread 'main' (7) panicked at tests/engine/src/client.rs:178:13:\nthe guest does not answer request 4\n\
             note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
        assert_eq!(last_words(text), "the guest does not answer request 4");
        assert_eq!(last_words("\n"), "it ended without a word");
    }

    #[test]
    fn a_process_that_fails_is_reported_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo why >&2; exit 3"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let output = output(command).expect("a process that ends");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"out\n"[..]));
        assert_eq!(last_words(&String::from_utf8_lossy(&output.stderr)), "why");
    }
}
