//! Requests in progress: started in the right order, and kept until the guest can be notified.
//!
//! In: requests from the queues, operations that the disk has finished. Out: operations, and mirrored writes.
//! A write waits for earlier ones that it overlaps, because local and remote image must agree on which was
//! last, and for the marks of its regions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

use ft_proto::Epoch;
use ft_wire::device_ctl::InFlight;

use crate::image::range::Range;
use crate::mirror::Mirror;
use crate::serve::executor::{Completion, Executor, Op};
use crate::serve::order::WriteOrder;
use crate::serve::pending::{Pending, cost};
use crate::tracker::Tracker;

/// Most requests that are taken and not finished: what fits into one `Sealed` report.
const MAX_PENDING: usize = 4096;
/// Taken requests hold at most this many bytes, give or take one request.
const MAX_FLIGHT: usize = 64 << 20;

/// Where operations go when they start.
pub struct Target<'a> {
    /// The image.
    pub disk: &'a Executor,
    /// Its record.
    pub tracker: &'a Tracker,
    /// The peer, while there is one.
    pub mirror: Option<&'a Mirror>,
    /// What starts now belongs to it.
    pub epoch: Epoch,
}

impl Target<'_> {
    /// Whether a write to `ranges` may start.
    fn may_write(&self, ranges: &[Range]) -> bool {
        let stamp = if self.mirror.is_some() { self.epoch } else { Epoch(u64::MAX) };
        self.tracker.may_write(ranges, stamp)
    }

    /// Whether an operation, on `ranges` if it writes, may start.
    fn may_start(&self, op: &Op, ranges: &[Range]) -> bool {
        match op {
            Op::Read { .. } => true,
            Op::Flush => self.tracker.may_flush(),
            Op::Write { offset, from, .. } => self.may_write(&[Range::new(*offset, from.len() as u64)]),
            Op::Zero { .. } => self.may_write(ranges),
        }
    }

    /// From here on a write is on its way to both images.
    fn start(&self, id: u64, op: Op) {
        match (self.mirror, &op) {
            (Some(mirror), Op::Write { offset, from, .. }) => mirror.write(id, self.epoch, *offset, from),
            (Some(mirror), Op::Zero { ranges, .. }) => mirror.zero(id, self.epoch, ranges),
            _ => {}
        }
        self.disk.submit(id, op);
    }
}

/// What has become of operations that the disk has finished.
pub struct Collected {
    /// Errors of the image, and whether they were of writes.
    pub errors: Vec<(String, bool)>,
    /// Writes that waited for those that are in the image now: see [`Flight::start`].
    pub free: Vec<u64>,
}

/// The requests in progress.
#[derive(Default)]
pub struct Flight {
    pending: BTreeMap<u64, Pending>,
    /// What a checkpoint had in flight and is still to be taken.
    again: VecDeque<InFlight>,
    next_id: u64,
    order: WriteOrder,
    /// Writes that wait for no other, and flushes, which wait for the image's record.
    unrecorded: BTreeSet<u64>,
    /// Requests whose next piece waits for room in the mirror.
    waiting_for_room: VecDeque<u64>,
    finished: Vec<Completion>,
    bytes: usize,
    /// Operations that the disk has not finished.
    running: usize,
    /// Bytes of writes that are taken and not started, as the mirror counts them.
    unstarted: u64,
}

impl Flight {
    /// Whether no more may be taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING || self.bytes >= MAX_FLIGHT
    }

    /// Bytes of writes that are taken and not started, as the mirror counts them.
    #[must_use]
    pub fn unstarted(&self) -> u64 {
        self.unstarted
    }

    /// Whether the disk has operations that it has not finished.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running > 0
    }

    /// A request, if it is not finished.
    pub fn get(&self, id: u64) -> Option<&Pending> {
        self.pending.get(&id)
    }

    /// As [`Flight::get`].
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Pending> {
        self.pending.get_mut(&id)
    }

    /// These, which a checkpoint had in flight, are to be taken before anything new.
    pub fn submit_again(&mut self, requests: Vec<InFlight>) {
        self.again = requests.into();
    }

    /// Those of them that are still to be taken.
    pub fn take_again(&mut self) -> VecDeque<InFlight> {
        mem::take(&mut self.again)
    }

    /// This one cannot be taken yet.
    pub fn put_back(&mut self, request: InFlight) {
        self.again.push_back(request);
    }

    /// Those of `queue` are not to be taken.
    pub fn forget_again(&mut self, queue: u16) {
        self.again.retain(|request| request.queue != queue);
    }

    /// A request begins with `op`.
    pub fn enter(&mut self, pending: Pending, op: Op, target: &Target<'_>) {
        let id = self.next_id;
        self.next_id += 1;
        if !pending.ranges().is_empty() {
            self.order.begin(id, pending.ranges());
        }
        self.pending.insert(id, pending);
        self.go_on(id, op, target);
    }

    /// A request goes on with `op`.
    pub fn go_on(&mut self, id: u64, op: Op, target: &Target<'_>) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        self.bytes += pending.bytes();
        self.unstarted += cost(&op);
        pending.wait_with(op);
        self.start_if_free(id, target);
    }

    /// Starts those of these requests that wait for nothing any more.
    pub fn start(&mut self, ids: Vec<u64>, target: &Target<'_>) {
        ids.into_iter().for_each(|id| self.start_if_free(id, target));
    }

    /// Starts what has waited for the image's record, if that says what it must.
    pub fn start_recorded(&mut self, target: &Target<'_>) {
        mem::take(&mut self.unrecorded).into_iter().for_each(|id| self.start_if_free(id, target));
    }

    fn start_if_free(&mut self, id: u64, target: &Target<'_>) {
        let Some(this) = self.pending.get_mut(&id) else { return };
        let Some(op) = this.waiting() else { return };
        if !this.ranges().is_empty() && !self.order.is_free(id) {
            return;
        }
        if !target.may_start(op, this.ranges()) {
            self.unrecorded.insert(id);
            return;
        }
        let Some(op) = this.start() else { return };
        self.unstarted -= cost(&op);
        self.running += 1;
        target.start(id, op);
    }

    /// The request's next piece waits for room in the mirror.
    pub fn wait_for_room(&mut self, id: u64) {
        self.waiting_for_room.push_back(id);
    }

    /// Those that wait for room, to be tried again.
    pub fn take_waiting_for_room(&mut self) -> VecDeque<u64> {
        mem::take(&mut self.waiting_for_room)
    }

    /// Forgets a request; those that waited for it start.
    pub fn remove(&mut self, id: u64, target: &Target<'_>) -> Option<Pending> {
        let (pending, free) = self.take_out(id);
        self.start(free, target);
        pending
    }

    /// Also returns writes that waited for the request.
    fn take_out(&mut self, id: u64) -> (Option<Pending>, Vec<u64>) {
        let pending = self.pending.remove(&id);
        self.bytes -= pending.as_ref().map_or(0, Pending::bytes);
        self.unrecorded.remove(&id);
        (pending, self.order.finish(id))
    }

    /// Drops requests that wait for room, of one queue or of all. Returns writes that waited for them.
    fn drop_waiting_for_room(&mut self, queue: Option<u16>) -> Vec<u64> {
        let mut free = Vec::new();
        for id in mem::take(&mut self.waiting_for_room) {
            match self.pending.get(&id) {
                Some(pending) if queue.is_some_and(|queue| queue != pending.queue()) => {
                    self.waiting_for_room.push_back(id)
                }
                _ => free.append(&mut self.take_out(id).1),
            }
        }
        free
    }

    /// As [`Flight::remove`], for all of one queue that wait for room.
    pub fn remove_waiting_for_room(&mut self, queue: u16, target: &Target<'_>) {
        let free = self.drop_waiting_for_room(Some(queue));
        self.start(free, target);
    }

    /// As [`Flight::remove`], for all of one queue that are finished.
    pub fn remove_finished(&mut self, queue: u16, target: &Target<'_>) {
        for done in mem::take(&mut self.finished) {
            match self.pending.get(&done.id) {
                Some(pending) if pending.queue() == queue => drop(self.remove(done.id, target)),
                _ => self.finished.push(done),
            }
        }
    }

    /// Drops requests that are not started, or done only in part: this host does not run the VM any more.
    pub fn drop_waiting(&mut self) {
        let waiting = self.pending.iter().filter(|(_, pending)| pending.waiting().is_some());
        let waiting: Vec<u64> = waiting.map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| drop(self.take_out(id)));
        self.drop_waiting_for_room(None);
        self.unstarted = 0;
    }

    /// Takes note of what the disk has finished.
    #[must_use]
    pub fn collect(&mut self, target: &Target<'_>) -> Collected {
        let finished = target.disk.take_finished();
        self.running -= finished.len();
        let (mut free, mut errors) = (Vec::new(), Vec::new());
        for done in &finished {
            if let Some(mirror) = target.mirror {
                mirror.completed(done.id);
            }
            let pending = self.pending.get_mut(&done.id);
            let wrote = pending.is_some_and(|pending| pending.in_image(done.result.is_ok()));
            if wrote {
                free.append(&mut self.order.finish(done.id));
            }
            if let Err(e) = &done.result {
                errors.push((e.to_string(), wrote));
            }
        }
        self.finished.extend(finished);
        free.sort_unstable();
        Collected { errors, free }
    }

    /// Finished operations that the guest can be notified of. Failures are kept while there is a mirror.
    #[must_use]
    pub fn take_finished(&mut self, mirrored: bool) -> Vec<Completion> {
        let finished = mem::take(&mut self.finished).into_iter();
        let (told, kept) = finished.partition(|done| done.result.is_ok() || !mirrored);
        self.finished = kept;
        told
    }

    /// The current piece of a request is complete. Whether there is another one.
    pub fn end_piece(&mut self, id: u64) -> bool {
        let Some(pending) = self.pending.get_mut(&id) else { return false };
        self.bytes -= pending.end_piece();
        pending.next().is_some()
    }

    /// The guest is not notified when the requests of one queue, or of all, finish.
    pub fn abandon(&mut self, queue: Option<u16>) {
        let all = self.pending.values_mut();
        all.filter(|pending| queue.is_none_or(|queue| queue == pending.queue())).for_each(Pending::abandon);
    }

    /// Whether a queue has requests that are not finished.
    #[must_use]
    pub fn has_any_of(&self, queue: u16) -> bool {
        self.pending.values().any(|pending| pending.queue() == queue)
    }

    /// Every request that was taken and not answered, in the order it was taken.
    pub fn in_flight(&self) -> impl Iterator<Item = InFlight> {
        let taken = self.pending.values().filter(|pending| !pending.is_abandoned());
        taken.map(|pending| InFlight { queue: pending.queue(), head: pending.head() }).chain(self.again.iter().copied())
    }

    /// Writes that are started and not in the image yet.
    pub fn unfinished_writes(&self) -> impl Iterator<Item = u64> {
        self.pending.iter().filter(|(_, pending)| pending.is_writing()).map(|(id, _)| *id)
    }
}
