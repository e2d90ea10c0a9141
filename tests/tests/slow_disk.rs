//! A disk whose storage is slow, in the test bed: what a process has begun there is over before its successor begins, and a request
//! that takes long is no failure of the process.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::{with_disk_and, with_payload};
use outrigger_tests::process::{Ended, Process, eventually};
use outrigger_tests::slow_disk::{MODULES, PATH, SlowDisk, Speed};
use outrigger_tests::testbed::Testbed;
use tempfile::TempDir;

/// How soon a request has reached the disk.
const UNDER_WAY: Duration = Duration::from_secs(20);
const HANGS: Duration = Duration::from_secs(300);

/// Where the disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// A block device.
    Device,
    /// In a file system on it.
    File,
}

/// How the kernel is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Through the page cache, as outrigger-blk does.
    Cached,
    /// Past it (O_DIRECT): requests go on without the process.
    Direct,
}

/// Whether the disk is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fence {
    Held,
    /// Opened by the hand of this test.
    Open,
}

/// A disk for one run.
struct Setting {
    disk: SlowDisk,
    path: PathBuf,
    _mounted: TempDir,
}

impl Setting {
    fn new(place: Place, delay: Duration) -> Self {
        let (disk, mounted) = (SlowDisk::new(delay), TempDir::new().expect("there is room for temporary files"));
        let path = if place == Place::File { disk.image(mounted.path()) } else { PATH.into() };
        Self { disk, path, _mounted: mounted }
    }

    fn start(&self, options: &str) -> Process {
        let mut command = with_payload("blk-late");
        let mut vmm = Process::start_with_input(with_disk_and(&mut command, &self.path, options), HANGS);
        vmm.wait_for("ready\n");
        self.disk.take(Speed::Slow);
        vmm
    }
}

/// Has the guest's write and its read be under way when the process is killed, and newer requests pass them. Returns what the run
/// printed.
fn killed_at_requests(place: Place, way: Way, fence: Fence) -> Ended {
    // Where nothing holds the newer ones, time for them.
    let delay = Duration::from_secs(if (way, fence) == (Way::Direct, Fence::Open) { 4 } else { 1 });
    let setting = Setting::new(place, delay);
    let disk = &setting.disk;
    // To wait for what the kernel is at may take longer than an answer.
    let mut vmm = setting.start(",deadline=500ms");
    for (before, after) in [("writing\n", "newer is written\n"), ("reading once\n", "memory is used again\n")] {
        disk.take(Speed::Slow);
        let device = children(vmm.pid());
        meddle(device[0].pid, &setting.path, way, fence);
        vmm.send("g");
        vmm.wait_for(before);
        expect_under_way(&setting, &vmm);
        disk.take(Speed::Fast);
        let begun = Instant::now();
        kill(device[0].pid, Signal::SIGKILL).expect("it runs");
        vmm.wait_for(after);
        println!("{place:?}, {way:?}, {fence:?}: {after:?} after {:?}", begun.elapsed());
        disk.wait_for_the_last();
        expect_ended(&device);
    }
    vmm.send("g");
    let ended = vmm.finish();
    println!("{ended}");
    ended
}

fn expect_under_way(setting: &Setting, vmm: &Process) {
    let is_under_way = eventually(UNDER_WAY, || setting.disk.is_busy());
    assert!(is_under_way, "no request is under way; stdout:\n{}\nstderr:\n{}", vmm.stdout(), vmm.stderr());
}

/// Changes what is the same for all who have the disk open by this description of it, the kernel's requests among them.
fn meddle(process: Pid, disk: &Path, way: Way, fence: Fence) {
    let file = opened_by(process, disk);
    if way == Way::Direct {
        // SAFETY: the call is one on plain values.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    if fence == Fence::Open {
        // SAFETY: zeros are the whole of a file.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::c_short::try_from(libc::F_UNLCK).expect("a small number");
        // SAFETY: the call reads the lock.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

/// The file that `process` has opened at `path`: the same description of it, not another.
fn opened_by(process: Pid, path: &Path) -> OwnedFd {
    let open = |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|file| file == path);
    let mut fds = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
    let fd = fds.find(open).expect("it has the disk open");
    let fd: i32 = fd.file_name().to_str().and_then(|name| name.parse().ok()).expect("they are numbers");
    // SAFETY: system calls on plain values.
    let copy = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0);
        libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0)
    };
    assert!(copy >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: nobody else has it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(copy).expect("descriptors are small")) }
}

#[test]
fn a_request_of_a_dead_process_is_over_before_its_successor_begins() {
    in_bed("late_requests slow_requests --test-threads=1", 10);
}

fn in_bed(tests: &str, minutes: u64) {
    let (bed, command) = Testbed::new().cpus(2).minutes(minutes).modules(MODULES).these_tests(tests, &[]);
    let bed = bed.file("/usr/sbin/dmsetup", "/bin/dmsetup").file("/sbin/mkfs.ext4", "/sbin/mkfs.ext4");
    println!("{}", bed.run(&format!("{command}nothing_left\n")).stdout);
}

#[test]
#[ignore = "is what runs in the bed"]
fn late_requests() {
    for place in [Place::Device, Place::File] {
        // A request through the page cache is over when the process is, so that no lock is needed.
        for (way, fence) in [(Way::Cached, Fence::Open), (Way::Direct, Fence::Held)] {
            killed_at_requests(place, way, fence).expect_code(0).expect_stdout("payload: passed");
        }
        // Late requests exist, and this test sees them. Of a file's writes ext4 itself keeps the order.
        let ended = killed_at_requests(place, Way::Direct, Fence::Open);
        ended.expect_stdout("FAIL late-read").expect_stdout("payload: failed");
        if place == Place::Device {
            ended.expect_stdout("FAIL late-write");
        }
    }
}

/// Each request takes three times as long as the process may take for an answer.
#[test]
#[ignore = "is what runs in the bed"]
fn slow_requests() {
    for place in [Place::Device, Place::File] {
        let setting = Setting::new(place, Duration::from_secs(3));
        let mut vmm = setting.start(",deadline=1s");
        let device = children(vmm.pid());
        vmm.send("g");
        vmm.wait_for("writing\n");
        expect_under_way(&setting, &vmm);
        vmm.wait_for("newer is written\n");
        vmm.send("g");
        vmm.wait_for("memory is used again\n");
        let after = children(vmm.pid());
        vmm.send("g");
        let ended = vmm.finish();
        ended.expect_code(0).expect_stdout("payload: passed");
        assert_eq!(device, after, "the process was replaced; output:\n{ended}");
        assert!(ended.stderr.is_empty(), "{ended}");
    }
}
