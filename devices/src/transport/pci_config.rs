//! PCI configuration space: the header, and the capabilities by which a driver finds the device's registers.
//!
//! The client owns the base address registers, the command register and MSI-X control, and may or may not pass the
//! driver's writes on to us. They are kept and read back, and have no effect here: accesses arrive by region, and
//! interrupts go to whatever eventfd is connected.

use outrigger_protocol::server::{self, Irq, Region};

use super::device::Identity;
use super::journal::CONFIG_SPACE_WORDS;
use super::registers::COMMON_SIZE;

const VENDOR: u16 = 0x1af4;

/// Region of the virtio registers.
pub const REGISTERS_BAR: u8 = 0;
/// Bytes of [`REGISTERS_BAR`].
pub const REGISTERS_BAR_SIZE: u64 = 0x4000;
/// Where in [`REGISTERS_BAR`] the common configuration is.
pub const COMMON_OFFSET: u64 = 0x0000;
/// Where the ISR status is.
pub const ISR_OFFSET: u64 = 0x1000;
/// Where the device-specific configuration is.
pub const DEVICE_OFFSET: u64 = 0x2000;
/// Most bytes of device-specific configuration.
pub const DEVICE_SIZE: u64 = 0x100;
/// Where the doorbells are: one per queue.
pub const NOTIFY_OFFSET: u64 = 0x3000;
/// Bytes from one queue's doorbell to the next.
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// Region of the MSI-X table and pending bits.
pub const MSIX_BAR: u8 = 2;
/// Bytes of [`MSIX_BAR`].
pub const MSIX_BAR_SIZE: u32 = 0x2000;
const MSIX_PBA_OFFSET: u32 = 0x1000;

const CAPABILITY_VENDOR: u8 = 0x09;
/// Of `struct virtio_pci_cap` and what follows it: fields of the window (virtio 1.2, section 4.1.4.9).
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

/// The window by which configuration cycles reach a base address register (virtio 1.2, section 4.1.4.9, "PCI
/// configuration access capability").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Region.
    pub bar: u8,
    /// Offset in the region.
    pub offset: u32,
    /// 1, 2 or 4 bytes.
    pub length: usize,
}

/// The transport's task after configuration space was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEvent {
    /// Nothing.
    None,
    /// Function-level reset.
    FunctionReset,
    /// The driver wrote this to the window.
    WriteWindow(Window, [u8; 4]),
}

/// The configuration space of one function.
#[derive(Debug)]
pub struct ConfigSpace {
    space: server::ConfigSpace,
    /// Where the capability of the window is.
    access: usize,
}

impl ConfigSpace {
    /// For a device with this many queues and bytes of device-specific configuration.
    pub fn new(identity: Identity, queues: u16, device_size: usize) -> Self {
        // Modern ids, and revision 1: no legacy interface (virtio 1.2, section 4.1.2). Registers have side effects, so
        // their memory is not prefetchable.
        let mut space = server::ConfigSpace::new(VENDOR, 0x1040 + identity.device_type, identity.class)
            .with_subsystem(VENDOR, 0x40 + identity.device_type)
            .with_revision(1)
            .with_wide_bar(REGISTERS_BAR.into(), REGISTERS_BAR_SIZE)
            .with_bar(MSIX_BAR.into(), MSIX_BAR_SIZE)
            .with_intx()
            .with_function_level_reset()
            .with_msix(queues + 1, MSIX_BAR.into(), 0, MSIX_PBA_OFFSET);
        let notify_size = NOTIFY_MULTIPLIER as usize * usize::from(queues);
        add_virtio(&mut space, 1, COMMON_OFFSET, COMMON_SIZE, &[], &[]);
        add_virtio(&mut space, 2, NOTIFY_OFFSET, notify_size, &NOTIFY_MULTIPLIER.to_le_bytes(), &[]);
        add_virtio(&mut space, 3, ISR_OFFSET, 1, &[], &[]);
        // A device without configuration has no such capability: a structure of no bytes is none that drivers accept.
        if device_size > 0 {
            add_virtio(&mut space, 4, DEVICE_OFFSET, device_size, &[], &[]);
        }
        // The driver writes which BAR, which offset, which length, and the data.
        let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let access = add_virtio(&mut space, 5, 0, 0, &[0; 4], &writable);
        Self { space, access }
    }

    /// For [`server::Device::regions`].
    pub fn regions(&self) -> &[Region] {
        self.space.regions()
    }

    /// For [`server::Device::irqs`].
    pub fn irqs(&self) -> &[Irq] {
        self.space.irqs()
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.space.reset();
    }

    /// All that there is, for the journal.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.space.bytes().chunks_exact(size_of::<u64>()).take(CONFIG_SPACE_WORDS);
        words.map(|word| word.try_into().map_or(0, u64::from_le_bytes))
    }

    /// Takes a journal's words, as far as a driver can have written them or read them through the window.
    pub fn restore(&mut self, words: impl IntoIterator<Item = u64>) {
        self.space.restore(words.into_iter().flat_map(u64::to_le_bytes));
    }

    /// The window that an access at `offset` of `length` bytes reaches, if it does: the access is to be among those bytes of
    /// `pci_cfg_data` that the window has.
    pub fn window(&self, offset: usize, length: usize) -> Option<Window> {
        let capability = &self.space.bytes()[self.access..];
        let field = |at: usize| capability[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let data = self.access + WINDOW_DATA;
        let (length, reached) = match field(WINDOW_LENGTH) {
            size @ (1 | 2 | 4) => {
                let size = size as usize;
                (size, offset < data + size && offset + length > data)
            }
            _ => return None,
        };
        let window = Window { bar: capability[WINDOW_BAR], offset: field(WINDOW_OFFSET), length };
        let size = match window.bar {
            REGISTERS_BAR => REGISTERS_BAR_SIZE,
            MSIX_BAR => MSIX_BAR_SIZE.into(),
            _ => return None,
        };
        let fits = u64::from(window.offset) + length as u64 <= size;
        let aligned = (window.offset as usize).is_multiple_of(length);
        (reached && fits && aligned).then_some(window)
    }

    /// Shows what was read through the window, whose bytes these are.
    pub fn set_window_data(&mut self, data: &[u8]) {
        self.space.set(self.access + WINDOW_DATA, data);
    }

    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    /// Writes the bits that can be.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> ConfigEvent {
        if self.space.write(offset, data) {
            return ConfigEvent::FunctionReset;
        }
        match self.window(offset, data.len()) {
            // Bytes that the driver did not write now, it has read or written before.
            Some(window) => {
                let bytes = self.space.bytes()[self.access + WINDOW_DATA..][..4].try_into().expect("four bytes");
                ConfigEvent::WriteWindow(window, bytes)
            }
            None => ConfigEvent::None,
        }
    }
}

/// Adds a `struct virtio_pci_cap` (virtio 1.2, section 4.1.4), and what follows it; returns where it is. `writable`: from the
/// third byte on.
fn add_virtio(
    space: &mut server::ConfigSpace,
    kind: u8,
    offset: u64,
    size: usize,
    rest: &[u8],
    writable: &[u8],
) -> usize {
    let [offset, size] = [offset, size as u64].map(|number| number.to_le_bytes());
    let length = 16 + u8::try_from(rest.len()).expect("a few bytes");
    let place = [length, kind, REGISTERS_BAR, 0, 0, 0];
    space.add_capability(CAPABILITY_VENDOR, &[&place, &offset[..4], &size[..4], rest].concat(), writable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity { device_type: 2, class: 0x01_00_00 }, 4, 60)
    }

    const BAR0: usize = 0x10;
    const CAPABILITIES_POINTER: usize = 0x34;
    const EXPRESS_DEVICE_CONTROL: usize = 0x48;
    const MSIX: usize = 0x7c;
    const ACCESS: usize = 0xcc;
    const ACCESS_DATA: usize = ACCESS + WINDOW_DATA;

    fn u32_at(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn capabilities(space: &ConfigSpace) -> Vec<(u8, u8)> {
        let mut at = u32_at(space, CAPABILITIES_POINTER) as usize & 0xff;
        let mut found = Vec::new();
        while at != 0 {
            let header = u32_at(space, at).to_le_bytes();
            found.push(if header[0] == CAPABILITY_VENDOR { (header[0], header[3]) } else { (header[0], 0) });
            assert!(found.len() < 16 && at.is_multiple_of(4));
            at = header[1].into();
        }
        found
    }

    #[test]
    fn the_capability_chain_visits_every_structure_once() {
        assert_eq!(capabilities(&space()), [(0x10, 0), (0x11, 0), (9, 1), (9, 2), (9, 3), (9, 4), (9, 5)]);
    }

    /// Linux refuses a device whose capability for it has no bytes.
    #[test]
    fn a_device_without_configuration_has_no_capability_for_it() {
        let entropy = ConfigSpace::new(Identity { device_type: 4, class: 0xff_00_00 }, 1, 0);
        assert_eq!(capabilities(&entropy), [(0x10, 0), (0x11, 0), (9, 1), (9, 2), (9, 3), (9, 5)]);
    }

    #[test]
    fn ids_are_those_of_a_modern_device() {
        let space = space();
        assert_eq!(u32_at(&space, 0), 0x1042_1af4);
        assert_eq!(u32_at(&space, 8), 0x0100_0001);
        assert_eq!(u32_at(&space, MSIX) >> 16, 4);
    }

    #[test]
    fn bars_answer_sizing_and_keep_addresses() {
        let mut space = space();
        for at in [BAR0, BAR0 + 4, BAR0 + 8, BAR0 + 12] {
            space.write(at, &[0xff; 4]);
        }
        assert_eq!(u32_at(&space, BAR0), 0xffff_c004);
        assert_eq!(u32_at(&space, BAR0 + 4), 0xffff_ffff);
        assert_eq!(u32_at(&space, BAR0 + 8), 0xffff_e000);
        assert_eq!(u32_at(&space, BAR0 + 12), 0);
        space.write(BAR0, &0xe000_0000u32.to_le_bytes());
        assert_eq!(u32_at(&space, BAR0), 0xe000_0004);
        space.reset();
        assert_eq!(u32_at(&space, BAR0), 4);
    }

    #[test]
    fn the_reset_bit_resets_and_reads_as_zero() {
        let mut space = space();
        assert_eq!(space.write(EXPRESS_DEVICE_CONTROL, &0x8010u16.to_le_bytes()), ConfigEvent::FunctionReset);
        assert_eq!(u32_at(&space, EXPRESS_DEVICE_CONTROL) & 0xffff, 0x0010);
    }

    #[test]
    fn the_window_reaches_only_what_exists_and_is_aligned() {
        let mut space = space();
        assert_eq!(space.window(ACCESS_DATA, 4), None);
        space.write(ACCESS + 8, &0x14u32.to_le_bytes());
        space.write(ACCESS + 12, &1u32.to_le_bytes());
        let window = Window { bar: 0, offset: 0x14, length: 1 };
        assert_eq!(space.window(ACCESS_DATA, 1), Some(window));
        assert_eq!(space.window(ACCESS_DATA - 4, 4), None);
        assert_eq!(space.write(ACCESS_DATA, &[3]), ConfigEvent::WriteWindow(window, [3, 0, 0, 0]));
        for (bar, offset, length) in [(1, 0, 4), (0, 0x4000, 1), (0, 0x3ffe, 4), (0, 2, 4), (0, 0, 3), (2, 0x2000, 4)] {
            space.write(ACCESS + 4, &[bar]);
            space.write(ACCESS + 8, &u32::to_le_bytes(offset));
            space.write(ACCESS + 12, &u32::to_le_bytes(length));
            assert_eq!(space.window(ACCESS_DATA, 4), None, "{bar} {offset:#x} {length}");
        }
    }

    proptest! {
        #[test]
        fn any_journal_restores_what_can_be_written_and_nothing_else(words in prop::collection::vec(any::<u64>(), CONFIG_SPACE_WORDS)) {
            let (mut space, mut written) = (space(), space());
            space.restore(words.iter().copied());
            for (at, &byte) in words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>().iter().enumerate() {
                written.write(at, &[byte]);
            }
            prop_assert_eq!(space.space.bytes(), written.space.bytes());
            let mut again = self::space();
            again.restore(space.words());
            prop_assert_eq!(space.space.bytes(), again.space.bytes());
        }
    }
}
