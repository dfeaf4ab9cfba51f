//! What a standby says on the mirror stream, from whichever thread: its record, which blocks differ, what is on stable storage,
//! and why it refuses.

use std::net::Shutdown;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ft_proto::Epoch;

use crate::frame_socket::FrameSocket;
use crate::lock;
use crate::mirror_wire::{Answer, Frame, Kind, encode, encode_fields};

/// How long a refused peer may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The stream, and whose turn it is to write to it.
pub struct Replies {
    socket: FrameSocket,
    turn: Mutex<()>,
}

impl Replies {
    /// On this stream.
    pub fn new(socket: FrameSocket) -> Self {
        Self { socket, turn: Mutex::new(()) }
    }

    /// For reading, and for ending the stream.
    pub fn socket(&self) -> &FrameSocket {
        &self.socket
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
        self.socket.set_timeout(LINGER);
        let reason = reason.as_bytes();
        if !self.say(Kind::Refused, Epoch(0), 0, 0, &reason[..reason.len().min(512)]) {
            return;
        }
        self.socket.shutdown(Shutdown::Write);
        let end = Instant::now() + LINGER;
        let mut sink = vec![0; 64 * 1024];
        while Instant::now() < end && self.socket.skip(&mut sink).is_ok_and(|n| n > 0) {}
    }

    /// Whether it could be said; if not, the thread that reads the stream finds out why.
    fn say(&self, kind: Kind, epoch: Epoch, offset: u64, len: u64, body: &[u8]) -> bool {
        let (header, _) = encode(&Frame { kind, epoch, offset, len }, body);
        let _turn = lock(&self.turn);
        self.socket.write(&header, body).is_ok()
    }
}
