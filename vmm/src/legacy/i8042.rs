//! The keyboard controller, of which only the reset line is left.

use crate::machine::bus::BusDevice;
use crate::machine::cpu::{GuestEvent, OnGuestEvent};

/// Offsets from port 0x61.
const PORT_B: u64 = 0;
const COMMAND: u64 = 3;
const RESET: u8 = 0xfe;
/// Output of timer channel 2 is high: whoever waits for it (to calibrate a clock) is done at once.
const TIMER_OUT: u8 = 1 << 5;

/// The device; it has no state.
pub struct I8042 {
    on_event: OnGuestEvent,
}

impl I8042 {
    /// Reports resets to `on_event`.
    #[must_use]
    pub fn new(on_event: OnGuestEvent) -> Self {
        Self { on_event }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == PORT_B { TIMER_OUT } else { 0 });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND, &[RESET]) {
            (self.on_event)(GuestEvent::Reset);
        }
    }
}
