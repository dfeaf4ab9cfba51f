//! The standby's end of a replication stream: images and messages in, by a thread; acknowledgements out.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use ft_proto::wire::{Kind, Refusal, encode_body};
use ft_proto::{Epoch, Term};

use crate::guest::Memory;
use crate::stream::image::WholeImage;
use crate::stream::receiver::{Received, ReceiverHandle};
use crate::transport::frames::{Stamp, write_frame};

/// The end. Dropping it closes the stream and ends the thread: nothing writes to memory from then on.
#[derive(Debug)]
pub(crate) struct StandbyEnd {
    receiver: ReceiverHandle,
    stream: TcpStream,
}

impl StandbyEnd {
    /// Begins to read `stream`. What it brings goes to `tell`, but for pages of the first copy, which go to `memory`.
    pub(crate) fn start(
        stream: TcpStream,
        memory: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<Self> {
        Ok(Self { receiver: ReceiverHandle::start(stream.try_clone()?, memory, tell)?, stream })
    }

    /// This epoch is committed, and the primary is about to be told: it may send one more.
    pub(crate) fn committed(&self, epoch: Epoch) {
        self.receiver.committed(epoch);
    }

    /// Tells the primary that this epoch is held.
    pub(crate) fn acknowledge(&mut self, term: Term, epoch: Epoch) {
        // A stream that is broken ends at the receiving thread.
        let _ = write_frame(&mut self.stream, Stamp { kind: Kind::Ack, term, epoch }, &[]);
    }

    /// Tells the primary why this standby leaves: `Bye`, and it has dropped its copy, or `Refuse`.
    pub(crate) fn say_why(&mut self, kind: Kind, term: Term, reason: &str) {
        let body = encode_body(&Refusal { reasons: vec![reason.to_owned()] });
        let _ = write_frame(&mut self.stream, Stamp { kind, term, epoch: Epoch(0) }, &[&body]);
    }

    /// Gives the page buffers of an image that was applied back to the thread.
    pub(crate) fn recycle(&self, image: &mut WholeImage) {
        image.recycle().for_each(|buffer| self.receiver.give_back(buffer));
    }

    /// Which processor the thread stays on from the next epoch on. `None`: any.
    pub(crate) fn stay_on(&self, cpu: Option<u16>) {
        self.receiver.stay_on(cpu);
    }
}
