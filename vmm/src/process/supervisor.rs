//! Watches a device process: passes on what it logs, reaps it, and reports its end unless that was wanted.
//!
//! In: its standard error and its pidfd. Out: log lines, its last lines, its exit status. Never: the lock
//! while it waits.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::process::child::Child;
use crate::process::exits::{ChildExit, ChildExits};
use crate::process::lines::Lines;
use host_kit::log_limit::Limit;

/// How often to look for the end of a process that cannot be watched.
pub(super) const REAP_AGAIN: Duration = Duration::from_millis(20);
/// So many of its lines are logged in a [`LINES_PERIOD`]: what it logs may be about what the guest does, as
/// often as it likes.
const LINES_BURST: u32 = 100;
const LINES_PERIOD: Duration = Duration::from_secs(10);
/// How many of its last lines are kept for an error message.
const LAST_LINES: usize = 8;

/// What the watching thread and the owner share.
pub(super) struct Supervised {
    pub(super) state: Mutex<Watched>,
    pub(super) ended: Condvar,
}

pub(super) struct Watched {
    pub(super) child: Child,
    /// Set once the process is reaped; signals are only sent before.
    pub(super) status: Option<ExitStatus>,
    /// The owner wants it to end: no report.
    pub(super) stopping: bool,
    pub(super) last_lines: VecDeque<String>,
}

impl Supervised {
    pub(super) fn lock(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the process is reaped, at most for `limit`.
    pub(super) fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let state = self.lock();
        let (state, _) = self
            .ended
            .wait_timeout_while(state, limit, |state| state.status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.status
    }

    pub(super) fn signal(&self, signal: Signal) {
        let state = self.lock();
        if state.status.is_none() {
            // Not reaped yet, so the number is still its own.
            state.child.signal(signal);
        }
    }
}

/// Passes on what the process writes to its standard error, and reaps it.
pub(super) fn watch(id: &str, shared: &Supervised, errors: OwnedFd, exit: &OwnedFd, exits: &ChildExits) {
    let mut lines = Some(Lines::new(errors));
    let limit = Limit::new(LINES_BURST, LINES_PERIOD);
    loop {
        let mut fds = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        fds.extend(lines.as_ref().map(|lines| PollFd::new(lines.fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            // Its last lines are lost, but not its end.
            Err(error) => {
                tracing::error!("the log of device process {id} is no longer forwarded: {error}");
                break;
            }
            Ok(_) => {}
        }
        let gone = fds[0].any().unwrap_or(true);
        let open = lines.as_mut().is_some_and(|lines| lines.pass_on(|line| note(id, shared, &limit, line)));
        if gone {
            break;
        }
        if !open {
            lines = None;
        }
    }
    if let Some((status, stopping)) = reap(shared)
        && !stopping
    {
        exits.report(ChildExit { id: id.to_owned(), status });
    }
    shared.ended.notify_all();
}

/// Waits for the process to end, without holding the lock, which senders of signals need. Tells whether its
/// end was wanted.
pub(super) fn reap(shared: &Supervised) -> Option<(ExitStatus, bool)> {
    loop {
        let mut state = shared.lock();
        match state.child.try_wait() {
            Ok(Some(status)) => {
                state.status = Some(status);
                return Some((status, state.stopping));
            }
            // It has ended, as a rule; if not, it could not be watched.
            Ok(None) => drop(state),
            Err(error) => {
                tracing::error!("cannot wait for a device process: {error}");
                return None;
            }
        }
        std::thread::sleep(REAP_AGAIN);
    }
}

/// Logs a line as loud as the process meant it, and keeps it for an error message if it may be part of one.
fn note(id: &str, shared: &Supervised, limit: &Limit, line: &str) {
    if line.is_empty() {
        return;
    }
    let has = |level: &str| line.split_ascii_whitespace().take(3).any(|word| word == level);
    if has("DEBUG") || has("TRACE") {
        return tracing::debug!("{id}: {line}");
    }
    if let Some(left_out) = limit.admit() {
        if left_out > 0 {
            tracing::warn!("{id}: {left_out} lines were suppressed");
        }
        match () {
            () if has("INFO") => tracing::info!("{id}: {line}"),
            () if has("ERROR") => tracing::error!("{id}: {line}"),
            () => tracing::warn!("{id}: {line}"),
        }
    }
    if has("INFO") {
        return;
    }
    let mut state = shared.lock();
    if state.last_lines.len() == LAST_LINES {
        state.last_lines.pop_front();
    }
    state.last_lines.push_back(line.to_owned());
}
