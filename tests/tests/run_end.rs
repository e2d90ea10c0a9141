//! The end of a run: when the user wants it, it comes at once, whatever device processes do; when it comes by itself, disks
//! are not hurried.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use outrigger_tests::leftovers::{Seen, children, expect_ended};
use outrigger_tests::outrigger::{LIMIT, with_disk, with_payload};
use outrigger_tests::process::{Process, eventually, run};
use outrigger_tests::{disk, server};
use tempfile::TempDir;

/// The promise is a second; two on a machine that is busy with other tests.
const END: Duration = Duration::from_secs(2);

fn with_socket<'a>(command: &'a mut Command, path: &Path) -> &'a mut Command {
    command.arg("--device").arg(format!("socket={}", path.display()))
}

#[track_caller]
fn expect_quick_end(vmm: Process, status: i32) {
    let begun = Instant::now();
    vmm.finish().expect_code(status);
    assert!(begun.elapsed() < END, "took {:?}", begun.elapsed());
}

/// A guest with three disks, none of which can do anything.
fn with_three_stopped_disks(directory: &Path) -> (Process, Vec<Seen>) {
    let image = disk::for_payload(directory);
    let mut command = with_payload("spin");
    with_disk(&mut command, &image);
    for name in ["b.img", "c.img"] {
        let path = directory.join(name);
        disk::empty(&path, disk::PAYLOAD_DISK);
        with_disk(&mut command, &path);
    }
    let mut vmm = Process::start(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    assert_eq!(devices.len(), 3, "a disk is a process: {devices:?}");
    devices.iter().for_each(|device| kill(device.pid, Signal::SIGSTOP).expect("it runs"));
    (vmm, devices)
}

#[test]
fn three_stopped_disks_end_together() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let (vmm, devices) = with_three_stopped_disks(directory.path());
    let begun = Instant::now();
    vmm.signal(Signal::SIGTERM);
    expect_quick_end(vmm, 143);
    assert!(eventually(2 * END, || !devices.iter().any(Seen::alive)), "device processes are left");
    assert!(begun.elapsed() < 2 * END, "took {:?}", begun.elapsed());
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let (vmm, devices) = with_three_stopped_disks(directory.path());
    vmm.signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(20));
    vmm.signal(Signal::SIGINT);
    expect_quick_end(vmm, 143);
    expect_ended(&devices);
}

/// Attaching waits for ten seconds for each message.
#[test]
fn a_signal_during_attach_ends_the_run() {
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let directory = TempDir::new().expect("there is room for temporary files");
        let mut command = with_payload("pci");
        with_disk(&mut command, &disk::for_payload(directory.path()));
        for name in ["a.sock", "b.sock"] {
            with_socket(&mut command, &server::listen(directory.path(), name, server::never_answers));
        }
        let vmm = Process::start(&mut command, LIMIT);
        let started = || children(vmm.pid()).iter().any(|child| child.name.starts_with("outrigger-blk"));
        assert!(eventually(LIMIT, started), "the disk was never started");
        thread::sleep(Duration::from_millis(200));
        let devices = children(vmm.pid());
        vmm.signal(signal);
        expect_quick_end(vmm, status);
        expect_ended(&devices);
    }
}

/// Nobody accepts: the queue of connections is full.
#[test]
fn a_signal_ends_the_wait_for_a_server_that_accepts_nobody() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let path = directory.path().join("full.sock");
    let _listener = UnixListener::bind(&path).expect("the directory is ours");
    let queued = thread::scope(|threads| {
        // The one that finds the queue full waits, and is released by the VMM's own end: so it is not waited for here.
        let filler = threads.spawn(|| (0..).map_while(|_| connect_now(&path)).collect::<Vec<_>>());
        filler.join().expect("it does not panic")
    });
    assert!(!queued.is_empty());
    let vmm = Process::start(with_socket(&mut with_payload("pci"), &path), LIMIT);
    thread::sleep(Duration::from_millis(500));
    vmm.signal(Signal::SIGTERM);
    expect_quick_end(vmm, 143);
}

/// A connection, unless the queue is full.
fn connect_now(path: &Path) -> Option<UnixStream> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).ok()?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    Some(stream.into())
}

/// Each is asked at the same time as the others, and what each may take is not added up.
#[test]
fn devices_that_do_not_answer_are_waited_for_together() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let mut command = with_payload("pci");
    for name in ["a.sock", "b.sock", "c.sock"] {
        with_socket(&mut command, &server::listen(directory.path(), name, server::never_answers));
    }
    let begun = Instant::now();
    run(&mut command, LIMIT).expect_code(2).expect_stderr(".sock");
    assert!(begun.elapsed() < Duration::from_secs(18), "one after the other: {:?}", begun.elapsed());
}

/// The device that cannot be had is named, alone; those that were there already go without a word.
#[test]
fn a_failed_start_is_short_and_blames_the_right_device() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let odd = directory.path().join("odd.img");
    std::fs::write(&odd, [0; 1000]).expect("the directory is ours");
    let mut locked = with_payload("pci");
    with_disk(with_disk(&mut locked, &image), &image);
    let mut of_odd_size = with_payload("pci");
    with_disk(with_disk(&mut of_odd_size, &image), &odd);
    let mut tap = with_payload("pci");
    with_disk(&mut tap, &image).args(["--net", "tap=no/such/name"]);
    for (mut command, name) in [(locked, "disk.img"), (of_odd_size, "odd.img"), (tap, "no/such/name")] {
        let begun = Instant::now();
        let ended = run(&mut command, LIMIT);
        ended.expect_code(2).expect_stderr(name);
        assert_eq!(ended.stderr.lines().count(), 1, "one line is enough:\n{ended}");
        // Half a second is promised, on a machine that is not busy with other tests.
        assert!(begun.elapsed() < 2 * Duration::from_millis(500), "took {:?}", begun.elapsed());
    }
}
