//! From a head descriptor to a checked block request. Pure: reads guest memory, touches nothing else.
//!
//! In: a descriptor table, a head, the disk's geometry. Out: a [`Request`], or what to answer instead. Never
//! panics, whatever the guest wrote.

use virtio_bindings::bindings::virtio_blk as blk;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::geometry::{Geometry, MAX_DATA, MAX_ZERO_RANGES, MAX_ZERO_SECTORS};
use crate::image::SECTOR;
use crate::image::range::Range;

/// Most descriptors that are followed, over the ring's table and an indirect one, unless the ring has more.
const MAX_DESCRIPTORS: u32 = 1024;
const HEADER: u64 = 16;
const DESCRIPTOR: u64 = 16;

/// Status byte: done.
pub const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
/// Status byte: failed.
pub const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
/// Status byte: not a thing this disk does.
pub const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u64,
}

/// The buffers of a descriptor chain.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the device may read, in order.
    pub readable: Vec<Span>,
    /// What the device may write, in order.
    pub writable: Vec<Span>,
    /// A readable buffer came after a writable one.
    disordered: bool,
}

/// A chain that cannot be followed to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChainError {
    /// An index outside of its table.
    #[error("descriptor index {0} is outside of the table")]
    Index(u32),
    /// A table outside of guest memory.
    #[error("descriptor table is outside of guest memory")]
    Table,
    /// A loop, or a chain longer than any driver may build.
    #[error("descriptor chain loops or is too long")]
    Length,
    /// An indirect table inside an indirect table, with a successor, or of a wrong size.
    #[error("malformed indirect descriptor")]
    Indirect,
}

/// What a request asks for. Ranges are inside the disk and multiples of the block size.
#[derive(Debug, Eq, PartialEq)]
pub enum Body {
    /// Disk to guest.
    Read(Range, Vec<Span>),
    /// Guest to disk.
    Write(Range, Vec<Span>),
    /// Make completed writes durable.
    Flush,
    /// The serial number.
    GetId(Vec<Span>),
    /// Make ranges read as zero; let the space go if the flag is set.
    Zero(Vec<Range>, bool),
}

/// A request that can be performed.
#[derive(Debug, Eq, PartialEq)]
pub struct Request {
    /// What to do.
    pub body: Body,
    /// Where the status byte goes.
    pub status: GuestAddress,
}

/// A request that is answered without being performed.
#[derive(Debug, Eq, PartialEq)]
pub struct Reject {
    /// Where the status byte goes and what it is; `None` when the guest left no room for it.
    pub status: Option<(GuestAddress, u8)>,
    /// For the log.
    pub why: &'static str,
}

/// Follows the chain that starts at `head` in the table of `size` entries at `table`.
///
/// # Errors
/// See [`ChainError`].
pub fn walk<M: GuestMemory>(mem: &M, table: GuestAddress, size: u16, head: u16) -> Result<Chain, ChainError> {
    let mut chain = Chain::default();
    let (mut table, mut entries, mut index) = (table, u32::from(size), u32::from(head));
    let mut indirect = false;
    for _ in 0..MAX_DESCRIPTORS.max(entries) {
        if index >= entries {
            return Err(ChainError::Index(index));
        }
        let at = table.checked_add(u64::from(index) * DESCRIPTOR).ok_or(ChainError::Table)?;
        let desc: Descriptor = mem.read_obj(at).map_err(|_| ChainError::Table)?;
        if desc.refers_to_indirect_table() {
            let len = u64::from(desc.len());
            if indirect || desc.has_next() || len == 0 || !len.is_multiple_of(DESCRIPTOR) {
                return Err(ChainError::Indirect);
            }
            (table, entries, index, indirect) = (desc.addr(), (len / DESCRIPTOR) as u32, 0, true);
            continue;
        }
        let span = Span { addr: desc.addr(), len: u64::from(desc.len()) };
        if desc.is_write_only() {
            chain.writable.push(span);
        } else {
            chain.disordered |= !chain.writable.is_empty();
            chain.readable.push(span);
        }
        if !desc.has_next() {
            return Ok(chain);
        }
        index = u32::from(desc.next());
    }
    Err(ChainError::Length)
}

/// Turns a chain into a request.
///
/// # Errors
/// A [`Reject`] when the request is malformed or not allowed.
pub fn parse<M: GuestMemory>(mem: &M, chain: Chain, disk: &Geometry) -> Result<Request, Reject> {
    let Some((status, into)) = split_status(&chain.writable) else {
        return Err(Reject { status: None, why: "no room for the status" });
    };
    body(mem, &chain, into, disk)
        .map(|body| Request { body, status })
        .map_err(|(code, why)| Reject { status: Some((status, code)), why })
}

type Refusal = (u8, &'static str);

fn body<M: GuestMemory>(mem: &M, chain: &Chain, into: Vec<Span>, disk: &Geometry) -> Result<Body, Refusal> {
    if chain.disordered {
        return Err((IOERR, "readable buffer after a writable one"));
    }
    let mut header = [0; HEADER as usize];
    gather(mem, &chain.readable, &mut header).map_err(|()| (IOERR, "no readable header"))?;
    let from = skip(&chain.readable, HEADER);
    let kind = le_u32(&header, 0);
    let sector = le_u64(&header, 8);
    match kind {
        blk::VIRTIO_BLK_T_IN => Ok(Body::Read(data_range(sector, total(&into), disk)?, into)),
        blk::VIRTIO_BLK_T_OUT if disk.read_only => Err((IOERR, "write to a read-only disk")),
        blk::VIRTIO_BLK_T_OUT => Ok(Body::Write(data_range(sector, total(&from), disk)?, from)),
        blk::VIRTIO_BLK_T_FLUSH => Ok(Body::Flush),
        blk::VIRTIO_BLK_T_GET_ID => Ok(Body::GetId(into)),
        blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES if disk.read_only => {
            Err((IOERR, "discard or write-zeroes on a read-only disk"))
        }
        blk::VIRTIO_BLK_T_DISCARD => Ok(Body::Zero(zero_ranges(mem, &from, 0, disk)?.0, true)),
        blk::VIRTIO_BLK_T_WRITE_ZEROES => {
            let (ranges, flags) = zero_ranges(mem, &from, blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, disk)?;
            Ok(Body::Zero(ranges, flags != 0))
        }
        _ => Err((UNSUPP, "unknown request type")),
    }
}

fn data_range(sector: u64, len: u64, disk: &Geometry) -> Result<Range, Refusal> {
    if disk.limited && len > MAX_DATA {
        return Err((IOERR, "more data than the disk said it takes"));
    }
    if len >= u64::from(u32::MAX) {
        return Err((IOERR, "more data than a used ring entry can count"));
    }
    checked_range(sector, len, disk)
}

fn checked_range(sector: u64, len: u64, disk: &Geometry) -> Result<Range, Refusal> {
    let block = u64::from(disk.block);
    let offset = sector.checked_mul(SECTOR).ok_or((IOERR, "sector out of range"))?;
    let end = offset.checked_add(len).ok_or((IOERR, "sector out of range"))?;
    if end > disk.size {
        return Err((IOERR, "beyond the end of the disk"));
    }
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err((IOERR, "not a multiple of the block size"));
    }
    Ok(Range::new(offset, len))
}

/// The ranges of a discard or write-zeroes request and the union of their flags, of which only `allowed` may
/// be set.
fn zero_ranges<M: GuestMemory>(
    mem: &M,
    from: &[Span],
    allowed: u32,
    disk: &Geometry,
) -> Result<(Vec<Range>, u32), Refusal> {
    const ENTRY: usize = 16;
    let len = total(from);
    if len == 0 || len > u64::from(MAX_ZERO_RANGES) * ENTRY as u64 || !len.is_multiple_of(ENTRY as u64) {
        return Err((IOERR, "malformed list of ranges"));
    }
    let mut bytes = vec![0; len as usize];
    gather(mem, from, &mut bytes).map_err(|()| (IOERR, "list of ranges outside of guest memory"))?;
    let (mut ranges, mut all_flags) = (Vec::new(), 0);
    for entry in bytes.chunks_exact(ENTRY) {
        let (sectors, flags) = (le_u32(entry, 8), le_u32(entry, 12));
        if flags & !allowed != 0 {
            return Err((UNSUPP, "unknown flag of a range"));
        }
        if sectors > MAX_ZERO_SECTORS {
            return Err((IOERR, "range longer than the disk said it takes"));
        }
        all_flags |= flags;
        ranges.push(checked_range(le_u64(entry, 0), u64::from(sectors) * SECTOR, disk)?);
    }
    ranges.retain(|range| range.len > 0);
    Ok((ranges, all_flags))
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Bytes in all spans.
#[must_use]
pub fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.len).sum()
}

/// The first `count` bytes.
#[must_use]
pub fn first(spans: &[Span], mut count: u64) -> Vec<Span> {
    let mut part = Vec::new();
    for span in spans {
        if count == 0 {
            break;
        }
        let len = count.min(span.len);
        count -= len;
        part.push(Span { addr: span.addr, len });
    }
    part
}

/// What follows the first `count` bytes.
#[must_use]
pub fn skip(spans: &[Span], mut count: u64) -> Vec<Span> {
    let mut rest = Vec::with_capacity(spans.len());
    for span in spans {
        let cut = count.min(span.len);
        count -= cut;
        if span.len > cut {
            // An address that overflows fails when it is used.
            rest.push(Span { addr: GuestAddress(span.addr.0.wrapping_add(cut)), len: span.len - cut });
        }
    }
    rest
}

/// The last writable byte, which takes the status, and the spans before it.
fn split_status(writable: &[Span]) -> Option<(GuestAddress, Vec<Span>)> {
    let mut spans: Vec<Span> = writable.iter().copied().filter(|span| span.len > 0).collect();
    let last = spans.last_mut()?;
    last.len -= 1;
    let status = last.addr.checked_add(last.len)?;
    if last.len == 0 {
        spans.pop();
    }
    Some((status, spans))
}

/// Copies from guest memory until `buf` is full; fails when the spans are too short or outside of guest
/// memory.
#[allow(clippy::result_unit_err, reason = "there is one way to fail, and one answer to the guest")]
pub fn gather<M: GuestMemory>(mem: &M, spans: &[Span], buf: &mut [u8]) -> Result<(), ()> {
    let mut left = buf;
    for span in spans {
        if left.is_empty() {
            break;
        }
        let (part, rest) = left.split_at_mut(span.len.min(left.len() as u64) as usize);
        mem.read_slice(part, span.addr).map_err(|_| ())?;
        left = rest;
    }
    if left.is_empty() { Ok(()) } else { Err(()) }
}

/// Copies `data` to guest memory; fails when the spans are too short or outside of guest memory.
#[allow(clippy::result_unit_err, reason = "there is one way to fail, and one answer to the guest")]
pub fn scatter<M: GuestMemory>(mem: &M, spans: &[Span], data: &[u8]) -> Result<(), ()> {
    let mut left = data;
    for span in spans {
        if left.is_empty() {
            break;
        }
        let (part, rest) = left.split_at(span.len.min(left.len() as u64) as usize);
        mem.write_slice(part, span.addr).map_err(|_| ())?;
        left = rest;
    }
    if left.is_empty() { Ok(()) } else { Err(()) }
}
