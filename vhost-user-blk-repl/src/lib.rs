//! Replicating disk as a vhost-user backend: serves the guest from a raw image, streams writes to its peer on
//! the other host, and applies or discards the peer's writes by epoch.
//!
//! ```text
//!            vhost-user socket          ft-ctl socket
//!                   |                        |
//!   guest ring -> backend -> serve <- commands <- control
//!                            |   \
//!                    tracker |    mirror == mirror_wire ==> receive
//!                        \   |                               |   tracker
//!                          image                             |   /
//!                        (primary)                          image
//!                                                         (standby)
//! ```
//!
//! Each folder's first page has its own chart. Above is who calls: `serve` performs requests, `mirror` and
//! `receive` are the two ends of the stream, `tracker` keeps the `record` of the image true: which VM's it
//! is, and where it may differ from its peer's.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_counters::Page;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub mod args;
mod backend;
mod blocks;
mod commands;
mod control;
mod frame_socket;
mod geometry;
pub mod image;
mod mirror;
pub mod mirror_wire;
mod receive;
pub mod record;
pub mod run;
mod serve;
mod tracker;

pub use serve::Exit;

use backend::Backend;
use image::Image;
use record::Opened;
use serve::Worker;

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

/// One disk, ready to be served.
pub struct Device {
    backend: Arc<Backend>,
    daemon: VhostUserDaemon<Arc<Backend>>,
}

/// A device that could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel refused threads, eventfds or epoll.
    #[error("cannot start the device")]
    Local(#[source] io::Error),
    /// The vhost-user side failed.
    #[error("vhost-user: {0}")]
    Vhost(DaemonError),
}

impl Device {
    /// A disk on `image`. `exit` is called when the ft-ctl link closes.
    ///
    /// # Errors
    /// When the kernel refuses threads, eventfds or epoll.
    pub fn new(image: Arc<dyn Image>, options: Options, exit: Exit) -> Result<Self, DeviceError> {
        let (queues, queue_size) = (options.queues, options.queue_size);
        let worker = Worker::new(image, options, exit).map_err(DeviceError::Local)?;
        let backend = Arc::new(Backend::new(worker, queues, queue_size));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let name = "vhost_user".to_owned();
        let daemon = VhostUserDaemon::new(name, backend.clone(), memory).map_err(DeviceError::Vhost)?;
        for handler in daemon.get_epoll_handlers() {
            backend.listen(&handler).map_err(DeviceError::Local)?;
        }
        Ok(Self { backend, daemon })
    }

    /// Takes commands from the connected ft-ctl socket `fd`.
    ///
    /// # Errors
    /// Of epoll.
    pub fn attach_control(&self, fd: OwnedFd) -> Result<(), DeviceError> {
        self.backend.attach_control(fd).map_err(DeviceError::Local)
    }

    /// As [`Device::attach_control`], from another thread and later.
    pub fn control_port(&self) -> impl Fn(OwnedFd) -> io::Result<()> + Send + 'static {
        let backend = self.backend.clone();
        move |fd| backend.attach_control(fd)
    }

    /// Shuts the disk down cleanly: applies released writes, then records that the image is closed. To be
    /// called once, just before the process ends.
    fn closer(&self) -> impl FnOnce() + Send + 'static {
        let backend = self.backend.clone();
        move || backend.close()
    }

    /// Waits for the frontend to connect.
    ///
    /// # Errors
    /// Of the socket.
    pub fn accept(&mut self, mut listener: Listener) -> Result<(), DeviceError> {
        self.daemon.start(&mut listener).map_err(DeviceError::Vhost)
    }

    /// Serves the frontend until it disconnects, then closes the disk.
    ///
    /// # Errors
    /// When the frontend breaks the protocol.
    pub fn serve(&mut self) -> Result<(), DeviceError> {
        let result = self.wait();
        self.backend.close();
        result
    }

    /// As [`Device::serve`], but the disk is not closed: see [`Device::closer`].
    fn wait(&mut self) -> Result<(), DeviceError> {
        match self.daemon.wait() {
            Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) | Ok(()) => Ok(()),
            Err(e) => Err(DeviceError::Vhost(e)),
        }
    }
}

/// Locks a mutex; a panic elsewhere does not spread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
