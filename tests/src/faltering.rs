//! A disk whose program fails at one message of its way to the guest, as a test says (`tests/src/bin/faltering-device.rs`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_protocol::command::Command as Message;
use tempfile::TempDir;

use crate::control::{GET_STATUS, exchange};
use crate::outrigger::{LIMIT, with_payload};
use crate::process::{Process, eventually};
use crate::{binaries, disk};

/// When a process fails: before it has done what it is asked, and in place of the answer.
pub const MOMENTS: [&str; 2] = ["before", "after"];
/// How long anything may take that takes some milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a moment is waited for that comes in one restart of several.
pub const TRIES: usize = 100;

/// A disk whose processes do as a script says.
pub struct Faltering {
    directory: TempDir,
}

impl Faltering {
    /// With processes that fail at nothing, until [`script`](Self::script) says otherwise.
    ///
    /// # Panics
    /// When there is no room for a few files.
    #[expect(clippy::new_without_default, reason = "it makes files and processes")]
    pub fn new() -> Self {
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

    /// A file beside its image: `vm.sock` is the control socket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The processes that begin from now on do as `text` says.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn script(&self, text: &str) {
        let (new, place) = (self.path("script.new"), self.path("script"));
        // It may not be there.
        let _ = fs::remove_file(self.path("script.faltered"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &place)).expect("the directory is ours");
    }

    /// Whether a process has begun that does as `text` says.
    fn is_taken(&self, text: &str) -> bool {
        text.starts_with('0') || fs::read_to_string(self.path("script")).is_ok_and(|now| now != text)
    }

    /// Whether a process has failed as planned since the last script.
    pub fn has_faltered(&self) -> bool {
        self.path("script.faltered").exists()
    }

    /// A guest that makes `check`, whose disk has `options`.
    pub fn command(&self, check: &str, options: &str) -> Command {
        let image = disk::for_payload(self.directory.path());
        let mut command = with_payload(check);
        let (program, image) = (self.path("disk"), image.display().to_string());
        // Whoever stands between the disk and its client could not kill the first process of their namespace.
        command.arg("--device").arg(format!("program={},path={image},sandbox=off{options}", program.display()));
        command.arg("--control").arg(self.path("vm.sock"));
        command
    }

    /// Starts it, and waits until the guest is ready.
    pub fn start(&self, check: &str, options: &str) -> Process {
        let mut vmm = Process::start_with_input(&mut self.command(check, options), LIMIT);
        vmm.wait_for("ready\n");
        vmm
    }

    /// The commands that the process got that was told to note them.
    pub fn seen(&self) -> Vec<u16> {
        let seen = fs::read_to_string(self.path("script.seen")).unwrap_or_default();
        seen.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The process that serves the disk now.
    pub fn serving(&self) -> Option<Pid> {
        // There is none before the run has begun, and none after its end.
        let stream = UnixStream::connect(self.path("vm.sock")).ok()?;
        let status = exchange(stream, GET_STATUS);
        let (_, devices) = status.split_once("\"devices\"")?;
        let pid = devices.split_once("\"pid\": ")?.1.split_once(',')?.0;
        devices.contains("\"serving\"").then_some(Pid::from_raw(pid.parse().ok()?))
    }

    /// The processes that have to do with this disk.
    pub fn left(&self) -> Vec<String> {
        let place = self.directory.path().display().to_string();
        let entries = fs::read_dir("/proc").expect("every Linux has /proc");
        let lines = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(&place)).collect()
    }

    /// Kills what serves the disk, and waits until something else does; and until one that was to fail has failed.
    #[track_caller]
    pub fn succeeded(&self, vmm: &Process, script: &str) {
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
            let now = self.serving().filter(|now| Some(*now) != killed);
            if !self.is_taken(script) {
                // The killed process had failed before, and this one began in its place before the script was there.
                killed = now.filter(|now| kill(*now, Signal::SIGKILL).is_ok()).or(killed);
                return false;
            }
            (!is_to_falter || self.has_faltered()) && now.is_some()
        });
        let (faltered, seen) = (self.has_faltered(), self.seen());
        assert!(done, "{script:?}: faltered: {faltered}; it has seen {seen:?}; the VMM says:\n{}", vmm.stderr());
    }
}

/// Messages to a process that takes over from one whose interrupts are connected.
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
pub fn messages(faltering: &Faltering, vmm: &Process, more: usize) -> Vec<u16> {
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

/// The places of all messages.
pub fn each(messages: &[u16]) -> Vec<usize> {
    (0..messages.len()).collect()
}

/// The places of those by which a process is attached.
///
/// # Panics
/// When none takes the journal.
pub fn attaching(messages: &[u16]) -> Vec<usize> {
    let taken = messages.iter().position(|message| *message == Message::JournalTake as u16);
    (0..=taken.expect("it takes over")).collect()
}

/// Where each kind of message comes for the first time.
pub fn kinds(messages: &[u16]) -> Vec<usize> {
    let is_first = |at: &usize| !messages[..*at].contains(&messages[*at]);
    (0..messages.len()).filter(is_first).collect()
}
