//! What the thread that opens a session waits for: something that the world says once.

use std::mem::replace;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use ft_transport::dial::GreetError;
use ft_wire::session::Header;

/// The thread.
pub(crate) type Opening = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A frame that answers a greeting.
pub(crate) type Heard = Result<(Header, Vec<u8>), GreetError>;

/// What that thread waits for. The first that is said counts.
pub(crate) struct Slot<T>(Arc<Mutex<Said<T>>>);

enum Said<T> {
    Nothing,
    This(T),
    /// Nobody waits any more.
    Over,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Said::Nothing)))
    }

    fn lock(&self) -> MutexGuard<'_, Said<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(*self.lock(), Said::Nothing)
    }

    pub(crate) fn say(&self, what: T) {
        let mut said = self.lock();
        if matches!(*said, Said::Nothing) {
            *said = Said::This(what);
        }
    }

    pub(crate) fn take(&self) -> Poll<T> {
        let mut said = self.lock();
        match replace(&mut *said, Said::Over) {
            Said::This(what) => Poll::Ready(what),
            other => {
                *said = other;
                Poll::Pending
            }
        }
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
