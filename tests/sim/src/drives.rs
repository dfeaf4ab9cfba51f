//! What is known from all disks of a host together.

use ft_proto::witness::DiskState;

use crate::guest::{Blocks, disk_of};
use crate::mutation::Mutation;
use crate::process::Host;

impl Host {
    /// What is on its images, all together.
    pub(crate) fn blocks(&self) -> Blocks {
        together(self.drives.iter().map(|drive| &drive.image.blocks))
    }

    /// The same, if nothing had been mislaid.
    pub(crate) fn true_blocks(&self) -> Blocks {
        together(self.drives.iter().map(|drive| &drive.own().blocks))
    }

    /// What its disks prove, if nothing had been mislaid.
    pub(crate) fn true_disk_state(&self) -> DiskState {
        DiskState::all(self.drives.iter().map(|drive| drive.own().record.state()))
    }

    /// Whether an image was taken for a whole copy, and was none.
    pub(crate) fn is_stale(&self) -> bool {
        self.drives.iter().any(|drive| drive.image.stale)
    }

    /// What it says of its disks when it asks whether it may start the VM.
    pub(crate) fn disk_state(&self, mutation: Option<Mutation>) -> DiskState {
        let one = mutation == Some(Mutation::OneDiskProves);
        let states = self.drives.iter().map(|drive| drive.image.record.state());
        DiskState::all(states.take(if one { 1 } else { usize::MAX }))
    }
}

fn together<'a>(disks: impl Iterator<Item = &'a Blocks>) -> Blocks {
    let disks: Vec<_> = disks.collect();
    std::array::from_fn(|block| disks[disk_of(block, disks.len())][block])
}
