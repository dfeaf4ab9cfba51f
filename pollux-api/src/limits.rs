//! Limits of a VM and its devices: what the API refuses at once is what a device process would refuse later.

/// The most vCPUs of a VM: APIC id 255 is broadcast.
pub const VCPUS_MAX: u32 = 254;
/// The narrowest guest-physical addresses, in bits.
pub const PHYS_BITS_MIN: u8 = 32;
/// The widest guest-physical addresses, in bits.
pub const PHYS_BITS_MAX: u8 = 52;
/// The most memory of a VM, in bytes: 16 TiB. What keeps account of its pages takes a 16,384th of it.
pub const MEMORY_MAX: u64 = 16 << 40;

/// The most entries of a virtqueue.
pub const QUEUE_SIZE_MAX: u16 = 32768;
/// The fewest entries of a queue that a device process serves: a request to a disk needs three.
pub const QUEUE_SIZE_MIN: u16 = 4;
/// The most queues of a vhost-user device, so that its interrupts' pending bits fit one word.
pub const DEVICE_QUEUES_MAX: usize = 62;
/// The most queues that one disk process serves.
pub const DISK_QUEUES_MAX: u16 = 32;
/// The most pairs of queues that one process of a network card serves.
pub const NET_QUEUE_PAIRS_MAX: u16 = 16;
/// The last slot of a PCI bus; the first is the host bridge's.
pub const PCI_SLOT_MAX: u8 = 31;

/// The smallest MTU of a card: the least that IPv6 needs.
pub const MTU_MIN: u16 = 1280;
/// The largest MTU of a tap.
pub const MTU_MAX: u16 = 65521;
/// Longest name of a network interface, in bytes.
pub const INTERFACE_MAX: usize = 15;
/// Bytes of a virtio disk's serial number.
pub const DISK_SERIAL_MAX: usize = 20;

/// Whether a disk can have this serial number.
///
/// # Errors
/// What is wrong with it.
pub fn check_disk_serial(serial: &str) -> Result<(), String> {
    if serial.contains(char::is_control) {
        return Err(format!("{serial:?} has a control character: remove it"));
    }
    if serial.len() > DISK_SERIAL_MAX {
        return Err(format!("must be at most {DISK_SERIAL_MAX} bytes, not {}", serial.len()));
    }
    Ok(())
}

/// Whether the kernel takes it for the name of one interface. One with a `%` is a pattern to it, of which it
/// makes a name, and some bytes beyond ASCII are spaces to it.
///
/// # Errors
/// What is wrong with it.
pub fn check_interface(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > INTERFACE_MAX {
        return Err(format!("must be 1 to {INTERFACE_MAX} bytes, not {}", name.len()));
    }
    let wrong = |c: &char| !c.is_ascii_graphic() || "/:%".contains(*c);
    match name.chars().find(wrong) {
        Some(wrong) => Err(format!("{name:?} must not have {wrong:?}: give the name of a tap")),
        None if matches!(name, "." | "..") => Err(format!("{name:?} is not the name of a tap")),
        None => Ok(()),
    }
}

/// Whether a queue can have so many entries.
///
/// # Errors
/// What is wrong with the number.
pub fn check_queue_size(size: u16, min: u16) -> Result<(), String> {
    if size.is_power_of_two() && (min..=QUEUE_SIZE_MAX).contains(&size) {
        return Ok(());
    }
    Err(format!("must be a power of two from {min} to {QUEUE_SIZE_MAX}, not {size}"))
}

/// Whether a card can have this address.
///
/// # Errors
/// What is wrong with it.
pub fn check_mac(address: [u8; 6]) -> Result<(), String> {
    if address == [0; 6] {
        return Err("must not be zero".to_owned());
    }
    if address[0] & 1 == 1 { Err("must not be a multicast address".to_owned()) } else { Ok(()) }
}
