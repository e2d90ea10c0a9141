//! The list of capabilities (PCI Local Bus 3.0, section 6.7, "Capabilities List").

use super::{ConfigSpace, INITIATE_RESET, SIZE, STATUS};
use crate::pci::{CONFIG_REGION, MSIX_IRQ};
use crate::server::{Irq, Region};
use crate::wire::IRQ_EVENTFD;

const CAPABILITIES_LIST: u8 = 1 << 4;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
/// From the start of the PCI Express capability.
const DEVICE_CONTROL: usize = 8;
/// PCI Express Base 5.0, section 7.2.2: the size of a function that has that capability.
const EXPRESS_SIZE: usize = 4096;

impl ConfigSpace {
    /// Adds 1 to 2,048 MSI-X vectors, whose table and pending bits are at these offsets of a BAR that there is, multiples of
    /// 8 (section 6.8.2). The client owns both.
    ///
    /// # Panics
    /// When they do not lie within the BAR.
    pub fn with_msix(mut self, vectors: u16, bar: u32, table: u32, pending: u32) -> Self {
        let size = self.regions.get(bar as usize).map_or(0, |region| region.size);
        let fits = |at: u32, length: u64| at.is_multiple_of(8) && u64::from(at) + length <= size;
        let count = u64::from(vectors);
        assert!((1..=2048).contains(&vectors), "there are 1 to 2,048 vectors");
        assert!(
            fits(table, 16 * count) && fits(pending, count.div_ceil(64) * 8),
            "the MSI-X table is not within BAR {bar}"
        );
        let body = [u32::from(vectors - 1) << 16, table | bar, pending | bar].map(u32::to_le_bytes).concat();
        // Enable and function mask.
        self.add_capability(MSIX, &body[2..], &[0, 0xc0]);
        self.irqs[MSIX_IRQ as usize] = Irq { count: vectors.into(), flags: IRQ_EVENTFD };
        self
    }

    /// Makes it a PCI Express function, a root-complex integrated endpoint as it sits on bus 0, whose one feature is
    /// function-level reset (PCI Express Base 5.0, section 7.5.3, "PCI Express Capability Structure").
    pub fn with_function_level_reset(mut self) -> Self {
        const VERSION_2: u16 = 2;
        const INTEGRATED_ENDPOINT: u16 = 9 << 4;
        const ROLE_BASED_ERRORS: u32 = 1 << 15;
        const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
        const LENGTH: usize = 0x3c;
        for bytes in [&mut self.bytes, &mut self.writable, &mut self.pristine] {
            bytes.resize(EXPRESS_SIZE, 0);
        }
        self.regions[CONFIG_REGION as usize] = Region::messages(EXPRESS_SIZE as u64);
        let mut body = [0; LENGTH - 2];
        body[..2].copy_from_slice(&(VERSION_2 | INTEGRATED_ENDPOINT).to_le_bytes());
        body[2..6].copy_from_slice(&(ROLE_BASED_ERRORS | FUNCTION_LEVEL_RESET).to_le_bytes());
        let at = self.add_capability(EXPRESS, &body, &[]);
        // All but the initiate-reset bit, which reads as zero.
        self.allow(at + DEVICE_CONTROL, &[0xff, !INITIATE_RESET]);
        self.reset_byte = Some(at + DEVICE_CONTROL + 1);
        self
    }

    /// Adds a capability behind those there are (section 6.7, "Capabilities List"): its id, and what follows the pointer to the
    /// next one, of which the client can write the bits that are set in `writable`. Returns where it is.
    ///
    /// # Panics
    /// When there is no room left in the first 256 bytes.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        let end = at + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len(), "there is no room for the capability {id:#x}");
        let place = u8::try_from(at).expect("it is in the first 256 bytes");
        self.put(self.pointer, &[place]);
        self.put(STATUS, &[CAPABILITIES_LIST]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        (self.pointer, self.next) = (at + 1, end.next_multiple_of(4));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(1, 0x1000)
    }

    fn byte(space: &ConfigSpace, at: usize) -> u8 {
        space.bytes()[at]
    }

    /// Where each is, and its id.
    fn list(space: &ConfigSpace) -> Vec<(usize, u8)> {
        let mut at = usize::from(byte(space, 0x34));
        let mut found = Vec::new();
        while at != 0 {
            found.push((at, byte(space, at)));
            at = byte(space, at + 1).into();
        }
        found
    }

    #[test]
    fn capabilities_are_listed_in_their_order_each_at_a_multiple_of_four() {
        let mut space = space();
        assert_eq!((list(&space), byte(&space, STATUS)), (vec![], 0));
        assert_eq!(space.add_capability(9, &[5, 1, 2], &[0, 0xf0, 0]), 0x40);
        assert_eq!(space.add_capability(9, &[4, 7], &[]), 0x48);
        assert_eq!((list(&space), byte(&space, STATUS)), (vec![(0x40, 9), (0x48, 9)], 0x10));
        space.write(0x40, &[0xff; 16]);
        assert_eq!(space.bytes()[0x40..0x50], [9, 0x48, 5, 0xf1, 2, 0, 0, 0, 9, 0, 4, 7, 0, 0, 0, 0]);
        space.reset();
        assert_eq!(space.bytes()[0x40..0x45], [9, 0x48, 5, 1, 2]);
    }

    #[test]
    fn vectors_are_in_the_capability_and_among_the_interrupts() {
        let mut space = space().with_msix(65, 1, 0x800, 0xf00);
        assert_eq!(space.bytes()[0x40..0x4c], [0x11, 0, 64, 0, 1, 8, 0, 0, 1, 0xf, 0, 0]);
        assert_eq!(space.irqs()[MSIX_IRQ as usize].count, 65);
        space.write(0x42, &[0xff; 10]);
        assert_eq!(space.bytes()[0x40..0x4c], [0x11, 0, 64, 0xc0, 1, 8, 0, 0, 1, 0xf, 0, 0], "enable and mask alone");
    }

    #[test]
    fn a_table_that_fits_exactly_is_within_its_bar_and_one_beyond_is_a_mistake() {
        space().with_msix(256, 1, 0, 0xfe0);
        space().with_msix(1, 1, 0xff0, 0xff8);
        for (vectors, bar, table, pending) in [
            (257, 1, 0, 0xff8),
            (1, 1, 0xff8, 0),
            (65, 1, 0, 0xff8),
            (1, 0, 0, 0),
            (1, 1, 4, 16),
            (0, 1, 0, 0),
            (1, 9, 0, 0),
        ] {
            let built = std::panic::catch_unwind(|| space().with_msix(vectors, bar, table, pending));
            assert!(built.is_err(), "{vectors} {bar} {table:#x} {pending:#x}");
        }
    }

    #[test]
    fn the_reset_bit_asks_for_a_reset_and_reads_as_zero() {
        let mut space = space().with_function_level_reset();
        assert_eq!((list(&space), space.bytes().len()), (vec![(0x40, EXPRESS)], 4096));
        assert_eq!(space.regions()[CONFIG_REGION as usize].size, 4096);
        assert!(space.write(0x48, &0x8010u16.to_le_bytes()));
        assert_eq!(space.bytes()[0x48..0x4a], [0x10, 0]);
        assert!(!space.write(0x48, &0x7fffu16.to_le_bytes()));
        assert!(!space.write(0x4a, &[0xff]) && !space.write(0x40, &[0xff; 8]));
        assert!(space.write(0x40, &[0xff; 10]), "with all that is before it");
        assert!(!self::space().write(0x48, &[0xff; 2]), "without the capability");
    }

    #[test]
    #[should_panic(expected = "no room")]
    fn a_list_that_is_too_long_is_a_mistake() {
        let mut space = space();
        space.add_capability(9, &[0; 0xbe], &[]);
        space.add_capability(9, &[0], &[]);
    }

    #[test]
    fn the_last_capability_may_end_with_the_first_256_bytes() {
        let mut space = space();
        assert_eq!(space.add_capability(9, &[0; 0xbe], &[0xff; 0xbe]), 0x40);
        space.write(0xff, &[3]);
        assert_eq!(space.bytes()[0xff], 3);
    }
}
