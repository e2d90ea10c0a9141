//! The machine as found at start: ACPI tables and PCI functions.

use crate::acpi::{self, Tables};
use crate::pci::{Ecam, Function};

/// Functions on bus 0 that are remembered; more are only counted.
pub const MOST_FUNCTIONS: usize = 34;

/// Tables and functions.
pub struct Machine {
    /// ACPI tables.
    pub tables: Tables,
    /// Functions found through ECAM, in order.
    functions: [Option<Function>; MOST_FUNCTIONS],
}

impl Machine {
    /// Reads the tables and looks for functions on bus 0.
    pub fn find(root_pointer: u64) -> Self {
        let tables = acpi::walk(root_pointer);
        let mut functions = [None; MOST_FUNCTIONS];
        if let Some((base, first_bus, _)) = tables.ecam {
            Ecam::new(base, first_bus).scan(|index, function| {
                if let Some(slot) = functions.get_mut(index) {
                    *slot = Some(function);
                }
            });
        }
        Self { tables, functions }
    }

    /// The functions, lowest device number first.
    pub fn functions(&self) -> impl Iterator<Item = Function> + '_ {
        self.functions.iter().map_while(|function| *function)
    }

    /// The first function with this vendor and device number.
    pub fn function(&self, vendor: u16, device: u16) -> Option<Function> {
        let wanted = u32::from(device) << 16 | u32::from(vendor);
        self.functions().find(|function| function.id() == wanted)
    }
}
