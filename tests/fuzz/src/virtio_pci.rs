//! A driver that does what it likes to a virtio device: accesses to its registers, its configuration space
//! and the memory that its queue is in.
//!
//! Input: accesses, one after the other.

use std::cell::RefCell;

use pollux_vmm::machine::bus::BusDevice;
use pollux_vmm::machine::memory::guest::GuestMemory;
use pollux_vmm::machine::state::{Saved, StateReader, StateWriter};

use crate::bytes::Bytes;
use crate::pci_machine::{BAR, PciMachine, SLOT};

/// Accesses of one input.
const ACCESSES_MAX: usize = 512;

thread_local! {
    static RAM: RefCell<[GuestMemory; 2]> = RefCell::new([PciMachine::ram(), PciMachine::ram()]);
}

/// Lets the driver do it; afterwards the device can be saved and loaded, and reset.
pub fn run(input: &[u8]) {
    RAM.with_borrow(|[ram, other_ram]| {
        let machine = PciMachine::new(ram, &[]);
        let mut bytes = Bytes::new(input);
        for _ in 0..ACCESSES_MAX {
            if bytes.is_empty() {
                break;
            }
            access(&machine, &mut bytes);
        }
        let mut state = Vec::new();
        machine.device().save(&mut StateWriter::new(&mut state)).unwrap();
        let other = PciMachine::new(other_ram, &[]);
        other.device().load(&mut StateReader::new(&state).unwrap()).unwrap();
        let mut again = Vec::new();
        other.device().save(&mut StateWriter::new(&mut again)).unwrap();
        machine.device().reset().unwrap();
    });
}

fn access(machine: &PciMachine, bytes: &mut Bytes<'_>) {
    let what = bytes.u8();
    let mut data = vec![0; 1 << (what >> 4 & 3)];
    let write = what & 0x40 != 0;
    let (ecam, ports) = (&mut machine.ecam(), &mut machine.ports());
    match what % 4 {
        // The windows of the BAR are 4 KiB each; the first bytes of each are of interest.
        0 => {
            let at = BAR + u64::from(bytes.u16()) * 4;
            bus(bytes, &mut data, write, |data| {
                if write { machine.mmio.write(at, data) } else { machine.mmio.read(at, data) };
            });
        }
        1 => {
            let at = (SLOT as u64) << 15 | u64::from(bytes.u16() & 0xfff);
            device(ecam, at, bytes, &mut data, write);
        }
        2 => {
            let at = u64::from(bytes.u8() & 7);
            device(ports, at, bytes, &mut data, write);
        }
        _ => {
            let (at, len) = (u64::from(bytes.u16()), usize::from(bytes.u8()));
            machine.write_memory(at, bytes.take(len));
        }
    }
}

fn device(device: &mut impl BusDevice, at: u64, bytes: &mut Bytes<'_>, data: &mut [u8], write: bool) {
    bus(bytes, data, write, |data| if write { device.write(at, data) } else { device.read(at, data) });
}

fn bus(bytes: &mut Bytes<'_>, data: &mut [u8], write: bool, act: impl FnOnce(&mut [u8])) {
    if write {
        let taken = bytes.take(data.len());
        data[..taken.len()].copy_from_slice(taken);
    }
    act(data);
}
