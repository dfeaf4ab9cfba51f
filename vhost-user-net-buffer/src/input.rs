//! Outside to guest: frames from the tap into the guest's receive buffers, straight through.
//!
//! While sealed, and while the guest has no buffers, frames stay in the tap and it is not polled. On a
//! standby they are read and dropped, so that a takeover does not begin with old news.

use device_api::counters::NetCounters;
use device_kit::{Memory, Vring};
use virtio_queue::{Queue, QueueT};

use crate::driver::Driver;
use crate::header;
use crate::output::CHUNK;
use crate::ports::Ports;
use crate::ring::{self, Direction, HEADER_LEN, LEGACY_HEADER_LEN, Segment};

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Delivery {
    /// The guest has it.
    Done,
    /// It can never fit, or the guest cannot take a frame of its kind.
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

/// Where frames go.
struct Context<'a> {
    memory: &'a Memory,
    driver: &'a Driver,
    counters: &'a NetCounters,
}

/// What frames are put into; reused from frame to frame.
#[derive(Debug, Default)]
pub struct Input {
    segments: Vec<Segment>,
    used: Vec<(u16, u32)>,
    bad: Vec<(u16, u32)>,
}

impl Input {
    /// Moves some frames from a port to the guest. Returns how many, and whether there may be more.
    pub fn serve(
        &mut self,
        vrings: &[Vring],
        port: usize,
        ports: &mut Ports,
        driver: &mut Driver,
        counters: &NetCounters,
    ) -> (usize, bool) {
        if ports.is_dead(port) {
            return (0, false);
        }
        let Some(pair) = driver.receiver(vrings, port) else {
            // No driver: a kick or the enabling of the queue brings us back.
            ports.park(port);
            return (0, false);
        };
        let handle = &vrings[2 * pair];
        let Some(mut vring) = handle.to_serve() else {
            ports.park(port);
            return (0, false);
        };
        let loaded = driver.memory();
        let memory: &Memory = &loaded;
        let queue = vring.get_queue_mut();
        let before = queue.next_used();
        let cx = Context { memory, driver, counters };
        let (frames, more) = match self.move_frames(queue, &cx, port, ports) {
            Ok(moved) => moved,
            Err(BrokenRing { frames }) => {
                counters.malformed();
                handle.set_broken();
                ports.park(port);
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
            Err(_) => counters.malformed(),
        }
        (frames, more)
    }

    fn move_frames(
        &mut self,
        queue: &mut Queue,
        cx: &Context<'_>,
        port: usize,
        ports: &mut Ports,
    ) -> Result<(usize, bool), BrokenRing> {
        for frames in 0..CHUNK {
            if !ports.fetch(port) {
                return Ok((frames, false));
            }
            let frame = ports.frame(port);
            match self.deliver(queue, cx, frame) {
                Delivery::Done => cx.counters.received(frame.len() - HEADER_LEN),
                Delivery::Dropped => cx.counters.receive_dropped(),
                Delivery::Starved { seen } => {
                    let refilled = ring::enable_kick(queue, cx.memory, seen).unwrap_or(false);
                    if !refilled {
                        ports.park(port);
                    }
                    return Ok((frames, refilled));
                }
                Delivery::Broken => return Err(BrokenRing { frames }),
            }
            ports.drop_frame(port);
        }
        Ok((CHUNK, true))
    }

    /// Puts a frame, which has its header, into as many of the guest's buffers as it needs.
    fn deliver(&mut self, queue: &mut Queue, cx: &Context<'_>, frame: &mut [u8]) -> Delivery {
        let Some((told, _)) = frame.split_first_chunk_mut() else { return Delivery::Dropped };
        let Some(header) = header::for_guest(told, cx.driver.input_offloads()) else { return Delivery::Dropped };
        *told = header;
        let (before, size) = (queue.next_avail(), queue.size());
        let needed = frame.len() - HEADER_LEN + cx.driver.header_len();
        match self.collect(queue, cx, needed) {
            Some(room) if room >= needed => {}
            None => {
                queue.set_next_avail(before);
                return Delivery::Broken;
            }
            Some(room) => {
                let taken = queue.next_avail().wrapping_sub(before);
                if !self.bad.is_empty() {
                    // The bad ones must go back, and what has been taken between them cannot stay.
                    self.used.iter_mut().for_each(|used| used.1 = 0);
                    self.used.append(&mut self.bad);
                    return self.finish(queue, cx.memory, Delivery::Dropped);
                }
                queue.set_next_avail(before);
                let hopeless = taken == size || (!cx.driver.merges() && room > 0);
                return if hopeless {
                    Delivery::Dropped
                } else {
                    Delivery::Starved { seen: before.wrapping_add(taken) }
                };
            }
        }
        let delivery = match self.fill(cx, frame, needed) {
            Ok(()) => Delivery::Done,
            Err(ring::Malformed) => Delivery::Dropped,
        };
        self.bad.append(&mut self.used);
        std::mem::swap(&mut self.bad, &mut self.used);
        self.finish(queue, cx.memory, delivery)
    }

    /// Takes chains until they hold `needed` bytes, or just one without mergeable buffers. Returns what they
    /// hold.
    fn collect(&mut self, queue: &mut Queue, cx: &Context<'_>, needed: usize) -> Option<usize> {
        self.segments.clear();
        self.used.clear();
        self.bad.clear();
        let mut room = 0;
        // A guest that adds bad ones as fast as they are taken would keep this thread here for ever.
        let size = usize::from(queue.size());
        while room < needed && (cx.driver.merges() || self.used.is_empty()) && self.used.len() + self.bad.len() < size {
            let Some(chain) = ring::next(queue, cx.memory).ok()? else { break };
            let head = chain.head_index();
            match ring::gather(chain, cx.memory, Direction::ToGuest, &mut self.segments) {
                Ok(len) => {
                    self.used.push((head, len.min(needed - room) as u32));
                    room += len;
                }
                Err(ring::Malformed) => {
                    cx.counters.malformed();
                    self.bad.push((head, 0));
                }
            }
        }
        Some(room)
    }

    /// Copies header and frame into the segments.
    fn fill(&mut self, cx: &Context<'_>, frame: &mut [u8], needed: usize) -> Result<(), ring::Malformed> {
        let (buffers, header_len) = (self.used.len() as u16, cx.driver.header_len());
        frame[LEGACY_HEADER_LEN..HEADER_LEN].copy_from_slice(&buffers.to_le_bytes());
        if header_len == HEADER_LEN {
            return ring::copy_in(cx.memory, &self.segments, 0, &frame[..needed]);
        }
        ring::copy_in(cx.memory, &self.segments, 0, &frame[..header_len])?;
        ring::copy_in(cx.memory, &self.segments, header_len, &frame[HEADER_LEN..])
    }

    fn finish(&mut self, queue: &mut Queue, memory: &Memory, delivery: Delivery) -> Delivery {
        let published = ring::publish(queue, memory, &self.used).and_then(|()| ring::disable_kick(queue, memory));
        if published.is_ok() { delivery } else { Delivery::Broken }
    }
}
