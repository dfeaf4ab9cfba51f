//! Limits of a VM that several parts of the product keep to.

/// The most vCPUs of a VM: APIC id 255 is broadcast.
pub const VCPUS_MAX: u32 = 254;
/// The most memory of a VM, in bytes: 16 TiB. What keeps account of its pages takes a 16,384th of it.
pub const MEMORY_MAX: u64 = 16 << 40;
/// The most entries of a virtqueue.
pub const QUEUE_SIZE_MAX: u16 = 32768;
/// The most queues of a device, so that its MSI-X table stays within its BAR.
pub const QUEUES_MAX: usize = 1023;
/// The most queues of a device with a process, so that its interrupts' pending bits fit one word.
pub const PROCESS_QUEUES_MAX: usize = 62;
/// The last slot of a PCI bus; the first is the host bridge's.
pub const PCI_SLOT_MAX: u8 = 31;
