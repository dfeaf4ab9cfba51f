//! A queue of the vhost-user library that survives a stale kick, and one that its driver breaks.
//!
//! When a ring is stopped and set up again between the arrival of a kick and its handling, the library reads the new,
//! empty eventfd, and its worker thread would end with that error: the disk would hang in silence. Everything else is
//! the library's own queue, but for one thing: the library keeps the frontend's error eventfd to itself. Here it is written when
//! the driver's side of the ring makes no sense; the ring is left alone then until it is set up again.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

use crate::lock;
use crate::worker::Memory;

type Inner = VringMutex<Memory>;

/// See the module.
#[derive(Clone)]
pub struct Vring(Inner, Arc<Fault>);

#[derive(Default)]
struct Fault {
    /// Where the frontend wants to hear of it.
    event: Mutex<Option<File>>,
    broken: AtomicBool,
}

impl Vring {
    /// The driver's side of the ring makes no sense.
    pub fn set_broken(&self) {
        self.1.broken.store(true, Ordering::Relaxed);
        if let Some(event) = &mut *lock(&self.1.event)
            && let Err(e) = event.write_all(&1_u64.to_ne_bytes())
        {
            tracing::debug!("the frontend cannot be told of a broken ring: {e}");
        }
    }

    /// Whether that was so since the ring was set up.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.1.broken.load(Ordering::Relaxed)
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <Inner as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <Inner as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(self.0.get_ref().is_enabled()),
            result => result,
        }
    }

    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        Inner::new(mem, max_queue_size).map(|inner| Self(inner, Arc::default()))
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.0.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.1.broken.store(false, Ordering::Relaxed);
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        *lock(&self.1.event) = file;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd};

    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    #[test]
    fn a_kick_that_is_gone_is_no_error() {
        let vring = Vring::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 16).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: the descriptor was just given up by its owner.
        vring.set_kick(Some(unsafe { File::from_raw_fd(kick.into_raw_fd()) }));
        assert!(!vring.read_kick().unwrap());
        vring.set_enabled(true);
        assert!(vring.read_kick().unwrap());
    }
}
