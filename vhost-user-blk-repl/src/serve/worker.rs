//! The queues: takes requests from the avail rings, hands them to the disk, puts finished ones into the used
//! rings.
//!
//! In: kicks, finished operations, ft-ctl commands (see `commands`), all on the vhost worker thread. Out:
//! used entries, interrupts, mirrored writes. Never touches guest memory while sealed or while this host is
//! the standby.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use device_api::counters::{DiskCounters, Page};
use device_kit::control::Control;
use ft_proto::Epoch;
use ft_wire::device_ctl::{InFlight, Report};
use tracing::{debug, error};
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Options;
use crate::geometry::{Geometry, MAX_DATA};
use crate::image::Image;
use crate::mirror::{Mirror, Room};
use crate::receive::{Applier, Receiver};
use crate::record::Purpose;
use crate::serve::executor::{Completion, Executor, Op};
use crate::serve::flight::{Collected, Flight, Target};
use crate::serve::pending::Pending;
use crate::serve::request::{self, Body, Request, Span, scatter};
use crate::serve::ring::{Guest, Memory, Taken, Vring, answer, signal};
use crate::tracker::{Ticket, Tracker};

/// Bytes of the answer to GET_ID.
pub const SERIAL_LEN: usize = 20;

/// The device's state, owned by the vhost worker thread.
pub struct Worker {
    pub(crate) disk: Executor,
    pub(crate) geometry: Geometry,
    pub(crate) serial: String,
    pub(crate) vrings: Vec<Vring>,
    memory: Option<Memory>,
    counters: DiskCounters,
    flight: Flight,
    /// Some queue has entries that were not taken because there was no room, or a request waits for room.
    stalled: bool,
    /// The driver takes completed writes for durable.
    writethrough: bool,
    pub(crate) resubmit: VecDeque<InFlight>,
    pub(crate) sealed: bool,
    pub(crate) standby: bool,
    pub(crate) epoch: Epoch,
    /// The epoch that begins with `Resume`.
    pub(crate) next_epoch: Epoch,
    pub(crate) tracker: Tracker,
    pub(crate) mirror: Option<Mirror>,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) applier: Option<Arc<Applier>>,
    pub(crate) control: Option<Control>,
    pub(crate) wake: Arc<EventFd>,
    full: Option<Epoch>,
    pub(crate) failed: bool,
    /// The change that says that this host owns the image, until it is on stable storage.
    pub(crate) owning: Option<Ticket>,
}

impl Worker {
    /// A disk on `image`.
    ///
    /// # Errors
    /// When the kernel refuses threads or eventfds.
    pub fn new(image: Arc<dyn Image>, options: Options) -> io::Result<Self> {
        let geometry =
            Geometry { size: image.size(), block: options.block_size, read_only: options.read_only, limited: true };
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let standby = options.record.as_ref().is_some_and(|record| record.purpose() == Purpose::StandBy);
        let tracker = Tracker::new(options.record, image, wake.clone())?;
        Ok(Self {
            disk: Executor::new(tracker.image().clone(), options.threads)?,
            geometry,
            serial: options.serial,
            vrings: Vec::new(),
            memory: None,
            counters: DiskCounters::new(options.counters.map_or_else(Page::private, Ok)?),
            flight: Flight::default(),
            stalled: false,
            writethrough: false,
            resubmit: VecDeque::new(),
            sealed: false,
            standby,
            epoch: Epoch(0),
            next_epoch: Epoch(0),
            tracker,
            mirror: None,
            receiver: None,
            applier: None,
            control: None,
            wake,
            full: None,
            failed: false,
            owning: None,
        })
    }

    /// Readable when [`Worker::collect`] has something to do.
    #[must_use]
    pub fn disk_event(&self) -> RawFd {
        self.disk.event()
    }

    /// Readable when [`Worker::mirror_changed`] has something to do.
    #[must_use]
    pub fn wake_event(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The queues, as soon as the library shows them.
    pub fn set_vrings(&mut self, vrings: &[Vring]) {
        if self.vrings.is_empty() {
            self.vrings = vrings.to_vec();
        }
    }

    /// Guest memory has been mapped anew.
    pub fn set_memory(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// What the driver has taken of the disk's features: whether it can flush (if not, every write must be
    /// durable before it completes), and whether it keeps to the limits of one request.
    pub fn set_driver(&mut self, flushes: bool, limited: bool) {
        self.writethrough = !flushes;
        self.geometry.limited = limited;
    }

    /// The process ends: nothing is taken from the queues or the streams any more. What is left to do for the
    /// image.
    pub(crate) fn shut(&mut self) -> (Option<Arc<Applier>>, Tracker) {
        (self.mirror, self.receiver, self.memory, self.control) = (None, None, None, None);
        (self.applier.clone(), self.tracker.clone())
    }

    /// Serves every queue again, after something that blocked them.
    pub(crate) fn serve_all(&mut self) {
        self.stalled = false;
        self.go_on();
        for queue in 0..self.vrings.len() {
            self.serve(queue);
        }
    }

    /// Takes all requests from a queue that can be taken now.
    pub fn serve(&mut self, queue: usize) {
        if self.sealed || self.standby {
            return;
        }
        let (Some(vring), Some(memory)) = (self.vrings.get(queue).cloned(), self.memory.clone()) else { return };
        let mem = memory.memory();
        let mut ring = vring.get_mut();
        if !ring.is_enabled() || !ring.get_queue().ready() || vring.is_broken() {
            return;
        }
        let index = queue as u16;
        let mut used = self.take_again(index, &mut ring, &mem);
        loop {
            let before = ring.get_queue().next_avail();
            let _ = ring.disable_notification();
            if let Err(e) = self.take_all(index, &mut ring, &mem, &mut used) {
                debug!("queue {queue}: {e}");
                vring.set_broken();
                break;
            }
            // No progress means that the rest cannot be taken; what changes that serves the queue again.
            let more = ring.enable_notification().unwrap_or(false);
            if !more || self.stalled || ring.get_queue().next_avail() == before {
                break;
            }
        }
        if used {
            signal(&mut ring);
        }
    }

    /// Submits what the checkpoint had in flight, before anything new.
    fn take_again(&mut self, queue: u16, ring: &mut VringState<Memory>, mem: &Guest) -> bool {
        let mut used = false;
        for request in mem::take(&mut self.resubmit) {
            if request.queue != queue || self.stalled {
                self.resubmit.push_back(request);
                continue;
            }
            match self.take(queue, request.head, ring, mem) {
                Taken::Used => used = true,
                Taken::Submitted => {}
                Taken::NoRoom => {
                    self.stalled = true;
                    self.resubmit.push_back(request);
                }
            }
        }
        used
    }

    /// Takes all requests that can be taken now; `used`: the used ring has new entries. An error is a
    /// malformed ring.
    fn take_all(
        &mut self,
        queue: u16,
        ring: &mut VringState<Memory>,
        mem: &Guest,
        used: &mut bool,
    ) -> Result<(), QueueError> {
        while !self.stalled {
            if self.flight.is_full() {
                self.stalled = true;
                break;
            }
            let next = ring.get_queue_mut().iter(mem.clone())?.next();
            let Some(head) = next.map(|chain| chain.head_index()) else { break };
            if head >= ring.get_queue().size() {
                return Err(QueueError::InvalidDescriptorIndex);
            }
            match self.take(queue, head, ring, mem) {
                Taken::Used => *used = true,
                Taken::Submitted => {}
                Taken::NoRoom => {
                    ring.get_queue_mut().go_to_previous_position();
                    self.stalled = true;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, queue: u16, head: u16, ring: &mut VringState<Memory>, mem: &Guest) -> Taken {
        let (table, size) = (GuestAddress(ring.get_queue().desc_table()), ring.get_queue().size());
        let chain = match request::walk(&**mem, table, size, head) {
            Ok(chain) => chain,
            Err(e) => {
                debug!("queue {queue} head {head}: {e}");
                return answer(ring, mem, head, None, 0);
            }
        };
        let request = match request::parse(&**mem, chain, &self.geometry) {
            Ok(request) => request,
            Err(reject) => {
                debug!("queue {queue} head {head}: {}", reject.why);
                return answer(ring, mem, head, reject.status, 0);
            }
        };
        if !self.has_room(&request.body) {
            return Taken::NoRoom;
        }
        self.start(queue, head, request, ring, mem)
    }

    /// Whether the mirror can take a write now.
    fn has_room(&mut self, body: &Body) -> bool {
        match body {
            Body::Write(range, _) => self.has_room_for(range.len.min(MAX_DATA)),
            Body::Zero(..) => self.has_room_for(0),
            _ => true,
        }
    }

    /// As [`Worker::has_room`]. Asks the VMM for a cut, once an epoch, when only that helps.
    fn has_room_for(&mut self, len: u64) -> bool {
        match self.mirror.as_ref().map_or(Room::Yes, |mirror| mirror.room(len, self.flight.unstarted())) {
            Room::Yes => true,
            Room::Busy => false,
            Room::Full => {
                if self.full != Some(self.epoch) {
                    self.full = Some(self.epoch);
                    self.report(&Report::Full { epoch: self.epoch });
                }
                false
            }
        }
    }

    fn start(&mut self, queue: u16, head: u16, request: Request, ring: &mut VringState<Memory>, mem: &Guest) -> Taken {
        let status = request.status;
        let pending = Pending::new(queue, head, status);
        let sync = self.writethrough;
        let (pending, op) = match request.body {
            Body::GetId(into) => return self.answer_id(head, &into, status, ring, mem),
            Body::Flush => (pending, Some(Op::Flush)),
            Body::Write(range, _) if range.len == 0 => return answer(ring, mem, head, Some((status, request::OK)), 0),
            Body::Read(range, into) => with_first_piece(pending.reading(range, into), mem, sync),
            Body::Write(range, from) => with_first_piece(pending.writing(range, from), mem, sync),
            Body::Zero(ranges, unmap) => (pending.zeroing(ranges.clone()), Some(Op::Zero { ranges, unmap, sync })),
        };
        let Some(op) = op else { return answer(ring, mem, head, Some((status, request::IOERR)), 0) };
        let (flight, target) = self.flight();
        flight.enter(pending, op, &target);
        Taken::Submitted
    }

    fn answer_id(
        &self,
        head: u16,
        into: &[Span],
        status: GuestAddress,
        ring: &mut VringState<Memory>,
        mem: &Guest,
    ) -> Taken {
        let mut id = [0; SERIAL_LEN];
        let len = self.serial.len().min(SERIAL_LEN);
        id[..len].copy_from_slice(&self.serial.as_bytes()[..len]);
        let room = request::total(into).min(SERIAL_LEN as u64) as usize;
        match scatter(&**mem, into, &id[..room]) {
            Ok(()) => answer(ring, mem, head, Some((status, request::OK)), room as u32),
            Err(()) => answer(ring, mem, head, Some((status, request::IOERR)), 0),
        }
    }

    /// The mirror has room again or is lost; or the record is written, or cannot be.
    pub fn mirror_changed(&mut self) {
        let _ = self.wake.read();
        if self.mirror.as_ref().is_some_and(Mirror::is_lost) {
            self.mirror = None;
            self.deliver();
        }
        self.report_owned();
        if let Some(trouble) = self.tracker.take_trouble() {
            self.fail(&trouble.to_string());
        }
        let (flight, target) = self.flight();
        flight.start_marked(&target);
        if let Some(mirror) = &self.mirror {
            mirror.settle_if_due();
        }
        if self.stalled {
            self.serve_all();
        }
    }

    /// The requests in progress, and the target of those that start now.
    fn flight(&mut self) -> (&mut Flight, Target<'_>) {
        // What starts while sealed belongs to the next epoch: in this one it is in flight, and submitted
        // again.
        let epoch = if self.sealed { self.next_epoch } else { self.epoch };
        let target = Target { disk: &self.disk, tracker: &self.tracker, mirror: self.mirror.as_ref(), epoch };
        (&mut self.flight, target)
    }

    /// Continues requests that waited for room in the mirror.
    fn go_on(&mut self) {
        if !self.sealed {
            self.flight.take_waiting_for_room().into_iter().for_each(|id| self.next_piece(id));
        }
    }

    /// The next piece of a request, whose last one is done.
    fn next_piece(&mut self, id: u64) {
        let (Some(pending), Some(memory)) = (self.flight.get(id), self.memory.clone()) else { return };
        let Some((len, write)) = pending.next() else { return };
        if pending.is_abandoned() || self.standby {
            return self.drop_request(id);
        }
        if write && !self.has_room_for(len) {
            self.flight.wait_for_room(id);
            self.stalled = true;
            return;
        }
        let sync = self.writethrough;
        let (flight, target) = self.flight();
        match flight.get_mut(id).and_then(|pending| pending.next_op(&memory.memory(), sync)) {
            Some(op) => flight.go_on(id, op, &target),
            None => self.finish(id, request::IOERR, 0),
        }
    }

    fn drop_request(&mut self, id: u64) {
        let (flight, target) = self.flight();
        flight.remove(id, &target);
    }

    /// Collects operations that the disk has finished, and notifies the guest if that is allowed now.
    pub fn collect(&mut self) {
        let (flight, target) = self.flight();
        let Collected { errors, free } = flight.collect(&target);
        for (e, wrote) in errors {
            host_kit::warn_limited!("{e}");
            if wrote || self.mirror.is_some() {
                self.fail(&e);
            }
        }
        let (flight, target) = self.flight();
        flight.start(free, &target);
        self.deliver();
    }

    /// Notifies the guest of finished requests, and uses the room that they leave.
    ///
    /// A failed request is not completed while there is a mirror: it stays in flight, so that a standby that
    /// takes over submits it again, on its own image. Only without a mirror does the guest get the error.
    pub(crate) fn deliver(&mut self) {
        if self.sealed {
            return;
        }
        let mut touched = vec![false; self.vrings.len()];
        for done in self.flight.take_finished(self.mirror.is_some()) {
            if let Some(queue) = self.piece_done(&done)
                && let Some(touched) = touched.get_mut(usize::from(queue))
            {
                *touched = true;
            }
        }
        for (vring, _) in self.vrings.iter().zip(touched).filter(|(_, touched)| *touched) {
            signal(&mut vring.get_mut());
        }
        if self.stalled {
            self.serve_all();
        }
    }

    /// A piece of a request is done, usually the only one. Returns the queue whose used ring has a new entry.
    fn piece_done(&mut self, done: &Completion) -> Option<u16> {
        let standby = self.standby;
        let Some(pending) = self.flight.get(done.id).filter(|pending| !pending.is_abandoned() && !standby) else {
            self.drop_request(done.id);
            return None;
        };
        let mut status = if done.result.is_ok() { request::OK } else { request::IOERR };
        if let (Ok(()), Some(data), Some(memory)) = (&done.result, &done.buffer, &self.memory)
            && scatter(&*memory.memory(), pending.into(), data).is_err()
        {
            status = request::IOERR;
        }
        let more = self.flight.end_piece(done.id);
        if status == request::OK && more {
            self.next_piece(done.id);
            return None;
        }
        let moved = self.flight.get(done.id).map_or(0, Pending::moved);
        let written = if status == request::OK && done.buffer.is_some() { moved as u32 } else { 0 };
        self.complete(done.id, status, written)
    }

    /// Completes a request and notifies the guest, outside of [`Worker::deliver`].
    fn finish(&mut self, id: u64, status: u8, written: u32) {
        let queue = self.complete(id, status, written);
        if let Some(vring) = queue.and_then(|queue| self.vrings.get(usize::from(queue))) {
            signal(&mut vring.get_mut());
        }
    }

    /// Puts a request into its used ring; returns the queue.
    fn complete(&mut self, id: u64, status: u8, written: u32) -> Option<u16> {
        let (flight, target) = self.flight();
        let pending = flight.remove(id, &target);
        let (pending, memory) = (pending?, self.memory.as_ref()?);
        let vring = self.vrings.get(usize::from(pending.queue()))?;
        let status_byte = Some((pending.status(), status));
        answer(&mut vring.get_mut(), &memory.memory(), pending.head(), status_byte, written);
        if let Some((transfer, since)) = pending.transfer().filter(|_| status == request::OK) {
            self.counters.done(transfer, pending.moved(), since.elapsed());
        }
        Some(pending.queue())
    }

    /// The frontend stops a queue: finishes its requests in flight. While sealed, guest memory must not
    /// change, so the requests, which the VMM knows from the `Sealed` report, are abandoned instead.
    pub fn stop_queue(&mut self, queue: u16) {
        self.resubmit.retain(|request| request.queue != queue);
        if self.sealed || self.standby {
            return self.flight.abandon(Some(queue));
        }
        // Failures that the guest is not notified of would never finish.
        let (flight, target) = self.flight();
        flight.remove_finished(queue, &target);
        loop {
            // Nor would those that wait for room: it is the VMM that makes room, and it waits for this call.
            let (flight, target) = self.flight();
            flight.remove_waiting_for_room(queue, &target);
            if !flight.has_any_of(queue) {
                break;
            }
            if flight.is_running() {
                self.disk.wait();
                self.collect();
            } else {
                self.wait_for_marks();
            }
        }
    }

    /// All requests wait for marks.
    fn wait_for_marks(&mut self) {
        if self.tracker.written().is_err() {
            self.flight.drop_waiting();
        }
        let (flight, target) = self.flight();
        flight.start_marked(&target);
    }

    /// This host does not run the VM any more: drops requests that are not done, and notifies the guest of
    /// none.
    pub(crate) fn abandon_requests(&mut self) {
        self.resubmit.clear();
        self.flight.drop_waiting();
        self.flight.abandon(None);
    }

    /// Every request that was taken and not answered, in the order it was taken.
    pub(crate) fn in_flight(&self) -> Vec<InFlight> {
        self.flight.in_flight().chain(self.resubmit.iter().copied()).collect()
    }

    /// Writes that are started and not in the image yet.
    pub(crate) fn unfinished_writes(&self) -> impl Iterator<Item = u64> {
        self.flight.unfinished_writes()
    }

    /// Whether nothing is being written to the image.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unfinished_writes().next().is_none()
    }

    pub(crate) fn report(&self, report: &Report) {
        if let Some(control) = &self.control {
            control.report(report);
        }
    }

    /// The disk cannot serve the VM any more. Reported once.
    pub(crate) fn fail(&mut self, reason: &str) {
        if !mem::replace(&mut self.failed, true) {
            error!("{reason}");
            self.report(&Report::Failed { reason: reason.to_owned() });
        }
    }
}

/// The request with the operation that it begins with; `None`: its data is not in guest memory.
fn with_first_piece(mut pending: Pending, mem: &Guest, sync: bool) -> (Pending, Option<Op>) {
    let op = pending.next_op(mem, sync);
    (pending, op)
}
