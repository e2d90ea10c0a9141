//! Every guest-physical address and I/O port that Outrigger itself decides on, in one file.
//!
//! # Physical memory
//!
//! | Start           | End (exclusive) | What |
//! |-----------------|-----------------|------|
//! | `0x0000_0000`   | `0x0009_FC00`   | RAM; boot structures (GDT, zero page, page tables, command line) while the kernel starts |
//! | `0x0009_FC00`   | `0x000E_0000`   | reserved (RAM underneath, as in the next three) |
//! | `0x000E_0000`   | `0x000F_0000`   | ACPI tables |
//! | `0x000F_0000`   | `0x0010_0000`   | reserved; the real-mode reset vector at `0x000F_FFF0` |
//! | `0x0010_0000`   | `0xC000_0000`   | RAM: the kernel at the bottom, the initrd at the top |
//! | `0xC000_0000`   | `0xE000_0000`   | 32-bit PCI memory window (BARs) |
//! | `0xE000_0000`   | `0xE010_0000`   | PCI Express configuration space (ECAM), bus 0 only |
//! | `0xFEC0_0000`   | `0xFEC0_1000`   | I/O APIC (in KVM) |
//! | `0xFEE0_0000`   | `0xFEF0_0000`   | local APICs (in KVM), and where MSI writes go |
//! | `0xFEFF_C000`   | `0xFF00_0000`   | KVM's identity map page and three TSS pages |
//! | `0x1_0000_0000` | 4 GiB + rest    | RAM that did not fit below 3 GiB |
//! | see [`pci_memory_64`] | 2^physical address bits | 64-bit PCI memory window, from the next GiB after RAM |
//!
//! # I/O ports
//!
//! | Port              | What |
//! |-------------------|------|
//! | `0x020`–`0x021`, `0x0A0`–`0x0A1` | 8259 interrupt controllers (in KVM) |
//! | `0x040`–`0x043`, `0x061` | PIT (in KVM), for kernels that are told to use no APIC |
//! | `0x064`           | keyboard controller, for its reset command only |
//! | `0x3F8`–`0x3FF`   | serial port COM1, [`COM1_GSI`] |
//! | `0x600`–`0x606`   | ACPI PM1 status, enable and control, reset |
//! | `0xCF8`–`0xCFF`   | PCI configuration mechanism #1 |
//! | `0x1000`–`0xFFFF` | PCI I/O window (BARs) |
//!
//! # Interrupts (GSIs, which are the I/O APIC's pins; 0 to 15 are the 8259s', too)
//!
//! | GSI   | What |
//! |-------|------|
//! | 0     | PIT (in KVM), where there is one |
//! | 4     | COM1 (edge, active high) |
//! | 9     | ACPI SCI, never raised |
//! | 16–23 | PCI INTx (level, active low), see [`intx_gsi`] |

/// A half-open range of guest-physical addresses or I/O ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

impl AddressRange {
    /// The range from `start` up to, excluding, `end`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        assert!(start <= end);
        Self { start, end }
    }

    /// Bytes in the range.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.end - self.start
    }

    /// The last address, inclusive. Meaningless for an empty range.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.end.wrapping_sub(1)
    }

    /// Whether `size` bytes from `address` on lie inside the range.
    #[must_use]
    pub const fn contains(&self, address: u64, size: u64) -> bool {
        address >= self.start && address <= self.end && size <= self.end - address
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Smallest RAM that any of this can work with: the boot structures, the ACPI tables and a small program. The limit that a user
/// meets is the command line's, which is higher.
pub const MIN_RAM: u64 = 2 * MIB;

/// Segment descriptors that the first vCPU starts with. Never in use after a kernel's first instructions.
pub const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info`, its module list and memory map (PVH boot).
pub const PVH_START_INFO: u64 = 0x6000;
/// `boot_params`, the "zero page" (Linux boot protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial page tables: PML4, PDPT and four page directories, [`BOOT_PAGE_TABLES_SIZE`] bytes.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Bytes of initial page tables.
pub const BOOT_PAGE_TABLES_SIZE: u64 = 6 * 4 * KIB;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line and its terminating NUL, in bytes.
pub const COMMAND_LINE_SIZE: u64 = 64 * KIB;
/// End of conventional memory, where a PC's extended BIOS data area would start.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;
/// The ACPI tables; the RSDP comes first, where a scan of the BIOS area finds it.
pub const ACPI_TABLES: AddressRange = AddressRange::new(0xE_0000, 0xF_0000);
/// Where a PC's BIOS is entered in real mode, `F000:FFF0`, to the end of conventional addresses.
pub const RESET_VECTOR: AddressRange = AddressRange::new(0xF_FFF0, 0x10_0000);
/// Where RAM for the kernel starts.
pub const HIGH_MEMORY: u64 = MIB;

/// RAM below 4 GiB ends here at the latest.
pub const RAM_LOW_END: u64 = 3 * GIB;
/// The rest of RAM starts here.
pub const RAM_HIGH_START: u64 = 4 * GIB;

/// 32-bit PCI memory window.
pub const PCI_MEMORY_32: AddressRange = AddressRange::new(0xC000_0000, 0xE000_0000);
/// PCI Express configuration space (ECAM) of bus 0: 4 KiB for each of 256 functions.
pub const ECAM: AddressRange = AddressRange::new(0xE000_0000, 0xE010_0000);
/// The I/O APIC's registers.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// The local APICs' registers.
pub const LAPIC: u64 = 0xFEE0_0000;
/// Page that KVM needs on Intel processors without unrestricted guest mode; the guest never sees it.
pub const KVM_IDENTITY_MAP: u64 = 0xFEFF_C000;
/// Three pages that KVM needs for the same reason.
pub const KVM_TSS: usize = 0xFEFF_D000;

/// COM1's eight registers.
pub const COM1: AddressRange = AddressRange::new(0x3F8, 0x400);
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;
/// Keyboard controller status and command port.
pub const KEYBOARD_CONTROLLER: AddressRange = AddressRange::new(0x64, 0x65);
/// ACPI power registers: PM1 status, PM1 enable and PM1 control, two bytes each, and reset, one byte.
pub const POWER: AddressRange = AddressRange::new(0x600, 0x607);
/// ACPI's interrupt, which a guest wants to have.
pub const SCI_GSI: u16 = 9;
/// PCI configuration mechanism #1: address at `0xCF8`, data at `0xCFC`.
pub const PCI_CONFIG_PORTS: AddressRange = AddressRange::new(0xCF8, 0xD00);
/// PCI I/O window.
pub const PCI_IO: AddressRange = AddressRange::new(0x1000, 0x1_0000);

/// First GSI of the PCI interrupt pins.
pub const INTX_GSI_BASE: u32 = 16;
/// How many GSIs the PCI interrupt pins share.
pub const INTX_GSI_COUNT: u32 = 8;
/// Devices on a PCI bus.
pub const PCI_DEVICES: u8 = 32;

/// The GSI that pin `pin` (0 is INTA, 3 is INTD) of device `device` (0 to 31) on bus 0 is wired to. Neighbouring devices get
/// different ones, in the manner of the PCI-to-PCI bridge specification's swizzle.
#[must_use]
pub const fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_GSI_BASE + (device as u32 + pin as u32) % INTX_GSI_COUNT
}

/// Where `ram_size` bytes of RAM lie: below [`RAM_LOW_END`], and the remainder (possibly empty) from [`RAM_HIGH_START`] on.
#[must_use]
pub const fn ram_ranges(ram_size: u64) -> [AddressRange; 2] {
    let low = if ram_size < RAM_LOW_END { ram_size } else { RAM_LOW_END };
    [AddressRange::new(0, low), AddressRange::new(RAM_HIGH_START, RAM_HIGH_START.saturating_add(ram_size - low))]
}

/// Widest guest-physical address the 64-bit PCI window makes use of: what a guest with four-level paging can map directly.
const USED_PHYSICAL_BITS: u8 = 46;

/// The 64-bit PCI memory window above `ram_size` bytes of RAM on a processor with `physical_bits` of physical address; it starts
/// on a GiB and is at least 1 GiB large. `None` if RAM leaves no room for it, that is, if this processor cannot address that
/// much.
#[must_use]
pub fn pci_memory_64(ram_size: u64, physical_bits: u8) -> Option<AddressRange> {
    let [_, high] = ram_ranges(ram_size);
    let start = high.end.checked_next_multiple_of(GIB)?;
    let end = 1_u64 << physical_bits.min(USED_PHYSICAL_BITS);
    (end >= start.checked_add(GIB)?).then(|| AddressRange::new(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ram_is_all_below_the_hole() {
        assert_eq!(ram_ranges(512 * MIB), [AddressRange::new(0, 512 * MIB), AddressRange::new(4 * GIB, 4 * GIB)]);
        assert_eq!(ram_ranges(3 * GIB), [AddressRange::new(0, 3 * GIB), AddressRange::new(4 * GIB, 4 * GIB)]);
    }

    #[test]
    fn ram_beyond_three_gib_continues_at_four() {
        assert_eq!(ram_ranges(5 * GIB), [AddressRange::new(0, 3 * GIB), AddressRange::new(4 * GIB, 6 * GIB)]);
    }

    #[test]
    fn the_64_bit_window_starts_on_the_next_gib_and_ends_with_the_address_space() {
        assert_eq!(pci_memory_64(512 * MIB, 40), Some(AddressRange::new(4 * GIB, 1 << 40)));
        assert_eq!(pci_memory_64(3 * GIB + 1, 40), Some(AddressRange::new(5 * GIB, 1 << 40)));
        assert_eq!(pci_memory_64(5 * GIB, 52), Some(AddressRange::new(6 * GIB, 1 << 46)));
    }

    #[test]
    fn ram_that_the_processor_cannot_address_leaves_no_window() {
        assert_eq!(pci_memory_64(61 * GIB, 36), Some(AddressRange::new(62 * GIB, 64 * GIB)));
        assert_eq!(pci_memory_64(62 * GIB, 36), Some(AddressRange::new(63 * GIB, 64 * GIB)));
        assert_eq!(pci_memory_64(62 * GIB + 1, 36), None);
        assert_eq!(pci_memory_64(u64::MAX, 46), None);
    }

    #[test]
    fn fixed_ranges_do_not_overlap() {
        let memory = [
            AddressRange::new(BOOT_GDT, BOOT_GDT + 0x100),
            AddressRange::new(PVH_START_INFO, PVH_START_INFO + 0x1000),
            AddressRange::new(ZERO_PAGE, ZERO_PAGE + 0x1000),
            AddressRange::new(BOOT_PAGE_TABLES, BOOT_PAGE_TABLES + BOOT_PAGE_TABLES_SIZE),
            AddressRange::new(COMMAND_LINE, COMMAND_LINE + COMMAND_LINE_SIZE),
            AddressRange::new(CONVENTIONAL_END, CONVENTIONAL_END),
            ACPI_TABLES,
            RESET_VECTOR,
            AddressRange::new(HIGH_MEMORY, RAM_LOW_END),
            PCI_MEMORY_32,
            ECAM,
            AddressRange::new(IOAPIC, IOAPIC + 0x1000),
            AddressRange::new(LAPIC, LAPIC + 0x10_0000),
            AddressRange::new(KVM_IDENTITY_MAP, KVM_TSS as u64),
            AddressRange::new(KVM_TSS as u64, KVM_TSS as u64 + 0x3000),
        ];
        let ports = [KEYBOARD_CONTROLLER, COM1, POWER, PCI_CONFIG_PORTS, PCI_IO];
        for pair in memory.windows(2).chain(ports.windows(2)) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }

    #[test]
    fn interrupt_pins_spread_over_eight_gsis() {
        assert_eq!(intx_gsi(0, 0), 16);
        assert_eq!(intx_gsi(1, 0), 17);
        assert_eq!(intx_gsi(1, 3), 20);
        assert_eq!(intx_gsi(31, 3), 18);
    }

    #[test]
    fn containment_counts_whole_accesses() {
        let range = AddressRange::new(0x10, 0x20);
        assert!(range.contains(0x10, 0x10));
        assert!(range.contains(0x1F, 1));
        assert!(!range.contains(0x1F, 2));
        assert!(!range.contains(0xF, 1));
        assert!(!range.contains(u64::MAX, u64::MAX));
    }
}
