//! The API's listening socket: made at a path that only we use, or inherited.
//!
//! Whoever may write to the socket controls the VM. Its mode and group are set before it listens: nobody can
//! connect to it earlier.
//!
//! Who holds the lock on `PATH.lock` owns `PATH`, so a socket file that was left behind by a killed VMM can
//! be told from one in use and removed. Both files go away with [`ApiSocket`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{Gid, Group, fchownat};

use pollux_api::options::{OptionError, Options};

/// Where the API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketTarget {
    /// At a path.
    Path(PathBuf, Access),
    /// On an inherited listening socket.
    Fd(RawFd),
}

/// Who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The group of the socket, by name or number, if not that of the process.
    group: Option<String>,
    /// Its mode, if not the usual one.
    mode: Option<u32>,
}

impl Access {
    /// Its owner alone, and a group that is named.
    fn mode(&self) -> Mode {
        let usual = if self.group.is_some() { 0o660 } else { 0o600 };
        Mode::from_bits_truncate(self.mode.unwrap_or(usual))
    }
}

impl SocketTarget {
    /// The path, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path, _) => Some(path),
            Self::Fd(_) => None,
        }
    }

    /// From the text after `--api-socket`: `path=PATH[,group=GROUP][,mode=MODE]`, `fd=N`, or the path alone.
    ///
    /// # Errors
    /// When it is none of those.
    pub fn from_option(text: &str) -> Result<Self, OptionError> {
        let keys = ["path", "fd", "group", "mode"];
        if !text.is_empty() && !keys.iter().any(|key| text.starts_with(&format!("{key}="))) {
            return Ok(Self::at(text));
        }
        let options = Options::parse("--api-socket", text, &keys, &[])?;
        let access = Access { group: options.value("group")?, mode: mode(&options)? };
        match options.value::<u16>("fd")? {
            None => Ok(Self::Path(options.required("path")?, access)),
            Some(fd) if access == Access::default() && options.text("path").is_none() => Ok(Self::Fd(fd.into())),
            Some(_) => {
                let what = "path=, group= and mode= are for a socket that is made, not for fd=".to_owned();
                Err(OptionError::Conflict { flag: "--api-socket".to_owned(), what })
            }
        }
    }

    /// At a path, for our user alone.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self::Path(path.into(), Access::default())
    }
}

fn mode(options: &Options) -> Result<Option<u32>, OptionError> {
    let Some(text) = options.text("mode") else { return Ok(None) };
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Some).ok_or_else(|| options.bad_value("mode", "an octal number up to 0777"))
}

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another VMM listens there.
    #[error("the API socket {0} is in use by another process")]
    InUse(PathBuf),
    /// Something that is not a socket has that name.
    #[error("the API socket {0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The lock file cannot be made.
    #[error("the lock file of the API socket, {path}, cannot be used")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such group.
    #[error("the API socket cannot belong to group {0:?}: there is no such group")]
    NoGroup(String),
    /// The socket cannot be made.
    #[error("the API socket {path} cannot be made")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The inherited descriptor is of no use.
    #[error("file descriptor {fd} is not a listening unix socket")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listening socket. Dropping it removes its files.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    files: Option<OwnedFiles>,
}

#[derive(Debug)]
struct OwnedFiles {
    socket: PathBuf,
    lock_path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl ApiSocket {
    /// Listens.
    ///
    /// # Errors
    /// When another process does so already, or the system refuses.
    pub fn open(target: &SocketTarget) -> Result<Self, SocketError> {
        match target {
            SocketTarget::Path(path, access) => bind(path, access),
            SocketTarget::Fd(fd) => {
                let listener = inherit(*fd).map_err(|source| SocketError::Inherited { fd: *fd, source })?;
                Ok(Self { listener, files: None })
            }
        }
    }

    /// A handle on the socket for the server.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if let Some(files) = &self.files {
            for path in [&files.socket, &files.lock_path] {
                if let Err(error) = std::fs::remove_file(path) {
                    tracing::debug!("{} was not removed: {error}", path.display());
                }
            }
        }
    }
}

fn bind(path: &Path, access: &Access) -> Result<ApiSocket, SocketError> {
    let group = access.group.as_deref().map(group).transpose()?;
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = lock(&lock_path).map_err(|source| SocketError::Lock { path: lock_path.clone(), source })?;
    let Some(lock) = lock else { return Err(SocketError::InUse(path.to_owned())) };
    let failed = |error: Errno| SocketError::Bind { path: path.to_owned(), source: error.into() };
    let bound = remove_stale(path).and_then(|()| listen(path, group, access.mode()).map_err(failed));
    match bound {
        Ok(listener) => {
            Ok(ApiSocket { listener, files: Some(OwnedFiles { socket: path.to_owned(), lock_path, _lock: lock }) })
        }
        Err(error) => {
            if let Err(error) = std::fs::remove_file(&lock_path) {
                tracing::debug!("{} was not removed: {error}", lock_path.display());
            }
            Err(error)
        }
    }
}

/// A listening socket at `path`.
fn listen(path: &Path, group: Option<Gid>, mode: Mode) -> nix::Result<UnixListener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // On Linux the file gets the mode that its socket has, less the umask.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let made = fchownat(AT_FDCWD, path, None, group, AtFlags::AT_SYMLINK_NOFOLLOW)
        .and_then(|()| fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink))
        .and_then(|()| socket::listen(&socket, Backlog::MAXCONN));
    if let Err(error) = made {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    if mode.contains(Mode::S_IWOTH) {
        tracing::warn!("every user of this host may connect to the API socket {}, and control the VM", path.display());
    }
    Ok(UnixListener::from(socket))
}

fn group(name: &str) -> Result<Gid, SocketError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid).ok_or_else(|| SocketError::NoGroup(name.to_owned()))
}

/// The locked lock file, or `None` if another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        // A FIFO in its place is not waited for.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(path)?;
        // An all-zero `flock` but for its type: from byte 0 to the end of the file.
        let whole = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Its owner may have removed the file between our open and our lock: then we hold a lock that nobody
        // else sees.
        match std::fs::metadata(path) {
            Ok(named) if named.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes the socket of a VMM that is no more. Holding the lock proves that none of ours listens on it;
/// connecting, that nobody else does.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Bind { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse(path.to_owned())),
            Err(_) => std::fs::remove_file(path).map_err(failed),
        },
    }
}

/// Takes over an inherited listening socket so that child processes do not inherit it again.
fn inherit(fd: RawFd) -> io::Result<UnixListener> {
    // SAFETY: the borrow ends with this block; a number that is not open makes the kernel say EBADF.
    let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    if !nix::sys::socket::getsockopt(&own, nix::sys::socket::sockopt::AcceptConn)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    // SAFETY: the number was passed for us to own, it is open (the duplication succeeded), and nothing else
    // here uses it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(UnixListener::from(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path) -> SocketTarget {
        SocketTarget::at(path)
    }

    #[test]
    fn forms_of_the_option() {
        let shared = Access { group: Some("kvm".to_owned()), mode: Some(0o660) };
        for (text, expected) in [
            ("/a/b", SocketTarget::at("/a/b")),
            ("path=/a/b", SocketTarget::at("/a/b")),
            ("fd=7", SocketTarget::Fd(7)),
            ("path=/a,group=kvm,mode=0660", SocketTarget::Path("/a".into(), shared)),
        ] {
            assert_eq!(SocketTarget::from_option(text), Ok(expected));
        }
        for text in
            ["", "path=", "fd=x", "group=kvm", "path=/a,mode=8", "path=/a,mode=1777", "fd=7,group=kvm", "fd=7,path=/a"]
        {
            assert!(SocketTarget::from_option(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_is_for_its_owner_and_a_group_that_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let own = Gid::current().to_string();
        for (access, mode) in [("", 0o600), (",mode=0640", 0o640), (&format!(",group={own}"), 0o660)] {
            let target = SocketTarget::from_option(&format!("path={}{access}", path.display())).unwrap();
            let _socket = ApiSocket::open(&target).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.gid().to_string()), (mode, own.clone()), "{access}");
        }
        let nobody = SocketTarget::from_option(&format!("path={},group=no such group", path.display())).unwrap();
        assert!(matches!(ApiSocket::open(&nobody), Err(SocketError::NoGroup(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn in_use_then_free_then_nothing_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let first = ApiSocket::open(&at(&path)).unwrap();
        assert!(matches!(ApiSocket::open(&at(&path)), Err(SocketError::InUse(_))));
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        ApiSocket::open(&at(&path)).unwrap();
    }

    #[test]
    fn stale_socket_is_replaced_but_not_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(ApiSocket::open(&at(&path)).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::open(&at(&path)), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert!(!dir.path().join("api.lock").exists());
    }

    #[test]
    fn foreign_listener_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let _foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(ApiSocket::open(&at(&path)), Err(SocketError::InUse(_))));
    }
}
