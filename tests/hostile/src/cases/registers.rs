//! Registers of the transport: negotiation, status, and accesses of every width at every place.

use crate::Outcome;
use crate::bench::Bench;
use crate::case::{Named, Whole};
use crate::device::{ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FEATURES_OK, NEEDS_RESET, common};
use crate::machine::Width;

/// Bytes of a window of the BAR.
const WINDOW: u64 = 0x1000;
/// Bytes of the BAR.
const BAR: u64 = 512 << 10;

pub(super) const CASES: Named<Whole> = &[
    ("features that are not offered", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        device.set_status(b.machine, ACKNOWLEDGE | DRIVER);
        let offered = device.offered(b.machine);
        device.take(b.machine, !offered);
        device.set_status(b.machine, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let refused = device.status(b.machine) & FEATURES_OK == 0;
        device.set_status(b.machine, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        if refused { Ok(()) } else { Err("features are agreed on that are not offered") }
    }),
    ("features changed after they were agreed on", |b, t| {
        let device = b.device(t.kind)?;
        device.negotiate(b.machine, u64::MAX)?;
        device.take(b.machine, u64::MAX);
        b.set_up(device);
        device.start(b.machine);
        device.take(b.machine, 0);
        running(b, device)
    }),
    ("halves of features that there are not", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        for select in [2, 3, 0x8000_0000, 0xffff_ffff] {
            device.set(b.machine, common::DEVICE_FEATURE_SELECT, Width::Double, select);
            device.set(b.machine, common::DRIVER_FEATURE_SELECT, Width::Double, select);
            device.set(b.machine, common::DRIVER_FEATURE, Width::Double, 0xffff_ffff);
            if device.get(b.machine, common::DEVICE_FEATURE, Width::Double) != 0 {
                return Err("there are features beyond 64");
            }
        }
        Ok(())
    }),
    ("no feature at all", |b, t| {
        let live = b.up_with(t.kind, 0)?;
        running(b, live.device)
    }),
    ("ready before features are agreed on", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        b.set_up(device);
        device.set_status(b.machine, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        kick_all(b, device);
        Ok(())
    }),
    ("ready before anything else", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        device.set_status(b.machine, DRIVER_OK);
        device.set_status(b.machine, 0xff);
        kick_all(b, device);
        Ok(())
    }),
    ("ready over and over", |b, t| {
        let live = b.up(t.kind)?;
        for _ in 0..100 {
            live.device.start(b.machine);
        }
        running(b, live.device)
    }),
    ("every status, one after the other", |b, t| {
        let device = b.device(t.kind)?;
        device.reset(b.machine)?;
        for status in 1..=255 {
            device.set_status(b.machine, status);
            kick_all(b, device);
        }
        Ok(())
    }),
    ("every status after a reset", |b, t| {
        let device = b.device(t.kind)?;
        for status in 0..=255 {
            device.reset(b.machine)?;
            b.set_up(device);
            device.set_status(b.machine, status);
            kick_all(b, device);
        }
        Ok(())
    }),
    ("status bits taken back without a reset", |b, t| {
        let live = b.up(t.kind)?;
        for status in [ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, 128] {
            live.device.set_status(b.machine, status);
        }
        kick_all(b, live.device);
        Ok(())
    }),
    ("ready again when a reset is needed", |b, t| {
        let mut live = b.up(t.kind)?;
        let beyond = live.rings[0].size + 1;
        live.rings[0].set_index(b.machine, beyond);
        let ring = live.rings[0];
        b.settle(&live, &ring);
        for _ in 0..20 {
            live.device.start(b.machine);
            kick_all(b, live.device);
        }
        let status = live.device.status(b.machine);
        if status & NEEDS_RESET != 0 { Ok(()) } else { Err("it forgets that it needs a reset") }
    }),
    ("status as part of wider accesses", |b, t| {
        let live = b.up(t.kind)?;
        for (offset, width) in [(20, Width::Word), (20, Width::Double), (16, Width::Quad), (18, Width::Double)] {
            live.device.set(b.machine, offset, width, 0);
            live.device.set(b.machine, offset, width, u64::MAX);
        }
        Ok(())
    }),
    ("200 resets", |b, t| {
        let device = b.device(t.kind)?;
        (0..200).try_for_each(|_| device.reset(b.machine))
    }),
    ("reads of every width at every place of the common registers", |b, t| {
        let device = b.up(t.kind)?.device;
        each_access(0..common::SIZE + 16, |at, width| _ = b.machine.read(device.common + at, width));
        running(b, device)
    }),
    ("writes of every width at every place of the common registers", |b, t| {
        let device = b.up(t.kind)?.device;
        for value in [u64::MAX, 0x0101_0101_0101_0101, 0] {
            each_access(0..common::SIZE + 16, |at, width| b.machine.write(device.common + at, width, value));
        }
        Ok(())
    }),
    ("reads and writes of the interrupt status", |b, t| {
        let device = b.up(t.kind)?.device;
        each_access(0..16, |at, width| {
            b.machine.write(device.isr + at, width, u64::MAX);
            b.machine.read(device.isr + at, width);
        });
        running(b, device)
    }),
    ("device configuration of every width at every place", |b, t| {
        let device = b.up(t.kind)?.device;
        each_access(0..300, |at, width| {
            let before = b.machine.read(device.config + at, width);
            b.machine.write(device.config + at, width, !before);
        });
        running(b, device)
    }),
    ("device configuration beyond its end", |b, t| {
        let device = b.up(t.kind)?.device;
        for at in (WINDOW / 2..2 * WINDOW - 8).step_by(64) {
            b.machine.write(device.config + at, Width::Quad, u64::MAX);
            if b.machine.read(device.config + at, Width::Quad) != 0 {
                return Err("there is something behind the configuration");
            }
        }
        running(b, device)
    }),
    ("the whole BAR, read and written", |b, t| {
        let device = b.up(t.kind)?.device;
        for at in (0..BAR).step_by(1 << 10) {
            for (offset, width) in [(0, Width::Quad), (8, Width::Double), (13, Width::Word), (15, Width::Byte)] {
                b.machine.read(device.bar + at + offset, width);
                b.machine.write(device.bar + at + offset, width, 0);
            }
        }
        Ok(())
    }),
    ("accesses across the windows of the BAR, and at its end", |b, t| {
        let device = b.up(t.kind)?.device;
        for edge in (0..=BAR).step_by(WINDOW as usize) {
            for back in 1..8 {
                let at = device.bar + (edge.max(8) - back).min(BAR - 8);
                b.machine.read(at, Width::Quad);
                b.machine.write(at, Width::Quad, 0);
            }
        }
        Ok(())
    }),
];

/// Calls `access` for each width at each offset.
fn each_access(offsets: core::ops::Range<u64>, mut access: impl FnMut(u64, Width)) {
    for at in offsets {
        Width::ALL.into_iter().for_each(|width| access(at, width));
    }
}

fn kick_all(b: &mut Bench<'_>, device: Device) {
    (0..3).for_each(|queue| device.kick(b.machine, queue));
}

/// The device still runs.
fn running(b: &mut Bench<'_>, device: Device) -> Outcome {
    kick_all(b, device);
    let status = device.status(b.machine);
    if status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK { Ok(()) } else { Err("it does not run any more") }
}
