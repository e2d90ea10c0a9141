//! The common parts of virtio devices on PCI: their numbers, the structures that their capabilities point to, and the registers of the
//! common configuration structure (virtio 1.2, 4.1.2 to 4.1.4).

use crate::pci::{Function, VENDOR_SPECIFIC};

/// Vendor number of virtio.
pub const VENDOR: u16 = 0x1af4;
/// Device number of a modern network card.
pub const NETWORK: u16 = 0x1041;
/// Device number of a modern block device.
pub const BLOCK: u16 = 0x1042;

/// Kinds of structure that a capability can point to (4.1.4).
pub const COMMON: u8 = 1;
/// Doorbells.
pub const NOTIFY: u8 = 2;
/// Interrupt status.
pub const ISR: u8 = 3;
/// Device-specific configuration.
pub const DEVICE: u8 = 4;
/// The window in configuration space.
pub const WINDOW: u8 = 5;

/// Registers of the common configuration structure (4.1.4.3).
pub const FEATURE_SELECT: u64 = 0;
/// 32 bits of what the device offers.
pub const FEATURES: u64 = 4;
/// Which 32 bits [`DRIVER_FEATURES`] shows.
pub const DRIVER_FEATURE_SELECT: u64 = 8;
/// 32 bits of what the driver accepts.
pub const DRIVER_FEATURES: u64 = 12;
/// MSI-X vector of configuration changes.
pub const CONFIG_VECTOR: u64 = 16;
/// How many queues there are.
pub const QUEUES: u64 = 18;
/// Device status, one byte.
pub const STATUS: u64 = 20;
/// Which queue the registers below are about.
pub const QUEUE_SELECT: u64 = 22;
/// Entries.
pub const QUEUE_SIZE: u64 = 24;
/// MSI-X vector of the queue.
pub const QUEUE_VECTOR: u64 = 26;
/// 1: in use.
pub const QUEUE_ENABLE: u64 = 28;
/// Which doorbell is the queue's.
pub const QUEUE_NOTIFY_OFFSET: u64 = 30;
/// Address of the descriptor table; those of the available and the used ring follow.
pub const QUEUE_DESCRIPTORS: u64 = 32;
/// Resets the queue.
pub const QUEUE_RESET: u64 = 58;
/// Bytes of the structure, `queue_reset` included.
pub const COMMON_SIZE: u64 = 60;

/// Bits of the device status (2.1).
pub const ACKNOWLEDGE: u8 = 1;
/// A driver is there.
pub const DRIVER: u8 = 2;
/// The driver is ready.
pub const DRIVER_OK: u8 = 4;
/// Features are agreed on.
pub const FEATURES_OK: u8 = 8;
/// The device has given up until it is reset.
pub const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub const FAILED: u8 = 128;

/// The value read back in place of a vector that cannot be (4.1.5.1.2.1).
pub const NO_VECTOR: u16 = 0xffff;

/// Where one of the device's structures is: BAR number, offset in it, and the capability it came from.
#[derive(Clone, Copy)]
pub struct Structure {
    /// BAR number.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u64,
    /// Offset of the capability in configuration space.
    pub capability: u16,
}

impl Structure {
    /// Finds the structure of this kind.
    pub fn find(function: Function, kind: u8) -> Option<Self> {
        let capability = function.capabilities(VENDOR_SPECIFIC).find(|&at| function.read8(at + 3) == kind)?;
        let offset = u64::from(function.read32(capability + 8));
        Some(Self { bar: function.read8(capability + 4), offset, capability })
    }
}
