//! Indirect descriptor tables that no driver builds.

use crate::bench::Bench;
use crate::case::{Fill, Named};
use crate::ring::{INDIRECT, NEXT, WRITE, descriptor};

const NOWHERE: u64 = 0xdead_0000_0000;

pub(super) const CASES: Named<Fill> = &[
    ("indirect table of no bytes", |b, r| r.offer_one(b.machine, 0, (r.page, 0, INDIRECT))),
    ("indirect table of half an entry", |b, r| r.offer_one(b.machine, 0, (r.page, 8, INDIRECT))),
    ("indirect table of one entry and a byte", |b, r| r.offer_one(b.machine, 0, (r.page, 17, INDIRECT))),
    ("indirect table nowhere", |b, r| r.offer_one(b.machine, 0, (NOWHERE, 64, INDIRECT))),
    ("indirect table that passes the end of addresses", |b, r| {
        r.offer_one(b.machine, 0, (u64::MAX - 15, 64, INDIRECT));
    }),
    ("indirect table that passes the end of memory", |b, r| {
        let end = b.machine.memory_end();
        descriptor_chain(b, r.page, 1);
        r.offer_one(b.machine, 0, (end - 16, 64, INDIRECT));
    }),
    ("indirect table of 4 GiB", |b, r| {
        descriptor_chain(b, r.page, 3);
        r.offer_one(b.machine, 0, (r.page, 0xffff_fff0, INDIRECT));
    }),
    ("indirect table of as many entries as can be counted", |b, r| {
        let (data, _) = b.data();
        descriptor_chain(b, data, 3);
        r.offer_one(b.machine, 0, (data, 65535 * 16, INDIRECT));
        r.offer_one(b.machine, 1, (data, 65536 * 16, INDIRECT));
    }),
    ("long chain in an indirect table", |b, r| {
        let (data, _) = b.data();
        descriptor_chain(b, data, 4096);
        r.offer_one(b.machine, 0, (data, 4096 * 16, INDIRECT));
    }),
    ("indirect table within an indirect table", |b, r| {
        descriptor_chain(b, r.page + 512, 2);
        descriptor(b.machine, r.page, 0, (r.page + 512, 32, INDIRECT), 0);
        r.offer_one(b.machine, 0, (r.page, 16, INDIRECT));
    }),
    ("indirect table that is itself", |b, r| {
        descriptor(b.machine, r.page, 0, (r.page, 16, INDIRECT), 0);
        r.offer_one(b.machine, 0, (r.page, 16, INDIRECT));
    }),
    ("indirect table that is the queue's", |b, r| {
        let table = (r.table, 16 * u32::from(r.size), INDIRECT);
        r.offer_one(b.machine, 0, table);
    }),
    ("indirect table with a successor", |b, r| {
        descriptor_chain(b, r.page, 2);
        r.entry(b.machine, 0, (r.page, 32, INDIRECT | NEXT), 1);
        r.entry(b.machine, 1, (r.page + 1024, 64, WRITE), 0);
        r.offer(b.machine, 0);
    }),
    ("indirect table behind a buffer", |b, r| {
        descriptor_chain(b, r.page, 2);
        r.entry(b.machine, 0, (r.page + 1024, 16, NEXT), 1);
        r.entry(b.machine, 1, (r.page, 32, INDIRECT), 0);
        r.offer(b.machine, 0);
    }),
    ("indirect table to be written", |b, r| {
        descriptor_chain(b, r.page, 2);
        r.offer_one(b.machine, 0, (r.page, 32, INDIRECT | WRITE));
    }),
    ("indirect chain that loops", |b, r| {
        descriptor(b.machine, r.page, 0, (r.page + 1024, 64, NEXT), 1);
        descriptor(b.machine, r.page, 1, (r.page + 1024, 64, NEXT), 0);
        r.offer_one(b.machine, 0, (r.page, 32, INDIRECT));
    }),
    ("indirect chain that leaves its table", |b, r| {
        descriptor(b.machine, r.page, 0, (r.page + 1024, 64, NEXT), 2);
        r.offer_one(b.machine, 0, (r.page, 32, INDIRECT));
        descriptor(b.machine, r.page + 512, 0, (r.page + 1024, 64, NEXT), 0xffff);
        r.offer_one(b.machine, 1, (r.page + 512, 32, INDIRECT));
    }),
    ("indirect table over the rings", |b, r| {
        r.offer_one(b.machine, 0, (r.avail, 512, INDIRECT));
        r.offer_one(b.machine, 1, (r.used, 512, INDIRECT));
    }),
    ("indirect table that is not aligned", |b, r| {
        descriptor_chain(b, r.page + 3, 2);
        r.offer_one(b.machine, 0, (r.page + 3, 32, INDIRECT));
    }),
    ("every head with the same indirect table", |b, r| {
        descriptor_chain(b, r.page, 3);
        for head in 0..r.size {
            r.offer_one(b.machine, head, (r.page, 48, INDIRECT));
        }
    }),
];

/// A chain of one readable and otherwise writable buffers in the table at `table`.
fn descriptor_chain(b: &mut Bench<'_>, table: u64, count: u16) {
    let (data, len) = b.data();
    // Behind the table.
    let buffer = data + u64::from(len) / 2;
    for index in 0..count {
        let flags = if index > 0 { WRITE } else { 0 } | if index + 1 < count { NEXT } else { 0 };
        descriptor(b.machine, table, index, (buffer, 64, flags), index + 1);
    }
}
