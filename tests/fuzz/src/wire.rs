//! Frames of the session's stream, through both of its readers and into a standby's memory.
//!
//! Input: how the rest is read: as a stream, or as frames whose headers are to be right.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use ft::sim::{Intake, Received};
use ft_transport::frames::{FrameReader, RecvNow, read_body, read_header};
use ft_wire::packing::Unpacker;
use ft_wire::session::{BODY_MAX, Header, Kind, MESSAGE_MAX};
use ft_wire::hash::hash_of_parts;
use ft_proto::{Epoch, Term, Time};

use crate::bytes::Bytes;
use crate::memory::Ram;

const KINDS: [Kind; 12] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Refuse,
    Kind::Copy,
    Kind::Pages,
    Kind::State,
    Kind::End,
    Kind::Ack,
    Kind::Yield,
    Kind::Bye,
    Kind::Progress,
    Kind::Standing,
];

/// Reads the stream.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let how = bytes.u8();
    let piece = usize::from(bytes.u8()) + 1;
    let stream = if how & 1 == 0 { bytes.rest().to_vec() } else { framed(bytes) };
    receive(&stream);
    poll(&stream, piece);
}

/// Frames of what is left: kind, term, epoch, length, and (of packed ones) length before, then the body.
fn framed(mut bytes: Bytes<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !bytes.is_empty() {
        let (kind, term, epoch) = (bytes.u8(), bytes.u8(), bytes.u8());
        let len = usize::from(bytes.u16());
        let raw = if kind & 0x80 == 0 { None } else { Some(u32::from(bytes.u16()) << 4) };
        let body = bytes.take(len);
        let header = Header {
            kind: KINDS[usize::from(kind) % KINDS.len()],
            term: Term(term.into()),
            epoch: Epoch(epoch.into()),
            len: body.len() as u32,
            raw: raw.unwrap_or(body.len() as u32),
            body_hash: hash_of_parts(&[body]),
        };
        stream.extend_from_slice(&header.encode());
        stream.extend_from_slice(body);
    }
    stream
}

/// As the standby's receiver does.
fn receive(stream: &[u8]) {
    let memory = Arc::<Ram>::default();
    let mut intake = Intake::new(memory.clone(), Arc::default());
    let (mut stream, mut body, mut unpacker) = (stream, Vec::new(), Unpacker::new().unwrap());
    while let Ok(header) = read_header(&mut stream) {
        assert!(header.len.max(header.raw) <= BODY_MAX);
        if read_body(&mut stream, &header, &mut body, &mut unpacker).is_err() {
            return;
        }
        assert_eq!(body.len(), header.raw as usize);
        match intake.take(&header, &mut body, Time::default()) {
            Ok(Some(Received::Whole(image))) => image.apply(&*memory).expect("an epoch that cannot be applied"),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// What arrives piece by piece.
struct Arriving<'a> {
    left: Cell<&'a [u8]>,
    piece: usize,
    pause: Cell<bool>,
}

impl RecvNow for Arriving<'_> {
    fn recv_now(&self, into: &mut [u8]) -> io::Result<usize> {
        if self.pause.replace(!self.pause.get()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let left = self.left.get();
        let len = self.piece.min(into.len()).min(left.len());
        into[..len].copy_from_slice(&left[..len]);
        self.left.set(&left[len..]);
        Ok(len)
    }
}

/// As the engine's thread does: short frames only, and the same ones as a reader that waits.
fn poll(stream: &[u8], piece: usize) {
    let arriving = Arriving { left: Cell::new(stream), piece, pause: Cell::new(false) };
    let mut reader = FrameReader::default();
    let mut at = stream;
    loop {
        match reader.poll(&arriving) {
            Ok(Some((header, body))) => {
                assert!(body.len() <= MESSAGE_MAX as usize);
                assert_eq!(read_header(&mut at).unwrap(), header);
                assert_eq!(&at[..body.len()], body);
                at = &at[body.len()..];
            }
            Ok(None) => {}
            Err(_) => break,
        }
    }
}
