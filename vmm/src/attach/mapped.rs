//! The path without any exit: an area of a region in the server's memory, mapped here and shown to the guest.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use outrigger_protocol::client::RegionInfo;
use outrigger_protocol::wire;

use super::AttachError;

/// A mapping of one area.
///
/// Nobody here reads or writes it: a server that makes its file shorter makes guest accesses fail (KVM reports a bad
/// address), but cannot crash the VMM.
#[derive(Debug)]
pub(super) struct MappedArea {
    /// Where in the region.
    pub(super) range: Range<u64>,
    pub(super) readonly: bool,
    host: NonNull<c_void>,
    length: usize,
}

// SAFETY: the address is only handed to KVM and to munmap, neither of which cares about threads.
unsafe impl Send for MappedArea {}
// SAFETY: as above; there is no interior access.
unsafe impl Sync for MappedArea {}

impl MappedArea {
    pub(super) fn new(region: &RegionInfo, range: Range<u64>) -> Result<Self, AttachError> {
        let failed = |source| AttachError::Map { region: region.index, size: range.end - range.start, source };
        let fd = region.fd.as_ref().ok_or(failed(Errno::EBADF))?;
        let length = usize::try_from(range.end - range.start).map_err(|_| failed(Errno::EOVERFLOW))?;
        let nonzero = NonZeroUsize::new(length).ok_or(failed(Errno::EINVAL))?;
        let offset = region.offset.checked_add(range.start).ok_or(failed(Errno::EOVERFLOW))?;
        let offset = off_t::try_from(offset).map_err(|_| failed(Errno::EOVERFLOW))?;
        let readonly = region.flags & wire::REGION_WRITE == 0;
        let protection = if readonly { ProtFlags::PROT_READ } else { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let host = unsafe { mmap(None, nonzero, protection, MapFlags::MAP_SHARED, fd.lend(), offset) };
        Ok(Self { host: host.map_err(failed)?, length, readonly, range })
    }

    pub(super) fn host(&self) -> *mut u8 {
        self.host.as_ptr().cast()
    }

    pub(super) fn size(&self) -> u64 {
        self.length as u64
    }
}

impl Drop for MappedArea {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every memslot over it is gone: placements are dropped before areas.
        if let Err(errno) = unsafe { munmap(self.host, self.length) } {
            log::error!("unmapping {} bytes of a device's region: {errno}", self.length);
        }
    }
}
