//! A device in the hands of the vhost-user library: its worker thread, and its frontend.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use host_kit::sandbox::Needs;
use host_kit::sync::lock;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::control::Control;
use crate::device::Device;
use crate::ends::Ends;
use crate::error::ServeError;
use crate::events::Events;
use crate::sockets::{ControlSocket, VhostSocket};

/// The worker's own: it takes commands and, with its memory, whatever the frontend has.
const STARTER: Needs = Needs::MESSAGES.union(Needs::THREADS).union(Needs::ACCEPT);

/// A device with its worker thread running.
pub struct Served<D: Device> {
    device: Arc<Mutex<D>>,
    daemon: VhostUserDaemon<Arc<Mutex<D>>>,
    events: Events,
}

impl<D: Device> Served<D> {
    /// Starts the worker thread. `name` is that of the thread that talks to the frontend.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(name: &str, device: D) -> Result<Self, ServeError> {
        let queues = device.num_queues();
        let device = Arc::new(Mutex::new(device));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        // The library starts the worker, which inherits what the thread here may do.
        let (named, served) = (name.to_owned(), device.clone());
        let start = move || VhostUserDaemon::new(named, served, memory);
        let starter = host_kit::thread::spawn("starter", D::NEEDS | STARTER, start).map_err(ServeError::Local)?;
        let daemon = starter.join().map_err(|_| ServeError::Local(io::ErrorKind::Other.into()))?;
        let daemon = daemon.map_err(ServeError::Vhost)?;
        // There is one worker: no device says that it has more.
        let handler = daemon.get_epoll_handlers().into_iter().next();
        let handler = handler.ok_or_else(|| ServeError::Local(io::ErrorKind::NotFound.into()))?;
        let events = Events::of(&*handler, queues).map_err(ServeError::Local)?;
        lock(&device).attach(&events).map_err(ServeError::Local)?;
        Ok(Self { device, daemon, events })
    }

    /// Has the device take commands through `socket`. `ends` is told when that link closes.
    ///
    /// # Errors
    /// Of epoll.
    pub fn connect(&self, socket: ControlSocket, ends: Ends) -> Result<(), ServeError> {
        // Under the lock: the worker may see the socket before the device has it.
        let mut device = lock(&self.device);
        device.connect(Control::new(socket, &self.events, ends).map_err(ServeError::Local)?);
        Ok(())
    }

    /// Waits for the frontend to connect; the socket's file is removed then.
    ///
    /// # Errors
    /// Of the socket.
    pub fn accept(&mut self, socket: VhostSocket, with_control: bool) -> Result<(), ServeError> {
        let (listener, file) = socket.into_parts();
        let listener: OwnedFd = D::frontend(listener, with_control).map_err(ServeError::Local)?;
        let accepted = self.accept_at(&mut UnixListener::from(listener).into());
        file.remove();
        accepted
    }

    /// As [`Served::accept`], at a listener of the library's.
    ///
    /// # Errors
    /// Of the socket.
    pub fn accept_at(&mut self, listener: &mut Listener) -> Result<(), ServeError> {
        self.daemon.start(listener).map_err(ServeError::Vhost)
    }

    /// Serves the frontend until it disconnects.
    ///
    /// # Errors
    /// When the frontend breaks the protocol.
    pub fn wait(&mut self) -> Result<(), ServeError> {
        match self.daemon.wait() {
            Ok(())
            | Err(DaemonError::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            )) => Ok(()),
            Err(error) => Err(ServeError::Vhost(error)),
        }
    }

    /// Has the device finish what counts. Nothing is served any more.
    pub fn close(&self) {
        lock(&self.device).close();
    }

    pub(crate) fn inner(&self) -> Arc<Mutex<D>> {
        self.device.clone()
    }
}
