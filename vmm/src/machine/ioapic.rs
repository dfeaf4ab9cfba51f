//! The IOAPIC: 24 edge-triggered pins that become interrupt messages.
//!
//! In: raised pins, and the guest's writes to its registers. Out: messages to the LAPICs. Never: a level; no
//! device here has a level-triggered pin, so nobody waits for an end of interrupt.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::machine::bus::BusDevice;
use crate::machine::irq::{IOAPIC_PINS, IrqError, IrqManager};
use crate::machine::memory::layout;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};
use host_kit::warn_limited;

const ID: &str = "__ioapic";
const VERSION: u16 = 1;
const PINS: usize = IOAPIC_PINS as usize;

/// Offsets of the two registers through which all others are reached.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// The others.
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECT: u8 = 0x10;
/// An 82093AA with 24 pins.
const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;

const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// Vector and delivery mode: what an entry and a message's data have in common.
const MESSAGE_DATA: u64 = 0x7ff;
const LOGICAL: u64 = 1 << 11;

#[derive(Clone, Serialize, Deserialize)]
struct Registers {
    id: u32,
    select: u8,
    redirect: [u64; PINS],
    /// Pins raised while masked.
    pending: u32,
}

impl Default for Registers {
    fn default() -> Self {
        Self { id: 0, select: 0, redirect: [MASKED; PINS], pending: 0 }
    }
}

/// The controller's registers.
pub struct Ioapic {
    irq: Arc<IrqManager>,
    registers: Registers,
}

impl Ioapic {
    /// As after reset: all pins masked.
    #[must_use]
    pub fn new(irq: Arc<IrqManager>) -> Self {
        Self { irq, registers: Registers::default() }
    }

    /// Back to [`Ioapic::new`].
    pub fn reset(&mut self) {
        self.registers = Registers::default();
    }

    /// An edge on `pin`. While the pin is masked it is remembered.
    ///
    /// # Errors
    /// When the kernel does not take the message.
    pub fn raise(&mut self, pin: u8) -> Result<(), IrqError> {
        let Some(entry) = self.registers.redirect.get(usize::from(pin)) else { return Ok(()) };
        if entry & MASKED != 0 {
            self.registers.pending |= 1 << pin;
            return Ok(());
        }
        let (address, data) = message(*entry);
        self.irq.signal_msi(address, data)
    }

    fn read_register(&self) -> u32 {
        match self.registers.select {
            REG_ID | REG_ARBITRATION => self.registers.id,
            REG_VERSION => VERSION_VALUE,
            select => self.entry_of(select).map_or(0, |(pin, shift)| (self.registers.redirect[pin] >> shift) as u32),
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.registers.select == REG_ID {
            self.registers.id = value & 0x0f00_0000;
        }
        let Some((pin, shift)) = self.entry_of(self.registers.select) else { return };
        let old = self.registers.redirect[pin];
        let kept = old & !(0xffff_ffff << shift) | old & READ_ONLY;
        self.registers.redirect[pin] = kept | u64::from(value) << shift & !READ_ONLY;
        if self.registers.redirect[pin] & MASKED == 0 && self.registers.pending & 1 << pin != 0 {
            self.registers.pending &= !(1 << pin);
            if let Err(e) = self.raise(pin as u8) {
                warn_limited!("interrupt of pin {pin} is lost: {e}");
            }
        }
    }

    /// Pin and bit position of the half entry that register `select` is.
    fn entry_of(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(REG_REDIRECT)?);
        (index / 2 < PINS).then_some((index / 2, if index % 2 == 0 { 0 } else { 32 }))
    }
}

/// The message that a redirection entry stands for, as an edge.
fn message(entry: u64) -> (u64, u32) {
    let destination = entry >> 56 & 0xff;
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    (layout::LAPIC | destination << 12 | logical, (entry & MESSAGE_DATA) as u32)
}

impl BusDevice for Ioapic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => self.registers.select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        data.fill(0);
        let len = data.len().min(bytes.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let len = data.len().min(bytes.len());
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u32::from_le_bytes(bytes);
        match offset {
            SELECT => self.registers.select = value as u8,
            WINDOW => self.write_register(value),
            _ => {}
        }
    }
}

impl Saved for Ioapic {
    fn state_id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        out.section(ID, VERSION, &self.registers)
    }

    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.registers = from.take(ID, VERSION)?;
        Ok(())
    }
}

/// One pin, for the device behind it.
#[derive(Clone)]
pub struct Pin {
    ioapic: Arc<Mutex<Ioapic>>,
    number: u8,
}

impl Pin {
    /// Pin `number` of `ioapic`.
    #[must_use]
    pub fn new(ioapic: Arc<Mutex<Ioapic>>, number: u8) -> Self {
        Self { ioapic, number }
    }

    /// An edge.
    ///
    /// # Errors
    /// When the kernel does not take the message.
    pub fn raise(&self) -> Result<(), IrqError> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner).raise(self.number)
    }
}

impl vm_superio::Trigger for Pin {
    type E = IrqError;

    fn trigger(&self) -> Result<(), IrqError> {
        self.raise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ioapic() -> Ioapic {
        let vm = Arc::new(crate::machine::kvm::open().unwrap().create_vm().unwrap());
        Ioapic::new(Arc::new(IrqManager::new(vm).unwrap()))
    }

    fn write(ioapic: &mut Ioapic, register: u8, value: u32) {
        ioapic.write(SELECT, &[register]);
        ioapic.write(WINDOW, &value.to_le_bytes());
    }

    fn read(ioapic: &mut Ioapic, register: u8) -> u32 {
        ioapic.write(SELECT, &[register]);
        let mut data = [0; 4];
        ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn registers_read_as_written() {
        let mut ioapic = ioapic();
        assert_eq!(read(&mut ioapic, REG_VERSION), 0x0017_0011);
        assert_eq!(read(&mut ioapic, REG_REDIRECT + 8), 1 << 16);
        write(&mut ioapic, REG_REDIRECT + 8, 0x1_5931);
        write(&mut ioapic, REG_REDIRECT + 9, 0x0300_0000);
        // Status bits stay as they were.
        assert_eq!(read(&mut ioapic, REG_REDIRECT + 8), 0x1_0931);
        assert_eq!(read(&mut ioapic, REG_REDIRECT + 9), 0x0300_0000);
        assert_eq!(message(ioapic.registers.redirect[4]), (0xfee0_3004, 0x131));
        assert_eq!(read(&mut ioapic, REG_REDIRECT + 48), 0);
    }

    #[test]
    fn an_edge_while_masked_fires_at_unmask_and_survives_a_save() {
        let mut ioapic = ioapic();
        ioapic.raise(4).unwrap();
        let mut bytes = Vec::new();
        ioapic.save(&mut StateWriter::new(&mut bytes)).unwrap();
        ioapic.reset();
        assert_eq!(ioapic.registers.pending, 0);
        ioapic.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
        assert_eq!(ioapic.registers.pending, 1 << 4);
        write(&mut ioapic, REG_REDIRECT + 8, 0x31);
        assert_eq!(ioapic.registers.pending, 0);
    }
}
