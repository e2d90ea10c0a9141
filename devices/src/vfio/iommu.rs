//! The IOMMU between the device and memory: client memory is mapped there before the device can reach it.

use std::ops::RangeInclusive;

use log::{Level, error, log};
use nix::errno::Errno;
use outrigger_iommufd::MapError;
use outrigger_protocol::server::DmaRange;

/// An IOMMU that can be programmed: that of a container of VFIO's, or iommufd's.
pub(super) trait Iommu: std::fmt::Debug + Send {
    /// The DMA addresses that can be mapped. None: all.
    fn usable(&self) -> Option<&[RangeInclusive<u64>]>;

    /// Maps a range that lies in [`Iommu::usable`], at `host` in this process. The kernel pins its pages.
    fn map(&self, range: &DmaRange<'_>, host: usize) -> nix::Result<()>;

    /// Unmaps exactly what was mapped.
    fn unmap(&self, address: u64, size: u64) -> nix::Result<()>;

    /// Takes over the mapping of exactly these addresses, which a predecessor has made; false: there is none. The device
    /// reaches the memory all the while. An error: there is another mapping in these addresses, or nothing is handed over.
    fn adopt(&self, _address: u64, _size: u64, _host: usize) -> nix::Result<bool> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Unmaps whatever there is between two addresses, the last one included.
    fn clear(&self, _addresses: RangeInclusive<u64>) -> nix::Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
}

/// The memory that a device reaches: everything that its client has mapped.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    iommu: Box<dyn Iommu>,
    /// Bytes of memory that are mapped.
    mapped: u64,
    /// The ranges that a successor has been told of so far, sorted; none: this process has begun with an IOMMU that maps nothing.
    adopted: Option<Vec<RangeInclusive<u64>>>,
}

impl DeviceMemory {
    pub(super) fn new(iommu: Box<dyn Iommu>) -> Self {
        Self { iommu, mapped: 0, adopted: None }
    }

    /// That of a predecessor, whose mappings are still there: what the client maps is taken over, or mapped if it is not
    /// there.
    pub(super) fn of_predecessor(iommu: Box<dyn Iommu>) -> Self {
        Self { adopted: Some(Vec::new()), ..Self::new(iommu) }
    }

    /// The client has said everything that is to be mapped: all else that a predecessor has mapped is closed to the device.
    /// The kernel is asked rather than a journal, which a hijacked predecessor could have written.
    pub(super) fn close_the_rest(&mut self) -> Result<(), Errno> {
        let Some(adopted) = self.adopted.take() else { return Ok(()) };
        for gap in gaps(adopted) {
            self.iommu.clear(gap).inspect_err(|errno| {
                error!("what a predecessor has mapped for the device cannot be closed: {}", errno.desc());
            })?;
        }
        Ok(())
    }

    /// Maps a range, or takes over what a predecessor has mapped.
    fn map_or_adopt(&mut self, range: &DmaRange<'_>, host: usize) -> nix::Result<()> {
        let Some(adopted) = &mut self.adopted else { return self.iommu.map(range, host) };
        if !self.iommu.adopt(range.address, range.size, host)? {
            self.iommu.map(range, host)?;
        }
        adopted.push(range.address..=range.address + (range.size - 1));
        Ok(())
    }

    /// Opens a range to the device. What is wrong with it goes to the log in one line.
    pub(super) fn map(&mut self, range: &DmaRange<'_>) -> Result<(), Errno> {
        let &DmaRange { address, size, host, writable, .. } = range;
        let Some(host) = host.filter(|_| is_reachable(range)) else {
            if !writable {
                // Of a range that is closed in both directions, and of ROMs, which QEMU offers without a file: a device that
                // reads there finds nothing.
                return Ok(());
            }
            error!("memory at {address:#x} came without a file to map: a physical device reaches shared memory only");
            return Err(Errno::EINVAL);
        };
        let last = address + (size - 1);
        let usable = self.iommu.usable().map_or(Ok(()), |usable| MapError::check_usable(usable, address, last));
        let mapped = usable.and_then(|()| {
            let needed = self.mapped + locked(range);
            let mapped = self.map_or_adopt(range, host.as_ptr() as usize);
            mapped.map_err(|errno| MapError::of(errno, address, last, needed))
        });
        match mapped {
            Ok(()) => {
                self.mapped += locked(range);
                Ok(())
            }
            Err(error) => {
                // A client that gives BARs says itself, once, that they are not reached.
                let level = if range.is_bar { Level::Debug } else { Level::Error };
                log!(level, "{error}");
                Err(error.errno())
            }
        }
    }

    /// Closes a range to the device. When this returns, it is closed.
    pub(super) fn unmap(&mut self, range: &DmaRange<'_>) {
        let &DmaRange { address, size, .. } = range;
        if !is_reachable(range) {
            return;
        }
        self.mapped -= locked(range);
        if let Err(errno) = self.iommu.unmap(address, size) {
            // Memory that the client takes back would stay open to the device. The kernel closes everything with this process.
            error!("memory at {address:#x} cannot be closed to the device ({}): ending", errno.desc());
            std::process::abort();
        }
    }
}

/// The addresses that are in none of these ranges, which do not overlap.
fn gaps(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_by_key(|range| *range.start());
    let mut next = Some(0);
    let mut gaps = Vec::new();
    for range in ranges {
        if let (Some(first), Some(last)) = (next, range.start().checked_sub(1))
            && first <= last
        {
            gaps.push(first..=last);
        }
        next = range.end().checked_add(1);
    }
    gaps.extend(next.map(|first| first..=u64::MAX));
    gaps
}

/// Bytes that a range locks in the host's memory.
fn locked(range: &DmaRange<'_>) -> u64 {
    if range.is_bar { 0 } else { range.size }
}

/// Whether the device can reach a range that is accepted.
fn is_reachable(range: &DmaRange<'_>) -> bool {
    range.host.is_some() && (range.readable || range.writable)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn gaps_are_what_no_range_has() {
        assert_eq!(gaps(vec![]), [0..=u64::MAX]);
        assert_eq!(gaps(vec![0..=0xfff]), [0x1000..=u64::MAX]);
        assert_eq!(gaps(vec![0x5000..=0x5fff, 0x1000..=0x1fff]), [0..=0xfff, 0x2000..=0x4fff, 0x6000..=u64::MAX]);
        assert_eq!(gaps(vec![0x1000..=0x1fff, 0x2000..=u64::MAX]), [0..=0xfff]);
        assert_eq!(gaps(vec![0..=u64::MAX]), []);
    }

    /// Notes what is closed.
    #[derive(Debug, Default)]
    struct Closed(std::sync::Arc<Mutex<Vec<RangeInclusive<u64>>>>);

    impl Iommu for Closed {
        fn usable(&self) -> Option<&[RangeInclusive<u64>]> {
            None
        }
        fn map(&self, _: &DmaRange<'_>, _: usize) -> nix::Result<()> {
            Ok(())
        }
        fn unmap(&self, _: u64, _: u64) -> nix::Result<()> {
            Ok(())
        }
        fn adopt(&self, _: u64, _: u64, _: usize) -> nix::Result<bool> {
            Ok(true)
        }
        fn clear(&self, addresses: RangeInclusive<u64>) -> nix::Result<()> {
            self.0.lock().unwrap().push(addresses);
            Ok(())
        }
    }

    #[test]
    fn what_a_predecessor_has_mapped_besides_is_closed_once() {
        let closed = Closed::default();
        let seen = closed.0.clone();
        let mut memory = DeviceMemory::of_predecessor(Box::new(closed));
        memory.adopted.as_mut().unwrap().push(0..=0xffff);
        memory.close_the_rest().unwrap();
        memory.close_the_rest().unwrap();
        assert_eq!(*seen.lock().unwrap(), [0x1_0000..=u64::MAX]);
        let mut memory = DeviceMemory::new(Box::new(Closed(seen.clone())));
        memory.close_the_rest().unwrap();
        assert_eq!(seen.lock().unwrap().len(), 1, "nothing of its own");
    }
}
