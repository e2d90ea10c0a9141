//! The kernel file: what it is, told by its content and never by its name, and whether it is all there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::Error as LoaderError;

use crate::machine::layout;

/// Bytes that are enough to recognise every format and hold all of the Linux boot header that is of interest.
const HEAD: usize = 0x264;
const ELF_HEADER: usize = 64;
/// Offset of the byte that says whether the file is for 32 or 64 bits.
const ELF_CLASS: usize = 4;
const PROGRAM_HEADER: usize = 56;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 128;
const MACHINE_X86_64: u16 = 62;
const CLASS_64: u8 = 2;
const PT_LOAD: u32 = 1;

/// Oldest boot protocol with a 64-bit entry point, 2.12 (Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x20C;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;

/// A kernel that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be opened.
    #[error("cannot open kernel {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or the like.
    #[error("kernel {} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Neither a bzImage nor an ELF file.
    #[error("kernel {} is neither a bzImage nor an ELF vmlinux, it {hint}", path.display())]
    Unrecognized {
        /// The file.
        path: PathBuf,
        /// Its apparent format, in words.
        hint: &'static str,
    },
    /// The right format with something in it that can't be used.
    #[error("kernel {} cannot be booted here: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The reason, in words.
        reason: &'static str,
    },
    /// The end is missing.
    #[error("kernel {} is truncated: it has {actual} bytes of at least {expected}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// RAM is too small for it.
    #[error(
        "kernel {} needs {} MiB of memory below 4 GiB to start, but the guest has {} MiB there; give it more --memory",
        path.display(), needed.div_ceil(1 << 20), ram >> 20
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// End of the memory that it needs, a guest-physical address.
        needed: u64,
        /// End of the memory below 4 GiB.
        ram: u64,
    },
    /// The loader gave up.
    #[error("cannot load kernel {}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LoaderError,
    },
}

/// How a kernel is packed and booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Compressed, with a boot header: Linux boot protocol.
    BzImage,
    /// An ELF executable: PVH.
    Elf,
}

/// A kernel file that was found to be complete.
#[derive(Debug)]
pub struct Kernel {
    pub(super) file: File,
    path: PathBuf,
    format: Format,
    memory_end: u64,
}

impl Kernel {
    /// Open `path` and see what it is.
    ///
    /// # Errors
    /// If it can't be read, is no kernel, is one for another kind of machine, or isn't complete.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let file = File::open(path).map_err(|source| KernelError::Open { path: path.to_owned(), source })?;
        let metadata = file.metadata().map_err(|source| KernelError::Read { path: path.to_owned(), source })?;
        if !metadata.is_file() {
            return Err(KernelError::NotAFile { path: path.to_owned() });
        }
        let mut kernel = Self { file, path: path.to_owned(), format: Format::Elf, memory_end: 0 };
        let size = metadata.len();
        let mut head = vec![0; HEAD];
        let present = usize::try_from(size).map_or(HEAD, |size| size.min(HEAD));
        kernel.read_at(&mut head[..present], 0)?;
        if head.starts_with(b"\x7FELF") {
            kernel.check_elf(&head, size)?;
        } else if head[0x202..].starts_with(b"HdrS") {
            kernel.format = Format::BzImage;
            kernel.check_bzimage(&head, size)?;
        } else {
            return Err(KernelError::Unrecognized { path: kernel.path, hint: hint(&head[..present]) });
        }
        Ok(kernel)
    }

    /// The file's format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where the memory ends that the kernel needs to start, a guest-physical address.
    #[must_use]
    pub fn memory_end(&self) -> u64 {
        self.memory_end
    }

    /// See whether the boot header describes a 64-bit kernel that is all there.
    fn check_bzimage(&mut self, head: &[u8], size: u64) -> Result<(), KernelError> {
        if u16_at(head, 0x206) < OLDEST_PROTOCOL || u16_at(head, 0x236) & XLF_KERNEL_64 == 0 {
            return Err(self.unsupported("it has no 64-bit entry point (Linux older than 3.8, or 32-bit)"));
        }
        let setup_sectors = if head[0x1F1] == 0 { 4 } else { head[0x1F1] };
        // The header counts in sectors of 512 and in units of 16 bytes, of which the last need not be whole (boot.rst, `syssize`).
        let setup = (u64::from(setup_sectors) + 1) * 512;
        self.check_size(setup + (u64::from(u32_at(head, 0x1F4)) * 16).saturating_sub(15), size)?;
        // The kernel unpacks itself to its preferred address at least, and says how much memory it needs there.
        let (load_address, preferred_address) = (u64::from(u32_at(head, 0x214)), u64_at(head, 0x258));
        let unpacked = load_address.max(preferred_address).saturating_add(u64::from(u32_at(head, 0x260)));
        self.memory_end = unpacked.max(load_address + (size - setup));
        Ok(())
    }

    /// See whether the program headers describe a kernel for x86-64 that is all there.
    fn check_elf(&mut self, head: &[u8], size: u64) -> Result<(), KernelError> {
        self.check_size(ELF_HEADER as u64, size)?;
        if head[ELF_CLASS] != CLASS_64 || u16_at(head, 18) != MACHINE_X86_64 {
            return Err(self.unsupported("it is an ELF file for another kind of machine than x86-64"));
        }
        let (offset, count) = (u64_at(head, 32), u16_at(head, 56));
        if usize::from(u16_at(head, 54)) != PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(self.unsupported("it is an ELF file that is no executable"));
        }
        let length = usize::from(count) * PROGRAM_HEADER;
        let end = offset.checked_add(length as u64).ok_or_else(|| self.unsupported("its ELF header is damaged"))?;
        self.check_size(end, size)?;
        let mut headers = vec![0; length];
        self.read_at(&mut headers, offset)?;
        for header in headers.chunks_exact(PROGRAM_HEADER).filter(|header| u32_at(header, 0) == PT_LOAD) {
            let damaged = || self.unsupported("its program headers are damaged");
            self.check_size(u64_at(header, 8).checked_add(u64_at(header, 32)).ok_or_else(damaged)?, size)?;
            let (address, length) = (u64_at(header, 24), u64_at(header, 40).max(u64_at(header, 32)));
            if address < layout::HIGH_MEMORY {
                return Err(self.unsupported("it wants to be loaded below 1 MiB, where the boot structures are"));
            }
            self.memory_end = self.memory_end.max(address.checked_add(length).ok_or_else(damaged)?);
        }
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), KernelError> {
        self.file.read_exact_at(bytes, offset).map_err(|source| KernelError::Read { path: self.path.clone(), source })
    }

    fn check_size(&self, expected: u64, actual: u64) -> Result<(), KernelError> {
        if actual < expected {
            return Err(KernelError::Truncated { path: self.path.clone(), expected, actual });
        }
        Ok(())
    }

    pub(super) fn unsupported(&self, reason: &'static str) -> KernelError {
        KernelError::Unsupported { path: self.path.clone(), reason }
    }

    pub(super) fn load_error(&self, source: LoaderError) -> KernelError {
        KernelError::Load { path: self.path.clone(), source }
    }

    /// Refuse a kernel that needs memory up to the guest-physical address `needed` if RAM below 4 GiB ends before.
    pub(super) fn check_fits(&self, needed: u64, ram: u64) -> Result<(), KernelError> {
        if needed > ram {
            return Err(KernelError::TooLarge { path: self.path.clone(), needed, ram });
        }
        Ok(())
    }
}

/// The apparent format of a file that is no kernel.
fn hint(head: &[u8]) -> &'static str {
    const MAGICS: [(&[u8], &str); 7] = [
        (b"\x1F\x8B", "looks gzip-compressed: unpack it first"),
        (b"\x28\xB5\x2F\xFD", "looks zstd-compressed: unpack it first"),
        (b"\xFD7zXZ", "looks xz-compressed: unpack it first"),
        (b"\x02\x21\x4C\x18", "looks lz4-compressed: unpack it first"),
        (b"070701", "looks like a cpio archive: is it the initrd?"),
        (b"QFI\xFB", "looks like a qcow2 disk image"),
        (b"#!", "looks like a script"),
    ];
    if head.is_empty() {
        return "is empty";
    }
    if let Some((_, hint)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return hint;
    }
    if head.get(0x38..0x3C) == Some(b"ARM\x64") {
        return "looks like a kernel for arm64";
    }
    let text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if head.iter().all(text) { "looks like text" } else { "has none of their marks" }
}

/// The little-endian number at `offset`, which is within `bytes`.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
