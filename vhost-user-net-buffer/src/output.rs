//! Guest to outside: frames are held by epoch, or written to the tap straight from guest memory.
//!
//! Either way the guest has its buffers back at once. A held frame is a copy; when there is no room for it
//! the queue is left alone until the next release. Its header is always a copy, and is checked: what asks
//! for more than was negotiated, or for what its frame does not allow, is dropped.

use std::io;

use device_api::counters::NetCounters;
use device_kit::gate::Gate;
use device_kit::{Memory, Vmm, Vring};
use ft_proto::Epoch;
use ft_wire::device_ctl::Report;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestMemoryBackend, VolatileSlice};

use crate::announce::{Announcer, Mac};
use crate::driver::Driver;
use crate::epoch_buffer::EpochBuffer;
use crate::header::{self, HeaderError};
use crate::ring::{self, Direction, FRAME_MAX, FRAME_MIN, HEADER_LEN, Segment};
use crate::tap::Tap;

/// Frames between two looks at the ft-ctl link: some tens of microseconds of work.
pub(crate) const CHUNK: usize = 8;

/// Pieces of guest memory that are written without a copy; a driver's frame has fewer.
const IOVECS_MAX: usize = 64;

/// Why a chunk has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    /// Nothing more in the avail ring.
    Empty,
    /// There may be more.
    Chunk,
    /// No room to hold a frame.
    Full,
    /// The ring makes no sense; only the driver can mend it.
    Broken,
}

/// Where frames come from and go to, and who hears of them.
pub struct Context<'a> {
    /// Of the guest.
    pub driver: &'a Driver,
    /// Of the host.
    pub tap: &'a Tap,
    /// Says which epoch they belong to.
    pub gate: &'a mut Gate,
    /// Told when an epoch has its first frame, and when there is no room.
    pub vmm: &'a Vmm,
    /// Learns the guest's address.
    pub announcer: &'a mut Announcer,
    /// Counts them.
    pub counters: &'a NetCounters,
}

/// The frames that are held, and what decides on the next one.
pub struct Output {
    buffer: EpochBuffer,
    /// Frames are held until their epoch is committed.
    hold: bool,
    /// The VMM knows of the current epoch's first frame.
    held_told: bool,
    /// By queue pair: it waits for room in the buffer.
    stalled: Vec<bool>,
    segments: Vec<Segment>,
    used: Vec<(u16, u32)>,
    frame: Box<[u8]>,
}

impl Output {
    /// Of so many queue pairs; holds what `buffer` has room for.
    #[must_use]
    pub fn new(pairs: usize, buffer: EpochBuffer) -> Self {
        Self {
            buffer,
            hold: false,
            held_told: false,
            stalled: vec![false; pairs],
            segments: Vec::new(),
            used: Vec::new(),
            frame: vec![0; FRAME_MAX].into_boxed_slice(),
        }
    }

    /// From now on frames are held, or not. Returns how many were dropped: a new session counts from `epoch`,
    /// and what the old one left behind was never committed.
    pub fn set_hold(&mut self, epoch: Epoch, hold: bool) -> usize {
        let mut dropped = 0;
        if !hold {
            self.buffer.release_all();
        } else if self.buffer.newest_held().is_some_and(|newest| newest > epoch) {
            dropped = self.buffer.discard_held();
        }
        (self.hold, self.held_told) = (hold, false);
        dropped
    }

    /// The VM runs here unprotected. Returns how many held frames were dropped.
    pub fn start(&mut self) -> usize {
        (self.hold, self.held_told) = (false, false);
        self.discard_held()
    }

    /// A new epoch begins.
    pub fn begin_epoch(&mut self) {
        self.held_told = false;
    }

    /// Whether frames of the guest can be taken: those that are let go must not be overtaken by new ones that
    /// need not wait.
    #[must_use]
    pub fn may_take(&self) -> bool {
        self.hold || self.buffer.is_empty()
    }

    /// Lets frames go up to and including `epoch`.
    pub fn release(&mut self, epoch: Epoch) {
        self.buffer.release(epoch);
    }

    /// Whether there are frames that may leave.
    #[must_use]
    pub fn has_releasable(&self) -> bool {
        self.buffer.has_releasable()
    }

    /// Drops the frames of all epochs after `epoch`. Returns how many.
    pub fn discard_after(&mut self, epoch: Epoch) -> usize {
        self.buffer.discard_after(epoch)
    }

    /// Drops all frames that are held. Returns how many.
    pub fn discard_held(&mut self) -> usize {
        self.buffer.discard_held()
    }

    /// Frames and bytes that have not left.
    #[must_use]
    pub fn waiting(&self) -> (u64, u64) {
        (self.buffer.frames() as u64, self.buffer.bytes() as u64)
    }

    /// The queue pairs that waited for room, which may be there now.
    pub fn take_stalled(&mut self) -> impl Iterator<Item = usize> {
        let stalled = self.stalled.iter_mut().enumerate();
        stalled.filter_map(|(pair, stalled)| std::mem::take(stalled).then_some(pair))
    }

    /// Writes some released frames to the tap. Returns how many, and whether there are more.
    pub fn drain(&mut self, tap: &Tap, counters: &NetCounters) -> (usize, bool) {
        let mut frames = 0;
        while frames < CHUNK
            && let Some((queue, frame)) = self.buffer.front()
        {
            let (bytes, result) = (frame.len() - HEADER_LEN, tap.queues()[usize::from(queue)].write(frame));
            self.buffer.pop_front();
            count(bytes, result, tap, counters);
            frames += 1;
        }
        (frames, self.buffer.has_releasable())
    }

    /// Takes some frames from the guest. Returns how many, and whether there may be more.
    pub fn serve(&mut self, vrings: &[Vring], pair: usize, cx: &mut Context<'_>) -> (usize, bool) {
        let handle = &vrings[2 * pair + 1];
        let Some(mut vring) = handle.to_serve() else { return (0, false) };
        let loaded = cx.driver.memory();
        let memory: &Memory = &loaded;
        let queue = vring.get_queue_mut();
        let before = queue.next_used();
        self.used.clear();
        let stop = self.take_frames(queue, memory, pair, cx);
        let finished =
            ring::publish(queue, memory, &self.used).and_then(|()| ring::wants_signal(queue, memory, before)).and_then(
                |signal| Ok((signal, stop == Stop::Empty && ring::enable_kick(queue, memory, queue.next_avail())?)),
            );
        if stop == Stop::Broken || finished.is_err() {
            cx.counters.malformed();
            handle.set_broken();
        }
        let Ok((signal, refilled)) = finished else { return (CHUNK, false) };
        if signal && let Err(e) = vring.signal_used_queue() {
            host_kit::warn_limited!("the guest cannot be interrupted: {e}");
        }
        (self.used.len(), refilled || stop == Stop::Chunk)
    }

    fn take_frames(&mut self, queue: &mut Queue, memory: &Memory, pair: usize, cx: &mut Context<'_>) -> Stop {
        if ring::disable_kick(queue, memory).is_err() {
            return Stop::Broken;
        }
        let header_len = cx.driver.header_len();
        for _ in 0..CHUNK {
            let Ok(chain) = ring::next(queue, memory) else { return Stop::Broken };
            let Some(chain) = chain else { return Stop::Empty };
            let head = chain.head_index();
            self.segments.clear();
            match ring::gather(chain, memory, Direction::FromGuest, &mut self.segments) {
                Ok(len) if len >= header_len + FRAME_MIN && len - header_len + HEADER_LEN <= FRAME_MAX => {
                    if !self.emit(memory, pair, len - header_len, cx) {
                        queue.go_to_previous_position();
                        return Stop::Full;
                    }
                }
                _ => cx.counters.malformed(),
            }
            self.used.push((head, 0));
        }
        Stop::Chunk
    }

    /// Holds or sends the frame of `len` bytes (without header) in the segments. False: no room.
    fn emit(&mut self, memory: &Memory, pair: usize, len: usize, cx: &mut Context<'_>) -> bool {
        if self.hold {
            if !self.hold(memory, pair, len, cx) {
                return false;
            }
        } else {
            self.send(memory, pair, len, cx);
        }
        if cx.announcer.wants_address()
            && let Some(mac) = self.source(memory, cx.driver.header_len())
            && cx.announcer.seen(mac)
        {
            cx.tap.announce(cx.announcer.macs());
        }
        true
    }

    fn hold(&mut self, memory: &Memory, pair: usize, len: usize, cx: &mut Context<'_>) -> bool {
        let epoch = cx.gate.epoch();
        let Some(slot) = self.buffer.push(epoch, pair as u16, HEADER_LEN + len) else {
            self.stalled[pair] = true;
            if cx.gate.tell_full() {
                cx.vmm.report(&Report::Full { epoch });
            }
            return false;
        };
        if let Err(refused) = copy_frame(memory, &self.segments, cx.driver, slot) {
            self.buffer.retract();
            refused.count(cx);
            return true;
        }
        cx.counters.held();
        // This is what cuts the epoch: it goes out before anything else is done.
        if !std::mem::replace(&mut self.held_told, true) {
            cx.vmm.report(&Report::Held { epoch });
        }
        true
    }

    fn send(&mut self, memory: &Memory, pair: usize, len: usize, cx: &Context<'_>) {
        let tap = &cx.tap.queues()[pair];
        let header_len = cx.driver.header_len();
        let header = match checked_header(memory, &self.segments, len, cx.driver) {
            Ok(header) => header,
            Err(refused) => return refused.count(cx),
        };
        let mut slices = [None::<libc::iovec>; IOVECS_MAX];
        slices[0] = Some(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: HEADER_LEN });
        let result = if let Some(count) = locate(memory, &self.segments, header_len, &mut slices) {
            let iovecs = slices.map(|s| s.unwrap_or(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }));
            // SAFETY: the first piece is `header`, which lives through the call; the others lie in guest
            // memory that `memory` keeps mapped through it. The guest may change the bytes meanwhile: only
            // the kernel looks at them, and it copies before it believes.
            let n =
                unsafe { libc::writev(std::os::fd::AsRawFd::as_raw_fd(tap), iovecs.as_ptr(), count as libc::c_int) };
            if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        } else {
            match copy_frame(memory, &self.segments, cx.driver, &mut self.frame[..HEADER_LEN + len]) {
                Ok(()) => tap.write(&self.frame[..HEADER_LEN + len]),
                Err(refused) => return refused.count(cx),
            }
        };
        count(len, result, cx.tap, cx.counters);
    }

    /// Source address of the frame in the segments, if it can be a guest's.
    fn source(&self, memory: &Memory, header_len: usize) -> Option<Mac> {
        let mut mac = [0; 6];
        ring::copy_out(memory, &self.segments, header_len + 6, &mut mac).ok()?;
        (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
    }
}

/// A tap drops what it does not like (a wrong header, the interface is down), as a cable would.
fn count(bytes: usize, result: io::Result<()>, tap: &Tap, counters: &NetCounters) {
    match result {
        Ok(()) => counters.sent(bytes),
        Err(e) => {
            counters.send_dropped(1);
            tracing::debug!("tap {}: frame dropped: {e}", tap.name());
        }
    }
}

/// Why a frame of the guest is not even tried.
enum Refused {
    /// It is not in guest memory (any more).
    Malformed,
    /// Its header is wrong.
    Header(HeaderError),
}

impl From<ring::Malformed> for Refused {
    fn from(_: ring::Malformed) -> Self {
        Self::Malformed
    }
}

impl Refused {
    fn count(&self, cx: &Context<'_>) {
        cx.counters.malformed();
        if let Self::Header(error) = self {
            cx.counters.send_dropped(1);
            host_kit::warn_limited!("tap {}: a frame of the guest is dropped: {error}", cx.tap.name());
        }
    }
}

/// Copies a frame out of guest memory, with its header as the tap expects it.
fn copy_frame(memory: &Memory, segments: &[Segment], driver: &Driver, frame: &mut [u8]) -> Result<(), Refused> {
    let mut told = [0; HEADER_LEN];
    ring::copy_out(memory, segments, 0, &mut told[..driver.header_len()])?;
    let (header, body) = frame.split_at_mut(HEADER_LEN);
    ring::copy_out(memory, segments, driver.header_len(), body)?;
    let told = header::for_tap(&told, body, body.len(), driver.output_offloads()).map_err(Refused::Header)?;
    header.copy_from_slice(&told);
    Ok(())
}

/// The header of a frame of `len` bytes (without header), as the tap expects it. The frame may change after
/// that; then the kernel finds what it finds.
fn checked_header(
    memory: &Memory,
    segments: &[Segment],
    len: usize,
    driver: &Driver,
) -> Result<[u8; HEADER_LEN], Refused> {
    let mut told = [0; HEADER_LEN];
    ring::copy_out(memory, segments, 0, &mut told[..driver.header_len()])?;
    let mut start = [0; header::START_MAX];
    let start = &mut start[..len.min(header::START_MAX)];
    if !header::is_plain(&told) {
        ring::copy_out(memory, segments, driver.header_len(), start)?;
    }
    header::for_tap(&told, start, len, driver.output_offloads()).map_err(Refused::Header)
}

/// Finds where `segments` are mapped from the byte `skip` on, for `pieces` from the second one on. Returns
/// the number of all pieces; `None` when they are too many.
fn locate(memory: &Memory, segments: &[Segment], mut skip: usize, pieces: &mut [Option<libc::iovec>]) -> Option<usize> {
    let mut count = 1;
    for segment in segments {
        let cut = skip.min(segment.len as usize);
        skip -= cut;
        if cut == segment.len as usize {
            continue;
        }
        let from = segment.address.checked_add(cut as u64)?;
        for slice in GuestMemoryBackend::get_slices(memory, from, segment.len as usize - cut) {
            let slice: VolatileSlice<'_, _> = slice.ok()?;
            let guard = slice.ptr_guard();
            *pieces.get_mut(count)? =
                Some(libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: slice.len() });
            count += 1;
        }
    }
    Some(count)
}
