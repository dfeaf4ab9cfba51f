//! The queues: takes requests from the avail rings, hands them to the disk, puts finished ones into the used
//! rings.
//!
//! In: kicks, finished operations, all on the vhost worker thread. Out: used entries, interrupts, mirrored
//! writes. Never touches guest memory while sealed or while this host is the standby.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use device_api::counters::{DiskCounters, Page};
use device_kit::gate::Gate;
use device_kit::vring;
use ft_proto::Epoch;
use ft_wire::device_ctl::{InFlight, QueueState, Report};
use tracing::debug;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::Options;
use crate::geometry::{Geometry, MAX_DATA};
use crate::image::Image;
use crate::mirror::Room;
use crate::replication::Replication;
use crate::serve::executor::{Completion, Executor, Op};
use crate::serve::flight::{Collected, Flight, Target};
use crate::serve::pending::Pending;
use crate::serve::request::{self, Body, Request, Span, scatter};
use crate::serve::ring::{Guest, Memory, Taken, Vring, answer, signal};

/// Requests of a queue that are taken before other events have their turn: a guest that adds them as fast
/// as they are answered would keep the VMM from being heard.
const TURN: usize = 1024;
/// Bytes of the answer to GET_ID.
const SERIAL_LEN: usize = pollux_api::limits::DISK_SERIAL_MAX;

/// What serves the guest's requests.
pub struct Server {
    disk: Executor,
    geometry: Geometry,
    serial: String,
    vrings: Vec<Vring>,
    memory: Option<Memory>,
    counters: DiskCounters,
    flight: Flight,
    /// Some queue has entries that were not taken because there was no room, or it was others' turn; or a
    /// request waits for room.
    stalled: bool,
    /// The driver takes completed writes for durable.
    writethrough: bool,
    gate: Gate,
}

impl Server {
    /// Of `image`, on a host that is the standby or not.
    ///
    /// # Errors
    /// When the kernel refuses threads or eventfds.
    pub fn new(image: Arc<dyn Image>, options: Options, standby: bool) -> io::Result<Self> {
        let geometry =
            Geometry { size: image.size(), block: options.block_size, read_only: options.read_only, limited: true };
        Ok(Self {
            disk: Executor::new(image, options.threads)?,
            geometry,
            serial: options.serial,
            vrings: Vec::new(),
            memory: None,
            counters: DiskCounters::new(options.counters.map_or_else(Page::private, Ok)?),
            flight: Flight::default(),
            stalled: false,
            writethrough: false,
            gate: Gate::new(standby),
        })
    }

    /// What the guest sees of the disk.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Readable when [`Server::collect`] has something to do.
    #[must_use]
    pub fn event(&self) -> RawFd {
        self.disk.event()
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

    /// Guest memory is not touched any more.
    pub fn detach(&mut self) {
        self.memory = None;
    }

    /// Whether the driver can flush (if not, every write must be durable before it completes), and whether it
    /// keeps to the limits of one request.
    pub fn set_driver(&mut self, flushes: bool, limited: bool) {
        self.writethrough = !flushes;
        self.geometry.limited = limited;
    }

    /// Whether this host does not run the VM.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.gate.is_standby()
    }

    /// Enters or leaves the standby state.
    pub fn set_standby(&mut self, standby: bool) {
        self.gate.set_standby(standby);
    }

    /// What starts from now on belongs to `epoch`, the first of a session.
    pub fn begin_session(&mut self, epoch: Epoch) {
        self.gate.begin(epoch);
    }

    /// What starts from now on belongs to `epoch`.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        if epoch != self.gate.epoch() {
            self.gate.begin(epoch);
        }
    }

    /// As [`Gate::has_passed`].
    #[must_use]
    pub fn has_passed(&self, epoch: Epoch) -> bool {
        self.gate.has_passed(epoch)
    }

    /// As [`Gate::seal`].
    pub fn seal(&mut self, epoch: Epoch) {
        self.gate.seal(epoch);
    }

    /// As [`Gate::resume`].
    #[must_use]
    pub fn resume(&mut self) -> bool {
        self.gate.resume()
    }

    /// This host runs the VM from here on; `in_flight` is what its checkpoint had in flight.
    pub fn start(&mut self, in_flight: Vec<InFlight>) {
        self.gate.start();
        self.flight.submit_again(in_flight);
    }

    /// Where the queues stand.
    pub fn positions(&self) -> impl Iterator<Item = QueueState> {
        vring::positions(&self.vrings)
    }

    /// Serves every queue again, after something that blocked them.
    pub fn serve_all(&mut self, replication: &Replication) {
        self.stalled = false;
        self.go_on(replication);
        for queue in 0..self.vrings.len() {
            self.serve(queue, replication);
        }
    }

    /// As [`Server::serve_all`], if anything was blocked.
    pub fn serve_stalled(&mut self, replication: &Replication) {
        if self.stalled {
            self.serve_all(replication);
        }
    }

    /// Takes all requests from a queue that can be taken now, or as many as make a turn.
    pub fn serve(&mut self, queue: usize, replication: &Replication) {
        if !self.gate.is_open() {
            return;
        }
        let (Some(vring), Some(memory)) = (self.vrings.get(queue).cloned(), self.memory.clone()) else { return };
        let mem = memory.memory();
        let Some(mut ring) = vring.to_serve() else { return };
        let index = queue as u16;
        let mut used = self.take_again(index, &mut ring, &mem, replication);
        let mut left = TURN;
        loop {
            let before = ring.get_queue().next_avail();
            let _ = ring.disable_notification();
            if let Err(e) = self.take_all(index, &mut ring, &mem, (&mut used, &mut left), replication) {
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
    fn take_again(
        &mut self,
        queue: u16,
        ring: &mut VringState<Memory>,
        mem: &Guest,
        replication: &Replication,
    ) -> bool {
        let mut used = false;
        for request in self.flight.take_again() {
            if request.queue != queue || self.stalled {
                self.flight.put_back(request);
                continue;
            }
            match self.take(queue, request.head, ring, mem, replication) {
                Taken::Used => used = true,
                Taken::Submitted => {}
                Taken::NoRoom => {
                    self.stalled = true;
                    self.flight.put_back(request);
                }
            }
        }
        used
    }

    /// Takes all requests that can be taken now, `left` at most; `used`: the used ring has new entries. An
    /// error is a malformed ring.
    fn take_all(
        &mut self,
        queue: u16,
        ring: &mut VringState<Memory>,
        mem: &Guest,
        (used, left): (&mut bool, &mut usize),
        replication: &Replication,
    ) -> Result<(), QueueError> {
        while !self.stalled {
            if self.flight.is_full() {
                self.stalled = true;
                break;
            }
            if *left == 0 {
                self.stalled = true;
                self.disk.wake();
                break;
            }
            *left -= 1;
            let next = ring.get_queue_mut().iter(mem.clone())?.next();
            let Some(head) = next.map(|chain| chain.head_index()) else { break };
            if head >= ring.get_queue().size() {
                return Err(QueueError::InvalidDescriptorIndex);
            }
            match self.take(queue, head, ring, mem, replication) {
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

    fn take(
        &mut self,
        queue: u16,
        head: u16,
        ring: &mut VringState<Memory>,
        mem: &Guest,
        replication: &Replication,
    ) -> Taken {
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
        if !self.has_room(&request.body, replication) {
            return Taken::NoRoom;
        }
        self.submit(queue, head, request, ring, mem, replication)
    }

    /// Whether the mirror can take a write now.
    fn has_room(&mut self, body: &Body, replication: &Replication) -> bool {
        match body {
            Body::Write(range, _) => self.has_room_for(range.len.min(MAX_DATA), replication),
            Body::Zero(..) => self.has_room_for(0, replication),
            _ => true,
        }
    }

    /// As [`Server::has_room`]. Asks the VMM for a cut, once an epoch, when only that helps.
    fn has_room_for(&mut self, len: u64, replication: &Replication) -> bool {
        match replication.mirror().map_or(Room::Yes, |mirror| mirror.room(len, self.flight.unstarted())) {
            Room::Yes => true,
            Room::Busy => false,
            Room::Full => {
                if self.gate.tell_full() {
                    replication.report(&Report::Full { epoch: self.gate.epoch() });
                }
                false
            }
        }
    }

    fn submit(
        &mut self,
        queue: u16,
        head: u16,
        request: Request,
        ring: &mut VringState<Memory>,
        mem: &Guest,
        replication: &Replication,
    ) -> Taken {
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
        let (flight, target) = self.flight(replication);
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

    /// Starts what has waited for the image's record, if that says what it must.
    pub fn start_recorded(&mut self, replication: &Replication) {
        let (flight, target) = self.flight(replication);
        flight.start_recorded(&target);
    }

    /// The requests in progress, and the target of those that start now. What starts while sealed belongs to
    /// the next epoch: in this one it is in flight, and submitted again.
    fn flight<'a>(&'a mut self, replication: &'a Replication) -> (&'a mut Flight, Target<'a>) {
        let (tracker, mirror) = (replication.tracker(), replication.mirror());
        (&mut self.flight, Target { disk: &self.disk, tracker, mirror, epoch: self.gate.epoch() })
    }

    /// Continues requests that waited for room in the mirror.
    fn go_on(&mut self, replication: &Replication) {
        if !self.gate.is_sealed() {
            self.flight.take_waiting_for_room().into_iter().for_each(|id| self.next_piece(id, replication));
        }
    }

    /// The next piece of a request, whose last one is done.
    fn next_piece(&mut self, id: u64, replication: &Replication) {
        let (Some(pending), Some(memory)) = (self.flight.get(id), self.memory.clone()) else { return };
        let Some((len, write)) = pending.next() else { return };
        if pending.is_abandoned() || self.is_standby() {
            return self.drop_request(id, replication);
        }
        if write && !self.has_room_for(len, replication) {
            self.flight.wait_for_room(id);
            self.stalled = true;
            return;
        }
        let sync = self.writethrough;
        let (flight, target) = self.flight(replication);
        match flight.get_mut(id).and_then(|pending| pending.next_op(&memory.memory(), sync)) {
            Some(op) => flight.go_on(id, op, &target),
            None => self.finish(id, request::IOERR, 0, replication),
        }
    }

    fn drop_request(&mut self, id: u64, replication: &Replication) {
        let (flight, target) = self.flight(replication);
        flight.remove(id, &target);
    }

    /// Collects operations that the disk has finished, and notifies the guest if that is allowed now.
    pub fn collect(&mut self, replication: &mut Replication) {
        let (flight, target) = self.flight(replication);
        let Collected { errors, free } = flight.collect(&target);
        for (e, wrote) in errors {
            host_kit::warn_limited!("{e}");
            if wrote || replication.mirror().is_some() {
                replication.fail(&e);
            }
        }
        let (flight, target) = self.flight(replication);
        flight.start(free, &target);
        self.deliver(replication);
    }

    /// Notifies the guest of finished requests, and uses the room that they leave.
    ///
    /// A failed request is not completed while there is a mirror: it stays in flight, so that a standby that
    /// takes over submits it again, on its own image. Only without a mirror does the guest get the error.
    pub fn deliver(&mut self, replication: &Replication) {
        if self.gate.is_sealed() {
            return;
        }
        let mut touched = vec![false; self.vrings.len()];
        for done in self.flight.take_finished(replication.mirror().is_some()) {
            if let Some(queue) = self.piece_done(&done, replication)
                && let Some(touched) = touched.get_mut(usize::from(queue))
            {
                *touched = true;
            }
        }
        for (vring, _) in self.vrings.iter().zip(touched).filter(|(_, touched)| *touched) {
            signal(&mut vring.get_mut());
        }
        self.serve_stalled(replication);
    }

    /// A piece of a request is done, usually the only one. Returns the queue whose used ring has a new entry.
    fn piece_done(&mut self, done: &Completion, replication: &Replication) -> Option<u16> {
        let standby = self.is_standby();
        let Some(pending) = self.flight.get(done.id).filter(|pending| !pending.is_abandoned() && !standby) else {
            self.drop_request(done.id, replication);
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
            self.next_piece(done.id, replication);
            return None;
        }
        let moved = self.flight.get(done.id).map_or(0, Pending::moved);
        let written = if status == request::OK && done.buffer.is_some() { moved as u32 } else { 0 };
        self.complete(done.id, status, written, replication)
    }

    /// Completes a request and notifies the guest, outside of [`Server::deliver`].
    fn finish(&mut self, id: u64, status: u8, written: u32, replication: &Replication) {
        let queue = self.complete(id, status, written, replication);
        if let Some(vring) = queue.and_then(|queue| self.vrings.get(usize::from(queue))) {
            signal(&mut vring.get_mut());
        }
    }

    /// Puts a request into its used ring; returns the queue.
    fn complete(&mut self, id: u64, status: u8, written: u32, replication: &Replication) -> Option<u16> {
        let (flight, target) = self.flight(replication);
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
    pub fn stop_queue(&mut self, queue: u16, replication: &mut Replication) {
        self.flight.forget_again(queue);
        if !self.gate.is_open() {
            return self.flight.abandon(Some(queue));
        }
        loop {
            let (flight, target) = self.flight(replication);
            // Failures that the guest is not notified of would never finish.
            flight.remove_finished(queue, &target);
            // Nor would those that wait for room: it is the VMM that makes room, and it waits for this call.
            flight.remove_waiting_for_room(queue, &target);
            if !flight.has_any_of(queue) {
                break;
            }
            if flight.is_running() {
                self.disk.wait();
                self.collect(replication);
            } else {
                self.wait_for_record(replication);
            }
        }
    }

    /// All requests wait for the image's record.
    fn wait_for_record(&mut self, replication: &Replication) {
        if replication.tracker().written().is_err() {
            self.flight.drop_waiting();
        }
        self.start_recorded(replication);
    }

    /// This host does not run the VM any more: drops requests that are not done, and notifies the guest of
    /// none.
    pub fn abandon_requests(&mut self) {
        self.flight.submit_again(Vec::new());
        self.flight.drop_waiting();
        self.flight.abandon(None);
    }

    /// Every request that was taken and not answered, in the order it was taken.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.flight.in_flight().collect()
    }

    /// Writes that are started and not in the image yet.
    pub fn unfinished_writes(&self) -> impl Iterator<Item = u64> {
        self.flight.unfinished_writes()
    }

    /// Whether nothing is being written to the image.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unfinished_writes().next().is_none()
    }

    /// Blocks until nothing is being written to the image.
    pub fn finish_writes(&mut self, replication: &mut Replication) {
        while !self.is_idle() {
            self.disk.wait();
            self.collect(replication);
        }
    }
}

/// The request with the operation that it begins with; `None`: its data is not in guest memory.
fn with_first_piece(mut pending: Pending, mem: &Guest, sync: bool) -> (Pending, Option<Op>) {
    let op = pending.next_op(mem, sync);
    (pending, op)
}

#[cfg(test)]
mod tests;
