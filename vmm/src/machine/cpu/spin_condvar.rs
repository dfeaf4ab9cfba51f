//! A condition variable whose waiters may spin before they sleep. On the path of a checkpoint everybody waits
//! for microseconds, and to wake a sleeper on another processor costs tens of them.
//!
//! What is waited for changes under the mutex; whoever has changed it notifies afterwards, best without the
//! mutex.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::sync::{AtomicU32, Condvar, Deadline, Mutex, MutexGuard, spin_loop};

#[derive(Default)]
pub(super) struct SpinCondvar {
    /// Changes with every notification.
    notified: AtomicU32,
    /// Counted under the mutex, so that whoever notifies after a change finds everybody who has not seen it.
    asleep: AtomicU32,
    condvar: Condvar,
}

impl SpinCondvar {
    /// Has everybody who waits look again.
    pub(super) fn notify_all(&self) {
        self.notified.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_all();
        }
    }

    /// Waits for a notification, or for no reason. Spins until `spin` is over, then sleeps.
    pub(super) fn wait<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        spin: Option<&Deadline>,
    ) -> MutexGuard<'a, T> {
        let Some(end) = spin.filter(|end| !end.is_over()) else {
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            return guard;
        };
        let seen = self.notified.load(Ordering::SeqCst);
        drop(guard);
        while self.notified.load(Ordering::SeqCst) == seen && !end.is_over() {
            spin_loop();
        }
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `unwanted`.
    pub(super) fn wait_while<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        mut guard: MutexGuard<'a, T>,
        spin: Option<&Deadline>,
        unwanted: impl Fn(&T) -> bool,
    ) -> MutexGuard<'a, T> {
        while unwanted(&guard) {
            guard = self.wait(mutex, guard, spin);
        }
        guard
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two threads hand a number to and fro; a notification that gets lost leaves both waiting.
    fn hand_over(spin: Option<Duration>) {
        let (condvars, number) = ([SpinCondvar::default(), SpinCondvar::default()], Mutex::new(0));
        std::thread::scope(|scope| {
            for side in 0..2 {
                let (condvars, number) = (&condvars, &number);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let (guard, until) = (number.lock().unwrap(), spin.map(Deadline::after));
                        let mut guard =
                            condvars[side].wait_while(number, guard, until.as_ref(), |number| number % 2 != side);
                        *guard += 1;
                        drop(guard);
                        condvars[1 - side].notify_all();
                    }
                });
            }
        });
        assert_eq!(*number.lock().unwrap(), 4000);
    }

    #[test]
    fn no_notification_is_lost() {
        hand_over(None);
        hand_over(Some(Duration::from_micros(1)));
        hand_over(Some(Duration::from_micros(100)));
    }
}
