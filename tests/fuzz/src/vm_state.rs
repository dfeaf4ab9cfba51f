//! A checkpoint's state of the VM: sections that a peer has written, loaded into the devices that need no
//! KVM, which a guest then uses.
//!
//! Input: the state.

use std::cell::RefCell;
use std::sync::Arc;

use pollux_vmm::legacy::rtc::Rtc;
use pollux_vmm::machine::bus::BusDevice;
use pollux_vmm::machine::memory::guest::GuestMemory;
use pollux_vmm::machine::state::{DEVICES, Saved, StateError, StateReader, StateWriter};

use crate::pci_machine::{BAR, PciMachine};

thread_local! {
    static RAM: RefCell<GuestMemory> = RefCell::new(PciMachine::ram());
}

pub(crate) fn rtc() -> Rtc {
    Rtc::new(crate::pci_machine::RAM, Arc::new(|_| {}))
}

/// Loads the state.
pub fn run(input: &[u8]) {
    RAM.with_borrow(|ram| {
        let machine = PciMachine::new(ram, &[]);
        let mut rtc = rtc();
        let Ok(mut state) = StateReader::new(input) else { return };
        let parts = [rtc.load(&mut state), machine.bus.lock().unwrap().load(&mut state)];
        let device = state.within(DEVICES, |state| machine.device().load(state));
        let _ = state.finish();
        use_rtc(&mut rtc);
        if device.is_ok() {
            use_device(&machine);
        }
        let mut again = Vec::new();
        let mut out = StateWriter::new(&mut again);
        if parts.iter().all(Result::is_ok) && device.is_ok() {
            save(&rtc, &machine, &mut out).unwrap();
        }
    });
}

/// All parts, in the order in which they are loaded.
pub(crate) fn save(rtc: &Rtc, machine: &PciMachine, out: &mut StateWriter<'_>) -> Result<(), StateError> {
    rtc.save(out)?;
    machine.bus.lock().unwrap().save(out)?;
    machine.device().save(&mut out.within(DEVICES))
}

fn use_rtc(rtc: &mut Rtc) {
    for index in 0..=u8::MAX {
        let mut value = [0];
        rtc.read(1, &mut value);
        rtc.write(0, &[index]);
        rtc.read(1, &mut value);
    }
}

/// As a takeover does, and the guest after it.
fn use_device(machine: &PciMachine) {
    let placed = machine.device().place_bar();
    let active = machine.device().activate_restored();
    machine.device().kick_all();
    if placed.is_ok() && active.is_ok() {
        for at in (0..0x100).chain(0x2000..0x2004).chain(0x8000..0x8040) {
            machine.mmio.read(BAR + at, &mut [0; 4]);
        }
        machine.mmio.write(BAR + 0x6000, &[0, 0]);
    }
    let _ = machine.device().reset();
}
