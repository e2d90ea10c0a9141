//! Configuration mechanism 1 (PCI 3.0, 3.2.2.3.2): an address port and a data port.

use super::{DEVICES, HEADER_TYPE, ID, MULTIFUNCTION, NOTHING};
use crate::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// A function on bus 0, accessed by ports.
#[derive(Clone, Copy)]
pub struct Cf8 {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl Cf8 {
    fn select(self, register: u16) -> u16 {
        let function = u32::from(self.device) << 11 | u32::from(self.function) << 8;
        port::write32(ADDRESS, ENABLE | function | u32::from(register & 0xfc));
        DATA + (register & 3)
    }

    /// Reads one byte.
    pub fn read8(self, register: u16) -> u8 {
        port::read8(self.select(register))
    }

    /// Reads an aligned word.
    pub fn read16(self, register: u16) -> u16 {
        port::read16(self.select(register))
    }

    /// Reads an aligned double word.
    pub fn read32(self, register: u16) -> u32 {
        port::read32(self.select(register))
    }

    /// Writes an aligned word.
    pub fn write16(self, register: u16, value: u16) {
        port::write16(self.select(register), value);
    }

    /// Clears the enable bit: the data port then does not lead to configuration space.
    pub fn disable() {
        port::write32(ADDRESS, 0);
    }

    /// Calls `found` with a running number for every function of bus 0.
    pub fn scan(mut found: impl FnMut(usize, Self)) {
        let mut count = 0;
        for device in 0..DEVICES {
            let mut functions = 1;
            let mut number = 0;
            while number < functions {
                let function = Self { device, function: number };
                if function.read32(ID) != NOTHING {
                    if number == 0 && function.read8(HEADER_TYPE) & MULTIFUNCTION != 0 {
                        functions = 8;
                    }
                    found(count, function);
                    count += 1;
                }
                number += 1;
            }
        }
    }
}
