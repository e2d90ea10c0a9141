//! Locks on files that the kernel releases when the last of their users is gone.
//!
//! An open-file-description lock belongs to the open file. A process that is killed is gone at once, but io_uring still has
//! its files open as long as a request of its is under way, and lets go of them in the background. So once somebody else has
//! the lock, nothing of the kind happens any more.
//!
//! Whether a request outlives its process depends on the file: one through the page cache does not, as a thread of the process
//! does it and dies with it, or the process does not end before it. One past the page cache does (`tests/tests/slow_disk.rs`,
//! Linux 6.1): a file opened with O_DIRECT, or one whose file system reads and writes like that by itself.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// How long a successor waits for what the kernel is at for its predecessor: less than the client waits for it.
pub const FENCE_PATIENCE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(8) };
const RETRY: Duration = Duration::from_micros(100);
const MAX_RETRY: Duration = Duration::from_millis(10);

/// The rights of others meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Lock it in the same way.
    Share,
    /// Nothing.
    Wait,
}

/// Locks the whole of `file`, which is no matter if it is locked already. Waits for `patience` at most.
///
/// # Errors
/// `EAGAIN`: another open file has the lock.
pub fn lock(file: &File, others: Others, patience: Duration) -> nix::Result<()> {
    let kind = if others == Others::Share { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let deadline = Instant::now() + patience;
    let mut pause = RETRY;
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => {
                thread::sleep(pause);
                pause = (pause * 5 / 4).min(MAX_RETRY);
            }
            Err(Errno::EACCES) => return Err(Errno::EAGAIN),
            Err(errno) => return Err(errno),
        }
    }
}

/// Whether a process has `file` locked through a descriptor of its own, or may have. If none has, the holder is gone, and the
/// kernel is about to let go of what it had open: of a killed process's ring it does so in the background, late on a busy machine.
///
/// Reads the table of each process's descriptors (`/proc/PID/fdinfo`, proc(5)), which asks no file system but that one. A
/// disk's process that is sealed shows it to root only: one that is there may be the holder.
pub fn is_held_by_a_process(file: &File) -> bool {
    let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { return true };
    let entries = |path| fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()));
    let processes = entries(PathBuf::from("/proc")).into_iter().flatten();
    let mut processes = processes.filter(|path| path.join("fdinfo").exists());
    processes.any(|process| {
        let Ok(mut descriptors) = entries(process.join("fdinfo")) else { return is_a_disk(&process) };
        descriptors.any(|descriptor| {
            let text = fs::read_to_string(descriptor).unwrap_or_default();
            text.lines().any(|line| line.starts_with("lock:") && is_lock_on(line, inode))
        })
    })
}

/// Whether a process of which no more can be seen than its name, and that it has not ended, serves a disk.
fn is_a_disk(process: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
    let has_ended = read("status").lines().any(|line| line.starts_with("State:\tZ"));
    read("comm").trim_end() == "outrigger-blk" && !has_ended
}

/// `lock: 1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 0 EOF`
fn is_lock_on(line: &str, inode: u64) -> bool {
    let place =
        line.split_whitespace().find_map(|word| word.rsplit_once(':').filter(|(device, _)| device.contains(':')));
    place.is_some_and(|(_, number)| number.parse() == Ok(inode))
}
