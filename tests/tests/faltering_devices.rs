//! A disk's program that fails at each message of its way to the guest (`tests/src/bin/faltering-device.rs`): it dies, hangs up, answers
//! nonsense or nothing, before it does what it is asked or in place of the answer. What the guest sees is the payload's to say, on this
//! machine's own KVM.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_protocol::command::Command as Message;
use outrigger_tests::control::{GET_STATUS, exchange};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Process, eventually, run};
use outrigger_tests::{binaries, disk};
use tempfile::TempDir;

const MOMENTS: [&str; 2] = ["before", "after"];
/// How long anything may take that takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a run takes to end that does not begin, its deadline of a second included, on a machine that is busy.
const SOON: Duration = Duration::from_secs(8);
/// How often a moment is waited for that comes in one restart of several.
const TRIES: usize = 100;

/// A disk whose processes do as a script says.
struct Faltering {
    directory: TempDir,
}

impl Faltering {
    fn new() -> Self {
        let directory = TempDir::new().expect("there is room for temporary files");
        let faltering = Self { directory };
        faltering.script("0");
        let words = [binaries::of_tests("faltering-device"), faltering.path("script"), binaries::path("outrigger-blk")];
        let words = words.map(|word| word.display().to_string()).join(" ");
        let program = faltering.path("disk");
        fs::write(&program, format!("#!/bin/sh\nexec {words} \"$@\"\n")).expect("the directory is ours");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("it is ours");
        faltering
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn script(&self, text: &str) {
        let (new, place) = (self.path("script.new"), self.path("script"));
        // It may not be there.
        let _ = fs::remove_file(self.path("script.faltered"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &place)).expect("the directory is ours");
    }

    fn has_faltered(&self) -> bool {
        self.path("script.faltered").exists()
    }

    /// A guest that makes `check`, whose disk has `options`.
    fn command(&self, check: &str, options: &str) -> Command {
        let image = disk::for_payload(self.directory.path());
        let mut command = with_payload(check);
        let (program, image) = (self.path("disk"), image.display().to_string());
        command.arg("--device").arg(format!("program={},path={image}{options}", program.display()));
        command.arg("--control").arg(self.path("vm.sock"));
        command
    }

    fn start(&self, check: &str, options: &str) -> Process {
        let mut vmm = Process::start_with_input(&mut self.command(check, options), LIMIT);
        vmm.wait_for("ready\n");
        vmm
    }

    /// The commands that the process got that was told to note them.
    fn seen(&self) -> Vec<u16> {
        let seen = fs::read_to_string(self.path("script.seen")).unwrap_or_default();
        seen.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// What serves the disk now.
    fn serving(&self) -> Option<Pid> {
        // There is none before the run has begun, and none after its end.
        let stream = UnixStream::connect(self.path("vm.sock")).ok()?;
        let status = exchange(stream, GET_STATUS);
        let (_, devices) = status.split_once("\"devices\"")?;
        let pid = devices.split_once("\"pid\": ")?.1.split_once(',')?.0;
        devices.contains("\"serving\"").then_some(Pid::from_raw(pid.parse().ok()?))
    }

    /// The processes that have to do with this disk.
    fn left(&self) -> Vec<String> {
        let place = self.directory.path().display().to_string();
        let entries = fs::read_dir("/proc").expect("every Linux has /proc");
        let lines = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(&place)).collect()
    }

    /// Kills what serves the disk, and waits until something else does; and until one that was to fail has failed.
    #[track_caller]
    fn succeeded(&self, vmm: &Process, script: &str) {
        let mut killed = None;
        let done = eventually(PATIENCE, || {
            let serving = self.serving();
            self.script(if serving.is_some() { script } else { "0" });
            // It may have failed just now.
            killed = serving.filter(|serving| kill(*serving, Signal::SIGKILL).is_ok());
            killed.is_some()
        });
        assert!(done, "nothing serves the disk before {script:?}; it says:\n{}", vmm.stderr());
        let is_to_falter = script.contains(' ');
        let done = eventually(PATIENCE, || {
            (!is_to_falter || self.has_faltered()) && self.serving().is_some_and(|now| Some(now) != killed)
        });
        let (faltered, seen) = (self.has_faltered(), self.seen());
        assert!(done, "{script:?}: faltered: {faltered}; it has seen {seen:?}; the VMM says:\n{}", vmm.stderr());
    }
}

/// What a process is told that takes over from one whose interrupts are connected.
const WANTED: [Message; 8] = [
    Message::Version,
    Message::DeviceGetInfo,
    Message::DeviceGetRegionInfo,
    Message::DeviceGetIrqInfo,
    Message::JournalOffer,
    Message::DmaMap,
    Message::DeviceSetIrqs,
    Message::JournalTake,
];

/// The client's messages to a process that takes over, and some `more` after it has. The driver connects no interrupts for a part of the
/// time.
#[track_caller]
fn messages(faltering: &Faltering, vmm: &Process, more: usize) -> Vec<u16> {
    let mut messages = Vec::new();
    let taken = |messages: &[u16]| messages.iter().position(|message| *message == Message::JournalTake as u16);
    for _ in 0..TRIES {
        faltering.succeeded(vmm, "1");
        let done = eventually(PATIENCE, || {
            messages = faltering.seen();
            taken(&messages).is_some_and(|at| messages.len() > at + more)
        });
        assert!(done, "the disk is not used: {messages:?}");
        messages.truncate(taken(&messages).expect("just seen") + 1 + more);
        if WANTED.iter().all(|wanted| messages.contains(&(*wanted as u16))) {
            return messages;
        }
    }
    panic!("not all of {WANTED:?} are among {messages:?}");
}

/// Guests that verify what they read, by the name of their check, and the key that ends it.
#[derive(Clone, Copy)]
enum Guest {
    /// Starts its device anew again and again.
    Restless,
    /// Starts it once, so that its interrupts are connected all the time.
    Busy,
}

/// Under a guest that verifies what it reads, one successor after the other fails, each at another message, and the next one serves.
#[track_caller]
fn unnoticed(guest: Guest, faults: &[&str], options: &str, is_tried: fn(&[u16]) -> Vec<usize>) {
    let faltering = Faltering::new();
    let (check, key, passed, more) = match guest {
        // The BARs are told first, then comes the driver.
        Guest::Restless => ("blk-steady", "q", "ok blk-steady\n", 6),
        Guest::Busy => ("verified-disk", "x", "ok verified\n", 0),
    };
    let mut vmm = faltering.start(check, &format!(",restart=10000/1s{options}"));
    let messages = messages(&faltering, &vmm, more);
    let places = is_tried(&messages);
    for fault in faults {
        for moment in MOMENTS {
            for &at in &places {
                let is_tried = (0..TRIES).any(|_| {
                    faltering.succeeded(&vmm, &format!("1 {at} {moment} {fault}"));
                    faltering.seen().get(at) == Some(&messages[at])
                });
                assert!(is_tried, "message {at} is never {} but {:?}", messages[at], faltering.seen());
            }
        }
    }
    println!("{faults:?} at {} of {} messages", places.len(), messages.len());
    let devices = children(vmm.pid());
    vmm.send(key);
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout(passed).expect_stdout("payload: passed");
    expect_ended(&devices);
}

fn each(messages: &[u16]) -> Vec<usize> {
    (0..messages.len()).collect()
}

/// Each by which it is attached.
fn attaching(messages: &[u16]) -> Vec<usize> {
    let taken = messages.iter().position(|message| *message == Message::JournalTake as u16);
    (0..=taken.expect("it takes over")).collect()
}

/// Where each kind of message comes for the first time.
fn kinds(messages: &[u16]) -> Vec<usize> {
    let is_first = |at: &usize| !messages[..*at].contains(&messages[*at]);
    (0..messages.len()).filter(is_first).collect()
}

#[test]
fn a_successor_may_die_at_each_message() {
    unnoticed(Guest::Restless, &["killed"], "", each);
}

#[test]
fn a_successor_may_close_the_connection_at_each_message() {
    unnoticed(Guest::Restless, &["closes"], "", each);
}

#[test]
fn a_successor_may_send_nonsense_at_each_message() {
    unnoticed(Guest::Restless, &["nonsense"], "", each);
}

/// Answers without the fields that belong into them, or with others. Some answers have none; what says that it is done is believed.
#[test]
fn a_successor_may_answer_wrongly() {
    let asking = |messages: &[u16]| {
        let done = [Message::DmaMap, Message::DeviceSetIrqs, Message::JournalTake].map(|message| message as u16);
        attaching(messages).into_iter().filter(|at| !done.contains(&messages[*at])).collect()
    };
    unnoticed(Guest::Busy, &["empty", "garbled"], "", asking);
}

/// What the guest wants later may be refused, which the guest then notices.
#[test]
fn a_successor_may_refuse_each_message_by_which_it_is_attached() {
    unnoticed(Guest::Busy, &["refuses"], "", attaching);
}

#[test]
fn a_successor_may_hang_up_and_stay() {
    unnoticed(Guest::Restless, &["hangs-up"], "", kinds);
}

#[test]
fn a_successor_may_be_stopped() {
    unnoticed(Guest::Restless, &["stops"], ",deadline=2s", kinds);
}

/// Where the first process fails, the run does not begin.
#[track_caller]
fn ends_the_run(fault: &str, moments: &[&str], deadline: &str) {
    let faltering = Faltering::new();
    faltering.script("1");
    let mut vmm = faltering.start("blk-steady", "");
    let messages = faltering.seen();
    vmm.send("q");
    vmm.finish().expect_code(0);
    let mapped = messages.iter().position(|message| *message == Message::DmaMap as u16).expect("it is given RAM");
    // To a request to map memory an empty answer is the right one.
    let end = if fault == "garbled" { mapped } else { mapped + 1 };
    for moment in moments {
        for at in kinds(&messages[..end]) {
            faltering.script(&format!("1 {at} {moment} {fault}"));
            let begun = Instant::now();
            let ended = run(&mut faltering.command("blk-steady", deadline), LIMIT);
            let case = format!("{fault} {moment} message {} ({at})", messages[at]);
            assert!(faltering.has_faltered(), "{case}: it has not:\n{ended}");
            assert_eq!(ended.code(), 2, "{case}:\n{ended}");
            assert_eq!(ended.stderr.lines().count(), 1, "{case}: not one line:\n{ended}");
            assert!(begun.elapsed() < SOON, "{case}: it took {:?}", begun.elapsed());
            assert!(eventually(PATIENCE, || faltering.left().is_empty()), "{case}: {:?} live on", faltering.left());
        }
    }
}

#[test]
fn a_device_that_dies_at_a_message_of_the_start_ends_the_run() {
    ends_the_run("killed", &MOMENTS, "");
}

#[test]
fn one_that_closes_its_connection_ends_the_run() {
    ends_the_run("closes", &MOMENTS, "");
    ends_the_run("hangs-up", &["before"], "");
}

#[test]
fn one_that_sends_nonsense_ends_the_run() {
    ends_the_run("nonsense", &MOMENTS, "");
    ends_the_run("garbled", &MOMENTS, "");
}

#[test]
fn one_that_does_not_answer_ends_the_run_at_the_deadline() {
    ends_the_run("silent", &["before"], ",deadline=1s");
    ends_the_run("stops", &["after"], ",deadline=1s");
}

/// One after the other fails at the same message, as often as they may; the guest goes on without the disk.
#[track_caller]
fn is_withdrawn(fault: &str, moments: &[&str], deadline: &str, lines: usize, why: &str) {
    let faltering = Faltering::new();
    let vmm = faltering.start("allones", "");
    let messages = messages(&faltering, &vmm, 0);
    drop(vmm);
    for moment in moments {
        for at in kinds(&messages) {
            let case = format!("{fault} {moment} message {} ({at})", messages[at]);
            faltering.script("0");
            let vmm = faltering.start("allones", &format!(",restart=3/60s{deadline}"));
            faltering.script(&format!("1000 {at} {moment} {fault}"));
            kill(faltering.serving().expect("it has just begun"), Signal::SIGKILL).expect("it runs");
            let ended = vmm.finish();
            assert!(faltering.has_faltered(), "{case}: it has not:\n{ended}");
            ended.expect_code(6).expect_stdout("ok allones\n").expect_stdout("payload: passed");
            ended.expect_stderr(&format!("and {why}; from now on the guest reads all-ones from it"));
            assert_eq!(ended.stderr.matches("no successor: ").count(), lines, "{case}:\n{ended}");
            assert_eq!(ended.stderr.lines().count(), lines + 2, "{case}: more lines than those:\n{ended}");
            assert!(eventually(PATIENCE, || faltering.left().is_empty()), "{case}: {:?} live on", faltering.left());
        }
    }
}

#[test]
fn successors_that_all_die_are_bounded_and_told_on_one_line_each() {
    is_withdrawn("killed", &MOMENTS, "", 3, "3 restarts in 60 s are used up");
}

#[test]
fn successors_that_all_close_the_connection_are_bounded() {
    is_withdrawn("closes", &MOMENTS, "", 3, "3 restarts in 60 s are used up");
}

#[test]
fn successors_that_all_send_nonsense_are_bounded() {
    is_withdrawn("nonsense", &MOMENTS, "", 3, "3 restarts in 60 s are used up");
}

/// The guest waits for as long as it may have to, and no longer.
#[test]
fn a_successor_that_does_not_answer_is_the_last() {
    is_withdrawn("silent", &["after"], ",deadline=1s", 1, "nothing took its place within 1s");
}

/// It serves the guest already, which has asked it this and that by then. What finds out that a message is none closes the connection, and
/// what finds that closed does not say that the process has closed it.
#[test]
fn a_disk_that_breaks_the_protocol_is_killed_and_succeeded() {
    for at in 60..64 {
        let faltering = Faltering::new();
        faltering.script(&format!("1 {at} before nonsense"));
        let mut vmm = faltering.start("blk-steady", "");
        assert!(eventually(PATIENCE, || faltering.has_faltered()), "{at}: {}", vmm.stderr());
        vmm.wait_for_stderr("another one took its place in ");
        let devices = children(vmm.pid());
        assert_eq!(devices.len(), 1, "{at}: one disk is one process: {devices:?}");
        vmm.send("q");
        let ended = vmm.finish();
        ended.expect_code(0).expect_stdout("ok blk-steady\n").expect_stdout("payload: passed");
        ended.expect_stderr("disk broke the protocol: ").expect_stderr("a message claims");
        assert_eq!(ended.stderr.lines().count(), 1, "{at}: not one line:\n{ended}");
    }
}
