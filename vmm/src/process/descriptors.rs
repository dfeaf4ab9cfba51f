//! The vhost-user socket that a device process inherits.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

/// A listening socket with a connection to it already made. Its path is gone when this returns, so nothing
/// can be left behind and nobody else can connect.
pub(super) fn private_listener() -> io::Result<(UnixListener, UnixStream)> {
    let directory = tempfile::Builder::new().prefix("pollux-").tempdir()?;
    let path = directory.path().join("device");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    directory.close()?;
    Ok((listener, stream))
}
