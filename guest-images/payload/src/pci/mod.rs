//! PCI configuration space by ECAM, by ports 0xcf8 and 0xcfc, and what is in it (PCI 3.0, chapter 6).

mod bar;
mod cf8;
mod ecam;

pub use bar::Bar;
pub use cf8::Cf8;
pub use ecam::Ecam;

use crate::memory;

/// Vendor and device number, as one register.
pub const ID: u16 = 0x00;
/// Command register.
pub const COMMAND: u16 = 0x04;
/// First of six BARs.
pub const BAR0: u16 = 0x10;
/// Offset of the first capability.
pub const CAPABILITIES: u16 = 0x34;
/// Capability identifier of vendor-specific structures, here virtio's.
pub const VENDOR_SPECIFIC: u8 = 0x09;
/// Capability identifier of power management.
pub const POWER: u8 = 0x01;
/// Capability identifier of MSI.
pub const MSI: u8 = 0x05;
/// Capability identifier of MSI-X.
pub const MSIX: u8 = 0x11;
/// Command register: answer in I/O space.
pub const IO: u16 = 1 << 0;
/// Command bits: memory decoding, bus mastering.
pub const MEMORY: u16 = 1 << 1;
/// Lets the device reach memory and send messages.
pub const BUS_MASTER: u16 = 1 << 2;
/// Devices on a bus.
pub const DEVICES: u8 = 32;
/// The value of a register where no function is.
pub const NOTHING: u32 = 0xffff_ffff;

const HEADER_TYPE: u16 = 0x0e;
const MULTIFUNCTION: u8 = 0x80;
const MOST_CAPABILITIES: u32 = 48;

/// A function on bus 0, accessed by ECAM.
#[derive(Clone, Copy)]
pub struct Function {
    config: u64,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl Function {
    /// Physical address of a register.
    pub fn address(&self, register: u16) -> u64 {
        self.config + u64::from(register)
    }

    /// Reads one byte of configuration space.
    pub fn read8(&self, register: u16) -> u8 {
        memory::read8(self.config + u64::from(register))
    }

    /// Reads an aligned word.
    pub fn read16(&self, register: u16) -> u16 {
        memory::read16(self.config + u64::from(register))
    }

    /// Reads an aligned double word.
    pub fn read32(&self, register: u16) -> u32 {
        memory::read32(self.config + u64::from(register))
    }

    /// Writes one byte.
    pub fn write8(&self, register: u16, value: u8) {
        memory::write8(self.config + u64::from(register), value);
    }

    /// Writes an aligned word.
    pub fn write16(&self, register: u16, value: u16) {
        memory::write16(self.config + u64::from(register), value);
    }

    /// Writes an aligned double word.
    pub fn write32(&self, register: u16, value: u32) {
        memory::write32(self.config + u64::from(register), value);
    }

    /// Device number in the upper, vendor number in the lower half.
    pub fn id(&self) -> u32 {
        self.read32(ID)
    }

    /// Sets and clears bits of the command register.
    pub fn command(&self, set: u16, clear: u16) {
        self.write16(COMMAND, self.read16(COMMAND) & !clear | set);
    }

    /// Offsets of the capabilities with this identifier. Bounded, whatever the chain looks like.
    pub fn capabilities(self, wanted: u8) -> impl Iterator<Item = u16> {
        let mut at = u16::from(self.read8(CAPABILITIES));
        let mut left = MOST_CAPABILITIES;
        core::iter::from_fn(move || {
            while at >= 0x40 && left > 0 {
                left -= 1;
                let found = at & 0xfc;
                let [id, next] = self.read16(found).to_le_bytes();
                at = u16::from(next);
                if id == wanted {
                    return Some(found);
                }
            }
            None
        })
    }

    /// The memory and I/O BARs that the function has.
    pub fn bars(self) -> impl Iterator<Item = Bar> {
        let mut index = 0;
        core::iter::from_fn(move || {
            while index < 6 {
                let bar = Bar::probe(self, index);
                index += if bar.as_ref().is_some_and(|bar| bar.wide) { 2 } else { 1 };
                if bar.is_some() {
                    return bar;
                }
            }
            None
        })
    }

    /// The BAR with this number, if it exists.
    pub fn bar(self, index: u8) -> Option<Bar> {
        self.bars().find(|bar| bar.index == index)
    }
}
