//! The configuration space of a PCI function: a type 0 header and capabilities, and the regions and interrupts that follow
//! from it.

mod capabilities;

use super::device::Region;
use super::interrupts::Irq;
use crate::pci::{BAR5_REGION, CONFIG_REGION, INTX_IRQ, NUM_IRQS, NUM_REGIONS};
use crate::wire::{IRQ_AUTOMASKED, IRQ_EVENTFD, IRQ_MASKABLE};

/// PCI Local Bus 3.0, section 6.1.
const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Behind the header.
const CAPABILITIES: usize = 0x40;

/// I/O and memory decoding, bus mastering, parity, SERR# and INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const INTX_DISABLE: u16 = 1 << 10;
const INTERRUPT_STATUS: u8 = 1 << 3;
/// In a BAR: 64-bit memory.
const WIDE: u32 = 0b100;

/// In a byte that [`ConfigSpace::with_function_level_reset`] adds.
const INITIATE_RESET: u8 = 1 << 7;

/// A type 0 header (PCI Local Bus 3.0, section 6.1, "Configuration Space Organization") and a list of capabilities: 256
/// bytes, or 4,096 of a PCI Express function.
///
/// The client decides where BARs are and which interrupts are connected, and may or may not pass the guest's writes
/// on: they are kept and read back here.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Which bits the client can write.
    writable: Vec<u8>,
    pristine: Vec<u8>,
    /// Where the next capability goes, and the pointer to it.
    next: usize,
    pointer: usize,
    /// The byte that initiates a function-level reset.
    reset_byte: Option<usize>,
    regions: Regions,
    irqs: Irqs,
}

pub(super) type Regions = [Region; NUM_REGIONS as usize];
pub(super) type Irqs = [Irq; NUM_IRQS as usize];

impl ConfigSpace {
    /// A function without BARs or interrupts. `class` is class, subclass and interface, as in `0x01_08_02` (section
    /// 6.2.1, "Device Identification"). The subsystem has the same ids; the revision is 0.
    ///
    /// # Panics
    /// When `class` has more than 24 bits.
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        assert!(class < 1 << 24, "a class has 24 bits");
        let mut space = Self {
            bytes: vec![0; SIZE],
            writable: vec![0; SIZE],
            pristine: vec![0; SIZE],
            next: CAPABILITIES,
            pointer: CAPABILITIES_POINTER,
            reset_byte: None,
            regions: Default::default(),
            irqs: Default::default(),
        };
        space.regions[CONFIG_REGION as usize] = Region::messages(SIZE as u64);
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        space.put(REVISION, &(class << 8).to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(CACHE_LINE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space.with_subsystem(vendor, device)
    }

    /// Vendor and device of the board.
    pub fn with_subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.put(SUBSYSTEM, &vendor.to_le_bytes());
        self.put(SUBSYSTEM + 2, &device.to_le_bytes());
        self
    }

    /// The revision of the device.
    pub fn with_revision(mut self, revision: u8) -> Self {
        self.put(REVISION, &[revision]);
        self
    }

    /// Adds a BAR of 32-bit memory that is not prefetchable, `size` bytes long and reached by messages only.
    ///
    /// # Panics
    /// When there is no such BAR, or `size` is not a power of two from 16 on.
    pub fn with_bar(mut self, index: u32, size: u32) -> Self {
        let at = self.add_region(index, size.into());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self
    }

    /// The same in 64-bit memory: it takes the next BAR, too.
    ///
    /// # Panics
    /// When there are no two such BARs, or `size` is not a power of two from 16 on.
    pub fn with_wide_bar(mut self, index: u32, size: u64) -> Self {
        assert!(index < BAR5_REGION, "the last BAR has no next one");
        let at = self.add_region(index, size);
        self.put(at, &WIDE.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self
    }

    fn add_region(&mut self, index: u32, size: u64) -> usize {
        assert!(index <= BAR5_REGION, "there are six BARs");
        assert!(size.is_power_of_two() && size >= 16, "a BAR has a power of two of bytes, 16 at least");
        self.regions[index as usize] = Region::messages(size);
        BAR0 + 4 * index as usize
    }

    /// Adds the level-triggered interrupt pin INTA.
    pub fn with_intx(mut self) -> Self {
        self.put(INTERRUPT_PIN, &[1]);
        self.irqs[INTX_IRQ as usize] = Irq { count: 1, flags: IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED };
        self
    }

    /// For [`super::Device::regions`].
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// For [`super::Device::irqs`].
    pub fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    /// The regions and interrupts, which are not here any more.
    pub(super) fn take_description(&mut self) -> (Regions, Irqs) {
        (std::mem::take(&mut self.regions), self.irqs)
    }

    /// All of it, as the client reads it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that can be. Returns whether that asks for a function-level reset.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut resets = false;
        for (&byte, at) in data.iter().zip(offset..) {
            let (Some(kept), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else { break };
            *kept = *kept & !mask | byte & mask;
            resets |= self.reset_byte == Some(at) && byte & INITIATE_RESET != 0;
        }
        resets
    }

    /// Changes what is read, whether or not the client can write it, until the next reset.
    ///
    /// # Panics
    /// When it is beyond the end.
    pub fn set(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Back to the state after power-on, but for what a client can have written: that is as in `bytes`.
    pub fn restore(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.reset();
        for ((kept, mask), byte) in self.bytes.iter_mut().zip(&self.writable).zip(bytes) {
            *kept = *kept & !mask | byte & mask;
        }
    }

    /// Whether the guest forbids the pin (section 6.2.2, "Device Control", bit 10).
    pub fn intx_disabled(&self) -> bool {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]) & INTX_DISABLE != 0
    }

    /// Shows in the status register whether the device has a cause to interrupt, forbidden or not (section 6.2.3,
    /// "Device Status", bit 3): by this a driver knows its own interrupt on a shared pin.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        self.bytes[STATUS] = self.bytes[STATUS] & !INTERRUPT_STATUS | if pending { INTERRUPT_STATUS } else { 0 };
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.pristine);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for all in [&mut self.bytes, &mut self.pristine] {
            all[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 4096).with_bar(2, 16).with_intx()
    }

    fn u32_at(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_says_what_was_asked_for() {
        let space = space();
        assert_eq!([0, REVISION, SUBSYSTEM].map(|at| u32_at(&space, at)), [0x10f0_1af4, 0x0880_0000, 0x10f0_1af4]);
        assert_eq!(u32_at(&space, INTERRUPT_LINE), 0x100);
        assert_eq!(
            space.regions().iter().map(|region| region.size).collect::<Vec<_>>(),
            [4096, 0, 16, 0, 0, 0, 0, 256, 0]
        );
        assert_eq!(space.irqs().iter().map(|irq| irq.count).collect::<Vec<_>>(), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn bars_answer_sizing_and_keep_addresses() {
        let mut space = space();
        for bar in 0..6 {
            space.write(BAR0 + 4 * bar, &[0xff; 4]);
        }
        let sizes: Vec<_> = (0..6).map(|bar| u32_at(&space, BAR0 + 4 * bar)).collect();
        assert_eq!(sizes, [0xffff_f000, 0, 0xffff_fff0, 0, 0, 0]);
        space.write(BAR0 + 3, &[0xc0]);
        assert_eq!(u32_at(&space, BAR0), 0xc0ff_f000);
        space.reset();
        assert_eq!(u32_at(&space, BAR0), 0);
    }

    #[test]
    fn the_pin_is_forbidden_and_shown_by_different_registers() {
        let mut space = space();
        space.write(COMMAND, &INTX_DISABLE.to_le_bytes());
        assert!(space.intx_disabled());
        space.set_interrupt_status(true);
        assert_eq!(u32_at(&space, COMMAND), 0x0008_0400);
        space.set_interrupt_status(false);
        space.write(COMMAND, &[0; 4]);
        assert!(!space.intx_disabled() && u32_at(&space, COMMAND) == 0);
    }

    #[test]
    fn a_wide_bar_takes_two_registers() {
        let mut space = space().with_wide_bar(4, 0x2_0000_0000).with_revision(7).with_subsystem(1, 2);
        space.write(BAR0 + 16, &[0xff; 8]);
        assert_eq!([BAR0 + 16, BAR0 + 20].map(|at| u32_at(&space, at)), [4, 0xffff_fffe]);
        assert_eq!(space.regions()[4].size, 0x2_0000_0000);
        assert_eq!([REVISION, SUBSYSTEM].map(|at| u32_at(&space, at)), [0x0880_0007, 0x0002_0001]);
        space.reset();
        assert_eq!(u32_at(&space, BAR0 + 16), 4);
    }

    #[test]
    #[should_panic(expected = "no next one")]
    fn the_last_bar_cannot_be_wide() {
        let _ = space().with_wide_bar(5, 16);
    }

    #[test]
    fn what_is_set_stays_until_a_reset() {
        let mut space = space();
        space.set(0xf0, &[1, 2]);
        space.write(0xf0, &[9, 9]);
        assert_eq!(space.bytes()[0xf0..0xf3], [1, 2, 0]);
        space.reset();
        assert_eq!(space.bytes()[0xf0..0xf2], [0, 0]);
    }

    #[test]
    #[should_panic(expected = "power of two")]
    fn a_bar_of_another_size_is_a_mistake() {
        let _ = space().with_bar(1, 48);
    }

    proptest! {
        #[test]
        fn any_bytes_restore_what_can_be_written_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), SIZE)) {
            let (mut space, mut written) = (space(), space());
            space.write(0, &[0xff; SIZE]);
            space.restore(bytes.iter().copied());
            written.write(0, &bytes);
            prop_assert_eq!(&space.bytes, &written.bytes);
        }

        #[test]
        fn any_write_leaves_the_read_only_bits_alone(writes in prop::collection::vec((0usize..260, prop::collection::vec(any::<u8>(), 0..16)), 0..64)) {
            let mut space = space();
            for (offset, data) in writes {
                space.write(offset, &data);
            }
            for at in 0..SIZE {
                let fixed = !space.writable[at];
                prop_assert_eq!(space.bytes[at] & fixed, space.pristine[at] & fixed);
            }
        }
    }
}
