//! The PCI bus: which function sits in which slot, and how a guest reaches configuration space.
//!
//! There is one bus. Its devices are functions 0 of slots 1 to 31; slot 0 holds the host bridge. This module has the
//! parts that any function needs; devices are made in [`crate::attach`].

pub mod bar;
pub mod bus;
pub mod capabilities;
pub mod host_bridge;
pub mod windows;

use std::fmt;

/// Standard configuration registers by byte offset (PCI Local Bus 3.0, section 6.1).
pub mod register {
    /// Command, 2 bytes.
    pub const COMMAND: u16 = 0x04;
    /// Status, 2 bytes.
    pub const STATUS: u16 = 0x06;
    /// Header type, 1 byte.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First of six base address registers, 4 bytes each.
    pub const BAR0: u16 = 0x10;
    /// The register behind the base address registers: a pointer for CardBus, unused here.
    pub const CARDBUS: u16 = 0x28;
    /// Expansion ROM base address, 4 bytes.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 1 byte.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 1 byte.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// First extended capability.
    pub const EXTENDED: u16 = 0x100;
    /// End of configuration space.
    pub const END: u16 = 0x1000;
}

/// Bits of the command register.
pub mod command {
    /// I/O BARs are decoded.
    pub const IO: u16 = 1 << 0;
    /// Memory BARs are decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may be a bus master.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// INTx must not be asserted.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// The bits a guest can change on any function here.
    pub const WRITABLE: u16 = 0x0547;
}

/// Slots of a bus.
const SLOTS: u8 = 32;

/// The address of a function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u8);

impl Slot {
    /// Reads `00:01.0` or `0000:00:01.0`, as a device on this bus is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("0000:").unwrap_or(text).strip_prefix("00:")?.strip_suffix(".0")?;
        let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u8::from_str_radix(digits, 16).ok().filter(|number| is_number && *number < SLOTS)?;
        Some(Self(number))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.0)
    }
}

/// One function as the bus sees it: its configuration space.
pub trait Function: Send + Sync {
    /// Reads 1, 2 or 4 bytes that lie within one double word.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes that lie within one double word.
    fn config_write(&self, offset: u16, data: &[u8]);
}
