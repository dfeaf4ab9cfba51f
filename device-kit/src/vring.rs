//! A queue of the vhost-user library that survives a stale kick, and drivers that break it.
//!
//! When a ring is stopped and set up again between the arrival of a kick and its handling, the library reads
//! the new, empty eventfd, and its worker thread would end with that error: the disk would hang in silence.
//! Everything else is the library's own queue, but for one thing: the library keeps the frontend's error
//! eventfd to itself. Here it is written when the driver's side of the ring makes no sense; the ring is left
//! alone then until it is set up again.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ft_wire::device_ctl::QueueState;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error, QueueT};
use vm_memory::GuestAddressSpace;

type Inner<M> = VringMutex<M>;

/// See the module.
#[derive(Clone)]
pub struct Vring<M: GuestAddressSpace>(Inner<M>, Arc<Fault>);

#[derive(Default)]
struct Fault {
    /// Where the frontend wants to hear of it.
    event: Mutex<Option<File>>,
    broken: AtomicBool,
}

impl<M: GuestAddressSpace> Vring<M> {
    /// The driver's side of the ring makes no sense.
    pub fn set_broken(&self) {
        self.1.broken.store(true, Ordering::Relaxed);
        let mut event = self.1.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = &mut *event
            && let Err(e) = event.write_all(&1_u64.to_ne_bytes())
        {
            tracing::debug!("the frontend cannot be told of a broken ring: {e}");
        }
    }

    /// The ring, if it is to be served: it is set up and enabled, and makes sense.
    pub fn to_serve(&self) -> Option<<Self as VringStateMutGuard<'_, M>>::G>
    where
        M: 'static,
    {
        let ring = self.get_mut();
        let ready = ring.is_enabled() && ring.get_queue().ready() && !self.is_broken();
        ready.then_some(ring)
    }

    /// Whether that was so since the ring was set up.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.1.broken.load(Ordering::Relaxed)
    }
}

/// Where each queue stands that the guest has set up: part of the answer to `Seal`.
pub fn positions<M: GuestAddressSpace + 'static>(vrings: &[Vring<M>]) -> impl Iterator<Item = QueueState> {
    vrings.iter().zip(0..).filter_map(|(vring, index)| {
        let ring = vring.get_ref();
        let queue = ring.get_queue();
        let state = QueueState { index, next_avail: queue.next_avail(), next_used: queue.next_used() };
        queue.ready().then_some(state)
    })
}

impl<'a, M: GuestAddressSpace + 'static> VringStateGuard<'a, M> for Vring<M> {
    type G = <Inner<M> as VringStateGuard<'a, M>>::G;
}

impl<'a, M: GuestAddressSpace + 'static> VringStateMutGuard<'a, M> for Vring<M> {
    type G = <Inner<M> as VringStateMutGuard<'a, M>>::G;
}

impl<M: GuestAddressSpace + 'static> VringT<M> for Vring<M> {
    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(self.0.get_ref().is_enabled()),
            result => result,
        }
    }

    fn new(mem: M, max_queue_size: u16) -> Result<Self, Error> {
        Inner::new(mem, max_queue_size).map(|inner| Self(inner, Arc::default()))
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, M>>::G {
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
        *self.1.event.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how tests fail")]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd};

    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    #[test]
    fn a_kick_that_is_gone_is_no_error() {
        let vring = Vring::new(GuestMemoryAtomic::<GuestMemoryMmap>::new(GuestMemoryMmap::new()), 16).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: the descriptor was just given up by its owner.
        vring.set_kick(Some(unsafe { File::from_raw_fd(kick.into_raw_fd()) }));
        assert!(!vring.read_kick().unwrap());
        vring.set_enabled(true);
        assert!(vring.read_kick().unwrap());
    }

    #[test]
    fn a_broken_ring_is_told_and_mended_by_being_set_up() {
        let vring = Vring::new(GuestMemoryAtomic::<GuestMemoryMmap>::new(GuestMemoryMmap::new()), 16).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        vring.set_broken();
        // SAFETY: the descriptor was just made and given up by its owner.
        vring.set_err(Some(unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) }));
        assert!(vring.is_broken() && event.read().is_err(), "nobody wanted to hear of it then");
        vring.set_broken();
        assert_eq!(event.read().unwrap(), 1);
        vring.set_queue_ready(true);
        assert!(!vring.is_broken());
    }
}
