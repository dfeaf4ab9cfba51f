//! Outside to guest: frames from the tap into the guest's receive buffers, straight through.
//!
//! While sealed, and while the guest has no buffers, frames stay in the tap and it is not polled. On a
//! standby they are read and dropped, so that a takeover does not begin with old news.

use std::io;

use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;

use ft_wire::device_ctl::Report;

use device_kit::Vring;

use crate::backend::Net;
use crate::output::CHUNK;
use crate::ring::{self, Direction, HEADER_LEN, LEGACY_HEADER_LEN, Memory};

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Delivery {
    /// The guest has it.
    Done,
    /// It can never fit.
    Dropped,
    /// Not before the guest's avail index moves past this one.
    Starved { seen: u16 },
    /// The ring makes no sense; only the driver can mend it.
    Broken,
}

/// The ring makes no sense, after so many frames.
struct BrokenRing {
    frames: usize,
}

impl Net {
    /// Moves some frames from a tap queue to the guest. Returns how many, and whether there may be more.
    pub(crate) fn serve_input(&mut self, vrings: &[Vring], port: usize) -> (usize, bool) {
        if self.ports[port].dead {
            return (0, false);
        }
        if self.gate.is_standby() {
            return self.drop_input(port);
        }
        let Some(pair) = self.receiver(vrings, port) else {
            // No driver: a kick or the enabling of the queue brings us back.
            self.park(port);
            return (0, false);
        };
        let handle = &vrings[2 * pair];
        let mut vring = handle.get_mut();
        if !vring.is_enabled() || !vring.get_queue().ready() || handle.is_broken() {
            self.park(port);
            return (0, false);
        }
        let loaded = self.memory.memory();
        let memory: &Memory = &loaded;
        let queue = vring.get_queue_mut();
        let before = queue.next_used();
        let (frames, more) = match self.move_frames(queue, memory, port) {
            Ok(moved) => moved,
            Err(BrokenRing { frames }) => {
                self.counters.malformed();
                handle.set_broken();
                self.park(port);
                (frames, false)
            }
        };
        match ring::wants_signal(queue, memory, before) {
            Ok(true) => {
                if let Err(e) = vring.signal_used_queue() {
                    host_kit::warn_limited!("the guest cannot be interrupted: {e}");
                }
            }
            Ok(false) => {}
            Err(_) => self.counters.malformed(),
        }
        (frames, more)
    }

    fn move_frames(&mut self, queue: &mut Queue, memory: &Memory, port: usize) -> Result<(usize, bool), BrokenRing> {
        for frames in 0..CHUNK {
            if self.ports[port].frame_len == 0 && !self.read_frame(port) {
                return Ok((frames, false));
            }
            match self.deliver(queue, memory, port) {
                Delivery::Done => self.counters.received(self.ports[port].frame_len - HEADER_LEN),
                Delivery::Dropped => self.counters.receive_dropped(),
                Delivery::Starved { seen } => {
                    let refilled = ring::enable_kick(queue, memory, seen).unwrap_or(false);
                    if !refilled {
                        self.park(port);
                    }
                    return Ok((frames, refilled));
                }
                Delivery::Broken => return Err(BrokenRing { frames }),
            }
            self.ports[port].frame_len = 0;
        }
        Ok((CHUNK, true))
    }

    /// Reads the next frame of a tap queue into the port's buffer. False: there is none, and the tap is
    /// polled again.
    fn read_frame(&mut self, port: usize) -> bool {
        let result = self.tap.queues()[port].read(&mut self.ports[port].frame);
        match result {
            Ok(len) if len > HEADER_LEN => {
                self.ports[port].frame_len = len;
                true
            }
            Ok(_) => false,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.unpark(port);
                false
            }
            Err(e) => {
                // The interface was deleted, or is down for good.
                let reason = format!("tap {}: cannot be read: {e}", self.tap.name());
                tracing::error!("{reason}");
                self.park(port);
                self.ports[port].dead = true;
                self.report(&Report::Failed { reason });
                false
            }
        }
    }

    fn drop_input(&mut self, port: usize) -> (usize, bool) {
        for frames in 0..CHUNK {
            if !self.read_frame(port) {
                return (frames, false);
            }
            self.ports[port].frame_len = 0;
        }
        (CHUNK, true)
    }

    /// The queue pair that takes the frames of a tap queue. The kernel spreads frames over all tap queues;
    /// those of pairs that the driver does not use go to the first.
    fn receiver(&mut self, vrings: &[Vring], port: usize) -> Option<usize> {
        let loaded = self.memory.memory();
        let memory: &Memory = &loaded;
        // Without MQ the others are no receive queues.
        for pair in [port, 0].into_iter().filter(|pair| *pair < self.usable_pairs) {
            let vring = vrings[2 * pair].get_ref();
            if !vring.is_enabled() || !vring.get_queue().ready() {
                continue;
            }
            if pair == 0 {
                return Some(0);
            }
            if self.pairs_set.is_some_and(|set| pair >= usize::from(set)) {
                continue;
            }
            // After a takeover nobody repeats the driver's command, but a used queue has a position.
            let queue = vring.get_queue();
            let moved = || {
                let avail = queue.avail_idx(memory, std::sync::atomic::Ordering::Acquire);
                queue.next_avail() != 0 || avail.is_ok_and(|index| index.0 != 0)
            };
            if self.ports[pair].in_use || moved() {
                self.ports[pair].in_use = true;
                return Some(pair);
            }
        }
        None
    }

    /// Puts the port's frame into as many of the guest's buffers as it needs.
    fn deliver(&mut self, queue: &mut Queue, memory: &Memory, port: usize) -> Delivery {
        let (before, size) = (queue.next_avail(), queue.size());
        let needed = self.ports[port].frame_len - HEADER_LEN + self.header_len;
        match self.collect(queue, memory, needed) {
            Some(room) if room >= needed => {}
            None => {
                queue.set_next_avail(before);
                return Delivery::Broken;
            }
            Some(room) => {
                let taken = queue.next_avail().wrapping_sub(before);
                if !self.scratch.bad.is_empty() {
                    // The bad ones must go back, and what has been taken between them cannot stay.
                    self.scratch.used.iter_mut().for_each(|used| used.1 = 0);
                    self.scratch.used.append(&mut self.scratch.bad);
                    return self.finish(queue, memory, Delivery::Dropped);
                }
                queue.set_next_avail(before);
                let hopeless = taken == size || (!self.mergeable && room > 0);
                return if hopeless {
                    Delivery::Dropped
                } else {
                    Delivery::Starved { seen: before.wrapping_add(taken) }
                };
            }
        }
        let delivery = match self.fill(memory, port, needed) {
            Ok(()) => Delivery::Done,
            Err(ring::Malformed) => Delivery::Dropped,
        };
        self.scratch.bad.append(&mut self.scratch.used);
        std::mem::swap(&mut self.scratch.bad, &mut self.scratch.used);
        self.finish(queue, memory, delivery)
    }

    /// Takes chains until they hold `needed` bytes, or just one without mergeable buffers. Returns what they
    /// hold.
    fn collect(&mut self, queue: &mut Queue, memory: &Memory, needed: usize) -> Option<usize> {
        let scratch = &mut self.scratch;
        scratch.segments.clear();
        scratch.used.clear();
        scratch.bad.clear();
        let mut room = 0;
        while room < needed && (self.mergeable || scratch.used.is_empty()) {
            let Some(chain) = ring::next(queue, memory).ok()? else { break };
            let head = chain.head_index();
            match ring::gather(chain, memory, Direction::ToGuest, &mut scratch.segments) {
                Ok(len) => {
                    scratch.used.push((head, len.min(needed - room) as u32));
                    room += len;
                }
                Err(ring::Malformed) => {
                    self.counters.malformed();
                    scratch.bad.push((head, 0));
                }
            }
        }
        Some(room)
    }

    /// Copies header and frame into the scratch segments.
    fn fill(&mut self, memory: &Memory, port: usize, needed: usize) -> Result<(), ring::Malformed> {
        let port = &mut self.ports[port];
        let buffers = self.scratch.used.len() as u16;
        port.frame[LEGACY_HEADER_LEN..HEADER_LEN].copy_from_slice(&buffers.to_le_bytes());
        let segments = &self.scratch.segments;
        if self.header_len == HEADER_LEN {
            return ring::copy_in(memory, segments, 0, &port.frame[..needed]);
        }
        ring::copy_in(memory, segments, 0, &port.frame[..self.header_len])?;
        ring::copy_in(memory, segments, self.header_len, &port.frame[HEADER_LEN..port.frame_len])
    }

    fn finish(&mut self, queue: &mut Queue, memory: &Memory, delivery: Delivery) -> Delivery {
        let published =
            ring::publish(queue, memory, &self.scratch.used).and_then(|()| ring::disable_kick(queue, memory));
        if published.is_ok() { delivery } else { Delivery::Broken }
    }
}
