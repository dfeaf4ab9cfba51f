//! Waiting for outside conditions with a limit, and giving up at once when the run is interrupted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How often a condition outside this process is looked at: there is nothing to block on.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// To look may mean to start a program, which takes long in an emulated machine: of the time that is waited
/// no more than a fifth is spent on it.
const REST: u32 = 4;
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(1);
/// Looks of the same that are enough.
const STEADY: usize = 5;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes SIGINT, SIGTERM and SIGHUP end the run in good order instead of killing this process.
///
/// # Errors
/// When a handler cannot be installed.
pub fn catch_signals() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag)).map_err(Error::io("cannot install a signal handler"))?;
    }
    Ok(())
}

/// Whether a signal asked the run to end.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Lets `duration` pass.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn pass(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if interrupted() {
            return Err(Error::Interrupted);
        }
        thread::sleep(left.min(LOOK_EVERY));
    }
    Ok(())
}

/// Asks `look` until what it gives has not changed for `span`; that.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, [`Error::Interrupted`], and those of `look`.
pub fn steady<T: PartialEq>(
    what: &str,
    span: Duration,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    // Not time alone: after a stall of the machine two looks may be far apart.
    let (mut seen, mut equal, mut since) = (look()?, 0, Instant::now());
    until(what, limit, || {
        let now = look()?;
        if now == seen {
            equal += 1;
        } else {
            (seen, equal, since) = (now, 0, Instant::now());
        }
        Ok((equal >= STEADY && since.elapsed() >= span).then_some(()))
    })?;
    Ok(seen)
}

/// Asks `look` until it gives a value. `Err` of `look` counts as "not yet", and the last one is told when
/// time is up.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, [`Error::Interrupted`].
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut last = None;
    loop {
        let began = Instant::now();
        match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error.chain()),
        }
        if interrupted() {
            return Err(Error::Interrupted);
        }
        if start.elapsed() >= limit {
            return Err(Error::Timeout { what: what.to_owned(), limit, last });
        }
        thread::sleep((began.elapsed() * REST).clamp(LOOK_EVERY, REST_MAX));
    }
}
