//! The file or block device behind a disk: opened, checked, locked, measured.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::format;
use crate::lock::{self, FENCE_PATIENCE, Others};

/// How long the lock of a process that is about to end may linger at start-up. One that has ended is waited for longer.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);
/// Bytes of a virtio sector, whatever the disk's block size (virtio 1.2, section 5.2.4).
pub const SECTOR: u64 = 512;

/// A file that cannot be a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Mostly that it doesn't exist, or no permission.
    #[error("cannot open: {}", describe(.0))]
    Io(io::Error),
    /// A directory, a pipe, a character device.
    #[error("is {0}, not an image file or block device")]
    Kind(&'static str),
    /// The file's permissions let nobody write it.
    #[error("the file is read-only (mode {0:04o}); add readonly=on, or make it writable")]
    Protected(u32),
    /// The user or the file system may not write it.
    #[error("cannot open for writing: {}; add readonly=on, or make it writable", describe(.0))]
    ReadOnly(io::Error),
    /// Somebody else writes it, or reads it while we would write.
    #[error("locked by another process")]
    Locked,
    /// A disk has sectors.
    #[error("is an empty file, not a disk image")]
    Empty,
    /// A disk is made of sectors.
    #[error("its size, {0} bytes, is not a multiple of {SECTOR}")]
    Size(u64),
    /// An image in another format.
    #[error("is a {0} image, and raw is what can be served: convert it, or add format=raw if it is raw all the same")]
    Format(&'static str),
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

/// When the file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// When it is opened.
    AtOnce,
    /// By [`Backing::lock`]: a predecessor may still use it.
    Later,
}

/// Block sizes, for the guest to align to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Smallest addressable block, in bytes.
    pub logical: u32,
    /// Logical blocks per physical block, as a power of two.
    pub physical_exponent: u8,
    /// Smallest I/O without a read-modify-write, in logical blocks.
    pub minimum_io: u16,
    /// Best I/O size for throughput, in logical blocks; zero: unknown.
    pub optimal_io: u32,
}

impl Topology {
    fn new(logical: u32, physical: u32, minimum_io: u32, optimal_io: u32) -> Self {
        let ratio = (physical.max(logical) / logical).next_power_of_two();
        Self {
            logical,
            // At most 31.
            physical_exponent: u8::try_from(ratio.trailing_zeros()).unwrap_or(0),
            minimum_io: u16::try_from((minimum_io / logical).max(1)).unwrap_or(u16::MAX),
            optimal_io: optimal_io / logical,
        }
    }

    /// Sectors per physical block.
    pub fn physical_sectors(&self) -> u32 {
        (self.logical / 512) << self.physical_exponent
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Backing {
    /// The file, open for reading and, unless `readonly`, writing.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Whether there is no device behind the file (tmpfs, ramfs), so that nothing is to be waited for.
    pub in_memory: bool,
    /// Block sizes.
    pub topology: Topology,
    /// Whether the space of a range can be given back, after which it reads as zeros.
    pub can_punch: bool,
    /// Whether a range can be made zeros without writing them from here.
    pub can_zero: bool,
}

impl Backing {
    /// Opens and locks a disk: exclusively for writing, shared for reading only. If nobody has said that it is `raw`, it
    /// must not look like an image in another format.
    pub fn open(path: &Path, readonly: bool, raw: bool, locking: Locking) -> Result<Self, OpenError> {
        // Opening some devices and pipes has side effects or blocks.
        let metadata = path.metadata().map_err(OpenError::Io)?;
        check_kind(&metadata)?;
        // Root could write it, but somebody took care that it isn't written.
        if !readonly && metadata.is_file() && metadata.mode() & 0o222 == 0 {
            return Err(OpenError::Protected(metadata.mode() & 0o7777));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EROFS) => OpenError::ReadOnly(error),
                Some(libc::EACCES | libc::EPERM) if !readonly && can_read(path) => OpenError::ReadOnly(error),
                _ => OpenError::Io(error),
            })?;
        let metadata = file.metadata().map_err(OpenError::Io)?;
        check_kind(&metadata)?;
        may_wait(&file).map_err(OpenError::Io)?;
        if locking == Locking::AtOnce {
            match lock(&file, readonly, LOCK_PATIENCE) {
                Err(OpenError::Locked) if !lock::is_held_by_a_process(&file) => {
                    lock(&file, readonly, FENCE_PATIENCE)?;
                }
                result => result?,
            }
        }
        let (size, topology) = if metadata.is_file() {
            let block = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(512, 1 << 20);
            (metadata.len(), Topology::new(512, block, block, 0))
        } else {
            measure(&file).map_err(|errno| OpenError::Io(errno.into()))?
        };
        if size == 0 {
            return Err(OpenError::Empty);
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::Size(size));
        }
        if !raw && let Some(format) = format::recognize(&file, size).map_err(OpenError::Io)? {
            return Err(OpenError::Format(format));
        }
        let in_memory = metadata.is_file() && is_in_memory(&file);
        let can_punch = !readonly
            && match metadata.is_file() {
                true => file_system_punches(&file, size),
                false => block_device_zeroes(Path::new("/sys/dev/block"), metadata.rdev()),
            };
        // A block device that cannot do it by itself has zeros written by the kernel.
        let can_zero = !readonly && (can_punch || !metadata.is_file());
        Ok(Self { file, size, readonly, in_memory, topology, can_punch, can_zero })
    }

    /// Locks the disk, which is no matter if it is locked already, when a predecessor is gone that had locked it: process and
    /// all requests that the kernel was at, as each of them has the file open.
    pub fn lock(&self) -> Result<(), OpenError> {
        lock(&self.file, self.readonly, FENCE_PATIENCE)
    }

    /// The capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }
}

/// Whether it could be served with `readonly=on`. Does not wait, whatever the file has become meanwhile.
fn can_read(path: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path).is_ok()
}

/// From now on requests wait for storage that cannot be asked without waiting, as that behind an encrypted disk of the device
/// mapper: io_uring answers EAGAIN where a file that must not block is on such a device.
fn may_wait(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check_kind(metadata: &Metadata) -> Result<(), OpenError> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() || kind.is_block_device() => Ok(()),
        () if kind.is_dir() => Err(OpenError::Kind("a directory")),
        () if kind.is_char_device() => Err(OpenError::Kind("a character device")),
        () if kind.is_fifo() => Err(OpenError::Kind("a pipe")),
        () if kind.is_socket() => Err(OpenError::Kind("a socket")),
        () => Err(OpenError::Kind("a file of an unknown kind")),
    }
}

/// Files of a file system that has no device. They may be swapped out, which is as rare as it is for any memory.
fn is_in_memory(file: &File) -> bool {
    /// Linux, `include/uapi/linux/magic.h`.
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    fstatfs(file).is_ok_and(|found| {
        let kind = found.filesystem_type();
        kind == TMPFS_MAGIC || kind.0 == RAMFS_MAGIC
    })
}

/// Tries beyond the end of the file, where there is nothing to change.
fn file_system_punches(file: &File, size: u64) -> bool {
    const BLOCK: u64 = 1 << 20;
    let Some(offset) = size.checked_next_multiple_of(BLOCK).and_then(|offset| i64::try_from(offset).ok()) else {
        return false;
    };
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset, BLOCK.cast_signed()).is_ok()
}

/// Whether a block device can make zeros of a range, which is how the kernel punches a hole in it. `sys` has an entry for
/// each block device by number; that of a partition is in the entry of its disk.
fn block_device_zeroes(sys: &Path, device: u64) -> bool {
    let entry = sys.join(format!("{}:{}", major(device), minor(device)));
    let limit = |queue: &str| fs::read_to_string(entry.join(queue).join("write_zeroes_max_bytes"));
    let limit = limit("queue").or_else(|_| limit("../queue"));
    limit.is_ok_and(|bytes| bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
}

fn lock(file: &File, readonly: bool, patience: Duration) -> Result<(), OpenError> {
    let others = if readonly { Others::Share } else { Others::Wait };
    lock::lock(file, others, patience).map_err(|errno| match errno {
        Errno::EAGAIN => OpenError::Locked,
        errno => OpenError::Io(errno.into()),
    })
}

mod ioctls {
    nix::ioctl_read_bad!(logical_block_size, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(physical_block_size, libc::BLKPBSZGET, libc::c_uint);
    nix::ioctl_read_bad!(minimum_io, libc::BLKIOMIN, libc::c_uint);
    nix::ioctl_read_bad!(optimal_io, libc::BLKIOOPT, libc::c_uint);
    nix::ioctl_read!(size64, 0x12, 114, u64);
}

fn measure(file: &File) -> nix::Result<(u64, Topology)> {
    let fd = file.as_raw_fd();
    let (mut size, mut logical, mut physical, mut minimum, mut optimal) = (0u64, 0, 0, 0, 0);
    // SAFETY: each ioctl writes one integer of the type it is declared with, to a local variable.
    unsafe {
        ioctls::size64(fd, &raw mut size)?;
        ioctls::logical_block_size(fd, &raw mut logical)?;
        ioctls::physical_block_size(fd, &raw mut physical)?;
        ioctls::minimum_io(fd, &raw mut minimum)?;
        ioctls::optimal_io(fd, &raw mut optimal)?;
    }
    let logical = u32::try_from(logical).unwrap_or(512).max(512);
    Ok((size, Topology::new(logical, physical, minimum, optimal)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let open = |path: &str| Backing::open(path.as_ref(), false, false, Locking::AtOnce).unwrap_err().to_string();
        assert_eq!(open("/"), "is a directory, not an image file or block device");
        assert_eq!(open("/dev/null"), "is a character device, not an image file or block device");
        assert_eq!(open("/nonexistent"), "cannot open: No such file or directory");
        let odd = image(1000);
        assert!(matches!(Backing::open(odd.path(), false, false, Locking::AtOnce), Err(OpenError::Size(1000))));
        let empty = image(0);
        assert!(matches!(Backing::open(empty.path(), false, false, Locking::AtOnce), Err(OpenError::Empty)));
    }

    #[test]
    fn a_write_protected_file_needs_readonly() {
        let file = image(4096);
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let error = Backing::open(file.path(), false, false, Locking::AtOnce).unwrap_err().to_string();
        assert_eq!(error, "the file is read-only (mode 0444); add readonly=on, or make it writable");
        assert_eq!(Backing::open(file.path(), true, false, Locking::AtOnce).unwrap().sectors(), 8);
    }

    #[test]
    fn writers_exclude_everyone_and_readers_share() {
        let file = image(4096);
        let writer = Backing::open(file.path(), false, false, Locking::AtOnce).unwrap();
        assert!(matches!(Backing::open(file.path(), true, false, Locking::AtOnce), Err(OpenError::Locked)));
        drop(writer);
        let _reader = Backing::open(file.path(), true, false, Locking::AtOnce).unwrap();
        Backing::open(file.path(), true, false, Locking::AtOnce).unwrap();
        assert!(matches!(Backing::open(file.path(), false, false, Locking::AtOnce), Err(OpenError::Locked)));
    }

    /// As the kernel has it open for a killed process, here by a mapping.
    #[test]
    fn a_holder_that_is_gone_is_waited_for() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

        let file = image(4096);
        let path = file.path().to_owned();
        let writer = Backing::open(&path, false, false, Locking::AtOnce).unwrap();
        let size = std::num::NonZeroUsize::new(4096).unwrap();
        // SAFETY: a new mapping, which nothing reads or writes.
        let mapping = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &writer.file, 0) }.unwrap();
        assert!(lock::is_held_by_a_process(file.as_file()));
        drop(writer);
        assert!(!lock::is_held_by_a_process(file.as_file()));
        let opening = std::thread::spawn(move || Backing::open(&path, false, false, Locking::AtOnce).map(drop));
        std::thread::sleep(2 * LOCK_PATIENCE);
        let waits = !opening.is_finished();
        // SAFETY: nobody else knows of it.
        unsafe { munmap(mapping, 4096) }.unwrap();
        let result = opening.join().unwrap();
        assert!(waits && result.is_ok(), "{result:?}");
    }

    #[test]
    fn requests_may_wait_for_storage() {
        let file = image(4096);
        let backing = Backing::open(file.path(), false, false, Locking::AtOnce).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&backing.file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK) && flags.contains(OFlag::O_RDWR));
    }

    #[test]
    fn topology_counts_in_logical_blocks() {
        let topology = Topology::new(512, 4096, 4096, 1 << 20);
        assert_eq!((topology.physical_exponent, topology.minimum_io, topology.optimal_io), (3, 8, 2048));
        assert_eq!(topology.physical_sectors(), 8);
        assert_eq!(Topology::new(4096, 512, 0, 0).physical_sectors(), 8);
    }

    #[test]
    fn an_image_in_another_format_is_refused_unless_it_is_said_to_be_raw() {
        let file = image(4096);
        fs::write(file.path(), [&b"QFI\xfb\0\0\0\x03"[..], &[0; 504]].concat()).unwrap();
        let error = Backing::open(file.path(), true, false, Locking::AtOnce).unwrap_err();
        assert!(matches!(error, OpenError::Format("qcow2")));
        assert!(error.to_string().starts_with("is a qcow2 image"));
        assert_eq!(Backing::open(file.path(), false, true, Locking::AtOnce).unwrap().sectors(), 1);
    }

    #[test]
    fn finding_out_whether_a_file_can_have_holes_changes_nothing() {
        let file = image(0);
        let content = vec![0x5a; 3 << 20];
        fs::write(file.path(), &content).unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        let backing = Backing::open(file.path(), false, false, Locking::AtOnce).unwrap();
        assert!(backing.can_punch && backing.can_zero, "the file system of temporary files can");
        drop(backing);
        assert_eq!(fs::read(file.path()).unwrap(), content);
        assert_eq!(file.as_file().metadata().unwrap().blocks(), before);
        let backing = Backing::open(file.path(), true, false, Locking::AtOnce).unwrap();
        assert!(!backing.can_punch && !backing.can_zero);
    }

    #[test]
    fn a_block_devices_limits_are_its_own_or_its_disks() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("disk");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir(disk.join("part")).unwrap();
        std::os::unix::fs::symlink(&disk, sys.path().join("8:0")).unwrap();
        std::os::unix::fs::symlink(disk.join("part"), sys.path().join("8:1")).unwrap();
        let [whole, part, other] = [0, 1, 2].map(|minor| nix::sys::stat::makedev(8, minor));
        for (limit, expected) in [("0\n", false), ("2147450880\n", true), ("", false)] {
            fs::write(disk.join("queue/write_zeroes_max_bytes"), limit).unwrap();
            for device in [whole, part] {
                assert_eq!(block_device_zeroes(sys.path(), device), expected);
            }
            assert!(!block_device_zeroes(sys.path(), other));
        }
    }
}
