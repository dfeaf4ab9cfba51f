//! The mirror stream of a disk, as the standby's disk process reads it, up to the writes that it holds.
//!
//! Input: how the rest is read: as a stream, or as frames whose headers are to be right.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use ft_proto::Epoch;
use ft_transport::mirror::{FrameSocket, MirrorStream, Received};
use vhost_user_blk_repl::fuzzing::{Change, Incoming, Range, Step};
use vhost_user_blk_repl::image::regions::Regions;
use ft_wire::mirror::{Answer, Begin, Frame, Greeting, Kind, Name, decode_fields, encode};

use crate::bytes::Bytes;

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 4 << 20;
/// The most that the standby holds.
const LIMIT: u64 = 64 << 10;
/// What a socket takes without a reader.
const STREAM_MAX: usize = 128 << 10;

pub(crate) const KINDS: [Kind; 15] = [
    Kind::Hello,
    Kind::Copy,
    Kind::CopyZero,
    Kind::Write,
    Kind::Zeroes,
    Kind::SyncDone,
    Kind::End,
    Kind::Refused,
    Kind::Answer,
    Kind::Begin,
    Kind::Hashes,
    Kind::Differ,
    Kind::Persist,
    Kind::Durable,
    Kind::Renamed,
];

/// Reads the stream.
pub fn run(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let stream = if how & 1 == 0 { rest.to_vec() } else { framed(Bytes::new(rest)) };
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(&stream[..stream.len().min(STREAM_MAX)]).unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let socket = FrameSocket::new(MirrorStream { socket: near.into(), keys: None }).unwrap();
    let mut incoming = Incoming::new(SIZE, LIMIT);
    while let Ok(received) = socket.read() {
        if take(&mut incoming, received).is_none() {
            break;
        }
        assert!(incoming.held() <= LIMIT);
    }
    end(incoming);
}

/// Frames of what is left: kind, epoch, offset and length in sectors (or, of a greeting, the disk's), and the
/// body where the kind has one.
fn framed(mut bytes: Bytes<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !bytes.is_empty() {
        let kind = KINDS[usize::from(bytes.u8()) % KINDS.len()];
        let (epoch, offset, sectors) = (bytes.u8(), u64::from(bytes.u16()), u64::from(bytes.u8()));
        let body = match kind {
            Kind::Copy | Kind::Write => vec![bytes.u8(); sectors as usize * 512],
            Kind::Hashes => vec![bytes.u8(); (sectors * 512).div_ceil(4096) as usize * 16],
            Kind::Hello | Kind::Refused | Kind::Answer | Kind::Begin | Kind::Persist => {
                let len = usize::from(bytes.u8());
                bytes.take(len).to_vec()
            }
            _ => Vec::new(),
        };
        let (offset, len) = match kind {
            Kind::Hello => (0, SIZE),
            // Numbers of writes and their digest, which the input has from a seed if it is to be right.
            Kind::End => (offset, bytes.u64()),
            _ => (offset * 512, sectors * 512),
        };
        let (header, _) = encode(&Frame { kind, epoch: Epoch(epoch.into()), offset, len }, &body);
        stream.extend_from_slice(&header);
        stream.extend_from_slice(&body);
    }
    stream
}

/// The effects of a frame, but for those on the image.
fn take(incoming: &mut Incoming, (frame, body, checksum): Received) -> Option<()> {
    // A standby's own frames never get this far.
    if let (Kind::Answer, Ok(Answer { marks, .. })) = (frame.kind, decode_fields::<Answer>(frame.kind, &body)) {
        let _ = Regions::from_bytes(SIZE, &marks);
    }
    match incoming.accept(&frame, checksum).ok()? {
        Step::Greeted => drop(decode_fields::<Greeting>(frame.kind, &body).ok()?),
        Step::Begun => {
            let begin: Begin = decode_fields(frame.kind, &body).ok()?;
            if let Some(marks) = Regions::from_bytes(SIZE, &begin.marks) {
                assert!(marks.ranges().iter().all(|range| range.end() <= SIZE));
            }
        }
        Step::Persist => drop(decode_fields::<Name>(frame.kind, &body).ok()?),
        Step::Hold => {
            let data = (frame.kind == Kind::Write).then_some(body);
            incoming.hold(frame.epoch, change(&frame, data)).ok()?;
        }
        Step::Apply => drop(change(&frame, matches!(frame.kind, Kind::Copy | Kind::Write).then_some(body))),
        Step::Complete(epoch) => {
            if epoch.0.is_multiple_of(2) {
                incoming.release(epoch).expect("a complete epoch");
            }
        }
        Step::Compare | Step::Synced | Step::Renamed => {}
    }
    Some(())
}

/// One that can be applied: inside the disk, and as many bytes as it says.
fn change(frame: &Frame, data: Option<Vec<u8>>) -> Change {
    let range = Range::new(frame.offset, frame.len);
    assert!(range.offset.checked_add(range.len).is_some_and(|end| end <= SIZE));
    assert!(data.as_ref().is_none_or(|data| data.len() as u64 == range.len));
    Change { range, data }
}

/// The stream is over: what was not complete is gone, and a takeover has the last epoch or none.
fn end(mut incoming: Incoming) {
    incoming.discard_incomplete();
    let released = incoming.released();
    let _ = incoming.discard_after(released);
    assert_eq!(incoming.held(), 0);
}
