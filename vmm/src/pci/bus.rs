//! PCI bus 0 of segment 0: which function sits in which slot, and the two ways to its configuration space.
//!
//! In: ECAM accesses, and the address and data ports 0xcf8-0xcff. Out: calls of the functions. The host
//! bridge is slot 0.

use std::sync::{Arc, Mutex, MutexGuard};

use host_kit::sync::lock;

use crate::machine::bus::BusDevice;
use crate::machine::state::{Saved, StateError, StateReader, StateWriter};
use crate::pci::config_space::{ConfigSpace, Identity, SavedConfig};

/// Slots of a bus.
pub const SLOTS: usize = 32;
/// First of the eight configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// How many there are.
pub const CONFIG_PORTS_LEN: u64 = 8;
/// Configuration address: accesses to the data port go to PCI.
const ADDRESS_ENABLE: u32 = 1 << 31;

const STATE_ID: &str = "_pci";
const STATE_VERSION: u16 = 1;

/// A function with a configuration space.
pub trait PciFunction: Send {
    /// Reads configuration space; `data` comes filled with ones.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);
    /// Writes configuration space. True: a place in the address space has become free.
    fn config_write(&mut self, offset: usize, data: &[u8]) -> bool;
    /// Another function has left its place; this one may have been waiting for it.
    fn place_freed(&mut self);
}

/// The slot is not free or does not exist.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The slot holds another function.
    #[error("PCI slot {0} is in use")]
    Taken(usize),
    /// There is no such slot for devices.
    #[error("PCI slot {0} does not exist: devices go into 1 to 31")]
    Range(usize),
    /// All slots hold a function.
    #[error("all 31 PCI slots are in use")]
    Full,
}

/// The bus with its functions.
pub struct PciBus {
    bridge: ConfigSpace,
    functions: [Option<Arc<Mutex<dyn PciFunction>>>; SLOTS],
    /// What was last written to port 0xcf8.
    address: u32,
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// A bus with nothing but the host bridge.
    #[must_use]
    pub fn new() -> Self {
        let bridge = ConfigSpace::new(&Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        Self { bridge, functions: Default::default(), address: 0 }
    }

    /// Puts `function` into `slot`.
    ///
    /// # Errors
    /// When the slot is taken or does not exist.
    pub fn insert(&mut self, slot: usize, function: Arc<Mutex<dyn PciFunction>>) -> Result<(), SlotError> {
        match self.functions.get_mut(slot) {
            Some(place) if slot > 0 => match place {
                Some(_) => Err(SlotError::Taken(slot)),
                None => {
                    *place = Some(function);
                    Ok(())
                }
            },
            _ => Err(SlotError::Range(slot)),
        }
    }

    /// Back to power-on: the bridge and the address port. Functions are reset by their owner.
    pub fn reset(&mut self) {
        self.bridge.reset();
        self.address = 0;
    }

    /// What answers at `slot`, which is not the bridge.
    fn function(&self, slot: usize) -> Option<MutexGuard<'_, dyn PciFunction + 'static>> {
        let function = self.functions.get(slot)?.as_ref()?;
        Some(lock(function))
    }

    /// Reads register `offset` of function 0 in `slot`; stays all ones where nothing is.
    fn read(&self, place: Place, data: &mut [u8]) {
        match place {
            Place { bus: 0, slot: 0, function: 0, offset } => self.bridge.read(offset, data),
            Place { bus: 0, slot, function: 0, offset } => {
                if let Some(mut function) = self.function(slot) {
                    function.config_read(offset, data);
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, place: Place, data: &[u8]) {
        match place {
            Place { bus: 0, slot: 0, function: 0, offset } => self.bridge.write(offset, data),
            Place { bus: 0, slot, function: 0, offset } => {
                let freed = self.function(slot).is_some_and(|mut function| function.config_write(offset, data));
                if freed {
                    let others = (0..SLOTS).filter(|other| *other != slot);
                    others.filter_map(|other| self.function(other)).for_each(|mut other| other.place_freed());
                }
            }
            _ => {}
        }
    }
}

/// Bus, slot, function and register of an access.
#[derive(Clone, Copy)]
struct Place {
    bus: usize,
    slot: usize,
    function: usize,
    offset: usize,
}

impl Place {
    fn from_ecam(offset: u64) -> Self {
        let bits = |shift: u32, mask: u64| (offset >> shift & mask) as usize;
        Self { bus: bits(20, 0xff), slot: bits(15, 31), function: bits(12, 7), offset: bits(0, 0xfff) }
    }

    fn from_ports(address: u32, port: u64) -> Option<Self> {
        let bits = |shift: u32, mask: u32| (address >> shift & mask) as usize;
        let offset = bits(0, 0xfc) + (port - 4) as usize;
        let place = Self { bus: bits(16, 0xff), slot: bits(11, 31), function: bits(8, 7), offset };
        (address & ADDRESS_ENABLE != 0).then_some(place)
    }
}

impl Saved for PciBus {
    fn state_id(&self) -> &str {
        STATE_ID
    }

    fn save(&self, out: &mut StateWriter<'_>) -> Result<(), StateError> {
        out.section(STATE_ID, STATE_VERSION, &(self.address, self.bridge.save()))
    }

    fn load(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let (address, bridge): (u32, SavedConfig<'_>) = from.take(STATE_ID, STATE_VERSION)?;
        self.bridge.load(&bridge).map_err(|e| StateError::Part {
            id: STATE_ID.to_owned(),
            what: e.to_string(),
            source: None,
        })?;
        self.address = address;
        Ok(())
    }
}

/// ECAM: configuration space as memory.
pub struct Ecam(pub Arc<Mutex<PciBus>>);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.0).read(Place::from_ecam(offset), data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.0).write(Place::from_ecam(offset), data);
    }
}

/// The address port 0xcf8 and the data ports 0xcfc-0xcff.
pub struct ConfigPorts(pub Arc<Mutex<PciBus>>);

impl BusDevice for ConfigPorts {
    fn read(&mut self, port: u64, data: &mut [u8]) {
        let bus = lock(&self.0);
        if port >= 4 {
            if let Some(place) = Place::from_ports(bus.address, port) {
                bus.read(place, data);
            }
        } else if port == 0 && data.len() == 4 {
            data.copy_from_slice(&bus.address.to_le_bytes());
        }
    }

    fn write(&mut self, port: u64, data: &[u8]) {
        let mut bus = lock(&self.0);
        if port >= 4 {
            if let Some(place) = Place::from_ports(bus.address, port) {
                bus.write(place, data);
            }
        } else if let (0, &[a, b, c, d]) = (port, data) {
            bus.address = u32::from_le_bytes([a, b, c, d]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe(Vec<(usize, Vec<u8>)>);

    impl PciFunction for Probe {
        fn config_read(&mut self, offset: usize, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn config_write(&mut self, offset: usize, data: &[u8]) -> bool {
            self.0.push((offset, data.to_vec()));
            false
        }
        fn place_freed(&mut self) {}
    }

    fn bus() -> (Arc<Mutex<PciBus>>, Arc<Mutex<Probe>>) {
        let (bus, probe) = (Arc::new(Mutex::new(PciBus::new())), Arc::new(Mutex::new(Probe(Vec::new()))));
        bus.lock().unwrap().insert(3, probe.clone()).unwrap();
        (bus, probe)
    }

    fn read4(device: &mut dyn BusDevice, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn host_bridge_and_empty_slots_through_both_ways() {
        let (bus, _) = bus();
        let (mut ecam, mut ports) = (Ecam(bus.clone()), ConfigPorts(bus));
        assert_eq!(read4(&mut ecam, 0), 0x0d57_8086);
        assert_eq!(read4(&mut ecam, 8), 0x0600_0000);
        assert_eq!(read4(&mut ecam, 1 << 15), u32::MAX, "empty slot");
        assert_eq!(read4(&mut ecam, 1 << 12), u32::MAX, "function 1");
        assert_eq!(read4(&mut ecam, 1 << 20), u32::MAX, "bus 1");
        assert_eq!(read4(&mut ports, 4), u32::MAX, "not enabled");
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read4(&mut ports, 0), 0x8000_0000);
        assert_eq!(read4(&mut ports, 4), 0x0d57_8086);
        let mut half = [0xff; 2];
        ports.read(6, &mut half);
        assert_eq!(u16::from_le_bytes(half), 0x0d57);
    }

    #[test]
    fn accesses_reach_the_function() {
        let (bus, probe) = bus();
        let (mut ecam, mut ports) = (Ecam(bus.clone()), ConfigPorts(bus));
        assert_eq!(read4(&mut ecam, 3 << 15 | 0x44), 0x4444_4444);
        ecam.write(3 << 15 | 0x10, &[1, 2]);
        ports.write(0, &(0x8000_0000_u32 | 3 << 11 | 0x20).to_le_bytes());
        ports.write(5, &[9]);
        assert_eq!(probe.lock().unwrap().0, [(0x10, vec![1, 2]), (0x21, vec![9])]);
    }

    #[test]
    fn slots_are_checked() {
        let (bus, probe) = bus();
        let mut bus = bus.lock().unwrap();
        assert!(matches!(bus.insert(3, probe.clone()), Err(SlotError::Taken(3))));
        assert!(matches!(bus.insert(0, probe.clone()), Err(SlotError::Range(0))));
        assert!(matches!(bus.insert(32, probe), Err(SlotError::Range(32))));
    }

    #[test]
    fn state_comes_back() {
        let (a, _) = bus();
        ConfigPorts(a.clone()).write(0, &0x8000_1234_u32.to_le_bytes());
        let mut bytes = Vec::new();
        a.lock().unwrap().save(&mut StateWriter::new(&mut bytes)).unwrap();
        let mut b = PciBus::new();
        let mut reader = StateReader::new(&bytes).unwrap();
        b.load(&mut reader).unwrap();
        reader.finish().unwrap();
        assert_eq!(b.address, 0x8000_1234);
    }
}
