//! Requests under way: from their start, in the right order, until the guest is told.
//!
//! In: requests that the queues have brought, operations that the disk has finished. Out: operations, mirrored writes, used
//! entries. A request that is larger than what the disk told the guest to send is served in pieces, one after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use device_counters::Transfer;
use ft_proto::Epoch;
use ft_proto::device_ctl::InFlight;
use vhost_user_backend::VringT;
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::buffer::Buffer;
use crate::disk::{Done, Op};
use crate::epoch_log::CHANGE_OVERHEAD;
use crate::order::WriteOrder;
use crate::range::Range;
use crate::request::{self, MAX_DATA, Span, gather, scatter};
use crate::worker::{Guest, Worker, answer, signal};

/// Most requests that are taken and not finished: what fits into one `Sealed` report.
const MAX_PENDING: usize = 4096;
/// Taken requests hold at most this many bytes, give or take one request.
const MAX_FLIGHT: usize = 64 << 20;

/// The part of a request that is not under way yet.
pub(crate) struct Rest {
    /// Of the disk.
    pub(crate) range: Range,
    /// Of guest memory.
    pub(crate) spans: Vec<Span>,
    /// Guest to disk.
    pub(crate) write: bool,
}

/// A request that was taken and is not finished.
pub(crate) struct Pending {
    queue: u16,
    head: u16,
    status: GuestAddress,
    /// Where the data of the piece that is being read goes.
    into: Vec<Span>,
    /// What it writes and the image has not; empty once the image has all.
    pub(crate) ranges: Vec<Range>,
    /// Not started: comes after an earlier write, or has no marks yet.
    waiting: Option<Op>,
    /// The disk has it, or a piece of it.
    running: bool,
    /// What follows after this piece.
    pub(crate) rest: Option<Rest>,
    /// Bytes of this piece.
    bytes: usize,
    /// Bytes of the pieces before it.
    moved: usize,
    /// What is counted, and since when, once the guest is told.
    pub(crate) transfer: Option<(Transfer, Instant)>,
    /// The guest is not told: its ring was taken away while sealed.
    forgotten: bool,
}

impl Pending {
    pub(crate) fn new(queue: u16, head: u16, status: GuestAddress) -> Self {
        Self {
            queue,
            head,
            status,
            into: Vec::new(),
            ranges: Vec::new(),
            waiting: None,
            running: false,
            rest: None,
            bytes: 0,
            moved: 0,
            transfer: None,
            forgotten: false,
        }
    }

    /// Takes the next piece off the rest.
    fn next_piece(&mut self) -> (Range, Vec<Span>) {
        let Some(rest) = self.rest.take() else { return (Range::new(0, 0), Vec::new()) };
        let Rest { range, spans, write } = rest;
        if range.len <= MAX_DATA {
            return (range, spans);
        }
        let later = Range::new(range.offset + MAX_DATA, range.len - MAX_DATA);
        self.rest = Some(Rest { range: later, spans: request::skip(&spans, MAX_DATA), write });
        (Range::new(range.offset, MAX_DATA), request::first(&spans, MAX_DATA))
    }

    /// Reads the next piece.
    pub(crate) fn next_read(&mut self) -> Op {
        let (range, into) = self.next_piece();
        (self.into, self.bytes) = (into, range.len as usize);
        Op::Read { offset: range.offset, into: Buffer::zeroed(self.bytes) }
    }

    /// Writes the next piece, which is copied here; `None` when it is not in guest memory.
    pub(crate) fn next_write(&mut self, mem: &Guest, sync: bool) -> Option<Op> {
        let (range, from) = self.next_piece();
        let mut data = Buffer::zeroed(range.len as usize);
        gather(&**mem, &from, &mut data).ok()?;
        self.bytes = data.len();
        Some(Op::Write { offset: range.offset, from: Arc::new(data), sync })
    }

    /// Its part in the image is done. True: nothing of it is left to be written there.
    fn in_image(&mut self, ok: bool) -> bool {
        self.running = false;
        match &self.rest {
            Some(rest) if ok && rest.write => {
                self.ranges = vec![rest.range];
                false
            }
            _ => !mem::take(&mut self.ranges).is_empty(),
        }
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Flight {
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    order: WriteOrder,
    /// Writes that wait for no other, but for their marks.
    unmarked: BTreeSet<u64>,
    /// Requests that cannot go on for want of room in the mirror.
    starved: VecDeque<u64>,
    finished: Vec<Done>,
    bytes: usize,
    /// Operations that the disk has not finished.
    running: usize,
    /// Bytes of writes that are taken and not started, as the mirror counts them.
    pub(crate) unstarted: u64,
}

impl Flight {
    /// Whether no more may be taken.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING || self.bytes >= MAX_FLIGHT
    }

    /// Forgets a request. Writes that waited for it are returned.
    fn remove(&mut self, id: u64) -> (Option<Pending>, Vec<u64>) {
        let pending = self.pending.remove(&id);
        if let Some(Pending { bytes, .. }) = &pending {
            self.bytes -= bytes;
        }
        self.unmarked.remove(&id);
        (pending, self.order.leave(id))
    }

    /// Drops requests that cannot go on for want of room; `queue` says whose, or all. Writes that waited for them are returned.
    fn drop_starved(&mut self, queue: Option<u16>) -> Vec<u64> {
        let mut free = Vec::new();
        for id in mem::take(&mut self.starved) {
            match self.pending.get(&id) {
                Some(pending) if queue.is_some_and(|queue| queue != pending.queue) => self.starved.push_back(id),
                _ => free.append(&mut self.remove(id).1),
            }
        }
        free
    }
}

impl Worker {
    /// A request begins with `op`.
    pub(crate) fn enter(&mut self, mut pending: Pending, op: Op) {
        let flight = &mut self.flight;
        let id = flight.next_id;
        flight.next_id += 1;
        if !pending.ranges.is_empty() {
            flight.order.enter(id, &pending.ranges);
        }
        flight.bytes += pending.bytes;
        flight.unstarted += cost(&op);
        pending.waiting = Some(op);
        flight.pending.insert(id, pending);
        self.start_if_free(id);
    }

    /// Starts a request unless it overlaps with an earlier write, because local and remote image must agree on who was
    /// last, or touches a region that is not marked yet. From here on a write is on its way to both images.
    fn start_if_free(&mut self, id: u64) {
        let flight = &mut self.flight;
        let Some(this) = flight.pending.get_mut(&id).filter(|this| this.waiting.is_some()) else { return };
        // What starts while sealed belongs to the next epoch: in this one it is in flight, and submitted again.
        let epoch = if self.sealed { self.next_epoch } else { self.epoch };
        if !this.ranges.is_empty() {
            if !flight.order.is_free(id) {
                return;
            }
            let piece = match &this.waiting {
                Some(Op::Write { offset, from, .. }) => &[Range::new(*offset, from.len() as u64)],
                _ => &this.ranges[..],
            };
            let stamp = if self.mirror.is_some() { epoch } else { Epoch(u64::MAX) };
            if !self.tracker.admits(piece, stamp) {
                flight.unmarked.insert(id);
                return;
            }
        }
        let Some(op) = this.waiting.take() else { return };
        this.running = true;
        flight.unstarted -= cost(&op);
        match (&self.mirror, &op) {
            (Some(mirror), Op::Write { offset, from, .. }) => mirror.write(id, epoch, *offset, from),
            (Some(mirror), Op::Zero { ranges, .. }) => mirror.zero(id, epoch, ranges),
            _ => {}
        }
        flight.running += 1;
        self.disk.submit(id, op);
    }

    /// Starts the writes that have waited for their marks, if these are there.
    pub(crate) fn start_marked(&mut self) {
        mem::take(&mut self.flight.unmarked).into_iter().for_each(|id| self.start_if_free(id));
    }

    /// Goes on with requests that had no room in the mirror.
    pub(crate) fn go_on(&mut self) {
        if !self.sealed {
            mem::take(&mut self.flight.starved).into_iter().for_each(|id| self.next_piece(id));
        }
    }

    /// The next piece of a request, whose last one is done.
    fn next_piece(&mut self, id: u64) {
        let (Some(pending), Some(memory)) = (self.flight.pending.get(&id), self.memory.clone()) else { return };
        let Some(rest) = &pending.rest else { return };
        let (write, len) = (rest.write, rest.range.len.min(MAX_DATA));
        if pending.forgotten || self.standby {
            return self.drop_request(id);
        }
        if write && !self.has_room_for(len) {
            self.flight.starved.push_back(id);
            self.stalled = true;
            return;
        }
        let sync = self.writethrough;
        let Some(pending) = self.flight.pending.get_mut(&id) else { return };
        let op = if write { pending.next_write(&memory.memory(), sync) } else { Some(pending.next_read()) };
        match op {
            Some(op) => {
                self.flight.bytes += pending.bytes;
                self.flight.unstarted += cost(&op);
                pending.waiting = Some(op);
                self.start_if_free(id);
            }
            None => self.finish(id, request::IOERR, 0),
        }
    }

    /// Requests that are not started never are, and those that are done in part never go on: this host does not run the VM
    /// any more.
    pub(crate) fn drop_waiting(&mut self) {
        let waiting = self.flight.pending.iter().filter(|(_, pending)| pending.waiting.is_some());
        let waiting: Vec<u64> = waiting.map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| drop(self.flight.remove(id)));
        self.flight.drop_starved(None);
        self.flight.unstarted = 0;
    }

    fn drop_request(&mut self, id: u64) {
        let (_, free) = self.flight.remove(id);
        free.into_iter().for_each(|id| self.start_if_free(id));
    }

    /// Takes note of what the disk has finished, and tells the guest if that is allowed now.
    pub fn collect(&mut self) {
        let finished = self.disk.take_finished();
        self.flight.running -= finished.len();
        let mut free = Vec::new();
        for done in &finished {
            if let Some(mirror) = &self.mirror {
                mirror.completed(done.id);
            }
            let pending = self.flight.pending.get_mut(&done.id);
            let wrote = pending.is_some_and(|pending| pending.in_image(done.result.is_ok()));
            if wrote {
                free.append(&mut self.flight.order.leave(done.id));
            }
            if let Err(e) = &done.result {
                host_kit::warn_limited!("{e}");
                if wrote || self.mirror.is_some() {
                    self.fail(&e.to_string());
                }
            }
        }
        self.flight.finished.extend(finished);
        free.sort_unstable();
        free.into_iter().for_each(|id| self.start_if_free(id));
        self.deliver();
    }

    /// Tells the guest about finished requests, and uses the room that they leave.
    ///
    /// A request that failed is not told while there is a mirror: it stays in flight, so that a standby that takes over
    /// submits it again, on its own image. Only when the mirror is over is the error the guest's.
    pub(crate) fn deliver(&mut self) {
        if self.sealed {
            return;
        }
        let mirrored = self.mirror.is_some();
        let finished = mem::take(&mut self.flight.finished).into_iter();
        let (told, kept) = finished.partition(|done| done.result.is_ok() || !mirrored);
        self.flight.finished = kept;
        let told: Vec<Done> = told;
        let mut touched = vec![false; self.vrings.len()];
        for done in told {
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

    /// A piece of a request is done, usually the only one. The queue is returned that has a used entry now.
    fn piece_done(&mut self, done: &Done) -> Option<u16> {
        let standby = self.standby;
        let Some(pending) = self.flight.pending.get_mut(&done.id).filter(|pending| !pending.forgotten && !standby)
        else {
            self.drop_request(done.id);
            return None;
        };
        let mut status = if done.result.is_ok() { request::OK } else { request::IOERR };
        if let (Ok(()), Some(data), Some(memory)) = (&done.result, &done.buffer, &self.memory)
            && scatter(&*memory.memory(), &pending.into, data).is_err()
        {
            status = request::IOERR;
        }
        pending.moved += pending.bytes;
        self.flight.bytes -= mem::take(&mut pending.bytes);
        if status == request::OK && pending.rest.is_some() {
            self.next_piece(done.id);
            return None;
        }
        let written = if status == request::OK && done.buffer.is_some() { pending.moved as u32 } else { 0 };
        self.tell(done.id, status, written)
    }

    /// Tells the guest how a request went, outside of [`Worker::deliver`].
    fn finish(&mut self, id: u64, status: u8, written: u32) {
        let queue = self.tell(id, status, written);
        if let Some(vring) = queue.and_then(|queue| self.vrings.get(usize::from(queue))) {
            signal(&mut vring.get_mut());
        }
    }

    /// Puts a request into the used ring of the queue that is returned.
    fn tell(&mut self, id: u64, status: u8, written: u32) -> Option<u16> {
        let (pending, free) = self.flight.remove(id);
        free.into_iter().for_each(|id| self.start_if_free(id));
        let (pending, memory) = (pending?, self.memory.as_ref()?);
        let vring = self.vrings.get(usize::from(pending.queue))?;
        answer(&mut vring.get_mut(), &memory.memory(), pending.head, Some((pending.status, status)), written);
        if let Some((transfer, since)) = pending.transfer.filter(|_| status == request::OK) {
            self.counters.done(transfer, pending.moved, since.elapsed());
        }
        Some(pending.queue)
    }

    /// The frontend takes a ring away: finishes what it has in flight. While sealed guest memory must not change, so
    /// there the requests, which the VMM knows from the `Sealed` report, are forgotten instead.
    pub fn stop_queue(&mut self, queue: u16) {
        self.resubmit.retain(|request| request.queue != queue);
        if self.sealed || self.standby {
            self.forget(Some(queue));
            return;
        }
        // Failures that are kept from the guest would never finish.
        for done in mem::take(&mut self.flight.finished) {
            match self.flight.pending.get(&done.id) {
                Some(pending) if pending.queue == queue => self.drop_request(done.id),
                _ => self.flight.finished.push(done),
            }
        }
        loop {
            // Nor would what has no room: it is the VMM that makes room, and it is waiting here.
            let free = self.flight.drop_starved(Some(queue));
            free.into_iter().for_each(|id| self.start_if_free(id));
            if !self.flight.pending.values().any(|pending| pending.queue == queue) {
                break;
            }
            if self.flight.running == 0 {
                // What is left waits for its marks.
                if self.tracker.written().is_err() {
                    self.drop_waiting();
                }
                self.start_marked();
            } else {
                self.disk.wait();
                self.collect();
            }
        }
    }

    /// The guest is not told when the requests of one queue, or of all, finish.
    pub(crate) fn forget(&mut self, queue: Option<u16>) {
        let all = self.flight.pending.values_mut();
        for pending in all.filter(|pending| queue.is_none_or(|queue| queue == pending.queue)) {
            pending.forgotten = true;
        }
    }

    /// Every request that was taken and not answered, in the order it was taken.
    pub(crate) fn in_flight(&self) -> Vec<InFlight> {
        let taken = self.flight.pending.values().filter(|pending| !pending.forgotten);
        let taken = taken.map(|pending| InFlight { queue: pending.queue, head: pending.head });
        taken.chain(self.resubmit.iter().copied()).collect()
    }

    /// Writes that are started and not in the image yet.
    pub(crate) fn unfinished_writes(&self) -> impl Iterator<Item = u64> {
        let started = |pending: &Pending| pending.running && !pending.ranges.is_empty();
        self.flight.pending.iter().filter(move |(_, pending)| started(pending)).map(|(id, _)| *id)
    }

    /// Whether nothing is being written to the image.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unfinished_writes().next().is_none()
    }
}

/// What the mirror will count for an operation.
fn cost(op: &Op) -> u64 {
    match op {
        Op::Write { from, .. } => CHANGE_OVERHEAD + from.len() as u64,
        Op::Zero { ranges, .. } => CHANGE_OVERHEAD * ranges.len() as u64,
        Op::Read { .. } | Op::Flush => 0,
    }
}
