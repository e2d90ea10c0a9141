//! A disk in the test bed that has two paths to the same storage, as in a storage network: one on which each request takes long
//! (device-mapper's delay target), and one on which none does. Its switch sends requests on one or the other, so that a later one
//! can pass those that are still on their way. Needs the modules [`MODULES`] and the program `dmsetup`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::process::{eventually, run};

/// Of Debian's kernel.
pub const MODULES: &str = "brd dm_delay dm_switch";
/// Where the disk is.
pub const PATH: &str = "/dev/mapper/disk";
const STORAGE: &str = "/dev/ram0";
const SLOW_PATH: &str = "/dev/mapper/slow";
const SECTORS: u64 = 16 << 11;
const LIMIT: Duration = Duration::from_secs(120);

/// One of the paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// The one with the delay.
    Slow,
    /// The one that is taken at first.
    Fast,
}

/// The disk, whose content is zeros at first. There is one at a time.
pub struct SlowDisk;

impl SlowDisk {
    /// Makes it, with requests that take `delay` on its first path.
    pub fn new(delay: Duration) -> Self {
        fs::write(STORAGE, vec![0; 16 << 20]).expect("the module brd is loaded");
        run(Command::new("sync").arg(STORAGE), LIMIT).expect_code(0);
        let disk = Self;
        create("slow", &format!("delay {STORAGE} 0 {}", delay.as_millis()));
        create("fast", &format!("linear {STORAGE} 0"));
        create("disk", &format!("switch 2 {SECTORS} 0 {SLOW_PATH} 0 /dev/mapper/fast 0"));
        disk.take(Speed::Fast);
        disk
    }

    /// Makes a file system on it, and in that the payload's disk; returns its path.
    pub fn image(&self, mounted: &Path) -> PathBuf {
        let image = mounted.join("disk.img");
        run(Command::new("mkfs.ext4").args(["-q", PATH]), LIMIT).expect_code(0);
        run(Command::new("mount").args(["-t", "ext4", PATH]).arg(mounted), LIMIT).expect_code(0);
        fs::write(&image, vec![0; 1 << 20]).expect("it has room");
        run(Command::new("sync").arg("-f").arg(&image), LIMIT).expect_code(0);
        forget();
        image
    }

    /// Which path requests take from now on. Those on their way stay where they are.
    pub fn take(&self, path: Speed) {
        dmsetup(&["message", "disk", "0", "set_region_mappings", &format!("0:{}", path as u8)]);
    }

    /// Waits until none is, and has nothing of the disk in memory any more.
    #[track_caller]
    pub fn wait_for_the_last(&self) {
        assert!(eventually(LIMIT, || !self.is_busy()), "requests take too long");
        forget();
    }

    /// Whether a request is on its way. The delay target itself counts none that it keeps.
    pub fn is_busy(&self) -> bool {
        let number = fs::metadata(PATH).expect("it was made").rdev();
        let inflight = format!("/sys/dev/block/{}:{}/inflight", major(number), minor(number));
        let counts = fs::read_to_string(inflight).expect("every block device has it");
        counts.split_whitespace().any(|count| count != "0")
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Errors are those of the test that has failed, or say that it is not mounted.
        let _ = Command::new("umount").arg(PATH).stderr(Stdio::null()).status();
        for name in ["disk", "fast", "slow"] {
            let _ = Command::new("dmsetup").args(["remove", "--retry", name]).status();
        }
    }
}

/// Has nothing of it in memory any more.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("the bed is ours");
}

fn create(name: &str, target: &str) {
    dmsetup(&["create", name, "--table", &format!("0 {SECTORS} {target}")]);
}

#[track_caller]
fn dmsetup(arguments: &[&str]) {
    // Nobody but this program makes device nodes here.
    run(Command::new("dmsetup").env("DM_DISABLE_UDEV", "1").args(arguments), LIMIT).expect_code(0);
}
