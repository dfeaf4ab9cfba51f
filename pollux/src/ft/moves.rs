//! `ft switchover` and `ft test-failover`: have the VM go on at the other host, and tell how it went until it
//! is protected again.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use pollux_api::event::{Known, PrimaryJoined};
use pollux_api::status::State;
use pollux_api::{EventRecord, Route, Status};

use crate::args::Planned;
use crate::client::{Client, ClientError};
use crate::error::CommandError;

/// Interval between two reads of the events.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the other host may take to run the VM and ask for this one as its standby.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// How long the copy may stand still until nobody waits for it any more.
const STILL_LIMIT: Duration = Duration::from_secs(60);

/// Runs one of the two; `route` is the API's.
///
/// # Errors
/// When the VM could not leave, or this host is not its standby in the end.
pub fn run(client: &Client, route: Route, planned: &Planned) -> Result<(), CommandError> {
    let seen = events(client)?.last().map_or(0, |event| event.seq);
    let started = Instant::now();
    client.put(route, Vec::new())?;
    say(&format!("the VM is stopped here after {}", millis(started.elapsed())))?;
    if planned.no_wait {
        return Ok(());
    }
    let (seq, joined) = wait_joined(client, seen)?;
    for line in account(&joined) {
        say(&line)?;
    }
    wait_ready(client, seq)?;
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

fn events(client: &Client) -> Result<Vec<EventRecord>, CommandError> {
    Ok(serde_json::from_value(client.look(Route::FtEvents)?).map_err(ClientError::from)?)
}

/// What `choose` makes of the first event after number `seen` of which it makes something.
fn event_after<T>(
    client: &Client,
    seen: u64,
    choose: impl Fn(Known) -> Option<T>,
) -> Result<Option<(u64, T)>, CommandError> {
    let later = events(client)?.into_iter().filter(|event| event.seq > seen);
    Ok(later.filter_map(|event| Some((event.seq, choose(event.known()?)?))).next())
}

/// The event that the host which runs the VM now has made this one its standby, and its number.
fn wait_joined(client: &Client, seen: u64) -> Result<(u64, PrimaryJoined), CommandError> {
    let deadline = Instant::now() + JOIN_LIMIT;
    loop {
        let joined = |event| match event {
            Known::PrimaryJoined(joined) => Some(joined),
            Known::StandbyReset(_) => None,
        };
        if let Some(found) = event_after(client, seen, joined)? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let reason = "the other host has not asked for this one as its standby: is this one started with --ft listen=, and \
                          does the other one have it among its standby-peers? See `ft events` there";
            return Err(CommandError::NotProtected(reason.to_owned()));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// How the other host came to run the VM, by its own account.
fn account(joined: &PrimaryJoined) -> Vec<String> {
    let mut lines = Vec::new();
    let micros = |us| millis(Duration::from_micros(us));
    if let Some(took_over) = &joined.took_over {
        if let Some(silence) = took_over.silence_ms {
            lines.push(format!("detection: silent for {silence} ms"));
        }
        lines.push(format!("takeover: {} from the decision to the running guest", micros(took_over.total_us)));
        if let Some(gap) = took_over.gap_us.map(micros) {
            lines.push(format!("gap: {gap} from the guest's last instruction here to its first one there"));
        }
    }
    let PrimaryJoined { node, address, term, .. } = joined;
    lines.push(format!("node {node} at {address} runs the VM in term {term}"));
    lines
}

fn wait_ready(client: &Client, joined: u64) -> Result<(), CommandError> {
    let mut pace = Pace::begin(Instant::now());
    loop {
        let status: Status = serde_json::from_value(client.look(Route::FtStatus)?).map_err(ClientError::from)?;
        if status.state == State::StandbyReady {
            return Ok(());
        }
        if pace.is_still(&status, Instant::now()) {
            return Err(CommandError::NotProtected(format!(
                "the copy has not moved for {} s, the state is {}: see `ft status` on both hosts",
                STILL_LIMIT.as_secs(),
                status.state
            )));
        }
        let reset = |event| match event {
            Known::StandbyReset(reset) => Some(reset),
            Known::PrimaryJoined(_) => None,
        };
        if let Some((_, reset)) = event_after(client, joined, reset)? {
            let reason = reset.reason.unwrap_or_else(|| "the copy was interrupted".to_owned());
            return Err(CommandError::NotProtected(reason));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Whether a copy gets on. It may take hours, as long as it does.
struct Pace {
    seen: Option<(State, u64)>,
    moved: Instant,
}

impl Pace {
    fn begin(now: Instant) -> Self {
        Self { seen: None, moved: now }
    }

    /// Whether nothing has changed for too long.
    fn is_still(&mut self, status: &Status, now: Instant) -> bool {
        let memory = status.memory_sync.map_or(0, |copy| copy.done);
        let copied = status.disks.iter().map(|disk| disk.done).fold(memory, u64::wrapping_add);
        let seen = Some((status.state, copied));
        if self.seen != seen {
            (self.seen, self.moved) = (seen, now);
        }
        now.duration_since(self.moved) > STILL_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::status::Progress;
    use serde_json::{Value, json};

    use super::*;

    fn lines(joined: Value) -> Vec<String> {
        account(&serde_json::from_value(joined).unwrap())
    }

    #[test]
    fn a_copy_that_moves_may_take_its_time_and_one_that_stands_still_may_not() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut pace = Pace::begin(begin);
        let at = |done| Status {
            state: State::StandbySyncing,
            memory_sync: Some(Progress { done, ..Progress::default() }),
            ..Status::default()
        };
        for step in 0..100_u32 {
            assert!(!pace.is_still(&at(step.into()), begin + second * 59 * step));
        }
        let last = begin + second * 59 * 99;
        assert!(!pace.is_still(&at(99), last + STILL_LIMIT));
        assert!(pace.is_still(&at(99), last + STILL_LIMIT + second));
        let ready = Status { state: State::StandbyEmpty, ..Status::default() };
        assert!(!pace.is_still(&ready, last + STILL_LIMIT * 2), "another state is news");
    }

    #[test]
    fn the_account_names_what_there_is() {
        let moved = json!({"node": "ab", "address": "10.0.0.2:5", "term": 7, "took_over": {"from": 1, "silence_ms": null,
            "total_us": 2500, "gap_us": 4200}});
        let text = lines(moved).join("\n");
        assert!(
            text.contains("gap: 4.2 ms") && text.contains("takeover: 2.5 ms") && !text.contains("silent"),
            "{text}"
        );
        let failed = json!({"node": "ab", "address": "10.0.0.2:5", "term": 7, "took_over": {"from": 1, "silence_ms": 301,
            "total_us": 2500, "gap_us": null}});
        let text = lines(failed).join("\n");
        assert!(text.contains("silent for 301 ms") && !text.contains("gap"), "{text}");
        assert_eq!(lines(json!({"node": "ab", "address": "a", "term": 1, "took_over": null})).len(), 1);
    }
}
