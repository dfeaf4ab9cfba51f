//! Guest to outside: frames are held by epoch, or written to the tap straight from guest memory.
//!
//! Either way the guest has its buffers back at once. A held frame is a copy; when there is no room for it
//! the queue is left alone until the next release.

use std::io;

use ft_wire::device_ctl::Report;
use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, VolatileSlice};

use device_kit::Vring;

use crate::backend::Net;
use crate::ring::{self, Direction, FRAME_MAX, FRAME_MIN, HEADER_LEN, Memory, Segment};

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
    /// The process is to end.
    Ended,
}

impl Net {
    /// Writes some released frames to the tap. Returns how many, and whether there are more.
    pub(crate) fn drain(&mut self) -> (usize, bool) {
        let mut frames = 0;
        while frames < CHUNK
            && let Some((queue, frame)) = self.buffer.front()
        {
            let (bytes, result) = (frame.len() - HEADER_LEN, self.tap.queues()[usize::from(queue)].write(frame));
            self.buffer.pop_front();
            self.count_output(bytes, result);
            frames += 1;
        }
        if frames > 0 {
            self.unstall();
        }
        (frames, self.buffer.has_releasable())
    }

    /// Takes some frames from the guest. Returns how many, and whether there may be more.
    pub(crate) fn serve_output(&mut self, vrings: &[Vring], pair: usize) -> (usize, bool) {
        let handle = &vrings[2 * pair + 1];
        let mut vring = handle.get_mut();
        if !vring.is_enabled() || !vring.get_queue().ready() || handle.is_broken() {
            return (0, false);
        }
        let loaded = self.memory.memory();
        let memory: &Memory = &loaded;
        let queue = vring.get_queue_mut();
        let before = queue.next_used();
        self.scratch.used.clear();
        let stop = self.take_frames(queue, memory, pair);
        let finished = ring::publish(queue, memory, &self.scratch.used)
            .and_then(|()| ring::wants_signal(queue, memory, before))
            .and_then(|signal| {
                Ok((signal, stop == Stop::Empty && ring::enable_kick(queue, memory, queue.next_avail())?))
            });
        if stop == Stop::Broken || finished.is_err() {
            self.counters.malformed();
            handle.set_broken();
        }
        let Ok((signal, refilled)) = finished else { return (CHUNK, false) };
        if signal && let Err(e) = vring.signal_used_queue() {
            host_kit::warn_limited!("the guest cannot be interrupted: {e}");
        }
        (self.scratch.used.len(), refilled || stop == Stop::Chunk)
    }

    fn take_frames(&mut self, queue: &mut Queue, memory: &Memory, pair: usize) -> Stop {
        if ring::disable_kick(queue, memory).is_err() {
            return Stop::Broken;
        }
        for _ in 0..CHUNK {
            let Ok(chain) = ring::next(queue, memory) else { return Stop::Broken };
            let Some(chain) = chain else { return Stop::Empty };
            let head = chain.head_index();
            self.scratch.segments.clear();
            match ring::gather(chain, memory, Direction::FromGuest, &mut self.scratch.segments) {
                Ok(len) if len >= self.header_len + FRAME_MIN && len - self.header_len + HEADER_LEN <= FRAME_MAX => {
                    if !self.emit(memory, pair, len - self.header_len) {
                        queue.go_to_previous_position();
                        return Stop::Full;
                    }
                }
                _ => self.counters.malformed(),
            }
            self.scratch.used.push((head, 0));
            if self.ended {
                return Stop::Ended;
            }
        }
        Stop::Chunk
    }

    /// Holds or sends the frame of `len` bytes (without header) in the scratch segments. False: no room.
    fn emit(&mut self, memory: &Memory, pair: usize, len: usize) -> bool {
        if self.gate.holds() {
            if !self.hold(memory, pair, len) {
                return false;
            }
        } else {
            let result = self.send(memory, pair, len);
            self.count_output(len, result);
        }
        if self.guest_mac.is_none() || self.announcer.is_waiting() {
            self.learn(memory);
        }
        true
    }

    fn hold(&mut self, memory: &Memory, pair: usize, len: usize) -> bool {
        let epoch = self.gate.epoch();
        let Some(slot) = self.buffer.push(epoch, pair as u16, HEADER_LEN + len) else {
            self.ports[pair].stalled = true;
            if self.gate.tell_full() {
                self.report(&Report::Full { epoch });
            }
            return false;
        };
        if copy_frame(memory, &self.scratch.segments, self.header_len, slot).is_err() {
            self.buffer.retract();
            self.counters.malformed();
            return true;
        }
        self.counters.held();
        // This is what cuts the epoch: it goes out before anything else is done.
        if self.gate.tell_held() {
            self.report(&Report::Held { epoch });
        }
        true
    }

    fn send(&mut self, memory: &Memory, pair: usize, len: usize) -> io::Result<()> {
        let tap = &self.tap.queues()[pair];
        let mut slices = [None::<libc::iovec>; IOVECS_MAX];
        if self.header_len == HEADER_LEN
            && let Some(count) = locate(memory, &self.scratch.segments, &mut slices)
        {
            let iovecs = slices.map(|s| s.unwrap_or(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }));
            // SAFETY: each piece lies in guest memory that `memory` keeps mapped through the call. The guest
            // may change the bytes meanwhile: only the kernel looks at them, and it copies before it
            // believes.
            let n =
                unsafe { libc::writev(std::os::fd::AsRawFd::as_raw_fd(tap), iovecs.as_ptr(), count as libc::c_int) };
            return if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        }
        let frame = &mut self.scratch.frame[..HEADER_LEN + len];
        copy_frame(memory, &self.scratch.segments, self.header_len, frame)
            .map_err(|ring::Malformed| io::ErrorKind::InvalidInput)?;
        tap.write(frame)
    }

    /// A tap drops what it does not like (a wrong header, the interface is down), as a cable would.
    fn count_output(&mut self, bytes: usize, result: io::Result<()>) {
        match result {
            Ok(()) => self.counters.sent(bytes),
            Err(e) => {
                self.counters.send_dropped(1);
                tracing::debug!("tap {}: frame dropped: {e}", self.tap.name());
            }
        }
    }

    /// Remembers the source address of the frame in the scratch segments as the guest's.
    fn learn(&mut self, memory: &Memory) {
        let mut mac = [0; 6];
        let at = self.header_len + 6;
        if ring::copy_out(memory, &self.scratch.segments, at, &mut mac).is_err() || mac[0] & 1 == 1 || mac == [0; 6] {
            return;
        }
        self.guest_mac.get_or_insert(mac);
        if self.announcer.is_waiting() {
            self.announcer.seen(mac);
            self.announce();
        }
    }
}

/// Copies a frame out of guest memory, with its header as the tap expects it.
fn copy_frame(
    memory: &Memory,
    segments: &[Segment],
    header_len: usize,
    frame: &mut [u8],
) -> Result<(), ring::Malformed> {
    if header_len == HEADER_LEN {
        return ring::copy_out(memory, segments, 0, frame);
    }
    let (header, body) = frame.split_at_mut(HEADER_LEN);
    header.fill(0);
    ring::copy_out(memory, segments, 0, &mut header[..header_len])?;
    ring::copy_out(memory, segments, header_len, body)
}

/// Finds where `segments` are mapped; `None` when they are too many pieces.
fn locate(memory: &Memory, segments: &[Segment], pieces: &mut [Option<libc::iovec>]) -> Option<usize> {
    let mut count = 0;
    for segment in segments {
        for slice in GuestMemoryBackend::get_slices(memory, segment.address, segment.len as usize) {
            let slice: VolatileSlice<'_, _> = slice.ok()?;
            let guard = slice.ptr_guard();
            *pieces.get_mut(count)? =
                Some(libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: slice.len() });
            count += 1;
        }
    }
    Some(count)
}
