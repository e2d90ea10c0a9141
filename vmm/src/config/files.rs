//! A first look at the files named on the command line, so that a mistake is told before anything starts.
//!
//! Who uses a file checks it again when opening it: what is found here may have changed by then.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;

use super::{Config, DiskConfig, PciDeviceConfig, Problem, UsageError};

impl Config {
    /// Checks that kernel, initrd and disks exist, are of the right kind, and can be opened as needed.
    ///
    /// # Errors
    /// The first of them that cannot be used, and why.
    pub fn check_files(&self) -> Result<(), UsageError> {
        let named = |flag: &str, path: &Path| format!("{flag} {}", path.display());
        readable(&self.kernel).map_err(|problem| UsageError::new(named("--kernel", &self.kernel), problem))?;
        if let Some(initrd) = &self.initrd {
            readable(initrd).map_err(|problem| UsageError::new(named("--initrd", initrd), problem))?;
        }
        for device in &self.pci_devices {
            if let PciDeviceConfig::Disk(disk) = device {
                usable(disk).map_err(|problem| UsageError::new(device, problem))?;
            }
        }
        Ok(())
    }
}

fn readable(path: &Path) -> Result<(), Problem> {
    let metadata = look(path)?;
    if !metadata.is_file() {
        return Err(Problem::FileKind { is: kind(metadata.file_type()), wanted: "a regular file" });
    }
    open(path, false).map(drop).map_err(|error| failed("open", &error))
}

fn usable(disk: &DiskConfig) -> Result<(), Problem> {
    let metadata = look(&disk.path)?;
    let file_type = metadata.file_type();
    if !(file_type.is_file() || file_type.is_block_device()) {
        return Err(Problem::FileKind { is: kind(file_type), wanted: "an image file or block device" });
    }
    if file_type.is_file() && metadata.len() == 0 {
        return Err(Problem::FileKind { is: "an empty file", wanted: "a disk image" });
    }
    if disk.readonly {
        return open(&disk.path, false).map(drop).map_err(|error| failed("open", &error));
    }
    // Root can write a file that nobody may write, but whoever took the permission away meant it.
    let mode = metadata.permissions().mode() & 0o7777;
    if file_type.is_file() && mode & 0o222 == 0 {
        return Err(Problem::ReadOnly { why: format!("the file is read-only (mode {mode:04o})") });
    }
    match open(&disk.path, true) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc_error) if is_read_only(libc_error)) => {
            Err(Problem::ReadOnly { why: format!("cannot open for writing: {}", errno(&error).desc()) })
        }
        Err(error) => Err(failed("open", &error)),
    }
}

fn is_read_only(error: i32) -> bool {
    matches!(Errno::from_raw(error), Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

fn look(path: &Path) -> Result<Metadata, Problem> {
    std::fs::metadata(path).map_err(|error| failed("open", &error))
}

/// Never waits, whatever the file has become since [`look`].
fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(O_NONBLOCK).open(path)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// `error` of opening or creating a file named on the command line.
pub(crate) fn failed(action: &'static str, error: &io::Error) -> Problem {
    Problem::File { action, errno: errno(error) }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_block_device() {
        "a block device"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a regular file"
    }
}
