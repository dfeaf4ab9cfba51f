//! PCI configuration space: its edges, BARs where they cannot be, and the window to the BAR.

use crate::Outcome;
use crate::bench::{Bench, Target};
use crate::case::{Named, Whole};
use crate::device::{DRIVER_OK, Device};
use crate::machine::{Machine, Width};
use crate::pci::{ADDRESS, BAR0, COMMAND, COMMAND_ON, DATA};

/// Configuration space by memory access.
const ECAM: u64 = 0xe800_0000;
/// Bytes of configuration space.
const SPACE: u16 = 256;
/// Bytes of the BAR.
const BAR: u64 = 512 << 10;

pub(super) const CASES: Named<Whole> = &[
    ("reads of every width at every place of configuration space", |b, t| {
        let function = b.device(t.kind)?.function;
        for at in 0..SPACE {
            Width::PORTS.into_iter().for_each(|width| _ = function.read(b.machine, at, width));
        }
        Ok(())
    }),
    ("ones written to all of configuration space", |b, t| everywhere(b, t, 0xffff_ffff)),
    ("zeroes written to all of configuration space", |b, t| everywhere(b, t, 0)),
    ("configuration space written at random", |b, t| {
        let function = b.device(t.kind)?.function;
        let mut state = 88_172_645_463_325_252_u64;
        for _ in 0..2000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let width = Width::PORTS[(state >> 40) as usize % 3];
            function.write(b.machine, (state >> 32) as u16 % SPACE, width, state);
        }
        Ok(())
    }),
    ("configuration space by memory: every width, every place, both ends", |b, t| {
        let slot = ECAM + (u64::from(b.device(t.kind)?.function.0) << 15);
        if !b.machine.reach(ECAM, (1 << 20) + 4096) {
            return Ok(());
        }
        for at in (0..256).chain(4080..4097).chain((1 << 15) - 16..(1 << 15) + 16) {
            for width in Width::ALL {
                let value = b.machine.read(slot + at, width);
                b.machine.write(slot + at, width, value);
            }
        }
        for back in 1..9 {
            b.machine.read(ECAM + (1 << 20) - back, Width::Quad);
            b.machine.write(ECAM + (1 << 20) - back, Width::Quad, 0);
        }
        Ok(())
    }),
    ("configuration ports of every width", |b, _| {
        for port in ADDRESS..DATA + 6 {
            for width in Width::PORTS {
                for value in [0x8000_0000, 0xffff_ffff, 0x8000_00fc, 0, 0x0600_0600] {
                    b.machine.output(port, width, value);
                    b.machine.input(port, width);
                }
            }
        }
        Ok(())
    }),
    ("every bus, slot and function", |b, _| {
        for place in (0..0x1_0000).step_by(7) {
            b.machine.output(ADDRESS, Width::Double, 1 << 31 | place << 8 | 0x3c);
            b.machine.input(DATA, Width::Double);
            if place >> 3 > 31 {
                b.machine.output(DATA, Width::Double, 0xffff_ffff);
            }
        }
        Ok(())
    }),
    ("memory decoding switched 200 times", |b, t| {
        let live = b.up(t.kind)?;
        for round in 0..200 {
            live.device.function.set_command(b.machine, [0, 6, 2, 0xffff][round % 4]);
        }
        live.device.function.set_command(b.machine, COMMAND_ON);
        runs(b, live.device)
    }),
    ("accesses while memory decoding is off", |b, t| {
        let live = b.up(t.kind)?;
        live.device.function.set_command(b.machine, 0);
        let status = live.device.status(b.machine);
        live.device.set_status(b.machine, 0);
        live.device.kick(b.machine, 0);
        live.device.function.set_command(b.machine, COMMAND_ON);
        if status == 0xff { runs(b, live.device) } else { Err("it answers without being told to") }
    }),
    ("BAR at 0", |b, t| moved(b, t, 0)),
    ("BAR at the end of addresses", |b, t| moved(b, t, u64::MAX)),
    ("BAR beyond what a processor can address", |b, t| moved(b, t, 1 << 52)),
    ("BAR over memory", |b, t| {
        let memory = b.machine.memory();
        moved(b, t, memory)
    }),
    ("BAR over the local APIC", |b, t| moved(b, t, 0xfee0_0000)),
    ("BAR over the IOAPIC", |b, t| moved(b, t, 0xfec0_0000)),
    ("BAR over configuration space", |b, t| moved(b, t, ECAM)),
    ("BAR of which only the low half is written", |b, t| {
        let live = b.up(t.kind)?;
        for value in [0, 0xffff_ffff, 0xe800_0000, 0x8000_0000] {
            live.device.function.write(b.machine, BAR0, Width::Double, value);
        }
        for at in 0..8 {
            live.device.function.write(b.machine, BAR0 + at, Width::Byte, 0x5a);
        }
        live.device.function.set_bar(b.machine, live.device.bar);
        runs(b, live.device)
    }),
    ("size of the BAR asked for while it is in use", |b, t| {
        let live = b.up(t.kind)?;
        for _ in 0..50 {
            live.device.function.set_bar(b.machine, u64::MAX);
            if live.device.function.bar(b.machine) != !(BAR - 1) {
                return Err("the BAR does not tell its size");
            }
            live.device.function.set_bar(b.machine, live.device.bar);
        }
        runs(b, live.device)
    }),
    ("BAR over another device's, which then leaves", |b, t| {
        let live = b.up(t.kind)?;
        let Some(other) = b.devices().find(|other| other.kind != t.kind) else { return Ok(()) };
        live.device.function.set_bar(b.machine, other.bar);
        other.function.set_bar(b.machine, live.device.bar);
        // They have changed places.
        let status = b.machine.read(other.bar + (live.device.common - live.device.bar) + 20, Width::Byte);
        if status & DRIVER_OK != 0 { Ok(()) } else { Err("BARs do not change places") }
    }),
    ("BAR beside another device's", |b, t| {
        let live = b.up(t.kind)?;
        let Some(other) = b.devices().find(|other| other.kind != t.kind) else { return Ok(()) };
        for offset in [BAR, BAR.wrapping_neg()] {
            live.device.function.set_bar(b.machine, other.bar.wrapping_add(offset));
        }
        live.device.function.set_bar(b.machine, live.device.bar);
        runs(b, live.device)
    }),
    ("window to the BAR at its edges", |b, t| {
        let live = b.up(t.kind)?;
        for (bar, offset, len) in [
            (0, 0, 4),
            (0, 20, 1),
            (0, BAR - 4, 4),
            (0, BAR - 1, 4),
            (0, BAR, 4),
            (0, 0xffff_ffff, 4),
            (0, 0xffff_fffe, 2),
            (0, 0, 0),
            (0, 0, 3),
            (0, 0, 8),
            (0, 1, 4),
            (0, 0, 0xffff_ffff),
            (1, 0, 4),
            (5, 0, 4),
            (0xff, 0, 4),
        ] {
            window(b.machine, &live.device, bar, offset, len);
        }
        Ok(())
    }),
    ("the whole BAR through the window", |b, t| {
        let live = b.up(t.kind)?;
        for offset in (0..BAR).step_by(1 << 12) {
            for len in [1, 2, 4] {
                window(b.machine, &live.device, 0, offset, len);
            }
        }
        Ok(())
    }),
    ("reset and set up through the window", |b, t| {
        let device = b.device(t.kind)?;
        for status in [0, 1, 3, 11, 15, 0] {
            point(b.machine, &device, 0, device.common - device.bar + 20, 1);
            device.function.write(b.machine, device.window_at + 16, Width::Byte, status);
            let read = device.function.read(b.machine, device.window_at + 16, Width::Byte);
            if read != status {
                return Err("the window shows another status");
            }
        }
        Ok(())
    }),
];

/// Points the window to a place of the BAR.
fn point(machine: &mut dyn Machine, device: &Device, bar: u64, offset: u64, len: u64) {
    let at = device.window_at;
    device.function.write(machine, at + 4, Width::Byte, bar);
    device.function.write(machine, at + 8, Width::Double, offset);
    device.function.write(machine, at + 12, Width::Double, len);
}

/// Reads and writes through the window in every width, at every byte of its data.
fn window(machine: &mut dyn Machine, device: &Device, bar: u64, offset: u64, len: u64) {
    point(machine, device, bar, offset, len);
    for at in 0..4 {
        for width in Width::PORTS {
            let value = device.function.read(machine, device.window_at + 16 + at, width);
            device.function.write(machine, device.window_at + 16 + at, width, value);
        }
    }
}

fn everywhere(b: &mut Bench<'_>, t: Target, value: u64) -> Outcome {
    let live = b.up(t.kind)?;
    let function = live.device.function;
    for at in (0..SPACE).step_by(4).filter(|at| *at != COMMAND) {
        function.write(b.machine, at, Width::Double, value);
    }
    function.write(b.machine, COMMAND, Width::Double, value);
    if function.id(b.machine) == (0xffff, 0xffff) { Err("the function has gone") } else { Ok(()) }
}

/// A device in use whose BAR is moved to `base` and back still runs.
fn moved(b: &mut Bench<'_>, t: Target, base: u64) -> Outcome {
    let live = b.up(t.kind)?;
    live.device.function.set_bar(b.machine, base);
    live.device.function.set_bar(b.machine, live.device.bar);
    live.device.function.set_bar(b.machine, base);
    let there = live.device.function.bar(b.machine);
    live.device.function.set_bar(b.machine, live.device.bar);
    runs(b, live.device)?;
    // It stays there until everything is repaired.
    live.device.function.set_bar(b.machine, base);
    if there == base & !(BAR - 1) { Ok(()) } else { Err("the BAR's register does not hold what was written") }
}

fn runs(b: &mut Bench<'_>, device: Device) -> Outcome {
    if device.status(b.machine) & DRIVER_OK != 0 { Ok(()) } else { Err("it does not run any more") }
}
