//! The thread that sends frames: the greeting, the plan once the peer has answered, then the queue in order.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use ft_proto::Epoch;
use ft_wire::mirror::{Begin, Digest, Frame, Greeting, Kind, encode, encode_fields};

use crate::mirror::stream::Stream;

/// The thread's state.
pub struct Sender {
    stream: Arc<Stream>,
    /// Of the Write and Zeroes frames in the open epoch.
    digest: Digest,
}

impl Sender {
    /// On this stream.
    #[must_use]
    pub fn new(stream: Arc<Stream>) -> Self {
        Self { stream, digest: Digest::default() }
    }

    /// Greets the peer with a stream that starts in `epoch`, of an image of `size` bytes; then sends until
    /// the stream ends.
    pub fn run(mut self, epoch: Epoch, size: u64, greeting: &Greeting, plan: &Receiver<Begin>) {
        // The feedback thread sees the same error and may know its reason, a refusal by the peer.
        if self.send_all(epoch, size, greeting, plan).is_err() {
            self.stream.socket().shutdown(Shutdown::Write);
        }
    }

    fn send_all(&mut self, epoch: Epoch, size: u64, greeting: &Greeting, plan: &Receiver<Begin>) -> io::Result<()> {
        let hello = Frame { kind: Kind::Hello, epoch, offset: 0, len: size };
        self.send(hello, &encode_fields(greeting))?;
        // No plan: the stream has ended.
        let Ok(begin) = plan.recv() else { return Ok(()) };
        self.send(Frame { kind: Kind::Begin, epoch: Epoch(0), offset: 0, len: 0 }, &encode_fields(&begin))?;
        while let Some((frame, body)) = self.stream.next() {
            self.send(frame, body.bytes())?;
        }
        Ok(())
    }

    fn send(&mut self, mut frame: Frame, body: &[u8]) -> io::Result<()> {
        if frame.kind == Kind::End {
            host_kit::sched::set_realtime(true);
            (frame.offset, frame.len) = (self.digest.count, self.digest.sum);
            self.digest = Digest::default();
        }
        let (header, checksum) = encode(&frame, body);
        if matches!(frame.kind, Kind::Write | Kind::Zeroes) {
            self.digest.add(checksum);
        }
        self.stream.socket().write(&header, body)
    }
}
