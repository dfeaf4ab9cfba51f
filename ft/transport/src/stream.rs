//! A TCP stream between two hosts: of a session, of a mirrored disk, or of somebody who only asks. Each
//! begins here, on both sides, and nowhere else: `Stream::dialled` where it was called from,
//! `Stream::accepted` where it was answered. What every such stream needs is done in these two, TLS first.

use std::ffi::OsString;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_kit::sync::lock;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::connection::Connection;
use crate::frames::{RecvNow, TransportError};
use crate::path;
use crate::tls::TlsError;
use crate::tls::credentials::{Credentials, CredentialsError, name_of};
use crate::tls::handshake::{Agreed, Handshake};
use crate::tls::record::{Opener, Sealer};
use crate::tls::schedule::StreamKeys;

/// Kinds of congestion control that do not pace; the first one that this host has is used.
const BURSTS: [&str; 2] = ["cubic", "reno"];
/// More than the other host has to say until it closes its side.
const LAST_WORDS: usize = 64 << 10;

/// A stream between two hosts. Until its greeting is over, reading and writing are limited in time. One
/// thread may read it and another one write.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    /// `None`: what is on it, anybody on the way can read and change.
    tls: Option<Arc<Tls>>,
}

/// The two directions of a stream that is protected.
#[derive(Debug)]
struct Tls {
    opener: Mutex<Opener>,
    sealer: Mutex<Sealer>,
    /// The name in the other host's certificate.
    peer: Option<String>,
}

/// A stream whose handshake is not over.
#[derive(Debug)]
pub(crate) struct Arriving {
    tcp: TcpStream,
    /// `None`: there is none.
    handshake: Option<Handshake>,
}

/// No stream comes of a connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers, or the connection broke.
    #[error(transparent)]
    Io(io::Error),
    /// The other end is not who it must be, or does not take this host for who it is.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// This host cannot say who it is.
    #[error("this host's credentials for TLS cannot be used")]
    Credentials(#[from] CredentialsError),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        error.downcast::<TlsError>().map_or_else(Self::Io, Self::Tls)
    }
}

impl Arriving {
    /// Goes on with the handshake as far as what has arrived allows; the stream, once it is over.
    pub(crate) fn step(&mut self) -> Result<Option<Stream>, OpenError> {
        let Some(handshake) = &mut self.handshake else { return Ok(Some(Stream::over(self.tcp.try_clone()?, None))) };
        let tcp = &self.tcp;
        let agreed = handshake.step(&mut &self.tcp, |into| recv_now(tcp, into))?;
        Ok(agreed.map(|agreed| Ok::<_, io::Error>(Stream::over(self.tcp.try_clone()?, Some(agreed)))).transpose()?)
    }

    /// There will be no agreement: the rest is only waited for. Nothing more is written.
    pub(crate) fn give_up(self) -> Stream {
        let _ = self.tcp.shutdown(Shutdown::Write);
        Stream::over(self.tcp, None)
    }
}

impl AsFd for Arriving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Stream {
    /// The caller's side; without `tls` it is plain. What it sends is not paced: an epoch is a burst that the
    /// guest's output waits for, and congestion control that paces (BBR, the default of some hosts) would
    /// stretch it although the link is free.
    ///
    /// # Errors
    /// When the connection is gone already, or there is no agreement with the other side within `patience`.
    pub(crate) fn dialled(tcp: TcpStream, patience: Duration, tls: Option<&Credentials>) -> Result<Self, OpenError> {
        let set = |name: &&str| setsockopt(&tcp, sockopt::TcpCongestion, &OsString::from(name)).is_ok();
        // With any other one it works, too, only slower.
        let _ = BURSTS.iter().any(set);
        limit_greeting(&tcp, patience)?;
        let Some(credentials) = tls else { return Ok(Self::over(tcp, None)) };
        let mut handshake = Handshake::calling(&*credentials.current()?)?;
        let deadline = Instant::now() + patience;
        let agreed = handshake.step(&mut &tcp, |into| {
            // Zero would mean for ever.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            tcp.set_read_timeout(Some(left))?;
            (&tcp).read(into)
        })?;
        tcp.set_read_timeout(Some(patience))?;
        let agreed = agreed.ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))?;
        Ok(Self::over(tcp, Some(agreed)))
    }

    /// The side that was called; without `tls` it is plain.
    ///
    /// # Errors
    /// When the connection is gone already, or this host cannot say who it is.
    pub(crate) fn accepted(
        tcp: TcpStream,
        patience: Duration,
        tls: Option<&Credentials>,
    ) -> Result<Arriving, OpenError> {
        limit_greeting(&tcp, patience)?;
        let current = tls.map(Credentials::current).transpose()?;
        let handshake = current.map(|current| Handshake::called(&current)).transpose()?;
        Ok(Arriving { tcp, handshake })
    }

    fn over(tcp: TcpStream, agreed: Option<Agreed>) -> Self {
        let tls = agreed.map(|Agreed { keys: StreamKeys { read, write }, peer }| {
            let (opener, sealer) = (Opener::new(read).into(), Sealer::new(write).into());
            Arc::new(Tls { opener, sealer, peer: name_of(&peer) })
        });
        Self { tcp, tls }
    }

    /// No attempt to read or write waits any more.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        self.tcp.set_nonblocking(true)
    }

    /// The same stream, for another thread.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { tcp: self.tcp.try_clone()?, tls: self.tls.clone() })
    }

    /// From now on more is read at a time than is needed at once. The stream stays in this process then.
    pub fn read_ahead(&self, bytes: usize) {
        if let Some(tls) = &self.tls {
            lock(&tls.opener).read_ahead(bytes);
        }
    }

    /// What another process needs to go on with this stream's descriptor; `None`: nothing, it is plain.
    ///
    /// # Errors
    /// When something that was received is still here.
    pub fn keys(&self) -> Result<Option<StreamKeys>, TlsError> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let read = lock(&tls.opener).direction().ok_or(TlsError::Unexpected("before its stream was given away"))?;
        Ok(Some(StreamKeys { read, write: lock(&tls.sealer).direction() }))
    }

    /// Why it failed, for people; `sent`: so many bytes were to go out in one piece.
    #[must_use]
    pub fn explain(&self, error: &TransportError, sent: Option<usize>) -> String {
        path::explain(error, &self.tcp, sent)
    }

    /// Breaks it: threads that read or write notice.
    pub fn break_off(&self) {
        // May be broken already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Limits how long each attempt to write may take.
    pub fn limit_writes(&self, limit: Duration) {
        // Fails only for a limit of zero.
        let _ = self.tcp.set_write_timeout(Some(limit));
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
            let read = self.tcp.set_read_timeout(Some(time)).and_then(|()| (&self.tcp).read(&mut bytes));
            match read {
                Ok(len @ 1..) if Instant::now() < deadline => left = left.saturating_sub(len),
                _ => return,
            }
        }
    }
}

fn limit_greeting(tcp: &TcpStream, patience: Duration) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(patience))?;
    tcp.set_write_timeout(Some(patience))
}

fn recv_now(tcp: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(tcp.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
}

impl Connection for Stream {
    fn end_greeting(&self) -> io::Result<()> {
        self.tcp.set_read_timeout(None)?;
        self.tcp.set_write_timeout(None)
    }

    fn finish(&self) {
        // Where somebody still writes, the other end learns from the TCP connection alone that it is over.
        if let Some(Ok(mut sealer)) = self.tls.as_ref().map(|tls| tls.sealer.try_lock()) {
            let _ = sealer.close(&mut &self.tcp);
        }
        // The other end may be gone; it finds out by itself.
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    fn peer_name(&self) -> Option<String> {
        self.tls.as_ref()?.peer.clone()
    }

    fn limit_silence(&self) {
        path::limit_silence(&self.tcp);
    }

    fn explain(&self, error: &TransportError) -> String {
        Self::explain(self, error, None)
    }
}

impl RecvNow for Stream {
    fn recv_now(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some(tls) => lock(&tls.opener).read(into, |into| recv_now(&self.tcp, into)),
            None => recv_now(&self.tcp, into),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some(tls) => lock(&tls.opener).read(into, |into| (&self.tcp).read(into)),
            None => self.tcp.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    /// A stream that is protected takes all of them.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.tcp.write_vectored(slices) };
        lock(&tls.sealer).write(&mut &self.tcp, slices)?;
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
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
        let stream = Stream::dialled(tcp, Duration::from_secs(5), None).unwrap();
        let name = getsockopt(&stream, sockopt::TcpCongestion).unwrap();
        assert!(BURSTS.iter().any(|burst| name.to_string_lossy().trim_end_matches('\0') == *burst), "{name:?}");
    }
}
