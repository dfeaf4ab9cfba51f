//! Locks that outlive a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex; a panic elsewhere does not spread. What follows one is an orderly end, or the end of the
/// process.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how tests fail")]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_elsewhere_does_not_spread() {
        let number = Arc::new(Mutex::new(1));
        let other = number.clone();
        let thread = std::thread::spawn(move || {
            let _guard = other.lock().unwrap();
            panic!("on purpose");
        });
        thread.join().unwrap_err();
        assert!(number.is_poisoned());
        assert_eq!(*lock(&number), 1);
    }
}
