//! Rings whose indices and heads make no sense.

use crate::bench::Bench;
use crate::case::{Fill, Named};
use crate::machine::Width;
use crate::ring::{Ring, WRITE};

pub(super) const CASES: Named<Fill> = &[
    ("head outside of the table by one", |b, r| r.offer(b.machine, r.size)),
    ("head outside of the table by far", |b, r| r.offer(b.machine, 0xffff)),
    ("good entry, then a head outside of the table", |b, r| {
        good(b, r, 0);
        r.offer(b.machine, r.size + 1);
    }),
    ("avail index one too far", |b, r| r.set_index(b.machine, r.size + 1)),
    ("avail index half way round", |b, r| r.set_index(b.machine, 0x8000)),
    ("avail index backwards", |b, r| r.set_index(b.machine, 0xffff)),
    ("avail index back where it was", |b, r| {
        good(b, r, 0);
        let next = r.next;
        r.set_index(b.machine, next.wrapping_sub(1));
    }),
    ("avail index further than what was written", |b, r| r.set_index(b.machine, r.size)),
    ("avail index that runs", |b, r| {
        for index in 0..2000 {
            r.set_index(b.machine, index);
            if index % 50 == 0 {
                b.kick(r);
            }
        }
    }),
    ("one head as often as the ring has entries", |b, r| {
        good(b, r, 3);
        for _ in 1..r.size {
            r.offer(b.machine, 3);
        }
    }),
    ("every head, all of them overlapping", |b, r| {
        for head in 0..r.size {
            r.offer_chain(b.machine, head, &[(r.page, 16, 0)]);
        }
    }),
    ("flags of the avail ring", |b, r| {
        b.machine.write(r.avail, Width::Word, 0xffff);
        good(b, r, 0);
    }),
    ("used ring written by the driver", |b, r| {
        for at in (0..512).step_by(4) {
            b.machine.write(r.used + at, Width::Double, 0xffff_ffff);
        }
        good(b, r, 0);
    }),
    ("used event anywhere", |b, r| {
        for event in [0xffff, 0x8000, 1] {
            b.machine.write(r.avail + 4 + 2 * u64::from(r.size), Width::Word, event);
            good(b, r, (event % 8) as u16 * 4);
        }
    }),
    ("everything in its memory at random", |b, r| {
        let mut state = 0x1234_5678_9abc_def0_u64;
        for at in (0..0x3000).step_by(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b.machine.write(r.table + at, Width::Quad, state);
        }
        r.set_index(b.machine, r.size);
    }),
    ("everything in its memory ones", |b, r| {
        for at in (0..0x3000).step_by(8) {
            b.machine.write(r.table + at, Width::Quad, u64::MAX);
        }
    }),
];

/// A chain that some devices have a use for.
fn good(b: &mut Bench<'_>, r: &mut Ring, head: u16) {
    r.offer_chain(b.machine, head, &[(r.page, 16, 0), (r.page + 512, 512, WRITE), (r.page + 1024, 1, WRITE)]);
}
