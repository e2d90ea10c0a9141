//! `scripts/testbed`: a Linux host with working hardware virtualisation, in software, in which Outrigger boots Linux guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::lock::Lock;
use crate::process::{Ended, run};
use crate::{binaries, guest, repository};

/// What is copied into the host, and what it runs. Outrigger's three programs are in /bin, the guest's files in /guest.
pub struct Testbed {
    directory: TempDir,
    files: Vec<(PathBuf, String)>,
    disks: Vec<PathBuf>,
    minutes: u64,
    _one_at_a_time: Lock,
}

impl Testbed {
    /// Waits until no other test uses the test bed.
    pub fn new() -> Self {
        let lock = Lock::take("testbed");
        let directory = TempDir::new().expect("there is room for temporary files");
        binaries::copy_stripped(directory.path());
        let mut files: Vec<_> =
            binaries::NAMES.iter().map(|name| (directory.path().join(name), format!("/bin/{name}"))).collect();
        let guest = guest::directory();
        for name in ["vmlinuz", "initramfs.cpio.lz4"] {
            files.push((guest.join(name), format!("/guest/{name}")));
        }
        Self { directory, files, disks: Vec::new(), minutes: 8, _one_at_a_time: lock }
    }

    /// A place for files of the test's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Copies a file, with the libraries it needs if it is a program.
    pub fn file(mut self, from: impl Into<PathBuf>, to: &str) -> Self {
        self.files.push((from.into(), to.to_owned()));
        self
    }

    /// Adds an initramfs at `to` whose guest runs `script` and powers off.
    pub fn initramfs(self, script: &str, to: &str) -> Self {
        let name = to.rsplit('/').next().unwrap_or(to);
        let path = self.directory().join(name);
        guest::initramfs(&path, script, &[], &[]);
        self.file(path, to)
    }

    /// Attaches a file as the next of /dev/vda, /dev/vdb, …. Its content does not change, whatever is written.
    pub fn disk(mut self, path: impl Into<PathBuf>) -> Self {
        self.disks.push(path.into());
        self
    }

    /// How long the script may take on a busy machine; eight minutes unless told.
    pub fn minutes(mut self, minutes: u64) -> Self {
        self.minutes = minutes;
        self
    }

    /// Runs `script`; its exit status and output are the result's.
    #[track_caller]
    pub fn run(&self, script: &str) -> Ended {
        let script_file = self.directory().join("script.sh");
        std::fs::write(&script_file, script).expect("the directory is ours");
        let mut command = Command::new(repository::file("scripts/testbed"));
        let limit = Duration::from_secs(self.minutes * 60);
        command.args(["-t", &limit.as_secs().to_string()]);
        for (from, to) in &self.files {
            command.arg("-f").arg(format!("{}:{to}", from.display()));
        }
        for disk in &self.disks {
            command.arg("-b").arg(disk);
        }
        // The script has its own deadline; ours is for a test bed that hangs.
        run(command.arg(script_file), limit + Duration::from_secs(120))
    }
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}
