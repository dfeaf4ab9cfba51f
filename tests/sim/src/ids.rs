//! What everything in the world is called: the VM, and the devices of a process.

use ft_proto::VmId;

/// The VM of all runs.
pub(crate) const VM: VmId = VmId(7);
/// The devices of a process, by their places in the links of its body: the card, and then the disks.
pub(crate) const NIC: usize = 0;
pub(crate) const IDS: [&str; 4] = ["net", "disk0", "disk1", "disk2"];

/// The place of a disk among the devices.
pub(crate) fn device_of(disk: usize) -> usize {
    NIC + 1 + disk
}

/// The disk at a place, if it is none of the card.
pub(crate) fn disk_at(device: usize) -> Option<usize> {
    device.checked_sub(NIC + 1)
}
