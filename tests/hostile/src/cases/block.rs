//! Disk requests that make no sense.

use crate::Outcome;
use crate::bench::{Bench, Live, Target};
use crate::case::{Named, Whole};
use crate::machine::Width;
use crate::ring::{NEXT, Ring, WRITE};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const NOWHERE: u64 = 0xdead_0000_0000;
/// Features: limits of one request.
const LIMITS: u64 = 1 << 1 | 1 << 2;
/// Waits for the disk, in milliseconds.
const LIMIT: u64 = 20_000;

pub(super) const CASES: Named<Whole> = &[
    ("sectors beyond the end", |b, t| {
        for sector in [capacity(b, t)?, capacity(b, t)? - 1, 1 << 40, u64::MAX, u64::MAX / 512, 1 << 55] {
            fails(b, t, OUT, sector, &[(0, 1024, 0)])?;
            fails(b, t, IN, sector, &[(0, 1024, WRITE)])?;
        }
        Ok(())
    }),
    ("lengths that are no sectors", |b, t| {
        for len in [1, 511, 513, 0x1001] {
            fails(b, t, OUT, 0, &[(0, len, 0)])?;
            fails(b, t, IN, 0, &[(0, len, WRITE)])?;
        }
        Ok(())
    }),
    ("reads and writes of nothing", |b, t| {
        answered(b, t, OUT, 0, &[])?;
        answered(b, t, IN, 0, &[])
    }),
    ("unknown types", |b, t| {
        for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 100, 0x8000_0000, 0xffff_ffff] {
            fails(b, t, kind, 0, &[(0, 512, 0)])?;
            fails(b, t, kind, 0, &[(0, 512, WRITE)])?;
        }
        Ok(())
    }),
    ("types that read with data to be read", |b, t| {
        answered(b, t, IN, 0, &[(0, 512, 0)])?;
        answered(b, t, GET_ID, 0, &[(0, 20, 0)])?;
        answered(b, t, OUT, 0, &[(0, 512, WRITE)])?;
        answered(b, t, FLUSH, u64::MAX, &[(0, 512, 0), (0, 512, WRITE)])
    }),
    ("serial numbers of every length", |b, t| {
        [0, 1, 19, 20, 21, 4096, 0x1_0000].into_iter().try_for_each(|len| answered(b, t, GET_ID, 0, &[(0, len, WRITE)]))
    }),
    ("no room for the status", |b, t| {
        raw(b, t, |b, r| r.offer_chain(b.machine, 0, &[(r.page, 16, 0), (r.page, 512, 0)]))
    }),
    ("status nowhere", |b, t| {
        raw(b, t, |b, r| r.offer_chain(b.machine, 0, &[(r.page, 16, 0), (NOWHERE, 1, WRITE)]))?;
        raw(b, t, |b, r| r.offer_chain(b.machine, 0, &[(r.page, 16, 0), (u64::MAX, 1, WRITE)]))
    }),
    ("status over the rings", |b, t| {
        raw(b, t, |b, r| {
            for (head, at) in [(0, r.table), (4, r.avail + 2), (8, r.used + 2), (12, r.page)] {
                r.offer_chain(b.machine, head, &[(r.page, 16, 0), (at, 1, WRITE)]);
            }
        })
    }),
    ("header in pieces of one byte", |b, t| {
        raw(b, t, |b, r| {
            let mut buffers = [(r.page, 1, 0); 17];
            (0..).zip(&mut buffers[..16]).for_each(|(at, buffer)| buffer.0 += at);
            buffers[16] = (r.page + 64, 1, WRITE);
            r.offer_chain(b.machine, 0, &buffers);
        })
    }),
    ("header that is too short", |b, t| {
        raw(b, t, |b, r| {
            for (head, len) in [(0, 0), (4, 1), (8, 8), (12, 15)] {
                r.offer_chain(b.machine, head, &[(r.page, len, 0), (r.page + 64, 1, WRITE)]);
            }
        })
    }),
    ("header nowhere", |b, t| raw(b, t, |b, r| r.offer_chain(b.machine, 0, &[(NOWHERE, 16, 0), (r.page, 1, WRITE)]))),
    ("no header", |b, t| raw(b, t, |b, r| r.offer_one(b.machine, 0, (r.page, 513, WRITE)))),
    ("data nowhere", |b, t| {
        fails_at(b, t, OUT, NOWHERE, 512, 0)?;
        fails_at(b, t, IN, NOWHERE, 512, WRITE)
    }),
    ("data in the devices", |b, t| {
        let bar = b.device(t.kind)?.bar;
        fails_at(b, t, OUT, bar, 512, 0)?;
        fails_at(b, t, IN, bar, 512, WRITE)
    }),
    ("disk read into its own rings", |b, t| {
        raw(b, t, |b, r| {
            b.machine.write(r.page, Width::Quad, IN.into());
            b.machine.write(r.page + 8, Width::Quad, 0);
            r.offer_chain(b.machine, 0, &[(r.page, 16, 0), (r.table, 0x2000, WRITE), (r.page + 64, 1, WRITE)]);
        })
    }),
    ("more than the disk takes, by a driver that knows", |b, t| {
        let live = b.up_with(t.kind, u64::MAX)?;
        let size = capacity(b, t)?.min(1 << 14) as u32 * 512;
        large(b, &live, size, |status| status != 0xff)
    }),
    ("more than the disk takes, by a driver that does not know", |b, t| {
        for features in [0, !LIMITS, !(1 << 1), !(1 << 2)] {
            let live = b.up_with(t.kind, features)?;
            let (_, room) = b.data();
            large(b, &live, room / 512 * 512, |status| status == 0)?;
        }
        Ok(())
    }),
    ("the whole disk and 4 GiB, into one place", |b, t| {
        let live = b.up_with(t.kind, 0)?;
        large(b, &live, 0xffff_fe00, |status| status != 0xff)
    }),
    ("discards of odd lists", |b, t| {
        for len in [0, 1, 15, 17, 33 * 16, 4096] {
            fails(b, t, DISCARD, 0, &[(0, len, 0)])?;
            fails(b, t, ZEROES, 0, &[(0, len, 0)])?;
        }
        Ok(())
    }),
    ("discards of odd ranges", |b, t| {
        for (sector, sectors, flags) in
            [(u64::MAX, 8, 0), (1 << 55, 8, 0), (0, u32::MAX, 0), (1 << 40, 1, 0), (0, 8, 2), (0, 8, 0xffff_fffe)]
        {
            for kind in [DISCARD, ZEROES] {
                put_range(b, sector, sectors, flags);
                fails(b, t, kind, 0, &[(0, 16, 0)])?;
            }
        }
        put_range(b, 0, 0, 0);
        answered(b, t, DISCARD, 0, &[(0, 16, 0)])
    }),
    ("the whole ring of discards that overlap", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        let data = b.data().0;
        (0..32).for_each(|at| put_range_at(b, data + 16 * at, 64, 128, 0));
        b.machine.write(ring.page, Width::Quad, ZEROES.into());
        b.machine.write(ring.page + 8, Width::Quad, 0);
        for slot in 0..ring.size / 3 {
            ring.offer_chain(b.machine, 3 * slot, &[(ring.page, 16, 0), (data, 512, 0), (ring.page + 64, 1, WRITE)]);
        }
        b.settle(&live, &ring);
        Ok(())
    }),
    ("the whole ring of writes to the same sectors, then a reset", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        let data = b.data().0;
        b.machine.write(ring.page, Width::Quad, OUT.into());
        b.machine.write(ring.page + 8, Width::Quad, 64);
        for slot in 0..ring.size / 3 {
            let at = data + u64::from(slot) * 512;
            ring.offer_chain(b.machine, 3 * slot, &[(ring.page, 16, 0), (at, 0x8000, 0), (ring.page + 64, 1, WRITE)]);
        }
        b.kick(&ring);
        live.device.reset(b.machine)
    }),
    ("reserved field of the header", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        b.machine.write(ring.page + 4, Width::Double, 0xffff_ffff);
        send(b, &live, &mut ring, (IN, 0), &[(0, 512, WRITE)]).map(drop)
    }),
];

/// Sectors of the disk.
fn capacity(b: &mut Bench<'_>, t: Target) -> Result<u64, &'static str> {
    let device = b.device(t.kind)?;
    Ok(b.machine.read(device.config, Width::Quad))
}

/// A request with data at these offsets of the buffers, on a device that is set up. Returns its status.
fn send(
    b: &mut Bench<'_>,
    live: &Live,
    ring: &mut Ring,
    (kind, sector): (u32, u64),
    data: &[(u64, u32, u16)],
) -> Result<u64, &'static str> {
    let base = b.data().0;
    let status = ring.page + 16;
    b.machine.write(ring.page, Width::Double, kind.into());
    b.machine.write(ring.page + 8, Width::Quad, sector);
    b.machine.write(status, Width::Byte, 0xff);
    ring.entry(b.machine, 0, (ring.page, 16, NEXT), 1);
    for (index, (offset, len, flags)) in (1..).zip(data) {
        ring.entry(b.machine, index, (base.wrapping_add(*offset), *len, flags | NEXT), index + 1);
    }
    ring.entry(b.machine, data.len() as u16 + 1, (status, 1, WRITE), 0);
    ring.offer(b.machine, 0);
    b.kick(ring);
    let mut done = *ring;
    if !b.wait(LIMIT, |machine| done.take(machine).is_some()) {
        return Err(if live.device.needs_reset(b.machine) { "the queue is broken" } else { "there is no answer" });
    }
    ring.seen = done.seen;
    Ok(b.machine.read(status, Width::Byte))
}

/// The request is answered, whatever the answer is.
fn answered(b: &mut Bench<'_>, t: Target, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[0];
    match send(b, &live, &mut ring, (kind, sector), data)? {
        0..=2 => Ok(()),
        _ => Err("the status is none"),
    }
}

/// The request fails.
fn fails(b: &mut Bench<'_>, t: Target, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[0];
    match send(b, &live, &mut ring, (kind, sector), data)? {
        1 | 2 => Ok(()),
        0 => Err("it is done"),
        _ => Err("the status is none"),
    }
}

/// The request fails that has data at `address`.
fn fails_at(b: &mut Bench<'_>, t: Target, kind: u32, address: u64, len: u32, flags: u16) -> Outcome {
    let base = b.data().0;
    fails(b, t, kind, 0, &[(address.wrapping_sub(base), len, flags)])
}

/// Chains that have nothing in common with a request.
fn raw(b: &mut Bench<'_>, t: Target, fill: fn(&mut Bench<'_>, &mut Ring)) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[0];
    fill(b, &mut ring);
    b.settle(&live, &ring);
    Ok(())
}

/// A read of `len` bytes in one request, all to the same place where that is longer than there is room for.
fn large(b: &mut Bench<'_>, live: &Live, len: u32, wanted: fn(u64) -> bool) -> Outcome {
    let mut ring = live.rings[0];
    let (_, room) = b.data();
    let each = room.min(len);
    let data = [(0, each, WRITE); 62];
    let count = (len / each).min(data.len() as u32) as usize;
    let status = send(b, live, &mut ring, (IN, 0), &data[..count])?;
    if wanted(status) { Ok(()) } else { Err("the status is another one") }
}

fn put_range(b: &mut Bench<'_>, sector: u64, sectors: u32, flags: u32) {
    let at = b.data().0;
    put_range_at(b, at, sector, sectors, flags);
}

/// A range of a discard.
fn put_range_at(b: &mut Bench<'_>, at: u64, sector: u64, sectors: u32, flags: u32) {
    b.machine.write(at, Width::Quad, sector);
    b.machine.write(at + 8, Width::Double, sectors.into());
    b.machine.write(at + 12, Width::Double, flags.into());
}
