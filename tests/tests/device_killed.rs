//! A device process dies under a running guest and has no successor (`restart=off`): the VMM says which, the guest reads all ones
//! instead of hanging.

use nix::sys::signal::{Signal, kill};
use outrigger_tests::disk;
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::{LIMIT, with_disk_and, with_payload};
use outrigger_tests::process::{Process, eventually};
use outrigger_tests::qemu::Server;
use tempfile::TempDir;

#[test]
fn a_killed_disk_process_is_named_and_reads_as_all_ones() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let mut vmm = Process::start(with_disk_and(&mut with_payload("allones"), &image, ",restart=off"), LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    assert_eq!(devices.len(), 1, "one disk is one process: {devices:?}");
    kill(devices[0].pid, Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    ended
        .expect_code(6)
        .expect_stdout("ok allones\n")
        .expect_stdout("ok allones-writes-vanish")
        .expect_stdout("payload: passed");
    ended.expect_stderr("disk.img");
    expect_ended(&devices);
}

#[test]
fn only_the_dead_one_of_two_disks_is_named() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let other = directory.path().join("other.img");
    disk::empty(&other, disk::PAYLOAD_DISK);
    let mut command = with_payload("allones");
    with_disk_and(&mut command, &image, ",restart=off");
    let mut vmm = Process::start(with_disk_and(&mut command, &other, ",restart=off"), LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    let uses = |device: &&outrigger_tests::leftovers::Seen| {
        outrigger_tests::leftovers::open_files(device.pid).iter().any(|file| file.ends_with("/disk.img"))
    };
    let first = devices.iter().find(uses).expect("one process has the first disk open");
    kill(first.pid, Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("payload: passed").expect_stderr("disk.img");
    assert!(!ended.stderr.contains("other.img"), "the disk that lives is named:\n{ended}");
    expect_ended(&devices);
}

#[test]
fn a_killed_server_that_the_user_started_is_named_by_its_socket() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let socket = directory.path().join("blk.sock");
    let server = Server::start("outrigger-blk", &socket, &["--disk", &format!("path={}", image.display())]);
    let mut command = with_payload("allones");
    let mut vmm = Process::start(command.arg("--device").arg(format!("socket={}", socket.display())), LIMIT);
    vmm.wait_for("ready\n");
    server.process().signal(Signal::SIGKILL);
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("ok allones\n").expect_stdout("payload: passed").expect_stderr("blk.sock");
}

/// A device process that stops answering without dying: the guest is not held up for ever either.
#[test]
fn a_stopped_disk_process_does_not_hang_the_vmm() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let mut vmm = Process::start(with_disk_and(&mut with_payload("allones"), &image, ",restart=off"), LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    kill(devices[0].pid, Signal::SIGSTOP).expect("it runs");
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("payload: passed").expect_stderr("disk.img");
    assert!(eventually(outrigger_tests::leftovers::LIMIT, || !devices[0].alive()), "the stopped process is left");
}
