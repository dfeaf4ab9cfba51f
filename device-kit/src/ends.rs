//! Why a device process ends, and who is told.

use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::error::ServeError;

/// Why the process ends.
#[derive(Debug)]
pub enum End {
    /// The frontend has disconnected, or broken the protocol.
    Frontend(Result<(), ServeError>),
    /// The ft-ctl link is closed.
    Vmm,
    /// SIGTERM or SIGINT.
    Signal(Signal),
}

/// Who is told that the end has come.
#[derive(Clone)]
pub struct Ends(Arc<dyn Fn(End) + Send + Sync>);

impl Ends {
    /// Calls `tell` for each reason to end; the first one counts.
    pub fn new(tell: impl Fn(End) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, end: End) {
        (self.0)(end);
    }
}
