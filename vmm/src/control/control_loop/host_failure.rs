//! What becomes of a VM that this host cannot run any longer: its standby goes on with it, or it ends.
//!
//! Only what the guest does to itself, or an operator asks for, is a wanted end of a protected VM. Whatever
//! fails on this host is what the standby is there for.

use host_kit::error::chain;

use super::{Ending, Live, Vmm};
use crate::api::VmmError;
use crate::ft_api::Call;

impl Vmm {
    /// This host cannot run the VM any longer. Without a standby that is the end of it.
    pub(super) fn on_host_failure(&mut self, reason: &str) -> Option<Ending> {
        tracing::error!("this host cannot run the VM any longer: {reason}");
        if self.hand_over(reason) {
            self.publish();
            return None;
        }
        self.on_vm_end(Ending::Failed)
    }

    /// `vm.reboot`. What is left of a VM whose reset has failed is nothing that could run or be copied.
    pub(super) fn reboot_by_request(&mut self) -> Result<(), VmmError> {
        let rebooted = self.reboot();
        if let Err(VmmError::Machine(error)) = &rebooted
            && !self.hand_over(&format!("the VM cannot be reset: {}", chain(&**error)))
            && let Err(error) = self.shutdown()
        {
            tracing::error!("the VM did not shut down cleanly: {}", chain(&error));
        }
        rebooted
    }

    /// Has the standby go on with the VM, and tells whether it does. That it is stopped here follows as an
    /// event.
    pub(super) fn hand_over(&self, reason: &str) -> bool {
        let Some(ft) = self.live.as_ref().and_then(Live::unfenced_ft) else { return false };
        let handed_over = ft.call(Call::HandOver(reason.to_owned()));
        if let Err(refused) = &handed_over {
            tracing::debug!("the VM ends on this host: {refused}");
        }
        handed_over.is_ok()
    }
}
