//! The ACPI power management timer: 32 bits at 3.579545 MHz, read-only, without interrupt.
//!
//! It tells kvmclock in other units. So it needs no state of its own: it pauses, and goes on on another host,
//! with the guest's clocks. Firmware waits by it, and a kernel that does without kvmclock finds out by it how
//! fast the time stamp counter is.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::machine::bus::BusDevice;

/// Ticks a second.
const FREQUENCY: u64 = 3_579_545;
const NANOSECONDS: u64 = 1_000_000_000;

/// The register.
pub struct PmTimer {
    vm: Arc<VmFd>,
    /// What was read last.
    last: u32,
}

impl PmTimer {
    /// That of `vm`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, last: 0 }
    }
}

/// The timer when the guest's clock says `clock` nanoseconds. It wraps every twenty minutes.
fn ticks(clock: u64) -> u32 {
    (u128::from(clock) * u128::from(FREQUENCY) / u128::from(NANOSECONDS)) as u32
}

impl BusDevice for PmTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.vm.get_clock() {
            Ok(now) => self.last = ticks(now.clock),
            Err(e) => host_kit::warn_limited!("the PM timer does not advance: KVM_GET_CLOCK: {e}"),
        }
        let bytes = self.last.to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_clock_data;

    use super::*;

    const HOUR: u64 = 3600 * NANOSECONDS;

    fn timer() -> PmTimer {
        let vm = crate::machine::kvm::open().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        PmTimer::new(Arc::new(vm))
    }

    fn read(timer: &mut PmTimer) -> u32 {
        let mut data = [0; 4];
        timer.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_ticks_as_the_specification_says() {
        assert_eq!([0, NANOSECONDS, 60 * NANOSECONDS].map(ticks), [0, 3_579_545, 214_772_700]);
        let wraps = u128::from(u32::MAX) * u128::from(NANOSECONDS) / u128::from(FREQUENCY);
        assert_eq!((ticks(wraps as u64 + 1), ticks(wraps as u64 + 300)), (u32::MAX, 0));
    }

    #[test]
    fn it_follows_the_guests_clock_also_to_another_host() {
        let mut here = timer();
        let first = read(&mut here);
        let began = std::time::Instant::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let passed = read(&mut here).wrapping_sub(first);
        let most = began.elapsed().as_micros() as u64 * FREQUENCY / 1_000_000 + FREQUENCY / 100;
        assert!((60_000..=most).contains(&u64::from(passed)), "{passed}");
        // As a takeover does it.
        let mut there = timer();
        there.vm.set_clock(&kvm_clock_data { clock: HOUR, ..Default::default() }).unwrap();
        let gone = read(&mut there).wrapping_sub(ticks(HOUR));
        assert!(u64::from(gone) < FREQUENCY, "{gone}");
    }

    #[test]
    fn writes_do_nothing_and_every_read_is_answered() {
        let mut timer = timer();
        timer.write(0, &[0xff; 4]);
        for offset in 0..4 {
            for len in [1, 2, 4] {
                timer.read(offset, &mut vec![0xff; len]);
            }
        }
        let whole = read(&mut timer);
        let mut high = [0; 1];
        timer.read(3, &mut high);
        assert!(high[0].wrapping_sub((whole >> 24) as u8) <= 1);
    }
}
