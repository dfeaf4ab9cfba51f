//! The queues: takes requests from the avail rings, hands them to the disk, puts finished ones into the used rings.
//!
//! In: kicks, finished operations, ft-ctl commands (see `commands`), all on the vhost worker thread. Out: used entries,
//! interrupts, mirrored writes. Never touches guest memory while sealed or while this host is the standby.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use device_counters::{DiskCounters, Page, Transfer};
use ft_proto::Epoch;
use ft_proto::device_ctl::{InFlight, Report};
use tracing::{debug, error, warn};
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Options;
use crate::applier::Applier;
use crate::buffer::Buffer;
use crate::control::Link;
use crate::disk::{Disk, Done, Op};
use crate::epoch_log::CHANGE_OVERHEAD;
use crate::image::Image;
use crate::mirror::{Mirror, Room};
use crate::range::Range;
use crate::receive::Receiver;
use crate::record_file::Purpose;
use crate::request::{self, Body, Geometry, Request, Span, gather, scatter};
use crate::tracker::Tracker;
use crate::vring::Vring;

/// Guest memory, with a dirty log the frontend may put underneath.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<vhost_user_backend::bitmap::BitmapMmapRegion>>;
type Guest = <Memory as GuestAddressSpace>::T;

/// Most requests that are taken and not finished: what fits into one `Sealed` report.
const MAX_PENDING: usize = 4096;
/// Taken requests hold at most this many bytes, give or take one request.
const MAX_FLIGHT: usize = 64 << 20;
/// Bytes of the answer to GET_ID.
pub const SERIAL_LEN: usize = 20;

/// Called once when the process should end.
pub type Exit = Arc<dyn Fn() + Send + Sync>;

struct Pending {
    queue: u16,
    head: u16,
    status: GuestAddress,
    /// Where the data of a read goes.
    into: Vec<Span>,
    /// What it writes; empty once the image has it.
    ranges: Vec<Range>,
    /// Not started: overlaps with an earlier write.
    waiting: Option<Op>,
    bytes: usize,
    /// What is counted, and since when, once the guest is told.
    transfer: Option<(Transfer, Instant)>,
    /// The guest is not told: its ring was taken away while sealed.
    forgotten: bool,
}

/// What became of one avail entry.
enum Taken {
    /// The used ring has it already.
    Used,
    /// It is under way.
    Submitted,
    /// It cannot be taken now.
    NoRoom,
}

/// The device's state, owned by the vhost worker thread.
pub struct Worker {
    pub(crate) disk: Disk,
    pub(crate) geometry: Geometry,
    pub(crate) serial: String,
    pub(crate) vrings: Vec<Vring>,
    memory: Option<Memory>,
    counters: DiskCounters,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    finished: Vec<Done>,
    flight_bytes: usize,
    /// Operations that the disk has not finished.
    running: usize,
    /// Bytes of writes that are taken and not started, as the mirror counts them.
    unstarted: u64,
    /// Some queue has entries that were not taken for want of room.
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
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) exit: Exit,
    full: Option<Epoch>,
    pub(crate) failed: bool,
}

impl Worker {
    /// A disk on `image`.
    ///
    /// # Errors
    /// When the kernel refuses threads or eventfds.
    pub fn new(image: Arc<dyn Image>, options: Options, exit: Exit) -> io::Result<Self> {
        let geometry = Geometry { size: image.size(), block: options.block_size, read_only: options.read_only };
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let standby = options.record.as_ref().is_some_and(|record| record.purpose == Purpose::StandBy);
        let tracker = Tracker::new(options.record, image, wake.clone())?;
        Ok(Self {
            disk: Disk::new(tracker.image().clone(), options.threads)?,
            geometry,
            serial: options.serial,
            vrings: Vec::new(),
            memory: None,
            counters: DiskCounters::new(options.counters.map_or_else(Page::private, Ok)?),
            pending: BTreeMap::new(),
            next_id: 0,
            finished: Vec::new(),
            flight_bytes: 0,
            running: 0,
            unstarted: 0,
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
            link: None,
            wake,
            exit,
            full: None,
            failed: false,
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

    /// Whether every write must be durable before it completes: the driver cannot flush.
    pub fn set_writethrough(&mut self, on: bool) {
        self.writethrough = on;
    }

    /// The process ends: nothing is taken from the queues or the streams any more. What is left to do for the image.
    pub(crate) fn shut(&mut self) -> (Option<Arc<Applier>>, Tracker) {
        (self.mirror, self.receiver, self.memory, self.link) = (None, None, None, None);
        (self.applier.clone(), self.tracker.clone())
    }

    /// Serves every queue: something that held them up is over.
    pub(crate) fn serve_all(&mut self) {
        self.stalled = false;
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
        if !ring.is_enabled() || !ring.get_queue().ready() {
            return;
        }
        let index = queue as u16;
        let mut used = self.take_again(index, &mut ring, &mem);
        loop {
            let before = ring.get_queue().next_avail();
            let _ = ring.disable_notification();
            used |= self.take_all(index, &mut ring, &mem);
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

    fn take_all(&mut self, queue: u16, ring: &mut VringState<Memory>, mem: &Guest) -> bool {
        let mut used = false;
        while !self.stalled {
            if self.pending.len() >= MAX_PENDING || self.flight_bytes >= MAX_FLIGHT {
                self.stalled = true;
                break;
            }
            let head = match ring.get_queue_mut().iter(mem.clone()) {
                Ok(mut avail) => avail.next().map(|chain| chain.head_index()),
                Err(e) => {
                    debug!("queue {queue}: {e}");
                    None
                }
            };
            let Some(head) = head else { break };
            match self.take(queue, head, ring, mem) {
                Taken::Used => used = true,
                Taken::Submitted => {}
                Taken::NoRoom => {
                    ring.get_queue_mut().go_to_previous_position();
                    self.stalled = true;
                }
            }
        }
        used
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

    /// Whether the mirror can take a write now. Asks the VMM for a cut, once an epoch, when only that helps.
    fn has_room(&mut self, body: &Body) -> bool {
        let len = match body {
            Body::Write(range, _) => range.len,
            Body::Zero(..) => 0,
            _ => return true,
        };
        match self.mirror.as_ref().map_or(Room::Yes, |mirror| mirror.room(len, self.unstarted)) {
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
        let id = self.next_id;
        let sync = self.writethrough;
        let began = Instant::now();
        let transfer = match &request.body {
            Body::Read(range, _) if range.len > 0 => Some((Transfer::Read, began)),
            Body::Write(..) => Some((Transfer::Write, began)),
            _ => None,
        };
        let (op, into, ranges, bytes) = match request.body {
            Body::GetId(into) => return self.answer_id(head, &into, status, ring, mem),
            Body::Flush => (Op::Flush, vec![], vec![], 0),
            Body::Read(range, into) => {
                let bytes = range.len as usize;
                (Op::Read { offset: range.offset, into: Buffer::zeroed(bytes) }, into, vec![], bytes)
            }
            Body::Write(range, _) if range.len == 0 => return answer(ring, mem, head, Some((status, request::OK)), 0),
            Body::Write(range, from) => {
                let bytes = range.len as usize;
                let mut data = Buffer::zeroed(bytes);
                if gather(&**mem, &from, &mut data).is_err() {
                    return answer(ring, mem, head, Some((status, request::IOERR)), 0);
                }
                (Op::Write { offset: range.offset, from: Arc::new(data), sync }, vec![], vec![range], bytes)
            }
            Body::Zero(ranges, unmap) => (Op::Zero { ranges: ranges.clone(), unmap, sync }, vec![], ranges, 0),
        };
        self.next_id += 1;
        self.flight_bytes += bytes;
        self.unstarted += cost(&op);
        let pending =
            Pending { queue, head, status, into, ranges, waiting: Some(op), bytes, transfer, forgotten: false };
        self.pending.insert(id, pending);
        self.start_if_free(id);
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

    /// Starts a request unless it overlaps with an earlier write, because local and remote image must agree on who was
    /// last, or touches a region that is not marked yet. From here on a write is on its way to both images.
    fn start_if_free(&mut self, id: u64) {
        let Some(this) = self.pending.get(&id).filter(|this| this.waiting.is_some()) else { return };
        // What starts while sealed belongs to the next epoch: in this one it is in flight, and submitted again.
        let epoch = if self.sealed { self.next_epoch } else { self.epoch };
        if !this.ranges.is_empty() {
            let overlaps = |other: &Pending| other.ranges.iter().any(|a| this.ranges.iter().any(|b| a.overlaps(b)));
            if self.pending.range(..id).any(|(_, earlier)| overlaps(earlier)) {
                return;
            }
            let stamp = if self.mirror.is_some() { epoch } else { Epoch(u64::MAX) };
            if !self.tracker.admits(&this.ranges, stamp) {
                return;
            }
        }
        let Some(op) = self.pending.get_mut(&id).and_then(|this| this.waiting.take()) else { return };
        self.unstarted -= cost(&op);
        match (&self.mirror, &op) {
            (Some(mirror), Op::Write { offset, from, .. }) => mirror.write(id, epoch, *offset, from),
            (Some(mirror), Op::Zero { ranges, .. }) => mirror.zero(id, epoch, ranges),
            _ => {}
        }
        self.running += 1;
        self.disk.submit(id, op);
    }

    fn start_waiting(&mut self) {
        let waiting: Vec<u64> = self.pending.iter().filter(|(_, p)| p.waiting.is_some()).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| self.start_if_free(id));
    }

    /// Requests that are not started never are: this host does not run the VM any more.
    pub(crate) fn drop_waiting(&mut self) {
        let dropped = self.pending.extract_if(.., |_, pending| pending.waiting.is_some());
        self.flight_bytes -= dropped.map(|(_, pending)| pending.bytes).sum::<usize>();
        self.unstarted = 0;
    }

    /// Takes note of what the disk has finished, and tells the guest if that is allowed now.
    pub fn collect(&mut self) {
        let finished = self.disk.take_finished();
        self.running -= finished.len();
        for done in &finished {
            if let Some(mirror) = &self.mirror {
                mirror.completed(done.id);
            }
            let pending = self.pending.get_mut(&done.id);
            let wrote = pending.is_some_and(|pending| !mem::take(&mut pending.ranges).is_empty());
            if let Err(e) = &done.result {
                warn!("{e}");
                if wrote || self.mirror.is_some() {
                    self.fail(&e.to_string());
                }
            }
        }
        self.finished.extend(finished);
        self.start_waiting();
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
        let mut touched = vec![false; self.vrings.len()];
        let mirrored = self.mirror.is_some();
        let (told, kept) = mem::take(&mut self.finished).into_iter().partition(|done| done.result.is_ok() || !mirrored);
        self.finished = kept;
        let told: Vec<Done> = told;
        for done in told {
            let Some(pending) = self.pending.remove(&done.id) else { continue };
            self.flight_bytes -= pending.bytes;
            if !pending.forgotten && !self.standby && self.complete(&pending, &done) {
                touched[usize::from(pending.queue)] = true;
            }
        }
        for (vring, _) in self.vrings.iter().zip(touched).filter(|(_, touched)| *touched) {
            signal(&mut vring.get_mut());
        }
        if self.stalled {
            self.serve_all();
        }
    }

    fn complete(&self, pending: &Pending, done: &Done) -> bool {
        let (Some(vring), Some(memory)) = (self.vrings.get(usize::from(pending.queue)), &self.memory) else {
            return false;
        };
        let mem = memory.memory();
        let mut written = 0;
        let mut status = if done.result.is_ok() { request::OK } else { request::IOERR };
        if let (Ok(()), Some(data)) = (&done.result, &done.buffer) {
            match scatter(&*mem, &pending.into, data) {
                Ok(()) => written = data.len() as u32,
                Err(()) => status = request::IOERR,
            }
        }
        answer(&mut vring.get_mut(), &mem, pending.head, Some((pending.status, status)), written);
        if let Some((transfer, since)) = pending.transfer.filter(|_| status == request::OK) {
            self.counters.done(transfer, pending.bytes, since.elapsed());
        }
        true
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
        for done in mem::take(&mut self.finished) {
            match self.pending.get(&done.id) {
                Some(pending) if pending.queue == queue => {
                    self.flight_bytes -= pending.bytes;
                    self.pending.remove(&done.id);
                }
                _ => self.finished.push(done),
            }
        }
        while self.pending.values().any(|pending| pending.queue == queue) {
            if self.running == 0 {
                // What is left waits for its marks.
                if self.tracker.written().is_err() {
                    self.drop_waiting();
                }
                self.start_waiting();
            } else {
                self.disk.wait();
                self.collect();
            }
        }
    }

    /// The guest is not told when the requests of one queue, or of all, finish.
    pub(crate) fn forget(&mut self, queue: Option<u16>) {
        for pending in self.pending.values_mut().filter(|pending| queue.is_none_or(|queue| queue == pending.queue)) {
            pending.forgotten = true;
        }
    }

    /// Every request that was taken and not answered, in the order it was taken.
    pub(crate) fn in_flight(&self) -> Vec<InFlight> {
        let taken = self.pending.values().filter(|pending| !pending.forgotten);
        let taken = taken.map(|pending| InFlight { queue: pending.queue, head: pending.head });
        taken.chain(self.resubmit.iter().copied()).collect()
    }

    /// Writes that are started and not in the image yet.
    pub(crate) fn unfinished_writes(&self) -> impl Iterator<Item = u64> {
        let started = |pending: &Pending| pending.waiting.is_none() && !pending.ranges.is_empty();
        self.pending.iter().filter(move |(_, pending)| started(pending)).map(|(id, _)| *id)
    }

    /// Whether nothing is being written to the image.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unfinished_writes().next().is_none()
    }

    /// The mirror has room again or is lost; or the record is written, or cannot be.
    pub fn mirror_changed(&mut self) {
        let _ = self.wake.read();
        if self.mirror.as_ref().is_some_and(Mirror::is_lost) {
            self.mirror = None;
            self.deliver();
        }
        if let Some(trouble) = self.tracker.take_trouble() {
            self.fail(&trouble.to_string());
        }
        self.start_waiting();
        if let Some(mirror) = self.mirror.as_ref().filter(|_| self.tracker.is_crowded()) {
            mirror.persist();
        }
        if self.stalled {
            self.serve_all();
        }
    }

    pub(crate) fn report(&self, report: &Report) {
        if let Some(link) = &self.link {
            link.report(report);
        }
    }

    /// The disk cannot go on as the VM's disk: said once.
    pub(crate) fn fail(&mut self, reason: &str) {
        if !mem::replace(&mut self.failed, true) {
            error!("{reason}");
            self.report(&Report::Failed { reason: reason.to_owned() });
        }
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

/// Puts a request into the used ring. A head outside of the ring cannot be answered at all.
fn answer(
    ring: &mut VringState<Memory>,
    mem: &Guest,
    head: u16,
    status: Option<(GuestAddress, u8)>,
    written: u32,
) -> Taken {
    let status_written = status.is_some_and(|(addr, status)| mem.write_obj(status, addr).is_ok());
    if let Err(e) = ring.add_used(head, written + u32::from(status_written)) {
        debug!("head {head}: {e}");
    }
    Taken::Used
}

fn signal(ring: &mut VringState<Memory>) {
    if ring.needs_notification().unwrap_or(true)
        && let Err(e) = ring.signal_used_queue()
    {
        debug!("cannot signal the guest: {e}");
    }
}
