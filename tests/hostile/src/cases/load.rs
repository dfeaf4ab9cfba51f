//! Resets, changes and kicks while a device is at work.

use crate::bench::{Bench, Live};
use crate::case::{Named, Whole};
use crate::device::{Kind, NEEDS_RESET, common};
use crate::machine::Width;
use crate::ring::{Ring, WRITE};

pub(super) const CASES: Named<Whole> = &[
    ("reset while requests are under way, 30 times", |b, t| {
        for _ in 0..30 {
            let live = b.up(t.kind)?;
            load(b, &live);
            live.device.reset(b.machine)?;
        }
        Ok(())
    }),
    ("set up, one request and taken down, 50 times", |b, t| {
        for round in 0..50 {
            let live = b.up(t.kind)?;
            let mut ring = live.rings[usize::from(t.queue)];
            request(b, &live, &mut ring, round % 8);
            b.kick(&ring);
            live.device.reset(b.machine)?;
        }
        Ok(())
    }),
    ("resets without waiting for them", |b, t| {
        for _ in 0..50 {
            let live = b.up(t.kind)?;
            load(b, &live);
            live.device.set_status(b.machine, 0);
            live.device.start(b.machine);
            live.device.set_status(b.machine, 0);
        }
        Ok(())
    }),
    ("vectors changed while requests are under way", |b, t| {
        let live = b.up(t.kind)?;
        live.device.set_msix(b.machine, 0xc000);
        for round in 0..200 {
            load(b, &live);
            live.device.select(b.machine, round as u16 % 3);
            live.device.set(b.machine, common::QUEUE_VECTOR, Width::Word, [0, 1, 0xffff, 9][round % 4]);
            live.device.set(b.machine, common::CONFIG_VECTOR, Width::Word, [1, 0xffff][round % 2]);
        }
        Ok(())
    }),
    ("memory decoding switched off and on while requests are under way", |b, t| {
        let live = b.up(t.kind)?;
        for _ in 0..50 {
            load(b, &live);
            live.device.function.set_command(b.machine, 0);
            live.device.kick(b.machine, 0);
            live.device.function.set_command(b.machine, 6);
        }
        Ok(())
    }),
    ("BAR moved while requests are under way", |b, t| {
        let live = b.up(t.kind)?;
        for round in 0..50 {
            load(b, &live);
            let away = if round % 2 == 0 { 64 << 20 } else { 0 };
            live.device.function.set_bar(b.machine, live.device.bar + away);
        }
        live.device.function.set_bar(b.machine, live.device.bar);
        if live.device.status(b.machine) & NEEDS_RESET == 0 { Ok(()) } else { Err("it needs a reset") }
    }),
    ("rings overwritten while requests are under way", |b, t| {
        for round in 0..20_u64 {
            let live = b.up(t.kind)?;
            load(b, &live);
            for ring in &live.rings[..live.count] {
                for at in (0..0x2400).step_by(64) {
                    b.machine.write(ring.table + at, Width::Quad, round.wrapping_mul(0x0101_0101_0101_0101));
                }
                live.device.kick(b.machine, ring.queue);
            }
        }
        Ok(())
    }),
    ("notified 20000 times", |b, t| {
        let live = b.up(t.kind)?;
        load(b, &live);
        for round in 0..20_000 {
            live.device.kick(b.machine, round as u16 % 3);
        }
        Ok(())
    }),
    ("ring refilled as fast as it is served", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[usize::from(t.queue)];
        for head in 0..8 {
            request(b, &live, &mut ring, head);
        }
        let end = b.machine.milliseconds() + 50;
        while b.machine.milliseconds() < end {
            let used = ring.used_index(b.machine);
            ring.set_index(b.machine, used.wrapping_add(8));
            b.kick(&ring);
        }
        Ok(())
    }),
];

/// Fills all rings with requests that the device has something to do for.
fn load(b: &mut Bench<'_>, live: &Live) {
    for ring in &live.rings[..live.count] {
        let mut ring = *ring;
        for round in 0..8 {
            request(b, live, &mut ring, round);
        }
        b.kick(&ring);
    }
}

/// Request number `number` of eight, none of which shares a descriptor.
fn request(b: &mut Bench<'_>, live: &Live, ring: &mut Ring, number: u16) {
    let (data, _) = b.data();
    let data = data + 0x1_0000 * u64::from(number);
    let header = ring.page + 32 * u64::from(number);
    let machine = &mut *b.machine;
    let head = 4 * number;
    match (live.device.kind, ring.queue) {
        (Kind::Block, _) => {
            machine.write(header, Width::Quad, u64::from(number) % 2);
            machine.write(header + 8, Width::Quad, 16 * u64::from(number));
            let flags = if number.is_multiple_of(2) { WRITE } else { 0 };
            ring.offer_chain(machine, head, &[(header, 16, 0), (data, 0x8000, flags), (header + 16, 1, WRITE)]);
        }
        (Kind::Net, 1) => {
            machine.write(header, Width::Quad, 0);
            machine.write(header + 8, Width::Quad, 0);
            ring.offer_chain(machine, head, &[(header, 12, 0), (data, 1000, 0)]);
        }
        _ => ring.offer_chain(machine, head, &[(data, 2048, WRITE)]),
    }
}
