//! The guest's clock across hosts.
//!
//! In: a VM whose vCPUs are parked. Out: kvmclock in the checkpoint, and set on the host that takes over, so that guest time goes
//! on where it stopped. Never: a clock set while a VM merely pauses; time passes for it then, as it does for everybody.
//!
//! The time stamp counter is part of the vCPUs' MSRs: `CpuManager::load` gives all of them the value furthest on and KVM the
//! offset that makes it so on this host. The clock comes after it, because KVM ties kvmclock to the TSC when it is set.

use std::sync::Arc;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

use crate::state::{Saved, StateError, StateReader, StateWriter};

const ID: &str = "clock";
const VERSION: u16 = 1;

/// The VM's kvmclock.
pub struct Clock {
    vm: Arc<VmFd>,
}

impl Clock {
    /// That of `vm`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    /// Nanoseconds of kvmclock now.
    ///
    /// # Errors
    /// When KVM does not tell.
    pub fn now(&self) -> Result<u64, kvm_ioctls::Error> {
        self.vm.get_clock().map(|data| data.clock)
    }
}

impl Saved for Clock {
    fn state_id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        let now = self.now().map_err(|e| part_error("KVM_GET_CLOCK", e))?;
        out.section(ID, VERSION, &now)
    }

    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let clock = from.take(ID, VERSION)?;
        // No flags: not real time (the guest is to go on where it was), and not tied to a TSC value of another host.
        let data = kvm_clock_data { clock, ..Default::default() };
        self.vm.set_clock(&data).map_err(|e| part_error("KVM_SET_CLOCK", e))
    }
}

fn part_error(what: &str, error: kvm_ioctls::Error) -> StateError {
    StateError::Part { id: ID.to_owned(), what: what.to_owned(), source: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on_from_where_it_was_saved() {
        let kvm = crate::kvm::open().unwrap();
        let mut old = Clock::new(Arc::new(kvm.create_vm().unwrap()));
        // A clock that is an hour ahead of a fresh VM's.
        let hour = 3_600_000_000_000_u64;
        old.vm.set_clock(&kvm_clock_data { clock: hour, ..Default::default() }).unwrap();
        let mut bytes = Vec::new();
        old.save(&mut StateWriter::new(&mut bytes)).unwrap();

        let mut new = Clock::new(Arc::new(kvm.create_vm().unwrap()));
        assert!(new.now().unwrap() < hour);
        new.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
        let now = new.now().unwrap();
        assert!((hour..hour + 1_000_000_000).contains(&now), "{now}");
        old.load(&mut StateReader::new(&bytes).unwrap()).unwrap();
    }
}
