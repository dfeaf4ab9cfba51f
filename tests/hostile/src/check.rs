//! One good request to each device, after a reset.

use crate::Outcome;
use crate::arp::{self, ARP, HEADER};
use crate::bench::{Bench, Live};
use crate::device::Kind;
use crate::machine::{Machine, Width};
use crate::ring::{Ring, WRITE};

/// What a device may need for a good request, in milliseconds: under protection output waits for its epoch,
/// and a host may be about to die.
const LIMIT: u64 = 30_000;
/// After so many milliseconds an ARP request is sent again.
const AGAIN: u64 = 200;

/// Blocks and sectors of the disk that are written and read back.
const SECTOR: u32 = 512;
const SECTORS: u64 = 8;
const TYPE_IN: u64 = 0;
const TYPE_OUT: u64 = 1;

const RECEIVE: u32 = 2048;

/// Every device works.
pub(crate) fn all(bench: &mut Bench<'_>) -> Outcome {
    for device in bench.devices() {
        let live = bench.up(device.kind)?;
        match device.kind {
            Kind::Block => disk(bench, live)?,
            Kind::Net => card(bench, live)?,
            Kind::Entropy => entropy(bench, live)?,
        }
        // Frames may come in at any time, into memory that others use as well.
        device.reset(bench.machine)?;
    }
    Ok(())
}

/// Waits for the next used entry.
fn finish(bench: &mut Bench<'_>, ring: &mut Ring) -> Option<(u32, u32)> {
    let mut entry = None;
    bench.wait(LIMIT, |machine| {
        entry = ring.take(machine);
        entry.is_some()
    });
    entry
}

fn fill(machine: &mut dyn Machine, at: u64, len: u64, value: u64) {
    (0..len).step_by(8).for_each(|offset| machine.write(at + offset, Width::Quad, value.wrapping_add(offset)));
}

/// One request to the disk: header at `page`, status behind it. Returns the status.
fn request(bench: &mut Bench<'_>, live: &Live, ring: &mut Ring, kind: u64, data: (u64, u32, u16)) -> Option<u64> {
    let machine = &mut *bench.machine;
    machine.write(ring.page, Width::Quad, kind);
    machine.write(ring.page + 8, Width::Quad, SECTORS);
    machine.write(ring.page + 16, Width::Byte, 0xff);
    ring.offer_chain(machine, 0, &[(ring.page, 16, 0), data, (ring.page + 16, 1, WRITE)]);
    live.device.kick(machine, 0);
    finish(bench, ring)?;
    Some(bench.machine.read(ring.page + 16, Width::Byte))
}

fn disk(bench: &mut Bench<'_>, live: Live) -> Outcome {
    let mut ring = live.rings[0];
    let (data, len) = (bench.data().0, SECTOR * SECTORS as u32);
    bench.written += 1;
    let value = bench.written << 32;
    fill(bench.machine, data, len.into(), value);
    match request(bench, &live, &mut ring, TYPE_OUT, (data, len, 0)) {
        None => return Err("the disk does not answer a write"),
        Some(0) => {}
        Some(_) => return Err("the disk fails a write"),
    }
    fill(bench.machine, data, len.into(), 0);
    match request(bench, &live, &mut ring, TYPE_IN, (data, len, WRITE)) {
        None => return Err("the disk does not answer a read"),
        Some(0) => {}
        Some(_) => return Err("the disk fails a read"),
    }
    let right = (0..u64::from(len))
        .step_by(8)
        .all(|offset| bench.machine.read(data + offset, Width::Quad) == value.wrapping_add(offset));
    if right { Ok(()) } else { Err("the disk has lost a write") }
}

fn entropy(bench: &mut Bench<'_>, live: Live) -> Outcome {
    let mut ring = live.rings[0];
    let at = ring.page;
    ring.offer_one(bench.machine, 0, (at, 64, WRITE));
    live.device.kick(bench.machine, 0);
    match finish(bench, &mut ring) {
        None => Err("the entropy device does not answer"),
        Some((0, 64)) if (0..64).step_by(8).any(|offset| bench.machine.read(at + offset, Width::Quad) != 0) => Ok(()),
        Some(_) => Err("the entropy device gives none"),
    }
}

fn card(bench: &mut Bench<'_>, live: Live) -> Outcome {
    let [mut receive, mut transmit, _] = live.rings;
    let data = bench.data().0;
    let buffer = |head: u16| data + u64::from(head) * u64::from(RECEIVE);
    for head in 0..receive.size {
        receive.offer_one(bench.machine, head, (buffer(head), RECEIVE, WRITE));
    }
    live.device.kick(bench.machine, 0);
    arp::put_request(bench.machine, &live.device, transmit.page);
    let end = bench.machine.milliseconds() + LIMIT;
    while bench.machine.milliseconds() < end {
        transmit.offer_one(bench.machine, 0, (transmit.page, HEADER as u32 + ARP, 0));
        live.device.kick(bench.machine, 1);
        if finish(bench, &mut transmit).is_none() {
            return Err("the network card does not send");
        }
        let answered = bench.wait(AGAIN, |machine| {
            let Some((head, len)) = receive.take(machine) else { return false };
            let head = head as u16 % receive.size;
            let found = arp::is_answer(machine, buffer(head), len);
            receive.offer(machine, head);
            live.device.kick(machine, 0);
            found
        });
        if answered {
            return Ok(());
        }
    }
    Err("the network card receives nothing")
}
