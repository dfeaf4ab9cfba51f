//! Descriptor chains that no driver builds.

use crate::bench::Bench;
use crate::case::{Fill, Named};
use crate::ring::{NEXT, Ring, WRITE};

/// Neither RAM nor a device.
const NOWHERE: u64 = 0xdead_0000_0000;
/// The local APIC.
const LAPIC: u64 = 0xfee0_0000;

pub(super) const CASES: Named<Fill> = &[
    ("chain that loops over two", |b, r| {
        r.entry(b.machine, 0, (r.page, 64, NEXT), 1);
        r.entry(b.machine, 1, (r.page, 64, NEXT), 0);
        r.offer(b.machine, 0);
    }),
    ("chain that loops over itself, to be written", |b, r| {
        r.entry(b.machine, 0, (r.page, 64, NEXT | WRITE), 0);
        r.offer(b.machine, 0);
    }),
    ("chain that leaves the table by one", |b, r| {
        r.entry(b.machine, 0, (r.page, 64, NEXT), r.size);
        r.offer(b.machine, 0);
    }),
    ("chain that leaves the table by far", |b, r| {
        r.entry(b.machine, 0, (r.page, 64, NEXT | WRITE), 0xffff);
        r.offer(b.machine, 0);
    }),
    ("chain over the whole table", |b, r| {
        for index in 0..r.size {
            let more = if index + 1 < r.size { NEXT } else { 0 };
            r.entry(b.machine, index, (r.page + u64::from(index), 1, more), index + 1);
        }
        r.offer(b.machine, 0);
    }),
    ("chain over the whole table that ends where it began", |b, r| {
        for index in 0..r.size {
            r.entry(b.machine, index, (r.page, 4096, NEXT | WRITE), (index + 1) % r.size);
        }
        r.offer(b.machine, 0);
    }),
    ("buffers of no bytes", |b, r| r.offer_chain(b.machine, 0, &[(r.page, 0, 0), (r.page, 0, 0), (r.page, 0, WRITE)])),
    ("buffers of no bytes nowhere", |b, r| r.offer_chain(b.machine, 0, &[(NOWHERE, 0, 0), (u64::MAX, 0, WRITE)])),
    ("whole table of buffers of no bytes", |b, r| {
        for index in 0..r.size {
            r.offer_one(b.machine, index, (r.page, 0, index % 4 * WRITE / 2));
        }
    }),
    ("buffer of 4 GiB", |b, r| {
        r.offer_chain(b.machine, 0, &[(r.page, u32::MAX, 0), (r.page, u32::MAX, WRITE)]);
    }),
    ("whole table of 4 GiB each", |b, r| {
        for index in 0..r.size {
            let more = if index + 1 < r.size { NEXT } else { 0 };
            r.entry(b.machine, index, (r.page, u32::MAX, WRITE | more), index + 1);
        }
        r.offer(b.machine, 0);
    }),
    ("buffer that passes the end of addresses", |b, r| both(b, r, u64::MAX - 10, 100)),
    ("buffer nowhere", |b, r| both(b, r, NOWHERE, 512)),
    ("buffer at the local APIC", |b, r| both(b, r, LAPIC, 512)),
    ("buffer in its own device", |b, r| {
        let bar = b.devices().next().map_or(NOWHERE, |device| device.bar);
        both(b, r, bar, 512);
    }),
    ("buffer that passes the end of memory", |b, r| {
        let end = b.machine.memory_end();
        both(b, r, end - 16, 4096);
    }),
    ("buffer over its own table", |b, r| both(b, r, r.table, 1024)),
    ("buffer over its own avail ring", |b, r| both(b, r, r.avail, 512)),
    ("buffer over its own used ring", |b, r| both(b, r, r.used, 1024)),
    ("every flag", |b, r| {
        for index in 0..4 {
            r.entry(b.machine, index, (r.page, 64, 0xffff), index + 1);
        }
        r.offer(b.machine, 0);
    }),
    ("unknown flags", |b, r| r.offer_one(b.machine, 0, (r.page, 64, 0xfff8))),
    ("written before read", |b, r| {
        r.offer_chain(b.machine, 0, &[(r.page, 512, WRITE), (r.page + 512, 512, 0), (r.page + 1024, 64, WRITE)]);
    }),
    ("only to be read", |b, r| r.offer_chain(b.machine, 0, &[(r.page, 512, 0), (r.page + 512, 512, 0)])),
    ("only to be written", |b, r| r.offer_chain(b.machine, 0, &[(r.page, 512, WRITE), (r.page + 512, 512, WRITE)])),
    ("one byte each", |b, r| {
        let buffers: [_; 40] = core::array::from_fn(|i| (r.page + i as u64, 1, if i < 20 { 0 } else { WRITE }));
        r.offer_chain(b.machine, 0, &buffers);
    }),
    ("changes while it is served", |b, r| {
        r.offer_chain(b.machine, 0, &[(r.page, 16, 0), (r.page + 512, 512, WRITE), (r.page + 1024, 1, WRITE)]);
        b.kick(r);
        for round in 0..200 {
            r.entry(b.machine, 0, (NOWHERE, round, NEXT | (round as u16 & 7)), round as u16);
            r.entry(b.machine, 1, (r.table, round, NEXT), 0);
        }
    }),
];

/// A buffer to be read and one to be written, as the only ones and behind good ones.
fn both(b: &mut Bench<'_>, r: &mut Ring, address: u64, len: u32) {
    r.offer_chain(b.machine, 0, &[(address, len, 0)]);
    r.offer_chain(b.machine, 1, &[(address, len, WRITE)]);
    let good = r.page;
    r.offer_chain(b.machine, 2, &[(good, 16, 0), (address, len, 0), (good + 64, 64, WRITE)]);
    r.offer_chain(b.machine, 8, &[(good, 16, 0), (address, len, WRITE), (good + 64, 64, WRITE)]);
    r.offer_chain(b.machine, 16, &[(good, 16, 0), (good + 64, 64, WRITE), (address, len, WRITE)]);
}
