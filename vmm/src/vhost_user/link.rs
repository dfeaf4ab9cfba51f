//! The connection to one backend: handshake, vrings, dirty log.
//!
//! In: what the virtio device wants. Out: vhost-user requests. Never: an endless wait; every exchange has a
//! limit, after which the connection is cut. Requests are sent in one go without asking for an
//! acknowledgement each, and closed by one question whose answer proves that all before it have been carried
//! out: backends that cannot acknowledge work the same way, and a takeover pays for one round trip instead of
//! a dozen.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::guest::GuestRam;
use crate::vhost_user::error::VhostUserError;
use crate::vhost_user::log::DirtyLog;
use crate::vhost_user::watchdog::Watchdog;
use crate::virtio::ActiveQueue;

/// How long a backend may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a backend may take to stop a queue: requests under way may be waiting for a slow disk.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a backend may take to come up, where the VMM connects to it or waits for it.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Wait between attempts to connect while a backend is starting.
const CONNECT_RETRY: Duration = Duration::from_millis(50);
/// How long a socket that is not there, or that nobody listens at, may stay that way before this is an error.
const START_LIMIT: Duration = Duration::from_secs(2);

/// Protocol features that are made use of.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::LOG_SHMFD);
/// Vring flag: writes to the used ring are logged too.
const VRING_F_LOG: u32 = 1;

/// How a vring is to be started.
pub struct Start<'a> {
    /// The queue.
    pub queue: &'a ActiveQueue,
    /// Next avail ring entry to take.
    pub base: u16,
    /// Whether it is to be served at once.
    pub enabled: bool,
}

/// The connection.
pub struct Link {
    id: String,
    name: String,
    frontend: Frontend,
    socket: Arc<UnixStream>,
    watchdog: Arc<Watchdog>,
    features: u64,
    protocol: VhostUserProtocolFeatures,
}

impl Link {
    /// Connects to the backend of device `id` that listens at `path`. One that is just starting is waited
    /// for.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(id: &str, path: &Path) -> Result<UnixStream, VhostUserError> {
        let end = Instant::now() + START_LIMIT;
        loop {
            match connect_now(path) {
                Ok(stream) => return Ok(stream),
                Err(e) if !is_starting(&e) || Instant::now() >= end => {
                    let socket = path.display().to_string();
                    return Err(VhostUserError::Connect { id: id.to_owned(), socket, source: e });
                }
                Err(_) => std::thread::sleep(CONNECT_RETRY),
            }
        }
    }

    /// Listens at `path` until the backend of device `id` has connected; the path is removed again.
    ///
    /// # Errors
    /// When the path cannot be bound or nobody comes.
    pub fn accept(id: &str, path: &Path) -> Result<UnixStream, VhostUserError> {
        let failed = |source| {
            let socket = path.display().to_string();
            VhostUserError::Connect { id: id.to_owned(), socket, source }
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let timeout = PollTimeout::try_from(CONNECT_LIMIT).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
        let result = match ready {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => listener.accept().map(|(stream, _)| stream),
            Err(e) => Err(e.into()),
        };
        // Left behind at worst, where somebody has taken the right to remove it.
        let _ = std::fs::remove_file(path);
        result.map_err(failed)
    }

    /// Makes the acquaintance of the backend at the other end of `stream`, for a device with `queues` queues.
    /// `name` says in errors where it is. Features are exchanged and guest memory is handed over, so that
    /// nothing but the vrings is left to do when the driver is ready.
    ///
    /// # Errors
    /// When it does not answer as it should, or has not enough queues.
    pub fn new(
        id: &str,
        name: &str,
        stream: UnixStream,
        queues: usize,
        ram: &GuestRam,
        watchdog: Arc<Watchdog>,
    ) -> Result<Self, VhostUserError> {
        let local = |source| VhostUserError::Local { id: id.to_owned(), what: "cannot share its socket", source };
        stream.set_nonblocking(false).map_err(local)?;
        let socket = Arc::new(stream.try_clone().map_err(local)?);
        let mut link = Self {
            id: id.to_owned(),
            name: name.to_owned(),
            frontend: Frontend::from_stream(stream, queues as u64),
            socket,
            watchdog,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        link.handshake(queues)?;
        link.share_memory(ram)?;
        Ok(link)
    }

    /// Virtio features of the backend.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What the backend lacks for logging its writes, if anything.
    #[must_use]
    pub fn lacks_for_log(&self) -> Option<&'static str> {
        if self.features & VhostUserVirtioFeatures::LOG_ALL.bits() == 0 {
            return Some("VHOST_F_LOG_ALL");
        }
        (!self.protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD)).then_some("VHOST_USER_PROTOCOL_F_LOG_SHMFD")
    }

    /// An error that says what the backend cannot do.
    #[must_use]
    pub fn unsuitable(&self, what: impl Into<String>) -> VhostUserError {
        VhostUserError::Unsuitable { id: self.id.clone(), socket: self.name.clone(), what: what.into() }
    }

    /// Device specific configuration, `len` bytes.
    ///
    /// # Errors
    /// When the backend has none.
    pub fn config(&mut self, len: usize) -> Result<Vec<u8>, VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(self.unsuitable("does not tell its configuration (VHOST_USER_PROTOCOL_F_CONFIG is missing)"));
        }
        let buffer = vec![0; len];
        let config = self.request("GET_CONFIG", |frontend| {
            frontend.get_config(0, len as u32, VhostUserConfigFlags::empty(), &buffer)
        })?;
        Ok(config.1)
    }

    /// Starts `vrings` with the driver's `features`.
    ///
    /// # Errors
    /// When the backend does not do it.
    pub fn start(
        &mut self,
        features: u64,
        vrings: &[Start<'_>],
        ram: &GuestRam,
        log: bool,
    ) -> Result<(), VhostUserError> {
        let features = self.wire_features(features, log);
        let log_vring = self.lacks_for_log().is_none();
        let switched = self.has_protocol_features();
        self.request("SET_FEATURES", |frontend| {
            frontend.set_features(features)?;
            for vring in vrings {
                start_vring(frontend, vring, ram, log_vring)?;
            }
            if switched {
                for vring in vrings.iter().filter(|vring| vring.enabled) {
                    frontend.set_vring_enable(vring.queue.ring.index.into(), true)?;
                }
            }
            // The answer to this proves that all the above is done.
            frontend.get_features()
        })?;
        Ok(())
    }

    /// Stops the vrings with these indices: afterwards the backend does not touch guest memory through them.
    ///
    /// # Errors
    /// When the backend does not do it.
    pub fn stop(&mut self, indices: impl Iterator<Item = u16>) -> Result<(), VhostUserError> {
        let switched = self.has_protocol_features();
        self.request_within(STOP_LIMIT, "GET_VRING_BASE", |frontend| {
            for index in indices {
                if switched {
                    frontend.set_vring_enable(index.into(), false)?;
                }
                frontend.get_vring_base(index.into())?;
            }
            Ok(())
        })
    }

    /// Serves the vrings with these indices, or leaves them alone for now.
    ///
    /// # Errors
    /// When the backend does not do it, or cannot.
    pub fn enable(&mut self, vrings: impl Iterator<Item = (u16, bool)>) -> Result<(), VhostUserError> {
        if !self.has_protocol_features() {
            return Err(self.unsuitable("cannot pause its queues (VHOST_USER_F_PROTOCOL_FEATURES is missing)"));
        }
        self.request("SET_VRING_ENABLE", |frontend| {
            for (index, enabled) in vrings {
                frontend.set_vring_enable(index.into(), enabled)?;
            }
            frontend.get_features()
        })?;
        Ok(())
    }

    /// Signals `call` for vring `index` from now on.
    ///
    /// # Errors
    /// When the backend does not do it.
    pub fn set_call(&mut self, index: u16, call: &EventFd) -> Result<(), VhostUserError> {
        self.request("SET_VRING_CALL", |frontend| {
            frontend.set_vring_call(index.into(), call)?;
            frontend.get_features()
        })?;
        Ok(())
    }

    /// Switches the logging of writes to guest memory into `log`, on a backend that can. `running` are the
    /// driver's features if there is a driver.
    ///
    /// The vrings need no new `SET_VRING_ADDR`: they have had the log flag from the start, and it means
    /// nothing until `VHOST_F_LOG_ALL` is set. Sending it now would race with a backend that is using the
    /// ring.
    ///
    /// # Errors
    /// When the backend does not do it.
    pub fn set_log(&mut self, log: &DirtyLog, on: bool, running: Option<u64>) -> Result<(), VhostUserError> {
        let features = running.map(|features| self.wire_features(features, on));
        self.request("SET_LOG_BASE", |frontend| {
            if on {
                frontend.set_log_base(0, Some(log.region()))?;
            }
            if let Some(features) = features {
                frontend.set_features(features)?;
            }
            frontend.get_features()
        })?;
        Ok(())
    }

    fn handshake(&mut self, queues: usize) -> Result<(), VhostUserError> {
        self.features = self.request("GET_FEATURES", |frontend| {
            frontend.set_owner()?;
            frontend.get_features()
        })?;
        let mut backend_queues = None;
        if self.has_protocol_features() {
            let (protocol, count) = self.request("GET_PROTOCOL_FEATURES", |frontend| {
                let protocol = frontend.get_protocol_features()? & PROTOCOL_FEATURES;
                frontend.set_protocol_features(protocol)?;
                let has_count = protocol.contains(VhostUserProtocolFeatures::MQ);
                let count = if has_count { Some(frontend.get_queue_num()?) } else { None };
                Ok((protocol, count))
            })?;
            (self.protocol, backend_queues) = (protocol, count);
        }
        match backend_queues {
            Some(count) if count < queues as u64 => {
                let what = format!("serves {count} queues, {queues} are configured; lower num_queues");
                Err(self.unsuitable(what))
            }
            _ => Ok(()),
        }
    }

    fn share_memory(&mut self, ram: &GuestRam) -> Result<(), VhostUserError> {
        self.request("SET_MEM_TABLE", |frontend| {
            let regions =
                ram.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect::<Result<Vec<_>, _>>()?;
            frontend.set_mem_table(&regions)?;
            frontend.get_features()
        })?;
        Ok(())
    }

    fn has_protocol_features(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// What goes into `SET_FEATURES` for a driver that took `features`: those of the backend among them, and
    /// the two bits that belong to vhost-user itself.
    fn wire_features(&self, features: u64, log: bool) -> u64 {
        let log_all = if log { VhostUserVirtioFeatures::LOG_ALL.bits() } else { 0 };
        (features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | log_all) & self.features
    }

    fn request<T>(
        &mut self,
        request: &'static str,
        exchange: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        self.request_within(ANSWER_LIMIT, request, exchange)
    }

    /// Runs one exchange under the watchdog; `request` names it in errors.
    fn request_within<T>(
        &mut self,
        limit: Duration,
        request: &'static str,
        exchange: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        let (result, expired) = self.watchdog.limit(&self.socket, limit, || exchange(&mut self.frontend));
        result.map_err(|source| {
            let (id, socket) = (self.id.clone(), self.name.clone());
            if expired {
                VhostUserError::Silent { id, socket, request, limit }
            } else {
                VhostUserError::Request { id, socket, request, source }
            }
        })
    }
}

/// Connects if that is possible at once: a listener that accepts nobody is not waited for.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Nobody listens yet, or does not get to accepting.
fn is_starting(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}

fn start_vring(frontend: &Frontend, vring: &Start<'_>, ram: &GuestRam, log: bool) -> vhost::Result<()> {
    let ActiveQueue { ring, kick, call, broken } = vring.queue;
    let index = usize::from(ring.index);
    let host = |address: u64| {
        let address = ram.get_host_address(GuestAddress(address)).map_err(|_| vhost::Error::InvalidGuestMemory)?;
        Ok::<u64, vhost::Error>(address as u64)
    };
    frontend.set_vring_num(index, ring.size)?;
    frontend.set_vring_addr(
        index,
        &VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: if log { VRING_F_LOG } else { 0 },
            desc_table_addr: host(ring.descriptors)?,
            used_ring_addr: host(ring.used)?,
            avail_ring_addr: host(ring.avail)?,
            log_addr: Some(ring.used),
        },
    )?;
    frontend.set_vring_base(index, vring.base)?;
    frontend.set_vring_call(index, call)?;
    frontend.set_vring_err(index, broken)?;
    frontend.set_vring_kick(index, kick)
}
