//! From files to a guest that can start: the kernel is recognised by its content, loaded together with the initrd and the command
//! line, and told what its machine is like, by the Linux boot protocol (bzImage) or by PVH (ELF).

mod bzimage;
mod elf;
mod initrd;
mod kernel;
mod memory_map;
mod page_tables;
mod reset_vector;
pub mod segments;

use std::ffi::CString;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::layout;
use crate::machine::memory::GuestRam;
use crate::vcpu::Entry;

pub use initrd::{Initrd, InitrdError};
pub use kernel::{Format, Kernel, KernelError};

/// A guest that cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd cannot be used.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The kernel has no room for that long a command line.
    #[error("the kernel command line has {length} bytes, but this kernel takes {limit}")]
    CommandLineTooLong {
        /// Bytes, without a terminating zero.
        length: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A zero byte would end it early.
    #[error("the kernel command line has a zero byte at offset {offset}")]
    CommandLineZero {
        /// Where it is.
        offset: usize,
    },
    /// A structure that the kernel needs doesn't fit into memory.
    #[error("cannot write {what} to guest memory")]
    Memory {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
}

/// A kernel with its RAM disk and command line.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<Initrd>,
    /// The kernel command line.
    pub command_line: &'a str,
}

/// Places of loaded data, as far as the kernel's boot protocol asks for them.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    /// The initrd's guest-physical address and size in bytes.
    initrd: Option<(u64, u64)>,
    /// Guest-physical address of ACPI's RSDP.
    rsdp: u64,
}

impl<'a> Payload<'a> {
    /// Open the files and see what they are.
    ///
    /// # Errors
    /// If one of them can't be read or is nothing that can be booted.
    pub fn open(kernel: &Path, initrd: Option<&Path>, command_line: &'a str) -> Result<Self, BootError> {
        Ok(Self { kernel: Kernel::open(kernel)?, initrd: initrd.map(Initrd::open).transpose()?, command_line })
    }

    /// Load everything into `ram`; the ACPI tables are there already, their RSDP at `rsdp`. Returns where the first vCPU starts.
    ///
    /// # Errors
    /// If something doesn't fit into RAM or a file is damaged.
    pub fn load(self, ram: &GuestRam, rsdp: u64) -> Result<Entry, BootError> {
        reset_vector::write(ram.mmap()).map_err(memory("the reset vector"))?;
        match self.kernel.format() {
            Format::BzImage => bzimage::load(self, ram, rsdp),
            Format::Elf => elf::load(self, ram, rsdp),
        }
    }

    /// Put the command line, of which the kernel takes `limit` bytes, where it belongs.
    fn write_command_line(&self, ram: &GuestRam, limit: usize) -> Result<(), BootError> {
        let length = self.command_line.len();
        let room = usize::try_from(layout::COMMAND_LINE_SIZE - 1).unwrap_or(limit);
        if length > limit.min(room) {
            return Err(BootError::CommandLineTooLong { length, limit: limit.min(room) });
        }
        let text = CString::new(self.command_line)
            .map_err(|error| BootError::CommandLineZero { offset: error.nul_position() })?;
        ram.mmap()
            .write_slice(text.as_bytes_with_nul(), GuestAddress(layout::COMMAND_LINE))
            .map_err(memory("the kernel command line"))
    }

    /// Load the initrd, if there is one, as high as possible between `kernel_end` and `limit`, guest-physical addresses.
    fn load_initrd(&mut self, ram: &GuestRam, kernel_end: u64, limit: u64) -> Result<Option<(u64, u64)>, BootError> {
        match &mut self.initrd {
            Some(initrd) => Ok(Some((initrd.load(ram, kernel_end, limit)?, initrd.size()))),
            None => Ok(None),
        }
    }
}

/// Turn a failed write into an error that says what was written.
fn memory(what: &'static str) -> impl FnOnce(GuestMemoryError) -> BootError {
    move |source| BootError::Memory { what, source }
}

#[cfg(test)]
pub(crate) mod images;
#[cfg(test)]
mod tests;
