//! A device process dies again and again under a guest that notices nothing: the payload on this machine's own KVM writes sectors,
//! reads them back and starts its device anew all the while, and what does not come back as it was ends it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_tests::leftovers::{Seen, children, expect_ended, launcher};
use outrigger_tests::outrigger::{LIMIT, with_disk_and, with_payload};
use outrigger_tests::process::{Ended, Process, eventually};
use outrigger_tests::qemu::Server;
use outrigger_tests::random::Random;
use outrigger_tests::{binaries, disk};
use tempfile::TempDir;

/// As many restarts as a test can want.
const ANY: &str = ",restart=10000/1s";

/// The device processes of `vmm` that run now.
fn devices(vmm: &Process) -> Vec<Seen> {
    children(vmm.pid())
}

/// Starts the payload's verified reads and writes with a disk that has `options`.
fn steady(directory: &TempDir, options: &str) -> Process {
    let image = disk::for_payload(directory.path());
    let mut command = with_payload("blk-steady");
    with_disk_and(&mut command, &image, options);
    let mut vmm = Process::start_with_input(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    vmm
}

/// Ends the payload's loop, and expects that nothing went wrong in it.
fn ends_well(mut vmm: Process) -> Ended {
    vmm.send("q");
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout("ok blk-steady\n").expect_stdout("payload: passed");
    ended
}

/// Sends `signal` to `count` processes that serve the disk of `vmm`, each within `most`: every other one of when it was first seen,
/// which may be before it serves the disk, and every other one of when it has a thread for its queue.
fn hit_often(vmm: &Process, count: usize, signal: Signal, most: Duration) -> Vec<Seen> {
    let mut random = Random::fresh().0;
    let mut killed: Vec<Seen> = Vec::new();
    let end = Instant::now() + LIMIT / 2;
    while killed.len() < count {
        assert!(Instant::now() < end, "only {} of {count} were hit; it says:\n{}", killed.len(), vmm.stderr());
        if killed.len() % 2 == 1 {
            let is_busy = |device: &Seen| is_new(&killed, device) && threads(device.pid) > 1;
            eventually(Duration::from_millis(200), || devices(vmm).iter().any(is_busy));
        }
        thread::sleep(random.time(most));
        for device in devices(vmm) {
            if is_new(&killed, &device) && kill(device.pid, signal).is_ok() {
                killed.push(device);
            }
        }
    }
    killed
}

fn is_new(killed: &[Seen], device: &Seen) -> bool {
    killed.iter().all(|other| other.pid != device.pid)
}

fn threads(process: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count)
}

/// The VMM's descriptors and threads, counted.
fn holds(vmm: &Process) -> (usize, usize) {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).expect("it runs").count();
    (fds, threads(vmm.pid()))
}

/// The names of its threads.
fn names(vmm: &Process) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).expect("it runs").flatten();
    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

/// Fails unless it soon holds no more than it did.
fn expect_held(vmm: &Process, (fds, threads): (usize, usize)) {
    let done = eventually(outrigger_tests::leftovers::LIMIT, || holds(vmm).0 <= fds && holds(vmm).1 <= threads);
    assert!(done, "{:?} descriptors and threads after, {:?} before: {:?}", holds(vmm), (fds, threads), names(vmm));
}

#[test]
fn a_disk_killed_hundreds_of_times_is_not_noticed() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let vmm = steady(&directory, ANY);
    let mut killed = hit_often(&vmm, 2, Signal::SIGKILL, Duration::from_millis(8));
    // At rest: what closes descriptors is through, and the last successor serves.
    thread::sleep(Duration::from_secs(1));
    let before = holds(&vmm);
    killed.extend(hit_often(&vmm, 300, Signal::SIGKILL, Duration::from_millis(8)));
    expect_held(&vmm, before);
    let ended = ends_well(vmm);
    ended.expect_stderr("outrigger-blk was killed by SIGKILL; another one took its place in ");
    assert!(ended.stderr.lines().count() < 80, "restarts flood the log:\n{ended}");
    expect_ended(&killed);
    println!("{}", ended.stdout);
}

#[test]
fn one_that_has_no_guest_memory_neither() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let vmm = steady(&directory, &format!("{ANY},dma=messages"));
    let killed = hit_often(&vmm, 100, Signal::SIGKILL, Duration::from_millis(15));
    ends_well(vmm);
    expect_ended(&killed);
}

/// Each step of a successor's way to the guest is one in which it may die.
#[test]
fn successors_that_are_killed_while_they_attach_are_not_noticed() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let vmm = steady(&directory, ANY);
    let killed = hit_often(&vmm, 200, Signal::SIGKILL, Duration::from_millis(6));
    let ended = ends_well(vmm);
    ended.expect_stderr("no successor: its process was killed by SIGKILL before it served the device");
    expect_ended(&killed);
}

#[test]
fn a_disk_that_is_stopped_is_killed_after_its_deadline_and_not_missed() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let vmm = steady(&directory, &format!("{ANY},deadline=2s"));
    let stopped = hit_often(&vmm, 3, Signal::SIGSTOP, Duration::from_millis(100));
    assert!(eventually(Duration::from_secs(20), || devices(&vmm).iter().all(|device| !stopped.contains(device))));
    ends_well(vmm);
    expect_ended(&stopped);
}

/// A program for `--device` that is `first` the first time it is started, and what `later` says from then on.
fn changing(directory: &TempDir, first: &Path, later: &str) -> PathBuf {
    let (program, flag) = (directory.path().join("changing"), directory.path().join("started"));
    let (flag, first) = (flag.display(), first.display());
    write_program(&program, &format!("if [ -e {flag} ]; then {later}; fi\ntouch {flag}\nexec {first} \"$@\""));
    program
}

fn write_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("the directory is ours");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
}

/// Kills the disk of a guest that waits for it to read as all-ones, where `later` is started in its place: three times in a minute.
#[track_caller]
fn withdrawn_after(later: &str) -> Ended {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let program = changing(&directory, &binaries::path("outrigger-blk"), later);
    let mut command = with_payload("allones");
    let options = format!("program={},path={},restart=3/60s", program.display(), image.display());
    let mut vmm = Process::start(command.arg("--device").arg(options), LIMIT);
    vmm.wait_for("ready\n");
    let device = devices(&vmm);
    kill(device[0].pid, Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("ok allones\n").expect_stdout("payload: passed");
    ended.expect_stderr("and 3 restarts in 60 s are used up; from now on the guest reads all-ones from it");
    expect_ended(&device);
    ended
}

#[test]
fn a_program_that_dies_at_once_is_started_as_often_as_it_may() {
    let ended = withdrawn_after("exit 7");
    let line = "no successor: its process ended with status 7 before it served the device";
    assert_eq!(ended.stderr.matches(line).count(), 3, "{ended}");
}

#[test]
fn a_program_that_cannot_use_its_image_any_more_says_so_itself() {
    let ended = withdrawn_after("echo 'changing: the image is gone' >&2; exit 2");
    assert_eq!(ended.stderr.lines().count(), 5, "three, one of the device's end, one of the run's: {ended}");
    assert_eq!(ended.stderr.matches("changing: the image is gone").count(), 3, "{ended}");
}

#[test]
fn a_program_that_comes_back_as_something_else_is_refused() {
    let paths = binaries::example("paths");
    let ended = withdrawn_after(&format!("exec {} --options '' --fd 0", paths.display()));
    let line = "no successor: its process is another device: it is a ";
    assert_eq!(ended.stderr.matches(line).count(), 3, "{ended}");
}

#[test]
fn without_its_launcher_a_run_goes_on_until_a_device_fails() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let mut command = with_payload("allones");
    with_disk_and(&mut command, &disk::for_payload(directory.path()), "");
    let mut vmm = Process::start(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    let launcher = launcher(vmm.pid()).expect("a run with devices has one");
    kill(launcher.pid, Signal::SIGKILL).expect("it runs");
    expect_ended(&[launcher]);
    thread::sleep(Duration::from_millis(300));
    assert!(!vmm.has_ended() && vmm.stderr().is_empty(), "{}", vmm.finish());
    kill(devices(&vmm)[0].pid, Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("ok allones\n").expect_stdout("payload: passed");
    let line = "outrigger-blk was killed by SIGKILL, and outrigger's launcher, which starts device processes, has ended; from now on \
                the guest reads all-ones from it";
    ended.expect_stderr(line).expect_stderr("the guest ended after a device process had died");
    assert_eq!(ended.stderr.lines().count(), 2, "{ended}");
}

#[test]
fn a_program_that_never_answers_is_given_up_after_ten_seconds() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let program = changing(&directory, &binaries::path("outrigger-blk"), "exec sleep 600");
    let mut command = with_payload("allones");
    let options = format!("program={},path={},deadline=500ms", program.display(), image.display());
    let mut vmm = Process::start(command.arg("--device").arg(options), LIMIT);
    vmm.wait_for("ready\n");
    kill(devices(&vmm)[0].pid, Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("payload: passed");
    // Its message and the whole are given up at the same moment; either may be told.
    ended.expect_stderr("no successor: ");
    ended.expect_stderr("and nothing took its place within 10s; from now on");
}

/// A deadline for an answer is too short for a program that starts on a busy machine, from slow storage.
#[test]
fn a_program_may_take_longer_to_start_than_an_answer() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let blk = binaries::path("outrigger-blk");
    let slow = directory.path().join("slow");
    write_program(&slow, &format!("sleep 2; exec {} \"$@\"", blk.display()));
    let program = changing(&directory, &slow, &format!("exec {} \"$@\"", slow.display()));
    let mut command = with_payload("blk-steady");
    let options = format!("program={},path={},deadline=1500ms", program.display(), image.display());
    let mut vmm = Process::start_with_input(command.arg("--device").arg(options), LIMIT);
    vmm.wait_for("ready\n");
    let first = devices(&vmm);
    kill(first[0].pid, Signal::SIGKILL).expect("it runs");
    vmm.wait_for_stderr("another one took its place in 2.");
    // That one has the short deadline again.
    let second = devices(&vmm);
    kill(second[0].pid, Signal::SIGSTOP).expect("it runs");
    let begun = Instant::now();
    assert!(eventually(Duration::from_secs(20), || devices(&vmm).iter().all(|device| !second.contains(device))));
    assert!(begun.elapsed() < Duration::from_secs(6), "it was waited for {:?}", begun.elapsed());
    ends_well(vmm);
}

/// A run ends at once, whatever its devices do.
#[test]
fn sigterm_ends_a_run_whose_guest_waits_for_a_successor() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let program = changing(&directory, &binaries::path("outrigger-blk"), "exec sleep 600");
    let mut command = with_payload("allones");
    let options = format!("program={},path={}", program.display(), image.display());
    let mut vmm = Process::start(command.arg("--device").arg(options), LIMIT);
    vmm.wait_for("ready\n");
    kill(devices(&vmm)[0].pid, Signal::SIGKILL).expect("it runs");
    thread::sleep(Duration::from_millis(300));
    let successors = devices(&vmm);
    let begun = Instant::now();
    vmm.signal(Signal::SIGTERM);
    vmm.finish().expect_code(143);
    assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    expect_ended(&successors);
}

/// A disk that somebody else serves comes back by the same socket, and goes on from its journal.
#[test]
fn a_server_started_by_hand_is_killed_and_started_again() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let socket = directory.path().join("blk.sock");
    let disk = format!("path={}", image.display());
    let start = || Server::start("outrigger-blk", &socket, &["--disk", &disk]);
    let mut server = start();
    let mut command = with_payload("blk-steady");
    command.arg("--device").arg(format!("socket={},restart=100/1s", socket.display()));
    let mut vmm = Process::start_with_input(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(100));
        server.process().signal(Signal::SIGKILL);
        drop(server);
        // Not in a hurry: the guest waits.
        thread::sleep(Duration::from_millis(50));
        server = start();
    }
    thread::sleep(Duration::from_millis(100));
    ends_well(vmm).expect_stderr("its device process closed the connection; another one took its place in ");
}

/// The example device keeps no journal: it is reset, told again where it is and how it interrupts, and its driver uses it as before.
#[test]
fn a_server_without_a_journal_begins_anew() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("copier.sock");
    let start = || Server::spawn(Command::new(binaries::example("copier")).arg(&socket), &socket);
    let server = start();
    let mut command = with_payload("copier,input,copier");
    command.arg("--device").arg(format!("socket={},restart=5/60s", socket.display()));
    let mut vmm = Process::start_with_input(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    server.process().signal(Signal::SIGKILL);
    drop(server);
    thread::sleep(Duration::from_millis(100));
    let _server = start();
    vmm.wait_for_stderr("its device process closed the connection; another one took its place in ");
    vmm.send("go");
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout("payload: passed");
    assert_eq!(ended.stdout.matches("ok copier-interrupt\n").count(), 2, "{ended}");
}
