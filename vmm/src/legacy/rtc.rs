//! The CMOS clock: the host's time in UTC, and a few bytes of memory.
//!
//! In: index and data port accesses. Out: the host's time; a reset, when the guest asks the firmware for one.
//! Never: a changed clock; setting the time has no effect.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::machine::bus::BusDevice;
use crate::machine::cpu::{GuestEvent, OnGuestEvent};
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};

const ID: &str = "cmos";
const VERSION: u16 = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Why the machine starts; 0 is a plain reset.
const SHUTDOWN_STATUS: u8 = 0x0f;
/// 24 hours a day.
const B_24H: u8 = 1 << 1;
/// Numbers are binary, not BCD.
const B_BINARY: u8 = 1 << 2;
/// The battery is fine.
const D_VALID: u8 = 1 << 7;

#[derive(Clone, Serialize, Deserialize)]
struct Registers {
    index: u8,
    /// The index was written with NMIs masked.
    nmi_masked: bool,
    status_b: u8,
    /// Bytes without a meaning here, from 0x0e on; 128 of them, a list only because serde has no arrays that
    /// long.
    ram: Vec<u8>,
}

impl Registers {
    fn new(ram_size: u64) -> Self {
        let mut ram = vec![0; 128];
        // Memory above 16 MiB below the hole in units of 64 KiB, and above 4 GiB in the same.
        let below = ram_size.min(crate::machine::memory::layout::HOLE_START);
        let low = below.saturating_sub(16 << 20).div_euclid(64 << 10).min(0xffff) as u16;
        let high = ((ram_size - below) / (64 << 10)).min(0xff_ffff) as u32;
        ram[0x34..0x36].copy_from_slice(&low.to_le_bytes());
        ram[0x5b..0x5e].copy_from_slice(&high.to_le_bytes()[..3]);
        Self { index: 0, nmi_masked: false, status_b: B_24H, ram }
    }
}

/// The device, at ports 0x70 and 0x71.
pub struct Rtc {
    registers: Registers,
    ram_size: u64,
    now: fn() -> u64,
    on_event: OnGuestEvent,
}

impl Rtc {
    /// For a guest with `ram_size` bytes of memory; resets are reported to `on_event`.
    #[must_use]
    pub fn new(ram_size: u64, on_event: OnGuestEvent) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { registers: Registers::new(ram_size), ram_size, now, on_event }
    }

    /// Back to [`Rtc::new`].
    pub fn reset(&mut self) {
        self.registers = Registers::new(self.ram_size);
    }

    fn read_register(&self) -> u8 {
        let time = Time::at((self.now)());
        let value = match self.registers.index {
            SECONDS => time.second,
            MINUTES => time.minute,
            HOURS => return self.hours(time.hour),
            WEEKDAY => time.weekday,
            DAY => time.day,
            MONTH => time.month,
            YEAR => (time.year % 100) as u8,
            CENTURY => (time.year / 100) as u8,
            STATUS_A | STATUS_C => return 0,
            STATUS_B => return self.registers.status_b,
            STATUS_D => return D_VALID,
            index => return self.registers.ram.get(usize::from(index)).copied().unwrap_or(0),
        };
        self.number(value)
    }

    fn number(&self, value: u8) -> u8 {
        if self.registers.status_b & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.registers.status_b & B_24H != 0 {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.number((hour + 11) % 12 + 1) | afternoon
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 0 { self.registers.index } else { self.read_register() });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = data else { return };
        match (offset, self.registers.index) {
            // The top bit masks NMIs, of which there are none.
            (0, _) => (self.registers.index, self.registers.nmi_masked) = (value & 0x7f, value & 0x80 != 0),
            // Linux is about to jump to the firmware's reset entry, where there is no firmware. With NMIs not
            // masked it only cleans up after starting a CPU.
            (_, SHUTDOWN_STATUS) if *value == 0 && self.registers.nmi_masked => (self.on_event)(GuestEvent::Reset),
            (_, STATUS_B) => self.registers.status_b = value & (B_24H | B_BINARY),
            (_, index) if index > STATUS_D && index != CENTURY => {
                if let Some(byte) = self.registers.ram.get_mut(usize::from(index)) {
                    *byte = *value;
                }
            }
            _ => {}
        }
    }
}

impl Saved for Rtc {
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

#[derive(Debug, PartialEq, Eq)]
struct Time {
    year: u64,
    month: u8,
    day: u8,
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Time {
    /// UTC date and time of `seconds` since 1970.
    fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let of_day = seconds % 86_400;
        let mut year = 1970;
        let mut rest = days;
        while rest >= year_days(year) {
            rest -= year_days(year);
            year += 1;
        }
        let mut month = 0;
        while rest >= month_days(year, month) {
            rest -= month_days(year, month);
            month += 1;
        }
        Self {
            year,
            month: month as u8 + 1,
            day: rest as u8 + 1,
            // 1970 began on a Thursday; Sunday is 1.
            weekday: ((days + 4) % 7) as u8 + 1,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn month_days(year: u64, month: usize) -> u64 {
    [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut byte = [0];
        rtc.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn dates_are_right() {
        let time = |seconds| {
            let t = Time::at(seconds);
            (t.year, t.month, t.day, t.weekday, t.hour, t.minute, t.second)
        };
        assert_eq!(time(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(time(951_868_799), (2000, 2, 29, 3, 23, 59, 59));
        assert_eq!(time(1_772_323_200), (2026, 3, 1, 1, 0, 0, 0));
        assert_eq!(time(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0));
    }

    #[test]
    fn numbers_are_bcd_unless_the_guest_says_otherwise() {
        let mut rtc = Rtc::new(6 << 30, std::sync::Arc::new(|_| {}));
        rtc.now = || 951_868_799;
        assert_eq!((read(&mut rtc, HOURS), read(&mut rtc, CENTURY), read(&mut rtc, YEAR)), (0x23, 0x20, 0));
        rtc.write(0, &[STATUS_B]);
        rtc.write(1, &[B_BINARY]);
        assert_eq!((read(&mut rtc, HOURS), read(&mut rtc, MINUTES)), (0x8b, 59));
        assert_eq!((read(&mut rtc, 0x34), read(&mut rtc, 0x35)), (0x00, 0xbf));
        assert_eq!((read(&mut rtc, 0x5b), read(&mut rtc, 0x5c)), (0x00, 0xc0));
        rtc.write(0, &[0x0f]);
        rtc.write(1, &[7]);
        assert_eq!(read(&mut rtc, 0x0f), 7);
    }

    #[test]
    fn a_jump_to_the_firmware_is_a_reset() {
        let (sender, events) = crossbeam_channel::unbounded();
        let mut rtc = Rtc::new(1 << 30, std::sync::Arc::new(move |event| sender.send(event).unwrap()));
        for (index, value) in [(0x0f, 0x0a), (0x0f, 0), (0x8f, 0x0a), (0x8e, 0)] {
            rtc.write(0, &[index]);
            rtc.write(1, &[value]);
        }
        assert!(events.is_empty());
        rtc.write(0, &[0x8f]);
        rtc.write(1, &[0]);
        assert!(matches!(events.try_recv(), Ok(GuestEvent::Reset)));
    }
}
