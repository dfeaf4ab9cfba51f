//! Set-up of queues: sizes, places, vectors and notifications that cannot be.

use crate::Outcome;
use crate::bench::{Bench, Target};
use crate::case::{Named, Whole};
use crate::device::{Device, NEEDS_RESET, common};
use crate::machine::Width;

const NOWHERE: u64 = 0xdead_0000_0000;

pub(super) const CASES: Named<Whole> = &[
    ("queue of no entries", |b, t| with_size(b, t, 0)),
    ("queue of three entries", |b, t| with_size(b, t, 3)),
    ("queue of one entry", |b, t| with_size(b, t, 1)),
    ("queue larger than the largest", |b, t| {
        let device = fresh(b, t)?;
        device.select(b.machine, 0);
        let max = device.get(b.machine, common::QUEUE_SIZE, Width::Word) as u16;
        with_size(b, t, 2 * max)
    }),
    ("queue of 65535 entries", |b, t| with_size(b, t, 0xffff)),
    ("queue of 32768 entries", |b, t| with_size(b, t, 0x8000)),
    ("queue that is not aligned", |b, t| shifted(b, t, |at| at + 1)),
    ("queue nowhere", |b, t| shifted(b, t, |_| NOWHERE)),
    ("queue at the end of addresses", |b, t| shifted(b, t, |_| u64::MAX - 15)),
    ("queue at the local APIC", |b, t| shifted(b, t, |_| 0xfee0_0000)),
    ("queue in its own BAR", |b, t| {
        let bar = b.device(t.kind)?.bar;
        placed(b, t, [bar; 3])
    }),
    ("queue that passes the end of memory", |b, t| {
        let end = b.machine.memory_end();
        placed(b, t, [end - 16; 3])
    }),
    ("queue whose parts are all at one place", |b, t| {
        let memory = b.machine.memory();
        placed(b, t, [memory; 3])
    }),
    ("queue whose parts overlap", |b, t| {
        let memory = b.machine.memory();
        placed(b, t, [memory, memory + 2, memory + 4])
    }),
    ("only the high halves of addresses", |b, t| {
        let device = fresh(b, t)?;
        device.select(b.machine, 0);
        for offset in [common::QUEUE_TABLE, common::QUEUE_AVAIL, common::QUEUE_USED] {
            device.set(b.machine, offset + 4, Width::Double, 0xffff_ffff);
        }
        device.enable(b.machine);
        start(b, device)
    }),
    ("queues enabled by other numbers", |b, t| {
        let device = fresh(b, t)?;
        for value in [2, 0xffff, 0] {
            for queue in 0..3 {
                device.select(b.machine, queue);
                device.set(b.machine, common::QUEUE_ENABLE, Width::Word, value);
            }
        }
        start(b, device)
    }),
    ("no queue enabled", |b, t| {
        let device = fresh(b, t)?;
        start(b, device)
    }),
    ("only the last queue enabled", |b, t| {
        let device = fresh(b, t)?;
        let last = device.queues(b.machine).min(3) - 1;
        let ring = b.ring(&device, last.into());
        device.select(b.machine, last);
        device.place(b.machine, ring.size, ring.places());
        device.enable(b.machine);
        start(b, device)
    }),
    ("queues that there are not", |b, t| {
        let device = fresh(b, t)?;
        let memory = b.machine.memory();
        for queue in [device.queues(b.machine), 100, 0x8000, 0xffff] {
            device.select(b.machine, queue);
            device.place(b.machine, 16, [memory; 3]);
            device.set(b.machine, common::QUEUE_VECTOR, Width::Word, 0);
            device.enable(b.machine);
            if device.get(b.machine, common::QUEUE_SIZE, Width::Word) != 0 {
                return Err("there are more queues than there are");
            }
        }
        start(b, device)
    }),
    ("queues changed while they run", |b, t| {
        let live = b.up(t.kind)?;
        for queue in 0..3 {
            live.device.select(b.machine, queue);
            live.device.place(b.machine, 0xffff, [NOWHERE; 3]);
            live.device.set(b.machine, common::QUEUE_ENABLE, Width::Word, 0);
            live.device.enable(b.machine);
        }
        kick_all(b, live.device);
        Ok(())
    }),
    ("enabled queues changed before the device runs", |b, t| {
        let device = fresh(b, t)?;
        let live = b.set_up(device);
        for ring in &live.rings[..live.count] {
            device.select(b.machine, ring.queue);
            device.place(b.machine, 3, [NOWHERE; 3]);
        }
        start(b, device)?;
        let status = device.status(b.machine);
        if status & NEEDS_RESET == 0 { Ok(()) } else { Err("an enabled queue was changed") }
    }),
    ("vectors that there are not", |b, t| {
        let device = fresh(b, t)?;
        for vector in [64, 0x7fff, 0xfffe] {
            device.set(b.machine, common::CONFIG_VECTOR, Width::Word, vector);
            device.select(b.machine, 0);
            device.set(b.machine, common::QUEUE_VECTOR, Width::Word, vector);
            let read = [common::CONFIG_VECTOR, common::QUEUE_VECTOR].map(|at| device.get(b.machine, at, Width::Word));
            if read != [0xffff; 2] {
                return Err("there are more vectors than there are");
            }
        }
        b.set_up(device);
        start(b, device)
    }),
    ("notifications of queues that there are not", |b, t| {
        let live = b.up(t.kind)?;
        for queue in (3..0x1000 / live.device.stride).step_by(17) {
            live.device.kick(b.machine, queue as u16);
        }
        for value in [0xffff, 3, 0x8000] {
            b.machine.write(live.device.notify, Width::Word, value);
        }
        Ok(())
    }),
    ("notifications of every width at every place", |b, t| {
        let live = b.up(t.kind)?;
        for at in 0..32 {
            for width in Width::ALL {
                b.machine.write(live.device.notify + at, width, u64::MAX);
                b.machine.read(live.device.notify + at, width);
            }
        }
        Ok(())
    }),
    ("notifications before anything is set up", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        kick_all(b, device);
        let device = fresh(b, t)?;
        kick_all(b, device);
        b.set_up(device);
        kick_all(b, device);
        start(b, device)
    }),
    ("notifications after a reset", |b, t| {
        let live = b.up(t.kind)?;
        live.device.reset(b.machine)?;
        (0..100).for_each(|_| kick_all(b, live.device));
        Ok(())
    }),
];

/// The device, reset and negotiated with.
fn fresh(b: &mut Bench<'_>, t: Target) -> Result<Device, &'static str> {
    let device = b.device(t.kind)?;
    device.negotiate(b.machine, u64::MAX)?;
    Ok(device)
}

fn kick_all(b: &mut Bench<'_>, device: Device) {
    (0..3).for_each(|queue| device.kick(b.machine, queue));
}

/// It is told that the driver is ready, and that there is something in every queue.
fn start(b: &mut Bench<'_>, device: Device) -> Outcome {
    device.start(b.machine);
    kick_all(b, device);
    Ok(())
}

/// All queues at these places.
fn placed(b: &mut Bench<'_>, t: Target, places: [u64; 3]) -> Outcome {
    let device = fresh(b, t)?;
    for queue in 0..device.queues(b.machine) {
        device.select(b.machine, queue);
        device.place(b.machine, 16, places);
        device.enable(b.machine);
    }
    start(b, device)
}

/// All queues with one part elsewhere, one part after the other.
fn shifted(b: &mut Bench<'_>, t: Target, elsewhere: fn(u64) -> u64) -> Outcome {
    for part in 0..3 {
        let memory = b.machine.memory();
        let mut places = [memory, memory + 0x1000, memory + 0x2000];
        places[part] = elsewhere(places[part]);
        placed(b, t, places)?;
    }
    Ok(())
}

/// All queues with so many entries.
fn with_size(b: &mut Bench<'_>, t: Target, size: u16) -> Outcome {
    let device = fresh(b, t)?;
    let data = b.data().0;
    for queue in 0..device.queues(b.machine) {
        device.select(b.machine, queue);
        device.place(b.machine, size, [data, data + 0x8_0000, data + 0x10_0000]);
        device.enable(b.machine);
    }
    start(b, device)
}
