//! What every device process of Pollux is made of, but for the device itself.
//!
//! A device implements [`Device`]: the library's [`VhostUserBackendMut`](vhost_user_backend::VhostUserBackendMut), and what
//! to do with a control link and at the end. Its arguments contain [`args::Common`]. Then `main` is
//!
//! ```no_run
//! # use device_kit::{args::Common, process::{ProcessError, Process}};
//! #[derive(clap::Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     common: Common,
//! }
//!
//! fn run(args: &Args) -> Result<(), ProcessError> {
//!     // Opens what the device needs, then:
//!     let process = Process::open(&args.common)?;
//!     # fn device() -> device_kit::Served<Null> { todo!() }
//!     # struct Null;
//!     process.serve(device())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     device_kit::main("a-device", |args: &Args| &args.common, run)
//! }
//! ```
//!
//! `tests/null_device.rs` has a whole device.
//!
//! The life of a device process:
//!
//! ```text
//!   main: log, panic policy
//!     |
//!   Process::open: signals blocked, sockets bound or inherited
//!     |
//!   Served::new: worker thread ---- events: queues, ft-ctl, the device's own; all on this one thread
//!     |
//!   Process::serve: frontend accepted ---- frontend gone | ft-ctl closed | SIGTERM, SIGINT
//!     |                                                        |
//!     +--------------------------------------------------------+
//!   Device::close, exit 0 (1 if the frontend broke the protocol)
//! ```

pub mod args;
pub mod control;
mod entry;
pub mod events;
pub mod process;
mod served;
pub mod sockets;
pub mod vring;

use std::io;
use std::os::fd::OwnedFd;

use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub use entry::main;
pub use served::{ServeError, Served};

/// Guest memory, with a dirty log that the frontend may put underneath.
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;

/// A queue of the device.
pub type Vring = vring::Vring<GuestMemoryAtomic<Memory>>;

/// The largest queue that virtio knows. The frontend may have any size up to it.
pub const QUEUE_SIZE_MAX: usize = 32768;

/// A device as the life cycle sees it. One thread, the worker, calls it for every event; the frontend's thread calls it when the
/// frontend changes the memory table or stops a ring.
///
/// `handle_event` asks [`events::Event::of`] what has happened. It must not fail: an error ends the worker, and the guest would
/// wait for ever.
pub trait Device: VhostUserBackendMut<Bitmap = BitmapMmapRegion, Vring = Vring> + Send + 'static {
    /// Called once, before anything else: registers the events of the device's own.
    ///
    /// # Errors
    /// Of the kernel.
    fn attach(&mut self, events: &events::Events) -> io::Result<()>;

    /// Commands come through `control` from now on.
    fn connect(&mut self, control: control::Control);

    /// Where the library accepts the frontend that waits at `listener`: there, unless something has to stand in between. May wait.
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
