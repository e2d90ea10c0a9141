//! Memory that outlives the process which serves a device: what its successor needs to go on, and nothing else.
//!
//! The client makes the journal, holds it, and lends it to each server of the device. It is Outrigger's own extension of
//! vfio-user, negotiated by the capability [`JournalFormat`] (`docs/PROTOCOL.md`, "Journal").

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::libc;
use serde::{Deserialize, Serialize};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, VolatileMemory};

use crate::foreign::ForeignFd;

/// The largest journal, in bytes.
pub const MAX_SIZE: u64 = 1 << 20;
/// The longest name of a format, in bytes.
pub const MAX_FORMAT: usize = 64;
/// The most descriptors that a client keeps for a device.
pub const MAX_KEPT: usize = 64;

/// The `outrigger_journal` capability: what a server writes into a journal. A client proposes it without a format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalFormat {
    /// The layout's name and version, as `virtio-blk/1`. A successor must have the same. Printable ASCII, at most
    /// [`MAX_FORMAT`] bytes.
    pub format: String,
    /// Bytes: a multiple of 8, at most [`MAX_SIZE`].
    pub size: u64,
}

impl JournalFormat {
    /// Whether a journal of this format can be made.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let name = self.format.as_bytes();
        let is_name = (1..=MAX_FORMAT).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        is_name && (8..=MAX_SIZE).contains(&self.size) && self.size.is_multiple_of(8)
    }
}

/// A journal, mapped. Whoever else has it may change it at any time.
#[derive(Clone, Debug)]
pub struct JournalMemory {
    region: Arc<MmapRegion>,
}

impl JournalMemory {
    /// Maps `size` bytes, a multiple of 8, of the client's file.
    ///
    /// # Errors
    /// It is not memory, may become shorter, or is shorter than that.
    pub fn map(fd: ForeignFd, size: u64) -> io::Result<Self> {
        let unusable = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let Ok(memory) = fd.memory() else { return unusable("the journal is not memory") };
        if memory.shrinks {
            return unusable("the journal is not sealed against becoming shorter");
        }
        let length = usize::try_from(size).ok().filter(|_| size.is_multiple_of(8) && (8..=MAX_SIZE).contains(&size));
        let Some(length) = length.filter(|_| size <= memory.length) else {
            return unusable("the journal has another size");
        };
        // Memory is closed without waiting.
        Self::build(
            MmapRegionBuilder::new(length).with_file_offset(FileOffset::new(File::from(fd.into_owned()), 0)),
            libc::MAP_SHARED,
        )
    }

    /// Memory of this process alone, `size` bytes, a multiple of 8: for a device whose client keeps no journal.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn private(size: usize) -> io::Result<Self> {
        Self::build(MmapRegionBuilder::new(size), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    /// The client's file, which it has opened for this server alone; none: this is memory of this process alone.
    ///
    /// An open-file-description lock on it (`fcntl(2)`, `F_OFD_SETLK`) is how a server knows that its predecessor's I/O is
    /// over: whatever the kernel is at for a process may hold the file open, and so the lock, though the process is gone.
    ///
    /// # Errors
    /// This process may have no more descriptors.
    pub fn file(&self) -> io::Result<Option<File>> {
        self.region.file_offset().map(|offset| offset.file().try_clone()).transpose()
    }

    fn build(builder: MmapRegionBuilder, flags: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let region = builder.with_mmap_prot(protection).with_mmap_flags(flags).build();
        Ok(Self { region: Arc::new(region.map_err(io::Error::other)?) })
    }

    /// All of it, as words. What another process wrote before it was killed is there, each store whole, in its order.
    #[must_use]
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        let start = self.region.as_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, `len` bytes long, cannot become shorter (it is sealed, or anonymous), and
        // stays for as long as `self` is borrowed. Atomic integers have no invalid values, and expect others to change
        // them.
        unsafe { std::slice::from_raw_parts(start, self.region.len() / size_of::<AtomicU64>()) }
    }
}
