//! The machine as found at start: ACPI tables and PCI functions.

use crate::acpi::{self, Tables};
use crate::pci::{Ecam, Function};
use crate::start_info::StartInfo;

/// Functions on bus 0 that are remembered; more are only counted.
pub const MOST_FUNCTIONS: usize = 34;

/// Tables and functions.
pub struct Machine {
    /// The command line from the loader.
    pub command_line: &'static [u8],
    /// Where RAM below 4 GiB ends.
    pub end_of_ram: u64,
    /// ACPI tables.
    pub tables: Tables,
    /// Functions found through ECAM, in order.
    functions: [Option<Function>; MOST_FUNCTIONS],
}

impl Machine {
    /// Reads the tables and looks for functions on bus 0.
    pub fn find(start_info: &StartInfo) -> Self {
        let tables = acpi::walk(start_info.root_pointer());
        let mut functions = [None; MOST_FUNCTIONS];
        if let Some((base, first_bus, _)) = tables.ecam {
            Ecam::new(base, first_bus).scan(|index, function| {
                if let Some(slot) = functions.get_mut(index) {
                    *slot = Some(function);
                }
            });
        }
        let (command_line, end_of_ram) = (start_info.command_line(), start_info.end_of_ram());
        Self { command_line, end_of_ram, tables, functions }
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

    /// The text after `name=` on the command line, up to the next space.
    pub fn option(&self, name: &[u8]) -> Option<&'static [u8]> {
        let words = self.command_line.split(|&byte| byte == b' ');
        words.filter_map(|word| word.strip_prefix(name)?.strip_prefix(b"=")).next()
    }

    /// The same, as a decimal number.
    pub fn number(&self, name: &[u8]) -> Option<u64> {
        let digits = self.option(name)?;
        digits.iter().try_fold(0u64, |sum, &digit| {
            let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
            sum.checked_mul(10)?.checked_add(digit.into())
        })
    }
}
