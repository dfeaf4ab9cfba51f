//! All cases, in order: each with its name, what it is done to, and how.

mod block;
mod chains;
mod indirect;
mod load;
mod msix;
mod net;
mod pci;
mod ports;
mod queues;
mod registers;
mod rings;

use crate::bench::Target;
use crate::case::{Attack, Case, Fill, Named, Whole};
use crate::device::Kind;

const DISK: Target = Target { kind: Kind::Block, queue: 0, name: "disk" };
const RECEIVE: Target = Target { kind: Kind::Net, queue: 0, name: "network receive" };
const TRANSMIT: Target = Target { kind: Kind::Net, queue: 1, name: "network transmit" };
const CONTROL: Target = Target { kind: Kind::Net, queue: 2, name: "network control" };
const CARD: Target = Target { kind: Kind::Net, queue: 1, name: "network" };
const ENTROPY: Target = Target { kind: Kind::Entropy, queue: 0, name: "entropy" };

/// Every kind of queue, and every device.
const QUEUES: &[Target] = &[DISK, RECEIVE, TRANSMIT, CONTROL, ENTROPY];
const DEVICES: &[Target] = &[DISK, CARD, ENTROPY];

fn fills(targets: &'static [Target], cases: Named<Fill>) -> impl Iterator<Item = Case> {
    cases.iter().flat_map(move |(name, fill)| {
        targets.iter().map(move |target| Case { name, target: *target, attack: Attack::Ring(*fill) })
    })
}

fn wholes(targets: &'static [Target], cases: Named<Whole>) -> impl Iterator<Item = Case> {
    cases.iter().flat_map(move |(name, whole)| {
        targets.iter().map(move |target| Case { name, target: *target, attack: Attack::All(*whole) })
    })
}

/// All cases.
pub fn all() -> impl Iterator<Item = Case> {
    fills(QUEUES, chains::CASES)
        .chain(fills(QUEUES, indirect::CASES))
        .chain(fills(QUEUES, rings::CASES))
        .chain(wholes(DEVICES, registers::CASES))
        .chain(wholes(DEVICES, queues::CASES))
        .chain(wholes(DEVICES, load::CASES))
        .chain(wholes(DEVICES, pci::CASES))
        .chain(wholes(DEVICES, msix::CASES))
        .chain(wholes(&[DISK], block::CASES))
        .chain(wholes(&[CARD], net::CASES))
        .chain(wholes(&[ENTROPY], ports::ENTROPY_CASES))
        .chain(wholes(&[ports::LINE], ports::CASES))
}
