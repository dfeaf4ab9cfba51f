//! Frames, headers of frames, receive buffers and commands that no driver makes.

use crate::Outcome;
use crate::arp::{ARP, HEADER, provoke};
use crate::bench::{Bench, Live, Target};
use crate::case::{Named, Whole};
use crate::machine::Width;
use crate::ring::{Ring, WRITE};

/// Features: checksums, segments of TCP, many queues, buffers that can be merged.
const MERGEABLE: u64 = 1 << 15;
const OFFLOADS: u64 = 0b111_1111_1000_0011;
const NOWHERE: u64 = 0xdead_0000_0000;

/// A header: flags, type, header length, segment size, start and offset of the checksum.
type Header = (u8, u8, u16, u16, u16, u16);

/// Headers that are wrong before a frame of ARP, or before any.
const HEADERS: &[Header] = &[
    (1, 0, 0, 0, 0, 0),
    (1, 0, 0, 0, 59, 0),
    (1, 0, 0, 0, 0xffff, 0xffff),
    (1, 0, 0, 0, 0xffff, 0),
    (1, 0, 0, 0, 14, 0xffff),
    (0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff),
    (0, 1, 54, 1448, 34, 16),
    (1, 1, 54, 1448, 34, 16),
    (1, 1, 54, 0, 34, 16),
    (1, 1, 54, 1, 34, 16),
    (1, 1, 0xffff, 1448, 34, 16),
    (1, 1, 54, 0xffff, 34, 16),
    (1, 3, 42, 1480, 34, 6),
    (1, 4, 74, 1440, 54, 16),
    (1, 5, 42, 1480, 34, 6),
    (1, 0x81, 54, 1448, 34, 16),
    (1, 0x80, 0, 0, 34, 16),
    (1, 2, 0, 8, 34, 16),
    (2, 0, 0, 0, 0, 0),
    (4, 0, 0, 0xffff, 0xffff, 0xffff),
];

pub(super) const CASES: Named<Whole> = &[
    ("headers with all features", |b, t| headers(b, t, u64::MAX)),
    ("headers with no feature", |b, t| headers(b, t, 0)),
    ("headers without offloads", |b, t| headers(b, t, !OFFLOADS)),
    ("headers with checksums only", |b, t| headers(b, t, !OFFLOADS | 1)),
    ("number of buffers in a header that is sent", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[1];
        for buffers in [1, 2, 0xffff] {
            put_header(b, ring.page, (0, 0, 0, 0, 0, 0), buffers);
            ring.offer_one(b.machine, 0, (ring.page, HEADER as u32 + ARP, 0));
        }
        taken(b, &live, &ring)
    }),
    ("frames of every short length", |b, t| lengths(b, t, 0..80)),
    ("frames longer than any", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[1];
        let data = b.data().0;
        for (head, len) in (0..).zip([9014, 0xffff, 0x1_0000, 0x1_0040, 0x1_0041, 0x2_0000, 0x10_0000]) {
            ring.offer_one(b.machine, head, (data, len, 0));
        }
        taken(b, &live, &ring)
    }),
    ("frames in pieces of one byte", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[1];
        let pieces: [_; 60] = core::array::from_fn(|i| (ring.page + i as u64, 1, 0));
        ring.offer_chain(b.machine, 0, &pieces);
        taken(b, &live, &ring)
    }),
    ("frames whose header is cut anywhere", |b, t| {
        for cut in 0..13 {
            let live = b.up(t.kind)?;
            let mut ring = live.rings[1];
            let rest = (ring.page + u64::from(cut), 72 - cut, 0);
            ring.offer_chain(b.machine, 0, &[(ring.page, cut, 0), rest]);
            taken(b, &live, &ring)?;
        }
        Ok(())
    }),
    ("frames that begin nowhere, or end there", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[1];
        ring.offer_chain(b.machine, 0, &[(NOWHERE, 12, 0), (ring.page, 60, 0)]);
        ring.offer_chain(b.machine, 4, &[(ring.page, 12, 0), (NOWHERE, 60, 0)]);
        taken(b, &live, &ring)
    }),
    ("frames to be written, and buffers to be read", |b, t| {
        let live = b.up(t.kind)?;
        let [mut receive, mut transmit, _] = live.rings;
        (0..8).for_each(|head| transmit.offer_one(b.machine, head, (transmit.page, 72, WRITE)));
        (0..8).for_each(|head| receive.offer_one(b.machine, head, (receive.page, 2048, 0)));
        taken(b, &live, &transmit)?;
        b.settle(&live, &receive);
        Ok(())
    }),
    ("a thousand frames at once, none of them an address's own", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[1];
        for round in 0..1000_u64 {
            b.machine.write(ring.page + HEADER + 6, Width::Quad, round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            ring.offer_one(b.machine, round as u16 % ring.size, (ring.page, HEADER as u32 + ARP, 0));
            if round as u16 % ring.size == ring.size - 1 {
                taken(b, &live, &ring)?;
            }
        }
        Ok(())
    }),
    ("receive buffers of every short length, merged", |b, t| short_buffers(b, t, u64::MAX)),
    ("receive buffers of every short length, not merged", |b, t| short_buffers(b, t, !MERGEABLE)),
    ("receive buffers of no bytes", |b, t| buffers(b, t, |r, head| (r.page, 0, head % 2 * WRITE))),
    ("receive buffers that are all the same", |b, t| buffers(b, t, |r, _| (r.page, 4096, WRITE))),
    ("receive buffers nowhere", |b, t| buffers(b, t, |_, head| (NOWHERE + u64::from(head), 2048, WRITE))),
    ("receive buffers over the rings", |b, t| buffers(b, t, |r, _| (r.table, 0x2400, WRITE))),
    ("receive buffers bad and good in turn", |b, t| {
        buffers(b, t, |r, head| if head % 2 == 0 { (NOWHERE, 64, WRITE) } else { (r.page, 64, WRITE) })
    }),
    ("frames come in while there is no buffer", |b, t| {
        let live = b.up(t.kind)?;
        (0..100).for_each(|_| provoke(b.machine, &live.device, live.rings[1]));
        Ok(())
    }),
    ("frames come in without the receive queue", |b, t| {
        let device = b.device(t.kind)?;
        device.negotiate(b.machine, u64::MAX)?;
        let mut ring = b.ring(&device, 1);
        device.select(b.machine, 1);
        device.place(b.machine, ring.size, ring.places());
        device.enable(b.machine);
        device.start(b.machine);
        for head in 0..8 {
            ring.offer_one(b.machine, head, (ring.page, HEADER as u32 + ARP, 0));
            device.kick(b.machine, 1);
        }
        Ok(())
    }),
    ("commands of every class", |b, t| {
        for class in (0..=8).chain([0x7f, 0xff]) {
            for command in [0, 1, 2, 0xff] {
                commanded(b, t, &[class, command, 1, 0])?;
            }
        }
        Ok(())
    }),
    ("commands for queue pairs that there are not", |b, t| {
        [[0, 0], [2, 0], [0, 0x80], [0xff, 0xff]].into_iter().try_for_each(|[a, z]| commanded(b, t, &[4, 0, a, z]))
    }),
    ("commands of every length", |b, t| (0..8).try_for_each(|len| commanded(b, t, &[4, 0, 1, 0, 0, 0, 0, 0][..len]))),
    ("commands without room for an answer", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[2];
        ring.offer_chain(b.machine, 0, &[(ring.page, 2, 0), (ring.page, 2, 0)]);
        ring.offer_chain(b.machine, 4, &[(ring.page, 4, 0), (NOWHERE, 1, WRITE)]);
        ring.offer_chain(b.machine, 8, &[(ring.page, 4, 0), (ring.page, 0, WRITE)]);
        ring.offer_chain(b.machine, 12, &[(ring.page, u32::MAX, 0), (ring.page, 1, WRITE)]);
        b.settle(&live, &ring);
        Ok(())
    }),
];

fn put_header(b: &mut Bench<'_>, at: u64, (flags, kind, len, segment, start, offset): Header, buffers: u16) {
    b.machine.write(at, Width::Byte, flags.into());
    b.machine.write(at + 1, Width::Byte, kind.into());
    for (place, word) in (2..).step_by(2).zip([len, segment, start, offset, buffers]) {
        b.machine.write(at + place, Width::Word, word.into());
    }
}

/// The device has taken all that is in the ring.
fn taken(b: &mut Bench<'_>, live: &Live, ring: &Ring) -> Outcome {
    live.device.kick(b.machine, ring.queue);
    let ring = *ring;
    if b.wait(20_000, |machine| ring.used_index(machine) == ring.next) { Ok(()) } else { Err("frames are not taken") }
}

/// All wrong headers before frames of several kinds.
fn headers(b: &mut Bench<'_>, t: Target, features: u64) -> Outcome {
    let live = b.up_with(t.kind, features)?;
    let mut ring = live.rings[1];
    for (round, header) in (0_u16..).zip(HEADERS) {
        let head = round % ring.size;
        let at = ring.page + 128 * u64::from(head % 16);
        put_header(b, at, *header, 0);
        // Something like IPv4 and TCP, every other time.
        let kind = if round % 2 == 0 { 0x0045_0008 } else { 0x0100_0608 };
        b.machine.write(at + HEADER + 12, Width::Double, kind);
        b.machine.write(at + HEADER + 23, Width::Byte, 6);
        ring.offer_one(b.machine, head, (at, 128, 0));
        taken(b, &live, &ring)?;
    }
    Ok(())
}

fn lengths(b: &mut Bench<'_>, t: Target, lengths: core::ops::Range<u32>) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[1];
    for (head, len) in (0_u16..).zip(lengths) {
        ring.offer_one(b.machine, head % ring.size, (ring.page, len, 0));
        taken(b, &live, &ring)?;
    }
    Ok(())
}

fn short_buffers(b: &mut Bench<'_>, t: Target, features: u64) -> Outcome {
    let live = b.up_with(t.kind, features)?;
    let mut ring = live.rings[0];
    for head in 0..ring.size {
        ring.offer_one(b.machine, head, (ring.page, u32::from(head), WRITE));
    }
    b.settle(&live, &ring);
    (0..4).for_each(|_| provoke(b.machine, &live.device, live.rings[1]));
    Ok(())
}

/// A full ring of receive buffers, and frames that come in.
fn buffers(b: &mut Bench<'_>, t: Target, buffer: fn(&Ring, u16) -> (u64, u32, u16)) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[0];
    for head in 0..ring.size {
        let one = buffer(&ring, head);
        ring.offer_one(b.machine, head, one);
    }
    b.settle(&live, &ring);
    (0..4).for_each(|_| provoke(b.machine, &live.device, live.rings[1]));
    Ok(())
}

/// A command on the control queue, which is answered if it is one.
fn commanded(b: &mut Bench<'_>, t: Target, command: &[u8]) -> Outcome {
    let live = b.up(t.kind)?;
    let mut ring = live.rings[2];
    for (at, byte) in (0..).zip(command) {
        b.machine.write(ring.page + at, Width::Byte, (*byte).into());
    }
    ring.offer_chain(b.machine, 0, &[(ring.page, command.len() as u32, 0), (ring.page + 64, 1, WRITE)]);
    taken(b, &live, &ring)
}
