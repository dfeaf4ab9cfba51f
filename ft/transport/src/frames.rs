//! Frames on a stream: written from slices, read whole or bit by bit.

use std::io::{self, IoSlice, Read, Write};

use ft_proto::{Epoch, Term};
use ft_wire::hash::hash_of_parts;
use ft_wire::packing::Unpacker;
use ft_wire::session::{HEADER_LEN, Header, Kind, MESSAGE_MAX, WireError};

use crate::tls::TlsError;
use crate::tls::record::write_all;

/// The stream ended, broke, or carried something wrong.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The kernel gave up on it.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// Nothing came, or could be sent, for too long.
    #[error("no answer in time")]
    Late,
    /// It is not protected as it must be, or the peer has given it up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer sent something that this version of the protocol does not allow.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Each part of it is right, but no honest peer sends so much.
    #[error("the peer misbehaves: {0}")]
    Misbehaves(String),
}

impl From<io::Error> for TransportError {
    fn from(error: io::Error) -> Self {
        let error = match error.downcast::<TlsError>() {
            Ok(error) => return Self::Tls(error),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

/// What a frame is sent as.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Kind of frame.
    pub kind: Kind,
    /// The sender's term.
    pub term: Term,
    /// The epoch it belongs to.
    pub epoch: Epoch,
}

/// A frame ready to be written: its header, and the parts of its body one after the other.
#[derive(Debug)]
pub struct Frame<'a> {
    head: [u8; HEADER_LEN],
    parts: &'a [&'a [u8]],
    /// Hash of the body.
    pub hash: u64,
    /// Length of the body.
    pub len: u64,
    /// Its length when it is unpacked.
    pub raw: u64,
}

impl<'a> Frame<'a> {
    /// A frame whose body is `parts`.
    #[must_use]
    pub fn new(stamp: Stamp, parts: &'a [&'a [u8]]) -> Self {
        Self::with_lengths(stamp, parts, None)
    }

    /// A frame whose body, `parts`, becomes `raw` bytes when it is unpacked.
    #[must_use]
    pub fn packed(stamp: Stamp, parts: &'a [&'a [u8]], raw: u32) -> Self {
        Self::with_lengths(stamp, parts, Some(raw))
    }

    fn with_lengths(stamp: Stamp, parts: &'a [&'a [u8]], raw: Option<u32>) -> Self {
        // A longer one is refused by whoever reads its header.
        let len = u32::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).unwrap_or(u32::MAX);
        let Stamp { kind, term, epoch } = stamp;
        let header = Header { kind, term, epoch, len, raw: raw.unwrap_or(len), body_hash: hash_of_parts(parts) };
        Self { head: header.encode(), parts, hash: header.body_hash, len: len.into(), raw: header.raw.into() }
    }
}

/// Writes frames, all of them in one call where the kernel takes so much: each call may wake the reader.
///
/// # Errors
/// When the stream breaks.
pub fn write_frames(stream: &mut impl Write, frames: &[Frame<'_>]) -> Result<(), TransportError> {
    let mut slices = Vec::with_capacity(frames.iter().map(|frame| 1 + frame.parts.len()).sum());
    for frame in frames {
        slices.push(IoSlice::new(&frame.head));
        slices.extend(frame.parts.iter().map(|part| IoSlice::new(part)));
    }
    Ok(write_all(stream, &mut slices)?)
}

/// Writes one frame whose body is `parts` one after the other; returns the hash and the length of the body.
///
/// # Errors
/// When the stream breaks.
pub fn write_frame(stream: &mut impl Write, stamp: Stamp, parts: &[&[u8]]) -> Result<(u64, u64), TransportError> {
    let frame = Frame::new(stamp, parts);
    write_frames(stream, std::slice::from_ref(&frame))?;
    Ok((frame.hash, frame.len))
}

/// Reads one frame that is not packed, blocking; `body` is overwritten and keeps its capacity.
///
/// # Errors
/// When the stream breaks or the frame is not right.
#[cfg(test)]
pub fn read_frame(stream: &mut impl Read, body: &mut Vec<u8>) -> Result<Header, TransportError> {
    let header = read_header(stream)?;
    read_bytes(stream, &header, body)?;
    Ok(header)
}

/// Reads the header of a frame, blocking; its body must be read next.
///
/// # Errors
/// When the stream breaks or the header is not right.
pub fn read_header(stream: &mut impl Read) -> Result<Header, TransportError> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    Ok(Header::decode(&head)?)
}

/// Reads the body of a frame, blocking, and unpacks it if need be; `body` is overwritten and keeps its
/// capacity.
///
/// # Errors
/// When the stream breaks or the body is not what the header says.
pub fn read_body(
    stream: &mut impl Read,
    header: &Header,
    body: &mut Vec<u8>,
    unpacker: &mut Unpacker,
) -> Result<(), TransportError> {
    if !header.is_packed() {
        return read_bytes(stream, header, body);
    }
    read_bytes(stream, header, unpacker.packed())?;
    Ok(unpacker.unpack(header, body)?)
}

fn read_bytes(stream: &mut impl Read, header: &Header, bytes: &mut Vec<u8>) -> Result<(), TransportError> {
    // Bounded by `Header::decode`.
    bytes.resize(usize::try_from(header.len).unwrap_or(usize::MAX), 0);
    stream.read_exact(bytes)?;
    Ok(header.check_body(bytes)?)
}

/// Bytes that are read as they come.
pub trait RecvNow {
    /// Reads what has arrived; nothing: the other end is closed.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. Else the stream broke.
    fn recv_now(&self, into: &mut [u8]) -> io::Result<usize>;
}

/// Reads short frames, those without pages and state, from a stream that must not block its reader.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Whether nothing has arrived after the last whole frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next frame, if all of it has arrived.
    ///
    /// # Errors
    /// When the stream breaks or the frame is not right.
    pub fn poll(&mut self, stream: &impl RecvNow) -> Result<Option<(Header, Vec<u8>)>, TransportError> {
        loop {
            if let Some(frame) = self.whole_frame()? {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 4096];
            match stream.recv_now(&mut chunk) {
                Ok(0) => return Err(TransportError::Closed),
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn whole_frame(&mut self) -> Result<Option<(Header, Vec<u8>)>, TransportError> {
        let Some(head) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::decode(head)?;
        if header.kind.body_max() > MESSAGE_MAX {
            return Err(WireError::Unexpected { got: header.kind, expected: "a message" }.into());
        }
        let end = HEADER_LEN + usize::try_from(header.len).unwrap_or(usize::MAX);
        if self.buffer.len() < end {
            return Ok(None);
        }
        let body = self.buffer[HEADER_LEN..end].to_vec();
        self.buffer.drain(..end);
        header.check_body(&body)?;
        Ok(Some((header, body)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::stream::Stream;

    const STAMP: Stamp = Stamp { kind: Kind::Pages, term: Term(2), epoch: Epoch(3) };

    #[test]
    fn frames_from_parts_come_back_whole() {
        let mut wire = Vec::new();
        write_frame(&mut wire, STAMP, &[b"ab", b"", b"cde"]).unwrap();
        write_frame(&mut wire, Stamp { kind: Kind::Ack, ..STAMP }, &[]).unwrap();
        let (mut from, mut body) = (&wire[..], Vec::new());
        let first = read_frame(&mut from, &mut body).unwrap();
        assert_eq!((first.kind, first.epoch, &body[..]), (Kind::Pages, Epoch(3), &b"abcde"[..]));
        assert_eq!(read_frame(&mut from, &mut body).unwrap().kind, Kind::Ack);
        assert!(matches!(read_frame(&mut from, &mut body), Err(TransportError::Closed)));
    }

    #[test]
    fn a_changed_byte_is_refused() {
        let mut wire = Vec::new();
        write_frame(&mut wire, STAMP, &[b"abcde"]).unwrap();
        for at in 0..wire.len() {
            let mut wrong = wire.clone();
            wrong[at] ^= 0x10;
            assert!(read_frame(&mut &wrong[..], &mut Vec::new()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_polled_stream_yields_a_frame_only_when_it_is_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut wire = Vec::new();
        write_frame(&mut wire, Stamp { kind: Kind::Bye, ..STAMP }, &[b"abcde"]).unwrap();
        let mut reader = FrameReader::default();
        let (last, most) = wire.split_last().unwrap();
        out.write_all(most).unwrap();
        stream.peek(&mut [0]).unwrap();
        let stream = Stream::accepted(stream, Duration::from_secs(60), None).unwrap().step().unwrap().unwrap();
        assert!(reader.poll(&stream).unwrap().is_none());
        out.write_all(&[*last]).unwrap();
        let (_, body) = loop {
            if let Some(frame) = reader.poll(&stream).unwrap() {
                break frame;
            }
        };
        assert_eq!(body, b"abcde");
    }
}
