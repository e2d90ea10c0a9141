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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::cli::{self, Request};

    /// The line that these options are refused with once the files are looked at; empty where they are fine.
    fn line(options: &[&str]) -> String {
        let Request::Run(config) = cli::parse(["outrigger", "run"].iter().chain(options)).unwrap() else {
            panic!("{options:?} run nothing");
        };
        config.check_files().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_in_one_exact_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (kernel, disk, locked, empty) = (path("kernel"), path("disk,1"), path("locked"), path("empty"));
        fs::write(&kernel, "k").unwrap();
        fs::write(&disk, [0; 512]).unwrap();
        fs::write(&locked, [0; 512]).unwrap();
        fs::set_permissions(&locked, Permissions::from_mode(0o444)).unwrap();
        fs::write(&empty, "").unwrap();
        let socket = path("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let (missing, directory) = (path("missing"), folder.path().to_str().unwrap().to_owned());
        let disk_option = format!("path={}", disk.replace(',', ",,"));

        let kernel_table = [
            (missing.as_str(), "cannot open: No such file or directory"),
            (&directory, "is a directory, not a regular file"),
            ("/dev/null", "is a character device, not a regular file"),
            (&format!("{kernel}/x"), "cannot open: Not a directory"),
        ];
        for (path, problem) in kernel_table {
            assert_eq!(line(&["--kernel", path]), format!("--kernel {path}: {problem}"));
            assert_eq!(line(&["--kernel", &kernel, "--initrd", path]), format!("--initrd {path}: {problem}"));
        }

        let disk_table = [
            (&missing, "cannot open: No such file or directory"),
            (&directory, "is a directory, not an image file or block device"),
            (&socket, "is a socket, not an image file or block device"),
            (&empty, "is an empty file, not a disk image"),
            (&locked, "the file is read-only (mode 0444); add readonly=on, or make it writable"),
        ];
        for (path, problem) in disk_table {
            let option = format!("path={path}");
            assert_eq!(line(&["--kernel", &kernel, "--disk", &option]), format!("--disk {option}: {problem}"));
        }
        let locked = format!("path={locked},readonly=on");
        let options = ["--kernel", &kernel, "--initrd", &kernel, "--disk", &disk_option, "--disk", &locked];
        assert_eq!(line(&options), "");
    }
}
