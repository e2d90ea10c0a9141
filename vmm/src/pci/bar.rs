//! Base address registers as a state machine: what the guest reads back, and which ranges are decoded where.
//! (PCI Local Bus 3.0, section 6.2.5, "Base Addresses".)

use super::command;

/// How many base address registers there are.
pub const BARS: usize = 6;
/// Index of the expansion ROM among [`Bars::ranges`], as among VFIO's regions.
pub const ROM: usize = 6;

const IO_SPACE: u32 = 0x1;
const TYPE_64: u32 = 0x4;
const PREFETCHABLE: u32 = 0x8;
const ROM_ENABLE: u32 = 0x1;
/// Sizes below these cannot be expressed.
const SMALLEST_IO: u64 = 4;
const SMALLEST_MEMORY: u64 = 16;
const SMALLEST_ROM: u64 = 2048;

/// Which address space a range is in, and how it is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// The expansion ROM, below 4 GiB.
    Rom,
}

impl Kind {
    /// Whether the range is in I/O space.
    #[must_use]
    pub const fn is_io(self) -> bool {
        matches!(self, Self::Io)
    }

    /// The kind that the low bits of a device's own register say; `None`: a reserved type.
    #[must_use]
    pub const fn from_register(register: u32) -> Option<Self> {
        let prefetchable = register & PREFETCHABLE != 0;
        match register & 0x7 {
            bits if bits & IO_SPACE != 0 => Some(Self::Io),
            0 => Some(Self::Memory32 { prefetchable }),
            TYPE_64 => Some(Self::Memory64 { prefetchable }),
            _ => None,
        }
    }

    /// Low bits of the register.
    const fn flags(self) -> u32 {
        match self {
            Self::Io => IO_SPACE,
            Self::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            Self::Memory64 { prefetchable } => TYPE_64 | (prefetchable as u32) << 3,
            Self::Rom => 0,
        }
    }

    const fn smallest(self) -> u64 {
        match self {
            Self::Io => SMALLEST_IO,
            Self::Memory32 { .. } | Self::Memory64 { .. } => SMALLEST_MEMORY,
            Self::Rom => SMALLEST_ROM,
        }
    }
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it can be.
    pub kind: Kind,
    /// Bytes, a power of two.
    pub size: u64,
    /// Where the guest put it.
    pub address: u64,
    /// The enable bit of an expansion ROM; otherwise true.
    pub enabled: bool,
}

/// The six registers and the ROM's of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bars {
    ranges: [Option<Bar>; BARS + 1],
}

/// A range that no register can describe.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// A 64-bit range needs the next register too.
    #[error("BAR {0} is 64 bits wide, but the next register is taken or does not exist")]
    NoUpperHalf(usize),
    /// Larger than the address space it would be in.
    #[error("BAR {index} has {size:#x} bytes, too many for its address space")]
    TooLarge {
        /// Which register.
        index: usize,
        /// Bytes.
        size: u64,
    },
}

impl Bars {
    /// Adds range `index`, of at least `size` bytes: the next power of two, as registers can express no other size.
    ///
    /// # Errors
    /// See [`BarError`].
    pub fn add(&mut self, index: usize, kind: Kind, size: u64) -> Result<(), BarError> {
        let too_large = BarError::TooLarge { index, size };
        let size = size.max(kind.smallest()).checked_next_power_of_two().ok_or(BarError::TooLarge { index, size })?;
        let limit = match kind {
            Kind::Io => 1 << 16,
            Kind::Memory32 { .. } | Kind::Rom => 1 << 31,
            Kind::Memory64 { .. } => 1 << 62,
        };
        if size > limit {
            return Err(too_large);
        }
        if matches!(kind, Kind::Memory64 { .. }) && (index + 1 >= BARS || self.ranges[index + 1].is_some()) {
            return Err(BarError::NoUpperHalf(index));
        }
        if index > 0 && index < BARS && self.is_upper_half(index) {
            return Err(BarError::NoUpperHalf(index - 1));
        }
        self.ranges[index] = Some(Bar { kind, size, address: 0, enabled: kind != Kind::Rom });
        Ok(())
    }

    /// Range `index`, if there is one.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Bar> {
        self.ranges.get(index)?.as_ref()
    }

    /// All ranges with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Bar)> {
        self.ranges.iter().enumerate().filter_map(|(index, bar)| Some((index, bar.as_ref()?)))
    }

    /// Puts range `index` where firmware would.
    pub fn place(&mut self, index: usize, address: u64) {
        if let Some(bar) = &mut self.ranges[index] {
            bar.address = address & !(bar.size - 1);
        }
    }

    /// The value that the guest reads from register `index` (0 to 5, or [`ROM`]).
    #[must_use]
    pub fn read(&self, index: usize) -> u32 {
        match self.ranges[index] {
            Some(bar) if bar.kind == Kind::Rom => low(bar.address) | u32::from(bar.enabled),
            Some(bar) => low(bar.address) | bar.kind.flags(),
            None if self.is_upper_half(index) => self.ranges[index - 1].map_or(0, |bar| high(bar.address)),
            None => 0,
        }
    }

    /// Whether register `index` (0 to 5, or [`ROM`]) is part of a range's.
    #[must_use]
    pub fn is_implemented(&self, index: usize) -> bool {
        self.ranges[index].is_some() || self.is_upper_half(index)
    }

    /// The guest writes `value` to register `index` (0 to 5, or [`ROM`]).
    pub fn write(&mut self, index: usize, value: u32) {
        if self.is_upper_half(index) {
            if let Some(bar) = &mut self.ranges[index - 1] {
                let address = u64::from(value) << 32 | u64::from(low(bar.address));
                bar.address = address & !(bar.size - 1);
            }
        } else if let Some(bar) = &mut self.ranges[index] {
            let upper = bar.address & !u64::from(u32::MAX);
            let upper = if matches!(bar.kind, Kind::Memory64 { .. }) { upper } else { 0 };
            bar.address = (upper | u64::from(value)) & !(bar.size - 1);
            if bar.kind == Kind::Rom {
                bar.enabled = value & ROM_ENABLE != 0;
            }
        }
    }

    /// Where range `index` is decoded under this command register; `None`: nowhere.
    #[must_use]
    pub fn decoded(&self, index: usize, command: u16) -> Option<u64> {
        let bar = self.get(index)?;
        let space = if bar.kind.is_io() { command::IO } else { command::MEMORY };
        let end = bar.address.checked_add(bar.size)?;
        let beyond_ports = bar.kind.is_io() && end > 1 << 16;
        // Address 0 is what software leaves behind that has not chosen one yet; nothing here can be there.
        (command & space != 0 && bar.enabled && bar.address != 0 && !beyond_ports).then_some(bar.address)
    }

    fn is_upper_half(&self, index: usize) -> bool {
        index > 0 && index < BARS && self.ranges[index - 1].is_some_and(|bar| matches!(bar.kind, Kind::Memory64 { .. }))
    }
}

const fn low(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}

const fn high(address: u64) -> u32 {
    (address >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Kind = Kind::Memory32 { prefetchable: false };
    const MEMORY_64: Kind = Kind::Memory64 { prefetchable: true };

    fn bars(ranges: &[(usize, Kind, u64)]) -> Bars {
        let mut bars = Bars::default();
        for &(index, kind, size) in ranges {
            bars.add(index, kind, size).unwrap();
        }
        bars
    }

    #[test]
    fn sizing_reads_back_the_size_mask_and_the_type() {
        let mut bars =
            bars(&[(0, MEMORY, 0x1000), (1, Kind::Io, 0x20), (2, MEMORY_64, 1 << 33), (ROM, Kind::Rom, 3000)]);
        for index in 0..=ROM {
            bars.write(index, u32::MAX);
        }
        let read: Vec<u32> = (0..=ROM).map(|index| bars.read(index)).collect();
        assert_eq!(read, [0xffff_f000, 0xffff_ffe1, 0x0000_000c, 0xffff_fffe, 0, 0, 0xffff_f001]);
    }

    #[test]
    fn a_64_bit_range_moves_in_two_halves() {
        let mut bars = bars(&[(4, MEMORY_64, 0x4000)]);
        bars.write(4, 0xc000_0000);
        bars.write(5, 0x12);
        assert_eq!(bars.get(4).unwrap().address, 0x12_c000_0000);
        bars.write(4, 0xd000_1234);
        assert_eq!((bars.read(4), bars.read(5)), (0xd000_000c, 0x12));
        assert_eq!(bars.decoded(4, command::MEMORY), Some(0x12_d000_0000));
    }

    #[test]
    fn a_range_is_decoded_in_its_own_space_only_while_enabled() {
        let mut bars = bars(&[(0, MEMORY, 0x1000), (1, Kind::Io, 8), (ROM, Kind::Rom, 0x1000)]);
        assert_eq!(bars.decoded(0, command::MEMORY), None, "no address yet");
        bars.write(0, 0xc000_0000);
        bars.write(1, 0x1000);
        bars.write(ROM, 0xc010_0000);
        assert_eq!(bars.decoded(0, command::MEMORY), Some(0xc000_0000));
        assert_eq!(bars.decoded(0, command::IO), None);
        assert_eq!(bars.decoded(1, command::IO), Some(0x1000));
        assert_eq!(bars.decoded(ROM, command::MEMORY), None, "the ROM has a switch of its own");
        bars.write(ROM, 0xc010_0001);
        assert_eq!(bars.decoded(ROM, command::MEMORY), Some(0xc010_0000));
        bars.write(1, 0xffff_fff8);
        assert_eq!(bars.decoded(1, command::IO), None, "ports end at 64 KiB");
    }

    #[test]
    fn ranges_that_no_register_can_describe_are_refused() {
        let mut bars = Bars::default();
        assert_eq!(bars.add(5, MEMORY_64, 16), Err(BarError::NoUpperHalf(5)));
        bars.add(1, MEMORY, 16).unwrap();
        assert_eq!(bars.add(0, MEMORY_64, 16), Err(BarError::NoUpperHalf(0)));
        bars.add(2, MEMORY_64, 16).unwrap();
        assert_eq!(bars.add(3, MEMORY, 16), Err(BarError::NoUpperHalf(2)));
        assert!(matches!(bars.add(4, MEMORY, 1 << 32), Err(BarError::TooLarge { .. })));
        assert!(matches!(bars.add(4, MEMORY_64, u64::MAX), Err(BarError::TooLarge { .. })));
    }

    #[test]
    fn absent_registers_read_zero_and_take_nothing() {
        let mut bars = Bars::default();
        bars.write(3, u32::MAX);
        assert_eq!(bars, Bars::default());
        assert_eq!(bars.read(3), 0);
    }

    #[test]
    fn kinds_are_told_from_a_devices_own_registers() {
        assert_eq!(Kind::from_register(0xffff_ff01), Some(Kind::Io));
        assert_eq!(Kind::from_register(0x8), Some(Kind::Memory32 { prefetchable: true }));
        assert_eq!(Kind::from_register(0x4), Some(Kind::Memory64 { prefetchable: false }));
        assert_eq!(Kind::from_register(0x6), None);
    }
}
