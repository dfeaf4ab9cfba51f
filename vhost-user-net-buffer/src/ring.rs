//! Virtqueue work that virtio-queue leaves open: chains checked whole, used entries published together, and
//! notification suppression both ways.
//!
//! Several used entries become visible with one store of the index, since a driver that sees the first buffer
//! of a merged frame expects the others to be there. The driver's `NO_INTERRUPT` flag is honoured.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest memory with the dirty log of vhost-user.
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;

/// Length of the virtio-net header on the tap, and with every modern driver.
pub const HEADER_LEN: usize = 12;

/// Length of the header of a legacy driver without mergeable buffers: it lacks the number of buffers.
pub const LEGACY_HEADER_LEN: usize = 10;

/// The largest frame with its header: 64 KiB of IP packet, Ethernet header, two VLAN tags, header, and some
/// room.
pub const FRAME_MAX: usize = 65536 + 64;

/// Shortest frame without header: an Ethernet header.
pub const FRAME_MIN: usize = 14;

/// Buffers in one chain; more is nothing that a driver does.
const SEGMENTS_MAX: usize = 1024;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where.
    pub address: GuestAddress,
    /// How many bytes.
    pub len: u32,
}

/// Which way the data of a chain flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// The device reads.
    FromGuest,
    /// The device writes.
    ToGuest,
}

/// The guest's chain makes no sense; it is returned unused.
#[derive(Debug, Eq, PartialEq)]
pub struct Malformed;

/// The next chain that the driver has made available, if there is one.
///
/// # Errors
/// When the driver's side of the queue makes no sense: an index that has jumped, or a head outside of the
/// table. The queue is left where it is.
pub fn next<'m>(queue: &mut Queue, memory: &'m Memory) -> Result<Option<DescriptorChain<&'m Memory>>, QueueError> {
    let size = queue.size();
    let mut chains = queue.iter(memory)?;
    match chains.next() {
        Some(chain) if chain.head_index() >= size => {
            chains.go_to_previous_position();
            Err(QueueError::InvalidDescriptorIndex)
        }
        chain => Ok(chain),
    }
}

/// Collects the buffers of `chain` behind those already in `segments`, and says how many bytes they hold.
///
/// # Errors
/// When the chain is empty, loops, points outside guest memory, has too many buffers or one of the wrong
/// direction; `segments` is then as before.
pub fn gather(
    chain: DescriptorChain<&Memory>,
    memory: &Memory,
    direction: Direction,
    segments: &mut Vec<Segment>,
) -> Result<usize, Malformed> {
    let before = segments.len();
    let result = gather_all(chain, memory, direction, segments, before + SEGMENTS_MAX);
    if result.is_err() {
        segments.truncate(before);
    }
    result
}

fn gather_all(
    chain: DescriptorChain<&Memory>,
    memory: &Memory,
    direction: Direction,
    segments: &mut Vec<Segment>,
    most: usize,
) -> Result<usize, Malformed> {
    let mut total = 0;
    // A chain that breaks off (loop, bad index, unreadable table) simply ends; its last descriptor tells.
    let mut complete = false;
    for descriptor in chain {
        complete = !descriptor.has_next();
        let (address, len) = (descriptor.addr(), descriptor.len());
        if descriptor.is_write_only() != (direction == Direction::ToGuest) || segments.len() == most {
            return Err(Malformed);
        }
        if len == 0 {
            continue;
        }
        if !GuestMemoryBackend::check_range(memory, address, len as usize) {
            return Err(Malformed);
        }
        segments.push(Segment { address, len });
        total += len as usize;
    }
    if complete && total > 0 { Ok(total) } else { Err(Malformed) }
}

/// Copies from guest memory into `to` until it is full or the segments end; `skip` bytes are left out in
/// front.
///
/// # Errors
/// When a segment is not guest memory (any more).
pub fn copy_out(memory: &Memory, segments: &[Segment], skip: usize, to: &mut [u8]) -> Result<(), Malformed> {
    let (mut skip, mut done) = (skip, 0);
    for segment in segments {
        let len = segment.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = (len - skip).min(to.len() - done);
        let from = segment.address.checked_add(skip as u64).ok_or(Malformed)?;
        memory.read_slice(&mut to[done..done + take], from).map_err(|_| Malformed)?;
        (skip, done) = (0, done + take);
        if done == to.len() {
            break;
        }
    }
    Ok(())
}

/// Copies `from` into guest memory, `skip` bytes into the segments.
///
/// # Errors
/// When a segment is not guest memory (any more), or they are too short.
pub fn copy_in(memory: &Memory, segments: &[Segment], skip: usize, from: &[u8]) -> Result<(), Malformed> {
    let (mut skip, mut done) = (skip, 0);
    for segment in segments {
        let len = segment.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = (len - skip).min(from.len() - done);
        let to = segment.address.checked_add(skip as u64).ok_or(Malformed)?;
        memory.write_slice(&from[done..done + take], to).map_err(|_| Malformed)?;
        (skip, done) = (0, done + take);
        if done == from.len() {
            return Ok(());
        }
    }
    Err(Malformed)
}

fn offset(base: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    base.checked_add(offset).map(GuestAddress).ok_or(QueueError::AddressOverflow)
}

/// Puts (head, written bytes) pairs into the used ring; they become visible at once.
///
/// # Errors
/// When the ring is not in guest memory.
pub fn publish(queue: &mut Queue, memory: &Memory, used: &[(u16, u32)]) -> Result<(), QueueError> {
    if used.is_empty() {
        return Ok(());
    }
    let mut next = Wrapping(queue.next_used());
    for (head, len) in used {
        let slot = u64::from(next.0 % queue.size());
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        memory.write_slice(&element, offset(queue.used_ring(), 4 + slot * 8)?).map_err(QueueError::GuestMemory)?;
        next += 1;
    }
    memory.store(next.0.to_le(), offset(queue.used_ring(), 2)?, Ordering::Release).map_err(QueueError::GuestMemory)?;
    queue.set_next_used(next.0);
    Ok(())
}

/// Whether the driver wants an interrupt for the entries published since the used index was `before`.
///
/// # Errors
/// When the ring is not in guest memory.
pub fn wants_signal(queue: &Queue, memory: &Memory, before: u16) -> Result<bool, QueueError> {
    let now = Wrapping(queue.next_used());
    if now.0 == before {
        return Ok(false);
    }
    // The index must be visible before the driver's wish is read, or both sides may miss each other.
    fence(Ordering::SeqCst);
    let load = |at: u64| -> Result<u16, QueueError> {
        let value: u16 =
            memory.load(offset(queue.avail_ring(), at)?, Ordering::Relaxed).map_err(QueueError::GuestMemory)?;
        Ok(u16::from_le(value))
    };
    if queue.event_idx_enabled() {
        let event = Wrapping(load(4 + 2 * u64::from(queue.size()))?);
        return Ok(now - event - Wrapping(1) < now - Wrapping(before));
    }
    Ok(load(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
}

/// Asks the driver for a kick as soon as its index moves past `seen`. True: it already has.
///
/// # Errors
/// When the ring is not in guest memory.
pub fn enable_kick(queue: &Queue, memory: &Memory, seen: u16) -> Result<bool, QueueError> {
    let (value, at) = if queue.event_idx_enabled() { (seen, 4 + 8 * u64::from(queue.size())) } else { (0, 0) };
    memory.store(value.to_le(), offset(queue.used_ring(), at)?, Ordering::Relaxed).map_err(QueueError::GuestMemory)?;
    // The wish must be visible before the index is read, or both sides may miss each other.
    fence(Ordering::SeqCst);
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != seen)
}

/// Tells the driver that kicks are not needed. With event index this is so after every kick.
///
/// # Errors
/// When the ring is not in guest memory.
pub fn disable_kick(queue: &Queue, memory: &Memory) -> Result<(), QueueError> {
    if queue.event_idx_enabled() {
        return Ok(());
    }
    let flags = VRING_USED_F_NO_NOTIFY as u16;
    memory.store(flags.to_le(), GuestAddress(queue.used_ring()), Ordering::Relaxed).map_err(QueueError::GuestMemory)
}
