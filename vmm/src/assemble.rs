//! Builds real VMs for the control loop.

use crossbeam_channel::Sender;

use crate::config::VmConfig;
use crate::ft_api::FtOptions;
use crate::machine::{Assembler, BoxError, Built, VmEvent};

/// Builds VMs on KVM.
#[derive(Debug, Default)]
pub struct KvmAssembler;

impl Assembler for KvmAssembler {
    fn assemble(
        &mut self,
        _config: VmConfig,
        _standby: Option<&FtOptions>,
        _events: Sender<VmEvent>,
    ) -> Result<Built, BoxError> {
        Err("this build cannot run VMs: the machine is not part of it yet".into())
    }
}
