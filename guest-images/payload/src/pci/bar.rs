//! Base address registers: kind, size and place (PCI 3.0, 6.2.5.1).

use super::{BAR0, COMMAND, Function};
use crate::memory;

const IO_SPACE: u32 = 1;
const TYPE: u32 = 3 << 1;
const TYPE_64: u32 = 2 << 1;
const DECODING: u16 = 3;

/// A BAR that the function implements.
#[derive(Clone, Copy)]
pub struct Bar {
    function: Function,
    /// Register number, 0 to 5.
    pub index: u8,
    /// Whether it takes two registers.
    pub wide: bool,
    /// Whether it is in I/O port space.
    pub io: bool,
    /// Bytes, a power of two.
    pub size: u64,
}

impl Bar {
    /// Sizes the BAR in register `index`, with decoding switched off meanwhile.
    pub fn probe(function: Function, index: u8) -> Option<Self> {
        let register = BAR0 + u16::from(index) * 4;
        let low = function.read32(register);
        let io = low & IO_SPACE != 0;
        let wide = !io && low & TYPE == TYPE_64 && index < 5;
        let command = function.read16(COMMAND);
        function.write16(COMMAND, command & !DECODING);
        let mask = u64::from(probe_register(function, register) & if io { !3 } else { !0xf });
        let mask = match (io, wide) {
            (true, _) => mask | 0xffff_ffff_ffff_0000,
            (_, true) => mask | u64::from(probe_register(function, register + 4)) << 32,
            (_, false) if mask != 0 => mask | 0xffff_ffff_0000_0000,
            _ => 0,
        };
        function.write16(COMMAND, command);
        let empty = mask & 0xffff_fffc == 0 && !wide || mask == 0;
        (!empty).then(|| Self { function, index, wide, io, size: mask.wrapping_neg() })
    }

    fn register(&self) -> u16 {
        BAR0 + u16::from(self.index) * 4
    }

    /// Where it is now: physical address, or port number.
    pub fn address(&self) -> u64 {
        let low = u64::from(self.function.read32(self.register()));
        match (self.io, self.wide) {
            (true, _) => low & !3,
            (_, false) => low & !0xf,
            (_, true) => u64::from(self.function.read32(self.register() + 4)) << 32 | low & !0xf,
        }
    }

    /// Moves it, decoding off meanwhile as a guest's kernel does. The new place is mapped.
    pub fn move_to(&self, address: u64) {
        let command = self.function.read16(COMMAND);
        self.function.write16(COMMAND, command & !DECODING);
        let [low, high] = [address & 0xffff_ffff, address >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        self.function.write32(self.register(), low);
        if self.wide {
            self.function.write32(self.register() + 4, high);
        }
        self.function.write16(COMMAND, command);
        memory::map(address, self.size);
    }
}

/// Writes all ones, reads what stuck, and puts the old value back.
fn probe_register(function: Function, register: u16) -> u32 {
    let old = function.read32(register);
    function.write32(register, u32::MAX);
    let stuck = function.read32(register);
    function.write32(register, old);
    stuck
}
