//! The guest's clocks across hosts: kvmclock, and the time stamp counter that must keep in step with it.
//!
//! In: a VM whose vCPUs are parked. Out: both clocks at one instant in the checkpoint, and set on the host
//! that takes over, so that guest time goes on where it stopped. Never: a clock set while a VM merely pauses;
//! time passes for it then, as it does for everybody.
//!
//! The vCPUs' own state has a time stamp counter as well, read some microseconds before the clock;
//! `CpuManager::load` gives all vCPUs the one furthest on. A guest compares its clocks, and distrusts the
//! counter when one has moved against the other, so both are read together here and the counter's offset is
//! set to what fits the clock.

use std::sync::Arc;

use kvm_bindings::{KVM_CLOCK_HOST_TSC, kvm_clock_data};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::machine::cpu::CpuManager;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};

const ID: &str = "clock";
const VERSION: u16 = 1;
/// A reading of clock and counter is not one instant when this many ticks passed in between: the thread was
/// interrupted.
const SAMPLE_TICKS_MAX: u64 = 20_000;
const SAMPLE_TRIES: usize = 5;

/// Both clocks of the guest at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTime {
    /// kvmclock, in nanoseconds.
    pub clock: u64,
    /// Time stamp counter, in ticks; `None` when this host does not tell how far it is from its own.
    pub tsc: Option<u64>,
}

/// The VM's clocks.
pub struct Clock {
    vm: Arc<VmFd>,
    cpus: Arc<CpuManager>,
}

impl Clock {
    /// Those of `vm`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, cpus: Arc<CpuManager>) -> Self {
        Self { vm, cpus }
    }

    /// Both clocks now, with the counter's offset as of the last capture.
    ///
    /// # Errors
    /// When KVM does not tell.
    pub fn now(&self) -> Result<GuestTime, kvm_ioctls::Error> {
        let (clock, host_tsc) = self.sample()?;
        let offset = if self.cpus.is_tsc_scaled() { None } else { self.cpus.captured_tsc_offset() };
        Ok(GuestTime { clock, tsc: offset.map(|offset| host_tsc.wrapping_add(offset)) })
    }

    /// kvmclock and the host's counter at one instant: as KVM has read them together, or else as close as we
    /// can.
    fn sample(&self) -> Result<(u64, u64), kvm_ioctls::Error> {
        let mut best = (u64::MAX, (0, 0));
        for _ in 0..SAMPLE_TRIES {
            let before = host_tsc();
            let data = self.vm.get_clock()?;
            if data.flags & KVM_CLOCK_HOST_TSC != 0 {
                return Ok((data.clock, data.host_tsc));
            }
            let took = host_tsc().wrapping_sub(before);
            if took < best.0 {
                best = (took, (data.clock, before.wrapping_add(took / 2)));
            }
            if took <= SAMPLE_TICKS_MAX {
                break;
            }
        }
        Ok(best.1)
    }

    fn restore(&self, saved: GuestTime) -> Result<(), StateError> {
        // No flags: not real time (the guest is to go on where it was), and not tied to a TSC value of
        // another host.
        let data = kvm_clock_data { clock: saved.clock, ..Default::default() };
        self.vm.set_clock(&data).map_err(|e| part_error("KVM_SET_CLOCK", e))?;
        let Some(saved_tsc) = saved.tsc.filter(|_| self.cpus.features().tsc_offset && !self.cpus.is_tsc_scaled())
        else {
            return Ok(());
        };
        let (clock, host_tsc) = self.sample().map_err(|e| part_error("KVM_GET_CLOCK", e))?;
        let since = u128::from(clock.saturating_sub(saved.clock));
        let ticks = (since * u128::from(self.cpus.features().tsc_khz) / 1_000_000) as u64;
        let offset = saved_tsc.wrapping_add(ticks).wrapping_sub(host_tsc);
        let set = self.cpus.set_tsc_offset(offset);
        set.map_err(|e| StateError::Part { id: ID.to_owned(), what: host_kit::error::chain(&e), source: None })
    }
}

/// The host's time stamp counter.
fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Saved for Clock {
    fn state_id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        let now = self.now().map_err(|e| part_error("KVM_GET_CLOCK", e))?;
        out.section(ID, VERSION, &now)
    }

    /// Load the vCPUs first.
    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.restore(from.take(ID, VERSION)?)
    }
}

fn part_error(what: &str, error: kvm_ioctls::Error) -> StateError {
    StateError::Part { id: ID.to_owned(), what: what.to_owned(), source: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::bus::Bus;
    use crate::machine::cpu::{Capture, CpuOptions, CpuPorts};
    use crate::machine::irq::IrqManager;

    const HOUR: u64 = 3_600_000_000_000;

    fn clock() -> Clock {
        let kvm = crate::machine::kvm::open().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        IrqManager::new(vm.clone()).unwrap();
        let options = CpuOptions { count: 2, max_phys_bits: 46, amx: false, nested: false, affinity: Vec::new() };
        let bus = || Arc::new(Bus::new());
        let ports = CpuPorts { pio: bus(), mmio: bus(), on_event: Arc::new(|_| ()) };
        let cpus = CpuManager::new(&kvm, &vm, &options, &ports).unwrap();
        Clock::new(vm, Arc::new(cpus))
    }

    /// Clocks as of a fresh capture.
    fn captured(clock: &Clock) -> GuestTime {
        clock.cpus.pause(Capture::Yes).unwrap();
        clock.cpus.resume();
        clock.now().unwrap()
    }

    #[test]
    fn guest_time_goes_on_from_where_it_was_saved() {
        let mut clock = clock();
        assert!(captured(&clock).clock < HOUR);
        let mut bytes = Vec::new();
        StateWriter::new(&mut bytes).section(ID, VERSION, &GuestTime { clock: HOUR, tsc: None }).unwrap();
        clock.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
        let now = captured(&clock).clock;
        assert!((HOUR..HOUR + 1_000_000_000).contains(&now), "{now}");
    }

    #[test]
    fn the_counter_keeps_in_step_with_the_clock() {
        let clock = clock();
        let khz = u128::from(clock.cpus.features().tsc_khz);
        // Hosts without hardware virtualisation (see kvm::has_tsc_offset) show the guest their own counter.
        let Some(tsc) = captured(&clock).tsc else { return };
        // Another host's counter: far from ours, at the same speed.
        let saved = GuestTime { clock: HOUR, tsc: Some(tsc + (1 << 45)) };
        clock.restore(saved).unwrap();
        let now = captured(&clock);
        let ticks = u128::from(now.tsc.unwrap() - saved.tsc.unwrap());
        let expected = u128::from(now.clock - saved.clock) * khz / 1_000_000;
        // 50 µs, the guest's own limit being some hundred.
        assert!(ticks.abs_diff(expected) < khz / 20, "{ticks} ticks, {expected} expected");
    }
}
