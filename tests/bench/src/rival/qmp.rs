//! QEMU's monitor: commands and answers as lines of JSON, with events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// After this long without an answer QEMU hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// A connection to a monitor.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the monitor at `socket`, which may not be there yet.
    pub fn connect(socket: &Path) -> Self {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < LIMIT, "QEMU does not start: {error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(LIMIT)).expect("timeout of a socket");
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.line("a greeting");
        qmp.ask("qmp_capabilities", &json!({}));
        qmp
    }

    /// Gives a command; returns what it returned.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        let sent = writeln!(self.stream.get_mut(), "{request}");
        sent.unwrap_or_else(|error| panic!("QEMU does not take {command}: {error}"));
        loop {
            let mut answer = self.line(command);
            if answer.get("event").is_some() {
                self.events.push(answer);
                continue;
            }
            assert!(answer.get("error").is_none(), "QEMU refuses {command}: {answer}");
            return answer["return"].take();
        }
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<Value> {
        self.ask("query-status", &json!({}));
        std::mem::take(&mut self.events)
    }

    fn line(&mut self, wanted: &str) -> Value {
        let mut line = String::new();
        let len = self.stream.read_line(&mut line).unwrap_or_else(|error| panic!("QEMU and {wanted}: {error}"));
        assert!(len > 0, "QEMU ended at {wanted}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU's monitor: {error}: {line}"))
    }
}

/// Times from each stop of the guest to its next run, by the clock of the monitor.
pub fn pauses(events: &[Value]) -> Vec<Duration> {
    let mut stopped = None;
    let mut pauses = Vec::new();
    for event in events {
        let field = |name: &str| event["timestamp"][name].as_u64();
        let (Some(seconds), Some(micros)) = (field("seconds"), field("microseconds")) else { continue };
        let at = Duration::from_secs(seconds) + Duration::from_micros(micros);
        match event["event"].as_str() {
            Some("STOP") => stopped = Some(at),
            Some("RESUME") => pauses.extend(stopped.take().and_then(|stopped| at.checked_sub(stopped))),
            _ => {}
        }
    }
    pauses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, seconds: u64, micros: u64) -> Value {
        json!({"event": name, "timestamp": {"seconds": seconds, "microseconds": micros}})
    }

    #[test]
    fn a_pause_lasts_from_stop_to_resume() {
        let events = [
            event("RESUME", 1, 0),
            event("STOP", 1, 990_000),
            event("MIGRATION", 2, 0),
            event("RESUME", 2, 40_000),
            event("STOP", 3, 0),
            event("RESUME", 3, 7),
            event("STOP", 4, 0),
        ];
        assert_eq!(pauses(&events), [Duration::from_millis(50), Duration::from_micros(7)]);
    }
}
