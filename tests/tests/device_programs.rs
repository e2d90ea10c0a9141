//! `--device program=PATH`: what a device program is given, and what becomes of one that does not keep the contract
//! (docs/DEVICE-PROGRAMS.md).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Ended, Process, run};
use outrigger_tests::{binaries, disk};
use tempfile::TempDir;

fn temporary() -> TempDir {
    TempDir::new().expect("there is room for temporary files")
}

/// A script that is a device program.
fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("device");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the directory is ours");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

fn with_device(checks: &str, device: &str) -> Command {
    let mut command = with_payload(checks);
    command.args(["--device", device]);
    command
}

/// Runs the payload with `device`, which must be refused: status 2, and one line in which all of `words` are.
#[track_caller]
fn refused(device: &str, words: &[&str]) -> Ended {
    let ended = run(&mut with_device("pci", device), LIMIT);
    ended.expect_code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line:\n{ended}");
    for word in words {
        ended.expect_stderr(word);
    }
    assert_eq!(ended.stdout, "", "the guest started:\n{ended}");
    ended
}

#[test]
fn a_program_is_told_its_options_the_socket_and_the_number_of_vcpus() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let told = directory.path().join("told");
    let text = format!(
        "printf '%s\\n' \"$OUTRIGGER_VCPUS\" \"$@\" > {}; exec {} \"$@\"",
        told.display(),
        binaries::path("outrigger-blk").display()
    );
    let program = script(directory.path(), &text);
    let device = format!("path={},dma=messages,serial=a,,b,program={}", image.display(), program.display());
    let ended = run(with_device("blk", &device).args(["--cpus", "2", "--show-devices"]), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed");
    ended.expect_stderr(&format!("--device {device}  device (process ")).expect_stderr("guest RAM by messages");
    let expected = format!("2\n--options\npath={},serial=a,,b\n--fd\n0\n", image.display());
    assert_eq!(fs::read_to_string(&told).expect("the program wrote it"), expected);
}

/// The example device knows nothing but the protocol's library and that contract.
#[test]
fn the_example_device_is_a_device_program() {
    let device = format!("program={}", binaries::example("paths").display());
    let ended = run(&mut with_device("paths", &device), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed");
}

#[test]
fn a_bare_name_is_that_of_a_program_beside_outrigger() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let device = format!("program=outrigger-blk,path={}", image.display());
    run(&mut with_device("blk", &device), LIMIT).expect_code(0).expect_stdout("payload: passed");
    // It is in the PATH, and not meant.
    refused("program=true", &["--device program=true: cannot start ", "beside outrigger", "No such file"]);
}

/// `mtu=` is a key that only outrigger-net knows.
#[test]
fn a_key_that_outrigger_does_not_know_reaches_the_program() {
    let mut command = with_payload("spin");
    let mut guest = Process::start(command.args(["--net", "tap=ormtu0,mtu=1400"]), LIMIT);
    guest.wait_for("ready\n");
    let mtu = fs::read_to_string("/sys/class/net/ormtu0/mtu").expect("the tap is there");
    assert_eq!(mtu.trim(), "1400");
}

#[test]
fn a_program_that_is_no_device_program_is_refused_at_once() {
    let started = Instant::now();
    let directory = temporary();
    let text = disk::for_payload(directory.path());
    for (program, words) in [
        ("/nowhere/device", "No such file"),
        (directory.path().to_str().expect("plain"), "ermission denied"),
        (text.to_str().expect("plain"), "ermission denied"),
        ("/bin/true", "its process ended with status 0 before it served the device"),
    ] {
        refused(&format!("program={program}"), &[&format!("outrigger: --device program={program}: "), words]);
    }
    let seven = script(directory.path(), "exit 7");
    refused(&format!("program={}", seven.display()), &["its process ended with status 7"]);
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
}

/// A program says itself what is wrong, in the words of its own options.
#[test]
fn a_program_that_refuses_its_options_is_not_talked_over() {
    let directory = temporary();
    for status in [2, 3] {
        let program = script(directory.path(), &format!("echo \"device: $2: no such color\" >&2; exit {status}"));
        let ended = run(&mut with_device("pci", &format!("program={},color=red", program.display())), LIMIT);
        ended.expect_code(status);
        assert_eq!(ended.stderr, "device: color=red: no such color\n");
    }
}

/// A message is one line, with any path in it.
#[test]
fn a_line_break_in_an_option_does_not_break_the_line() {
    refused("program=outrigger-blk,path=/nowhere/a\nb", &[r"outrigger-blk: --disk path=/nowhere/a\nb: cannot open"]);
    refused("program=/nowhere/a\nb", &[r"--device program=/nowhere/a\nb: cannot start /nowhere/a\nb: No such file"]);
}
