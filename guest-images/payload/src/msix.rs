//! MSI-X: the capability, the table and the pending bits of one function (PCI 3.0, 6.8.2).

use crate::interrupts::FIRST_VECTOR;
use crate::pci::{Function, MEMORY, MSIX};
use crate::{apic, memory};

const CONTROL: u16 = 2;
const TABLE: u16 = 4;
const PENDING: u16 = 8;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_SIZE: u64 = 16;
const VECTOR_MASK: u32 = 1;
const ADDRESS: u32 = 0xfee0_0000;

/// A function's MSI-X capability with its two structures, where the BARs are at the moment.
pub struct Msix {
    function: Function,
    capability: u16,
    table: u64,
    pending: u64,
    /// Number of the BAR that holds the table, and the table's offset in it.
    pub table_place: (u8, u64),
    /// Entries in the table.
    pub vectors: u16,
}

impl Msix {
    /// Looks for the capability, and switches memory decoding on, without which the table cannot be reached. `None` too when one of
    /// its BARs does not exist.
    pub fn of(function: Function) -> Option<Self> {
        let capability = function.capabilities(MSIX).next()?;
        function.command(MEMORY, 0);
        let place = |register: u16| {
            let value = function.read32(capability + register);
            (value.to_le_bytes()[0] & 7, u64::from(value & !7))
        };
        let (table_place, pending_place) = (place(TABLE), place(PENDING));
        let vectors = (function.read16(capability + CONTROL) & 0x7ff) + 1;
        let table = function.bar(table_place.0)?.address() + table_place.1;
        let pending = function.bar(pending_place.0)?.address() + pending_place.1;
        memory::map(table, u64::from(vectors) * ENTRY_SIZE);
        memory::map(pending, u64::from(vectors).div_ceil(64) * 8);
        Some(Self { function, capability, table, pending, table_place, vectors })
    }

    /// Switches MSI-X on or off, with the function mask as given.
    pub fn control(&self, enable: bool, function_mask: bool) {
        let register = self.capability + CONTROL;
        let others = self.function.read16(register) & !(ENABLE | FUNCTION_MASK);
        let bits = if enable { ENABLE } else { 0 } | if function_mask { FUNCTION_MASK } else { 0 };
        self.function.write16(register, others | bits);
    }

    /// Switches MSI-X on without a function mask, if it is not on already.
    pub fn switch_on(&self) {
        if self.function.read16(self.capability + CONTROL) & (ENABLE | FUNCTION_MASK) != ENABLE {
            self.control(true, false);
        }
    }

    /// Points `entry` to device vector `index` and unmasks it, unless it is like that already: a change costs the VMM far more than a look.
    pub fn open(&self, entry: u16, index: u8) {
        let message = [ADDRESS | u32::from(apic::id()) << 12, 0, u32::from(FIRST_VECTOR + index), 0];
        if self.read(entry) != message {
            self.mask(entry, true);
            self.route(entry, index);
            self.mask(entry, false);
        }
    }

    /// Points `entry` to device vector `index` of this processor, its mask untouched.
    pub fn route(&self, entry: u16, index: u8) {
        let at = self.entry(entry);
        memory::write32(at, ADDRESS | u32::from(apic::id()) << 12);
        memory::write32(at + 4, 0);
        memory::write32(at + 8, u32::from(FIRST_VECTOR + index));
    }

    /// Sets or clears the mask bit of `entry`.
    pub fn mask(&self, entry: u16, masked: bool) {
        memory::write32(self.entry(entry) + 12, u32::from(masked) * VECTOR_MASK);
    }

    /// Address, upper address, data and vector control of `entry`.
    pub fn read(&self, entry: u16) -> [u32; 4] {
        let at = self.entry(entry);
        [0, 4, 8, 12].map(|offset| memory::read32(at + offset))
    }

    /// Whether the pending bit of `entry` is set.
    pub fn pending(&self, entry: u16) -> bool {
        memory::read32(self.pending + u64::from(entry / 32) * 4) >> (entry % 32) & 1 != 0
    }

    /// Physical addresses of the table and of the pending bits.
    pub fn places(&self) -> [u64; 2] {
        [self.table, self.pending]
    }

    fn entry(&self, entry: u16) -> u64 {
        self.table + u64::from(entry) * ENTRY_SIZE
    }
}
