//! The common configuration register block of virtio-pci (virtio 1.2, 4.1.4.3): negotiation and queue set-up.
//!
//! In: guest accesses. Out: a [`Change`] where the transport has to act. Never: a queue that the driver
//! changes under a running device; writes after `DRIVER_OK` and to enabled queues are dropped.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use crate::virtio::ring::Ring;

/// Bytes of the block.
pub const SIZE: usize = 56;
/// "No vector" in a vector register.
pub const NO_VECTOR: u16 = 0xffff;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What the transport has to do after a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Nothing.
    None,
    /// The driver resets the device.
    Reset,
    /// The driver is ready: the device starts.
    DriverOk,
    /// A queue has another interrupt vector.
    QueueVector(u16),
}

/// One queue's registers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct QueueRegisters {
    max_size: u16,
    size: u16,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
    /// The driver wants it used.
    pub enabled: bool,
    descriptors: u64,
    avail: u64,
    used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, vector: NO_VECTOR, enabled: false, descriptors: 0, avail: 0, used: 0 }
    }
}

/// The block's registers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CommonConfig {
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl CommonConfig {
    /// The block of a device with queues of these largest sizes, and `vectors` interrupt vectors.
    #[must_use]
    pub fn new(queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    /// Back to power-on, but for the generation: a driver may still compare it.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self { generation: self.generation, ..Self::new(&sizes, self.vectors) };
    }

    /// Features that the driver and the device have agreed on; none before that, whatever the driver has
    /// written.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        if self.status & FEATURES_OK == 0 { 0 } else { self.driver_features }
    }

    /// Vector of configuration changes, or [`NO_VECTOR`].
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// Whether the driver is ready.
    #[must_use]
    pub fn driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// All queues' registers, by index.
    #[must_use]
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// The enabled queues as (ring, largest size); not yet checked.
    pub fn enabled_rings(&self) -> impl Iterator<Item = (Ring, u16)> + '_ {
        (0..).zip(&self.queues).filter(|(_, queue)| queue.enabled).map(|(index, queue)| {
            let &QueueRegisters { size, descriptors, avail, used, max_size, .. } = queue;
            (Ring { index, size, descriptors, avail, used }, max_size)
        })
    }

    /// The device can go on only after a reset.
    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// The device specific configuration has changed.
    pub fn bump_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether `other` is a block of a device built alike.
    #[must_use]
    pub fn is_alike(&self, other: &Self) -> bool {
        self.vectors == other.vectors
            && self.queues.len() == other.queues.len()
            && self.queues.iter().zip(&other.queues).all(|(a, b)| a.max_size == b.max_size)
    }

    /// Guest read; `features` are those offered.
    pub fn read(&self, offset: usize, data: &mut [u8], features: u64) {
        let image = self.image(features);
        if let Some(bytes) = image.get(offset..offset.saturating_add(data.len())) {
            data.copy_from_slice(bytes);
        }
    }

    /// Guest write of one register (64-bit ones also by halves); others are dropped.
    pub fn write(&mut self, offset: usize, data: &[u8], features: u64) -> Change {
        match *data {
            [value] if offset == 20 => return self.write_status(value, features),
            [a, b] => return self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 32 | 40 | 48) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Change::None
    }

    fn image(&self, features: u64) -> [u8; SIZE] {
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let none = QueueRegisters::new(0);
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&none);
        let mut image = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(features, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status, self.generation]);
        put(22, &self.queue_select.to_le_bytes());
        put(24, &queue.size.to_le_bytes());
        put(26, &queue.vector.to_le_bytes());
        put(28, &u16::from(queue.enabled).to_le_bytes());
        // Notification offset: every queue has its own.
        put(30, &self.queue_select.to_le_bytes());
        put(32, &queue.descriptors.to_le_bytes());
        put(40, &queue.avail.to_le_bytes());
        put(48, &queue.used.to_le_bytes());
        image
    }

    fn write_status(&mut self, value: u8, features: u64) -> Change {
        if value == 0 {
            return Change::Reset;
        }
        let before = self.status;
        self.status |= value & !NEEDS_RESET;
        // A driver may do without any of them, VERSION_1 included: the rings look the same to it on this
        // machine.
        let negotiated = self.driver_features & !features == 0;
        if before & FEATURES_OK == 0 && !negotiated {
            self.status &= !FEATURES_OK;
        }
        if before & DRIVER_OK != 0 || self.status & DRIVER_OK == 0 {
            return Change::None;
        }
        if self.status & FEATURES_OK == 0 {
            self.set_needs_reset();
            return Change::None;
        }
        Change::DriverOk
    }

    fn write_u16(&mut self, offset: usize, value: u16) -> Change {
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        let index = self.queue_select;
        let fixed = self.driver_ok();
        match offset {
            16 => self.config_vector = vector,
            22 => self.queue_select = value,
            24..32 => {
                let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Change::None };
                match offset {
                    24 if !fixed && !queue.enabled => queue.size = value,
                    26 => {
                        queue.vector = vector;
                        return Change::QueueVector(index);
                    }
                    28 if !fixed && value == 1 => queue.enabled = true,
                    _ => {}
                }
            }
            _ => {}
        }
        Change::None
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        fn set_half(whole: &mut u64, high: bool, value: u32) {
            *whole = if high {
                *whole & 0xffff_ffff | u64::from(value) << 32
            } else {
                *whole & !0xffff_ffff | u64::from(value)
            };
        }
        match offset {
            0 => self.device_feature_select = value,
            8 => self.driver_feature_select = value,
            12 if self.status & FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                set_half(&mut self.driver_features, self.driver_feature_select == 1, value);
            }
            32..56 if !self.driver_ok() => {
                let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
                let high = offset % 8 == 4;
                match offset {
                    _ if queue.enabled => {}
                    32 | 36 => set_half(&mut queue.descriptors, high, value),
                    40 | 44 => set_half(&mut queue.avail, high, value),
                    48 | 52 => set_half(&mut queue.used, high, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::ring::F_VERSION_1;

    const FEATURES: u64 = F_VERSION_1 | 1 << 9;

    fn block() -> CommonConfig {
        CommonConfig::new(&[128, 64], 3)
    }

    fn read(block: &CommonConfig, offset: usize, len: usize) -> u64 {
        let mut data = [0; 8];
        block.read(offset, &mut data[..len], FEATURES);
        u64::from_le_bytes(data)
    }

    fn accept_features(block: &mut CommonConfig, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            block.write(8, &select.to_le_bytes(), FEATURES);
            block.write(12, &half.to_le_bytes(), FEATURES);
        }
    }

    #[test]
    fn features_are_offered_by_halves_and_checked() {
        let mut block = block();
        assert_eq!(read(&block, 4, 4), 1 << 9);
        block.write(0, &1_u32.to_le_bytes(), FEATURES);
        assert_eq!(read(&block, 4, 4), 1);
        accept_features(&mut block, FEATURES | 1 << 5);
        block.write(20, &[1 | 2 | 8], FEATURES);
        assert_eq!(read(&block, 20, 1), 3, "a feature was taken that is not offered");
        assert_eq!(block.driver_features(), 0, "nothing is agreed on");
        accept_features(&mut block, FEATURES);
        block.write(20, &[1 | 2 | 8], FEATURES);
        assert_eq!(read(&block, 20, 1), 11);
        accept_features(&mut block, 0);
        assert_eq!(block.driver_features(), FEATURES, "fixed after FEATURES_OK");
    }

    #[test]
    fn a_driver_may_take_no_feature_at_all() {
        for features in [0, 1 << 9] {
            let mut block = block();
            accept_features(&mut block, features);
            block.write(20, &[1 | 2 | 8], FEATURES);
            assert_eq!(read(&block, 20, 1), 11);
            assert_eq!(block.write(20, &[15], FEATURES), Change::DriverOk);
        }
    }

    #[test]
    fn driver_ok_starts_once_and_only_after_features_ok() {
        let mut block = block();
        assert_eq!(block.write(20, &[7], FEATURES), Change::None);
        assert_eq!(read(&block, 20, 1), 7 | 64, "needs reset");
        assert_eq!(block.write(20, &[0], FEATURES), Change::Reset);
        block.reset();
        accept_features(&mut block, FEATURES);
        block.write(20, &[11], FEATURES);
        assert_eq!(block.write(20, &[15], FEATURES), Change::DriverOk);
        assert_eq!(block.write(20, &[15], FEATURES), Change::None);
    }

    #[test]
    fn queue_registers() {
        let mut block = block();
        assert_eq!(read(&block, 18, 2), 2);
        assert_eq!(read(&block, 24, 2), 128);
        block.write(22, &1_u16.to_le_bytes(), FEATURES);
        assert_eq!((read(&block, 24, 2), read(&block, 26, 2), read(&block, 30, 2)), (64, 0xffff, 1));
        block.write(24, &32_u16.to_le_bytes(), FEATURES);
        assert_eq!(block.write(26, &2_u16.to_le_bytes(), FEATURES), Change::QueueVector(1));
        block.write(32, &0x1_0000_1000_u64.to_le_bytes(), FEATURES);
        block.write(40, &0x2000_u32.to_le_bytes(), FEATURES);
        block.write(44, &3_u32.to_le_bytes(), FEATURES);
        block.write(48, &0x4000_u32.to_le_bytes(), FEATURES);
        block.write(28, &1_u16.to_le_bytes(), FEATURES);
        block.write(32, &0_u64.to_le_bytes(), FEATURES);
        let rings: Vec<_> = block.enabled_rings().collect();
        let ring = Ring { index: 1, size: 32, descriptors: 0x1_0000_1000, avail: 0x3_0000_2000, used: 0x4000 };
        assert_eq!(rings, [(ring, 64)]);
        assert_eq!(block.queues()[1].vector, 2);
        block.write(26, &3_u16.to_le_bytes(), FEATURES);
        assert_eq!(read(&block, 26, 2), 0xffff, "there are only three vectors");
        block.write(22, &7_u16.to_le_bytes(), FEATURES);
        assert_eq!(read(&block, 24, 2), 0, "no such queue");
        assert_eq!(block.write(28, &1_u16.to_le_bytes(), FEATURES), Change::None);
    }

    #[test]
    fn any_access_is_survived() {
        let mut block = block();
        for offset in 0..70 {
            for len in 1..=8 {
                let mut data = vec![0xff; len];
                block.read(offset, &mut data, FEATURES);
                block.write(offset, &vec![0xff; len], FEATURES);
            }
        }
        block.read(usize::MAX, &mut [0; 8], FEATURES);
        block.write(usize::MAX, &[0; 8], FEATURES);
    }

    #[test]
    fn reset_keeps_only_the_generation() {
        let mut block = block();
        accept_features(&mut block, FEATURES);
        block.bump_generation();
        block.write(24, &2_u16.to_le_bytes(), FEATURES);
        block.reset();
        assert_eq!(block, CommonConfig { generation: 1, ..super::CommonConfig::new(&[128, 64], 3) });
    }
}
