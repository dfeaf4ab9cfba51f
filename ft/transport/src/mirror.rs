//! The socket of a mirror stream, either end of it: whole frames in, whole frames out.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ft_wire::mirror::{Frame, HEADER_LEN, WireError, decode};
use nix::sys::socket::{setsockopt, sockopt::TcpNoDelay};

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

/// A blocking, undelayed stream.
#[derive(Debug)]
pub struct FrameSocket {
    stream: UnixStream,
}

impl FrameSocket {
    /// Of a connected socket of any family.
    ///
    /// # Errors
    /// When the descriptor is not a socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // Not a TCP socket in tests and on one host: nothing to set then.
        let _ = setsockopt(&fd, TcpNoDelay, &true);
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false)?;
        Ok(Self { stream })
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
            match (&self.stream).read(&mut buf[at..]) {
                Ok(0) if at == 0 && between_frames => return Err(ReadError::Closed),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(ReadError::Io(e)),
            }
        }
        Ok(())
    }

    /// Sends an encoded header and its body.
    ///
    /// # Errors
    /// Of the socket.
    pub fn write(&self, header: &[u8], body: &[u8]) -> io::Result<()> {
        let mut stream = &self.stream;
        let mut sent = loop {
            match stream.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => break n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        if sent < header.len() {
            stream.write_all(&header[sent..])?;
            sent = header.len();
        }
        stream.write_all(&body[sent - header.len()..])
    }

    /// Limits how long each call waits for the peer.
    pub fn set_timeout(&self, timeout: Duration) {
        // Fails only for a timeout of zero.
        let _ = self.stream.set_write_timeout(Some(timeout));
        let _ = self.stream.set_read_timeout(Some(timeout));
    }

    /// Reads bytes that are not needed; how many.
    pub fn skip(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buf)
    }

    /// Ends the stream. Threads that read or write notice.
    pub fn shutdown(&self, how: Shutdown) {
        // May be closed already.
        let _ = self.stream.shutdown(how);
    }
}
