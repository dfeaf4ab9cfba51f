//! What a device is to the life cycle.

use std::io;
use std::os::fd::OwnedFd;

use host_kit::sandbox::Needs;
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::bitmap::BitmapMmapRegion;

use crate::Vring;
use crate::control::Control;
#[cfg(doc)]
use crate::events::Event;
use crate::events::Events;

/// A device as the life cycle sees it. One thread, the worker, calls it for every event; the frontend's
/// thread calls it when the frontend changes the memory table or stops a ring.
///
/// `handle_event` asks [`Event::of`] what has happened. It must not fail: an error ends the worker, and the
/// guest would wait for ever.
pub trait Device: VhostUserBackendMut<Bitmap = BitmapMmapRegion, Vring = Vring> + Send + 'static {
    /// What the worker needs of the kernel, and the threads that it starts.
    const NEEDS: Needs;

    /// Called once, before anything else: registers the events of the device's own.
    ///
    /// # Errors
    /// Of the kernel.
    fn attach(&mut self, events: &Events) -> io::Result<()>;

    /// Commands come through `control` from now on.
    fn connect(&mut self, control: Control);

    /// Where the library accepts the frontend that waits at `listener`: there, unless something has to stand
    /// in between. May wait.
    ///
    /// # Errors
    /// Of the kernel.
    fn frontend(listener: OwnedFd, with_control: bool) -> io::Result<OwnedFd> {
        let _ = with_control;
        Ok(listener)
    }

    /// The process ends after this: guest memory is not touched any more, and nothing that is held leaves.
    fn close(&mut self);
}
