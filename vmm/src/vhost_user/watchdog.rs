//! A limit on how long a backend may keep the VMM waiting.
//!
//! The vhost crate waits for replies without a limit. One thread for all devices shuts a connection down when
//! its time is over, which ends the wait with an error. Silent and asleep as long as nothing is armed.

use host_kit::sandbox::Needs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

struct Armed {
    ticket: u64,
    deadline: Instant,
    socket: Arc<UnixStream>,
}

#[derive(Default)]
struct State {
    tickets: u64,
    armed: Vec<Armed>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread and what it watches.
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        let thread = host_kit::thread::spawn("vhost-watchdog", Needs::MESSAGES, move || watch(&watched))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether a backend keeps somebody waiting now, and still has time to answer. Each wait has an end, so
    /// this does not stay true by itself.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        let now = Instant::now();
        self.shared.lock().armed.iter().any(|armed| armed.deadline > now)
    }

    /// Runs `work`; if it takes longer than `limit`, `socket` is shut down meanwhile. True: that has
    /// happened.
    pub(super) fn limit<T>(&self, socket: &Arc<UnixStream>, limit: Duration, work: impl FnOnce() -> T) -> (T, bool) {
        let ticket = {
            let mut state = self.shared.lock();
            state.tickets += 1;
            let armed = Armed { ticket: state.tickets, deadline: Instant::now() + limit, socket: socket.clone() };
            // The thread sleeps until the earliest deadline, or without a limit when there is none.
            let earliest = state.armed.iter().all(|other| armed.deadline < other.deadline);
            state.armed.push(armed);
            if earliest {
                self.shared.changed.notify_one();
            }
            state.tickets
        };
        let result = work();
        let mut state = self.shared.lock();
        let before = state.armed.len();
        state.armed.retain(|armed| armed.ticket != ticket);
        (result, state.armed.len() == before)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only panics if this module is wrong; nothing to do about it while dropping.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared) {
    let mut state = shared.lock();
    while !state.ended {
        let now = Instant::now();
        state.armed.retain(|armed| {
            let over = armed.deadline <= now;
            if over {
                // Already closed is as good.
                let _ = armed.socket.shutdown(Shutdown::Both);
            }
            !over
        });
        let next = state.armed.iter().map(|armed| armed.deadline).min();
        state = match next {
            Some(deadline) => {
                let timeout = deadline.saturating_duration_since(now);
                shared.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_wait_ends_at_its_limit() {
        let dog = Watchdog::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let (result, expired) = dog.limit(&near, Duration::from_millis(20), || (&*near).read(&mut [0; 1]));
        assert!(expired);
        assert_eq!(result.unwrap(), 0, "the connection was shut down");
    }

    #[test]
    fn a_backend_is_waited_for_until_it_answers() {
        let dog = Watchdog::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        assert!(!dog.is_waited_for());
        std::thread::scope(|scope| {
            let wait = scope.spawn(|| dog.limit(&near, Duration::from_secs(600), || (&*near).read(&mut [0; 1])));
            while !dog.is_waited_for() {
                std::thread::yield_now();
            }
            io::Write::write_all(&mut far, &[1]).unwrap();
            assert!(!wait.join().unwrap().1);
        });
        assert!(!dog.is_waited_for());
    }

    #[test]
    fn a_short_limit_does_not_wait_behind_a_long_one() {
        let dog = Watchdog::new().unwrap();
        let pair = || UnixStream::pair().map(|(near, far)| (Arc::new(near), far)).unwrap();
        let ((slow, slow_far), (quick, _quick_far)) = (pair(), pair());
        std::thread::scope(|scope| {
            let long = scope.spawn(|| dog.limit(&slow, Duration::from_secs(60), || (&*slow).read(&mut [0; 1])));
            while dog.shared.lock().armed.is_empty() {
                std::thread::yield_now();
            }
            // Time for the watching thread to go to sleep until that limit; too little only makes the test
            // easier.
            std::thread::sleep(Duration::from_millis(100));
            let began = Instant::now();
            let (_, expired) = dog.limit(&quick, Duration::from_millis(20), || (&*quick).read(&mut [0; 1]));
            assert!(expired && began.elapsed() < Duration::from_secs(30));
            drop(slow_far);
            assert!(!long.join().unwrap().1, "the other connection was not its business");
        });
    }

    #[test]
    fn work_in_time_is_left_alone() {
        let dog = Watchdog::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        for _ in 0..3 {
            let ((), expired) = dog.limit(&near, Duration::from_secs(60), || {
                io::Write::write_all(&mut far, &[1]).unwrap();
                (&*near).read_exact(&mut [0; 1]).unwrap();
            });
            assert!(!expired);
        }
    }
}
