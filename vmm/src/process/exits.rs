//! Device processes that ended while they were needed: reported by whoever watches them, read by whoever owns
//! the VM.

use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::{fmt, io};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device process that ended while it was needed.
#[derive(Clone, Debug)]
pub struct ChildExit {
    /// Device.
    pub id: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl fmt::Display for ChildExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device process {} ended: {}", self.id, self.status)
    }
}

/// Where device processes that ended are reported.
pub struct ChildExits {
    event: EventFd,
    list: Mutex<Vec<ChildExit>>,
}

impl ChildExits {
    /// Nobody has ended yet.
    ///
    /// # Errors
    /// When there can be no more eventfds.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(EFD_NONBLOCK)?, list: Mutex::default() })
    }

    /// Readable when [`ChildExits::take`] has something.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Those that have ended since the last call.
    pub fn take(&self) -> Vec<ChildExit> {
        // Empty is fine: it only says that there may be something.
        let _ = self.event.read();
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn report(&self, exit: ChildExit) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(exit);
        // A full counter is a signal as well.
        let _ = self.event.write(1);
    }
}
