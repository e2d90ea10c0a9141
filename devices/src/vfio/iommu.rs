//! The IOMMU between the device and memory: client memory is mapped there before the device can reach it.

use std::ops::RangeInclusive;

use log::error;
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use outrigger_protocol::server::DmaRange;

/// An IOMMU that can be programmed: that of a container of VFIO's; iommufd's will be another.
pub(super) trait Iommu: std::fmt::Debug + Send {
    /// The DMA addresses that can be mapped. None: all.
    fn usable(&self) -> Option<&[RangeInclusive<u64>]>;

    /// Maps a range that lies in [`Iommu::usable`], at `host` in this process. The kernel pins its pages.
    fn map(&self, range: &DmaRange<'_>, host: usize) -> nix::Result<()>;

    /// Unmaps exactly what was mapped.
    fn unmap(&self, address: u64, size: u64) -> nix::Result<()>;
}

/// The memory that a device reaches: everything that its client has mapped.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    iommu: Box<dyn Iommu>,
    /// Bytes that are mapped.
    mapped: u64,
}

impl DeviceMemory {
    pub(super) fn new(iommu: Box<dyn Iommu>) -> Self {
        Self { iommu, mapped: 0 }
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
        if let Some(usable) = self.iommu.usable()
            && !usable.iter().any(|range| range.contains(&address) && range.contains(&last))
        {
            let usable: Vec<_> =
                usable.iter().map(|range| format!("{:#x}-{:#x}", range.start(), range.end())).collect();
            error!(
                "memory at {address:#x}-{last:#x} cannot be reached by the device: the host's IOMMU has {}",
                usable.join(", ")
            );
            return Err(Errno::EINVAL);
        }
        match self.iommu.map(range, host.as_ptr() as usize) {
            Ok(()) => {
                self.mapped += size;
                Ok(())
            }
            Err(Errno::ENOMEM) => {
                error!("{}", no_memory(self.mapped + size));
                Err(Errno::ENOMEM)
            }
            Err(errno) => {
                error!("memory at {address:#x}-{last:#x} cannot be mapped for the device: {}", errno.desc());
                Err(errno)
            }
        }
    }

    /// Closes a range to the device. When this returns, it is closed.
    pub(super) fn unmap(&mut self, range: &DmaRange<'_>) {
        let &DmaRange { address, size, .. } = range;
        if !is_reachable(range) {
            return;
        }
        self.mapped -= size;
        if let Err(errno) = self.iommu.unmap(address, size) {
            // What the client takes back would stay open to the device. The kernel closes everything with this process.
            error!("memory at {address:#x} cannot be closed to the device ({}): ending", errno.desc());
            std::process::abort();
        }
    }
}

/// Whether the device can reach a range that is accepted.
fn is_reachable(range: &DmaRange<'_>) -> bool {
    range.host.is_some() && (range.readable || range.writable)
}

/// Why the kernel cannot pin `needed` bytes, and what to do.
fn no_memory(needed: u64) -> String {
    let kib = |bytes: u64| bytes.div_ceil(1024);
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if limit != RLIM_INFINITY && limit < needed => format!(
            "the limit on locked memory is {} KiB, and the client's memory needs {} KiB: ulimit -l {1}, or LimitMEMLOCK= of systemd",
            kib(limit),
            kib(needed)
        ),
        _ => format!("the host has no memory left to keep {} KiB of the client's for the device", kib(needed)),
    }
}
