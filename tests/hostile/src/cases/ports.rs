//! The entropy device, the serial line, and what else a PC has at ports and addresses: every width, every
//! value.
//!
//! Never: a port that resets the machine or switches it off, with the value that does.

use crate::Outcome;
use crate::bench::{Bench, Target};
use crate::case::{Named, Whole};
use crate::device::Kind;
use crate::machine::Width;
use crate::ring::WRITE;

/// What cases are named after that are about no virtio device.
pub(super) const LINE: Target = Target { kind: Kind::Entropy, queue: 0, name: "machine" };

const SERIAL: u16 = 0x3f8;
const RTC: u16 = 0x70;
const PM_TIMER: u16 = 0x608;
const IOAPIC: u64 = 0xfec0_0000;
/// Ports that reset the machine, or switch it off: system control, keyboard, clock, ACPI.
const FINAL: [core::ops::RangeInclusive<u16>; 4] = [0x61..=0x64, 0x70..=0x71, 0x600..=0x604, 0xcf8..=0xcff];

pub(super) const ENTROPY_CASES: Named<Whole> = &[
    ("entropy for more memory than a request may ask for", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        let (data, len) = b.data();
        for head in 0..ring.size {
            ring.offer_one(b.machine, head, (data, len, WRITE));
        }
        b.settle(&live, &ring);
        let (head, written) = ring.take(b.machine).ok_or("it does not answer")?;
        if head == 0 && written > 0 && written <= len { Ok(()) } else { Err("it gives more than there is room for") }
    }),
    ("entropy into its own rings", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        ring.offer_one(b.machine, 0, (ring.table, 0x2400, WRITE));
        b.settle(&live, &ring);
        Ok(())
    }),
    ("entropy asked for 5000 times", |b, t| {
        let live = b.up(t.kind)?;
        let mut ring = live.rings[0];
        for round in 0..5000 {
            ring.offer_one(b.machine, round % ring.size, (ring.page, 8, WRITE));
            b.kick(&ring);
        }
        if ring.used_index(b.machine) == ring.next { Ok(()) } else { Err("requests are lost") }
    }),
];

pub(super) const CASES: Named<Whole> = &[
    ("every register of the serial line, every value", |b, _| {
        for offset in 1..8 {
            for value in 0..=255 {
                b.machine.output(SERIAL + offset, Width::Byte, value);
                b.machine.input(SERIAL + offset, Width::Byte);
            }
        }
        quiet(b)
    }),
    ("serial line in every width, and across its end", |b, _| {
        for port in SERIAL - 3..SERIAL + 9 {
            for width in [Width::Word, Width::Double] {
                b.machine.output(port, width, 0xffff_ffff);
                b.machine.input(port, width);
            }
        }
        quiet(b)
    }),
    ("serial line looped to itself", |b, _| {
        b.machine.output(SERIAL + 4, Width::Byte, 0x1f);
        for value in 0..5000 {
            b.machine.output(SERIAL, Width::Byte, value & 0xff);
        }
        (0..200).for_each(|_| _ = b.machine.input(SERIAL, Width::Byte));
        quiet(b)
    }),
    ("serial line that interrupts for everything", |b, _| {
        for value in 0..2000 {
            b.machine.output(SERIAL + 1, Width::Byte, value & 0xf);
            b.machine.output(SERIAL + 2, Width::Byte, value >> 3 & 0xff);
            b.machine.input(SERIAL + 2, Width::Byte);
        }
        quiet(b)
    }),
    ("32 KiB at once on the serial line", |b, _| {
        let line = [b'.'; 1024];
        (0..32).for_each(|_| b.machine.output_string(SERIAL, &line));
        b.machine.output(SERIAL, Width::Byte, b'\n'.into());
        quiet(b)
    }),
    ("control characters on the serial line", |b, _| {
        let all: [u8; 256] = core::array::from_fn(|i| if i == 10 { 32 } else { i as u8 });
        b.machine.output_string(SERIAL, &all);
        b.machine.output(SERIAL, Width::Byte, b'\n'.into());
        quiet(b)
    }),
    ("reads of every port", |b, _| {
        for port in (0..0x1000_u16).chain((0x1000..=0xffff).step_by(97)) {
            Width::PORTS.into_iter().for_each(|width| _ = b.machine.input(port, width));
        }
        quiet(b)
    }),
    ("writes to every port", |b, _| {
        for port in (0..0x1000_u16).chain((0x1000..=0xffff).step_by(97)) {
            // The serial line would print it, and wide accesses reach the next ports.
            let spared = FINAL.iter().any(|ports| (port..=port.saturating_add(3)).any(|port| ports.contains(&port)));
            if !spared && !(SERIAL - 3..SERIAL + 8).contains(&port) {
                Width::PORTS.into_iter().for_each(|width| b.machine.output(port, width, 0xffff_ffff));
            }
        }
        quiet(b)
    }),
    ("the clock's registers, every one", |b, _| {
        for index in 0..=255 {
            b.machine.output(RTC, Width::Byte, index);
            let value = b.machine.input(RTC + 1, Width::Byte);
            // A shutdown code of 0 with NMIs masked is a reset.
            if index & 0x7f != 0xf {
                b.machine.output(RTC + 1, Width::Byte, !value & 0xff);
                b.machine.output(RTC + 1, Width::Byte, value);
            }
        }
        for width in [Width::Word, Width::Double] {
            b.machine.output(RTC, width, 0xffff_ff0a);
            b.machine.input(RTC, width);
            b.machine.input(RTC + 1, width);
        }
        quiet(b)
    }),
    ("the timer in every width at every place", |b, _| {
        for port in PM_TIMER - 2..PM_TIMER + 5 {
            for width in Width::PORTS {
                b.machine.input(port, width);
                if port > 0x604 {
                    b.machine.output(port, width, 0xffff_ffff);
                }
            }
        }
        quiet(b)
    }),
    ("registers that would end the machine, with other values", |b, _| {
        for value in (2..=255).filter(|value| *value != 0x34) {
            b.machine.output(0x600, Width::Byte, value);
        }
        for value in (0..=255).filter(|value| *value != 0xfe) {
            b.machine.output(0x64, Width::Byte, value);
            b.machine.output(0x61, Width::Byte, value);
        }
        b.machine.output(0x600, Width::Double, 0x34);
        b.machine.output(0x64, Width::Double, 0xfe);
        quiet(b)
    }),
    ("the IOAPIC's registers, every one in every width", |b, _| {
        if !b.machine.reach(IOAPIC, 0x1000) {
            return Ok(());
        }
        for select in 0..=255 {
            for width in Width::ALL {
                b.machine.write(IOAPIC, Width::Double, select);
                b.machine.read(IOAPIC + 0x10, width);
                // Masked, whatever else.
                b.machine.write(IOAPIC + 0x10, width, 0x0001_0000);
            }
        }
        for at in 0..0x28 {
            Width::ALL.into_iter().for_each(|width| _ = b.machine.read(IOAPIC + at, width));
        }
        quiet(b)
    }),
    ("addresses where nothing is", |b, _| {
        for base in [0xd000_0000, 0xe000_0000, 0xfed0_0000, 0xfec0_1000] {
            if b.machine.reach(base, 0x1000) {
                for width in Width::ALL {
                    b.machine.write(base + 1, width, u64::MAX);
                    b.machine.read(base + 1, width);
                }
            }
        }
        quiet(b)
    }),
];

/// The serial line as the firmware leaves it, and a line of its own.
fn quiet(b: &mut Bench<'_>) -> Outcome {
    for (offset, value) in [(3, 3), (1, 0), (2, 0), (4, 0)] {
        b.machine.output(SERIAL + offset, Width::Byte, value);
    }
    while b.machine.input(SERIAL + 5, Width::Byte) & 1 != 0 {
        b.machine.input(SERIAL, Width::Byte);
    }
    b.machine.output(SERIAL, Width::Byte, b'\n'.into());
    if b.machine.input(SERIAL + 5, Width::Byte) & 0x60 == 0x60 {
        Ok(())
    } else {
        Err("the serial line is busy for good")
    }
}
