//! Replicating disk as a vhost-user backend: serves the guest from a raw image, streams writes to its peer on
//! the other host, and applies or discards the peer's writes by epoch.
//!
//! ```text
//!            vhost-user socket             ft-ctl socket
//!                   |                           |
//!   guest ring -> backend -----> disk <----------
//!                                /  \
//!                            serve  replication
//!                              | \      |
//!                      tracker |  mirror == ft_wire =====> receive
//!                          \   |                             |   tracker
//!                            image                           |   /
//!                          (primary)                        image
//!                                                         (standby)
//! ```
//!
//! Each folder's `mod.rs` has its own chart. The one above shows who calls: `disk` carries out what queues
//! and VMM ask for, `serve` performs requests, `replication` has the record and the streams: `mirror` and
//! `receive` are the two ends of one, `tracker` keeps the `record` of the image true: which VM's it is, and
//! where it may differ from its peer's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use device_api::counters::Page;
pub use device_kit::ServeError;
use device_kit::Served;
use device_kit::ends::Ends;
use vhost::vhost_user::Listener;

pub mod args;
mod backend;
mod blocks;
mod disk;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod geometry;
pub mod image;
mod mirror;
mod receive;
pub mod record;
mod replication;
pub mod run;
mod serve;
mod session;
mod tracker;

use backend::Backend;
use disk::Disk;
use image::Image;
use record::Opened;

/// What to serve, and how.
pub struct Options {
    /// Smallest unit of I/O in bytes.
    pub block_size: u32,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Number of queues.
    pub queues: u16,
    /// Entries that a queue usually has, a power of two; the frontend may use fewer or more.
    pub queue_size: u16,
    /// Number of I/O threads.
    pub threads: usize,
    /// The image's record; without one nothing is refused and every resynchronisation compares the whole
    /// image.
    pub record: Option<Opened>,
    /// Page of the counters; without one they are private.
    pub counters: Option<Page>,
}

/// Called when the ft-ctl link closes.
pub type Exit = Arc<dyn Fn() + Send + Sync>;

/// One disk that is served in a process of somebody else's, such as a test. See [`run`] for a process of its
/// own.
pub struct Device {
    served: Served<Backend>,
    exit: Exit,
}

impl Device {
    /// A disk on `image`. `exit` is called when the ft-ctl link closes.
    ///
    /// # Errors
    /// When the kernel refuses threads, eventfds or epoll.
    pub fn new(image: Arc<dyn Image>, options: Options, exit: Exit) -> Result<Self, ServeError> {
        Ok(Self { served: served(image, options)?, exit })
    }

    /// Takes commands from the connected ft-ctl socket `fd`.
    ///
    /// # Errors
    /// Of epoll.
    pub fn attach_control(&self, fd: OwnedFd) -> Result<(), ServeError> {
        let exit = self.exit.clone();
        self.served.connect(fd.into(), Ends::new(move |_| exit()))
    }

    /// Waits for the frontend to connect.
    ///
    /// # Errors
    /// Of the socket.
    pub fn accept(&mut self, mut listener: Listener) -> Result<(), ServeError> {
        self.served.accept_at(&mut listener)
    }

    /// Serves the frontend until it disconnects, then closes the disk.
    ///
    /// # Errors
    /// When the frontend breaks the protocol.
    pub fn serve(&mut self) -> Result<(), ServeError> {
        let result = self.served.wait();
        self.served.close();
        result
    }
}

/// A disk on `image` with its threads running.
fn served(image: Arc<dyn Image>, options: Options) -> Result<Served<Backend>, ServeError> {
    let (queues, queue_size) = (options.queues, options.queue_size);
    let disk = Disk::new(image, options).map_err(ServeError::Local)?;
    Served::new("vhost_user", Backend::new(disk, queues, queue_size))
}
