//! A TCP stream between two hosts: of a session, of a mirrored disk, or of somebody who only asks. Each
//! begins here, on both sides, and nowhere else: `Stream::dialled` where it was called from,
//! `Stream::accepted` where it was answered. What every such stream needs is done in these two.

use std::ffi::OsString;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::connection::Connection;
use crate::frames::{RecvNow, TransportError};
use crate::path;

/// Kinds of congestion control that do not pace; the first one that this host has is used.
const BURSTS: [&str; 2] = ["cubic", "reno"];
/// More than the other host has to say until it closes its side.
const LAST_WORDS: usize = 64 << 10;

/// A stream between two hosts. Until its greeting is over, reading and writing are limited in time.
#[derive(Debug)]
pub struct Stream(TcpStream);

impl Stream {
    /// The caller's side. What it sends is not paced: an epoch is a burst that the guest's output waits for,
    /// and congestion control that paces (BBR, the default of some hosts) would stretch it although the link
    /// is free.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub(crate) fn dialled(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        let set = |name: &&str| setsockopt(&stream, sockopt::TcpCongestion, &OsString::from(name)).is_ok();
        // With any other one it works, too, only slower.
        let _ = BURSTS.iter().any(set);
        Self::greeting(stream, patience)
    }

    /// The side that was called.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub(crate) fn accepted(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        Self::greeting(stream, patience)
    }

    fn greeting(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(stream))
    }

    /// No attempt to read or write waits any more.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        self.0.set_nonblocking(true)
    }

    /// The same stream, for another thread.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Why it failed, for people; `sent`: so many bytes were to go out in one piece.
    #[must_use]
    pub fn explain(&self, error: &TransportError, sent: Option<usize>) -> String {
        path::explain(error, &self.0, sent)
    }

    /// Breaks it: threads that read or write notice.
    pub fn break_off(&self) {
        // May be broken already.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Limits how long each attempt to write may take.
    pub fn limit_writes(&self, limit: Duration) {
        // Fails only for a limit of zero.
        let _ = self.0.set_write_timeout(Some(limit));
    }

    /// Ends it so that the other host reads everything: to close a stream with words that nobody has read
    /// resets it, and the other host may lose what it has not read yet. So what it still says is read, but
    /// neither for longer than `limit` nor without end.
    pub fn finish_and_drain(&self, limit: Duration) {
        self.finish();
        let deadline = Instant::now() + limit;
        let (mut bytes, mut left) = ([0; 4096], LAST_WORDS);
        while left > 0 {
            // Zero would mean for ever.
            let time = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            let read = self.0.set_read_timeout(Some(time)).and_then(|()| (&self.0).read(&mut bytes));
            match read {
                Ok(len @ 1..) if Instant::now() < deadline => left = left.saturating_sub(len),
                _ => return,
            }
        }
    }
}

impl Connection for Stream {
    fn end_greeting(&self) -> io::Result<()> {
        self.0.set_read_timeout(None)?;
        self.0.set_write_timeout(None)
    }

    fn finish(&self) {
        // The other end may be gone; it finds out by itself.
        let _ = self.0.shutdown(Shutdown::Write);
    }

    fn limit_silence(&self) {
        path::limit_silence(&self.0);
    }

    fn explain(&self, error: &TransportError) -> String {
        Self::explain(self, error, None)
    }
}

impl RecvNow for Stream {
    fn recv_now(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn the_stream_is_not_paced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::dialled(tcp, Duration::from_secs(5)).unwrap();
        let name = getsockopt(&stream, sockopt::TcpCongestion).unwrap();
        assert!(BURSTS.iter().any(|burst| name.to_string_lossy().trim_end_matches('\0') == *burst), "{name:?}");
    }
}
