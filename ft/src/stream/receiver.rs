//! The standby's receiving thread: reads the stream, and passes on what [`Intake`] makes of its frames.

use std::io::{self, BufReader};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ft_proto::Epoch;
use ft_transport::frames::{TransportError, read_body, read_header};
use ft_transport::stream::Stream;
use ft_wire::packing::Unpacker;
use ft_wire::session::Kind;
use host_kit::error::chain;

use crate::clock::Clock;
use crate::guest::Memory;
use crate::stream::ends::{Received, ReceivingEnd};
use crate::stream::intake::Intake;
use crate::stream::spare_buffers::SpareBuffers;
use host_kit::sandbox::Needs;
use host_kit::sync::lock;

/// Small frames are read together with the header of the next one.
const READ_AHEAD: usize = 16 << 10;
/// No processor in particular.
const ANYWHERE: u32 = u32::MAX;

/// The thread, as its engine sees it.
#[derive(Debug)]
pub struct ReceiverHandle {
    stream: Stream,
    spares: Arc<Mutex<SpareBuffers>>,
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
        stream: Stream,
        clock: Clock,
        memory: Arc<dyn Memory>,
        tell: impl Fn(Received) + Send + 'static,
    ) -> io::Result<Self> {
        let spares = Arc::<Mutex<SpareBuffers>>::default();
        let reader = stream.try_clone()?;
        let place = Arc::new(AtomicU32::new(ANYWHERE));
        let committed = Arc::new(AtomicU64::new(0));
        let mut worker = Worker {
            stream: BufReader::with_capacity(READ_AHEAD, reader),
            clock,
            spares: spares.clone(),
            unpacker: Unpacker::new()?,
            place: place.clone(),
            intake: Intake::new(memory, committed.clone()),
        };
        let thread = host_kit::thread::spawn("ft-recv", Needs::MESSAGES | Needs::SCHEDULE, move || {
            tell(loop {
                match worker.step() {
                    Ok(Some(last @ (Received::Yielded(..) | Received::Left(..)))) => break last,
                    Ok(Some(received)) => tell(received),
                    Ok(None) => {}
                    Err(error) => break Received::Ended(chain(&error)),
                }
            });
        })?;
        Ok(Self { stream, spares, place, committed, thread: Some(thread) })
    }
}

impl ReceivingEnd for ReceiverHandle {
    fn stay_on(&self, cpu: Option<u16>) {
        self.place.store(cpu.map_or(ANYWHERE, u32::from), Ordering::Relaxed);
    }

    fn committed(&self, epoch: Epoch) {
        self.committed.store(epoch.0, Ordering::Release);
    }

    fn give_back(&self, buffer: Vec<u8>) {
        lock(&self.spares).keep(buffer);
    }
}

impl Drop for ReceiverHandle {
    fn drop(&mut self) {
        self.stream.break_off();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    stream: BufReader<Stream>,
    clock: Clock,
    spares: Arc<Mutex<SpareBuffers>>,
    unpacker: Unpacker,
    /// Where to stay.
    place: Arc<AtomicU32>,
    intake: Intake,
}

impl Worker {
    fn step(&mut self) -> Result<Option<Received>, TransportError> {
        let header = read_header(&mut self.stream)?;
        // State and ends are small: the buffers that come back are for pages.
        let pages = matches!(header.kind, Kind::Copy | Kind::Pages);
        let spare = pages.then(|| lock(&self.spares).take()).flatten();
        let mut body = spare.unwrap_or_default();
        read_body(&mut self.stream, &header, &mut body, &mut self.unpacker)?;
        if self.intake.is_urgent() {
            host_kit::sched::set_realtime(true);
            host_kit::sched::pin_to_cpu(self.place.load(Ordering::Relaxed).try_into().ok());
        }
        let received = self.intake.take(&header, &mut body, self.clock.now())?;
        if header.kind == Kind::Copy {
            lock(&self.spares).keep(body);
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests;
