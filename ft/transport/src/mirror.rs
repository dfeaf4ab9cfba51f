//! The socket of a mirror stream, either end of it: whole frames in, whole frames out.

use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use ft_wire::mirror::{Frame, HEADER_LEN, WireError, decode};
use host_kit::sync::lock;
use nix::sys::socket::{setsockopt, sockopt::TcpNoDelay};

use crate::tls::record::{Opener, Sealer, write_all};
use crate::tls::schedule::StreamKeys;

/// Bytes of a protected stream that are read beyond what is needed at once.
const READ_AHEAD: usize = 256 << 10;

/// Why no frame was read.
#[derive(Debug)]
pub enum ReadError {
    /// The stream has ended between two frames.
    Closed,
    /// It has ended within a frame.
    Truncated,
    /// The kernel's answer.
    Io(io::Error),
    /// What came is no frame.
    Wire(WireError),
}

/// A frame, its body and its checksum.
pub type Received = (Frame, Vec<u8>, u64);

/// A mirror stream as a command brings it: its socket, and its keys if it is protected.
#[derive(Debug)]
pub struct MirrorStream {
    /// A connected socket.
    pub socket: OwnedFd,
    /// `None`: it is plain.
    pub keys: Option<StreamKeys>,
}

impl From<OwnedFd> for MirrorStream {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, keys: None }
    }
}

/// A blocking, undelayed stream. One thread may read it and another one write.
#[derive(Debug)]
pub struct FrameSocket {
    stream: UnixStream,
    /// `None`: it is plain.
    tls: Option<(Mutex<Opener>, Mutex<Sealer>)>,
}

impl FrameSocket {
    /// Of a connected socket of any family.
    ///
    /// # Errors
    /// When the descriptor is not a socket.
    pub fn new(MirrorStream { socket, keys }: MirrorStream) -> io::Result<Self> {
        // Not a TCP socket in tests and on one host: nothing to set then.
        let _ = setsockopt(&socket, TcpNoDelay, &true);
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        let tls = keys.map(|StreamKeys { read, write }| {
            let mut opener = Opener::new(read);
            opener.read_ahead(READ_AHEAD);
            (opener.into(), Sealer::new(write).into())
        });
        Ok(Self { stream, tls })
    }

    /// The next frame.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self) -> Result<Received, ReadError> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header, true)?;
        let pending = decode(&header).map_err(ReadError::Wire)?;
        // No larger than needed, since it may be held for long; it is aligned when it is written.
        let mut body = vec![0; pending.body_len()];
        self.fill(&mut body, false)?;
        let (frame, checksum) = pending.finish(&body).map_err(ReadError::Wire)?;
        Ok((frame, body, checksum))
    }

    /// Fills `buf`; the end of the stream is an orderly one only before a frame.
    fn fill(&self, buf: &mut [u8], between_frames: bool) -> Result<(), ReadError> {
        let mut at = 0;
        while at < buf.len() {
            match self.read_some(&mut buf[at..]) {
                Ok(0) if at == 0 && between_frames => return Err(ReadError::Closed),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(ReadError::Truncated),
                Err(e) => return Err(ReadError::Io(e)),
            }
        }
        Ok(())
    }

    fn read_some(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some((opener, _)) => lock(opener).read(into, |into| (&self.stream).read(into)),
            None => (&self.stream).read(into),
        }
    }

    /// Sends an encoded header and its body.
    ///
    /// # Errors
    /// Of the socket.
    pub fn write(&self, header: &[u8], body: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(header), IoSlice::new(body)];
        match &self.tls {
            Some((_, sealer)) => lock(sealer).write(&mut &self.stream, &parts),
            None => write_all(&mut &self.stream, &mut parts),
        }
    }

    /// Limits how long each call waits for the peer.
    pub fn set_timeout(&self, timeout: Duration) {
        // Fails only for a timeout of zero.
        let _ = self.stream.set_write_timeout(Some(timeout));
        let _ = self.stream.set_read_timeout(Some(timeout));
    }

    /// Reads bytes that are not needed; how many.
    pub fn skip(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf)
    }

    /// Ends the stream. Threads that read or write notice.
    pub fn shutdown(&self, how: Shutdown) {
        // May be closed already.
        let _ = self.stream.shutdown(how);
    }
}
