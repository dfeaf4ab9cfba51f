//! What every device process of Pollux is made of, except the device itself.
//!
//! A device implements [`Device`]: the library's
//! [`VhostUserBackendMut`](vhost_user_backend::VhostUserBackendMut), and what to do with a control link and
//! at the end. Its arguments contain [`args::Common`]. Then `main` is
//!
//! ```no_run
//! # use device_kit::{Device, ProcessError, Served, args::Common, process::Process};
//! #[derive(clap::Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     common: Common,
//! }
//!
//! # fn example<D: Device>(open_device: impl Fn(&Args) -> D) -> std::process::ExitCode {
//! let run = |args: &Args| -> Result<(), ProcessError> {
//!     let device = open_device(args);
//!     let process = Process::open(&args.common, Vec::new(), &[])?;
//!     process.serve(Served::new("a-device", device)?)
//! };
//! device_kit::main("a-device", |args: &Args| &args.common, run)
//! # }
//! ```
//!
//! `tests/null_device.rs` has a whole device.
//!
//! The life of a device process:
//!
//! ```text
//!   main: log, panic policy
//!     |
//!   Process::open: signals blocked, sockets bound or inherited, limits
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
mod device;
pub mod ends;
mod entry;
mod error;
pub mod events;
pub mod gate;
pub mod process;
mod served;
pub mod sockets;
mod vmm;
pub mod vring;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub use device::Device;
pub use entry::main;
pub use error::{ProcessError, ServeError};
pub use served::Served;
pub use vmm::Vmm;

/// Guest memory, with a dirty log that the frontend may put underneath.
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;

/// A queue of the device.
pub type Vring = vring::Vring<GuestMemoryAtomic<Memory>>;

/// The largest queue that virtio knows. The frontend may have any size up to it.
pub const QUEUE_SIZE_MAX: usize = pollux_api::limits::QUEUE_SIZE_MAX as usize;
