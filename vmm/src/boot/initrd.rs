//! The initial RAM disk: a file that is read straight into guest memory, as high as possible, out of the kernel's way.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::memory::GuestRam;

const PAGE: u64 = 4096;

/// An initrd that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// It cannot be opened.
    #[error("cannot open initrd {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or the like, or empty.
    #[error("initrd {} is not a regular file with something in it", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Larger than what RAM has left for it.
    #[error(
        "initrd {} has {size} bytes, but beside the kernel there is room for {room} bytes below 4 GiB; give the guest more \
         --memory, or a smaller initrd",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        size: u64,
        /// Bytes that there are for it.
        room: u64,
    },
    /// It cannot be read.
    #[error("cannot read initrd {} into guest memory", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// An initrd file.
#[derive(Debug)]
pub struct Initrd {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Initrd {
    /// Open `path`.
    ///
    /// # Errors
    /// If it can't be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self, InitrdError> {
        let failed = |source| InitrdError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(InitrdError::NotAFile { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned(), size: metadata.len() })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Read it into whole pages as high as possible between the guest-physical addresses `from` and `to`; returns where it is.
    pub(super) fn load(&mut self, ram: &GuestRam, from: u64, to: u64) -> Result<u64, InitrdError> {
        let from = from.next_multiple_of(PAGE);
        let room = to.saturating_sub(from);
        let address = to.checked_sub(self.size).map(|address| address / PAGE * PAGE).filter(|address| *address >= from);
        let Some(address) = address else {
            return Err(InitrdError::TooLarge { path: self.path.clone(), size: self.size, room });
        };
        let size = usize::try_from(self.size).map_err(|_| InitrdError::TooLarge {
            path: self.path.clone(),
            size: self.size,
            room,
        })?;
        ram.mmap()
            .read_exact_volatile_from(GuestAddress(address), &mut self.file, size)
            .map_err(|source| InitrdError::Read { path: self.path.clone(), source })?;
        Ok(address)
    }
}
