//! The control loop of a host that does not run the VM: it becomes a standby, in this process and as often as
//! needed.

use std::time::Instant;

use host_kit::error::chain;
use host_kit::{log_limited, warn_limited};

use super::{Live, Role, Vmm, end_or_log, warn_ignored};
use crate::api::{VmState, VmmError};
use crate::contract::Part;

impl Vmm {
    pub(super) fn stand_by(&mut self) -> Result<(), VmmError> {
        let config = self.config.clone().ok_or(VmmError::NotCreated)?;
        config.validate_standby().map_err(VmmError::Config)?;
        warn_ignored(&config);
        if config.payload.is_none() {
            tracing::warn!("this standby has no kernel: a guest that it takes over runs until it resets itself");
        }
        let live = self.assemble(config, Part::StandBy)?;
        if live.ft.is_none() {
            end_or_log(&live);
            return Err(VmmError::FtUnavailable);
        }
        self.live = Some(Live { state: VmState::Paused, role: Role::Standby, ..live });
        Ok(())
    }

    /// The VM may not run here any more: another host runs it, and can use a standby.
    pub(super) fn fenced(&mut self) {
        let ran_here = self.live.as_ref().is_some_and(|live| live.role == Role::Own);
        self.turn_into(Role::Fenced, VmState::Shutdown);
        self.parts.monitor.event("vm", "shutdown");
        // What could not be taken over is left as it is, for people to look at: it may be the last copy.
        if ran_here && self.parts.factory.can_stand_by() {
            self.rebuild_standby();
        }
    }

    /// This standby has waited in vain, and this host has been given the VM.
    pub(super) fn boot_instead(&mut self) {
        if self.live.as_ref().is_none_or(|live| live.role != Role::Standby) {
            return;
        }
        self.end_standby();
        self.live = None;
        if let Err(error) = self.boot_here() {
            tracing::error!("the VM cannot be booted here: {}", chain(&error));
            self.rebuild_standby();
        }
    }

    /// Ends what waits here. Its status stays to be seen until there is another one.
    fn end_standby(&self) {
        let Some(live) = &self.live else { return };
        let stopped = live.machine().stop();
        if let Some(ft) = &live.ft {
            ft.end();
        }
        let ended = live.machine().shutdown().and(stopped);
        if let Err(error) = ended {
            tracing::warn!("the VM did not shut down cleanly: {}", chain(&*error));
        }
    }

    /// A part of this standby is dead. One that was built anew lately is not built anew again at once: what
    /// has killed it may still be there.
    pub(super) fn standby_unusable(&mut self, reason: &str) {
        warn_limited!("this standby is rebuilt: {reason}");
        if self.rebuilds.is_lasting() {
            self.rebuild_standby();
        } else {
            self.end_standby();
            self.rebuild_later(reason);
            self.publish();
        }
    }

    /// Puts the VM together anew, with fresh device processes. What cannot be had now, such as an address or
    /// a file that is still in use, is tried again.
    pub(super) fn rebuild_standby(&mut self) {
        if self.standby_retry_at.take().is_none() {
            self.end_standby();
        }
        match self.stand_by() {
            Ok(()) => {
                self.rebuilds.built();
                self.parts.monitor.event("vm", "standby");
            }
            Err(error) => self.rebuild_later(&chain(&error)),
        }
        self.publish();
    }

    fn rebuild_later(&mut self, reason: &str) {
        log_limited!(error, "cannot be a standby, will try again: {reason}");
        self.parts.factory.standby_failed(reason);
        if !self.rebuilds.have_failed() {
            self.parts.monitor.event_with("ft", "standby-failed", &[("reason".to_owned(), reason.to_owned())].into());
        }
        self.standby_retry_at = Some(Instant::now() + self.rebuilds.failed());
    }
}
