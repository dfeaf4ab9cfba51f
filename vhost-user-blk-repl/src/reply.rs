//! What a standby says on the mirror stream, from whichever thread: its record, which blocks differ, what is durable, and
//! why it refuses.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ft_proto::Epoch;

use crate::lock;
use crate::mirror_wire::{Answer, Frame, Kind, encode, encode_fields};

/// How long a refused peer may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The stream, and whose turn it is to write to it.
pub struct Replies {
    stream: UnixStream,
    turn: Mutex<()>,
}

impl Replies {
    /// On this stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, turn: Mutex::new(()) }
    }

    /// For reading.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The image's record.
    pub fn answer(&self, answer: &Answer) {
        self.say(Kind::Answer, Epoch(0), 0, 0, &encode_fields(answer));
    }

    /// Which blocks from `offset` on differ.
    pub fn differ(&self, offset: u64, mask: u64) {
        self.say(Kind::Differ, Epoch(0), offset, mask, &[]);
    }

    /// Everything up to `epoch` is on stable storage.
    pub fn durable(&self, epoch: Epoch) {
        self.say(Kind::Durable, epoch, 0, 0, &[]);
    }

    /// Why the stream is not taken. Reads on for a moment: closing with unread data would take the reason back.
    pub fn refuse(&self, reason: &str) {
        let mut stream = &self.stream;
        let _ = stream.set_write_timeout(Some(LINGER));
        let _ = stream.set_read_timeout(Some(LINGER));
        let reason = reason.as_bytes();
        if !self.say(Kind::Refused, Epoch(0), 0, 0, &reason[..reason.len().min(512)]) {
            return;
        }
        let _ = stream.shutdown(Shutdown::Write);
        let end = Instant::now() + LINGER;
        let mut sink = vec![0; 64 * 1024];
        while Instant::now() < end && stream.read(&mut sink).is_ok_and(|n| n > 0) {}
    }

    /// Whether it could be said; if not, the thread that reads the stream finds out why.
    fn say(&self, kind: Kind, epoch: Epoch, offset: u64, len: u64, body: &[u8]) -> bool {
        let (header, _) = encode(&Frame { kind, epoch, offset, len }, body);
        let _turn = lock(&self.turn);
        let mut stream = &self.stream;
        stream.write_all(&[&header[..], body].concat()).is_ok()
    }
}
