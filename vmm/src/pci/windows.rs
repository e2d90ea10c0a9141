//! Where BARs are put before the guest starts, as firmware would: largest first, each on a multiple of its size.

use crate::machine::layout::AddressRange;

use super::bar::{Bars, Kind};

/// The free rest of the three windows of the host bridge.
#[derive(Clone, Debug)]
pub struct Windows {
    memory_32: AddressRange,
    memory_64: AddressRange,
    io: AddressRange,
}

/// A BAR that fits nowhere.
#[derive(Debug, thiserror::Error)]
#[error("BAR {index} needs {size:#x} bytes, more than is left of the PCI window {window}")]
pub struct WindowFull {
    index: usize,
    size: u64,
    window: &'static str,
}

impl Windows {
    /// Everything is free.
    #[must_use]
    pub const fn new(memory_32: AddressRange, memory_64: AddressRange, io: AddressRange) -> Self {
        Self { memory_32, memory_64, io }
    }

    /// Gives every BAR of a function a place.
    ///
    /// # Errors
    /// If a window is full.
    pub fn place(&mut self, bars: &mut Bars) -> Result<(), WindowFull> {
        let mut ranges: Vec<_> = bars.iter().map(|(index, bar)| (index, *bar)).collect();
        ranges.sort_by_key(|(_, bar)| std::cmp::Reverse(bar.size));
        for (index, bar) in ranges {
            let (window, name) = match bar.kind {
                Kind::Io => (&mut self.io, "for I/O ports"),
                Kind::Memory32 { .. } | Kind::Rom => (&mut self.memory_32, "below 4 GiB"),
                Kind::Memory64 { .. } => (&mut self.memory_64, "above RAM"),
            };
            let size = bar.size;
            let address = take(window, size).ok_or(WindowFull { index, size, window: name })?;
            bars.place(index, address);
        }
        Ok(())
    }
}

fn take(window: &mut AddressRange, size: u64) -> Option<u64> {
    // Memory ranges smaller than a page get one, so that no two devices share a page.
    let alignment = if window.end > 1 << 16 { size.max(0x1000) } else { size };
    let start = window.start.checked_next_multiple_of(alignment)?;
    let end = start.checked_add(size).filter(|&end| end <= window.end)?;
    window.start = end;
    Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_aligned_to_their_size_within_their_window() {
        let mut windows = Windows::new(
            AddressRange::new(0xc000_0000, 0xc010_0000),
            AddressRange::new(1 << 32, 1 << 33),
            AddressRange::new(0x1000, 0x1010),
        );
        let mut bars = Bars::default();
        bars.add(0, Kind::Memory32 { prefetchable: false }, 16).unwrap();
        bars.add(1, Kind::Memory32 { prefetchable: false }, 0x4000).unwrap();
        bars.add(2, Kind::Memory64 { prefetchable: true }, 0x2000).unwrap();
        bars.add(4, Kind::Io, 8).unwrap();
        windows.place(&mut bars).unwrap();
        let address = |index| bars.get(index).unwrap().address;
        assert_eq!((address(0), address(1), address(2), address(4)), (0xc000_4000, 0xc000_0000, 1 << 32, 0x1000));
        let mut more = Bars::default();
        more.add(0, Kind::Io, 16).unwrap();
        assert_eq!(windows.place(&mut more).unwrap_err().index, 0);
    }
}
