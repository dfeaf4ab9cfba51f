//! The primary's end of a replication stream: images and messages out, by a thread; what the standby says, in.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use ft_proto::Term;
use ft_proto::wire::Header;
use host_kit::error::chain;

use crate::stream::history::History;
use crate::stream::sender::{Job, SenderHandle, Sent};
use crate::transport::frames::FrameReader;
use crate::transport::path::explain;

/// The end. Dropping it breaks the stream, with whatever is on its way.
#[derive(Debug)]
pub(crate) struct PrimaryEnd {
    sender: SenderHandle,
    stream: TcpStream,
    reader: FrameReader,
}

impl PrimaryEnd {
    /// Begins to send on `stream`. What becomes of that goes to `tell`.
    pub(crate) fn start(
        stream: TcpStream,
        term: Term,
        history: impl FnOnce() -> Option<History> + Send + 'static,
        tell: impl Fn(Sent) + Send + 'static,
    ) -> Result<Self, String> {
        let writer = stream.try_clone();
        let writer = writer.map_err(|error| format!("cannot use the connection: {}", chain(&error)))?;
        let sender = SenderHandle::start(writer, term, history, tell);
        let sender = sender.map_err(|error| format!("cannot start a thread: {}", chain(&error)))?;
        Ok(Self { sender, stream, reader: FrameReader::default() })
    }

    /// Queues a job.
    pub(crate) fn send(&self, job: Job) {
        self.sender.send(job);
    }

    /// The next frame of the standby, if all of it has arrived; or why there is none any more.
    pub(crate) fn read(&mut self) -> Result<Option<(Header, Vec<u8>)>, String> {
        self.reader.poll(&self.stream).map_err(|error| explain(&error, &self.stream, None))
    }

    /// Sends what is queued and `last`, then closes.
    pub(crate) fn leave(self, last: Job) {
        self.sender.leave(last);
    }
}

impl AsFd for PrimaryEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
