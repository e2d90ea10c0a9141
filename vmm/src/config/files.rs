//! A first look at the files named on the command line, so that a mistake is told before anything starts.
//!
//! The user of a file checks it again when opening it: it may have changed by then.

use std::fs::{FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;

use super::{Config, Problem, UsageError};

impl Config {
    /// Checks that kernel and initrd exist, are regular files, and can be read, and that the directory of programs is one.
    ///
    /// # Errors
    /// The first of them that cannot be used, and why.
    pub fn check_files(&self) -> Result<(), UsageError> {
        let named = |flag: &str, path: &Path| format!("{flag} {}", path.display());
        readable(&self.kernel).map_err(|problem| UsageError::new(named("--kernel", &self.kernel), problem))?;
        if let Some(initrd) = &self.initrd {
            readable(initrd).map_err(|problem| UsageError::new(named("--initrd", initrd), problem))?;
        }
        if let Some(programs) = &self.programs {
            is_directory(programs).map_err(|problem| UsageError::new(named("--programs", programs), problem))?;
        }
        Ok(())
    }
}

fn is_directory(path: &Path) -> Result<(), Problem> {
    let metadata = path.canonicalize().and_then(std::fs::metadata).map_err(|error| failed("open", &error))?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(Problem::FileKind { is: kind(metadata.file_type()), wanted: "a directory" }),
    }
}

fn readable(path: &Path) -> Result<(), Problem> {
    let metadata = std::fs::metadata(path).map_err(|error| failed("open", &error))?;
    if !metadata.is_file() {
        return Err(Problem::FileKind { is: kind(metadata.file_type()), wanted: "a regular file" });
    }
    // Never waits, whatever the file has become since it was looked at.
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    opened.map(drop).map_err(|error| failed("open", &error))
}

/// `error` of opening or creating a file named on the command line.
pub(crate) fn failed(action: &'static str, error: &io::Error) -> Problem {
    Problem::File { action, errno: error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw) }
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
        let (kernel, missing, directory) = (path("kernel"), path("missing"), path("."));
        std::fs::write(&kernel, "k").unwrap();
        let table = [
            (missing.as_str(), "cannot open: No such file or directory"),
            (&directory, "is a directory, not a regular file"),
            ("/dev/null", "is a character device, not a regular file"),
            (&format!("{kernel}/x"), "cannot open: Not a directory"),
        ];
        for (path, problem) in table {
            assert_eq!(line(&["--kernel", path]), format!("--kernel {path}: {problem}"));
            assert_eq!(line(&["--kernel", &kernel, "--initrd", path]), format!("--initrd {path}: {problem}"));
        }
        assert_eq!(line(&["--kernel", &kernel, "--initrd", &kernel]), "");
        let table = [
            (missing.as_str(), "cannot open: No such file or directory"),
            (&kernel, "is a regular file, not a directory"),
            ("/dev/null", "is a character device, not a directory"),
        ];
        for (path, problem) in table {
            assert_eq!(line(&["--kernel", &kernel, "--programs", path]), format!("--programs {path}: {problem}"));
        }
        assert_eq!(line(&["--kernel", &kernel, "--programs", &directory]), "");
    }
}
