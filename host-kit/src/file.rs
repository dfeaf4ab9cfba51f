//! Files that an operator names. What they name may be anything: to open a FIFO must not wait for its other
//! end, and to read from one must not wait for what nobody writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens whatever it is to read what is there at once; otherwise reading fails with
/// [`io::ErrorKind::WouldBlock`], where the kind of file can say so.
///
/// # Errors
/// When it cannot be opened.
pub fn open_nonblocking(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    File::options().read(true).custom_flags(flags.bits()).open(path)
}

/// The directory that `path` is in.
#[must_use]
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_fifo_that_nobody_writes_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(open_nonblocking(&fifo).is_ok());
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(open_nonblocking(&dir.path().join("file")).is_ok());
    }

    #[test]
    fn a_file_is_in_a_directory() {
        assert_eq!((folder(Path::new("/a/b")), folder(Path::new("b"))), (Path::new("/a"), Path::new(".")));
    }
}
