use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use outrigger_process::packets::{MOST_DESCRIPTORS, Packets};
use outrigger_process::seal::Sandbox;

use super::order::LONGEST;
use super::process::Entry;
use super::programs::Programs;
use super::*;

/// A launcher for one device, which ends with the calling thread.
fn launcher(inherited: Vec<RawFd>) -> Launcher {
    let entry = Entry { options: "color=red".into(), inherited, sandbox: Sandbox::Require, is_started: false };
    let programs = Programs { named: Vec::new(), below: Some("/".into()) };
    let table = Table { entries: vec![None, Some(entry)], programs, cpus: 3, parent: std::process::id() };
    Launcher::with(table).unwrap()
}

fn turn(launcher: &Launcher) -> turns::Turn<'_, Orders> {
    launcher.0.as_ref().unwrap().take(Instant::now()).unwrap()
}

/// A program that does what `script` says; its socket is standard input.
fn program(directory: &tempfile::TempDir, script: &str) -> PathBuf {
    let path = directory.path().join("device");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&path, permissions).unwrap();
    path
}

fn answer(launcher: &Launcher, program: &Path, predecessors: Option<&[ForeignFd]>) -> String {
    let (process, mut stream) = launcher.start(1, program, predecessors, None).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(process.wait(Duration::from_secs(10)).unwrap().success());
    text
}

const TELL: &str = "echo \"$2 $OUTRIGGER_VCPUS $OUTRIGGER_SANDBOX $OUTRIGGER_SUCCESSOR\" >&0\n\
                    for fd in $(echo $OUTRIGGER_KEPT | tr , ' '); do cat /dev/fd/$fd >&0; done";

#[test]
fn a_successor_inherits_what_was_kept_in_its_order_and_nothing_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("{name}\n")).unwrap();
        ForeignFd::from(OwnedFd::from(File::open(path).unwrap()))
    };
    let kept = vec![file("one"), file("two")];
    let (launcher, program) = (launcher(Vec::new()), program(&directory, TELL));
    assert_eq!(answer(&launcher, &program, None), "color=red 3 require \n");
    assert_eq!(answer(&launcher, &program, Some(&kept)), "color=red 3 require 1\none\ntwo\n");
    assert_eq!(answer(&launcher, &program, Some(&[])), "color=red 3 require 1\n");
}

#[test]
fn a_program_gets_the_callers_descriptors_that_are_named_for_it_and_no_successor_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given");
    std::fs::write(&path, "given\n").unwrap();
    let (given, own) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    let script = format!(
        "for fd in {} {}; do cat /proc/self/fd/$fd >&0 || echo none >&0; done 2> /dev/null",
        given.as_raw_fd(),
        own.as_raw_fd()
    );
    let (launcher, program) = (launcher(vec![given.as_raw_fd()]), program(&directory, &script));
    assert_eq!(answer(&launcher, &program, None), "given\nnone\n");
    // What they hold open is the first process's.
    assert_eq!(answer(&launcher, &program, Some(&[])), "none\nnone\n");
}

#[test]
fn a_process_is_a_child_of_this_one_with_nothing_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let script = "cat /proc/self/status >&0; ls /proc/self/fd >&0; env | grep -v OUTRIGGER >&0; sleep 60";
    let (process, mut stream) = launcher(Vec::new()).start(1, &program(&directory, script), None, None).unwrap();
    let parent = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    assert!(parent.contains(&format!("\nPPid:\t{}\n", std::process::id())), "{parent}");
    let (mut text, mut room) = (String::new(), [0; 4096]);
    while !text.contains("\n2\n") {
        let length = stream.read(&mut room).unwrap();
        assert!(length > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&room[..length]));
    }
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    // 3 is the directory that ls reads.
    assert!(text.contains("\n0\n1\n2\n3\n") && !text.contains("\n4\n"), "{text}");
    process.signal(Signal::SIGKILL);
    assert!(process.wait(Duration::from_secs(10)).is_some());
}

#[test]
fn a_program_that_is_missing_is_named() {
    let launcher = launcher(Vec::new());
    for _ in 0..3 {
        let error = launcher.start(1, Path::new("/nowhere/device"), None, None).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nowhere/device");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "No such file or directory (os error 2)");
    }
    let error = launcher.start(1, Path::new("nowhere"), None, None).unwrap_err().to_string();
    assert!(error.ends_with("/nowhere (a bare name is looked for beside outrigger itself)"), "{error}");
    let long = "x/".repeat(LONGEST_PROGRAM);
    assert!(launcher.start(1, Path::new(&long), None, None).unwrap_err().to_string().starts_with("cannot start x/x/"));
}

/// A VMM that was taken over can say anything.
#[test]
fn orders_that_are_none_are_refused_and_the_launcher_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (launcher, program) = (launcher(Vec::new()), program(&directory, TELL));
    let order = |device, kept| Order { device, kept, program: program.clone() }.encode();
    let file = tempfile::tempfile().unwrap();
    let files = |count| vec![file.as_fd(); count];
    let refused = [
        (order(0, None), 0, "no such device"),
        (order(2, None), 0, "no such device"),
        (order(255, Some(1)), 1, "no such device"),
        (order(1, None), 1, "other descriptors than announced"),
        (order(1, Some(2)), 1, "other descriptors than announced"),
        (order(1, Some(255)), 255 - 2, "too many descriptors"),
        (order(1, Some(64)), MOST_DESCRIPTORS + 1, "Too many open files (os error 24)"),
        (b"?".to_vec(), 3, "it cannot be read"),
        (vec![b'x'; 3 * LONGEST], 0, "it cannot be read"),
    ];
    for (order, count, reason) in refused {
        let end = Instant::now() + Duration::from_secs(60);
        let (outcome, fds) = turn(&launcher).give(&order, &files(count), Vec::new(), end).unwrap();
        let failure = outcome.unwrap_err();
        assert_eq!((failure.kind, failure.error().to_string().as_str()), (Kind::Order, reason));
        fds.into_iter().map(PidFd::from).for_each(|process| process.end(END));
    }
    assert_eq!(answer(&launcher, &program, None), "color=red 3 require \n");
}

#[test]
fn a_launcher_that_is_killed_is_missed_in_one_line() {
    let launcher = launcher(Vec::new());
    let id = turn(&launcher).id.unwrap();
    kill(id, Signal::SIGKILL).unwrap();
    for _ in 0..3 {
        let error = launcher.start(1, Path::new("/bin/true"), None, None).unwrap_err();
        assert_eq!(error.to_string(), "outrigger's launcher, which starts device processes, has ended");
        assert!(error.is_final());
    }
}

#[test]
fn the_launcher_ends_when_its_socket_is_closed() {
    let launcher = launcher(Vec::new());
    let mut process = turn(&launcher);
    let pidfd = PidFd::open(u32::try_from(process.id.unwrap().as_raw()).unwrap()).unwrap();
    process.socket = None;
    assert_eq!(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], 10_000u16), Ok(1));
    assert!(pidfd.take_status().unwrap().unwrap().success());
}

#[test]
fn a_launcher_that_is_stopped_is_waited_for_until_the_end_and_goes_on_later() {
    let directory = tempfile::tempdir().unwrap();
    let launcher = launcher(Vec::new());
    let id = turn(&launcher).id.unwrap();
    kill(id, Signal::SIGSTOP).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let kept = vec![ForeignFd::from(OwnedFd::from(writer))];
    let end = Some(Instant::now() + Duration::from_millis(50));
    let sleeps = program(&directory, "exec sleep 60");
    let error = launcher.start(1, &sleeps, Some(&kept), end).unwrap_err();
    assert!(matches!(error, SpawnError::Late) && !error.is_final(), "{error}");
    drop(kept);
    kill(id, Signal::SIGCONT).unwrap();
    let (process, _stream) = launcher.start(1, Path::new("/bin/true"), None, None).unwrap();
    assert!(process.wait(Duration::from_secs(10)).unwrap().success());
    // The process that came late has ended, for it would hold this open.
    assert_eq!(poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], 10_000u16), Ok(1));
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

/// The kernel takes 253 descriptors in a message.
#[test]
fn a_process_that_the_vmm_cannot_be_given_does_not_live_and_the_launcher_goes_on() {
    let (ours, theirs) = Packets::pair().unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = || PidFd::open(child.id()).unwrap();
    let ended = (0..254).map(|_| process()).collect();
    let (stream, _device) = UnixStream::pair().unwrap();
    let answer = process::Answer { outcome: Ok(child.id()), process: Some((process(), stream)), ended };
    assert!(!process::tell(&theirs, answer).unwrap());
    assert_eq!(poll(&mut [PollFd::new(process().as_fd(), PollFlags::POLLIN)], 10_000u16), Ok(1));
    assert!(!child.wait().unwrap().success());
    let mut message = [0; LONGEST];
    let (length, fds) = ours.receive(&mut message).unwrap();
    let failure = order::decode(&message[..length]).unwrap().unwrap_err();
    assert_eq!((failure.kind, failure.errno, fds.len()), (Kind::Socket, Errno::EINVAL as i32, 0));
    drop(ours);
    assert!(process::tell(&theirs, process::Answer { outcome: Ok(1), process: None, ended: Vec::new() }).is_err());
}
