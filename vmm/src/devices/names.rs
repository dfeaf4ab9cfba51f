//! Ids, addresses and slots of the devices that the configuration leaves open.

use std::collections::HashSet;

use crate::config::VmConfig;
use crate::pci::bus::{SLOTS, SlotError};

/// Gives every disk and card without an id the next one of a single counter: `_disk0`, `_disk1`, `_net2`.
pub(super) fn fill_in_ids(config: &mut VmConfig) {
    let mut taken: HashSet<String> = HashSet::new();
    taken.extend(config.disks.iter().flatten().filter_map(|disk| disk.id.clone()));
    taken.extend(config.net.iter().flatten().filter_map(|net| net.id.clone()));
    let mut counter = 0_u32;
    let mut next = |prefix: &str| {
        loop {
            let id = format!("{prefix}{counter}");
            counter += 1;
            if taken.insert(id.clone()) {
                return id;
            }
        }
    };
    for disk in config.disks.iter_mut().flatten() {
        disk.id.get_or_insert_with(|| next("_disk"));
    }
    for net in config.net.iter_mut().flatten() {
        net.id.get_or_insert_with(|| next("_net"));
    }
}

/// Slots that are still free.
pub(super) struct Slots {
    taken: [bool; SLOTS],
}

impl Slots {
    /// All free but those in `wished`, which are for devices that name theirs.
    pub(super) fn new(wished: impl Iterator<Item = u8>) -> Result<Self, SlotError> {
        let mut taken = [false; SLOTS];
        taken[0] = true;
        for slot in wished.map(usize::from) {
            match taken.get_mut(slot) {
                Some(_) if slot == 0 => return Err(SlotError::Range(slot)),
                Some(taken) if *taken => return Err(SlotError::Taken(slot)),
                Some(taken) => *taken = true,
                None => return Err(SlotError::Range(slot)),
            }
        }
        Ok(Self { taken })
    }

    /// The wished slot, or the lowest free one.
    pub(super) fn take(&mut self, wished: Option<u8>) -> Result<usize, SlotError> {
        if let Some(slot) = wished {
            return Ok(slot.into());
        }
        let slot = self.taken.iter().position(|taken| !taken).ok_or(SlotError::Full)?;
        self.taken[slot] = true;
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, NetConfig};

    #[test]
    fn one_counter_for_all_that_have_no_name() {
        let disk = |id: Option<&str>| DiskConfig { id: id.map(str::to_owned), ..Default::default() };
        let mut config = VmConfig {
            disks: Some(vec![disk(None), disk(Some("root")), disk(Some("_disk1")), disk(None)]),
            net: Some(vec![NetConfig::default()]),
            ..Default::default()
        };
        fill_in_ids(&mut config);
        let ids: Vec<_> = config.disks.iter().flatten().filter_map(|disk| disk.id.as_deref()).collect();
        assert_eq!(ids, ["_disk0", "root", "_disk1", "_disk2"]);
        assert_eq!(config.net.unwrap()[0].id.as_deref(), Some("_net3"));
    }

    #[test]
    fn slots_go_round_the_wished_ones() {
        let mut slots = Slots::new([2].into_iter()).unwrap();
        assert_eq!(slots.take(None).unwrap(), 1);
        assert_eq!(slots.take(Some(2)).unwrap(), 2);
        assert_eq!(slots.take(None).unwrap(), 3);
        assert!(matches!(Slots::new([4, 4].into_iter()), Err(SlotError::Taken(4))));
        assert!(matches!(Slots::new([0].into_iter()), Err(SlotError::Range(0))));
        assert!(matches!(Slots::new([32].into_iter()), Err(SlotError::Range(32))));
        let mut full = Slots::new(1..32).unwrap();
        assert!(matches!(full.take(None), Err(SlotError::Full)));
    }
}
