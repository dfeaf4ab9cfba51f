//! `ft switchover` and `ft test-failover`: have the VM go on at the other host, and tell how it went until it is protected again.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::status::Status;
use crate::args::Planned;
use crate::client::{Client, ClientError};
use crate::commands::CommandError;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the other host may take to run the VM and ask for this one as its standby.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Runs one of the two; `route` is the API's.
///
/// # Errors
/// When the VM could not leave, or this host is not its standby in the end.
pub fn run(client: &Client, route: &str, planned: &Planned) -> Result<(), CommandError> {
    let seen = events(client)?.last().map_or(0, number);
    let started = Instant::now();
    client.put(route, Vec::new())?;
    say(&format!("the VM is stopped here after {}", millis(started.elapsed())))?;
    if planned.no_wait {
        return Ok(());
    }
    let joined = wait_joined(client, seen)?;
    for line in account(&joined["detail"]) {
        say(&line)?;
    }
    wait_ready(client, number(&joined))?;
    say(&format!(
        "this host is its standby, and the VM is protected again, after {:.1} s",
        started.elapsed().as_secs_f64()
    ))
}

fn say(line: &str) -> Result<(), CommandError> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn number(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap_or_default()
}

fn events(client: &Client) -> Result<Vec<Value>, CommandError> {
    Ok(serde_json::from_value(client.look("ft.events")?).map_err(ClientError::from)?)
}

/// The event that the host which runs the VM now has made this one its standby.
fn wait_joined(client: &Client, seen: u64) -> Result<Value, CommandError> {
    let deadline = Instant::now() + JOIN_LIMIT;
    loop {
        let joined =
            events(client)?.into_iter().find(|event| number(event) > seen && event["event"] == "primary-joined");
        if let Some(joined) = joined {
            return Ok(joined);
        }
        if Instant::now() > deadline {
            let reason = "the other host has not asked for this one as its standby: is this one started with --ft listen=, and \
                          does the other one have it among its standby-peers? See `ft events` there";
            return Err(CommandError::NotProtected(reason.to_owned()));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// How the other host came to run the VM, in its own words.
fn account(joined: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let took_over = &joined["took_over"];
    let micros = |value: &Value| value.as_u64().map(|us| millis(Duration::from_micros(us)));
    if let Some(silence) = took_over["silence_ms"].as_u64() {
        lines.push(format!("detection: silent for {silence} ms"));
    }
    if let Some(total) = micros(&took_over["total_us"]) {
        lines.push(format!("takeover: {total} from the decision to the running guest"));
    }
    if let Some(gap) = micros(&took_over["gap_us"]) {
        lines.push(format!("gap: {gap} from the guest's last instruction here to its first one there"));
    }
    let text = |key: &str| joined[key].as_str().unwrap_or("?").to_owned();
    lines.push(format!("node {} at {} runs the VM in term {}", text("node"), text("address"), joined["term"]));
    lines
}

fn wait_ready(client: &Client, joined: u64) -> Result<(), CommandError> {
    loop {
        let status: Status = serde_json::from_value(client.look("ft.status")?).map_err(ClientError::from)?;
        if status.state == "standby-ready" {
            return Ok(());
        }
        let reset =
            events(client)?.into_iter().find(|event| number(event) > joined && event["event"] == "standby-reset");
        if let Some(reset) = reset {
            let reason = reset["detail"]["reason"].as_str().unwrap_or("the copy was interrupted").to_owned();
            return Err(CommandError::NotProtected(reason));
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_account_names_what_there_is() {
        let moved = json!({"node": "ab", "address": "10.0.0.2:5", "term": 7, "took_over": {"from": 1, "silence_ms": null,
            "total_us": 2500, "gap_us": 4200}});
        let lines = account(&moved).join("\n");
        assert!(
            lines.contains("gap: 4.2 ms") && lines.contains("takeover: 2.5 ms") && !lines.contains("silent"),
            "{lines}"
        );
        let failed = json!({"node": "ab", "address": "10.0.0.2:5", "term": 7, "took_over": {"from": 1, "silence_ms": 301,
            "total_us": 2500, "gap_us": null}});
        let lines = account(&failed).join("\n");
        assert!(lines.contains("silent for 301 ms") && !lines.contains("gap"), "{lines}");
        assert_eq!(account(&json!({"node": "ab", "address": "a", "term": 1, "took_over": null})).len(), 1);
    }
}
