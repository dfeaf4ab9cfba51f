//! A condition variable whose waiters may look for a while before they sleep. On the way of a checkpoint everybody waits for
//! microseconds, and to wake a sleeper on another processor costs tens of them.
//!
//! What is waited for changes under the mutex; whoever has changed it rings afterwards, best without the mutex.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Default)]
pub(super) struct Bell {
    rung: AtomicU32,
    /// Counted under the mutex, so that whoever rings after a change finds everybody who has not seen it.
    asleep: AtomicU32,
    bed: Condvar,
}

impl Bell {
    /// Has everybody who waits look again.
    pub(super) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            self.bed.notify_all();
        }
    }

    /// Waits until it rings, or for no reason. Until `patience` is over without sleep.
    pub(super) fn wait<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        patience: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        let Some(end) = patience.filter(|end| Instant::now() < *end) else {
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let guard = self.bed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            return guard;
        };
        let seen = self.rung.load(Ordering::SeqCst);
        drop(guard);
        while self.rung.load(Ordering::SeqCst) == seen && Instant::now() < end {
            std::hint::spin_loop();
        }
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `unwanted`.
    pub(super) fn wait_while<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        mut guard: MutexGuard<'a, T>,
        patience: Option<Instant>,
        unwanted: impl Fn(&T) -> bool,
    ) -> MutexGuard<'a, T> {
        while unwanted(&guard) {
            guard = self.wait(mutex, guard, patience);
        }
        guard
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two threads hand a number to and fro; a ring that gets lost leaves both waiting.
    fn hand_over(patience: Option<Duration>) {
        let (bells, number) = ([Bell::default(), Bell::default()], Mutex::new(0));
        let until = || patience.map(|patience| Instant::now() + patience);
        std::thread::scope(|scope| {
            for side in 0..2 {
                let (bells, number) = (&bells, &number);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let guard = number.lock().unwrap();
                        let mut guard = bells[side].wait_while(number, guard, until(), |number| number % 2 != side);
                        *guard += 1;
                        drop(guard);
                        bells[1 - side].ring();
                    }
                });
            }
        });
        assert_eq!(*number.lock().unwrap(), 4000);
    }

    #[test]
    fn no_ring_is_lost() {
        hand_over(None);
        hand_over(Some(Duration::from_micros(1)));
        hand_over(Some(Duration::from_micros(100)));
    }
}
