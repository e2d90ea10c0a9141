//! The end of a run with each rude device (`tests/src/rude.rs`). The devices are `tests/src/bin/rude-device`, the guest is the payload on
//! this machine's own KVM. `rude_signals` has SIGTERM at random moments with each of them, `rude_rounds` all of them at random.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use outrigger_tests::disk;
use outrigger_tests::outrigger::{with_disk, with_disk_and, with_payload};
use outrigger_tests::process::eventually;
use outrigger_tests::rude::{End, Rude, Run, by_name, command, requests, turn};
use tempfile::TempDir;

/// How long a device is used that nothing is to come of.
const A_WHILE: Duration = Duration::from_millis(1_200);
/// A cut that waits for no deadline comes within this time. A machine that is busy needs seconds.
const SOON: Duration = Duration::from_secs(9);
/// A device's time for an answer is over between these two.
const DEADLINE: (Duration, Duration) = (Duration::from_millis(9_500), Duration::from_secs(19));
/// Longer than a device has.
const IN_TIME: Duration = Duration::from_secs(13);
/// Lines that a user reads of one device in a few seconds: ten at once, and one every five seconds. A flood has thousands.
const LINES: usize = 20;

/// Runs it, beside a disk unless it takes ten seconds, and looks what becomes of the device, the disk, the guest and the messages to the user.
#[track_caller]
fn comes_to_its_end(name: &str) {
    let manner = by_name(name);
    let directory = TempDir::new().expect("there is room for temporary files");
    let with_disk = matches!(manner.end, End::Unharmed | End::CutOff);
    let _turn = with_disk.then(turn);
    let device = Rude::start(manner, directory.path());
    let mut run = Run::start(command("rude", with_disk, &[device.option()], directory.path()));
    let socket = format!("{name}.sock");
    let (from, to) = match manner.end {
        End::CutOff => (Duration::ZERO, SOON),
        End::CutOffAtDeadline | End::NotAttached => DEADLINE,
        End::Unharmed => (A_WHILE, A_WHILE),
        End::Slow => (IN_TIME, IN_TIME),
        End::Attaching => unreachable!("nobody waits for an hour"),
    };
    if manner.end == End::NotAttached {
        let start = Instant::now();
        let ended = run.vmm.finish();
        let time = start.elapsed();
        ended.expect_code(2).expect_stderr(&socket);
        assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line; output:\n{ended}");
        assert!(from <= time && time <= to, "{time:?} and not {from:?} to {to:?}; output:\n{ended}");
        return;
    }
    run.vmm.wait_for("ready\n");
    let start = Instant::now();
    let cut = eventually(to, || run.vmm.stderr().contains("reads all-ones"));
    let time = start.elapsed();
    let ended = run.enough();
    let wanted = matches!(manner.end, End::CutOff | End::CutOffAtDeadline);
    ended.expect_code(if wanted { 6 } else { 0 }).expect_stdout("payload: passed");
    assert_eq!(cut, wanted, "whether the device is cut off; output:\n{ended}");
    assert!(from <= time, "{time:?} and not {from:?} to {to:?}; output:\n{ended}");
    let named = ended.stderr.matches(&socket).count();
    assert!(if wanted { named == 1 } else { named <= 1 }, "the device is named {named} times; output:\n{ended}");
    let lines = ended.stderr.lines().count();
    assert!(lines <= LINES, "{lines} lines; output:\n{ended}");
    if with_disk {
        let (count, longest) = requests(&ended);
        // Every one has completed, as the guest says; how long that took is for a machine to be asked on which an honest
        // device beside the disk does not make it seconds, too (`rude_rounds`).
        println!("{name}: {count} requests, the longest took {longest:?}");
    }
}

macro_rules! manners {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { comes_to_its_end($name); })*
    };
}

manners! {
    honest: "honest",
    honest_twin: "honest-twin",
    blocking_eventfds: "blocking-eventfds",
    full_eventfds: "full-eventfds",
    lingering_request: "lingering-request",
    lingering_reply: "lingering-reply",
    lingering_twin: "lingering-twin",
    lingering_ioregionfd: "lingering-ioregionfd",
    lingering_unread: "lingering-unread",
    lingering_region: "lingering-region",
    blocking_twin: "blocking-twin",
    blocking_ioregionfd: "blocking-ioregionfd",
    many_descriptors: "many-descriptors",
    descriptors_in_flight: "descriptors-in-flight",
    truncating: "truncating",
    plain_file: "plain-file",
    huge: "huge",
    no_memory: "no-memory",
    dma_flood: "dma-flood",
    dma_flood_twin: "dma-flood-twin",
    dma_unread: "dma-unread",
    dma_unread_twin: "dma-unread-twin",
    dma_busy: "dma-busy",
    interrupt_storm: "interrupt-storm",
    replies_flood: "replies-flood",
    interrupts_after_the_cut: "interrupts-after-the-cut",
    refusing: "refusing",
    slow_unmask: "slow-unmask",
    slow_reset: "slow-reset",
    silent: "silent",
    stops: "stops",
    stops_at_once: "stops-at-once",
    half_message: "half-message",
    hangs_up: "hangs-up",
}

/// A run of the check `check` with a device of `manner`, once the guest is ready.
#[track_caller]
fn run_of(manner: &str, check: &str, directory: &TempDir) -> (Run, Rude) {
    let device = Rude::start(by_name(manner), directory.path());
    let mut run = Run::start(command(check, false, &[device.option()], directory.path()));
    run.vmm.wait_for("ready\n");
    (run, device)
}

fn temporary() -> TempDir {
    TempDir::new().expect("there is room for temporary files")
}

/// It has the eventfds still, and uses them.
#[test]
fn no_interrupt_comes_of_a_device_that_is_cut_off() {
    let (run, _device) = run_of("interrupts-after-the-cut", "quiet-when-dead", &temporary());
    run.vmm.finish().expect_code(6).expect_stdout("ok quiet-when-dead");
}

#[test]
fn a_bar_on_configuration_space_that_is_toggled_makes_a_few_lines() {
    let _turn = turn();
    let (run, _device) = run_of("honest", "ecam-toggle", &temporary());
    sleep(A_WHILE);
    let ended = run.enough();
    ended.expect_code(0);
    assert!(ended.stderr.lines().count() <= LINES, "many lines; output:\n{ended}");
}

#[test]
fn three_stopped_disks() {
    let _turn = turn();
    let directory = temporary();
    let mut command = with_payload("spin");
    for number in 0..3 {
        let image = directory.path().join(format!("{number}.img"));
        disk::empty(&image, disk::PAYLOAD_DISK);
        with_disk(&mut command, &image);
    }
    let mut run = Run::start(command);
    run.vmm.wait_for("ready\n");
    let devices = run.devices();
    assert_eq!(devices.len(), 3, "three disks are three processes: {devices:?}");
    devices.iter().for_each(|device| kill(device.pid, Signal::SIGSTOP).expect("it runs"));
    run.terminate();
}

/// Why its page is not shown to the guest.
#[test]
fn a_file_on_a_disk_is_reached_by_message() {
    for (manner, file) in [("plain-file", "file"), ("no-memory", "file")] {
        let directory = temporary();
        let device = Rude::start(by_name(manner), directory.path());
        let mut command = command("rude", false, &[device.option()], directory.path());
        command.arg("--show-devices");
        let mut run = Run::start(command);
        run.vmm.wait_for("ready\n");
        let ended = run.enough();
        ended.expect_code(0).expect_stderr(file);
        let line = ended.stderr.lines().find(|line| line.contains("0x01000") || line.contains("0x00000"));
        assert!(
            line.is_some_and(|line| line.contains("message")),
            "the page is not reached by message; output:\n{ended}"
        );
    }
}

/// A terabyte of which nothing is there costs no time.
#[test]
fn a_huge_bar_does_not_hold_up_the_start() {
    let _turn = turn();
    let mut times = ["honest", "huge"].map(|manner| {
        let start = Instant::now();
        let (run, _device) = run_of(manner, "rude", &temporary());
        let time = start.elapsed();
        run.enough().expect_code(0);
        time
    });
    times.sort();
    assert!(times[1] - times[0] <= Duration::from_millis(500), "{times:?}");
}

#[test]
fn a_reboot_does_not_wait_for_a_reset() {
    let _turn = turn();
    let directory = temporary();
    let device = Rude::start(by_name("slow-reset"), directory.path());
    let mut run = Run::start(command("reboot", false, &[device.option()], directory.path()));
    run.vmm.wait_for("rebooting\n");
    // The reset takes twice as long.
    assert!(eventually(Duration::from_secs(4), || run.vmm.has_ended()), "it goes on");
    run.vmm.finish().expect_code(4);
}

/// One that the VMM has started and then cut off, since it has stopped. Nothing takes its place (`restart=off`).
#[test]
fn a_child_that_is_cut_off_is_killed() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let mut command = with_payload("allones,spin");
    with_disk_and(&mut command, &image, ",restart=off");
    let mut run = Run::start(command);
    run.vmm.wait_for("ready\n");
    let devices = run.devices();
    kill(devices[0].pid, Signal::SIGSTOP).expect("it runs");
    run.vmm.wait_for("ok allones-writes-vanish\nready\n");
    assert!(eventually(Duration::from_secs(2), || !devices[0].alive()), "it lives on");
    let (ended, _) = run.terminate();
    assert_eq!(ended.stderr.matches("disk.img").count(), 1, "it is not named once; output:\n{ended}");
}

/// Descriptors that are under way count for all of a user's processes. One that has many fills this up; then the VMM cannot send any, which
/// is nobody's fault, and above all not that of the disk whose interrupts it wanted to connect.
#[test]
fn descriptors_under_way_are_not_the_fault_of_another_device() {
    let _turn = turn();
    let directory = temporary();
    let device = Rude::start(by_name("descriptors-in-flight"), directory.path());
    let run = command("rude-polled", true, &[device.option()], directory.path());
    let mut command = Command::new("prlimit");
    command.args(["--nofile=2048:2048", "setpriv", "--bounding-set=-sys_admin,-sys_resource"]);
    command.arg(run.get_program()).args(run.get_args());
    let mut run = Run::start(command);
    run.vmm.wait_for("ready\n");
    sleep(A_WHILE);
    let ended = run.enough();
    ended.expect_code(0).expect_stdout("payload: passed");
    assert!(ended.stderr.contains("nothing could be sent"), "there were not too many; output:\n{ended}");
    // Such a host makes no namespaces either, which is said once.
    let lines = ended.stderr.lines().filter(|line| !line.contains("the sandbox is incomplete")).count();
    assert!(lines <= LINES, "{lines} lines; output:\n{ended}");
}
