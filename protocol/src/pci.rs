//! The region and interrupt indices that a PCI device has under VFIO (`<linux/vfio.h>`, `VFIO_PCI_*`).

/// Regions 0 to 5 are the base address registers.
pub const BAR0_REGION: u32 = 0;
/// The last base address register.
pub const BAR5_REGION: u32 = 5;
/// The expansion ROM.
pub const ROM_REGION: u32 = 6;
/// PCI configuration space: 256 bytes, or 4,096 for PCI Express.
pub const CONFIG_REGION: u32 = 7;
/// Legacy VGA ranges; Outrigger offers none and uses none.
pub const VGA_REGION: u32 = 8;
/// How many regions every PCI device reports at least.
pub const NUM_REGIONS: u32 = 9;

/// The level-triggered pin interrupt.
pub const INTX_IRQ: u32 = 0;
/// Message-signalled interrupts, up to 32 consecutive vectors.
pub const MSI_IRQ: u32 = 1;
/// MSI-X, up to 2,048 vectors.
pub const MSIX_IRQ: u32 = 2;
/// PCI error reporting.
pub const ERR_IRQ: u32 = 3;
/// The device asks to be released.
pub const REQ_IRQ: u32 = 4;
/// How many interrupt types every PCI device reports.
pub const NUM_IRQS: u32 = 5;
/// No interrupt type has more vectors: the MSI-X table has at most 2,048 entries (PCI Local Bus 3.0, section 6.8.2.3,
/// "Message Control for MSI-X").
pub const MAX_VECTORS: u32 = 2048;
