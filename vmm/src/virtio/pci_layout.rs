//! Where things are in BAR 0 and in the configuration space of a virtio device.
//!
//! Layout of BAR 0 (512 KiB), as in Cloud Hypervisor: common registers 0, interrupt status 0x2000, device
//! configuration 0x4000, doorbells 0x6000 (4 bytes each), MSI-X table 0x8000, pending bits 0x48000.

use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};

use crate::pci::config_space::{ConfigSpace, ConfigSpaceError, Identity};
use crate::virtio::common_config;

/// Bytes of BAR 0.
pub const BAR_SIZE: u64 = 512 << 10;
pub(super) const ISR: u64 = 0x2000;
pub(super) const DEVICE_CONFIG: u64 = 0x4000;
pub(super) const NOTIFY: u64 = 0x6000;
pub(super) const MSIX_TABLE: u64 = 0x8000;
pub(super) const PENDING_BITS: u64 = 0x4_8000;
/// Bytes of each window but the table.
pub(super) const WINDOW: u64 = 0x1000;
/// Bytes from one queue's doorbell to the next.
pub(super) const NOTIFY_STRIDE: u64 = 4;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Class code: what firmware and `lspci` sort by.
fn class_of(device_type: u32) -> u32 {
    match device_type {
        VIRTIO_ID_NET => 0x02_0000,
        VIRTIO_ID_BLOCK => 0x01_8000,
        _ => 0xff_0000,
    }
}

/// Configuration space with all capabilities.
pub(super) struct Configuration {
    space: ConfigSpace,
    /// Offset of the MSI-X capability.
    msix_at: usize,
    /// Offset of the capability that gives access to the BAR through configuration space.
    window_at: usize,
}

impl Configuration {
    /// Of a virtio device whose BAR is at `base`, with so many interrupt vectors.
    pub(super) fn new(device_type: u32, base: u64, vectors: u16) -> Result<Self, ConfigSpaceError> {
        let (space, msix_at, window_at) = capabilities(device_type, base, vectors)?;
        Ok(Self { space, msix_at, window_at })
    }

    /// The bytes.
    pub(super) fn space(&self) -> &ConfigSpace {
        &self.space
    }

    /// As [`Configuration::space`].
    pub(super) fn space_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }

    /// Where the guest has put the BAR; it answers there if decoding is on.
    pub(super) fn bar(&self) -> u64 {
        self.space.bar64(0)
    }

    /// The MSI-X control register.
    pub(super) fn msix_control(&self) -> u16 {
        self.space.u16_at(self.msix_at + 2)
    }

    /// Offset of the data through which the BAR is accessed.
    pub(super) fn window_data_at(&self) -> usize {
        self.window_at + 16
    }

    /// Offset and length of the BAR access that the PCI configuration access capability asks for.
    pub(super) fn window(&self) -> Option<(u64, usize)> {
        let offset = u64::from(self.space.u32_at(self.window_at + 8));
        let len = self.space.u32_at(self.window_at + 12) as usize;
        let bar = self.space.u16_at(self.window_at + 4) & 0xff;
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64) && offset + len as u64 <= BAR_SIZE;
        (bar == 0 && fits).then_some((offset, len))
    }
}

/// Configuration space, and where the MSI-X and the PCI access capability are in it.
fn capabilities(device_type: u32, base: u64, vectors: u16) -> Result<(ConfigSpace, usize, usize), ConfigSpaceError> {
    let mut config = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type as u16,
        revision: 1,
        class: class_of(device_type),
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + device_type as u16,
    });
    config.add_bar64(0, base, BAR_SIZE);
    let window = WINDOW as u32;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_COMMON, 0, common_config::SIZE as u32)[..14], &[])?;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_ISR, ISR as u32, 1)[..14], &[])?;
    config.add_capability(CAP_VENDOR, &virtio_cap(16, CFG_DEVICE, DEVICE_CONFIG as u32, window)[..14], &[])?;
    let mut notify = virtio_cap(20, CFG_NOTIFY, NOTIFY as u32, window);
    notify[14..].copy_from_slice(&(NOTIFY_STRIDE as u32).to_le_bytes());
    config.add_capability(CAP_VENDOR, &notify, &[])?;
    // The guest chooses BAR, offset and length, and reads and writes the data.
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let window_at = config.add_capability(CAP_VENDOR, &virtio_cap(20, CFG_PCI, 0, 0), &writable)?;
    let mut msix = [0; 10];
    msix[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    msix[2..6].copy_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
    msix[6..].copy_from_slice(&(PENDING_BITS as u32).to_le_bytes());
    let msix_at = config.add_capability(CAP_MSIX, &msix, &[0, 0xc0])?;
    Ok((config, msix_at, window_at))
}

/// Body of a virtio capability on BAR 0, after id and next pointer.
fn virtio_cap(len: u8, kind: u8, offset: u32, length: u32) -> [u8; 18] {
    let mut body = [0; 18];
    body[..2].copy_from_slice(&[len, kind]);
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..14].copy_from_slice(&length.to_le_bytes());
    body
}
