//! The standby's answers on the mirror stream, from several threads: its record, which blocks differ, what is
//! on stable storage, or a refusal.

use std::net::Shutdown;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ft_proto::Epoch;
use ft_transport::mirror::FrameSocket;
use ft_wire::mirror::{Answer, Frame, Kind, encode, encode_fields};
use host_kit::sync::lock;

/// How long a refused peer may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The stream, and a lock for writing to it.
pub struct Replies {
    socket: FrameSocket,
    writing: Mutex<()>,
}

impl Replies {
    /// On this stream.
    pub fn new(socket: FrameSocket) -> Self {
        Self { socket, writing: Mutex::new(()) }
    }

    /// For reading, and for ending the stream.
    pub fn socket(&self) -> &FrameSocket {
        &self.socket
    }

    /// Sends the image's record.
    pub fn answer(&self, answer: &Answer) {
        self.send(Kind::Answer, Epoch(0), 0, 0, &encode_fields(answer));
    }

    /// Reports which blocks from `offset` on differ.
    pub fn differ(&self, offset: u64, mask: u64) {
        self.send(Kind::Differ, Epoch(0), offset, mask, &[]);
    }

    /// Confirms that everything up to `epoch` is on stable storage.
    pub fn durable(&self, epoch: Epoch) {
        self.send(Kind::Durable, epoch, 0, 0, &[]);
    }

    /// Refuses the stream. Reads on for a moment: the kernel would drop the reason if the socket were closed
    /// with unread data.
    pub fn refuse(&self, reason: &str) {
        self.socket.set_timeout(LINGER);
        let reason = reason.as_bytes();
        if !self.send(Kind::Refused, Epoch(0), 0, 0, &reason[..reason.len().min(512)]) {
            return;
        }
        self.socket.shutdown(Shutdown::Write);
        let end = Instant::now() + LINGER;
        let mut sink = vec![0; 64 * 1024];
        while Instant::now() < end && self.socket.skip(&mut sink).is_ok_and(|n| n > 0) {}
    }

    /// Whether it was sent; if not, the thread that reads the stream gets the error.
    fn send(&self, kind: Kind, epoch: Epoch, offset: u64, len: u64, body: &[u8]) -> bool {
        let (header, _) = encode(&Frame { kind, epoch, offset, len }, body);
        let _writing = lock(&self.writing);
        self.socket.write(&header, body).is_ok()
    }
}
