//! Power: the ACPI reset and sleep registers, and the power button's event device (GED).
//!
//! In: the guest's writes; presses of the button. Out: [`GuestEvent`]s; an edge on the GED's pin.

use crate::machine::bus::BusDevice;
use crate::machine::cpu::{GuestEvent, OnGuestEvent};
use crate::machine::ioapic::Pin;
use crate::machine::irq::IrqError;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};

/// Value that resets, in the reset register.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of "off" (S5) in the sleep control register.
pub const S5_TYPE: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// Reset register, sleep control and sleep status, all at one port as in Cloud Hypervisor; no state.
pub struct PowerPort {
    on_event: OnGuestEvent,
}

impl PowerPort {
    /// Reports to `on_event`.
    #[must_use]
    pub fn new(on_event: OnGuestEvent) -> Self {
        Self { on_event }
    }
}

impl BusDevice for PowerPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        match data {
            [RESET_VALUE] => (self.on_event)(GuestEvent::Reset),
            [value] if *value == S5_TYPE << SLEEP_TYPE_SHIFT | SLEEP_ENABLE => (self.on_event)(GuestEvent::Shutdown),
            _ => {}
        }
    }
}

const ID: &str = "ged";
const VERSION: u16 = 1;

/// The GED's event bit of the power button; bits 0 to 2 are Cloud Hypervisor's for hotplug.
pub const GED_POWER_BUTTON: u8 = 1 << 3;

/// The generic event device: one register that says what has happened, cleared by reading.
pub struct Ged {
    pin: Pin,
    events: u8,
}

impl Ged {
    /// Raises `pin`.
    #[must_use]
    pub fn new(pin: Pin) -> Self {
        Self { pin, events: 0 }
    }

    /// The power button is pressed.
    ///
    /// # Errors
    /// When the interrupt cannot be delivered.
    pub fn press_power_button(&mut self) -> Result<(), IrqError> {
        self.events |= GED_POWER_BUTTON;
        self.pin.raise()
    }

    /// No events.
    pub fn reset(&mut self) {
        self.events = 0;
    }
}

impl BusDevice for Ged {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = std::mem::take(&mut self.events);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

impl Saved for Ged {
    fn state_id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        out.section(ID, VERSION, &self.events)
    }

    /// Raises the pin again if an event has not been read yet, so load the IOAPIC first.
    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.events = from.take(ID, VERSION)?;
        if self.events != 0 {
            self.pin.raise().map_err(|e| StateError::Part { id: ID.to_owned(), what: e.to_string(), source: None })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::legacy::i8042::I8042;

    #[test]
    fn only_the_right_values_end_the_guest() {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let on_event: OnGuestEvent = Arc::new(move |event| log.lock().unwrap().push(event));
        let mut port = PowerPort::new(on_event.clone());
        for value in 0..=255 {
            port.write(0, &[value]);
        }
        assert_eq!(events.lock().unwrap().drain(..).collect::<Vec<_>>(), [GuestEvent::Reset, GuestEvent::Shutdown]);
        let mut keyboard = I8042::new(on_event);
        for offset in 0..4 {
            keyboard.write(offset, &[0xfe]);
            keyboard.write(offset, &[0xfd]);
        }
        assert_eq!(*events.lock().unwrap(), [GuestEvent::Reset]);
    }
}
