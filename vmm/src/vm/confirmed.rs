//! Whether it is known wherever the VM may go on that an operator has paused or resumed it. Until then it is
//! too early to tell him that he has: what an answer says is output like a packet.
//!
//! In: what checkpoints say, by number, and which of them are confirmed. Out: a wait with an end. Never: a
//! wait where nobody else may run the VM.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    /// Number of each checkpoint that is not confirmed, and whether the VM is paused in it.
    on_the_way: VecDeque<(u64, bool)>,
    /// What the last confirmed one says; `None` while nobody else may run the VM.
    known: Option<bool>,
}

/// What one VM's checkpoints say about its being paused.
#[derive(Debug, Default)]
pub struct Confirmed {
    state: Mutex<State>,
    changed: Condvar,
}

impl Confirmed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checkpoint `number` was taken.
    pub fn taken(&self, number: u64, paused: bool) {
        self.lock().on_the_way.push_back((number, paused));
    }

    /// All checkpoints up to `number` are where the VM may go on.
    pub fn confirm(&self, number: u64) {
        let mut state = self.lock();
        while let Some((_, paused)) = state.on_the_way.pop_front_if(|(taken, _)| *taken <= number) {
            state.known = Some(paused);
        }
        self.changed.notify_all();
    }

    /// Nobody else may run the VM, or somebody else does: there is nothing to wait for.
    pub fn end(&self) {
        *self.lock() = State::default();
        self.changed.notify_all();
    }

    /// Waits until the VM is known to be paused, or not; tells false when it is not within `limit`.
    #[must_use]
    pub fn wait(&self, paused: bool, limit: Duration) -> bool {
        let unknown = |state: &mut State| state.known.is_some_and(|known| known != paused);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, unknown);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn it_is_known_when_a_checkpoint_that_says_so_is_confirmed() {
        let confirmed = Confirmed::default();
        assert!(confirmed.wait(true, LONG), "nobody else may run it");
        confirmed.taken(1, false);
        assert!(confirmed.wait(true, LONG), "nobody else may run it yet");
        confirmed.confirm(1);
        for (number, paused) in [(2, false), (3, true)] {
            confirmed.taken(number, paused);
        }
        confirmed.confirm(2);
        assert!(!confirmed.wait(true, Duration::ZERO));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| confirmed.wait(true, LONG));
            confirmed.confirm(3);
            assert!(waiting.join().unwrap());
        });
        assert!(!confirmed.wait(false, Duration::ZERO));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| confirmed.wait(false, LONG));
            confirmed.end();
            assert!(waiting.join().unwrap());
        });
    }
}
