//! Two threads that hand a number to and fro over the condition variables of the rendezvous, and spin until
//! they are notified: whoever misses a notification spins for ever, which loom tells.

use crate::spin_condvar::SpinCondvar;
use crate::sync::{Deadline, Mutex};

/// Whose turn it is.
#[derive(Default)]
pub struct Turns {
    condvars: [SpinCondvar; 2],
    number: Mutex<usize>,
}

impl Turns {
    /// Takes `turns` turns as one of two `sides`.
    ///
    /// # Panics
    /// Never, unless the other side has.
    pub fn take(&self, side: usize, turns: usize) {
        for _ in 0..turns {
            let never = Deadline::never();
            let number = self.number.lock().expect("the number of turns");
            let mut number =
                self.condvars[side].wait_while(&self.number, number, Some(&never), |number| number % 2 != side);
            *number += 1;
            drop(number);
            self.condvars[1 - side].notify_all();
        }
    }

    /// Turns taken by both.
    ///
    /// # Panics
    /// As [`Turns::take`].
    #[must_use]
    pub fn taken(&self) -> usize {
        *self.number.lock().expect("the number of turns")
    }
}
