//! MSI-X: vectors that are flipped, masked, and sent where nobody is.
//!
//! Never: a message that a processor of this guest takes for more than an interrupt. What it does to itself
//! with those is its own business.

use crate::Outcome;
use crate::arp::provoke;
use crate::bench::{Bench, Live, Target};
use crate::case::{Named, Whole};
use crate::device::{DRIVER_OK, Kind, common};
use crate::machine::Width;
use crate::ring::WRITE;

const ENTRY: u64 = 16;
const ON: u64 = 0x8000;
const MASK_ALL: u64 = 0x4000;
/// Where interrupt messages go: to the processor with APIC id 0.
const APIC: u64 = 0xfee0_0000;
/// To one that there is not.
const NOBODY: u64 = 0xfee4_d000;
/// An interrupt that this guest does not wait for.
const FIXED: u64 = 0x51;

pub(super) const CASES: Named<Whole> = &[
    ("MSI-X switched 1000 times", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        for round in 0..1000 {
            live.device.set_msix(b.machine, [ON, 0, ON | MASK_ALL, MASK_ALL, 0xffff][round % 5]);
        }
        busy(b, &live)
    }),
    ("vectors masked and unmasked while interrupts come", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        for round in 0..100 {
            busy(b, &live)?;
            for vector in 0..live.count as u64 + 1 {
                b.machine.write(live.device.table + ENTRY * vector + 12, Width::Double, round % 2);
            }
        }
        Ok(())
    }),
    ("messages to nobody", |b, t| messages(b, t, NOBODY, &[FIXED, 0x151, 0x451, 0x551, 0x651, 0x751])),
    ("messages with vectors that there are not", |b, t| messages(b, t, APIC, &[0, 1, 15])),
    ("messages with every reserved bit", |b, t| messages(b, t, NOBODY | 0xff0, &[0xffff_ff51, 0xffff_f851])),
    ("messages to memory", |b, t| {
        let memory = b.machine.memory();
        messages(b, t, memory, &[0, 0x51, 0xffff_ffff])
    }),
    ("messages to the end of addresses", |b, t| messages(b, t, u64::MAX - 3, &[0, 0x51, 0xffff_ffff])),
    ("messages to high addresses", |b, t| messages(b, t, NOBODY | 0xffff_ffff << 32, &[0x51, 0xffff_ffff])),
    ("messages to addresses that are not aligned", |b, t| messages(b, t, NOBODY | 3, &[0x51])),
    ("messages changed while interrupts come", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        for round in 0..100_u64 {
            busy(b, &live)?;
            for vector in 0..live.count as u64 + 1 {
                b.machine.write(live.device.table + ENTRY * vector, Width::Double, NOBODY + (round << 12 & 0xf_f000));
                b.machine.write(live.device.table + ENTRY * vector + 8, Width::Double, FIXED + round % 32);
            }
        }
        Ok(())
    }),
    ("table written in every width at every place", |b, t| {
        let live = b.up(t.kind)?;
        for at in 0..64 {
            for width in Width::ALL {
                b.machine.write(live.device.table + at, width, u64::MAX);
                b.machine.read(live.device.table + at, width);
            }
        }
        busy(b, &live)
    }),
    ("table beyond its end, and pending bits", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        for at in (0x1000..0x4_8000_u64).step_by(1 << 12).chain(0x4_0000..0x4_0040) {
            b.machine.write(live.device.table + at, Width::Double, 0xffff_ffff);
            b.machine.read(live.device.table + at, Width::Quad);
        }
        busy(b, &live)
    }),
    ("pending bits read while everything is masked", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        live.device.set_msix(b.machine, ON | MASK_ALL);
        let pending = live.device.bar + 0x4_8000;
        for at in 0..16 {
            busy(b, &live)?;
            Width::ALL.into_iter().for_each(|width| _ = b.machine.read(pending + at, width));
        }
        live.device.set_msix(b.machine, ON);
        busy(b, &live)
    }),
    ("device reset with vectors on, and vectors switched without a device", |b, t| {
        let live = with_vectors(b, t, APIC, FIXED)?;
        busy(b, &live)?;
        live.device.reset(b.machine)?;
        for control in [0, ON, MASK_ALL, ON] {
            live.device.set_msix(b.machine, control);
        }
        Ok(())
    }),
];

/// A device with MSI-X on and a vector for everything, all of which send `data` to `address`.
fn with_vectors(b: &mut Bench<'_>, t: Target, address: u64, data: u64) -> Result<Live, &'static str> {
    let live = b.up(t.kind)?;
    live.device.set(b.machine, common::CONFIG_VECTOR, Width::Word, 0);
    for ring in &live.rings[..live.count] {
        live.device.select(b.machine, ring.queue);
        live.device.set(b.machine, common::QUEUE_VECTOR, Width::Word, u64::from(ring.queue) + 1);
    }
    for vector in 0..live.count as u64 + 1 {
        let entry = live.device.table + ENTRY * vector;
        b.machine.write(entry, Width::Quad, address);
        b.machine.write(entry + 8, Width::Double, data);
        b.machine.write(entry + 12, Width::Double, 0);
    }
    live.device.set_msix(b.machine, ON);
    Ok(live)
}

/// All vectors send each of `data` to `address`.
fn messages(b: &mut Bench<'_>, t: Target, address: u64, data: &[u64]) -> Outcome {
    for data in data {
        let live = with_vectors(b, t, address, *data)?;
        busy(b, &live)?;
    }
    Ok(())
}

/// The device does something for which it interrupts, and still runs.
fn busy(b: &mut Bench<'_>, live: &Live) -> Outcome {
    if live.device.kind == Kind::Net {
        provoke(b.machine, &live.device, live.rings[1]);
    } else {
        let mut ring = live.rings[0];
        ring.next = b.machine.read(ring.avail + 2, Width::Word) as u16;
        ring.offer_one(b.machine, 0, (ring.page, 64, WRITE));
        b.kick(&ring);
    }
    if live.device.status(b.machine) & DRIVER_OK != 0 { Ok(()) } else { Err("it does not run any more") }
}
