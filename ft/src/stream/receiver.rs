//! The standby's receiving thread: reads the stream, writes pages of the first copy to memory, stages epochs,
//! and passes on only whole ones.
//!
//! What is staged is bounded whatever the peer does. An epoch has no more pages than the guest, and no more
//! than [`Settings::depth`] epochs wait to be committed, since an honest primary cuts no further before it is
//! told that one is: a stream that goes on ends. Of what the first copy is said to have reached the last word
//! waits.

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use ft_proto::packing::Unpacker;
use ft_proto::pages::PAGE;
use ft_proto::wire::{CopyProgress, Kind, Refusal, WireError, Yielding, decode_body};
use ft_proto::{Epoch, Settings, Term};
use host_kit::error::chain;

use crate::guest::Memory;
use crate::stream::image::{Image, WholeImage, apply_pages};
use crate::transport::frames::{TransportError, read_body, read_header};

/// Small frames are read together with the header of the next one.
const READ_AHEAD: usize = 16 << 10;
/// Page buffers that are kept for reuse: about a sixteenth of guest memory. What a large epoch needed beyond
/// that goes back to the host.
const SPARE_SHARE: u64 = 16;
/// About what a buffer takes, in pages.
const SPARE_PAGES: u64 = 128;
/// And so many in the smallest guest.
const SPARES_MIN: u64 = 8;
/// A buffer that is larger than an honest primary's frames make it is not kept.
const SPARE_BYTES: usize = 2 * 128 * (PAGE + 8);
/// No processor in particular.
const ANYWHERE: u32 = u32::MAX;

/// What the stream brought.
#[derive(Debug)]
pub enum Received {
    /// The primary says how far it is with the first copy.
    Progress(LastProgress),
    /// An epoch is whole.
    Whole(Box<WholeImage>),
    /// The primary gives the VM up, for this reason.
    Yielded(Term, Yielding, Instant),
    /// The primary leaves in good order.
    Left(Term, String),
    /// The stream ended, broke, or carried something wrong. Nothing follows.
    Ended(String),
}

/// The last word about the first copy, until it is read.
#[derive(Clone, Debug, Default)]
pub struct LastProgress(Arc<Mutex<Option<CopyProgress>>>);

impl LastProgress {
    /// Returns whether the word before it has been read.
    fn put(&self, progress: CopyProgress) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(progress).is_none()
    }

    /// Reads it.
    #[must_use]
    pub fn take(&self) -> Option<CopyProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The thread, as its engine sees it.
#[derive(Debug)]
pub struct ReceiverHandle {
    stream: TcpStream,
    spare: Sender<Vec<u8>>,
    place: Arc<AtomicU32>,
    committed: Arc<AtomicU64>,
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
        let ram: Arc<[Range<u64>]> = memory.ranges().into();
        let pages: u64 = ram.iter().map(|range| range.end - range.start).sum();
        let most = (pages / SPARE_SHARE / SPARE_PAGES).max(SPARES_MIN);
        let (spare, spares) = bounded(usize::try_from(most).unwrap_or(usize::MAX));
        let reader = stream.try_clone()?;
        let place = Arc::new(AtomicU32::new(ANYWHERE));
        let committed = Arc::new(AtomicU64::new(0));
        let mut worker = Worker {
            stream: BufReader::with_capacity(READ_AHEAD, reader),
            memory,
            ram,
            spares,
            spare: Vec::new(),
            unpacker: Unpacker::new()?,
            place: place.clone(),
            committed: committed.clone(),
            progress: LastProgress::default(),
            image: None,
            next: Epoch(1),
        };
        let thread = host_kit::thread::spawn("ft-recv", move || {
            tell(loop {
                match worker.step() {
                    Ok(Some(last @ (Received::Yielded(..) | Received::Left(..)))) => break last,
                    Ok(Some(received)) => tell(received),
                    Ok(None) => {}
                    Err(error) => break Received::Ended(chain(&error)),
                }
            });
        })?;
        Ok(Self { stream, spare, place, committed, thread: Some(thread) })
    }

    /// Which processor the thread stays on from the next epoch on. `None`: any.
    pub fn stay_on(&self, cpu: Option<u16>) {
        self.place.store(cpu.map_or(ANYWHERE, u32::from), Ordering::Relaxed);
    }

    /// This epoch is committed, and the primary is about to be told: it may send one more.
    pub fn committed(&self, epoch: Epoch) {
        self.committed.store(epoch.0, Ordering::Release);
    }

    /// Returns a page buffer for reuse.
    pub fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() > SPARE_BYTES {
            return;
        }
        // There may be enough of them, or the thread may have ended: then the buffer is simply freed.
        let _ = self.spare.try_send(buffer);
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
    stream: BufReader<TcpStream>,
    memory: Arc<dyn Memory>,
    ram: Arc<[Range<u64>]>,
    spares: Receiver<Vec<u8>>,
    /// The buffer of the last frame of the first copy.
    spare: Vec<u8>,
    unpacker: Unpacker,
    /// Where to stay.
    place: Arc<AtomicU32>,
    committed: Arc<AtomicU64>,
    progress: LastProgress,
    image: Option<Image>,
    next: Epoch,
}

impl Worker {
    /// The epoch that is being received, or the next one, if it is time for that.
    fn open_image(&mut self) -> Result<Image, TransportError> {
        if let Some(image) = self.image.take() {
            return Ok(image);
        }
        let (epoch, committed) = (self.next, self.committed.load(Ordering::Acquire));
        if epoch.0 - committed > Settings::default().depth as u64 {
            let what = format!("it sends epoch {epoch} although no epoch after {committed} is committed");
            return Err(TransportError::Misbehaves(what));
        }
        Ok(Image::new(epoch, self.ram.clone()))
    }

    fn step(&mut self) -> Result<Option<Received>, TransportError> {
        let header = read_header(&mut self.stream)?;
        // State and ends are small: the buffers that come back are for pages.
        let pages = matches!(header.kind, Kind::Copy | Kind::Pages);
        let mut body =
            if pages { self.spares.try_recv().unwrap_or_else(|_| std::mem::take(&mut self.spare)) } else { Vec::new() };
        read_body(&mut self.stream, &header, &mut body, &mut self.unpacker)?;
        if self.next > Epoch(1) {
            // The first copy and its epoch have time.
            host_kit::sched::set_realtime(true);
            host_kit::sched::pin_to_cpu(self.place.load(Ordering::Relaxed).try_into().ok());
        }
        match header.kind {
            Kind::Copy if self.next == Epoch(1) && self.image.is_none() => {
                apply_pages(header.kind, &body, &*self.memory)
                    .map_err(|error| TransportError::Io(io::Error::other(error)))?;
                self.spare = body;
                Ok(None)
            }
            Kind::Progress => {
                let told = self.progress.put(decode_body(header.kind, &body)?);
                Ok(told.then(|| Received::Progress(self.progress.clone())))
            }
            Kind::Pages | Kind::State => {
                let mut image = self.open_image()?;
                image.add(&header, body)?;
                self.image = Some(image);
                Ok(None)
            }
            Kind::End => {
                let image = self.open_image()?.close(&header, &body)?;
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

#[cfg(test)]
mod tests;
