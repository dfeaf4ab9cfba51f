//! What a device may do now: run, stand by, or stay sealed; and which epoch belongs to what it starts.
//!
//! Pure: commands in, answers out. Everything that touches guest memory or lets output pass asks here first.

use ft_proto::Epoch;

/// State set by the ft-ctl commands. The start state is an ordinary device.
#[derive(Debug, Default)]
pub struct Gate {
    standby: bool,
    /// The epoch that `Seal` has closed, until `Resume`.
    sealed: Option<Epoch>,
    epoch: Epoch,
    full_told: bool,
}

impl Gate {
    /// A gate of a host that does not run the VM, or does.
    #[must_use]
    pub fn new(standby: bool) -> Self {
        Self { standby, ..Self::default() }
    }

    /// Whether guest memory (rings and buffers) may be touched.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.is_sealed() && !self.standby
    }

    /// Whether this host does not run the VM.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.standby
    }

    /// Whether an epoch boundary is being taken.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// The epoch that what starts now belongs to. While sealed that is the next one already.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether `epoch` is over, so that nothing can be added to it.
    #[must_use]
    pub fn has_passed(&self, epoch: Epoch) -> bool {
        epoch < self.sealed.unwrap_or(self.epoch)
    }

    /// Enters or leaves the standby state.
    pub fn set_standby(&mut self, standby: bool) {
        self.standby = standby;
    }

    /// `Protect`: what starts from now on belongs to `epoch`.
    pub fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.full_told = false;
    }

    /// `Seal`: guest memory is closed until `Resume`.
    pub fn seal(&mut self, epoch: Epoch) {
        self.sealed = Some(epoch);
        self.begin(epoch.next());
    }

    /// `Resume`: the epoch after the sealed one begins. False: nothing was sealed.
    pub fn resume(&mut self) -> bool {
        self.sealed.take().is_some()
    }

    /// `Start`: this host runs the VM from here on, unprotected.
    pub fn start(&mut self) {
        *self = Self { epoch: self.epoch, ..Self::default() };
    }

    /// True once an epoch: a bound has just been reached.
    pub fn tell_full(&mut self) -> bool {
        !std::mem::replace(&mut self.full_told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seal_and_resume_count_epochs() {
        let mut gate = Gate::default();
        assert!(gate.is_open());
        gate.begin(Epoch(7));
        assert_eq!(gate.epoch(), Epoch(7));
        assert!(gate.tell_full() && !gate.tell_full());
        gate.seal(Epoch(7));
        assert!(!gate.is_open() && gate.is_sealed());
        assert_eq!(gate.epoch(), Epoch(8), "what starts while sealed belongs to the next epoch");
        assert!(gate.resume() && gate.is_open());
        assert_eq!(gate.epoch(), Epoch(8));
        assert!(gate.tell_full());
        assert!(!gate.resume());
        assert_eq!(gate.epoch(), Epoch(8));
        assert!(!gate.tell_full());
    }

    #[test]
    fn protect_while_sealed_names_the_next_epoch() {
        let mut gate = Gate::default();
        gate.seal(Epoch(0));
        gate.begin(Epoch(1));
        assert!(gate.resume());
        assert_eq!(gate.epoch(), Epoch(1));
    }

    #[test]
    fn a_new_session_may_be_full_in_an_epoch_of_the_same_number() {
        let mut gate = Gate::default();
        gate.begin(Epoch(1));
        assert!(gate.tell_full());
        gate.begin(Epoch(1));
        assert!(gate.tell_full());
    }

    #[test]
    fn what_is_sealed_can_be_sealed_again_and_nothing_before_it() {
        let mut gate = Gate::default();
        gate.begin(Epoch(5));
        assert!(gate.has_passed(Epoch(4)) && !gate.has_passed(Epoch(5)));
        gate.seal(Epoch(5));
        assert!(gate.has_passed(Epoch(4)) && !gate.has_passed(Epoch(5)));
        assert!(gate.resume() && gate.has_passed(Epoch(5)));
    }

    #[test]
    fn start_ends_standby_and_seal() {
        let mut gate = Gate::new(true);
        gate.seal(Epoch(3));
        assert!(!gate.is_open());
        gate.start();
        assert!(gate.is_open() && !gate.is_standby());
    }
}
