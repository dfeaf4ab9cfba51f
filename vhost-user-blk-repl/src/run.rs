//! From flags to a served disk: opens everything before anything is started, and leaves no socket behind.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use device_counters::Page;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use tracing::{error, info};
use vhost::vhost_user::Listener;

use crate::args::{Args, Endpoint};
use crate::control::{accept, listen_at};
use crate::image::{FileImage, OpenError};
use crate::record::{Purpose, RecordError, RecordFile, Refuse, beside};
use crate::{Device, DeviceError, Options, lock};

/// I/O threads: enough to keep a disk busy, few enough to cost nothing.
const THREADS: usize = 4;

/// Why the disk is not served (any more).
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// Its record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A socket at a path.
    #[error("{flag} {}: cannot listen there", path.display())]
    Listen {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// An inherited socket.
    #[error("{flag} fd={fd}: need an inherited {need}")]
    Fd {
        /// The flag that named it.
        flag: &'static str,
        /// The number.
        fd: RawFd,
        /// What it should be.
        need: &'static str,
    },
    /// No place to count.
    #[error("--counters {}: cannot be used", path.display())]
    Counters {
        /// The flag's value.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// Signals.
    #[error("cannot watch signals")]
    Signals(#[source] io::Error),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A socket file, removed when nobody needs it any more.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// That of `--socket` and that of `--ft-ctl`.
type SocketFiles = Arc<Mutex<(Option<SocketFile>, Option<SocketFile>)>>;

enum Control {
    Connected(OwnedFd),
    Listening(OwnedFd, SocketFile),
}

/// Why the process ends.
enum End {
    /// The frontend has disconnected, or broken the protocol.
    Frontend(Result<(), DeviceError>),
    /// The ft-ctl link is closed.
    Vmm,
    /// One of the signals.
    Signal(Signal),
}

/// Serves the disk until the frontend disconnects, the ft-ctl link closes or a signal comes. Whichever of them it is, the end is
/// here: nothing is left to be done when this returns.
///
/// # Errors
/// See [`RunError`].
pub fn run(args: &Args) -> Result<(), RunError> {
    let options = options(args)?;
    // Before there is a socket to leave behind, and before other threads inherit the mask.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().map_err(|e| RunError::Signals(e.into()))?;
    // An image at the limit of file sizes is an error of one request, not the end.
    SigSet::from(Signal::SIGXFSZ).thread_block().map_err(|e| RunError::Signals(e.into()))?;
    let (listener, socket_file) = vhost_listener(&args.socket)?;
    let control = args.ft_ctl.as_ref().map(control).transpose()?;
    // Both are removed once they are connected to, at the latest at the end.
    let files = Arc::new(Mutex::new((socket_file, None)));
    let (ends, ended) = mpsc::channel();
    let (image, options) = options;
    let mut device = Device::new(Arc::new(image), options, Arc::new(told(&ends, || End::Vmm)))?;
    match control {
        Some(Control::Connected(fd)) => device.attach_control(fd)?,
        Some(Control::Listening(listener, file)) => {
            lock(&files).1 = Some(file);
            attach_later(&device, listener, files.clone());
        }
        None => {}
    }
    let signalled = ends.clone();
    spawn("signals", move || {
        if let Ok(signal) = signals.wait() {
            // Nobody listens when the end has come already.
            let _ = signalled.send(End::Signal(signal));
        }
    })?;
    info!("serving {}", args.path.display());
    let (close, theirs) = (device.closer(), files.clone());
    spawn("frontend", move || {
        let accepted = device.accept(listener);
        drop(lock(&theirs).0.take());
        let _ = ends.send(End::Frontend(accepted.and_then(|()| device.wait())));
    })?;
    let result = match ended.recv() {
        Ok(End::Frontend(result)) => result,
        Ok(End::Signal(signal)) => {
            info!("{signal}: ending");
            Ok(())
        }
        Ok(End::Vmm) | Err(_) => Ok(()),
    };
    close();
    drop(std::mem::take(&mut *lock(&files)));
    Ok(result?)
}

/// What is called when the end comes.
fn told(ends: &mpsc::Sender<End>, end: impl Fn() -> End + Send + Sync + 'static) -> impl Fn() + Send + Sync + 'static {
    let ends = Mutex::new(ends.clone());
    move || {
        // Nobody listens when the end has come already.
        let _ = lock(&ends).send(end());
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), RunError> {
    host_kit::thread::spawn(name, run).map(drop).map_err(|e| DeviceError::Local(e).into())
}

/// Opens everything.
fn options(args: &Args) -> Result<(FileImage, Options), RunError> {
    let image = FileImage::open(&args.path, args.readonly, args.direct)?;
    let path = args.record.clone().unwrap_or_else(|| beside(&args.path));
    let purpose = match args {
        Args { standby: true, .. } => Purpose::StandBy,
        Args { force: true, .. } => Purpose::Serve(Refuse::Nothing),
        Args { elected: true, .. } => Purpose::Serve(Refuse::Half),
        _ => Purpose::Serve(Refuse::Stale),
    };
    let record = RecordFile::open(&args.path, path, &image, purpose)?;
    let open = |path: &PathBuf| Page::open(path).map_err(|source| RunError::Counters { path: path.clone(), source });
    let options = Options {
        block_size: image.block_size(),
        read_only: args.readonly,
        serial: args.serial.clone(),
        queues: args.num_queues,
        queue_size: args.queue_size,
        threads: THREADS,
        record: Some(record).filter(|_| !args.readonly),
        counters: args.counters.as_ref().map(open).transpose()?,
    };
    Ok((image, options))
}

fn vhost_listener(endpoint: &Endpoint) -> Result<(Listener, Option<SocketFile>), RunError> {
    match endpoint {
        Endpoint::Path(path) => {
            let fail = |source| RunError::Listen { flag: "--socket", path: path.clone(), source };
            remove_stale(path, SockType::SeqPacket);
            let listener = UnixListener::bind(path).map_err(fail)?;
            Ok((Listener::from(listener), Some(SocketFile(path.clone()))))
        }
        Endpoint::Fd(fd) => {
            let inherited = inherited(*fd).filter(|fd| getsockopt(fd, sockopt::AcceptConn).unwrap_or(false));
            let need = "listening unix socket";
            let fd = inherited.ok_or(RunError::Fd { flag: "--socket", fd: *fd, need })?;
            Ok((Listener::from(UnixListener::from(fd)), None))
        }
    }
}

fn control(endpoint: &Endpoint) -> Result<Control, RunError> {
    match endpoint {
        Endpoint::Path(path) => {
            let fail = |source| RunError::Listen { flag: "--ft-ctl", path: path.clone(), source };
            remove_stale(path, SockType::Stream);
            Ok(Control::Listening(listen_at(path).map_err(fail)?, SocketFile(path.clone())))
        }
        Endpoint::Fd(fd) => {
            let is_seqpacket = |fd: &OwnedFd| getsockopt(fd, sockopt::SockType) == Ok(SockType::SeqPacket);
            let need = "connected SOCK_SEQPACKET socket";
            let inherited = inherited(*fd).filter(is_seqpacket);
            inherited.map(Control::Connected).ok_or(RunError::Fd { flag: "--ft-ctl", fd: *fd, need })
        }
    }
}

/// Takes over an inherited descriptor, if it is open and not one of the standard three.
fn inherited(fd: RawFd) -> Option<OwnedFd> {
    if fd <= 2 {
        return None;
    }
    // SAFETY: used for one fcntl call, which answers EBADF when the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: the flag says that this descriptor was left to this process, which has opened nothing under its number:
    // the flags are read first, and each descriptor is named by one flag.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Removes a socket file that nobody listens at any more; anything else stays, and binding fails.
///
/// It is tried with a socket of the `other` type, which a living listener refuses without noticing.
fn remove_stale(path: &Path, other: SockType) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let Ok(probe) = socket(AddressFamily::Unix, other, SockFlag::SOCK_CLOEXEC, None) else { return };
    let Ok(address) = UnixAddr::new(path) else { return };
    if is_socket && connect(probe.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED) {
        let _ = std::fs::remove_file(path);
    }
}

fn attach_later(device: &Device, listener: OwnedFd, files: SocketFiles) {
    let attach = device.control_port();
    let thread = host_kit::thread::spawn("ft-ctl", move || {
        let result = accept(&listener).and_then(attach);
        drop(lock(&files).1.take());
        if let Err(e) = result {
            error!("--ft-ctl: {e}");
        }
    });
    if let Err(e) = thread {
        error!("--ft-ctl: {e}");
    }
}
