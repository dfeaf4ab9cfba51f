//! `ft events`: what happened, oldest first, once or as it happens.

use std::io::{self, Write};
use std::time::Duration;

use pollux_api::{EventRecord, Route};
use serde::Deserialize;
use serde_json::Value;

use crate::client::{Client, ClientError};
use crate::error::CommandError;
use crate::plain;

/// Interval between two reads of the events.
const INTERVAL: Duration = Duration::from_millis(500);

/// Runs it.
///
/// # Errors
/// When the VMM is not there any more.
pub fn run(client: &Client, json: bool, follow: bool) -> Result<(), CommandError> {
    let mut seen = 0;
    loop {
        let events: Vec<Value> = serde_json::from_value(client.get(Route::FtEvents)?).map_err(ClientError::from)?;
        let mut out = io::stdout().lock();
        for raw in events {
            let event = EventRecord::deserialize(plain::value(raw.clone())).map_err(ClientError::from)?;
            if event.seq <= seen {
                continue;
            }
            seen = event.seq;
            if json { writeln!(out, "{}", plain::json(&raw.to_string()))? } else { writeln!(out, "{}", line(&event))? }
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// One event in one line.
fn line(event: &EventRecord) -> String {
    let mut line = format!("{} {}", event.time, event.event);
    match &event.detail {
        Value::Null => {}
        Value::Object(map) => {
            for (key, value) in map {
                let text = value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
                line.push_str(&format!(" {key}={text}"));
            }
        }
        other => line.push_str(&format!(" {other}")),
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_line_each() {
        let parse = |value| line(&serde_json::from_value(value).unwrap());
        let event =
            json!({"seq": 1, "time": "2026-01-01T00:00:00Z", "event": "protected", "detail": {"term": 3, "by": "x y"}});
        assert_eq!(parse(event), "2026-01-01T00:00:00Z protected by=\"x y\" term=3");
        assert_eq!(parse(json!({"seq": 2, "time": "t", "event": "own_stall", "detail": {}})), "t own_stall");
    }
}
