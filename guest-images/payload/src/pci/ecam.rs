//! The enhanced configuration access mechanism (PCI Express 5.0, 7.2.2): 4 KiB of memory per function.

use super::{DEVICES, Function, HEADER_TYPE, ID, MULTIFUNCTION, NOTHING};
use crate::memory;

/// Configuration space of bus 0.
pub struct Ecam(u64);

impl Ecam {
    /// `base` is where the MCFG table says that `first_bus` begins; bus 0 is looked at.
    ///
    /// # Panics
    /// When the range does not begin with bus 0.
    pub fn new(base: u64, first_bus: u8) -> Self {
        assert!(first_bus == 0);
        memory::map(base, 1 << 20);
        Self(base)
    }

    /// The place of a function, whether or not one is there.
    pub fn function(&self, device: u8, function: u8) -> Function {
        let config = self.0 + (u64::from(device) << 15 | u64::from(function) << 12);
        Function { config, device, function }
    }

    /// Calls `found` with a running number for every function.
    pub fn scan(&self, mut found: impl FnMut(usize, Function)) {
        let mut count = 0;
        for device in 0..DEVICES {
            let mut functions = 1;
            let mut number = 0;
            while number < functions {
                let function = self.function(device, number);
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
