//! The standby's receiving thread: reads the stream, writes pages of the first copy to memory, stages epochs, and passes
//! on only whole ones.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use ft_proto::wire::{Kind, Refusal, WireError, Yielding, decode_body};
use ft_proto::{Epoch, Term};

use crate::guest::Memory;
use crate::image::{Image, WholeImage, apply_pages};
use crate::transport::{TransportError, read_frame};
use crate::witness::chain;

/// What the stream brought.
#[derive(Debug)]
pub enum Received {
    /// Pages of the first copy are in memory.
    Copied {
        /// Bytes of the frame.
        bytes: u64,
    },
    /// An epoch is whole.
    Whole(Box<WholeImage>),
    /// The primary gives the VM up, for this reason.
    Yielded(Term, Yielding, Instant),
    /// The primary leaves in good order.
    Left(Term, String),
    /// The stream ended, broke, or carried something wrong. Nothing follows.
    Ended(String),
}

/// The thread, as its engine sees it.
#[derive(Debug)]
pub struct ReceiverHandle {
    stream: TcpStream,
    spare: Sender<Vec<u8>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ReceiverHandle {
    /// Starts reading `stream`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        stream: TcpStream,
        memory: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<Self> {
        let (spare, spares) = unbounded();
        let reader = stream.try_clone()?;
        let thread = thread::Builder::new().name("ft-recv".to_owned()).spawn(move || {
            let ram = memory.ranges().into();
            let mut worker = Worker { stream: reader, memory, ram, spares, image: None, next: Epoch(1) };
            tell(loop {
                match worker.step() {
                    Ok(Some(last @ (Received::Yielded(..) | Received::Left(..)))) => break last,
                    Ok(Some(received)) => tell(received),
                    Ok(None) => {}
                    Err(error) => break Received::Ended(chain(&error)),
                }
            });
        })?;
        Ok(Self { stream, spare, thread: Some(thread) })
    }

    /// Returns a page buffer for reuse.
    pub fn give_back(&self, buffer: Vec<u8>) {
        // The thread may have ended; then the buffer is simply freed.
        let _ = self.spare.send(buffer);
    }
}

impl Drop for ReceiverHandle {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    stream: TcpStream,
    memory: Arc<dyn Memory>,
    ram: Arc<[Range<u64>]>,
    spares: Receiver<Vec<u8>>,
    image: Option<Image>,
    next: Epoch,
}

impl Worker {
    fn step(&mut self) -> Result<Option<Received>, TransportError> {
        let mut body = self.spares.try_recv().unwrap_or_default();
        let header = read_frame(&mut self.stream, &mut body)?;
        match header.kind {
            Kind::Copy if self.next == Epoch(1) && self.image.is_none() => {
                apply_pages(header.kind, &body, &*self.memory)
                    .map_err(|error| TransportError::Io(io::Error::other(error)))?;
                Ok(Some(Received::Copied { bytes: header.len }))
            }
            Kind::Pages | Kind::State => {
                self.image.get_or_insert_with(|| Image::new(self.next, self.ram.clone())).add(&header, body)?;
                Ok(None)
            }
            Kind::End => {
                let image = self
                    .image
                    .take()
                    .unwrap_or_else(|| Image::new(self.next, self.ram.clone()))
                    .close(&header, &body)?;
                self.next = self.next.next();
                Ok(Some(Received::Whole(Box::new(image))))
            }
            Kind::Yield => Ok(Some(Received::Yielded(header.term, decode_body(header.kind, &body)?, Instant::now()))),
            Kind::Bye => {
                let Refusal { reasons } = decode_body(header.kind, &body)?;
                Ok(Some(Received::Left(header.term, reasons.join("; "))))
            }
            got => Err(WireError::Unexpected { got, expected: "pages, state, end of epoch, yield or bye" }.into()),
        }
    }
}
