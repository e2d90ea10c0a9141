//! PCI configuration space: the header, and the capabilities by which a driver finds the device's registers.
//!
//! The client owns the base address registers, the command register and MSI-X control, and may or may not pass the
//! driver's writes on to us. They are kept and read back, and have no effect here: accesses arrive by region, and
//! interrupts go to whatever eventfd is connected.

use super::device::Identity;
use super::journal::CONFIG_SPACE_WORDS;
use super::registers::COMMON_SIZE;

/// Bytes of configuration space; the second kilobyte on is empty (no extended capabilities).
pub const CONFIG_SIZE: usize = 4096;

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
pub const MSIX_BAR_SIZE: u64 = 0x2000;
const MSIX_PBA_OFFSET: u32 = 0x1000;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const EXPRESS: usize = 0x40;
const EXPRESS_DEVICE_CONTROL: usize = EXPRESS + 8;
const MSIX: usize = 0x7c;
const COMMON: usize = 0x88;
const NOTIFY: usize = 0x98;
const ISR: usize = 0xac;
const DEVICE: usize = 0xbc;
const ACCESS: usize = 0xcc;
const ACCESS_DATA: usize = ACCESS + 16;
const CAPABILITIES_END: usize = ACCESS + 20;

const _: () = assert!(CAPABILITIES_END <= CONFIG_SPACE_WORDS * size_of::<u64>());
const _: () = assert!(MSIX == EXPRESS + 0x3c && COMMON == MSIX + 12 && CAPABILITIES_END <= 0x100);

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_EXPRESS: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;

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

/// What the transport has to do after configuration space was written.
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
    bytes: Box<[u8; CONFIG_SIZE]>,
    /// Which bits the client can write.
    writable: Box<[u8; CONFIG_SIZE]>,
    pristine: Box<[u8; CONFIG_SIZE]>,
}

impl ConfigSpace {
    /// For a device with this many queues and bytes of device-specific configuration.
    pub fn new(identity: Identity, queues: u16, device_size: usize) -> Self {
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SIZE]),
            writable: Box::new([0; CONFIG_SIZE]),
            pristine: Box::new([0; CONFIG_SIZE]),
        };
        space.header(identity);
        space.express();
        space.msix(queues + 1);
        let notify_size = NOTIFY_MULTIPLIER as usize * usize::from(queues);
        space.virtio(COMMON, NOTIFY, 1, 16, COMMON_OFFSET, COMMON_SIZE);
        space.virtio(NOTIFY, ISR, 2, 20, NOTIFY_OFFSET, notify_size);
        space.put(NOTIFY + 16, &NOTIFY_MULTIPLIER.to_le_bytes());
        // A device without configuration has no such capability: a structure of no bytes is none that drivers accept.
        let after_isr = if device_size > 0 { DEVICE } else { ACCESS };
        space.virtio(ISR, after_isr, 3, 16, ISR_OFFSET, 1);
        if device_size > 0 {
            space.virtio(DEVICE, ACCESS, 4, 16, DEVICE_OFFSET, device_size);
        }
        space.virtio(ACCESS, 0, 5, 20, 0, 0);
        space.allow(ACCESS + 4, &[0xff]);
        space.allow(ACCESS + 8, &[0xff; 12]);
        space.pristine = space.bytes.clone();
        space
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.pristine.clone();
    }

    /// All that there is, for the journal.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks_exact(8).take(CONFIG_SPACE_WORDS).map(|word| word.try_into().map_or(0, u64::from_le_bytes))
    }

    /// What a journal says, as far as a driver can have written it or read it through the window.
    pub fn restore(&mut self, words: impl IntoIterator<Item = u64>) {
        self.reset();
        let bytes = words.into_iter().flat_map(u64::to_le_bytes);
        for ((kept, mask), byte) in self.bytes.iter_mut().zip(&self.writable[..]).zip(bytes) {
            *kept = *kept & !mask | byte & mask;
        }
    }

    fn header(&mut self, identity: Identity) {
        let device = 0x1040 + identity.device_type;
        self.put(0x00, &0x1af4u16.to_le_bytes());
        self.put(0x02, &device.to_le_bytes());
        self.allow(COMMAND, &0x0547u16.to_le_bytes());
        // There is a capability list.
        self.put(STATUS, &0x0010u16.to_le_bytes());
        // Revision 1: no legacy interface (virtio 1.2, section 4.1.2).
        self.put(0x08, &(identity.class << 8 | 1).to_le_bytes());
        self.allow(CACHE_LINE, &[0xff]);
        // 64-bit memory, not prefetchable: registers have side effects.
        self.bar(REGISTERS_BAR, 0b100, REGISTERS_BAR_SIZE);
        self.bar(MSIX_BAR, 0, MSIX_BAR_SIZE);
        self.put(0x2c, &0x1af4u16.to_le_bytes());
        self.put(0x2e, &(0x40 + identity.device_type).to_le_bytes());
        self.put(CAPABILITIES_POINTER, &EXPRESS.to_le_bytes()[..1]);
        self.allow(INTERRUPT_LINE, &[0xff]);
        // INTA.
        self.put(INTERRUPT_LINE + 1, &[1]);
    }

    fn bar(&mut self, index: u8, kind: u32, size: u64) {
        let at = BAR0 + 4 * usize::from(index);
        self.put(at, &kind.to_le_bytes());
        let mask = (!(size - 1)).to_le_bytes();
        let is_64_bit = kind & 0b100 != 0;
        self.allow(at, if is_64_bit { &mask } else { &mask[..4] });
    }

    /// A root-complex integrated endpoint, as it sits on bus 0, whose one feature is function-level reset (PCI Express
    /// base specification, "PCI Express Capability Structure").
    fn express(&mut self) {
        const VERSION_2: u16 = 2;
        const INTEGRATED_ENDPOINT: u16 = 9 << 4;
        const ROLE_BASED_ERRORS: u32 = 1 << 15;
        const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
        self.put(EXPRESS, &[CAPABILITY_EXPRESS, MSIX.to_le_bytes()[0]]);
        self.put(EXPRESS + 2, &(VERSION_2 | INTEGRATED_ENDPOINT).to_le_bytes());
        self.put(EXPRESS + 4, &(ROLE_BASED_ERRORS | FUNCTION_LEVEL_RESET).to_le_bytes());
        // All but the initiate-reset bit, which reads as zero.
        self.allow(EXPRESS_DEVICE_CONTROL, &0x7fffu16.to_le_bytes());
    }

    fn msix(&mut self, vectors: u16) {
        self.put(MSIX, &[CAPABILITY_MSIX, COMMON.to_le_bytes()[0]]);
        self.put(MSIX + 2, &(vectors - 1).to_le_bytes());
        // Enable and function mask.
        self.allow(MSIX + 3, &[0xc0]);
        self.put(MSIX + 4, &u32::from(MSIX_BAR).to_le_bytes());
        self.put(MSIX + 8, &(MSIX_PBA_OFFSET | u32::from(MSIX_BAR)).to_le_bytes());
    }

    /// `struct virtio_pci_cap` (virtio 1.2, section 4.1.4).
    fn virtio(&mut self, at: usize, next: usize, kind: u8, length: u8, offset: u64, size: usize) {
        self.put(at, &[CAPABILITY_VENDOR, next.to_le_bytes()[0], length, kind, REGISTERS_BAR]);
        self.put(at + 8, &offset.to_le_bytes()[..4]);
        self.put(at + 12, &size.to_le_bytes()[..4]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// The window that an access at `offset` of `length` bytes reaches, if it does: the access is to be among those bytes of
    /// `pci_cfg_data` that the window has.
    pub fn window(&self, offset: usize, length: usize) -> Option<Window> {
        let field = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"));
        let (length, reached) = match field(ACCESS + 12) {
            size @ (1 | 2 | 4) => {
                let size = size as usize;
                (size, offset < ACCESS_DATA + size && offset + length > ACCESS_DATA)
            }
            _ => return None,
        };
        let window = Window { bar: self.bytes[ACCESS + 4], offset: field(ACCESS + 8), length };
        let size = match window.bar {
            REGISTERS_BAR => REGISTERS_BAR_SIZE,
            MSIX_BAR => MSIX_BAR_SIZE,
            _ => return None,
        };
        let fits = u64::from(window.offset) + length as u64 <= size;
        let aligned = (window.offset as usize).is_multiple_of(length);
        (reached && fits && aligned).then_some(window)
    }

    /// Shows what was read through the window, whose bytes these are.
    pub fn set_window_data(&mut self, data: &[u8]) {
        self.put(ACCESS_DATA, data);
    }

    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that can be.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> ConfigEvent {
        const INITIATE_RESET: usize = EXPRESS_DEVICE_CONTROL + 1;
        let mut event = ConfigEvent::None;
        for (&byte, at) in data.iter().zip(offset..) {
            let (Some(kept), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else { break };
            *kept = *kept & !mask | byte & mask;
            match at {
                INITIATE_RESET if byte & 0x80 != 0 => event = ConfigEvent::FunctionReset,
                _ => {}
            }
        }
        match self.window(offset, data.len()) {
            // What the driver did not write now, it has read or written before.
            Some(window) if event == ConfigEvent::None => {
                let bytes = self.bytes[ACCESS_DATA..][..4].try_into().expect("four bytes");
                ConfigEvent::WriteWindow(window, bytes)
            }
            _ => event,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity { device_type: 2, class: 0x01_00_00 }, 4, 60)
    }

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
            prop_assert_eq!(&space.bytes, &written.bytes);
            let mut again = self::space();
            again.restore(space.words());
            prop_assert_eq!(&space.bytes, &again.bytes);
        }

        #[test]
        fn any_write_leaves_the_read_only_bits_alone(writes in prop::collection::vec((0usize..4100, prop::collection::vec(any::<u8>(), 0..16)), 0..64)) {
            let mut space = space();
            for (offset, data) in writes {
                space.write(offset, &data);
            }
            for at in 0..CONFIG_SIZE {
                let fixed = !space.writable[at];
                prop_assert_eq!(space.bytes[at] & fixed, space.pristine[at] & fixed);
            }
        }
    }
}
