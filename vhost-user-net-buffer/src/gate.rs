//! What the device may do now: run, stand by, or stay sealed; and which epoch output belongs to.
//!
//! Pure: commands in, answers out. Everything that touches guest memory or lets output pass asks here first.

use ft_proto::Epoch;

/// State set by the ft-ctl commands. The start state is an ordinary network card.
#[derive(Debug, Default)]
pub struct Gate {
    standby: bool,
    sealed: bool,
    hold: bool,
    epoch: Epoch,
    /// The epoch that begins with the next `Resume`.
    next_epoch: Epoch,
    held_told: bool,
    full_told: bool,
}

impl Gate {
    /// Whether guest memory (rings and buffers) may be touched.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.sealed && !self.standby
    }

    /// Whether this host does not run the VM.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.standby
    }

    /// Whether an epoch boundary is being taken.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether output is held until its epoch is committed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.hold
    }

    /// The epoch that output belongs to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Enters or leaves the standby state.
    pub fn set_standby(&mut self, standby: bool) {
        self.standby = standby;
    }

    /// `Protect`: output belongs to `epoch` from now on, held or not.
    pub fn protect(&mut self, epoch: Epoch, hold: bool) {
        self.hold = hold;
        self.next_epoch = epoch;
        self.begin(epoch);
    }

    /// `Seal`: guest memory is closed until `Resume`.
    pub fn seal(&mut self, epoch: Epoch) {
        self.sealed = true;
        self.next_epoch = epoch.next();
    }

    /// `Resume`: the epoch after the sealed one begins.
    pub fn resume(&mut self) {
        if self.sealed {
            self.sealed = false;
            self.begin(self.next_epoch);
        }
    }

    /// `Start`: this host runs the VM from here on, unprotected.
    pub fn start(&mut self) {
        self.standby = false;
        self.sealed = false;
        self.hold = false;
        self.begin(self.epoch);
    }

    /// True once an epoch: the first frame of it has just been held.
    pub fn tell_held(&mut self) -> bool {
        !std::mem::replace(&mut self.held_told, true)
    }

    /// True once an epoch: a bound has just been reached.
    pub fn tell_full(&mut self) -> bool {
        !std::mem::replace(&mut self.full_told, true)
    }

    fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.held_told = false;
        self.full_told = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seal_and_resume_count_epochs() {
        let mut gate = Gate::default();
        assert!(gate.is_open() && !gate.holds());
        gate.protect(Epoch(7), true);
        assert!(gate.tell_held() && !gate.tell_held());
        gate.seal(Epoch(7));
        assert!(!gate.is_open());
        assert_eq!(gate.epoch(), Epoch(7));
        gate.resume();
        assert!(gate.is_open() && gate.holds());
        assert_eq!(gate.epoch(), Epoch(8));
        assert!(gate.tell_held() && gate.tell_full());
        gate.resume();
        assert_eq!(gate.epoch(), Epoch(8));
        assert!(!gate.tell_full());
    }

    #[test]
    fn protect_while_sealed_names_the_next_epoch() {
        let mut gate = Gate::default();
        gate.seal(Epoch(0));
        gate.protect(Epoch(1), true);
        gate.resume();
        assert_eq!(gate.epoch(), Epoch(1));
    }

    #[test]
    fn start_ends_standby_and_holding() {
        let mut gate = Gate::default();
        gate.set_standby(true);
        assert!(!gate.is_open());
        gate.start();
        assert!(gate.is_open() && !gate.holds());
    }
}
