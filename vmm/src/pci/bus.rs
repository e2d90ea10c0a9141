//! The slots of bus 0, and the two ways to configuration space: ECAM (PCI Express Base 5.0, section 7.2.2) and ports
//! 0xCF8/0xCFC (PCI Local Bus 3.0, section 3.2.2.3.2, "configuration mechanism #1").

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::{Function, Slot, register};
use crate::machine::bus::BusDevice;
use crate::machine::layout::PCI_DEVICES;

/// Bit 31 of the address port: accesses to the data port go to configuration space.
const ENABLE: u32 = 1 << 31;
const DATA_PORT: u64 = 4;

/// The functions of bus 0, each put there once.
#[derive(Default)]
pub struct PciBus {
    functions: [OnceLock<Arc<dyn Function>>; PCI_DEVICES as usize],
}

impl PciBus {
    /// Puts a function into a slot; false: the slot is taken or does not exist.
    #[must_use]
    pub fn insert(&self, slot: Slot, function: Arc<dyn Function>) -> bool {
        self.functions.get(usize::from(slot.0)).is_some_and(|place| place.set(function).is_ok())
    }

    /// `bdf` is bus, device and function as in bits 8 to 23 of the address port. An access that is not 1, 2 or 4 bytes
    /// within one double word reaches no function: both mechanisms split what is larger.
    fn read(&self, bdf: u16, offset: u16, data: &mut [u8]) {
        match self.function(bdf) {
            Some(function) if within_double_word(offset, data.len()) => function.config_read(offset, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, bdf: u16, offset: u16, data: &[u8]) {
        if let Some(function) = self.function(bdf).filter(|_| within_double_word(offset, data.len())) {
            function.config_write(offset, data);
        }
    }

    fn function(&self, bdf: u16) -> Option<&dyn Function> {
        // Bus 0, function 0 only.
        let slot = (bdf >> 3) & 0x1f;
        (bdf & !(0x1f << 3) == 0).then(|| self.functions[usize::from(slot)].get()).flatten().map(Arc::as_ref)
    }
}

fn within_double_word(offset: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(offset % 4) + length <= 4
}

/// ECAM: 4 KiB of memory for each function.
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    fn split(offset: u64) -> (u16, u16) {
        let bdf = u16::try_from(offset >> 12).unwrap_or(u16::MAX);
        (bdf, (offset & 0xfff) as u16)
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (bdf, register) = Self::split(offset);
        self.0.read(bdf, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bdf, register) = Self::split(offset);
        self.0.write(bdf, register, data);
    }
}

/// Ports 0xCF8 to 0xCFF: an address, then the data. It reaches the first 256 bytes of configuration space.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// Ports in front of `bus`.
    #[must_use]
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus, address: AtomicU32::new(0) }
    }

    /// The function and register that an access to the data port reaches now.
    fn target(&self, port: u64) -> Option<(u16, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let lane = u16::try_from(port.checked_sub(DATA_PORT)?).ok()?;
        let register = (address & 0xfc) as u16 | lane;
        let bdf = ((address >> 8) & 0xffff) as u16;
        (address & ENABLE != 0 && register < register::EXTENDED).then_some((bdf, register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, port: u64, data: &mut [u8]) {
        match (port, data.len(), self.target(port)) {
            (0, 4, _) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (_, _, Some((bdf, register))) => self.bus.read(bdf, register, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, port: u64, data: &[u8]) {
        if let (0, Ok(address)) = (port, data.try_into()) {
            self.address.store(u32::from_le_bytes(address) & !0x7f00_0003, Ordering::Relaxed);
        } else if let Some((bdf, register)) = self.target(port) {
            self.bus.write(bdf, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u16, Vec<u8>)>>);

    impl Function for Probe {
        fn config_read(&self, offset: u16, data: &mut [u8]) {
            for (at, byte) in (offset..).zip(data) {
                *byte = (at & 0xff) as u8;
            }
        }

        fn config_write(&self, offset: u16, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Arc<PciBus>, Arc<Probe>) {
        let (bus, probe) = (Arc::new(PciBus::default()), Arc::new(Probe::default()));
        assert!(bus.insert(Slot(3), probe.clone()));
        (bus, probe)
    }

    #[test]
    fn a_slot_holds_one_function() {
        let (bus, probe) = bus();
        assert!(!bus.insert(Slot(3), probe.clone()));
        assert!(!bus.insert(Slot(32), probe));
    }

    #[test]
    fn ecam_and_ports_reach_the_same_register() {
        let (bus, probe) = bus();
        let (ecam, ports) = (Ecam(bus.clone()), ConfigPorts::new(bus));
        let mut data = [0; 2];
        ecam.read(3 << 15 | 0x42, &mut data);
        assert_eq!(data, [0x42, 0x43]);
        ports.write(0, &(ENABLE | 3 << 11 | 0x40).to_le_bytes());
        let mut data = [0; 2];
        ports.read(4 + 2, &mut data);
        assert_eq!(data, [0x42, 0x43]);
        ports.write(4, &[1, 2, 3, 4]);
        ecam.write(3 << 15 | 0x104, &[5]);
        assert_eq!(*probe.0.lock().unwrap(), [(0x40, vec![1, 2, 3, 4]), (0x104, vec![5])]);
    }

    #[test]
    fn nobody_answers_with_all_ones() {
        let (bus, probe) = bus();
        let (ecam, ports) = (Ecam(bus.clone()), ConfigPorts::new(bus));
        let all_ones = |device: &dyn BusDevice, offset, length| {
            let mut data = vec![0; length];
            device.read(offset, &mut data);
            device.write(offset, &vec![0; length]);
            data.iter().all(|&byte| byte == 0xff)
        };
        assert!(all_ones(&ecam, 4 << 15, 4), "an empty slot");
        assert!(all_ones(&ecam, 3 << 15 | 1 << 12, 4), "function 1");
        assert!(all_ones(&ecam, 3 << 15 | 2, 4), "across double words");
        assert!(all_ones(&ecam, 3 << 15, 8), "eight bytes");
        assert!(all_ones(&ports, 4, 4), "ports before they are enabled");
        ports.write(0, &(ENABLE | 1 << 16 | 3 << 11).to_le_bytes());
        assert!(all_ones(&ports, 4, 4), "bus 1");
        assert!(probe.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_address_port_reads_back() {
        let ports = ConfigPorts::new(bus().0);
        ports.write(0, &u32::MAX.to_le_bytes());
        let mut data = [0; 4];
        ports.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
    }
}
