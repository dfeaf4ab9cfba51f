//! From frames to guest memory and whole epochs, on the standby. Pure, but for the memory that it writes to.
//!
//! What is staged is bounded whatever the peer does. An epoch has no more pages than the guest, and no more
//! than [`Settings::depth`] epochs wait to be committed, since an honest primary cuts no further before it
//! is told that one is: a stream that goes on ends. Of what the first copy is said to have reached the last
//! word waits.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ft_proto::{Epoch, Settings, Time};
use ft_transport::frames::TransportError;
use ft_wire::session::{Header, Kind, Refusal, WireError, decode_body};

use crate::guest::Memory;
use crate::stream::ends::{LastProgress, Received};
use crate::stream::image::{Image, apply_pages};

/// What a stream has brought so far.
pub struct Intake {
    memory: Arc<dyn Memory>,
    ram: Arc<[Range<u64>]>,
    committed: Arc<AtomicU64>,
    progress: LastProgress,
    image: Option<Image>,
    next: Epoch,
}

impl Intake {
    /// Of a session that begins. `committed`: the last epoch that the primary is told to be.
    pub fn new(memory: Arc<dyn Memory>, committed: Arc<AtomicU64>) -> Self {
        let ram = memory.ranges().into();
        Self { memory, ram, committed, progress: LastProgress::default(), image: None, next: Epoch(1) }
    }

    /// Whether the first copy and its epoch are here. They have time, and what follows has not.
    pub fn is_urgent(&self) -> bool {
        self.next > Epoch(1)
    }

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

    /// Takes a frame in. A body that is not needed any more is left in `body`.
    ///
    /// # Errors
    /// When it is not right, or may not come now.
    pub fn take(&mut self, header: &Header, body: &mut Vec<u8>, now: Time) -> Result<Option<Received>, TransportError> {
        match header.kind {
            Kind::Copy if self.next == Epoch(1) && self.image.is_none() => {
                apply_pages(header.kind, body, &*self.memory)
                    .map_err(|error| TransportError::Io(io::Error::other(error)))?;
                Ok(None)
            }
            Kind::Progress => {
                let told = self.progress.put(decode_body(header.kind, body)?);
                Ok(told.then(|| Received::Progress(self.progress.clone())))
            }
            Kind::Pages | Kind::State => {
                let mut image = self.open_image()?;
                image.add(header, std::mem::take(body))?;
                self.image = Some(image);
                Ok(None)
            }
            Kind::End => {
                let image = self.open_image()?.close(header, body)?;
                self.next = self.next.next();
                Ok(Some(Received::Whole(Box::new(image))))
            }
            Kind::Yield => Ok(Some(Received::Yielded(header.term, decode_body(header.kind, body)?, now))),
            Kind::Bye => {
                let Refusal { reasons } = decode_body(header.kind, body)?;
                Ok(Some(Received::Left(header.term, reasons.join("; "))))
            }
            got => Err(WireError::Unexpected { got, expected: "pages, state, end of epoch, yield or bye" }.into()),
        }
    }
}
